//! Mailboxes, paths and domains by RFC 5321 4.1.2 and 4.1.3, with RFC 6531's letters beyond ASCII.
//!
//! Strict, with one mercy: an underscore in a domain name, which is common. What comes out is canonical, so that policy
//! cannot be gone round by another spelling: the domain in lower case, a source route dropped, a local part quoted
//! only where it must be (`"ann"@x` is `ann@x`), and otherwise as it was given.
//!
//! `smtp-proto`'s parser is not used for this: it refuses address literals, unquotes local parts so that `"a@b"@c` and
//! `a@b@c` become one, cannot tell `<>` from `<postmaster>`, and skips CRs. The tests compare with it where it is right.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest local part in bytes (RFC 5321 4.5.3.1.1).
const LOCAL_BYTES_MAX: usize = 64;
/// Longest domain in bytes (RFC 5321 4.5.3.1.2).
const DOMAIN_BYTES_MAX: usize = 255;
/// Longest path in bytes, with its brackets (RFC 5321 4.5.3.1.3).
const PATH_BYTES_MAX: usize = 256;
/// Longest label of a domain name in bytes (RFC 1035 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// A mailbox in canonical spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mailbox {
    address: String,
    /// Where the `@` is.
    at: usize,
}

impl Mailbox {
    /// `local@domain`.
    pub fn as_str(&self) -> &str {
        &self.address
    }

    /// As [`Self::as_str`].
    pub fn into_string(self) -> String {
        self.address
    }

    /// Before the `@`, with its quotes if it needs them.
    pub fn local(&self) -> &str {
        &self.address[..self.at]
    }

    /// Behind the `@`, in lower case; `[192.0.2.1]` or `[ipv6:2001:db8::1]` if it is a literal.
    pub fn domain(&self) -> &str {
        &self.address[self.at + 1..]
    }

    /// From its parts, which are known to be right.
    pub fn from_parts(local: &str, domain: &str) -> Self {
        Self {
            at: local.len(),
            address: format!("{local}@{domain}"),
        }
    }
}

/// What stands in angle brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// `<>`: the null reverse-path.
    Null,
    /// `<Postmaster>` without a domain, which every server takes (RFC 5321 4.5.1).
    Postmaster,
    /// A mailbox.
    Mailbox(Mailbox),
}

/// Reads a path from the start of `text`; returns what follows its `>`. `None`: not a path.
pub(super) fn path(text: &str) -> Option<(Path, &str)> {
    let inner = text.strip_prefix('<')?;
    if let Some(rest) = inner.strip_prefix('>') {
        return Some((Path::Null, rest));
    }
    let end = closing(inner)?;
    let (inside, rest) = (&inner[..end], &inner[end + 1..]);
    if end + 2 > PATH_BYTES_MAX {
        return None;
    }
    if inside.eq_ignore_ascii_case("postmaster") {
        return Some((Path::Postmaster, rest));
    }
    let mailbox = mailbox(without_route(inside)?)?;
    Some((Path::Mailbox(mailbox), rest))
}

/// Where the `>` is that ends the path: not one inside quotes.
fn closing(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => {
                bytes.next();
            }
            b'>' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Drops `@one,@two:`, which must be well-formed and is then ignored (RFC 5321 appendix C).
fn without_route(text: &str) -> Option<&str> {
    if !text.starts_with('@') {
        return Some(text);
    }
    let (route, mailbox) = text.split_once(':')?;
    route
        .split(',')
        .all(|hop| hop.strip_prefix('@').is_some_and(is_domain_name))
        .then_some(mailbox)
}

/// A mailbox: local part, `@`, domain or address literal.
pub(super) fn mailbox(text: &str) -> Option<Mailbox> {
    let (local, domain) = if text.starts_with('"') {
        let (content, rest) = quoted_string(text)?;
        (canonical_local(content), rest.strip_prefix('@')?)
    } else {
        let (local, domain) = text.split_once('@')?;
        if !is_dot_string(local) {
            return None;
        }
        (local.to_owned(), domain)
    };
    let domain = domain_or_literal(domain)?;
    (local.len() <= LOCAL_BYTES_MAX).then(|| Mailbox::from_parts(&local, &domain))
}

/// The content of a quoted string, unescaped, and what follows it.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut content = String::new();
    let mut chars = text.char_indices();
    chars.next().filter(|(_, quote)| *quote == '"')?;
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((content, &text[at + 1..])),
            '\\' => content.push(chars.next().map(|(_, c)| c).filter(|c| is_qtext(*c))?),
            char if is_qtext(char) => content.push(char),
            _ => return None,
        }
    }
    None
}

fn is_qtext(char: char) -> bool {
    matches!(char, ' '..='~') || (!char.is_ascii() && !char.is_control())
}

fn canonical_local(content: String) -> String {
    if is_dot_string(&content) {
        return content;
    }
    let mut quoted = String::with_capacity(content.len() + 2);
    quoted.push('"');
    for char in content.chars() {
        if matches!(char, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(char);
    }
    quoted.push('"');
    quoted
}

fn is_dot_string(text: &str) -> bool {
    let is_atext = |char: char| {
        char.is_ascii_alphanumeric()
            || "!#$%&'*+-/=?^_`{|}~".contains(char)
            || (!char.is_ascii() && !char.is_control() && !char.is_whitespace())
    };
    text.split('.')
        .all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

/// A domain name or an address literal, in lower case. `None`: neither.
pub(super) fn domain_or_literal(text: &str) -> Option<String> {
    let valid = match text.strip_prefix('[') {
        Some(literal) => is_literal(literal.strip_suffix(']')?),
        None => is_domain_name(text),
    };
    valid.then(|| {
        if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            text.to_lowercase()
        }
    })
}

fn is_literal(text: &str) -> bool {
    const TAG: &str = "IPv6:";
    match text.get(..TAG.len()) {
        Some(tag) if tag.eq_ignore_ascii_case(TAG) => text[TAG.len()..].parse::<Ipv6Addr>().is_ok(),
        _ => text.parse::<Ipv4Addr>().is_ok(),
    }
}

/// Labels of letters, digits and inner hyphens, or letters beyond ASCII.
pub(super) fn is_domain_name(text: &str) -> bool {
    let is_inner = |char: char| {
        char.is_ascii_alphanumeric()
            || matches!(char, '-' | '_')
            || (!char.is_ascii() && !char.is_control() && !char.is_whitespace())
    };
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(is_inner)
    };
    text.len() <= DOMAIN_BYTES_MAX && text.split('.').all(is_label)
}
