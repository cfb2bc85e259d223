use std::time::Duration;

use mail_parser::{MimeHeaders, PartType};
use pombo_proto::{frame::decode_message, outcome::NdrReason};

use super::*;
use crate::verdict::samples::{self, SUBMITTED};

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

#[test]
fn a_failure_as_it_is_sent() {
    let mut original = envelope(2, ORIGINAL);
    original.envelope_id = Some("QQ314159".to_owned());
    original.recipients[0].original_recipient = Some("rfc822;alias@example.net".to_owned());
    let unrouted = Diagnosis::new(
        EnhancedStatus::new(5, 4, 4),
        NdrReason::TransferImpossible,
        "no transport takes this recipient",
    );
    let report = failure(
        &original,
        ORIGINAL,
        vec![failed(refusal()), failed(unrouted)],
    );
    read(&report);
    let text = String::from_utf8(report.inline.to_vec()).unwrap();
    assert_eq!(text.replace("\r\n", "\n"), include_str!("failure.eml"));
}

#[test]
fn its_envelope_goes_to_the_sender_from_nobody() {
    let original = envelope(1, ORIGINAL);
    let report = failure(&original, ORIGINAL, vec![failed(refusal())]);
    let envelope = &report.envelope;
    assert_eq!(envelope.id, reporter().id);
    assert_eq!(envelope.recipients[0].address, original.sender);
    assert_eq!(envelope.class, MessageClass::NonDeliveryReport);
    assert_eq!(envelope.source.about, Some(original.id));
    assert_eq!(envelope.submitted_at, NOW);
    assert_eq!(envelope.content, Content::default());
}

#[test]
fn the_mapi_properties_say_the_same() {
    let original = envelope(2, ORIGINAL);
    let report = failure(
        &original,
        ORIGINAL,
        vec![failed(refusal()), failed(refusal())],
    );
    let properties = &report.envelope.properties;
    let get = |properties: &[Property], tag| {
        let found = properties.iter().find(|property| property.tag == tag);
        found.map(|property| property.value.clone())
    };
    assert_eq!(
        get(properties, prop::PR_ORIGINAL_SUBJECT),
        Some(PropValue::Text("Grüße".to_owned()))
    );
    assert_eq!(
        get(properties, prop::PR_ORIGINAL_SUBMIT_TIME),
        Some(PropValue::Time(SUBMITTED))
    );
    assert_eq!(
        get(properties, prop::PR_REPORT_TIME),
        Some(PropValue::Time(NOW))
    );
    assert_eq!(
        get(properties, prop::PR_MESSAGE_CLASS),
        Some(PropValue::Text("REPORT.IPM.Note.NDR".to_owned()))
    );
    let groups: Vec<&[Property]> = recipient_groups(properties).collect();
    assert_eq!(groups.len(), 2);
    for (at, group) in groups.into_iter().enumerate() {
        let address = PropValue::Text(original.recipients[at].address.clone());
        assert_eq!(get(group, prop::PR_EMAIL_ADDRESS), Some(address));
        assert_eq!(
            get(group, prop::PR_NDR_REASON_CODE),
            Some(PropValue::Long(1))
        );
        assert_eq!(get(group, prop::PR_NDR_DIAG_CODE), Some(PropValue::Long(0)));
        let Some(PropValue::Text(words)) = get(group, prop::PR_SUPPLEMENTARY_INFO) else {
            panic!("the server's own words");
        };
        assert!(
            words.starts_with("550-5.1.1 No such user here. 550"),
            "{words}"
        );
    }
}

#[test]
fn delay_tells_until_when_it_is_tried() {
    let original = envelope(1, ORIGINAL);
    let mut waiting = known(RecipientState::Pending { not_before: NOW });
    waiting.last = Some(samples::diagnosis());
    let spec = spec(ReportKind::Delay, 1);
    let report = build(
        &reporter(),
        &original,
        ORIGINAL,
        &spec,
        &progress(vec![waiting]),
    );
    let read = read(&report);
    assert_eq!(report.envelope.class, MessageClass::DelayReport);
    let block = blocks(&read).remove(0);
    assert!(block.contains(&"Action: delayed".to_owned()), "{block:?}");
    assert!(block.contains(&"Status: 4.4.1".to_owned()), "{block:?}");
    let until = format!("Will-Retry-Until: {}", date(reporter().retry_until));
    assert!(block.contains(&until), "{block:?}");
    assert!(read.texts[1].contains("It will be tried until"));
}

#[test]
fn success_and_relay_tell_what_the_server_said() {
    for (kind, action) in [
        (ReportKind::Success, "Action: delivered"),
        (ReportKind::Relayed, "Action: relayed"),
    ] {
        let original = Envelope {
            report_return: ReportReturn::Full,
            ..envelope(1, ORIGINAL)
        };
        let delivery = Delivery::new(NOW, "mx.example.org", "250 2.0.0 queued as 1");
        let known = known(RecipientState::Delivered(delivery));
        let report = build(
            &reporter(),
            &original,
            ORIGINAL,
            &spec(kind, 1),
            &progress(vec![known]),
        );
        let read = read(&report);
        assert_eq!(report.envelope.class, MessageClass::DeliveryReport);
        let block = blocks(&read).remove(0);
        for line in [
            action,
            "Status: 2.0.0",
            "Remote-MTA: dns; mx.example.org",
            "Diagnostic-Code: smtp; 250 2.0.0 queued as 1",
        ] {
            assert!(block.contains(&line.to_owned()), "{block:?}");
        }
        // RET=FULL is for failures.
        assert_eq!(read.types[3], "text/rfc822-headers");
    }
}

