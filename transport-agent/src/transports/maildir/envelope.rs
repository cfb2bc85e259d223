//! From the bytes of a picked-up file to a message with an envelope.
//!
//! | | from |
//! |---|---|
//! | recipients | the configuration, else `X-Pombo-To`, else To, Cc and Bcc |
//! | reverse-path | the configuration, else `X-Pombo-From` (`<>` is the null one), Return-Path, Sender, From |
//! | content | the file with CRLF line ends and a Received field in front; without Bcc and `X-Pombo-*` unless the recipients are configured |

use bytes::Bytes;
use mail_parser::{DateTime, MessageParser};
use pombo_proto::{
    message::{Content, RECIPIENTS_MAX},
    time::UnixMillis,
};

use super::{
    address::is_mailbox,
    config::Recipients,
    fields::{self, Field, HEADER_BYTES_MAX},
};

/// More Received fields than this mean that the message goes round (RFC 5321 6.3 asks for at least 100).
const HOPS_MAX: usize = 100;

/// What the configuration says about envelopes.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) recipients: Recipients,
    pub(super) sender: Option<String>,
}

/// A message, found fit to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) sender: String,
    pub(super) recipients: Vec<String>,
    pub(super) content: Content,
    pub(super) body: Bytes,
}

/// Why a file is moved to `failed`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("the file does not begin with a header field")]
    NoHeader,
    #[error("the header is longer than {HEADER_BYTES_MAX} bytes")]
    LongHeader,
    #[error("no recipients: there is no address in X-Pombo-To, To, Cc and Bcc")]
    NoRecipients,
    #[error("{0} recipients are more than the {RECIPIENTS_MAX} that one message can have")]
    ManyRecipients(usize),
    #[error("{field} holds something that is no mail address")]
    Address { field: &'static str },
    #[error("no sender: there is no address in X-Pombo-From, Return-Path, Sender and From")]
    NoSender,
    #[error("more than {HOPS_MAX} Received fields: the message goes round")]
    GoesRound,
    #[error("larger than {0} bytes")]
    Large(u64),
    #[error("the header cannot be read")]
    Unreadable,
    #[error("it cannot be saved: {0}")]
    Unsaved(String),
}

const TO: [(&str, &str); 3] = [("to", "To"), ("cc", "Cc"), ("bcc", "Bcc")];
const X_TO: (&str, &str) = ("x-pombo-to", "X-Pombo-To");
const X_FROM: (&str, &str) = ("x-pombo-from", "X-Pombo-From");
const RETURN_PATH: (&str, &str) = ("return-path", "Return-Path");
const FROM: [(&str, &str); 2] = [("sender", "Sender"), ("from", "From")];

/// Reads a file's content.
pub(super) fn read(
    file: &[u8],
    rules: &Rules,
    host: &str,
    now: UnixMillis,
) -> Result<Letter, Unfit> {
    let header = fields::header(file);
    if header.len() >= HEADER_BYTES_MAX {
        return Err(Unfit::LongHeader);
    }
    let all: Vec<Field<'_>> = fields::split(header).collect();
    if !all.first().is_some_and(|field| field.is_named()) {
        return Err(Unfit::NoHeader);
    }
    if all.iter().filter(|field| field.is("received")).count() > HOPS_MAX {
        return Err(Unfit::GoesRound);
    }
    let sender = match &rules.sender {
        Some(sender) => sender.clone(),
        None => sender(&all)?,
    };
    let (recipients, private) = match &rules.recipients {
        Recipients::Fixed(addresses) => (addresses.clone(), false),
        Recipients::Headers => (recipients(&all)?, true),
    };
    let mut body = received(host, now).into_bytes();
    body.reserve(file.len() + file.len() / 32);
    for field in &all {
        let envelope_only = ["bcc", X_TO.0, X_FROM.0].iter().any(|name| field.is(name));
        if !(private && envelope_only) {
            fields::push_with_crlf(&mut body, field.whole());
        }
    }
    fields::push_with_crlf(&mut body, &file[header.len()..]);
    let eight_bit = !file.is_ascii();
    let foreign = |address: &String| !address.is_ascii();
    let smtputf8 = foreign(&sender) || recipients.iter().any(foreign) || !header.is_ascii();
    Ok(Letter {
        sender,
        recipients: recipients.into_iter().map(with_plain_domain).collect(),
        content: Content {
            eight_bit,
            smtputf8,
        },
        body: Bytes::from(body),
    })
}

