//! Reports as a stranger reads them. Originals, progress and the reader are here; the cases are in the modules below.

use std::time::Duration;

use mail_parser::{MimeHeaders, PartType};
use pombo_proto::{frame::decode_message, outcome::NdrReason};

use super::*;
use crate::verdict::samples::{self, SUBMITTED};

mod hostile;
mod lines;
mod returned;
mod said;

const NOW: UnixMillis = UnixMillis(SUBMITTED.0 + 60_000);
const ORIGINAL: &[u8] = b"From: Ann <ann@example.com>\r\nTo: r0@example.org\r\n\
Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <1.2.3@example.com>\r\n\r\nHello,\r\n\r\nthis is all.\r\n";

fn reporter() -> Reporter<'static> {
    Reporter {
        host: "mail.example.com",
        now: NOW,
        id: MessageId::derived("report", b"1"),
        retry_until: SUBMITTED.after(Duration::from_secs(5 * 86_400)),
    }
}

fn refusal() -> Diagnosis {
    Diagnosis::new(
        EnhancedStatus::new(5, 1, 1),
        NdrReason::TransferImpossible,
        "the recipient was refused",
    )
    .said_by(
        "mx1.example.org",
        "550-5.1.1 No such user here.\r\n550 5.1.1 See https://example.org/help",
    )
}

fn known(state: RecipientState) -> RecipientProgress {
    RecipientProgress {
        state,
        tried_at: Some(NOW),
        ..RecipientProgress::default()
    }
}

fn failed(diagnosis: Diagnosis) -> RecipientProgress {
    known(RecipientState::Failed { at: NOW, diagnosis })
}

fn progress(recipients: Vec<RecipientProgress>) -> Progress {
    Progress {
        recipients,
        ..Progress::default()
    }
}

fn spec(kind: ReportKind, count: usize) -> ReportSpec {
    ReportSpec {
        kind,
        recipients: (0..count as u32).map(RecipientIndex).collect(),
        part: 0,
    }
}

fn envelope(count: usize, body: &[u8]) -> Envelope {
    Envelope {
        body: Body::Inline {
            size: body.len() as u64,
        },
        ..samples::envelope(count)
    }
}

fn failure(original: &Envelope, body: &[u8], recipients: Vec<RecipientProgress>) -> Message {
    let spec = spec(ReportKind::Failure, recipients.len());
    build(&reporter(), original, body, &spec, &progress(recipients))
}

/// The report as a stranger reads it. Parts by index: 0 the whole, 1 for people, 2 the status, 3 what is returned.
struct Read {
    types: Vec<String>,
    texts: Vec<String>,
}

/// Reads it, and checks what holds for every report.
fn read(report: &Message) -> Read {
    let raw = &report.inline[..];
    check_lines(raw);
    assert!(
        report.envelope.content.eight_bit || raw.is_ascii(),
        "eight bits that were not announced"
    );
    let message = MessageParser::new().parse(raw).expect("a message");
    let mut read = Read {
        types: Vec::new(),
        texts: Vec::new(),
    };
    for part in &message.parts {
        let content_type = part.content_type().expect("each part has a type");
        let subtype = content_type.subtype().unwrap_or_default();
        read.types
            .push(format!("{}/{subtype}", content_type.ctype()));
        read.texts.push(match &part.body {
            PartType::Message(_) => {
                let body = part.offset_body as usize..part.offset_end as usize;
                String::from_utf8_lossy(&raw[body]).into_owned()
            }
            _ => String::from_utf8_lossy(part.contents()).into_owned(),
        });
    }
    assert_eq!(read.types[0], "multipart/report");
    let top = message.root_part().content_type().unwrap();
    assert_eq!(top.attribute("report-type"), Some("delivery-status"));
    assert_eq!(
        message.header_raw("Auto-Submitted").map(str::trim),
        Some("auto-replied")
    );
    let names: Vec<&str> = message.headers().iter().map(|h| h.name.as_str()).collect();
    let expected = [
        "Date",
        "From",
        "To",
        "Subject",
        "Message-ID",
        "In-Reply-To",
        "References",
        "Auto-Submitted",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
    ];
    for name in &names {
        assert!(expected.contains(name), "{name} was not written by us");
    }
    for name in expected {
        assert!(
            names.iter().filter(|other| **other == name).count() <= 1,
            "{name}"
        );
    }
    let envelope = &report.envelope;
    assert!(envelope.sender.is_empty() && envelope.class.is_report());
    assert_eq!(envelope.recipients[0].notify, Notify::NEVER);
    assert_eq!(
        recipient_groups(&envelope.properties).count(),
        blocks(&read).len()
    );
    decode_message(report.encoded.clone()).expect("it fits where messages must");
    read
}

/// CRLF and nothing else ends a line, and none is too long.
fn check_lines(raw: &[u8]) {
    assert!(raw.ends_with(b"\r\n"));
    for line in raw[..raw.len() - 2].split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(
            !line.contains(&b'\r') && !line.contains(&0),
            "{:?}",
            String::from_utf8_lossy(line)
        );
        assert!(line.len() <= 998, "{} bytes", line.len());
    }
    let count = |byte: u8| raw.iter().filter(|b| **b == byte).count();
    assert_eq!(count(b'\r'), count(b'\n'));
}

/// The per-recipient blocks of the status, unfolded.
fn blocks(read: &Read) -> Vec<Vec<String>> {
    read.texts[2]
        .replace("\r\n ", " ")
        .split("\r\n\r\n")
        .skip(1)
        .map(|block| block.lines().map(str::to_owned).collect())
        .collect()
}
