//! What is returned of the original.

use super::*;

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
fn the_header_is_found_in_any_line_ends_and_cut_where_it_is_too_long() {
    assert_eq!(header_of(b"A: b\r\nC: d\r\n\r\nbody"), b"A: b\r\nC: d\r\n");
    assert_eq!(header_of(b"A: b\nC: d\n\nbody"), b"A: b\nC: d\n");
    assert_eq!(header_of(b"A: b\r\nC: "), b"A: b\r\n");
    assert_eq!(header_of(b"\r\nbody"), b"");
    assert_eq!(header_of(b"no line end"), b"no line end");
    let long = b"A: bcd\r\n".repeat(20_000);
    assert_eq!(header_of(&long).len(), HEADER_BYTES_MAX);
}
