//! Reports: RFC 3464 multipart/report about an original message, as a new message to its sender.
//!
//! Three parts: a text for people, message/delivery-status for programs, and the original's headers (or all of it, where it
//! is small, its sender asked for it by RET=FULL, and it was not delivered). Where an address needs it, the parts are those
//! of RFC 6533. The reverse-path is null and NOTIFY is NEVER, so that nothing is ever reported about a report.
//!
//! # MAPI properties
//! On the message: PR_MESSAGE_CLASS, PR_SUBJECT, PR_REPORT_TIME, PR_REPORT_TEXT, PR_ORIGINAL_SUBJECT and
//! PR_ORIGINAL_SUBMIT_TIME. Behind them one group per recipient, each beginning with PR_ADDRTYPE: PR_EMAIL_ADDRESS, then in
//! a report of failure PR_NDR_REASON_CODE and PR_NDR_DIAG_CODE, in one of delivery PR_DELIVER_TIME, and wherever the foreign
//! system said something PR_SUPPLEMENTARY_INFO. [`recipient_groups`] takes them apart.
//!
//! # What comes from outside
//! Addresses, remote replies and the original's header are hostile until shown otherwise. Each text loses its control
//! characters before it stands in a header field or a line of its own (`text`); the boundary is one that occurs in no part.

mod parts;
#[cfg(test)]
mod tests;
mod text;

use bytes::Bytes;
use mail_parser::{DateTime, MessageParser};
use memchr::memchr;
use pombo_proto::{
    frame::encode_message,
    ids::{MessageId, RecipientIndex},
    message::{
        Body, Content, Envelope, Message, MessageClass, Notify, Priority, Recipient, ReportReturn,
        Source,
    },
    outcome::{Delivery, Diagnosis, EnhancedStatus, TEXT_BYTES_MAX},
    properties::{self as prop, PropTag, PropValue, Property},
    time::UnixMillis,
};

use crate::{
    progress::{Progress, RecipientProgress, RecipientState},
    verdict::{ReportKind, ReportSpec},
};

/// A header longer than this is returned cut at a line's end.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// An original above this is not returned whole: the report stays below the size from which bodies go to the blob store.
const RETURNED_BYTES_MAX: usize = 24 * 1024;

/// Who reports, when, and under which id.
#[derive(Clone, Copy, Debug)]
pub struct Reporter<'a> {
    /// The reporting MTA's host name.
    pub host: &'a str,
    /// Now.
    pub now: UnixMillis,
    /// The report's own id: [`ReportSpec::id`].
    pub id: MessageId,
    /// Until when it is tried: [`crate::schedule::Schedule::expires_at`]. Told in reports of delay.
    pub retry_until: UnixMillis,
}

/// Makes a report, ready for the outbox.
///
/// `head` is the original's body, or as much of its beginning as is at hand: at least the header, for a report that returns
/// it. It may be empty (a body that is gone); then nothing is returned, and the report is made all the same.
pub fn build(
    reporter: &Reporter<'_>,
    original: &Envelope,
    head: &[u8],
    spec: &ReportSpec,
    progress: &Progress,
) -> Message {
    let report = Report::new(reporter, original, head, spec, progress);
    let human = parts::human(&report);
    let rendered = parts::render(&report, &human);
    let envelope = Envelope {
        id: reporter.id,
        class: report.class(),
        sender: String::new(),
        recipients: vec![Recipient {
            notify: Notify::NEVER,
            ..Recipient::smtp(original.sender.clone())
        }],
        priority: match original.priority {
            Priority::Bulk => Priority::Bulk,
            Priority::Urgent | Priority::Normal => Priority::Normal,
        },
        submitted_at: reporter.now,
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content {
            eight_bit: rendered.eight_bit,
            smtputf8: !original.sender.is_ascii(),
        },
        source: Source {
            door: "report".to_owned(),
            client: String::new(),
            about: Some(original.id),
        },
        body: Body::Inline {
            size: rendered.bytes.len() as u64,
        },
        properties: report.properties(human),
    };
    encode_message(envelope, &rendered.bytes)
}

/// The groups of properties, one per recipient, of a report's envelope.
pub fn recipient_groups(properties: &[Property]) -> impl Iterator<Item = &[Property]> {
    let first = properties
        .iter()
        .position(|property| property.tag == prop::PR_ADDRTYPE)
        .unwrap_or(properties.len());
    properties[first..].chunk_by(|_, next| next.tag != prop::PR_ADDRTYPE)
}

