//! MAIL and RCPT with their parameters.

use std::{borrow::Cow, io::Write};

use pombo_proto::message::{Notify, Recipient, ReportReturn};

use super::{dns::canonical, reply::Capabilities};

/// What stands behind MAIL FROM.
pub(super) struct MailParameters {
    /// RFC 1870.
    pub(super) size: Option<u64>,
    /// RFC 6152.
    pub(super) eight_bit: bool,
    /// RFC 6531.
    pub(super) smtputf8: bool,
    /// RFC 3461.
    pub(super) dsn: bool,
}

/// `MAIL FROM:<...> ...`
pub(super) fn mail(
    out: &mut Vec<u8>,
    sender: &str,
    parameters: &MailParameters,
    report_return: ReportReturn,
    envelope_id: Option<&str>,
) {
    out.extend_from_slice(b"MAIL FROM:<");
    out.extend_from_slice(sender.as_bytes());
    out.push(b'>');
    if let Some(size) = parameters.size {
        // Writing to memory does not fail.
        let _ = write!(out, " SIZE={size}");
    }
    if parameters.eight_bit {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if parameters.smtputf8 {
        out.extend_from_slice(b" SMTPUTF8");
    }
    // Reports about a report go nowhere, so how they should look need not be said.
    if parameters.dsn && !sender.is_empty() {
        out.extend_from_slice(match report_return {
            ReportReturn::Headers => b" RET=HDRS",
            ReportReturn::Full => b" RET=FULL",
        });
        // RFC 3461 4.4: printable ASCII, at most 100 characters as sent.
        if let Some(id) = envelope_id.filter(|id| is_printable(id)) {
            let start = out.len();
            out.extend_from_slice(b" ENVID=");
            let value = out.len();
            xtext(out, id);
            if out.len() - value > 100 || out.len() == value {
                out.truncate(start);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// `RCPT TO:<...> ...`
pub(super) fn rcpt(out: &mut Vec<u8>, path: &str, recipient: &Recipient, offered: &Capabilities) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(path.as_bytes());
    out.push(b'>');
    if offered.dsn {
        notify(out, recipient.notify);
        if let Some(original) = &recipient.original_recipient {
            original_recipient(out, original);
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn notify(out: &mut Vec<u8>, notify: Notify) {
    // Nothing asked is nothing said: absence has its own meaning (RFC 3461 4.1).
    if notify == Notify::default() {
        return;
    }
    if notify == Notify::NEVER {
        out.extend_from_slice(b" NOTIFY=NEVER");
        return;
    }
    let wanted = [
        (notify.success, "SUCCESS"),
        (notify.failure, "FAILURE"),
        (notify.delay, "DELAY"),
    ];
    let names: Vec<&str> = wanted
        .iter()
        .filter_map(|(wanted, name)| wanted.then_some(*name))
        .collect();
    let _ = write!(out, " NOTIFY={}", names.join(","));
}

/// RFC 3461 4.2, and RFC 6533 section 3 for the type `utf-8`. What cannot be said in the type's form is left out.
fn original_recipient(out: &mut Vec<u8>, original: &str) {
    let Some((kind, address)) = original.split_once(';') else {
        return;
    };
    let is_atom = !kind.is_empty()
        && kind
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_utf8 = kind.eq_ignore_ascii_case("utf-8");
    let sayable = is_printable(address) || (is_utf8 && !address.chars().any(char::is_control));
    // RFC 3461 4.2: the whole parameter is at most 500 characters; a character takes up to 10.
    if !is_atom || !sayable || address.is_empty() || address.len() > 320 {
        return;
    }
    let _ = write!(out, " ORCPT={kind};");
    if !is_utf8 {
        xtext(out, address);
        return;
    }
    for c in address.chars() {
        match c {
            '!'..='~' if !matches!(c, '+' | '=' | '\\') => out.push(c as u8),
            _ => {
                let _ = write!(out, "\\x{{{:X}}}", u32::from(c));
            }
        }
    }
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// RFC 3461 section 4.
fn xtext(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'!'..=b'~' if !matches!(byte, b'+' | b'=') => out.push(byte),
            _ => {
                let _ = write!(out, "+{byte:02X}");
            }
        }
    }
}

/// Whether an address can stand between angle brackets without ending them or the command.
pub(super) fn is_path(address: &str) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for c in address.chars() {
        if c.is_control() {
            return false;
        }
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' | '<' | '>' if !quoted => return false,
            _ => {}
        }
    }
    // RFC 5321 4.5.3.1.3 allows 256 for a path; be liberal, but keep the command line bounded.
    !quoted && address.len() <= 1000
}

/// The address in ASCII, if only its domain is not.
pub(super) fn in_ascii(address: &str) -> Option<Cow<'_, str>> {
    if address.is_ascii() {
        return Some(Cow::Borrowed(address));
    }
    let (local, domain) = address.rsplit_once('@')?;
    let domain = canonical(domain);
    (local.is_ascii() && domain.is_ascii()).then(|| Cow::Owned(format!("{local}@{domain}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn parameters_are_said_only_where_they_are_offered() {
        let all = MailParameters {
            size: Some(7),
            eight_bit: true,
            smtputf8: true,
            dsn: true,
        };
        let line = said(|out| mail(out, "a@b", &all, ReportReturn::Full, Some("x +=y")));
        assert_eq!(
            line,
            "MAIL FROM:<a@b> SIZE=7 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=x+20+2B+3Dy\r\n"
        );
        let none = MailParameters {
            size: None,
            eight_bit: false,
            smtputf8: false,
            dsn: false,
        };
        assert_eq!(
            said(|out| mail(out, "", &none, ReportReturn::Full, Some("x"))),
            "MAIL FROM:<>\r\n"
        );
        let long = "x".repeat(101);
        let line = said(|out| {
            mail(
                out,
                "a@b",
                &MailParameters { dsn: true, ..none },
                ReportReturn::Headers,
                Some(&long),
            )
        });
        assert_eq!(line, "MAIL FROM:<a@b> RET=HDRS\r\n");
    }

    #[test]
    fn notify_and_original_recipient_are_encoded() {
        let offered = Capabilities {
            dsn: true,
            ..Capabilities::default()
        };
        let line = |notify, original: Option<&str>, offered: &Capabilities| {
            let recipient = Recipient {
                notify,
                original_recipient: original.map(str::to_owned),
                ..Recipient::smtp("b@c")
            };
            said(|out| rcpt(out, "b@c", &recipient, offered))
        };
        let success = Notify {
            success: true,
            ..Notify::default()
        };
        assert_eq!(line(Notify::default(), None, &offered), "RCPT TO:<b@c>\r\n");
        assert_eq!(
            line(Notify::NEVER, None, &offered),
            "RCPT TO:<b@c> NOTIFY=NEVER\r\n"
        );
        assert_eq!(
            line(success, Some("rfc822;o+x@d"), &offered),
            "RCPT TO:<b@c> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;o+2Bx@d\r\n"
        );
        assert_eq!(
            line(Notify::default(), Some("utf-8;\u{e4}@d"), &offered),
            "RCPT TO:<b@c> ORCPT=utf-8;\\x{E4}@d\r\n"
        );
        assert_eq!(
            line(Notify::default(), Some("rfc822;\u{e4}@d"), &offered),
            "RCPT TO:<b@c>\r\n"
        );
        assert_eq!(
            line(Notify::default(), Some("rfc822;a\r\nDATA"), &offered),
            "RCPT TO:<b@c>\r\n"
        );
        assert_eq!(
            line(success, Some("rfc822;x"), &Capabilities::default()),
            "RCPT TO:<b@c>\r\n"
        );
    }

    #[test]
    fn an_address_cannot_leave_its_brackets() {
        for good in [
            "",
            "a@b",
            "\"a b>\"@c",
            "\"a\\\"b\"@c",
            "\u{e4}@\u{f6}.example",
            "postmaster",
        ] {
            assert!(is_path(good), "{good}");
        }
        for bad in [
            "a b@c",
            "a@b>",
            "a@b> X",
            "a\r\nDATA",
            "\"a@b",
            "a\0b",
            "\u{85}",
            &"x".repeat(1001),
        ] {
            assert!(!is_path(bad), "{bad}");
        }
    }

    #[test]
    fn a_domain_can_be_said_in_ascii_a_mailbox_cannot() {
        assert_eq!(in_ascii("a@b").as_deref(), Some("a@b"));
        assert_eq!(
            in_ascii("a@b\u{fc}cher.example").as_deref(),
            Some("a@xn--bcher-kva.example")
        );
        assert_eq!(in_ascii("\u{e4}@b"), None);
    }
}
