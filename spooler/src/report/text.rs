//! Texts of others made harmless, and lines made short enough.

/// Lines of text and header fields are folded at this width (RFC 5322 2.1.1).
const WIDTH: usize = 76;
/// No line may be longer than 998 octets (RFC 5321 4.5.3.1.6); a word longer than this is cut in two.
const WORD_BYTES_MAX: usize = 900;

/// One line: control characters, line and paragraph separators become spaces, runs of spaces one. Characters that turn
/// the direction of writing are dropped, since they can make one address look like another.
pub(super) fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {}
            '\u{2028}' | '\u{2029}' => push_space(&mut out),
            other if other.is_control() || other == ' ' => push_space(&mut out),
            other => out.push(other),
        }
    }
    out.truncate(out.trim_end().len());
    out
}

fn push_space(out: &mut String) {
    if !out.is_empty() && !out.ends_with(' ') {
        out.push(' ');
    }
}

/// The same in US-ASCII, with `?` for what is not.
pub(super) fn ascii_line(text: &str) -> String {
    line(text)
        .chars()
        .map(|c| if c.is_ascii() { c } else { '?' })
        .collect()
}

/// At most so many bytes, whole characters.
pub(super) fn clipped(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
    }
    text
}

/// A host name or address literal, safe in any field.
pub(super) fn host(text: &str) -> String {
    let safe = |c: &char| c.is_ascii_alphanumeric() || "-._:[]".contains(*c);
    let host: String = text.chars().filter(safe).take(255).collect();
    if host.is_empty() {
        "localhost".to_owned()
    } else {
        host
    }
}

/// Whether a Message-ID (without angle brackets) may be repeated in fields of ours.
pub(super) fn is_message_id(id: &str) -> bool {
    (1..=250).contains(&id.len())
        && id.contains('@')
        && id
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"<>".contains(&byte))
}

/// Writes `name: value` with its line end, folded.
pub(super) fn field(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push_str(": ");
    wrap(out, name.len() + 2, &line(value), "\r\n ");
    out.push_str("\r\n");
}

/// Writes a paragraph with its line end, every line indented.
pub(super) fn paragraph(out: &mut String, indent: &str, text: &str) {
    out.push_str(indent);
    wrap(out, indent.len(), &line(text), &format!("\r\n{indent}"));
    out.push_str("\r\n");
}

/// Writes words separated by spaces, or by `join` (CRLF and an indent) where the line would become too long. The first
/// word stays where it is: a field that begins with a folded line reads as an empty one.
fn wrap(out: &mut String, mut column: usize, text: &str, join: &str) {
    let indent = join.len() - 2;
    let mut first = true;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut rest = word;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(WORD_BYTES_MAX));
            if !first && column + 1 + piece.len() > WIDTH {
                out.push_str(join);
                column = indent;
            } else if !first {
                out.push(' ');
                column += 1;
            }
            out.push_str(piece);
            column += piece.len();
            first = false;
            rest = after;
        }
    }
}

/// All line ends as CRLF; NUL is dropped.
pub(super) fn with_crlf(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 32);
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\r' => {
                rest.next_if_eq(&b'\n');
                out.extend_from_slice(b"\r\n");
            }
            b'\n' => out.extend_from_slice(b"\r\n"),
            0 => {}
            other => out.push(other),
        }
    }
    out
}

/// Quoted-printable (RFC 2045 6.7) of text with CRLF line ends.
pub(super) fn quoted_printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + bytes.len() / 4);
    let mut column = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let ends = bytes[at..].starts_with(b"\r\n");
        if ends {
            out.push_str("\r\n");
            (at, column) = (at + 2, 0);
            continue;
        }
        let last = bytes.get(at + 1).is_none() || bytes[at + 1..].starts_with(b"\r\n");
        let plain = match byte {
            b'=' => false,
            b' ' | b'\t' => !last,
            other => other.is_ascii_graphic(),
        };
        let length = if plain { 1 } else { 3 };
        if column + length > WIDTH - 1 {
            out.push_str("=\r\n");
            column = 0;
        }
        if plain {
            out.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.push('=');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
        column += length;
        at += 1;
    }
    out
}

/// What a body needs on its way (RFC 2045 2.7, 2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    SevenBit,
    EightBit,
    /// NUL, bare CR or LF, or lines that are too long: it does not travel as it is.
    Encoding,
}

pub(super) fn needs(bytes: &[u8]) -> Needs {
    let mut length = 0;
    let mut previous = 0;
    for &byte in bytes {
        match byte {
            0 => return Needs::Encoding,
            b'\n' if previous != b'\r' => return Needs::Encoding,
            b'\n' => length = 0,
            _ if previous == b'\r' => return Needs::Encoding,
            b'\r' => {}
            _ => length += 1,
        }
        if length > 998 {
            return Needs::Encoding;
        }
        previous = byte;
    }
    match (previous == b'\r', bytes.is_ascii()) {
        (true, _) => Needs::Encoding,
        (false, true) => Needs::SevenBit,
        (false, false) => Needs::EightBit,
    }
}
