//! The listener's decoders as a fuzzer calls them; see [`crate::fuzzing`].

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use pombo_proto::{
    ids::{MessageId, RecipientIndex, Reference},
    outcome::{Diagnosis, RecipientStatus},
    scram::{self, Verifier},
    verbs::TransportState,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Config, Files, Shared, address,
    command::{self, Command},
    data::{self, DataReader, Limits},
    limits::ClientKey,
    policy::Policy,
    session::{Peer, Session},
    users::Users,
};
use crate::provider::{Incoming, Received, Reception, ReceptionHandle, SaveError, Support};

/// One command line.
pub fn command(line: &[u8]) {
    for smtputf8 in [false, true] {
        match command::parse(line, smtputf8) {
            Ok(Command::Mail(mail)) => {
                assert!(mail.smtputf8 || mail.sender.is_ascii());
                assert!(mail.sender.is_empty() || is_canonical(&mail.sender));
                assert!(mail.envelope_id.is_none_or(|id| is_one_line(&id)));
            }
            Ok(Command::Rcpt(rcpt)) => {
                if let address::Path::Mailbox(mailbox) = &rcpt.to {
                    assert!(smtputf8 || mailbox.as_str().is_ascii());
                    assert!(is_canonical(mailbox.as_str()));
                }
                assert_ne!(rcpt.to, address::Path::Null);
                assert!(rcpt.original.is_none_or(|original| is_one_line(&original)));
            }
            Ok(Command::Ehlo(name) | Command::Helo(name)) => {
                assert!(name.is_ascii() && is_one_line(name));
            }
            Ok(_) => {}
            Err(refusal) => assert!(is_reply(refusal.as_bytes())),
        }
    }
}

/// What is canonical stays as it is when it is read again.
fn is_canonical(address: &str) -> bool {
    is_one_line(address) && address::mailbox(address).is_some_and(|it| it.as_str() == address)
}

fn is_one_line(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn is_reply(line: &[u8]) -> bool {
    let code = line
        .get(..3)
        .is_some_and(|code| code.iter().all(u8::is_ascii_digit));
    code && matches!(line.get(3), None | Some(b' ' | b'-'))
        && line.iter().all(|byte| (b' '..=b'~').contains(byte))
}

/// A message's content. The first three bytes say how it is read.
pub fn content(input: &[u8]) {
    let Some(([how, limit, step], wire)) = input.split_first_chunk() else {
        return;
    };
    let limits = Limits {
        message_bytes: if how & 1 == 0 {
            u64::MAX
        } else {
            u64::from(*limit) * 8
        },
        line_bytes: (how & 2 != 0).then_some(usize::from(*limit)),
        refuse_bare_lf: how & 4 != 0,
        refuse_bare_cr: how & 8 != 0,
    };
    let whole = read(wire, limits, wire.len().max(1));
    let pieces = read(wire, limits, usize::from(*step % 16) + 1);
    // With several faults, which one is met first is a matter of the pieces.
    assert_eq!(
        (whole.0, whole.1.as_ref().ok()),
        (pieces.0, pieces.1.as_ref().ok())
    );
    let (Some(end), Ok(body)) = &whole else {
        return;
    };
    assert!(wire[..*end].ends_with(b".\r\n"));
    assert!(body.len() as u64 <= limits.message_bytes);
    let bare = |byte: u8, other: u8, before: bool| {
        body.iter().enumerate().any(|(at, found)| {
            let neighbour = if before {
                at.checked_sub(1)
            } else {
                at.checked_add(1)
            };
            *found == byte && neighbour.and_then(|at| body.get(at)) != Some(&other)
        })
    };
    assert!(!(limits.refuse_bare_lf && bare(b'\n', b'\r', true)));
    assert!(!(limits.refuse_bare_cr && bare(b'\r', b'\n', false)));
    assert!(data::hops(body) <= body.len() / b"received:".len());
}

type Read = (Option<usize>, Result<Vec<u8>, data::Fault>);

/// Where it ended, and what it is, if it arrives in pieces of this size.
fn read(wire: &[u8], limits: Limits, step: usize) -> Read {
    let mut reader = DataReader::new(Vec::new(), limits);
    let mut at = 0;
    for piece in wire.chunks(step) {
        if let Some(wanted) = reader.wants(piece.len()) {
            reader.reserve(wanted);
        }
        let fed = reader.feed(piece);
        at += fed.taken;
        if fed.ended {
            return (Some(at), reader.finish().map(|content| content.body));
        }
        assert_eq!(fed.taken, piece.len());
    }
    (None, reader.finish().map(|content| content.body))
}

/// Reads content that our own client has written, and gives it back; `None` if it does not end where the client said.
pub(crate) fn read_back(wire: &[u8]) -> Option<Vec<u8>> {
    let limits = Limits {
        message_bytes: u64::MAX,
        line_bytes: None,
        refuse_bare_lf: false,
        refuse_bare_cr: false,
    };
    match read(wire, limits, wire.len().max(1)) {
        (Some(end), Ok(body)) if end == wire.len() => Some(body),
        _ => None,
    }
}

/// A whole session, from the banner to the end of what the client says. The first byte says how it arrives, and
/// whether within TLS.
pub fn session(input: &[u8]) {
    let Some((how, said)) = input.split_first() else {
        return;
    };
    let shared = Arc::new(shared());
    let replies = Arc::<Mutex<Vec<u8>>>::default();
    let stream = Script {
        said: said.to_vec(),
        at: 0,
        step: usize::from(how >> 1) + 1,
        replies: Arc::clone(&replies),
    };
    let peer = Peer {
        ip: [192, 0, 2, 1].into(),
        key: ClientKey::of([192, 0, 2, 1].into()),
        id: 1,
        errors: 0,
        auth_failures: 0,
        messages: 0,
    };
    let session = Session::new(Arc::clone(&shared), stream, peer, how & 1 != 0);
    RUNTIME.with(|runtime| runtime.block_on(session.run(true)));
    let replies = replies.lock().unwrap_or_else(PoisonError::into_inner);
    for line in replies.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r\n").expect("a line ends with CRLF");
        assert!(is_reply(line), "{:?}", String::from_utf8_lossy(line));
    }
    assert_eq!(shared.budget.used(), 0);
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
}

