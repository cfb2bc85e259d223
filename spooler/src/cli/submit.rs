//! `pombo submit`, which can stand in for `sendmail`.

use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use mail_parser::{Address, MessageParser};
use pombo_proto::{
    control::{Answer, Question, Submission},
    message::{Notify, Priority, ReportReturn},
    time::UnixMillis,
};
use uuid::Uuid;

use super::{Error, client::Client, show};

/// One part of an upload: well below the largest packet.
const PART_BYTES: usize = 1024 * 1024;
/// More is not even read. The spooler's own limit is lower, and says so.
const INPUT_BYTES_MAX: u64 = 256 * 1024 * 1024;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The recipients: mailboxes, or TYPE:address.
    recipients: Vec<String>,
    /// The message, instead of standard input.
    #[arg(long, short = 'm', value_name = "EML")]
    file: Option<PathBuf>,
    /// Recipients from To, Cc and Bcc; the Bcc field is taken out.
    #[arg(short = 't')]
    from_headers: bool,
    /// A line with a single dot does not end the message.
    #[arg(short = 'i')]
    ignore_dots: bool,
    /// The reverse-path; "" or <> for none. Default: the From field's address.
    #[arg(short = 'f', value_name = "ADDRESS")]
    sender: Option<String>,
    /// Options of sendmail: -oi is -i, all others are ignored.
    #[arg(short = 'o', value_name = "OPTION", hide = true)]
    options: Vec<String>,
    /// The sender's full name; ignored, for callers of sendmail.
    #[arg(short = 'F', hide = true)]
    full_name: Option<String>,
    /// Not before: a time (2026-12-24T18:00:00Z) or a while from now (10m).
    #[arg(long, value_parser = parse_when)]
    at: Option<UnixMillis>,
    /// Not after: a time or a while from now.
    #[arg(long, value_parser = parse_when)]
    expires: Option<UnixMillis>,
    /// urgent, normal or bulk.
    #[arg(long, default_value = "normal")]
    priority: Priority,
    /// Which reports: never, or some of success, failure, delay.
    #[arg(long, value_parser = parse_notify)]
    notify: Option<Notify>,
    /// How much of the message a report of failure returns: headers or full.
    #[arg(long = "return", value_parser = parse_return)]
    report_return: Option<ReportReturn>,
    /// Idempotence: the same key is the same message, however often it is submitted.
    #[arg(long)]
    key: Option<String>,
}

fn parse_when(text: &str) -> Result<UnixMillis, String> {
    let time = match humantime::parse_duration(text) {
        Ok(later) => SystemTime::now().checked_add(later),
        Err(_) => humantime::parse_rfc3339_weak(text).ok(),
    };
    time.map(UnixMillis::from)
        .ok_or_else(|| "a time (2026-12-24T18:00:00Z) or a while from now (10m)".to_owned())
}

fn parse_notify(text: &str) -> Result<Notify, String> {
    let mut notify = Notify::NEVER;
    for word in text.split(',') {
        match word.trim() {
            "success" => notify.success = true,
            "failure" => notify.failure = true,
            "delay" => notify.delay = true,
            "never" if text.trim() == "never" => {}
            _ => return Err("never, or some of success,failure,delay".to_owned()),
        }
    }
    Ok(notify)
}

fn parse_return(text: &str) -> Result<ReportReturn, String> {
    match text {
        "headers" | "hdrs" => Ok(ReportReturn::Headers),
        "full" => Ok(ReportReturn::Full),
        _ => Err("headers or full".to_owned()),
    }
}

pub(super) async fn submit(
    client: &mut Client,
    arguments: Arguments,
    json: bool,
) -> Result<bool, Error> {
    let ignore_dots = arguments.ignore_dots
        || arguments.file.is_some()
        || arguments.options.iter().any(|it| it.starts_with('i'));
    let raw = read(arguments.file.as_ref())?;
    let mut body = with_crlf(&raw, ignore_dots);
    let mut recipients = arguments.recipients;
    if arguments.from_headers {
        recipients.extend(header_recipients(&body));
        body = without_bcc(&body);
    }
    if recipients.is_empty() {
        let text = "there are no recipients: name some, or use -t".to_owned();
        return Err(Error::Usage(text));
    }
    let sender = match arguments.sender {
        Some(sender) => sender.trim_matches(['<', '>']).to_owned(),
        None => header_sender(&body).unwrap_or_default(),
    };
    let upload = Uuid::new_v4();
    send_parts(client, upload, &Bytes::from(body)).await?;
    let submission = Submission {
        sender,
        recipients,
        priority: arguments.priority,
        at: arguments.at,
        expires: arguments.expires,
        notify: arguments.notify.unwrap_or_default(),
        report_return: arguments.report_return.unwrap_or_default(),
        key: arguments.key,
        client: user(),
    };
    match client
        .ask_one(Question::Submit { upload, submission }, Bytes::new())
        .await?
    {
        Answer::Accepted { id } => show::accepted(id, json),
        other => return Err(super::unexpected(&other)),
    }
    Ok(true)
}

