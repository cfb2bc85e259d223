//! The content on the wire: RFC 5321 4.5.2 transparency without copying what needs none.
//!
//! The bytes go as they are, in chunks that borrow from the message; only where a line begins with a dot is a piece copied
//! into a scratch buffer with that dot doubled. See [`BareNewlines`] for what counts as the beginning of a line.

use std::{borrow::Cow, iter::Peekable, sync::LazyLock};

use memchr::memmem::{FindIter, Finder, find_iter};

use super::config::BareNewlines;

/// A chunk is at most this long (dots not counted): large enough that a system call costs nothing in comparison,
/// small enough that a message is sent without a copy of it.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// A run without leading dots is borrowed from this length on; below, a copy is cheaper than a system call.
const BORROWED_BYTES_MIN: usize = 16 * 1024;

/// The content of one message, ready to be sent any number of times.
pub(super) struct Body<'a> {
    bytes: Cow<'a, [u8]>,
}

/// The content holds a CR or LF that stands alone, and is not to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HasBareNewlines;

impl<'a> Body<'a> {
    /// Applies the rule for bare newlines.
    pub(super) fn prepare(bytes: &'a [u8], rule: BareNewlines) -> Result<Self, HasBareNewlines> {
        let bytes = match rule {
            BareNewlines::Keep => Cow::Borrowed(bytes),
            BareNewlines::Refuse if has_bare_newlines(bytes) => return Err(HasBareNewlines),
            BareNewlines::Crlf if has_bare_newlines(bytes) => Cow::Owned(with_crlf(bytes)),
            BareNewlines::Refuse | BareNewlines::Crlf => Cow::Borrowed(bytes),
        };
        Ok(Self { bytes })
    }

    /// What SIZE says: without doubled dots and without the final one (RFC 1870 section 5).
    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether any byte has its eighth bit set.
    pub(super) fn is_eight_bit(&self) -> bool {
        !self.bytes.is_ascii()
    }

    /// Whether the header section has characters outside ASCII.
    pub(super) fn has_utf8_headers(&self) -> bool {
        static BLANK_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
        let end = BLANK_LINE.find(&self.bytes).unwrap_or(self.bytes.len());
        !self.bytes[..end].is_ascii()
    }

    /// What ends the data: the final dot on a line of its own.
    pub(super) fn terminator(&self) -> &'static [u8] {
        if self.bytes.is_empty() || self.bytes.ends_with(b"\r\n") {
            b".\r\n"
        } else {
            b"\r\n.\r\n"
        }
    }

    /// The content in chunks, without the terminator.
    pub(super) fn chunks(&self) -> Chunks<'_> {
        Chunks {
            bytes: &self.bytes,
            at: 0,
        }
    }
}

/// See [`Body::chunks`].
pub(super) struct Chunks<'b> {
    bytes: &'b [u8],
    at: usize,
}

/// One piece of the content as it goes on the wire.
pub(super) struct Chunk<'c> {
    pub(super) bytes: &'c [u8],
    /// Nothing follows but the terminator.
    pub(super) is_last: bool,
}

impl<'b> Chunks<'b> {
    /// The next piece: borrowed from the content, or made in `scratch`. An empty content is one empty last piece; not to be
    /// called after the last.
    pub(super) fn next<'c>(&mut self, scratch: &'c mut Vec<u8>) -> Chunk<'c>
    where
        'b: 'c,
    {
        let end = self.bytes.len().min(self.at + CHUNK_BYTES);
        let window = &self.bytes[self.at..end];
        let mut dots = Dots::new(self.bytes, self.at, end);
        let first = dots.next();
        let run = first.unwrap_or(window.len());
        let bytes: &'c [u8] = if run == window.len() || run >= BORROWED_BYTES_MIN {
            self.at += run;
            &window[..run]
        } else {
            scratch.clear();
            let mut copied = 0;
            for dot in first.into_iter().chain(dots) {
                scratch.extend_from_slice(&window[copied..dot]);
                scratch.push(b'.');
                copied = dot;
            }
            scratch.extend_from_slice(&window[copied..]);
            self.at = end;
            scratch
        };
        Chunk {
            bytes,
            is_last: self.at == self.bytes.len(),
        }
    }
}

