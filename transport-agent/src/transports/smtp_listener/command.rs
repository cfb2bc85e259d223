//! Command lines: RFC 5321 4.1.1 with the parameters of SIZE (1870), 8BITMIME (6152), DSN (3461), SMTPUTF8 (6531) and AUTH (4954).
//!
//! Takes one line without its CRLF and gives a [`Command`] or the reply that refuses it; knows nothing of sequence or
//! policy. A line comes from outside: any bytes, already bounded in length.

use pombo_proto::message::{Notify, ReportReturn};

use super::address::{self, Path};

/// One command, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Ehlo(&'a str),
    Helo(&'a str),
    Mail(Mail),
    Rcpt(Rcpt),
    Data,
    Rset,
    Noop,
    Vrfy,
    Help,
    Quit,
    StartTls,
    /// Mechanism and initial response.
    Auth(&'a str, Option<&'a str>),
}

/// MAIL FROM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mail {
    /// Empty for the null reverse-path.
    pub sender: String,
    /// SIZE, as declared.
    pub size: Option<u64>,
    /// BODY=8BITMIME.
    pub eight_bit: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// RET.
    pub report_return: ReportReturn,
    /// ENVID, decoded.
    pub envelope_id: Option<String>,
}

/// RCPT TO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rcpt {
    /// To whom; never [`Path::Null`].
    pub to: Path,
    /// NOTIFY; the default if it was not given.
    pub notify: Notify,
    /// ORCPT as `type;address`, decoded.
    pub original: Option<String>,
}

/// The reply to a line that is not a command.
pub(super) type Refusal = &'static str;

const SYNTAX: Refusal = "500 5.5.2 Syntax error, command unrecognized";
const NOT_IMPLEMENTED: Refusal = "502 5.5.1 Command not implemented";
const NO_PARAMETERS: Refusal = "501 5.5.4 No parameters are allowed here";
const HOST_NAME: Refusal = "501 5.5.4 A domain name or an address literal is needed";
const MAIL_SYNTAX: Refusal = "501 5.5.4 Syntax: MAIL FROM:<address> [parameters]";
const RCPT_SYNTAX: Refusal = "501 5.5.4 Syntax: RCPT TO:<address> [parameters]";
const AUTH_SYNTAX: Refusal = "501 5.5.4 Syntax: AUTH mechanism [initial response]";
const SENDER_SYNTAX: Refusal = "501 5.1.7 Bad sender address syntax";
const RECIPIENT_SYNTAX: Refusal = "501 5.1.3 Bad recipient address syntax";
const NOT_ASCII: Refusal = "553 5.6.7 Addresses beyond ASCII need SMTPUTF8";
const UNKNOWN_PARAMETER: Refusal = "555 5.5.4 Parameter not recognized";
const BAD_PARAMETER: Refusal = "501 5.5.4 Bad parameter value";
const TWICE: Refusal = "501 5.5.4 Parameter given twice";

/// Longest ENVID, encoded (RFC 3461 4.4).
const ENVELOPE_ID_BYTES_MAX: usize = 100;
/// Longest ORCPT, encoded (RFC 3461 4.2).
const ORIGINAL_BYTES_MAX: usize = 500;

/// Understands a line. `smtputf8`: the transaction that it would belong to has it.
///
/// # Errors
/// The reply.
pub(super) fn parse(line: &[u8], smtputf8: bool) -> Result<Command<'_>, Refusal> {
    let text = std::str::from_utf8(line).map_err(|_| SYNTAX)?;
    if text.chars().any(char::is_control) {
        return Err(SYNTAX);
    }
    let text = text.trim_end_matches(' ');
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let is = |name: &str| verb.eq_ignore_ascii_case(name);
    if is("MAIL") {
        mail(rest).map(Command::Mail)
    } else if is("RCPT") {
        rcpt(rest, smtputf8).map(Command::Rcpt)
    } else if is("DATA") {
        bare(rest, Command::Data)
    } else if is("EHLO") {
        host_name(rest).map(Command::Ehlo)
    } else if is("HELO") {
        host_name(rest).map(Command::Helo)
    } else if is("RSET") {
        bare(rest, Command::Rset)
    } else if is("QUIT") {
        bare(rest, Command::Quit)
    } else if is("NOOP") {
        Ok(Command::Noop)
    } else if is("STARTTLS") {
        bare(rest, Command::StartTls)
    } else if is("AUTH") {
        auth(rest)
    } else if is("VRFY") {
        (!rest.is_empty())
            .then_some(Command::Vrfy)
            .ok_or(BAD_PARAMETER)
    } else if is("HELP") {
        Ok(Command::Help)
    } else if [
        "BDAT", "EXPN", "ETRN", "TURN", "SEND", "SOML", "SAML", "LHLO",
    ]
    .into_iter()
    .any(is)
    {
        Err(NOT_IMPLEMENTED)
    } else {
        Err(SYNTAX)
    }
}

