//! A message as it moves: an envelope that the spooler reads, and a body that it never decodes.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{ids::MessageId, properties::Property, time::UnixMillis};

/// The address type of Internet mail.
pub const SMTP: &str = "SMTP";

/// Everything about a message but its content. Written once by the door, read by all, changed by nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The message's name.
    pub id: MessageId,
    /// What kind of message this is (PR_MESSAGE_CLASS).
    pub class: MessageClass,
    /// The reverse-path without angle brackets; empty is the null reverse-path (RFC 5321 4.5.5).
    pub sender: String,
    /// Who gets a copy. At most [`RECIPIENTS_MAX`].
    pub recipients: Vec<Recipient>,
    /// PR_PRIORITY.
    pub priority: Priority,
    /// PR_CLIENT_SUBMIT_TIME: when the door took it.
    pub submitted_at: UnixMillis,
    /// PR_DEFERRED_SEND_TIME: not before.
    pub deferred_until: Option<UnixMillis>,
    /// PR_EXPIRY_TIME: not after.
    pub expires_at: Option<UnixMillis>,
    /// RFC 3461 RET: how much of the message a report returns.
    pub report_return: ReportReturn,
    /// RFC 3461 ENVID, decoded.
    pub envelope_id: Option<String>,
    /// How the body must be treated on the way.
    pub content: Content,
    /// Which door it came through and from whom.
    pub source: Source,
    /// Where the body is.
    pub body: Body,
    /// What else it carries. Transports see only the transmittable ones.
    pub properties: Vec<Property>,
}

/// PR_MESSAGE_CLASS, as far as the spooler distinguishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageClass {
    /// `IPM.Note`
    #[default]
    Note,
    /// `REPORT.IPM.Note.NDR`
    NonDeliveryReport,
    /// `REPORT.IPM.Note.DR`
    DeliveryReport,
    /// `REPORT.IPM.Note.Delayed`: still trying.
    DelayReport,
}

impl MessageClass {
    /// Whether this is a report; there is never a report about a report.
    pub fn is_report(self) -> bool {
        self != Self::Note
    }

    /// The name in PR_MESSAGE_CLASS.
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "IPM.Note",
            Self::NonDeliveryReport => "REPORT.IPM.Note.NDR",
            Self::DeliveryReport => "REPORT.IPM.Note.DR",
            Self::DelayReport => "REPORT.IPM.Note.Delayed",
        }
    }
}

/// One recipient's copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// PR_ADDRTYPE, upper case.
    pub address_type: String,
    /// PR_EMAIL_ADDRESS: for SMTP a mailbox without angle brackets, the domain in lower case.
    pub address: String,
    /// Which reports the sender asked for (RFC 3461 NOTIFY).
    pub notify: Notify,
    /// RFC 3461 ORCPT as `type;address`, decoded.
    pub original_recipient: Option<String>,
    /// MAPI_P1: used for addressing and never shown.
    pub resend: bool,
}

impl Recipient {
    /// A recipient of Internet mail with the usual notifications.
    pub fn smtp(address: impl Into<String>) -> Self {
        Self {
            address_type: SMTP.to_owned(),
            address: address.into(),
            notify: Notify::default(),
            original_recipient: None,
            resend: false,
        }
    }

    /// The part after the last `@`, in lower case; the whole address if there is none.
    pub fn domain(&self) -> &str {
        self.address
            .rsplit_once('@')
            .map_or(self.address.as_str(), |(_, domain)| domain)
    }
}

/// RFC 3461 NOTIFY. The default (nothing asked) reports failure and delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// PR_ORIGINATOR_DELIVERY_REPORT_REQUESTED
    pub success: bool,
    /// PR_ORIGINATOR_NON_DELIVERY_REPORT_REQUESTED
    pub failure: bool,
    /// Tell when it takes long.
    pub delay: bool,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            success: false,
            failure: true,
            delay: true,
        }
    }
}

impl Notify {
    /// NOTIFY=NEVER
    pub const NEVER: Self = Self {
        success: false,
        failure: false,
        delay: false,
    };
}

/// PR_PRIORITY. Each has its own queue in the spool.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// 1: ahead of all others.
    Urgent,
    /// 0
    #[default]
    Normal,
    /// -1: when nothing else wants to go.
    Bulk,
}

impl Priority {
    /// All, most urgent first.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::Normal, Self::Bulk];

    /// The last part of its queue's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Normal => "normal",
            Self::Bulk => "bulk",
        }
    }
}

impl std::str::FromStr for Priority {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|priority| priority.name() == text)
            .ok_or("one of urgent, normal, bulk")
    }
}

/// RFC 3461 RET.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportReturn {
    /// The original's headers.
    #[default]
    Headers,
    /// The whole original (only in reports of failure, and only while it is small).
    Full,
}

/// What the body may contain, as the client declared it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// RFC 6152 BODY=8BITMIME, or eight-bit bytes were seen.
    pub eight_bit: bool,
    /// RFC 6531 SMTPUTF8: addresses or headers need it.
    pub smtputf8: bool,
}

/// Where a message came from; for traces and logs, and for Received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The door: a transport's name, `submit`, or `report`.
    pub door: String,
    /// Who brought it: client address, user, file name. At most 255 bytes.
    pub client: String,
    /// The id of the message that this one is about (reports only).
    pub about: Option<MessageId>,
}

/// Where the content is. Inline, it follows the envelope; otherwise it lies in the blob store under the message's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Behind the envelope, this many bytes.
    Inline {
        /// Size in bytes.
        size: u64,
    },
    /// In the blob store.
    Blob {
        /// Size in bytes.
        size: u64,
    },
}

impl Body {
    /// Size in bytes.
    pub fn size(self) -> u64 {
        match self {
            Self::Inline { size } | Self::Blob { size } => size,
        }
    }
}

/// More recipients than this are refused at the door (SMTP 452 4.5.3, RFC 5321 4.5.3.1.8 asks for at least 100).
pub const RECIPIENTS_MAX: usize = 10_000;
/// The default limit on one message (552 5.3.4 above it).
pub const BODY_BYTES_MAX: u64 = 50 * 1024 * 1024;
/// The default size above which a body goes to the blob store.
pub const INLINE_BYTES_MAX: usize = 32 * 1024;
/// A message that is neither delivered nor given up by then is expired, if its retry schedule says nothing shorter.
pub const LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);

/// An envelope with what follows it: what the spool, the outbox and SubmitMessage carry.
///
/// The bytes are kept as they came, so that passing a message on copies and re-encodes nothing.
#[derive(Clone, Debug)]
pub struct Message {
    /// The envelope, decoded.
    pub envelope: std::sync::Arc<Envelope>,
    /// The whole message as encoded ([`crate::frame::encode_message`]).
    pub encoded: Bytes,
    /// The inline body: the tail of `encoded`; empty if the body is a blob.
    pub inline: Bytes,
}
