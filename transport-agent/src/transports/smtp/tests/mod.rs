//! The transport against scripted servers. What stands in for the agent's host is here; the cases are in the modules below.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pombo_proto::{
    ids::{MessageId, RecipientIndex, Reference},
    message::{Body, Content, Envelope, MessageClass, Priority, Recipient, ReportReturn, Source},
    outcome::{Diagnosis, Outcome, RecipientStatus, Relayed, SubmitResult},
    time::UnixMillis,
    verbs::TransportState,
};
use tokio::{sync::watch, time::timeout};

use super::{Config, SmtpTransport, config::AddressPreference, dns};
use crate::provider::{Reception, Submission, SubmissionHandle, Support, Transport};

mod cancel;
mod configuration;
mod mx;
mod outcomes;
mod pipelining;
mod pooling;
mod resolver;
mod security;
mod server;

use server::{LIMIT, Server};

/// A greeting and what is offered; the way most transcripts begin.
const HELLO: &str = "S: 220 mx ready\nC: EHLO client.test\nS: 250-mx\nS: 250-ENHANCEDSTATUSCODES\nS: 250 PIPELINING\n";
/// One message taken from ann to bob, with pipelining.
const TAKEN: &str = "C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\nS: 250 2.1.0 ok\nS: 250 2.1.5 ok\nS: 354 go\nB\nS: 250 2.0.0 queued\n";

fn hello(offered: &str) -> String {
    let mut lines = vec!["mx"];
    lines.extend(offered.split_terminator(", "));
    let last = lines.len() - 1;
    let mut script = String::from("S: 220 mx ready\nC: EHLO client.test\n");
    for (number, line) in lines.iter().enumerate() {
        script += &format!("S: 250{}{line}\n", if number == last { ' ' } else { '-' });
    }
    script
}

/// The message as the host keeps it.
struct Message {
    envelope: Envelope,
    considered: Vec<RecipientIndex>,
    content: Bytes,
    cancel: watch::Sender<bool>,
    may_finish: AtomicBool,
    asked_to_finish: AtomicU32,
    reference: Mutex<Option<Reference>>,
}

impl Message {
    fn new(recipients: &[&str], content: impl Into<Vec<u8>>) -> Self {
        let content: Vec<u8> = content.into();
        let envelope = Envelope {
            id: MessageId::derived("test", b"1"),
            class: MessageClass::Note,
            sender: "ann@a.test".to_owned(),
            recipients: recipients
                .iter()
                .map(|address| Recipient::smtp(*address))
                .collect(),
            priority: Priority::Normal,
            submitted_at: UnixMillis(0),
            deferred_until: None,
            expires_at: None,
            report_return: ReportReturn::Headers,
            envelope_id: None,
            content: Content::default(),
            source: Source::default(),
            body: Body::Inline {
                size: content.len() as u64,
            },
            properties: Vec::new(),
        };
        Self {
            considered: (0..recipients.len() as u32).map(RecipientIndex).collect(),
            envelope,
            content: content.into(),
            cancel: watch::channel(false).0,
            may_finish: AtomicBool::new(true),
            asked_to_finish: AtomicU32::new(0),
            reference: Mutex::new(None),
        }
    }

    fn to_bob() -> Self {
        Self::new(&["bob@b.test"], *b"Subject: x\r\n\r\nhello\r\n")
    }

    fn cancel(&self) {
        self.cancel.send_replace(true);
    }
}

struct Handle(Arc<Message>);

#[async_trait]
impl SubmissionHandle for Handle {
    fn envelope(&self) -> &Envelope {
        &self.0.envelope
    }
    fn considered(&self) -> &[RecipientIndex] {
        &self.0.considered
    }
    fn begin_deferred(&self) -> bool {
        false
    }
    async fn body(&self) -> std::io::Result<Bytes> {
        assert!(
            self.0.reference.lock().unwrap().is_some(),
            "the reference comes first"
        );
        Ok(self.0.content.clone())
    }
    fn assign_reference(&self, reference: Reference) {
        *self.0.reference.lock().unwrap() = Some(reference);
    }
    fn status_recips(&self, _statuses: Vec<(RecipientIndex, RecipientStatus)>) {}
    fn is_cancelled(&self) -> bool {
        *self.0.cancel.borrow()
    }
    async fn cancelled(&self) {
        let mut cancelled = self.0.cancel.subscribe();
        cancelled.wait_for(|cancelled| *cancelled).await.unwrap();
    }
    async fn may_finish(&self) -> bool {
        self.0.asked_to_finish.fetch_add(1, Ordering::SeqCst);
        self.0.may_finish.load(Ordering::SeqCst)
    }
}

/// The support object: keeps what it is told.
#[derive(Default)]
struct Told {
    next: AtomicU64,
    states: Mutex<Vec<TransportState>>,
}

impl Support for Told {
    fn new_mail(&self) {}
    fn ready_to_send(&self) {}
    fn critical_error(&self, _error: Diagnosis) {}
    fn sent_deferred(&self, _id: MessageId, _statuses: Vec<(RecipientIndex, RecipientStatus)>) {}
    fn config_change(&self) {}
    fn critical_section(&self, _inside: bool) {}
    fn status(&self, state: TransportState, _error: Option<String>) {
        self.states.lock().unwrap().push(state);
    }
    fn next_reference(&self) -> Reference {
        Reference(Reference::FIRST.0 + self.next.fetch_add(1, Ordering::SeqCst))
    }
    fn permit(
        &self,
        _patience: Duration,
    ) -> futures_util::future::BoxFuture<'static, Option<Arc<Reception>>> {
        Box::pin(async { None })
    }
    fn host(&self) -> &str {
        "client.test"
    }
}