fn bare<'a>(rest: &str, command: Command<'a>) -> Result<Command<'a>, Refusal> {
    rest.is_empty().then_some(command).ok_or(NO_PARAMETERS)
}

/// `mechanism [initial response]` (RFC 4954 4).
fn auth(rest: &str) -> Result<Command<'_>, Refusal> {
    let mut words = rest.split(' ').filter(|word| !word.is_empty());
    let mechanism = words.next().ok_or(AUTH_SYNTAX)?;
    let initial = words.next();
    if words.next().is_some() {
        return Err(AUTH_SYNTAX);
    }
    Ok(Command::Auth(mechanism, initial))
}

fn host_name(rest: &str) -> Result<&str, Refusal> {
    let name = rest.trim_start_matches(' ');
    // It goes into Received, which must stay ASCII in a message without SMTPUTF8.
    (name.is_ascii() && address::domain_or_literal(name).is_some())
        .then_some(name)
        .ok_or(HOST_NAME)
}

/// `KEYWORD:` in any case, then what follows without leading spaces, which many clients put there.
fn after_keyword<'a>(rest: &'a str, keyword: &str) -> Option<&'a str> {
    let rest = rest.trim_start_matches(' ');
    let head = rest.get(..keyword.len())?;
    head.eq_ignore_ascii_case(keyword)
        .then(|| rest[keyword.len()..].trim_start_matches(' '))
}

/// The parameters behind a path: `KEY[=value]`, separated by spaces.
fn parameters(rest: &str) -> Option<impl Iterator<Item = (&str, Option<&str>)>> {
    (rest.is_empty() || rest.starts_with(' ')).then(|| {
        rest.split(' ').filter(|word| !word.is_empty()).map(|word| {
            word.split_once('=')
                .map_or((word, None), |(key, value)| (key, Some(value)))
        })
    })
}

fn mail(rest: &str) -> Result<Mail, Refusal> {
    let rest = after_keyword(rest, "FROM:").ok_or(MAIL_SYNTAX)?;
    let (path, rest) = address::path(rest).ok_or(SENDER_SYNTAX)?;
    let sender = match path {
        Path::Null => String::new(),
        Path::Postmaster => return Err(SENDER_SYNTAX),
        Path::Mailbox(mailbox) => mailbox.into_string(),
    };
    let mut body = None;
    let mut size = None;
    let mut smtputf8 = None;
    let mut report_return = None;
    let mut envelope_id = None;
    let mut auth = None;
    for (key, value) in parameters(rest).ok_or(MAIL_SYNTAX)? {
        let is = |name: &str| key.eq_ignore_ascii_case(name);
        if is("SIZE") {
            set(&mut size, value.and_then(number))?;
        } else if is("BODY") {
            set(&mut body, value.and_then(body_is_eight_bit))?;
        } else if is("SMTPUTF8") {
            set(&mut smtputf8, value.is_none().then_some(()))?;
        } else if is("RET") {
            set(&mut report_return, value.and_then(ret))?;
        } else if is("AUTH") {
            // RFC 4954 5: to be understood, and nobody is trusted with it here.
            set(&mut auth, value.and_then(xtext).map(drop))?;
        } else if is("ENVID") {
            let value = value.filter(|text| text.len() <= ENVELOPE_ID_BYTES_MAX);
            set(&mut envelope_id, value.and_then(xtext))?;
        } else {
            return Err(UNKNOWN_PARAMETER);
        }
    }
    if smtputf8.is_none() && !sender.is_ascii() {
        return Err(NOT_ASCII);
    }
    Ok(Mail {
        sender,
        size,
        eight_bit: body.unwrap_or_default(),
        smtputf8: smtputf8.is_some(),
        report_return: report_return.unwrap_or_default(),
        envelope_id,
    })
}