fn user() -> String {
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::current())
        .ok()
        .flatten();
    name.map_or_else(
        || format!("uid {}", nix::unistd::Uid::current()),
        |user| user.name,
    )
}

fn read(file: Option<&PathBuf>) -> Result<Vec<u8>, Error> {
    let mut raw = Vec::new();
    let result = match file {
        Some(path) => std::fs::File::open(path)
            .and_then(|file| file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut raw)),
        None => std::io::stdin()
            .take(INPUT_BYTES_MAX + 1)
            .read_to_end(&mut raw),
    };
    let name = file.map_or_else(
        || "standard input".to_owned(),
        |path| path.display().to_string(),
    );
    result.map_err(|error| Error::Usage(format!("{name}: {error}")))?;
    if raw.len() as u64 > INPUT_BYTES_MAX {
        return Err(Error::Refused(format!(
            "5.3.4 {name} is larger than {INPUT_BYTES_MAX} bytes"
        )));
    }
    Ok(raw)
}

async fn send_parts(client: &mut Client, upload: Uuid, body: &Bytes) -> Result<(), Error> {
    let long = body.len() > 4 * PART_BYTES && std::io::stderr().is_terminal();
    let bar = if long {
        ProgressBar::new(body.len() as u64)
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut offset = 0;
    loop {
        let part = body.slice(offset..body.len().min(offset + PART_BYTES));
        let asked = Question::Upload {
            upload,
            offset: offset as u64,
        };
        offset += part.len();
        client.ask_one(asked, part).await?;
        bar.set_position(offset as u64);
        if offset == body.len() {
            bar.finish_and_clear();
            return Ok(());
        }
    }
}

/// Mail has CRLF line ends; files often have LF. Lone LFs become CRLF, everything else stays as it is.
fn with_crlf(raw: &[u8], ignore_dots: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + raw.len() / 32);
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        let content = line.strip_suffix(b"\n").unwrap_or(line);
        let content = content.strip_suffix(b"\r").unwrap_or(content);
        if !ignore_dots && content == b"." {
            break;
        }
        if line.ends_with(b"\n") {
            out.extend_from_slice(content);
            out.extend_from_slice(b"\r\n");
        } else {
            out.extend_from_slice(line);
        }
    }
    out
}

fn header_recipients(body: &[u8]) -> Vec<String> {
    let Some(message) = MessageParser::new().parse_headers(body) else {
        return Vec::new();
    };
    [message.to(), message.cc(), message.bcc()]
        .into_iter()
        .flatten()
        .flat_map(addresses)
        .collect()
}

fn addresses(address: &Address<'_>) -> Vec<String> {
    address
        .iter()
        .filter_map(|it| it.address())
        .map(str::to_owned)
        .collect()
}

fn header_sender(body: &[u8]) -> Option<String> {
    let message = MessageParser::new().parse_headers(body)?;
    addresses(message.from()?).into_iter().next()
}

/// Blind copies stay blind.
fn without_bcc(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    let (mut in_header, mut dropping) = (true, false);
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        if in_header {
            in_header = line != b"\r\n";
            let continued = line
                .first()
                .is_some_and(|byte| matches!(byte, b' ' | b'\t'));
            if !continued {
                dropping = line
                    .get(..4)
                    .is_some_and(|name| name.eq_ignore_ascii_case(b"bcc:"));
            }
            if dropping && in_header {
                continue;
            }
        }
        out.extend_from_slice(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_line_feeds_become_crlf_and_nothing_else_changes() {
        let raw = b"a\nb\r\nc\rd\n\x00\n.\nrest";
        assert_eq!(with_crlf(raw, true), b"a\r\nb\r\nc\rd\r\n\x00\r\n.\r\nrest");
        assert_eq!(with_crlf(raw, false), b"a\r\nb\r\nc\rd\r\n\x00\r\n");
    }

    #[test]
    fn recipients_come_from_the_headers_and_blind_copies_stay_blind() {
        let body = b"From: Ann <ann@x.org>\r\nTo: b@y.org, C <c@y.org>\r\nBcc: d@y.org,\r\n e@y.org\r\nSubject: s\r\n\r\nbcc: not a header\r\n";
        let found = header_recipients(body);
        assert_eq!(found, ["b@y.org", "c@y.org", "d@y.org", "e@y.org"]);
        assert_eq!(header_sender(body).unwrap(), "ann@x.org");
        let without = String::from_utf8(without_bcc(body)).unwrap();
        assert_eq!(
            without,
            "From: Ann <ann@x.org>\r\nTo: b@y.org, C <c@y.org>\r\nSubject: s\r\n\r\nbcc: not a header\r\n"
        );
    }

    #[test]
    fn options_are_understood_or_refused() {
        assert_eq!(parse_notify("never"), Ok(Notify::NEVER));
        assert!(parse_notify("success,delay").unwrap().success);
        assert!(parse_notify("success,never").is_err());
        assert!(parse_when("10m").unwrap() > UnixMillis::now());
        assert!(parse_when("2026-12-24T18:00:00Z").is_ok());
        assert!(parse_when("soon").is_err());
    }
}
