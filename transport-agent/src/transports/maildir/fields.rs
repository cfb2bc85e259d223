//! Header fields as ranges of bytes, and line ends: the little of RFC 5322 that needs no interpretation.

use bytes::Bytes;

/// Longer header sections are not looked at beyond this.
pub(super) const HEADER_BYTES_MAX: usize = 1024 * 1024;

/// One header field with its continuation lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    whole: &'a [u8],
    name: &'a [u8],
}

impl<'a> Field<'a> {
    /// Whether it has this name, given in lower case.
    pub(super) fn is(self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// Whether it is a field at all, and not some other line.
    pub(super) fn is_named(self) -> bool {
        !self.name.is_empty()
    }

    /// What follows the colon, line ends included.
    pub(super) fn value(self) -> &'a [u8] {
        let colon = self.whole.iter().position(|byte| *byte == b':');
        colon.map_or(&[], |colon| &self.whole[colon + 1..])
    }

    /// All its bytes.
    pub(super) fn whole(self) -> &'a [u8] {
        self.whole
    }
}

/// The header section, without the empty line that ends it; the first [`HEADER_BYTES_MAX`] bytes if it is longer.
pub(super) fn header(message: &[u8]) -> &[u8] {
    let head = &message[..message.len().min(HEADER_BYTES_MAX)];
    let mut start = 0;
    while start < head.len() {
        let line = line(&head[start..]);
        if matches!(line, b"\n" | b"\r\n") {
            return &head[..start];
        }
        start += line.len();
    }
    head
}

/// The fields of a header section. A line that is no field and continues none comes as a field without a name.
pub(super) fn split(header: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut rest = header;
    std::iter::from_fn(move || {
        let mut end = line(rest).len();
        if end == 0 || matches!(rest, [b'\r', b'\n', ..] | [b'\n', ..]) {
            return None;
        }
        while matches!(rest.get(end), Some(b' ' | b'\t')) {
            end += line(&rest[end..]).len();
        }
        let (whole, after) = rest.split_at(end);
        rest = after;
        Some(Field {
            whole,
            name: name(whole),
        })
    })
}

/// The first line with its end.
fn line(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| *byte == b'\n');
    &text[..end.map_or(text.len(), |end| end + 1)]
}

/// What stands before the colon (RFC 5322 2.2, and the spaces of 4.5.1); empty if it is no field name.
fn name(field: &[u8]) -> &[u8] {
    let Some(colon) = field.iter().position(|byte| *byte == b':') else {
        return &[];
    };
    let name = field[..colon].trim_ascii_end();
    if name.iter().all(u8::is_ascii_graphic) {
        name
    } else {
        &[]
    }
}

/// With every CRLF as LF.
pub(super) fn with_lf(text: Bytes) -> Bytes {
    let mut plain = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(line) => {
                plain.extend_from_slice(line);
                plain.push(b'\n');
            }
            None => plain.extend_from_slice(line),
        }
    }
    Bytes::from(plain)
}

/// Appends with every line end as CRLF. A last line without an end gets one.
pub(super) fn push_with_crlf(out: &mut Vec<u8>, text: &[u8]) {
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_with_their_continuations() {
        let message =
            b"To: a@x.org,\r\n b@x.org\r\nrubbish\r\nBcc : c@x.org\nX:\r\n\r\nCc: in the body\r\n";
        let header = header(message);
        assert!(header.ends_with(b"X:\r\n"));
        let fields: Vec<_> = split(header).collect();
        assert_eq!(fields.len(), 4);
        assert!(fields[0].is("to") && fields[0].value() == b" a@x.org,\r\n b@x.org\r\n");
        assert!(!fields[1].is_named());
        assert!(fields[2].is("bcc") && fields[2].value() == b" c@x.org\n");
        let joined: Vec<u8> = fields
            .iter()
            .flat_map(|field| field.whole().to_vec())
            .collect();
        assert_eq!(joined, header);
    }

    #[test]
    fn a_message_without_a_body_is_all_header() {
        assert_eq!(header(b"A: 1\nB: 2"), b"A: 1\nB: 2");
        assert_eq!(header(b"\r\nbody"), b"");
        assert_eq!(header(b""), b"");
        assert_eq!(split(b"A: 1\nB: 2").count(), 2);
        assert_eq!(split(b"").count(), 0);
    }

    #[test]
    fn random_bytes_are_split_without_loss() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..20_000 {
            let length = random.usize(..40);
            let bytes: Vec<u8> = (0..length)
                .map(|_| b"\r\n :aB\t\0"[random.usize(..8)])
                .collect();
            let header = header(&bytes);
            let whole: usize = split(header).map(|field| field.whole().len()).sum();
            assert_eq!(whole, header.len(), "{bytes:?}");
            let mut crlf = Vec::new();
            push_with_crlf(&mut crlf, &bytes);
            assert!(
                !crlf
                    .windows(2)
                    .any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
            );
        }
    }

    #[test]
    fn line_ends_are_converted_and_nothing_else() {
        assert_eq!(
            with_lf(Bytes::from_static(b"a\r\nb\rc\n\r\n")).as_ref(),
            b"a\nb\rc\n\n"
        );
        let mut out = Vec::new();
        push_with_crlf(&mut out, b"a\nb\rc\r\n\nd");
        assert_eq!(out, b"a\r\nb\rc\r\n\r\nd\r\n");
    }
}