fn rcpt(rest: &str, smtputf8: bool) -> Result<Rcpt, Refusal> {
    let rest = after_keyword(rest, "TO:").ok_or(RCPT_SYNTAX)?;
    let (to, rest) = address::path(rest).ok_or(RECIPIENT_SYNTAX)?;
    match &to {
        Path::Null => return Err(RECIPIENT_SYNTAX),
        Path::Mailbox(mailbox) if !smtputf8 && !mailbox.as_str().is_ascii() => {
            return Err(NOT_ASCII);
        }
        Path::Postmaster | Path::Mailbox(_) => {}
    }
    let mut notification = None;
    let mut original = None;
    for (key, value) in parameters(rest).ok_or(RCPT_SYNTAX)? {
        if key.eq_ignore_ascii_case("NOTIFY") {
            set(&mut notification, value.and_then(notify))?;
        } else if key.eq_ignore_ascii_case("ORCPT") {
            let value = value.filter(|text| text.len() <= ORIGINAL_BYTES_MAX);
            set(&mut original, value.and_then(original_recipient))?;
        } else {
            return Err(UNKNOWN_PARAMETER);
        }
    }
    Ok(Rcpt {
        to,
        notify: notification.unwrap_or_default(),
        original,
    })
}

fn set<T>(slot: &mut Option<T>, value: Option<T>) -> Result<(), Refusal> {
    let value = value.ok_or(BAD_PARAMETER)?;
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(TWICE),
    }
}

/// At most 20 digits (RFC 1870 3); a number that does not fit is larger than anything that we take.
fn number(text: &str) -> Option<u64> {
    let digits = (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn body_is_eight_bit(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("8BITMIME") {
        Some(true)
    } else {
        text.eq_ignore_ascii_case("7BIT").then_some(false)
    }
}

fn ret(text: &str) -> Option<ReportReturn> {
    if text.eq_ignore_ascii_case("FULL") {
        Some(ReportReturn::Full)
    } else {
        text.eq_ignore_ascii_case("HDRS")
            .then_some(ReportReturn::Headers)
    }
}

fn notify(text: &str) -> Option<Notify> {
    if text.eq_ignore_ascii_case("NEVER") {
        return Some(Notify::NEVER);
    }
    let mut notify = Notify::NEVER;
    for word in text.split(',') {
        let is = |name: &str| word.eq_ignore_ascii_case(name);
        if is("SUCCESS") {
            notify.success = true;
        } else if is("FAILURE") {
            notify.failure = true;
        } else if is("DELAY") {
            notify.delay = true;
        } else {
            return None;
        }
    }
    Some(notify)
}

/// `type;xtext`: the type is an atom (`rfc822`, `utf-8` by RFC 6533, ...).
fn original_recipient(text: &str) -> Option<String> {
    let (kind, address) = text.split_once(';')?;
    let is_kind = !kind.is_empty()
        && kind
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    is_kind
        .then(|| xtext(address))
        .flatten()
        .map(|mut address| {
            address.insert(0, ';');
            address.insert_str(0, kind);
            address
        })
}

/// Decodes xtext (RFC 3461 4). What it stands for goes into reports, so nothing that could break a line there is taken.
fn xtext(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                decoded.push(u8::try_from(high << 4 | low).ok()?);
            }
            b'=' => return None,
            byte => decoded.push(byte),
        }
    }
    let decoded = String::from_utf8(decoded).ok()?;
    let clean = !decoded.is_empty() && !decoded.chars().any(char::is_control);
    clean.then_some(decoded)
}
