//! A listener on a real socket, a spooler's side made of channels, and a client that reads transcripts.

mod auth;
mod data;
mod drops;
mod flow;
mod limits;
mod parsing;
mod policy;
mod repeats;
mod smuggling;
mod tls;
mod transcripts;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use pombo_proto::{
    ids::{DoorSequence, MessageId, RecipientIndex, Reference},
    outcome::{Diagnosis, RecipientStatus},
    time::UnixMillis,
    verbs::TransportState,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};

use super::{Config, SmtpListener};
use crate::provider::{
    Flow, Identity, Incoming, Received, Reception, ReceptionHandle, SaveError, Support, Transport,
};

/// Nothing in these tests takes longer; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What SaveChanges does.
#[derive(Clone)]
enum Save {
    Ok,
    Fail(SaveError),
    /// Takes one of these first, and fails when it is closed.
    Hold(Arc<Semaphore>),
    /// Takes one of these, and fails.
    HoldAndFail(Arc<Semaphore>, SaveError),
}

/// The spooler's side.
struct Fake {
    host: String,
    /// As many receptions as this has permits.
    permits: Arc<Semaphore>,
    save: Mutex<Save>,
    tried: Mutex<Vec<Incoming>>,
    door: Mutex<DoorSequence>,
    references: AtomicU64,
    new_mails: AtomicUsize,
    asked: AtomicUsize,
    receptions: Arc<Mutex<Vec<Arc<Record>>>>,
    finished: mpsc::UnboundedSender<Received>,
    cancel: watch::Sender<bool>,
}

/// One reception, as the spooler saw it.
#[derive(Default)]
struct Record {
    reference: Mutex<Option<Reference>>,
    saved: Mutex<Vec<Incoming>>,
    finished: Mutex<Vec<Received>>,
}

struct Handle {
    fake: Arc<Fake>,
    record: Arc<Record>,
}

#[async_trait]
impl ReceptionHandle for Handle {
    fn assign_reference(&self, reference: Reference) {
        *self.record.reference.lock().unwrap() = Some(reference);
    }

    async fn save_changes(&self, message: Incoming) -> Result<MessageId, SaveError> {
        assert!(self.record.reference.lock().unwrap().is_some());
        let save = self.fake.save.lock().unwrap().clone();
        self.fake.tried.lock().unwrap().push(message.clone());
        match save {
            Save::Ok => {}
            Save::Fail(error) => return Err(error),
            Save::HoldAndFail(gate, error) => {
                gate.acquire().await.unwrap().forget();
                return Err(error);
            }
            Save::Hold(gate) => match gate.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return Err(SaveError::Unconfirmed("closed".to_owned())),
            },
        }
        let identity = message.identity.clone();
        self.record.saved.lock().unwrap().push(message);
        match identity {
            Identity::Again(id) => Ok(id),
            _ => Ok(self.fake.door.lock().unwrap().issue(UnixMillis(1))),
        }
    }

    fn is_cancelled(&self) -> bool {
        *self.fake.cancel.borrow()
    }

    async fn cancelled(&self) {
        let mut cancel = self.fake.cancel.subscribe();
        if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn finished(&self, received: Received) {
        let mut finished = self.record.finished.lock().unwrap();
        finished.push(received.clone());
        let _ = self.fake.finished.send(received);
    }
}

/// The fake as [`Support`]; a permit needs the fake itself again.
struct FakeSupport(Arc<Fake>);

impl Support for FakeSupport {
    fn new_mail(&self) {
        self.0.new_mails.fetch_add(1, Ordering::SeqCst);
    }
    fn ready_to_send(&self) {}
    fn critical_error(&self, _error: Diagnosis) {}
    fn sent_deferred(&self, _id: MessageId, _statuses: Vec<(RecipientIndex, RecipientStatus)>) {}
    fn config_change(&self) {}
    fn critical_section(&self, _inside: bool) {}
    fn status(&self, _state: TransportState, _error: Option<String>) {}
    fn next_reference(&self) -> Reference {
        Reference(self.0.references.fetch_add(1, Ordering::SeqCst))
    }
    fn permit(&self, patience: Duration) -> BoxFuture<'static, Option<Arc<Reception>>> {
        let fake = Arc::clone(&self.0);
        fake.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let permit = timeout(patience, fake.permits.acquire()).await;
            permit.ok()?.ok()?.forget();
            let record = Arc::new(Record::default());
            fake.receptions.lock().unwrap().push(Arc::clone(&record));
            Some(Arc::new(Reception::new(Handle {
                fake: Arc::clone(&fake),
                record,
            })))
        })
    }
    fn host(&self) -> &str {
        &self.0.host
    }
}

/// A listener with its spooler.
struct Rig {
    listener: SmtpListener,
    fake: Arc<Fake>,
    finished: mpsc::UnboundedReceiver<Received>,
}

/// Takes mail for example.org on a port of its own.
fn config() -> Config {
    Config {
        listen: vec!["127.0.0.1:0".to_owned()],
        local_domains: vec!["example.org".to_owned()],
        ..Config::default()
    }
}

impl Rig {
    async fn start(config: Config) -> Self {
        let rig = Self::closed(config).await;
        rig.listener.inbound(Flow::Begin).await;
        rig
    }

    /// One that looks at `data_rate_min` so early.
    async fn start_looking_after(config: Config, rate_after: Duration) -> Self {
        let mut listener = SmtpListener::new(config).unwrap();
        listener.rate_after = rate_after;
        let rig = Self::around(listener).await;
        rig.listener.inbound(Flow::Begin).await;
        rig
    }

