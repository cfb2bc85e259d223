//! Boundaries and texts that were chosen to break a report.

use super::*;

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

/// One pass over them: looking for each in all that was written would take minutes.
#[test]
fn boundaries_in_any_number_in_the_way_cost_no_time() {
    const RECIPIENTS: usize = 1_000;
    const EACH: usize = 20;
    let id = reporter().id;
    let reply = |number: usize| {
        let turns = (1..=EACH).map(|step| format!("=_{id}_{}", number * EACH + step));
        turns.collect::<Vec<_>>().join(" ")
    };
    let recipients = (0..RECIPIENTS).map(|number| failed(refusal().said_by("mx", reply(number))));
    let original = envelope(RECIPIENTS, ORIGINAL);
    let report = failure(&original, ORIGINAL, recipients.collect());
    let header = String::from_utf8_lossy(&report.inline[..2_000]);
    let boundary = format!("boundary=\"=_{id}_{}\"", RECIPIENTS * EACH + 1);
    assert!(header.contains(&boundary), "{header}");
}

/// `=_id_1` also stands in `=_id_12`, and a number never begins with zero.
#[test]
fn a_boundary_is_none_that_a_longer_one_begins_with() {
    let id = reporter().id;
    for (said, chosen) in [
        ("_12 =_ID_2", "_3"),
        ("_012", "_1"),
        ("", "_1"),
        ("_x", "_1"),
        ("_1999999999999999999999", "_2"),
    ] {
        let body = format!(
            "A: =_{id}{}\r\n\r\nx\r\n",
            said.replace("ID", &id.to_string())
        );
        let original = envelope(1, body.as_bytes());
        let report = failure(&original, body.as_bytes(), vec![failed(refusal())]);
        let text = String::from_utf8_lossy(&report.inline).into_owned();
        let boundary = format!("boundary=\"=_{id}{chosen}\"");
        assert!(text.contains(&boundary), "{said}: {text}");
    }
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
