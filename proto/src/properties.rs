//! The MAPI properties that Pombo itself reads or writes.
//!
//! A tag is `id << 16 | type` ([MS-OXPROPS]; types in [MS-OXCDATA] 2.11.1). Everything else that a message carries
//! is passed through unread.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::time::UnixMillis;

/// A property tag: id in the upper, type in the lower 16 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PropTag(pub u32);

impl PropTag {
    /// The property's id.
    pub fn id(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether a transport may send the property (MAPI's `FIsTransmittable`). Others never leave the spooler,
    /// and are never accepted from outside.
    pub fn is_transmittable(self) -> bool {
        let id = self.id();
        !(0x0e00..0x8000).contains(&id)
            || (0x1000..0x6000).contains(&id)
            || (0x6800..0x7c00).contains(&id)
    }
}

impl std::fmt::Debug for PropTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{:08X}", self.0)
    }
}

/// A property's value, in the types that Pombo reads or writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PropValue {
    /// PT_LONG
    Long(i32),
    /// PT_BOOLEAN
    Boolean(bool),
    /// PT_SYSTIME
    Time(UnixMillis),
    /// PT_UNICODE
    Text(String),
    /// PT_BINARY
    Binary(Bytes),
}

/// One property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// Which.
    pub tag: PropTag,
    /// Its value.
    pub value: PropValue,
}

const LONG: u32 = 0x0003;
const BOOLEAN: u32 = 0x000b;
const UNICODE: u32 = 0x001f;
const SYSTIME: u32 = 0x0040;
const BINARY: u32 = 0x0102;

macro_rules! tags {
    ($($name:ident = $id:literal, $type:ident, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: PropTag = PropTag(($id << 16) | $type);)*

        /// The canonical name of a tag that Pombo knows.
        pub fn name(tag: PropTag) -> Option<&'static str> {
            match tag {
                $($name => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

tags! {
    PR_DELIVER_TIME = 0x0010, SYSTIME, "When a recipient's copy was delivered.";
    PR_EXPIRY_TIME = 0x0015, SYSTIME, "Not to be delivered after this.";
    PR_MESSAGE_CLASS = 0x001a, UNICODE, "`IPM.Note`, `REPORT.IPM.Note.NDR`, ...";
    PR_ORIGINATOR_DELIVERY_REPORT_REQUESTED = 0x0023, BOOLEAN, "The sender wants to hear of deliveries.";
    PR_PRIORITY = 0x0026, LONG, "1 urgent, 0 normal, -1 non-urgent.";
    PR_REPORT_TIME = 0x0032, SYSTIME, "When the reported event happened.";
    PR_SUBJECT = 0x0037, UNICODE, "The subject.";
    PR_CLIENT_SUBMIT_TIME = 0x0039, SYSTIME, "When the client submitted the message.";
    PR_PROVIDER_SUBMIT_TIME = 0x0048, SYSTIME, "When a transport took the message to send it.";
    PR_ORIGINAL_SUBJECT = 0x0049, UNICODE, "The subject of the message that a report is about.";
    PR_ORIGINAL_SUBMIT_TIME = 0x004e, SYSTIME, "The submit time of the message that a report is about.";
    PR_NDR_REASON_CODE = 0x0c04, LONG, "Why a copy was not delivered: transfer failed, not able to, not given, ...";
    PR_NDR_DIAG_CODE = 0x0c05, LONG, "The X.400 diagnostic that goes with the reason.";
    PR_ORIGINATOR_NON_DELIVERY_REPORT_REQUESTED = 0x0c08, BOOLEAN, "The sender wants to hear of failures.";
    PR_RECIPIENT_TYPE = 0x0c15, LONG, "To, Cc, Bcc, or resend (MAPI_P1).";
    PR_SUPPLEMENTARY_INFO = 0x0c1b, UNICODE, "The foreign system's own words.";
    PR_DELETE_AFTER_SUBMIT = 0x0e01, BOOLEAN, "Delete instead of filing once sent.";
    PR_SENTMAIL_ENTRYID = 0x0e0a, BINARY, "Where the sent message is filed.";
    PR_RESPONSIBILITY = 0x0e0f, BOOLEAN, "FALSE: this transport should consider the recipient.";
    PR_REPORT_TEXT = 0x1001, UNICODE, "A report's text for people.";
    PR_ADDRTYPE = 0x3002, UNICODE, "The address type, as in `SMTP`.";
    PR_EMAIL_ADDRESS = 0x3003, UNICODE, "The address, in the form of its type.";
    PR_DEFERRED_SEND_TIME = 0x3fef, SYSTIME, "Not to be sent before this.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_store_is_never_transmitted() {
        for tag in [
            PR_RESPONSIBILITY,
            PR_DELETE_AFTER_SUBMIT,
            PR_SENTMAIL_ENTRYID,
        ] {
            assert!(!tag.is_transmittable(), "{}", name(tag).unwrap());
        }
        for tag in [
            PR_SUBJECT,
            PR_NDR_REASON_CODE,
            PR_DEFERRED_SEND_TIME,
            PropTag(0x8001_001f),
        ] {
            assert!(tag.is_transmittable(), "{tag:?}");
        }
    }
}
