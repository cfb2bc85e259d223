//! Trace context, as the W3C recommendation of that name has it: which trace a message belongs to, for those who follow it through
//! several systems.
//!
//! A message's trace is its id: the trace-id is the id's 16 bytes, written like the id in every log, answer and report. So it costs
//! nothing to carry: whoever has the id has the trace. What is published into the spool says it in the AMQP header
//! [`TRACEPARENT`]; a message that an application publishes with a trace of its own keeps that one.

use std::fmt;

use crate::ids::MessageId;

/// The AMQP header, as it is called in HTTP.
pub const TRACEPARENT: &str = "traceparent";
/// `00-` trace-id `-` parent-id `-` flags.
const LENGTH: usize = 55;
/// Whether anybody looks is not ours to say.
const SAMPLED: u8 = 1;

/// The value of a `traceparent` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    parent: u64,
    flags: u8,
}

impl TraceParent {
    /// Of a message that brought none.
    pub fn of(id: MessageId) -> Self {
        let trace = id.0.as_u128();
        Self {
            trace,
            // A door of our own has none above it: the second half of the id, which is never zero (it holds the UUID's variant).
            parent: trace as u64,
            flags: SAMPLED,
        }
    }

    /// What a header says, if it makes sense. Of later versions the beginning is read, as the recommendation asks.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (known, rest) = header.split_at_checked(LENGTH)?;
        let text = std::str::from_utf8(known).ok()?;
        let mut fields = text.split('-');
        let mut hex = |digits: usize| {
            let field = fields.next()?;
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let well_formed = field.len() == digits && field.bytes().all(lower);
            well_formed.then(|| u128::from_str_radix(field, 16).ok())?
        };
        let (version, trace, parent, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let ends = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.first().is_none_or(|byte| *byte == b'-'),
        };
        (ends && trace != 0 && parent != 0).then_some(Self {
            trace,
            parent: parent as u64,
            flags: flags as u8,
        })
    }

    /// Whether the message's id says as much.
    pub fn is_of(self, id: MessageId) -> bool {
        self.trace == id.0.as_u128()
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace,
            parent,
            flags,
        } = self;
        write!(f, "00-{trace:032x}-{parent:016x}-{flags:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::DoorSequence, time::UnixMillis};

    #[test]
    fn a_message_is_its_own_trace() {
        let issued = DoorSequence::default().issue(UnixMillis(1_700_000_000_000));
        for id in [issued, MessageId::derived("test", b"1")] {
            let text = TraceParent::of(id).to_string();
            assert_eq!(text[3..35], id.to_string());
            let read = TraceParent::parse(text.as_bytes()).unwrap();
            assert_eq!(read, TraceParent::of(id));
            assert!(read.is_of(id) && read.parent != 0);
        }
    }

    #[test]
    fn what_is_no_trace_is_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = TraceParent::parse(good.as_bytes()).unwrap();
        assert_eq!(read.to_string(), good);
        let later = format!("01{}-more", &good[2..]);
        assert!(TraceParent::parse(later.as_bytes()).is_some());
        let zero = "0".repeat(32);
        let bad = [
            String::new(),
            good[..54].to_owned(),
            format!("{good}-more"),
            format!("ff{}", &good[2..]),
            good.to_uppercase(),
            good.replace('-', "_"),
            format!("00-{zero}-00f067aa0ba902b7-01"),
            format!("00-{}-{}-01", &good[3..35], &zero[..16]),
            "\u{e4}".repeat(28),
        ];
        for bad in bad {
            assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