/// All that the parts are made of.
struct Report<'a> {
    reporter: &'a Reporter<'a>,
    original: &'a Envelope,
    /// The original's body as far as it is at hand.
    head: &'a [u8],
    kind: ReportKind,
    about: Vec<About<'a>>,
    /// Decoded, without control characters.
    subject: String,
    /// The original's Message-ID without angle brackets, if it is a harmless one.
    message_id: Option<String>,
    /// Whether an address or the original needs RFC 6533.
    international: bool,
}

/// One recipient that is reported.
struct About<'a> {
    recipient: &'a Recipient,
    known: &'a RecipientProgress,
}

impl<'a> Report<'a> {
    fn new(
        reporter: &'a Reporter<'a>,
        original: &'a Envelope,
        head: &'a [u8],
        spec: &ReportSpec,
        progress: &'a Progress,
    ) -> Self {
        let about: Vec<About<'a>> = spec
            .recipients
            .iter()
            .filter_map(|index: &RecipientIndex| {
                Some(About {
                    recipient: original.recipients.get(index.get())?,
                    known: progress.recipients.get(index.get())?,
                })
            })
            .collect();
        let header = header_of(head);
        let parsed = MessageParser::new().parse_headers(header);
        let subject = parsed
            .as_ref()
            .and_then(|message| message.subject())
            .map(|subject| text::clipped(text::line(subject), TEXT_BYTES_MAX))
            .unwrap_or_default();
        let message_id = parsed
            .as_ref()
            .and_then(|message| message.message_id())
            .filter(|id| text::is_message_id(id))
            .map(str::to_owned);
        let ascii = |about: &About<'_>| about.recipient.address.is_ascii();
        Self {
            reporter,
            original,
            head,
            kind: spec.kind,
            international: original.content.smtputf8 || !about.iter().all(ascii),
            about,
            subject,
            message_id,
        }
    }

    fn class(&self) -> MessageClass {
        match self.kind {
            ReportKind::Failure => MessageClass::NonDeliveryReport,
            ReportKind::Delay => MessageClass::DelayReport,
            ReportKind::Success | ReportKind::Relayed => MessageClass::DeliveryReport,
        }
    }

    fn title(&self) -> &'static str {
        match self.kind {
            ReportKind::Failure => "Undelivered mail returned to sender",
            ReportKind::Delay => "Delayed mail (still being tried)",
            ReportKind::Success => "Delivery report: delivered",
            ReportKind::Relayed => "Delivery report: relayed",
        }
    }

    /// The whole original, if it is to be returned whole.
    fn returned_whole(&self) -> Option<&'a [u8]> {
        let wanted =
            self.kind == ReportKind::Failure && self.original.report_return == ReportReturn::Full;
        let complete = self.head.len() as u64 == self.original.body.size();
        let small = !self.head.is_empty() && self.head.len() <= RETURNED_BYTES_MAX;
        (wanted && complete && small).then_some(self.head)
    }

    fn properties(&self, human: String) -> Vec<Property> {
        let text = |text: &str| PropValue::Text(text.to_owned());
        let mut properties = vec![
            property(prop::PR_MESSAGE_CLASS, text(self.class().name())),
            property(prop::PR_SUBJECT, text(self.title())),
            property(prop::PR_REPORT_TIME, PropValue::Time(self.reporter.now)),
            property(prop::PR_REPORT_TEXT, PropValue::Text(human)),
            property(prop::PR_ORIGINAL_SUBJECT, text(&self.subject)),
            property(
                prop::PR_ORIGINAL_SUBMIT_TIME,
                PropValue::Time(self.original.submitted_at),
            ),
        ];
        for about in &self.about {
            about.properties(&mut properties);
        }
        properties
    }
}