/// Where in a window a dot stands at the beginning of a line, in order. Two vector scans instead of a look at every line.
struct Dots<'b> {
    at_start: bool,
    after_lf: Peekable<FindIter<'b, 'static>>,
    after_cr: Peekable<FindIter<'b, 'static>>,
}

impl<'b> Dots<'b> {
    fn new(bytes: &'b [u8], start: usize, end: usize) -> Self {
        let before = start.checked_sub(1).map(|before| bytes[before]);
        let window = &bytes[start..end];
        Self {
            at_start: window.first() == Some(&b'.')
                && before.is_none_or(|byte| matches!(byte, b'\r' | b'\n')),
            after_lf: find_iter(window, b"\n.").peekable(),
            after_cr: find_iter(window, b"\r.").peekable(),
        }
    }
}

impl Iterator for Dots<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if std::mem::take(&mut self.at_start) {
            return Some(0);
        }
        let newline = match (self.after_lf.peek(), self.after_cr.peek()) {
            (Some(lf), Some(cr)) if cr < lf => self.after_cr.next(),
            (None, Some(_)) => self.after_cr.next(),
            _ => self.after_lf.next(),
        };
        newline.map(|newline| newline + 1)
    }
}

fn has_bare_newlines(bytes: &[u8]) -> bool {
    let mut newlines = memchr::memchr2_iter(b'\r', b'\n', bytes);
    while let Some(at) = newlines.next() {
        let paired = bytes[at] == b'\r' && bytes.get(at + 1) == Some(&b'\n');
        if !paired {
            return true;
        }
        newlines.next();
    }
    false
}

