//! Messages to send: ordinary ones by the builder, and those that break careless software.

use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

/// The header field by which tests know their messages again.
pub const ID_HEADER: &str = "X-Pombo-Test";

/// An id that no other message of any test has.
pub fn fresh_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{}-{}-{:08x}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed),
        fastrand::u32(..)
    )
}

/// Builds a message. Without anything said, it is a small plain text with a fresh id.
#[derive(Clone, Debug)]
pub struct Mail {
    id: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Default for Mail {
    fn default() -> Self {
        Self::with_id(&fresh_id())
    }
}

impl Mail {
    /// A small plain text with a fresh id.
    pub fn new() -> Self {
        Self::default()
    }

    /// A small plain text with this id.
    pub fn with_id(id: &str) -> Self {
        let headers = [
            ("From", "Alice <alice@example.org>"),
            ("To", "Bob <bob@example.net>"),
            ("Subject", "a test"),
            ("Date", "Mon, 2 Nov 2026 10:00:00 +0000"),
            ("MIME-Version", "1.0"),
        ];
        let headers = headers
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self {
            id: id.to_owned(),
            headers,
            body: b"Hello, Bob.\r\n".to_vec(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Sets a header field, or adds it if there is none of that name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match self
            .headers
            .iter_mut()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
        {
            Some((_, known)) => value.clone_into(known),
            None => self.headers.push((name.into(), value.into())),
        }
        self
    }

    /// Adds a header field on top of all others, even if there is one of that name.
    pub fn on_top(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(0, (name.into(), value.into()));
        self
    }

    /// The subject.
    pub fn subject(self, text: &str) -> Self {
        self.header("Subject", text)
    }

    /// The body, byte for byte.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// A body that makes the whole message `bytes` long (or a little longer, if the header alone is).
    pub fn size(self, bytes: usize) -> Self {
        let header = self.clone().body("").bytes().len();
        let wanted = bytes.saturating_sub(header);
        let line = b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n";
        let mut body: Vec<u8> = line.iter().copied().cycle().take(wanted).collect();
        if let Some(end) = body.len().checked_sub(2) {
            body[end..].copy_from_slice(b"\r\n");
            // The cut may have come between CR and LF.
            if end > 0 && body[end - 1] == b'\r' {
                body[end - 1] = b'.';
            }
        }
        self.body(body)
    }

    /// The message, headers first, lines ended by CRLF (those of the body as they were given).
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 512);
        for (name, value) in &self.headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        out.extend_from_slice(
            format!(
                "Message-ID: <{0}@test.example>\r\n{ID_HEADER}: {0}\r\n\r\n",
                self.id
            )
            .as_bytes(),
        );
        out.extend_from_slice(&self.body);
        out
    }

    /// With NULs.
    pub fn with_nuls() -> Self {
        Self::new().body(&b"before\0after\r\n\0\0\0\r\n"[..])
    }

    /// With one line of so many characters; RFC 5322 allows 998.
    pub fn with_long_line(characters: usize) -> Self {
        Self::new().body([vec![b'x'; characters], b"\r\n".to_vec()].concat())
    }

    /// With lines of dots, which SMTP has to stuff.
    pub fn with_dots() -> Self {
        Self::new().body(&b".\r\n..\r\n.leading\r\nnot.leading\r\n. \r\n...\r\n"[..])
    }

    /// With all bytes from 128 up, in no charset.
    pub fn with_eight_bits() -> Self {
        let body: Vec<u8> = (0x80..=0xff_u8).chain(*b"\r\n").collect();
        Self::new()
            .header("Content-Type", "text/plain; charset=unknown-8bit")
            .header("Content-Transfer-Encoding", "8bit")
            .body(body)
    }

    /// With UTF-8 in headers and body.
    pub fn with_utf8() -> Self {
        Self::new()
            .subject("Grüße aus Köln 🕊")
            .header("From", "Jürgen <jürgen@exämple.org>")
            .header("Content-Type", "text/plain; charset=utf-8")
            .body("Eine Taube: 🕊\r\n")
    }

    /// Multipart without its parts' end, a part without a header's end, wrong base64, an unknown encoding.
    pub fn with_broken_mime() -> Self {
        Self::new().header("Content-Type", "multipart/mixed; boundary=\"b; boundary=c").body(
            &b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\n%%%=\r\n\
            --b\r\nContent-Transfer-Encoding: x-unknown\r\nno colon here\r\n--c--\r\n"[..],
        )
    }

    /// Without any header: the first line is the body's.
    pub fn without_header() -> Vec<u8> {
        b"\r\njust this\r\n".to_vec()
    }

    /// With as many `Received` fields as only a loop makes.
    pub fn with_hops(hops: usize) -> Self {
        (0..hops).fold(Self::new(), |mail, hop| {
            mail.on_top(
                "Received",
                &format!("from a{hop}.example by b{hop}.example; Mon, 2 Nov 2026 10:00:00 +0000"),
            )
        })
    }

