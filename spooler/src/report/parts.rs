//! The parts of a multipart/report, and how they are put together.

use std::collections::HashSet;

use memchr::memmem;
use pombo_proto::message::SMTP;

use super::{
    About, Rendered, Report, date, header_of,
    text::{self, Needs, field, paragraph},
};
use crate::{progress::RecipientState, verdict::ReportKind};

/// People read the first of very many; programs get all.
const SHOWN_MAX: usize = 100;

/// The text for people (and PR_REPORT_TEXT), with CRLF line ends.
pub(super) fn human(report: &Report<'_>) -> String {
    let mut out = String::new();
    let host = text::host(report.reporter.host);
    paragraph(&mut out, "", &format!("This is the mail system at {host}."));
    out.push_str("\r\n");
    paragraph(&mut out, "", introduction(report.kind));
    if report.kind == ReportKind::Delay {
        let until = format!(
            "It will be tried until {}. There is nothing for you to do.",
            date(report.reporter.retry_until)
        );
        paragraph(&mut out, "", &until);
    }
    for about in report.about.iter().take(SHOWN_MAX) {
        out.push_str("\r\n");
        human_recipient(&mut out, about);
    }
    let more = report.about.len().saturating_sub(SHOWN_MAX);
    if more > 0 {
        out.push_str("\r\n");
        let words = format!("... and {more} more, all of which are in the attached status.");
        paragraph(&mut out, "", &words);
    }
    out
}

fn introduction(kind: ReportKind) -> &'static str {
    match kind {
        ReportKind::Failure => {
            "Your message could not be delivered to the following recipients, and it will not be tried again. \
             What is known of the reasons stands below each; the start of your message is attached."
        }
        ReportKind::Delay => "Your message has not yet been delivered to the following recipients.",
        ReportKind::Success => "Your message was delivered to the following recipients.",
        ReportKind::Relayed => {
            "Your message was handed on towards the following recipients. Whether you hear of its delivery is up to \
             the systems that it was handed to."
        }
    }
}

fn human_recipient(out: &mut String, about: &About<'_>) {
    paragraph(out, "", &format!("<{}>", about.recipient.address));
    if let Some(diagnosis) = about.diagnosis() {
        paragraph(out, "    ", &diagnosis.text);
    }
    let said = match about.remote() {
        (Some(remote), Some(reply)) => format!("{remote} said: {reply}"),
        (Some(remote), None) => format!("The remote system was {remote}."),
        (None, Some(reply)) => format!("The remote system said: {reply}"),
        (None, None) => return,
    };
    paragraph(out, "    ", &said);
}

/// message/delivery-status (RFC 3464 2.1), or its international form (RFC 6533 4).
fn status(report: &Report<'_>) -> String {
    let mut out = String::new();
    let write = Writer {
        international: report.international,
    };
    if let Some(id) = &report.original.envelope_id {
        write.field(&mut out, "Original-Envelope-Id", id);
    }
    let host = text::host(report.reporter.host);
    write.field(&mut out, "Reporting-MTA", &format!("dns; {host}"));
    write.field(
        &mut out,
        "Arrival-Date",
        &date(report.original.submitted_at),
    );
    write.field(&mut out, "X-Pombo-Message", &report.original.id.to_string());
    for about in &report.about {
        out.push_str("\r\n");
        status_of(&mut out, &write, report, about);
    }
    out
}

fn status_of(out: &mut String, write: &Writer, report: &Report<'_>, about: &About<'_>) {
    let original = about.recipient.original_recipient.as_deref();
    if let Some((kind, address)) = original.and_then(|text| text.split_once(';')) {
        let value = format!("{}; {}", address_type(kind), text::line(address));
        write.field(out, "Original-Recipient", &value);
    }
    let recipient = about.recipient;
    let kind = match recipient.address_type.as_str() {
        SMTP if recipient.address.is_ascii() => "rfc822".to_owned(),
        SMTP => "utf-8".to_owned(),
        other => format!("x-{}", address_type(other)),
    };
    let value = format!("{kind}; {}", recipient.address);
    write.field(out, "Final-Recipient", &value);
    write.field(out, "Action", action(report.kind));
    write.field(out, "Status", &about.status(report.kind).to_string());
    let (remote, reply) = about.remote();
    if let Some(remote) = remote {
        let value = format!("dns; {}", text::host(&remote));
        write.field(out, "Remote-MTA", &value);
    }
    let own = || about.diagnosis().map(|diagnosis| &diagnosis.text);
    if let Some(reply) = reply {
        write.field(out, "Diagnostic-Code", &format!("smtp; {reply}"));
    } else if let Some(words) = own() {
        write.field(out, "Diagnostic-Code", &format!("x-pombo; {words}"));
    }
    let last = match &about.known.state {
        RecipientState::Delivered(delivery) => Some(delivery.at),
        _ => about.known.tried_at,
    };
    if let Some(last) = last {
        write.field(out, "Last-Attempt-Date", &date(last));
    }
    if report.kind == ReportKind::Delay {
        let until = date(report.reporter.retry_until);
        write.field(out, "Will-Retry-Until", &until);
    }
}

fn action(kind: ReportKind) -> &'static str {
    match kind {
        ReportKind::Failure => "failed",
        ReportKind::Delay => "delayed",
        ReportKind::Success => "delivered",
        ReportKind::Relayed => "relayed",
    }
}

/// An address type as an atom.
fn address_type(text: &str) -> String {
    let safe = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let kind: String = text.trim().chars().filter(safe).take(40).collect();
    kind.to_ascii_lowercase()
}

struct Writer {
    international: bool,
}

impl Writer {
    fn field(&self, out: &mut String, name: &str, value: &str) {
        if self.international {
            field(out, name, value);
        } else {
            field(out, name, &text::ascii_line(value));
        }
    }
}