impl About<'_> {
    /// Why it was not delivered, or not yet.
    fn diagnosis(&self) -> Option<&Diagnosis> {
        match &self.known.state {
            RecipientState::Failed { diagnosis, .. }
            | RecipientState::Expired { diagnosis, .. } => Some(diagnosis),
            RecipientState::Pending { .. } | RecipientState::Kept { .. } => {
                self.known.last.as_ref()
            }
            RecipientState::Delivered(_) | RecipientState::Cancelled { .. } => None,
        }
    }

    fn delivery(&self) -> Option<&Delivery> {
        match &self.known.state {
            RecipientState::Delivered(delivery) => Some(delivery),
            _ => None,
        }
    }

    /// The remote server and its own words.
    fn remote(&self) -> (Option<String>, Option<String>) {
        let (remote, reply) = match (self.delivery(), self.diagnosis()) {
            (Some(delivery), _) => (Some(&delivery.remote), Some(&delivery.reply)),
            (None, Some(diagnosis)) => (diagnosis.remote.as_ref(), diagnosis.reply.as_ref()),
            (None, None) => (None, None),
        };
        let line = |text: Option<&String>| {
            text.map(|text| text::clipped(text::line(text), TEXT_BYTES_MAX))
                .filter(|text| !text.is_empty())
        };
        (line(remote), line(reply))
    }

    fn status(&self, kind: ReportKind) -> EnhancedStatus {
        let said = self.diagnosis().map(|diagnosis| diagnosis.status);
        match kind {
            ReportKind::Success | ReportKind::Relayed => EnhancedStatus::new(2, 0, 0),
            ReportKind::Delay => said
                .filter(|status| status.class == 4)
                .unwrap_or(EnhancedStatus::new(4, 0, 0)),
            ReportKind::Failure => said
                .filter(|status| matches!(status.class, 4 | 5))
                .unwrap_or(EnhancedStatus::new(5, 0, 0)),
        }
    }

    fn properties(&self, properties: &mut Vec<Property>) {
        let text = |text: &str| PropValue::Text(text::clipped(text.to_owned(), TEXT_BYTES_MAX));
        properties.push(property(
            prop::PR_ADDRTYPE,
            text(&self.recipient.address_type),
        ));
        properties.push(property(
            prop::PR_EMAIL_ADDRESS,
            text(&self.recipient.address),
        ));
        if let (Some(diagnosis), true) = (self.diagnosis(), self.known.state.is_decided()) {
            let reason = PropValue::Long(diagnosis.reason.code());
            properties.push(property(prop::PR_NDR_REASON_CODE, reason));
            let code = PropValue::Long(diagnostic_code(diagnosis.status));
            properties.push(property(prop::PR_NDR_DIAG_CODE, code));
        }
        if let Some(delivery) = self.delivery() {
            let at = PropValue::Time(delivery.at);
            properties.push(property(prop::PR_DELIVER_TIME, at));
        }
        let (_, reply) = self.remote();
        let own = || {
            self.diagnosis()
                .map(|diagnosis| text::line(&diagnosis.text))
        };
        if let Some(said) = reply.or_else(own) {
            properties.push(property(prop::PR_SUPPLEMENTARY_INFO, text(&said)));
        }
    }
}

fn property(tag: PropTag, value: PropValue) -> Property {
    Property { tag, value }
}

/// PR_NDR_DIAG_CODE: the X.400 diagnostic (MAPI_DIAG_*, in MAPIDEFS.H) that comes nearest to an enhanced status code.
fn diagnostic_code(status: EnhancedStatus) -> i32 {
    match (status.subject, status.detail) {
        // Bad destination mailbox, system or syntax; mailbox has moved: OR_NAME_UNRECOGNIZED.
        (1, 1..=3 | 6 | 10) => 0,
        // OR_NAME_AMBIGUOUS
        (1, 4) => 1,
        // Congestion, system full: MTS_CONGESTED.
        (4, 5) | (3, 1) => 2,
        // LOOP_DETECTED
        (4, 6) => 3,
        // Mailbox disabled, full, or its host does not answer: RECIPIENT_UNAVAILABLE.
        (2, 1 | 2) | (4, 1) => 4,
        // MAXIMUM_TIME_EXPIRED
        (4, 7) => 5,
        // CONTENT_TOO_LONG
        (2 | 3, 3 | 4) => 7,
        // Conversion required and not possible: IMPRACTICAL_TO_CONVERT; prohibited: PROHIBITED_TO_CONVERT.
        (6, 2) => 9,
        (6, _) => 8,
        // TOO_MANY_RECIPIENTS
        (5, 3) => 16,
        // NO_DIAGNOSTIC
        _ => -1,
    }
}

/// A message's header: everything before the first empty line, in whatever line ends it has; cut at a line's end where it
/// is too long or not all at hand.
fn header_of(head: &[u8]) -> &[u8] {
    let head = &head[..head.len().min(HEADER_BYTES_MAX)];
    let mut at = 0;
    while let Some(length) = memchr(b'\n', &head[at..]) {
        let line = &head[at..at + length];
        if line.is_empty() || line == b"\r" {
            return &head[..at];
        }
        at += length + 1;
    }
    if at == 0 { head } else { &head[..at] }
}

/// A date as in RFC 5322 3.3, in UTC.
fn date(at: UnixMillis) -> String {
    // An hour before the year 10000: no date beyond it can be written.
    let seconds = (at.0 / 1_000).min(253_402_297_200);
    DateTime::from_timestamp(seconds as i64).to_rfc822()
}

/// The bytes of a finished body.
struct Rendered {
    bytes: Bytes,
    eight_bit: bool,
}