/// Names as the test wants them; what is not named does not exist.
#[derive(Default)]
struct Names {
    mx: HashMap<&'static str, Result<Vec<dns::Mx>, dns::Error>>,
    addresses: HashMap<&'static str, Result<Vec<IpAddr>, dns::Error>>,
    asked: AtomicU32,
}

impl Names {
    fn mx(mut self, domain: &'static str, hosts: &[(u16, &str)]) -> Self {
        let record = |(preference, host): &(u16, &str)| dns::Mx {
            preference: *preference,
            host: (*host).to_owned(),
        };
        self.mx
            .insert(domain, Ok(hosts.iter().map(record).collect()));
        self
    }
    fn mx_error(mut self, domain: &'static str, error: dns::Error) -> Self {
        self.mx.insert(domain, Err(error));
        self
    }
    fn host(mut self, host: &'static str, addresses: &[&str]) -> Self {
        let addresses = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        self.addresses.insert(host, Ok(addresses));
        self
    }
    fn host_error(mut self, host: &'static str, error: dns::Error) -> Self {
        self.addresses.insert(host, Err(error));
        self
    }
}

#[async_trait]
impl dns::Lookup for Names {
    async fn mx(&self, domain: &str) -> Result<Vec<dns::Mx>, dns::Error> {
        self.mx
            .get(domain)
            .cloned()
            .unwrap_or(Err(dns::Error::NoSuchName))
    }
    async fn addresses(
        &self,
        host: &str,
        _preference: AddressPreference,
    ) -> Result<Vec<IpAddr>, dns::Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.addresses
            .get(host)
            .cloned()
            .unwrap_or(Err(dns::Error::NoSuchName))
    }
}

/// A transport that has logged on, and what it tells.
struct Rig {
    transport: Arc<SmtpTransport>,
    told: Arc<Told>,
}

impl Rig {
    async fn new(config: &str) -> Self {
        Self::with_names(config, Names::default()).await
    }

    async fn with_names(config: &str, names: Names) -> Self {
        let config: Config = toml::from_str(config).unwrap();
        let transport = SmtpTransport::new(config)
            .unwrap()
            .with_lookup(Arc::new(names));
        let told = Arc::new(Told::default());
        transport
            .logon(Arc::clone(&told) as Arc<dyn Support>)
            .await
            .unwrap();
        Self {
            transport: Arc::new(transport),
            told,
        }
    }

    /// To this server, whatever the domain. `more` is put behind.
    async fn smarthost(server: &Server, more: &str) -> Self {
        Self::new(&smarthost(server, more)).await
    }

    async fn submit(&self, message: &Arc<Message>) -> SubmitResult {
        let submission = Arc::new(Submission::new(Handle(Arc::clone(message))));
        let result = timeout(LIMIT, self.transport.submit_message(submission)).await;
        result.expect("a submission hangs")
    }

    async fn send(&self, message: Message) -> Vec<String> {
        told(self.submit(&Arc::new(message)).await)
    }
}

fn smarthost(server: &Server, more: &str) -> String {
    format!("route = {{ smarthost = \"{}\" }}\n{more}", server.address)
}

/// A result, one line per recipient: `0 delivered 127.0.0.1: 250 ok`, `1 failed 5.1.1 550 no`, `2 deferred down 4.4.1 ...`.
fn told(result: SubmitResult) -> Vec<String> {
    let (prefix, mut outcomes) = match result {
        SubmitResult::Ok(outcomes) => ("", outcomes),
        SubmitResult::Cancelled(outcomes) => ("cancelled ", outcomes),
        other => return vec![format!("{other:?}")],
    };
    outcomes.sort_by_key(|outcome| outcome.recipient.0);
    let words = |diagnosis: Diagnosis| {
        let said = diagnosis.reply.unwrap_or(diagnosis.text);
        format!("{} {said}", diagnosis.status)
    };
    let mut lines: Vec<String> = outcomes
        .into_iter()
        .map(|one| {
            let what = match one.outcome {
                Outcome::Delivered(delivery) => format!(
                    "{} {}: {}",
                    match delivery.relayed {
                        Relayed::Promised => "promised",
                        Relayed::Unreported => "delivered",
                        Relayed::No => "final",
                    },
                    delivery.remote,
                    delivery.reply
                ),
                Outcome::Failed(diagnosis) => format!("failed {}", words(diagnosis)),
                Outcome::Deferred {
                    diagnosis,
                    destination_down: true,
                } => format!("deferred down {}", words(diagnosis)),
                Outcome::Deferred {
                    diagnosis,
                    destination_down: false,
                } => format!("deferred {}", words(diagnosis)),
                Outcome::Left => "left".to_owned(),
                Outcome::Kept => "kept".to_owned(),
                Outcome::InDoubt(diagnosis) => format!("in doubt {}", words(diagnosis)),
            };
            format!("{prefix}{} {what}", one.recipient.0)
        })
        .collect();
    if lines.is_empty() {
        lines.push(format!("{prefix}nobody"));
    }
    lines
}

/// Whether each line begins as expected: texts may hold ports and system errors.
#[track_caller]
fn assert_begins(lines: &[String], expected: &[&str]) {
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(
            line.starts_with(expected),
            "{line:?} does not begin with {expected:?}"
        );
    }
}
