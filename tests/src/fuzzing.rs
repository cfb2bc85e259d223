//! What is fuzzed: every decoder that outsiders reach, by name, each a function that panics where something does not hold.
//!
//! `tests/fuzz` makes a libFuzzer target of each; the test `corpus` replays what lies in `tests/fuzz/corpus` without a fuzzer.

use bytes::Bytes;
use pombo_proto::{
    frame::{self, Packet},
    ids::{MessageId, RecipientIndex},
    message::{
        Body, Content, Envelope, MessageClass, Notify, Priority, Recipient, ReportReturn, Source,
    },
    outcome::{Delivery, Diagnosis, EnhancedStatus, NdrReason, Relayed},
    scram,
    service::config,
    time::UnixMillis,
};
use pombo_spooler::{
    progress::{Progress, RecipientProgress, RecipientState},
    report::{self, Reporter},
    verdict::{ReportKind, ReportSpec},
};

pub use pombo_agent::fuzzing::{
    drop_folder, smtp_command, smtp_content, smtp_data, smtp_reply, smtp_session,
};

/// A decoder by its name, which is that of its target and of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("config", config),
    ("drop_folder", drop_folder),
    ("message", message),
    ("packet", packet),
    ("report", report),
    ("scram", scram),
    ("smtp_command", smtp_command),
    ("smtp_content", smtp_content),
    ("smtp_data", smtp_data),
    ("smtp_reply", smtp_reply),
    ("smtp_session", smtp_session),
];

/// A packet between processes: hellos, verbs, control.
pub fn packet(input: &[u8]) {
    let Ok(packet) = Packet::decode(&Bytes::copy_from_slice(input)) else {
        return;
    };
    let again = Packet::decode(&Bytes::from(packet.encode()));
    // Numbers have one encoding only when they are written; what was read may have had another.
    assert_eq!(again.map(|again| again.encode()), Ok(packet.encode()));
}

/// A message from the spool, and the head of one from the store.
pub fn message(input: &[u8]) {
    let head = frame::decode_head(input);
    let Ok(message) = frame::decode_message(Bytes::copy_from_slice(input)) else {
        return;
    };
    assert_eq!(head.as_ref(), Ok(&*message.envelope));
    assert_eq!(
        frame::head_length(input),
        Ok(frame::encoded_head(&message).len())
    );
    let envelope = (*message.envelope).clone();
    let again = frame::encode_message(envelope, &message.inline);
    assert_eq!(*again.envelope, *message.envelope);
    let again = frame::decode_message(again.encoded).expect("what was encoded is decoded");
    assert_eq!(*again.envelope, *message.envelope);
    assert_eq!(again.inline, message.inline);
}

/// All four messages of an exchange, and a line of a users file; which one, is said by the first byte.
pub fn scram(input: &[u8]) {
    const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let Some((which, said)) = input.split_first() else {
        return;
    };
    let verifier: scram::Verifier = VERIFIER.parse().expect("a verifier");
    let first = |said: &[u8]| scram::ClientFirst::parse(said);
    match which % 5 {
        0 => {
            if let Ok(first) = first(said) {
                assert!(!first.user().is_empty());
                let _ = first.acting_as();
                let (_, challenge) = first.challenge(&verifier).expect("random bytes");
                assert!(challenge.len() <= scram::MESSAGE_BYTES_MAX);
            }
        }
        1 => {
            let first = first(b"n,,n=user,r=nonce").expect("a first message");
            let (challenge, _) = first.challenge(&verifier).expect("random bytes");
            assert!(challenge.finish(said).is_err(), "guessed");
        }
        2 => {
            let client = scram::Client::new("user", "pencil").expect("a client");
            // The nonce is random, so it is put in where the input has a star.
            let nonce = client
                .first()
                .rsplit_once("r=")
                .expect("a nonce")
                .1
                .to_owned();
            let said = String::from_utf8_lossy(said).replacen('*', &nonce, 1);
            // What takes long by intent would only slow the fuzzer down.
            if said.contains(",i=4096") || !said.contains(",i=") {
                let _ = client.answer(said.as_bytes());
            }
        }
        3 => {
            if let Ok(text) = std::str::from_utf8(said)
                && let Ok(verifier) = text.parse::<scram::Verifier>()
            {
                let written = verifier.to_string();
                let again: scram::Verifier = written.parse().expect("what was written");
                assert_eq!(again.to_string(), written);
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(said)
                && let Ok(prepared) = scram::prepared(text)
            {
                assert!(!prepared.is_empty() && !prepared.chars().any(char::is_control));
            }
        }
    }
}

/// A configuration file of either service.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    // A secret is read from its file: none of those that never end.
    if text.contains("/dev") || text.contains("/proc") || text.contains("\\u") {
        return;
    }
    let source = config::Source::new("fuzzing.toml", text);
    let spooler = source.parse::<pombo_spooler::config::Config>();
    let agent = pombo_agent::config::Config::parse(source.clone());
    let transport = agent.as_ref().ok().map(|agent| agent.transport());
    for error in [
        spooler.err(),
        agent.as_ref().err().map(|_| source.bad("a.b[0]", "said")),
        agent.err(),
        transport.and_then(Result::err),
    ]
    .into_iter()
    .flatten()
    {
        let said = error.to_string();
        assert!(!said.contains(char::is_control), "{said}");
    }
}