/// With every bare CR and LF made into CRLF.
fn with_crlf(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 32);
    let mut copied = 0;
    let mut newlines = memchr::memchr2_iter(b'\r', b'\n', bytes);
    while let Some(at) = newlines.next() {
        out.extend_from_slice(&bytes[copied..at]);
        out.extend_from_slice(b"\r\n");
        copied = at + 1;
        if bytes[at] == b'\r' && bytes.get(at + 1) == Some(&b'\n') {
            newlines.next();
            copied += 1;
        }
    }
    out.extend_from_slice(&bytes[copied..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it goes on the wire, and how many pieces it took.
    fn wire(body: &Body<'_>) -> (Vec<u8>, usize) {
        let (mut out, mut scratch, mut pieces) = (Vec::new(), Vec::new(), 0);
        let mut chunks = body.chunks();
        loop {
            let chunk = chunks.next(&mut scratch);
            out.extend_from_slice(chunk.bytes);
            pieces += 1;
            if chunk.is_last {
                out.extend_from_slice(body.terminator());
                return (out, pieces);
            }
        }
    }

    fn keep(bytes: &[u8]) -> Body<'_> {
        Body::prepare(bytes, BareNewlines::Keep).ok().unwrap()
    }

    /// What a server that knows CRLF alone makes of it (RFC 5321 4.5.2).
    fn received(wire: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = wire;
        loop {
            let end = memchr::memmem::find(rest, b"\r\n").expect("no final dot") + 2;
            let (line, after) = rest.split_at(end);
            rest = after;
            if line == b".\r\n" {
                assert!(rest.is_empty(), "the data ended early");
                return out;
            }
            out.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        }
    }

    #[test]
    fn only_a_dot_at_the_beginning_of_a_line_is_doubled() {
        assert_eq!(wire(&keep(b"")).0, b".\r\n");
        assert_eq!(wire(&keep(b"a.b\r\n")).0, b"a.b\r\n.\r\n");
        assert_eq!(wire(&keep(b"a")).0, b"a\r\n.\r\n");
        assert_eq!(wire(&keep(b".")).0, b"..\r\n.\r\n");
        assert_eq!(
            wire(&keep(b".a\r\n.\r\n..b\r\n")).0,
            b"..a\r\n..\r\n...b\r\n.\r\n"
        );
    }

    #[test]
    fn no_newline_of_any_kind_before_a_dot_gets_through() {
        assert_eq!(
            wire(&keep(b"a\n.\nb\r.\rc\r\n")).0,
            b"a\n..\nb\r..\rc\r\n.\r\n"
        );
        assert_eq!(wire(&keep(b"a\n")).0, b"a\n\r\n.\r\n");
    }

    #[test]
    fn any_content_with_crlf_survives_and_bare_newlines_never_end_it() {
        fastrand::seed(5);
        let alphabet: [&[u8]; 6] = [b".", b"\r\n", b"a", b"\r\n.", b"\xff", b"xyz"];
        let bare: [&[u8]; 2] = [b"\r", b"\n"];
        for round in 0..4_000 {
            let length = if round % 100 == 0 { 60_000 } else { 30 };
            let mut content = Vec::new();
            for _ in 0..fastrand::usize(..length) {
                content.extend_from_slice(alphabet[fastrand::usize(..alphabet.len())]);
            }
            let mut expected = content.clone();
            if !expected.is_empty() && !expected.ends_with(b"\r\n") {
                expected.extend_from_slice(b"\r\n");
            }
            assert_eq!(received(&wire(&keep(&content)).0), expected);

            for _ in 0..fastrand::usize(..20) {
                content.extend_from_slice(alphabet[fastrand::usize(..alphabet.len())]);
                content.extend_from_slice(bare[fastrand::usize(..2)]);
            }
            let sent = wire(&keep(&content)).0;
            received(&sent);
            for end in [&b"\n.\n"[..], b"\n.\r", b"\r.\r", b"\r.\n"] {
                let found = memchr::memmem::find(&sent, end);
                assert!(found.is_none_or(|at| at + 4 >= sent.len()), "{end:?}");
            }
            let fixed = Body::prepare(&content, BareNewlines::Crlf).ok().unwrap();
            assert!(!has_bare_newlines(&fixed.bytes));
            received(&wire(&fixed).0);
        }
    }

    #[test]
    fn chunks_are_borrowed_and_bounded() {
        let small = b"line\r\n".repeat(1_000);
        assert_eq!(wire(&keep(&small)).1, 1);
        let large = b"line of text\r\n".repeat(100_000);
        let (sent, pieces) = wire(&keep(&large));
        assert_eq!(pieces, large.len().div_ceil(CHUNK_BYTES));
        assert_eq!(received(&sent), large);
        // A dot exactly where a chunk begins.
        let mut edge = vec![b'x'; CHUNK_BYTES - 2];
        edge.extend_from_slice(b"\r\n.\r\n");
        assert_eq!(received(&wire(&keep(&edge)).0), edge);
        let dots = b".\r\n".repeat(100_000);
        assert_eq!(received(&wire(&keep(&dots)).0), dots);
    }

    #[test]
    fn bare_newlines_are_refused_or_mended_where_that_is_asked() {
        let refuse = |bytes| Body::prepare(bytes, BareNewlines::Refuse).is_err();
        assert!(refuse(b"a\nb\r\n") && refuse(b"a\rb\r\n") && refuse(b"a\r\r\n") && refuse(b"a\r"));
        assert!(!refuse(b"a\r\nb\r\n") && !refuse(b""));
        assert_eq!(
            with_crlf(b"a\nb\r\nc\rd\r\r\n\n"),
            b"a\r\nb\r\nc\r\nd\r\n\r\n\r\n"
        );
    }

    #[test]
    fn headers_are_told_from_content() {
        assert!(!keep(b"Subject: x\r\n\r\n\xc3\xa4\r\n").has_utf8_headers());
        assert!(keep(b"Subject: \xc3\xa4\r\n\r\nx\r\n").has_utf8_headers());
        assert!(keep(b"Subject: x\r\n\r\n\xc3\xa4\r\n").is_eight_bit());
    }
}
