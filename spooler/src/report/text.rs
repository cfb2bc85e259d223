//! Texts of others made harmless, and lines made short enough.

use memchr::{memchr3, memmem};

/// Lines of text and header fields are folded at this width (RFC 5322 2.1.1).
const WIDTH: usize = 76;
/// Without CRLF (RFC 5321 4.5.3.1.6).
const LINE_BYTES_MAX: usize = 998;
/// So that no line becomes longer than that, a word longer than this is cut in two.
const WORD_BYTES_MAX: usize = 900;

/// One line: control characters, line and paragraph separators become spaces, runs of spaces one. Characters that turn
/// the direction of writing are dropped, since they can make one address look like another.
pub(super) fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        // Most is plain: it is copied a word at a time.
        let word = rest.bytes().take_while(u8::is_ascii_graphic).count();
        out.push_str(&rest[..word]);
        rest = &rest[word..];
        let Some(character) = rest.chars().next() else {
            break;
        };
        match character {
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {}
            '\u{2028}' | '\u{2029}' => push_space(&mut out),
            other if other.is_control() || other == ' ' => push_space(&mut out),
            other => out.push(other),
        }
        rest = &rest[character.len_utf8()..];
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
    let mut rest = bytes;
    while let Some(at) = memchr3(b'\r', b'\n', 0, rest) {
        out.extend_from_slice(&rest[..at]);
        let end = &rest[at..];
        let length = if end.starts_with(b"\r\n") { 2 } else { 1 };
        if end[0] != 0 {
            out.extend_from_slice(b"\r\n");
        }
        rest = &end[length..];
    }
    out.extend_from_slice(rest);
    out
}

/// Quoted-printable (RFC 2045 6.7) of text with CRLF line ends.
pub(super) fn quoted_printable(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 4);
    let mut rest = bytes;
    loop {
        let end = memmem::find(rest, b"\r\n");
        quoted_line(&mut out, &rest[..end.unwrap_or(rest.len())]);
        let Some(end) = end else {
            return out;
        };
        out.extend_from_slice(b"\r\n");
        rest = &rest[end + 2..];
    }
}

fn quoted_line(out: &mut Vec<u8>, mut line: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    // One place is for the `=` of a soft line end.
    const ROOM: usize = WIDTH - 1;
    let mut column = 0;
    while let Some((&first, after)) = line.split_first() {
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'=';
        let is_space = matches!(first, b' ' | b'\t') && !after.is_empty();
        let plain = match is_space {
            true => 1,
            false => line
                .iter()
                .take(ROOM)
                .take_while(|byte| is_plain(byte))
                .count(),
        };
        let length = if plain == 0 { 3 } else { 1 };
        if column + length > ROOM {
            out.extend_from_slice(b"=\r\n");
            column = 0;
        }
        if plain == 0 {
            let digits = [first >> 4, first & 15].map(|digit| HEX[usize::from(digit)]);
            out.extend_from_slice(&[b'=', digits[0], digits[1]]);
            column += 3;
            line = after;
        } else {
            let (run, after) = line.split_at(plain.min(ROOM - column));
            out.extend_from_slice(run);
            column += run.len();
            line = after;
        }
    }
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
    let mut rest = bytes;
    loop {
        let end = memchr3(0, b'\r', b'\n', rest);
        if end.unwrap_or(rest.len()) > LINE_BYTES_MAX {
            return Needs::Encoding;
        }
        match end {
            None if bytes.is_ascii() => return Needs::SevenBit,
            None => return Needs::EightBit,
            Some(end) if rest[end..].starts_with(b"\r\n") => rest = &rest[end + 2..],
            Some(_) => return Needs::Encoding,
        }
    }
}