/// Of the password `pencil`.
const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

/// Checks a password without the work that makes guessing slow: the fuzzer guesses thousands a second.
fn check(verifier: &Verifier, password: &str) -> bool {
    verifier.to_string() == VERIFIER
        && scram::prepared(password).is_ok_and(|prepared| prepared == "pencil")
}

/// What no session changes.
static SETTINGS: LazyLock<(Arc<Config>, Files)> = LazyLock::new(|| {
    let config = Config {
        local_domains: vec!["example.org".to_owned()],
        message_bytes_max: 2_000,
        recipients_max: 3,
        errors_max: 20,
        auth_without_tls: true,
        auth_failure_delay: Duration::ZERO,
        ..Config::default()
    };
    let users = Users::parse(&format!("user:{VERIFIER} user@example.net"));
    let files = Files {
        policy: Arc::new(Policy::read(&config, "mx.example.org").expect("a policy")),
        tls: None,
        users: Some(Arc::new(users.expect("a user").checked_by(check))),
    };
    (Arc::new(config), files)
});

fn shared() -> Shared {
    let (config, files) = &*SETTINGS;
    Shared::new(
        Arc::clone(config),
        "mx.example.org".to_owned(),
        files.clone(),
        Arc::new(Spooler),
        Arc::new(AtomicBool::new(true)),
    )
}

/// A client that has said everything already.
struct Script {
    said: Vec<u8>,
    at: usize,
    step: usize,
    replies: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = self
            .said
            .len()
            .min(self.at + self.step.min(into.remaining()));
        into.put_slice(&self.said[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A spooler that gives every permit.
struct Spooler;

impl Support for Spooler {
    fn new_mail(&self) {}
    fn ready_to_send(&self) {}
    fn critical_error(&self, _: Diagnosis) {}
    fn sent_deferred(&self, _: MessageId, _: Vec<(RecipientIndex, RecipientStatus)>) {}
    fn config_change(&self) {}
    fn critical_section(&self, _: bool) {}
    fn status(&self, _: TransportState, _: Option<String>) {}
    fn next_reference(&self) -> Reference {
        Reference(2)
    }
    fn permit(&self, _: Duration) -> BoxFuture<'static, Option<Arc<Reception>>> {
        Box::pin(async { Some(Arc::new(Reception::new(Once::default()))) })
    }
    fn host(&self) -> &str {
        "mx.example.org"
    }
}

/// A reception that must be finished once.
#[derive(Default)]
struct Once {
    finished: AtomicBool,
}

#[async_trait]
impl ReceptionHandle for Once {
    fn assign_reference(&self, _: Reference) {}

    async fn save_changes(&self, message: Incoming) -> Result<MessageId, SaveError> {
        assert!(!message.recipients.is_empty());
        Ok(MessageId::derived("fuzzing", &message.body))
    }

    fn is_cancelled(&self) -> bool {
        false
    }

    async fn cancelled(&self) {
        std::future::pending::<()>().await;
    }

    fn finished(&self, _: Received) {
        assert!(!self.finished.swap(true, Ordering::Relaxed));
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.finished.load(Ordering::Relaxed));
        }
    }
}