#[test]
fn ret_full_returns_what_is_small_and_travels_as_it_is() {
    let long_lines = [b"A: b\r\n\r\n".as_slice(), &[b'x'; 2_000], b"\r\n"].concat();
    let large = [b"A: b\r\n\r\n".as_slice(), &b"line\r\n".repeat(6_000)].concat();
    let eight_bit = "A: b\r\n\r\nGrüße\r\n".as_bytes().to_vec();
    for (body, part, announced) in [
        (ORIGINAL.to_vec(), "message/rfc822", false),
        (eight_bit, "message/rfc822", true),
        (long_lines, "text/rfc822-headers", false),
        (large, "text/rfc822-headers", false),
        (b"A: b\n\nbare\n".to_vec(), "text/rfc822-headers", false),
    ] {
        let original = Envelope {
            report_return: ReportReturn::Full,
            ..envelope(1, &body)
        };
        let report = failure(&original, &body, vec![failed(refusal())]);
        let read = read(&report);
        assert_eq!(read.types[3], part);
        assert_eq!(report.envelope.content.eight_bit, announced);
        if part == "message/rfc822" {
            let returned = String::from_utf8_lossy(&body).into_owned();
            assert_eq!(read.texts[3], returned);
        } else {
            assert!(!read.texts[3].contains("\r\n\r\n"));
        }
        // Only a part of it is at hand.
        let report = failure(&original, &body[..4], vec![failed(refusal())]);
        assert_eq!(super::tests::read(&report).types[3], "text/rfc822-headers");
    }
}

#[test]
fn a_body_that_is_gone_is_reported_all_the_same() {
    let report = failure(&envelope(1, ORIGINAL), b"", vec![failed(refusal())]);
    assert_eq!(read(&report).types.len(), 3);
}

#[test]
fn international_addresses_make_international_parts() {
    let mut original = envelope(1, ORIGINAL);
    original.content.smtputf8 = true;
    original.report_return = ReportReturn::Full;
    original.recipients[0].address = "jürgen@grüße.example".to_owned();
    let report = failure(&original, ORIGINAL, vec![failed(refusal())]);
    let read = read(&report);
    assert_eq!(
        read.types[2..],
        ["message/global-delivery-status", "message/global"]
    );
    let block = blocks(&read).remove(0);
    let line = "Final-Recipient: utf-8; jürgen@grüße.example".to_owned();
    assert!(block.contains(&line), "{block:?}");
    // Its own header is plain, so it goes to any server.
    assert_eq!(report.envelope.content, Content::default());

    original.sender = "änn@example.com".to_owned();
    original.report_return = ReportReturn::Headers;
    let report = failure(&original, ORIGINAL, vec![failed(refusal())]);
    assert_eq!(
        super::tests::read(&report).types[3],
        "message/global-headers"
    );
    assert!(report.envelope.content.smtputf8 && report.envelope.content.eight_bit);
}

#[test]
fn other_address_types_are_named_as_such() {
    let mut original = envelope(1, ORIGINAL);
    original.recipients[0].address_type = "FAX".to_owned();
    original.recipients[0].address = "+49 30 1".to_owned();
    let read = read(&failure(&original, ORIGINAL, vec![failed(refusal())]));
    let line = "Final-Recipient: x-fax; +49 30 1".to_owned();
    assert!(blocks(&read)[0].contains(&line));
}

#[test]
fn a_boundary_that_stands_in_the_original_is_not_used() {
    let id = reporter().id;
    let body = format!("A: --=_{id}\r\nB: --=_{id}_1--\r\n\r\n--=_{id}\r\n\r\nx\r\n--=_{id}_1\r\n");
    let original = Envelope {
        report_return: ReportReturn::Full,
        ..envelope(1, body.as_bytes())
    };
    let read = read(&failure(
        &original,
        body.as_bytes(),
        vec![failed(refusal())],
    ));
    assert_eq!(read.types.len(), 4);
    assert!(read.texts[3].contains(&format!("--=_{id}_1")));
}

#[test]
fn very_many_recipients_are_all_in_the_status_and_the_first_in_the_text() {
    let original = envelope(1_000, ORIGINAL);
    let long = "x".repeat(5_000);
    let diagnosis = refusal().said_by(&long, &long);
    let recipients = vec![failed(diagnosis); 1_000];
    let report = failure(&original, ORIGINAL, recipients);
    let read = read(&report);
    assert_eq!(blocks(&read).len(), 1_000);
    assert!(read.texts[1].contains("... and 900 more"));
    assert!(
        report.encoded.len() < 6 * 1024 * 1024,
        "{}",
        report.encoded.len()
    );
}