    /// All the peculiar ones, with a name each.
    pub fn peculiar() -> Vec<(&'static str, Self)> {
        vec![
            ("NULs", Self::with_nuls()),
            ("a line of 100,000", Self::with_long_line(100_000)),
            ("dots", Self::with_dots()),
            ("8 bits", Self::with_eight_bits()),
            ("UTF-8", Self::with_utf8()),
            ("broken MIME", Self::with_broken_mime()),
            ("no body", Self::new().body("")),
            (
                "a last line of blanks",
                Self::new().body("the last line\r\n \r\n"),
            ),
        ]
    }
}

/// The first header field of this name, unfolded; `None` in the body or if there is none.
pub fn header(message: &[u8], name: &str) -> Option<String> {
    let mut fields = Fields { rest: message };
    fields
        .find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, field)| unfolded(field))
}

/// All header fields of this name, unfolded, from the top.
pub fn headers(message: &[u8], name: &str) -> Vec<String> {
    let fields = Fields { rest: message };
    fields
        .filter(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, field)| unfolded(field))
        .collect()
}

/// The fields that mail systems put in front of a message on its way.
const TRACE: [&[u8]; 3] = [b"Received", b"Return-Path", b"Delivered-To"];

/// The message without the trace fields at its top.
pub fn without_trace(message: &[u8]) -> &[u8] {
    let mut fields = Fields { rest: message };
    let mut rest = message;
    while let Some((name, _)) = fields.next() {
        if !TRACE.iter().any(|trace| name.eq_ignore_ascii_case(trace)) {
            break;
        }
        rest = fields.rest;
    }
    rest
}

/// Whether `delivered` is `sent` with nothing but trace fields in front; `Err` says how it differs.
///
/// # Errors
/// The first difference, in words.
pub fn is_intact(delivered: &[u8], sent: &[u8]) -> Result<(), String> {
    let Some(front) = delivered.strip_suffix(sent) else {
        // Where they part is clearest when what both may have in front is away.
        let (got, wanted) = (without_trace(delivered), without_trace(sent));
        let same = got.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        let around = |bytes: &[u8]| {
            String::from_utf8_lossy(
                &bytes[same.saturating_sub(40).min(bytes.len())..(same + 40).min(bytes.len())],
            )
            .into_owned()
        };
        return Err(format!(
            "{} bytes became {}; after {same} equal ones {:?} became {:?}",
            wanted.len(),
            got.len(),
            around(wanted),
            around(got)
        ));
    };
    if without_trace(front).is_empty() {
        Ok(())
    } else {
        Err(format!(
            "more than trace fields in front: {:?}",
            String::from_utf8_lossy(front)
        ))
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Iterates over header fields: name, and the whole field with its line ends.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut end = line_end(self.rest, 0)?;
        while matches!(self.rest.get(end), Some(b' ' | b'\t')) {
            end = line_end(self.rest, end)?;
        }
        let (field, rest) = self.rest.split_at(end);
        let colon = field.iter().position(|&byte| byte == b':')?;
        let name = field[..colon].trim_ascii_end();
        if name.is_empty() || name.iter().any(|&byte| byte <= b' ') {
            return None;
        }
        self.rest = rest;
        Some((name, field))
    }
}

/// Where the line that begins at `start` ends, its line feed included; `None` if it is empty: no line, or the header's end.
fn line_end(bytes: &[u8], start: usize) -> Option<usize> {
    let rest = &bytes[start..];
    let length = rest
        .iter()
        .position(|&byte| byte == b'\n')
        .map_or(rest.len(), |at| at + 1);
    (length > 0).then_some(start + length)
}

fn unfolded(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(field);
    let value = text.split_once(':').map_or("", |(_, value)| value);
    value
        .replace("\r\n", "")
        .replace('\n', "")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_met_to_the_byte() {
        for size in [400, 401, 402, 473, 474, 475, 5_000, 1 << 20] {
            let bytes = Mail::new().size(size).bytes();
            assert_eq!(bytes.len(), size);
            assert!(bytes.ends_with(b"\r\n"));
            assert!(!bytes.windows(2).any(|pair| pair == b"\r\r"));
        }
    }

    #[test]
    fn headers_are_found_folded_and_only_above_the_body() {
        let message = b"A: 1\r\nb : two\r\n\tlines\r\nA: 2\r\n\r\nC: body\r\n";
        assert_eq!(header(message, "B").as_deref(), Some("two\tlines"));
        assert_eq!(headers(message, "a"), ["1", "2"]);
        assert_eq!(header(message, "C"), None);
    }

    #[test]
    fn trace_in_front_is_no_change_and_anything_else_is() {
        let sent = Mail::with_hops(2).bytes();
        let delivered = [
            b"Return-Path: <a@b>\r\nReceived: from x\r\n\tby y; now\r\n".as_slice(),
            &sent,
        ]
        .concat();
        assert_eq!(is_intact(&delivered, &sent), Ok(()));
        assert_eq!(is_intact(&sent, &sent), Ok(()));
        assert!(is_intact(&[b"X-Spam: no\r\n".as_slice(), &sent].concat(), &sent).is_err());
        assert!(
            is_intact(&sent[..sent.len() - 1], &sent)
                .unwrap_err()
                .contains("bytes became")
        );
        assert!(is_intact(&[&delivered[..], b"\r\n"].concat(), &sent).is_err());
    }

    #[test]
    fn message_without_header_has_no_trace() {
        assert_eq!(without_trace(b"\r\njust this\r\n"), b"\r\njust this\r\n");
        assert_eq!(without_trace(b"no header at all"), b"no header at all");
        assert_eq!(without_trace(b""), b"");
    }
}
