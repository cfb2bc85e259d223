//! The data reader by itself: against a naive reading of the RFC, in pieces, and with rubbish.

use super::super::data::{DataReader, Fault, Limits, hops};

const KEEP: Limits = Limits {
    message_bytes: 1 << 20,
    line_bytes: None,
    refuse_bare_lf: false,
    refuse_bare_cr: false,
};
const REJECT: Limits = Limits {
    refuse_bare_lf: true,
    refuse_bare_cr: true,
    ..KEEP
};

type Read = (Result<(Vec<u8>, bool), Fault>, usize, bool);

/// Feeds `input` in pieces of the sizes that `next` gives.
fn read(input: &[u8], limits: Limits, mut next: impl FnMut() -> usize) -> Read {
    let mut reader = DataReader::new(Vec::new(), limits);
    let (mut at, mut ended) = (0, false);
    while at < input.len() && !ended {
        let piece = &input[at..(at + next().max(1)).min(input.len())];
        let fed = reader.feed(piece);
        assert!(fed.ended || fed.taken == piece.len());
        assert!(reader.capacity() <= 2 * input.len() + 64);
        at += fed.taken;
        ended = fed.ended;
    }
    let result = reader.finish();
    (
        result.map(|content| (content.body, content.eight_bit)),
        at,
        ended,
    )
}

/// The same by the book: the first CRLF.CRLF ends it, a dot behind CRLF goes.
fn by_the_book(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let text = [b"\r\n", input].concat();
    let end = text.windows(5).position(|part| part == b"\r\n.\r\n")?;
    let mut content = Vec::new();
    for (at, byte) in text[..end + 2].iter().enumerate().skip(2) {
        if !(*byte == b'.' && text[at - 2..at] == *b"\r\n") {
            content.push(*byte);
        }
    }
    Some((content, end + 5 - 2))
}

/// Is there half a line end in it?
fn is_bare(content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content).replace("\r\n", "");
    text.contains(['\r', '\n'])
}

fn random_input() -> Vec<u8> {
    let alphabet = b"\r\n.a\r\n.\r\n\xc3\0";
    let mut input: Vec<u8> = (0..fastrand::usize(..60))
        .map(|_| alphabet[fastrand::usize(..alphabet.len())])
        .collect();
    if fastrand::bool() {
        input.extend_from_slice(b"\r\n.\r\nQUIT\r\n");
    }
    input
}

#[test]
fn pieces_of_any_size_give_the_same_as_all_at_once() {
    fastrand::seed(11);
    for _ in 0..50_000 {
        let input = random_input();
        let limits = if fastrand::bool() { KEEP } else { REJECT };
        let whole = read(&input, limits, || usize::MAX);
        assert_eq!(read(&input, limits, || fastrand::usize(1..9)), whole);
        assert_eq!(read(&input, limits, || 1), whole);
    }
}

#[test]
fn only_crlf_dot_crlf_ends_it_and_dots_are_unstuffed_exactly() {
    fastrand::seed(12);
    for _ in 0..50_000 {
        let input = random_input();
        let (result, taken, ended) = read(&input, KEEP, || fastrand::usize(1..30));
        match by_the_book(&input) {
            Some((content, end)) => {
                assert!(ended);
                assert_eq!(taken, end, "{input:?}");
                let eight_bit = !content.is_ascii();
                assert_eq!(result, Ok((content.clone(), eight_bit)), "{input:?}");
                let refused = read(&input, REJECT, || usize::MAX).0.is_err();
                // What was unstuffed may hide a bare end only together with its dot: compare what came in.
                assert_eq!(refused, is_bare(&input[..end]), "{input:?}");
            }
            None => assert!(!ended, "{input:?}"),
        }
    }
}

#[test]
fn rubbish_never_panics_and_keeps_within_the_limits() {
    fastrand::seed(13);
    for _ in 0..20_000 {
        let limits = Limits {
            message_bytes: fastrand::u64(1..200),
            line_bytes: fastrand::bool().then(|| fastrand::usize(1..50)),
            refuse_bare_lf: fastrand::bool(),
            refuse_bare_cr: fastrand::bool(),
        };
        let input: Vec<u8> = (0..fastrand::usize(..400))
            .map(|_| fastrand::u8(..))
            .collect();
        let (result, ..) = read(&input, limits, || fastrand::usize(1..40));
        if let Ok((content, _)) = result {
            assert!(content.len() as u64 <= limits.message_bytes);
        }
    }
}

#[test]
fn the_limit_is_exact() {
    let limits = Limits {
        message_bytes: 6,
        ..REJECT
    };
    let at = read(b"abcd\r\n.\r\n", limits, || 3);
    assert_eq!(at.0, Ok((b"abcd\r\n".to_vec(), false)));
    assert!(at.2);
    let over = read(b"abcde\r\n.\r\n", limits, || 3);
    assert_eq!((over.0, over.2), (Err(Fault::TooLarge), true));
    // Stuffed dots are not content.
    let stuffed = read(b"..\r\n...\r\n.\r\n", KEEP, || 1);
    assert_eq!(stuffed.0, Ok((b".\r\n..\r\n".to_vec(), false)));
}

#[test]
fn memory_grows_to_the_limit_and_not_beyond() {
    let limits = Limits {
        message_bytes: 100,
        ..REJECT
    };
    let mut reader = DataReader::new(b"head".to_vec(), limits);
    reader.reserve(64);
    reader.feed(&[b'a'; 60]);
    assert_eq!(reader.wants(0), None);
    assert_eq!(reader.wants(30), Some(104));
    reader.refuse(Fault::Cancelled);
    assert_eq!((reader.wants(1_000), reader.capacity()), (None, 0));
    reader.refuse(Fault::TooLarge);
    assert_eq!(reader.fault(), Some(Fault::Cancelled));
}

#[test]
fn hops_are_received_fields_of_the_header_section() {
    let message = b"Received: a\r\n\tReceived: folded\r\nreceived: b\r\nX-Received: c\r\n\r\nReceived: body\r\n";
    assert_eq!(hops(message), 2);
    assert_eq!(hops(b""), 0);
    assert_eq!(hops(b"Received:"), 1);
    assert_eq!(hops(b"\r\nReceived: body\r\n"), 0);
}
