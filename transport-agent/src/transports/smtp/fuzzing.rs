//! The client's decoders as a fuzzer calls them; see [`crate::fuzzing`].

use super::{
    body::Body,
    config::BareNewlines,
    reply::{Capabilities, Reply},
};

/// What a server says.
pub fn replies(said: &[u8]) {
    let mut rest = said;
    while let Ok(Some((reply, used))) = Reply::parse(rest) {
        assert!((1..=rest.len()).contains(&used));
        assert!((200..600).contains(&reply.code));
        assert!(!reply.text.chars().any(|c| c.is_control() && c != '\n'));
        assert!(!reply.words().chars().any(char::is_control));
        let _ = Capabilities::parse(&reply);
        // The end of a reply does not depend on what follows it, nor on how it arrives.
        assert_eq!(Reply::parse(&rest[..used]), Ok(Some((reply, used))));
        assert_eq!(Reply::parse(&rest[..used - 1]), Ok(None));
        rest = &rest[used..];
    }
}

/// Content, as it goes on the wire and as our own listener reads it back.
pub fn content(bytes: &[u8]) {
    for rule in [BareNewlines::Keep, BareNewlines::Crlf, BareNewlines::Refuse] {
        let Ok(body) = Body::prepare(bytes, rule) else {
            assert_eq!(rule, BareNewlines::Refuse);
            continue;
        };
        let (mut wire, mut scratch) = (Vec::new(), Vec::new());
        let mut chunks = body.chunks();
        loop {
            let chunk = chunks.next(&mut scratch);
            wire.extend_from_slice(chunk.bytes);
            if chunk.is_last {
                break;
            }
        }
        for end in ["\n.\n", "\n.\r", "\r.\r", "\r.\n"] {
            let end = end.as_bytes();
            assert!(!wire.windows(end.len()).any(|part| part == end));
        }
        wire.extend_from_slice(body.terminator());
        let back = crate::transports::smtp_listener::fuzzing::read_back(&wire);
        let back = back.expect("the final dot is the only one");
        if rule == BareNewlines::Refuse {
            let end: &[u8] = if bytes.is_empty() || bytes.ends_with(b"\r\n") {
                b""
            } else {
                b"\r\n"
            };
            assert_eq!(back, [bytes, end].concat());
        }
    }
}