/// Whatever the other side has written: the structure is ours, each recipient has its block, nothing is injected.
#[test]
fn hostile_texts_change_nothing_in_the_structure() {
    let pieces = [
        "\r\n",
        "\n",
        "\r",
        "\0",
        "\r\n\r\n",
        "Bcc: evil@example.net",
        "\r\nAction: delivered\r\n",
        "--",
        "=_",
        ";",
        "<",
        ">",
        "\"",
        " ",
        "\t",
        "ä",
        "\u{2028}",
        "\u{202e}",
        "\u{85}",
        "=?utf-8?q?=0D=0A?=",
        "=",
        "@",
        "x",
        "Subject: ",
        "Message-ID: <a@b>",
        "\r\nContent-Type: multipart/mixed; boundary=a",
    ];
    let kinds = [
        ReportKind::Failure,
        ReportKind::Delay,
        ReportKind::Success,
        ReportKind::Relayed,
    ];
    for seed in 0..2_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let hostile = |random: &mut fastrand::Rng| {
            let mut text = String::new();
            for _ in 0..random.usize(0..12) {
                if random.u8(0..12) == 0 {
                    text.extend(std::iter::repeat_n('y', random.usize(0..1_500)));
                }
                text.push_str(random.choice(pieces).unwrap());
            }
            text
        };
        let count = random.usize(1..4);
        let body = hostile(&mut random).into_bytes();
        let mut original = envelope(count, &body);
        original.sender = format!("a{}@example.com", hostile(&mut random));
        original.envelope_id = random.bool().then(|| hostile(&mut random));
        if random.bool() {
            original.report_return = ReportReturn::Full;
        }
        original.content.smtputf8 = random.bool();
        let mut recipients = Vec::new();
        for recipient in &mut original.recipients {
            recipient.address = format!("b{}", hostile(&mut random));
            recipient.original_recipient = random.bool().then(|| hostile(&mut random));
            if random.u8(0..4) == 0 {
                recipient.address_type = hostile(&mut random);
            }
            let diagnosis = Diagnosis::new(
                EnhancedStatus::new(random.u8(..), random.u16(..), random.u16(..)),
                NdrReason::TransferFailed,
                hostile(&mut random),
            )
            .said_by(hostile(&mut random), hostile(&mut random));
            let delivery = Delivery::new(NOW, hostile(&mut random), hostile(&mut random));
            recipients.push(match random.u8(0..3) {
                0 => failed(diagnosis),
                1 => known(RecipientState::Delivered(delivery)),
                _ => known(RecipientState::Pending { not_before: NOW }),
            });
        }
        let hostile_host = hostile(&mut random);
        let reporter = Reporter {
            host: &hostile_host,
            ..reporter()
        };
        let spec = spec(*random.choice(kinds).as_ref().unwrap(), count);
        let report = build(&reporter, &original, &body, &spec, &progress(recipients));
        let read = read(&report);
        assert!(
            (3..=4).contains(&read.types.len()),
            "seed {seed}: {:?}",
            read.types
        );
        let blocks = blocks(&read);
        assert_eq!(blocks.len(), count, "seed {seed}");
        for block in blocks {
            for name in ["Final-Recipient:", "Action:", "Status:"] {
                let lines = block.iter().filter(|line| line.starts_with(name));
                assert_eq!(lines.count(), 1, "seed {seed}: {block:?}");
            }
        }
    }
}

#[test]
fn the_header_is_found_in_any_line_ends_and_cut_where_it_is_too_long() {
    assert_eq!(header_of(b"A: b\r\nC: d\r\n\r\nbody"), b"A: b\r\nC: d\r\n");
    assert_eq!(header_of(b"A: b\nC: d\n\nbody"), b"A: b\nC: d\n");
    assert_eq!(header_of(b"A: b\r\nC: "), b"A: b\r\n");
    assert_eq!(header_of(b"\r\nbody"), b"");
    assert_eq!(header_of(b"no line end"), b"no line end");
    let long = b"A: bcd\r\n".repeat(20_000);
    assert_eq!(header_of(&long).len(), HEADER_BYTES_MAX);
}

#[test]
fn quoted_printable_is_what_others_read() {
    for seed in 0..2_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let raw: Vec<u8> = (0..random.usize(0..400))
            .map(|_| *random.choice(b"ab= \t\r\n\xc3\xa4.").unwrap())
            .collect();
        let normal = text::with_crlf(&raw);
        let encoded = text::quoted_printable(&normal);
        assert!(encoded.lines().all(|line| line.len() <= 76), "seed {seed}");
        let message = format!(
            "Content-Type: application/x\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n{encoded}"
        );
        let message = MessageParser::new().parse(message.as_bytes()).unwrap();
        assert_eq!(message.root_part().contents(), normal, "seed {seed}");
    }
}

#[test]
fn dates_are_those_of_internet_mail() {
    assert_eq!(
        date(UnixMillis(1_790_000_000_000)),
        "Mon, 21 Sep 2026 14:13:20 +0000"
    );
    assert!(date(UnixMillis(u64::MAX)).contains("9999"));
}