    /// Before BEGIN_INBOUND.
    async fn closed(config: Config) -> Self {
        Self::around(SmtpListener::new(config).unwrap()).await
    }

    async fn around(listener: SmtpListener) -> Self {
        let (tell, finished) = mpsc::unbounded_channel();
        let fake = Arc::new(Fake {
            host: "mx.example.org".to_owned(),
            permits: Arc::new(Semaphore::new(100_000)),
            save: Mutex::new(Save::Ok),
            tried: Mutex::default(),
            door: Mutex::default(),
            references: AtomicU64::new(2),
            new_mails: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            receptions: Arc::default(),
            finished: tell,
            cancel: watch::Sender::new(false),
        });
        let support = Arc::new(FakeSupport(Arc::clone(&fake)));
        listener.logon(support).await.unwrap();
        Self {
            listener,
            fake,
            finished,
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addresses()[0]
    }

    /// A connection whose banner has been read.
    async fn client(&self) -> Client<TcpStream> {
        let mut client = self.silent_client().await;
        client.expect("220 mx.example.org ESMTP").await;
        client
    }

    async fn silent_client(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address()).await.unwrap())
    }

    /// A connection that has said EHLO.
    async fn greeted(&self) -> Client<TcpStream> {
        let mut client = self.client().await;
        client.send("EHLO client.example\r\n").await;
        client.expect("250").await;
        client
    }

    fn save(&self, save: Save) {
        *self.fake.save.lock().unwrap() = save;
    }

    /// How the next reception ended.
    async fn finished(&mut self) -> Received {
        let finished = timeout(PATIENCE, self.finished.recv()).await;
        finished.expect("no reception has ended").unwrap()
    }

    /// All messages that were saved.
    fn saved(&self) -> Vec<Incoming> {
        let receptions = self.fake.receptions.lock().unwrap();
        let of = |record: &Arc<Record>| record.saved.lock().unwrap().clone();
        receptions.iter().flat_map(of).collect()
    }

    /// What SaveChanges was called with, saved or not.
    fn tried(&self) -> Vec<Incoming> {
        self.fake.tried.lock().unwrap().clone()
    }

    /// The content of the only message saved, without our trace field.
    fn only_content(&self) -> Vec<u8> {
        let saved = self.saved();
        assert_eq!(saved.len(), 1);
        content(&saved[0])
    }

    /// No session lives, no memory is held, and every reception was finished once.
    async fn at_rest(&self) {
        let shared = self.listener.shared().unwrap();
        until("sessions to end", || shared.door.inside() == 0).await;
        assert_eq!(shared.budget.used(), 0);
        self.each_finished_once();
    }

    fn each_finished_once(&self) {
        for record in self.fake.receptions.lock().unwrap().iter() {
            assert_eq!(record.finished.lock().unwrap().len(), 1);
            assert!(record.saved.lock().unwrap().len() <= 1);
        }
    }
}

/// Waits for a condition that nothing announces.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect(what);
}

/// Without the trace field: it ends with its date.
fn content(message: &Incoming) -> Vec<u8> {
    let end = b" +0000\r\n";
    let at = message
        .body
        .windows(end.len())
        .position(|part| part == end)
        .unwrap();
    assert!(message.body.starts_with(b"Received: from "));
    message.body[at + end.len()..].to_vec()
}

/// An SMTP client.
struct Client<S> {
    stream: BufReader<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    fn new(stream: S) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// A whole reply with all its lines.
    async fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let start = reply.len();
            let read = timeout(PATIENCE, self.stream.read_line(&mut reply)).await;
            read.expect("no reply").unwrap();
            assert!(reply.ends_with("\r\n"), "closed after {reply:?}");
            if reply.as_bytes().get(start + 3) == Some(&b' ') {
                return reply;
            }
        }
    }

    async fn expect(&mut self, start: &str) -> String {
        let reply = self.reply().await;
        assert!(reply.starts_with(start), "{reply:?} instead of {start:?}");
        reply
    }

    async fn say(&mut self, line: &str, start: &str) -> String {
        self.send(format!("{line}\r\n")).await;
        self.expect(start).await
    }

    /// `C:` and `S:` lines; the server's are compared as far as they go.
    async fn transcript(&mut self, text: &str) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_once(':').unwrap() {
                ("C", said) => self.send(format!("{}\r\n", said.trim_start())).await,
                ("S", start) => {
                    self.expect(start.trim()).await;
                }
                other => panic!("neither C nor S: {other:?}"),
            }
        }
    }

    /// One transaction of `ann@example.org`, up to 354.
    async fn envelope(&mut self) {
        self.say("MAIL FROM:<bob@example.net>", "250").await;
        self.say("RCPT TO:<ann@example.org>", "250").await;
        self.say("DATA", "354").await;
    }

    /// One message; the reply.
    async fn message(&mut self, content: &[u8]) -> String {
        self.envelope().await;
        self.send([content, b".\r\n"].concat()).await;
        self.reply().await
    }

    /// The server has closed, saying nothing more.
    async fn closed(&mut self) {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        // A reset is an end too.
        let _ = read.expect("still open");
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

/// The id in `250 2.0.0 Ok: queued as ID`.
fn queued(reply: &str) -> MessageId {
    let id = reply.strip_prefix("250 2.0.0 Ok: queued as ").expect(reply);
    id.trim_end().parse().unwrap()
}