/// One part, encoded as it has to be.
struct Part {
    content_type: &'static str,
    description: &'static str,
    transfer: &'static str,
    body: Vec<u8>,
}

impl Part {
    /// A part of a type that may be encoded.
    fn encoded(content_type: &'static str, description: &'static str, body: Vec<u8>) -> Self {
        let (transfer, body) = match text::needs(&body) {
            Needs::SevenBit => ("7bit", body),
            Needs::EightBit | Needs::Encoding => {
                ("quoted-printable", text::quoted_printable(&body))
            }
        };
        Self {
            content_type,
            description,
            transfer,
            body,
        }
    }
}

/// The original, or its header; `None`: nothing of it is at hand.
fn returned(report: &Report<'_>) -> Option<Part> {
    if let Some(whole) = report.returned_whole() {
        let description = "Undelivered message";
        if report.international {
            let body = whole.to_vec();
            return Some(Part::encoded("message/global", description, body));
        }
        // message/rfc822 may not be encoded (RFC 2046 5.2.1); what does not travel as it is goes without its body.
        let transfer = match text::needs(whole) {
            Needs::SevenBit => Some("7bit"),
            Needs::EightBit => Some("8bit"),
            Needs::Encoding => None,
        };
        if let Some(transfer) = transfer {
            return Some(Part {
                content_type: "message/rfc822",
                description,
                transfer,
                body: whole.to_vec(),
            });
        }
    }
    let header = text::with_crlf(header_of(report.head));
    let content_type = if report.international {
        "message/global-headers"
    } else {
        "text/rfc822-headers"
    };
    let description = "Headers of the message";
    (!header.is_empty()).then(|| Part::encoded(content_type, description, header))
}

/// The whole body of the report, with CRLF line ends throughout.
pub(super) fn render(report: &Report<'_>, human: &str) -> Rendered {
    let status_type = if report.international {
        "message/global-delivery-status"
    } else {
        "message/delivery-status"
    };
    let mut parts = vec![
        Part::encoded(
            "text/plain; charset=utf-8",
            "Report",
            human.as_bytes().to_vec(),
        ),
        Part::encoded(status_type, "Delivery report", status(report).into_bytes()),
    ];
    parts.extend(returned(report));
    let boundary = boundary(report, &parts);
    let eight_bit = parts.iter().any(|part| part.transfer == "8bit");

    let mut out = header(report, &boundary, eight_bit).into_bytes();
    out.extend_from_slice(b"\r\nThis is a delivery report in MIME format.\r\n");
    for part in &parts {
        let mut head = format!("\r\n--{boundary}\r\n");
        field(&mut head, "Content-Type", part.content_type);
        field(&mut head, "Content-Description", part.description);
        field(&mut head, "Content-Transfer-Encoding", part.transfer);
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&part.body);
    }
    out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    Rendered {
        bytes: out.into(),
        // A To field in UTF-8 is eight bits wide, too.
        eight_bit: eight_bit || !report.original.sender.is_ascii(),
    }
}

fn header(report: &Report<'_>, boundary: &str, eight_bit: bool) -> String {
    let mut out = String::new();
    let host = text::host(report.reporter.host);
    let sender = text::line(&report.original.sender);
    field(&mut out, "Date", &date(report.reporter.now));
    let from = format!("Mail Delivery System <MAILER-DAEMON@{host}>");
    field(&mut out, "From", &from);
    field(&mut out, "To", &format!("<{sender}>"));
    field(&mut out, "Subject", report.title());
    let id = format!("<{}@{host}>", report.reporter.id);
    field(&mut out, "Message-ID", &id);
    if let Some(about) = &report.message_id {
        field(&mut out, "In-Reply-To", &format!("<{about}>"));
        field(&mut out, "References", &format!("<{about}>"));
    }
    // RFC 3834: so that no vacation notice answers.
    field(&mut out, "Auto-Submitted", "auto-replied");
    field(&mut out, "MIME-Version", "1.0");
    let content_type =
        format!("multipart/report; report-type=delivery-status; boundary=\"{boundary}\"");
    field(&mut out, "Content-Type", &content_type);
    let transfer = if eight_bit { "8bit" } else { "7bit" };
    field(&mut out, "Content-Transfer-Encoding", transfer);
    out
}

/// A boundary that occurs in no part; `=_` never does in quoted-printable. Found in one pass: whoever knows the id can put as
/// many boundaries in the way as there is room for.
fn boundary(report: &Report<'_>, parts: &[Part]) -> String {
    let stem = format!("=_{}", report.reporter.id);
    let finder = memmem::Finder::new(&stem);
    let mut occurs = false;
    let mut taken = HashSet::new();
    for part in parts {
        for at in finder.find_iter(&part.body) {
            occurs = true;
            take_turns(&part.body[at + stem.len()..], &mut taken);
        }
    }
    if !occurs {
        return stem;
    }
    let mut turn = 1;
    while taken.contains(&turn) {
        turn += 1;
    }
    format!("{stem}_{turn}")
}

/// Longer numbers are never reached: a part would have to hold all shorter ones.
const TURN_DIGITS_MAX: usize = 9;

/// Adds every number that stands at the start of what follows the boundary's stem: in `_12`, both 12 and 1.
fn take_turns(rest: &[u8], taken: &mut HashSet<u32>) {
    let digits = rest.strip_prefix(b"_").unwrap_or_default();
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let mut turn = 0;
    for digit in digits.take(TURN_DIGITS_MAX) {
        turn = turn * 10 + u32::from(digit - b'0');
        // A leading zero is in no number of ours.
        if turn == 0 {
            return;
        }
        taken.insert(turn);
    }
}