/// A report about a message of a stranger's, in a stranger's words. The first byte says what about, and where the words stand:
/// not everywhere at once, so that what one of them needs does not hide what another lacks.
pub fn report(input: &[u8]) {
    let Some((how, said)) = input.split_first() else {
        return;
    };
    let at = said.iter().position(|byte| *byte == 0).unwrap_or(0);
    let (words, original) = (String::from_utf8_lossy(&said[..at]), &said[at..]);
    let words_or = |bit: u8, other: &str| match how & bit {
        0 => other.to_owned(),
        _ => words.to_string(),
    };
    let id = MessageId::derived("fuzzing", b"1");
    let reporter = Reporter {
        host: "mail.example.com",
        now: UnixMillis(1_790_000_060_000),
        id,
        retry_until: UnixMillis(1_790_000_600_000),
    };
    let recipient = Recipient {
        notify: Notify::default(),
        original_recipient: Some(format!("rfc822;{}", words_or(4, "bob@example.org"))),
        ..Recipient::smtp(format!("{}@example.org", words_or(8, "bob")))
    };
    let envelope = Envelope {
        id,
        class: MessageClass::Note,
        sender: "ann@example.com".to_owned(),
        recipients: vec![recipient],
        priority: Priority::Normal,
        submitted_at: UnixMillis(1_790_000_000_000),
        deferred_until: None,
        expires_at: None,
        report_return: if original.len() % 2 == 0 {
            ReportReturn::Full
        } else {
            ReportReturn::Headers
        },
        envelope_id: Some(words_or(16, "1")),
        content: Content::default(),
        source: Source::default(),
        body: Body::Inline {
            size: original.len() as u64,
        },
        properties: Vec::new(),
    };
    let status = EnhancedStatus::new(5, 1, 1);
    let own = words_or(32, "refused");
    let (remote, reply) = (words_or(64, "mx"), words_or(128, "no"));
    let diagnosis = Diagnosis::new(status, NdrReason::TransferImpossible, own)
        .said_by(remote.clone(), reply.clone());
    let delivery = Delivery {
        at: reporter.now,
        remote,
        reply,
        relayed: Relayed::Unreported,
    };
    let (kind, state) = match how & 3 {
        0 => (ReportKind::Delay, None),
        1 => (
            ReportKind::Success,
            Some(RecipientState::Delivered(delivery)),
        ),
        2 => (
            ReportKind::Relayed,
            Some(RecipientState::Delivered(delivery)),
        ),
        _ => {
            let (at, diagnosis) = (reporter.now, diagnosis.clone());
            (
                ReportKind::Failure,
                Some(RecipientState::Failed { at, diagnosis }),
            )
        }
    };
    let known = RecipientProgress {
        tried_at: Some(reporter.now),
        last: Some(diagnosis),
        ..RecipientProgress::default()
    };
    let known = match state {
        Some(state) => RecipientProgress { state, ..known },
        None => known,
    };
    let progress = Progress {
        recipients: vec![known],
        ..Progress::default()
    };
    let spec = ReportSpec {
        kind,
        recipients: vec![RecipientIndex(0)],
        part: 0,
    };
    let made = report::build(&reporter, &envelope, original, &spec, &progress);
    check_report(&made.inline, made.envelope.content.eight_bit);
}

/// What any mail program relies on: lines, and a boundary that opens and closes as many parts as were made.
fn check_report(raw: &[u8], eight_bit: bool) {
    assert!(eight_bit || raw.is_ascii());
    assert!(raw.ends_with(b"\r\n"));
    let mut start = 0;
    while start < raw.len() {
        let end = memchr::memchr2(b'\r', b'\n', &raw[start..]).expect("the end of a line");
        assert!(end <= 998, "a line of {end} bytes");
        assert!(raw[start + end..].starts_with(b"\r\n"), "half a line end");
        start += end + 2;
    }
    let text = String::from_utf8_lossy(raw);
    let (header, _) = text.split_once("\r\n\r\n").expect("a header");
    let (_, boundary) = header.split_once("boundary=\"").expect("a boundary");
    let boundary = boundary.split('"').next().unwrap_or_default();
    let lines = |wanted: String| text.lines().filter(|line| *line == wanted).count();
    assert!((2..=3).contains(&lines(format!("--{boundary}"))));
    assert_eq!(lines(format!("--{boundary}--")), 1);
}
