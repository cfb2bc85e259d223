//! Lines, line ends, quoted-printable and dates.

use super::*;

#[test]
fn a_body_is_told_by_its_lines() {
    use text::Needs::{EightBit, Encoding, SevenBit};
    let (long, longer) = ("x".repeat(998), "x".repeat(999));
    for (body, needs) in [
        (String::new(), SevenBit),
        ("a\r\n\r\nb".to_owned(), SevenBit),
        ("\u{e4}\r\n".to_owned(), EightBit),
        (format!("{long}\r\n{long}"), SevenBit),
        (format!("{longer}\r\n"), Encoding),
        (longer.clone(), Encoding),
        ("a\nb".to_owned(), Encoding),
        ("a\rb".to_owned(), Encoding),
        ("a\r".to_owned(), Encoding),
        ("a\r\r\n".to_owned(), Encoding),
        ("a\0".to_owned(), Encoding),
    ] {
        assert_eq!(text::needs(body.as_bytes()), needs, "{body:?}");
    }
}

#[test]
fn every_line_end_becomes_one_and_nul_none() {
    for (raw, normal) in [
        ("", ""),
        ("a\nb\rc\r\nd", "a\r\nb\r\nc\r\nd"),
        ("\r\r\n\n\0\r", "\r\n\r\n\r\n\r\n"),
        ("\0a\0\n", "a\r\n"),
    ] {
        assert_eq!(
            text::with_crlf(raw.as_bytes()),
            normal.as_bytes(),
            "{raw:?}"
        );
    }
}

#[test]
fn a_line_is_words_with_one_space_between() {
    for (said, line) in [
        ("", ""),
        ("  a \r\n\t b\0\u{85}c  ", "a b c"),
        ("\u{202e}a\u{2028}b\u{200f}", "a b"),
        ("gr\u{fc}n \u{7f}e\u{1f426}", "gr\u{fc}n e\u{1f426}"),
        ("a\u{a0}b\u{3000}", "a\u{a0}b"),
    ] {
        assert_eq!(text::line(said), line, "{said:?}");
    }
}

#[test]
fn quoted_printable_is_what_others_read() {
    for seed in 0..2_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let raw: Vec<u8> = (0..random.usize(0..400))
            .map(|_| *random.choice(b"ab= \t\r\n\xc3\xa4.").unwrap())
            .collect();
        let normal = text::with_crlf(&raw);
        let encoded = String::from_utf8(text::quoted_printable(&normal)).unwrap();
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