fn received(host: &str, now: UnixMillis) -> String {
    let seconds = i64::try_from(now.0 / 1000).unwrap_or_default();
    let date = DateTime::from_timestamp(seconds).to_rfc822();
    format!("Received: by {host} (Pombo, picked up from a folder);\r\n\t{date}\r\n")
}

fn recipients(all: &[Field<'_>]) -> Result<Vec<String>, Unfit> {
    let mut found = addresses(all, X_TO)?;
    if found.is_empty() {
        for field in TO {
            found.extend(addresses(all, field)?);
        }
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|address| seen.insert(address.to_lowercase()));
    match found.len() {
        0 => Err(Unfit::NoRecipients),
        1..=RECIPIENTS_MAX => Ok(found),
        many => Err(Unfit::ManyRecipients(many)),
    }
}

fn sender(all: &[Field<'_>]) -> Result<String, Unfit> {
    for field in [X_FROM, RETURN_PATH] {
        let mut named = all.iter().filter(|one| one.is(field.0));
        if named.next().is_some_and(|one| is_null(one.value())) {
            return Ok(String::new());
        }
        if let Some(first) = addresses(all, field)?.into_iter().next() {
            return Ok(first);
        }
    }
    for field in FROM {
        if let Some(first) = addresses(all, field)?.into_iter().next() {
            return Ok(first);
        }
    }
    Err(Unfit::NoSender)
}

fn is_null(value: &[u8]) -> bool {
    value
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .eq(b"<>")
}

/// The addresses in all fields of a name. One that is none spoils the message: nobody is left out unseen.
fn addresses(all: &[Field<'_>], (name, shown): (&str, &'static str)) -> Result<Vec<String>, Unfit> {
    let mut found = Vec::new();
    for field in all.iter().filter(|field| field.is(name)) {
        let text = [b"To:".as_slice(), field.value(), b"\r\n\r\n"].concat();
        let parsed = MessageParser::new()
            .with_address_headers()
            .parse_headers(&text);
        let parsed = parsed.ok_or(Unfit::Unreadable)?;
        for address in parsed.all_to().flat_map(|list| list.iter()) {
            match address.address() {
                Some(address) if is_mailbox(address) => found.push(address.to_owned()),
                // A display name alone, and the remains of an empty group, name nobody.
                None if address.name().is_none_or(str::is_empty) => {}
                _ => return Err(Unfit::Address { field: shown }),
            }
        }
    }
    Ok(found)
}

fn with_plain_domain(address: String) -> String {
    match address.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_lowercase()),
        None => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000_000_000);

    fn by_headers(file: &str) -> Result<Letter, Unfit> {
        let rules = Rules {
            recipients: Recipients::Headers,
            sender: None,
        };
        read(file.as_bytes(), &rules, "mx.example.org", NOW)
    }

    #[test]
    fn the_header_makes_the_envelope_and_bcc_is_gone() {
        let letter = by_headers(
            "Return-Path: <bounce@x.org>\nFrom: Ann <ann@x.org>\nTo: Bob <bob@Y.org>, friends: carl@y.org, BOB@y.org;\n\
             Bcc: dora@z.org,\n  eve@z.org\nSubject: hi\n\nfirst\nsecond",
        )
        .unwrap();
        assert_eq!(letter.sender, "bounce@x.org");
        assert_eq!(
            letter.recipients,
            ["bob@y.org", "carl@y.org", "dora@z.org", "eve@z.org"]
        );
        let body = String::from_utf8(letter.body.to_vec()).unwrap();
        assert_eq!(
            body,
            "Received: by mx.example.org (Pombo, picked up from a folder);\r\n\tSun, 9 Sep 2001 01:46:40 +0000\r\n\
             Return-Path: <bounce@x.org>\r\nFrom: Ann <ann@x.org>\r\n\
             To: Bob <bob@Y.org>, friends: carl@y.org, BOB@y.org;\r\nSubject: hi\r\n\r\nfirst\r\nsecond\r\n"
        );
        assert_eq!(letter.content, Content::default());
    }

    #[test]
    fn our_own_fields_come_first_and_are_removed() {
        let letter = by_headers(
            "X-Pombo-From: <>\r\nX-Pombo-To: list@x.org\r\nFrom: ann@x.org\r\nTo: bob@y.org\r\n\r\n\u{e4}",
        )
        .unwrap();
        assert_eq!(
            (letter.sender.as_str(), letter.recipients),
            ("", vec!["list@x.org".to_owned()])
        );
        assert!(!String::from_utf8_lossy(&letter.body).contains("X-Pombo"));
        assert!(letter.content.eight_bit && !letter.content.smtputf8);
    }

    #[test]
    fn fixed_recipients_leave_the_message_alone() {
        let rules = Rules {
            recipients: Recipients::Fixed(vec!["all@x.org".to_owned()]),
            sender: Some(String::new()),
        };
        let file = b"Bcc: dora@z.org\r\nX-Pombo-To: eve@z.org\r\n\r\nbody\r\n";
        let letter = read(file, &rules, "mx.example.org", NOW).unwrap();
        assert_eq!(
            (letter.sender.as_str(), letter.recipients),
            ("", vec!["all@x.org".to_owned()])
        );
        assert!(letter.body.ends_with(file));
    }

    #[test]
    fn what_is_no_message_is_unfit() {
        for (file, unfit) in [
            ("", Unfit::NoHeader),
            ("hello world\n", Unfit::NoHeader),
            ("\nTo: ann@x.org\n", Unfit::NoHeader),
            ("From: ann@x.org\n\nTo: bob@x.org", Unfit::NoRecipients),
            (
                "From: ann@x.org\nTo: undisclosed-recipients:;\n\n",
                Unfit::NoRecipients,
            ),
            ("To: ann@x.org\n\n", Unfit::NoSender),
            (
                "From: ann@x.org\nTo: bob@x.org, Carl\n\n",
                Unfit::Address { field: "To" },
            ),
            (
                "From: ann@x.org\nTo: <bob>\n\n",
                Unfit::Address { field: "To" },
            ),
        ] {
            assert_eq!(by_headers(file), Err(unfit), "{file:?}");
        }
        let round = format!(
            "{}From: a@x.org\nTo: b@x.org\n\n",
            "Received: x\n".repeat(101)
        );
        assert_eq!(by_headers(&round), Err(Unfit::GoesRound));
        let long = format!("To: a@x.org\nX: {}", "x".repeat(HEADER_BYTES_MAX));
        assert_eq!(by_headers(&long), Err(Unfit::LongHeader));
        let many: Vec<_> = (0..=RECIPIENTS_MAX)
            .map(|n| format!("a{n}@x.org"))
            .collect();
        let many = format!("From: a@x.org\nTo: {}\n\n", many.join(",\n "));
        assert_eq!(
            by_headers(&many),
            Err(Unfit::ManyRecipients(RECIPIENTS_MAX + 1))
        );
    }

    #[test]
    fn random_headers_are_never_more_than_unfit() {
        let mut random = fastrand::Rng::with_seed(3);
        let parts = [
            "To:",
            "Bcc: ",
            "From:",
            "a@x.org",
            "<",
            ">",
            ",",
            ":",
            ";",
            "\n",
            " ",
            "\"",
            "(",
            "=?utf-8?q?a?=",
            "\0",
            "\u{fc}",
        ];
        let mut fit = 0;
        for _ in 0..20_000 {
            let count = random.usize(..14);
            let mut file = String::from("From: z@x.org\nTo:");
            file.extend((0..count).map(|_| parts[random.usize(..parts.len())]));
            if let Ok(letter) = by_headers(&file) {
                fit += 1;
                assert!(
                    letter.recipients.iter().all(|one| is_mailbox(one)),
                    "{file:?}"
                );
                assert!(
                    !fields::split(fields::header(&letter.body)).any(|field| field.is("bcc")),
                    "{file:?}"
                );
            }
        }
        assert!(fit > 1_000, "{fit}");
    }
}
