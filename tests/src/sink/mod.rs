//! The outside world: an SMTP (or LMTP) server that does what a test tells it and remembers everything.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use pombo_tests::sink::{Sink, Stage, at};
//! use std::time::Duration;
//!
//! let sink = Sink::start().await?;
//! sink.rule(at(Stage::Rcpt).recipient("gone@example.org").reply("550 5.1.1 no such user"));
//! sink.rule(at(Stage::Rcpt).domain("grey.example").first_of_each(2).reply("451 4.7.1 come back later"));
//! sink.rule(at(Stage::Dot).domain("doubt.example").first(1).accept_and_drop());
//! // ... something sends ...
//! sink.wait_for(Duration::from_secs(10), "both mails", |seen| seen.accepted() == 2).await;
//! # Ok(()) }
//! ```
//!
//! `mod` is the server and what can be asked of it; `script` what it is told; `session` one connection; `record` what it saw.

mod auth;
mod data;
mod record;
mod script;
mod session;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use self::{
    record::Record,
    script::{Facts, Options, Plan, Scripted},
};
pub use self::{
    record::{Recipient, Seen, Transaction, Unfinished},
    script::{Builder, Extension, Gate, Rule, Stage, at},
};
use crate::{ports, tls::Certificate};

/// The server. It ends when dropped.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// `None`: nobody listens.
    listening: Mutex<Option<AbortHandle>>,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    options: Options,
    acceptor: Option<Acceptor>,
    rules: Mutex<Vec<Scripted>>,
    record: Mutex<Record>,
    /// Counts changes of the record, to wake those who wait for one.
    changed: watch::Sender<u64>,
}

/// rustls' acceptor has no `Debug`.
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Sink {
    /// An ESMTP server with all extensions but TLS and AUTH, that takes everything.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start() -> anyhow::Result<Self> {
        Self::builder().start().await
    }

    /// Another server than that.
    pub fn builder() -> Builder {
        Builder::default()
    }

    async fn start_with(options: Options) -> anyhow::Result<Self> {
        let acceptor = options
            .certificate
            .as_ref()
            .map(Certificate::acceptor)
            .transpose()?
            .map(Acceptor);
        let record = Mutex::new(Record::new(options.transcript_max));
        let shared = Arc::new(Shared {
            options,
            acceptor,
            rules: Mutex::default(),
            record,
            changed: watch::Sender::new(0),
        });
        let sink = Self {
            address: ports::free_address(),
            shared,
            listening: Mutex::new(None),
        };
        sink.listen_again().await?;
        Ok(sink)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The certificate it shows after STARTTLS, if it offers that.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.shared.options.certificate.as_ref()
    }

    /// Adds a rule. The first rule that fits decides; without one, everything is accepted.
    pub fn rule(&self, rule: Rule) {
        lock(&self.shared.rules).push(Scripted::new(rule));
    }

    /// Forgets all rules: everything is accepted again.
    pub fn accept_everything(&self) {
        lock(&self.shared.rules).clear();
    }

    /// Nobody listens any more, and all connections are cut: connection refused.
    pub fn go_away(&self) {
        if let Some(listening) = lock(&self.listening).take() {
            listening.abort();
        }
    }

    /// Listens again, on the same port.
    ///
    /// # Errors
    /// Someone else has taken it.
    pub async fn listen_again(&self) -> anyhow::Result<()> {
        let listener = bind(self.address).await?;
        let task = tokio::spawn(accept(listener, Arc::clone(&self.shared)));
        if let Some(before) = lock(&self.listening).replace(task.abort_handle()) {
            before.abort();
        }
        Ok(())
    }

    /// Looks at what it has seen so far. Nothing is recorded meanwhile, so be brief.
    pub fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&lock(&self.shared.record).seen)
    }

    /// Waits until `condition` holds; it is looked at after each change.
    ///
    /// # Panics
    /// When `limit` has passed: with what was awaited and the end of the transcript.
    pub async fn wait_for(
        &self,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut(&Seen) -> bool,
    ) {
        let mut changes = self.shared.changed.subscribe();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if self.look(&mut condition) {
                    return;
                }
                // The sender lives in `self`: this cannot fail.
                let _ = changes.changed().await;
            }
        };
        if timeout(limit, wait).await.is_err() {
            let seen = self.look(Seen::summary);
            panic!(
                "the sink did not see within {limit:?}: {what}\nit saw {seen}\n{}",
                self.transcript_tail(60)
            );
        }
    }

    /// Waits for a mail to this recipient, and gives the first.
    ///
    /// # Panics
    /// When `limit` has passed.
    pub async fn mail_for(&self, recipient: &str, limit: Duration) -> Arc<Transaction> {
        let mut found = None;
        self.wait_for(limit, &format!("a mail for {recipient}"), |seen| {
            found = seen.mail_for(recipient).next().cloned();
            found.is_some()
        })
        .await;
        found.expect("the condition held")
    }

    /// Everything that was said, one line each: `3< MAIL FROM:<a@b>`, `3> 250 2.1.0 ok`. Message contents are left out.
    pub fn transcript(&self) -> String {
        self.transcript_tail(usize::MAX)
    }

    fn transcript_tail(&self, lines: usize) -> String {
        lock(&self.shared.record).transcript(lines)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.go_away();
    }
}

impl Shared {
    /// What the rules say about this moment of a conversation.
    fn plan(&self, stage: Stage, facts: Facts<'_>) -> Plan {
        lock(&self.rules)
            .iter_mut()
            .find_map(|rule| rule.applies(stage, &facts))
            .unwrap_or_default()
    }

    fn record<T>(&self, note: impl FnOnce(&mut Record) -> T) -> T {
        let result = note(&mut lock(&self.record));
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
        result
    }

    /// Only the transcript: nobody waits for that.
    fn say(&self, connection: u64, direction: char, line: &[u8]) {
        lock(&self.record).say(connection, direction, line);
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    // A port that was just given up may be held for a moment by the task that is ending.
    let mut tries = 0;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(_) if tries < 100 => tries += 1,
            Err(e) => return Err(e).with_context(|| format!("the sink listens on {address}")),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The sessions live in this task's set: aborting it ends them all.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut sessions = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                sessions.spawn(session::serve(stream, Arc::clone(&shared)));
            }
            // Out of file descriptors: ends of sessions give some back.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while sessions.try_join_next().is_some() {}
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An address of loopback on which nobody listens: connection refused.
pub fn nobody() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports::free_port()).into()
}
