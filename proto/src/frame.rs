//! The only place where bytes become values and back.
//!
//! An AMQP message between processes is a **packet**: a fixed header, then frames.
//!
//! ```text
//! packet   "PB" | version u8 | count u16 | from 16 | to 16 | first sequence u64 | seen u64 | frame...
//! frame    head length u32 | tail length u32 | head (bincode) | tail (opaque)
//! message  "PM" | version u8 | envelope length u32 | envelope (bincode) | inline body
//! ```
//!
//! All numbers of the fixed parts are big-endian. Frames are numbered each way: the n-th frame of a packet has the
//! sequence `first + n`. Whatever comes from outside is bounded before it is allocated; trailing bytes are refused.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    control::Control,
    ids::{Correlation, Incarnation},
    message::{Body, Envelope, Message, RECIPIENTS_MAX},
    verbs::{Hello, Verb},
};

/// The version of packets and messages that this build writes.
pub const VERSION: u8 = 1;
/// RabbitMQ 4.x closes the channel above 16 MiB; a packet stays below it.
pub const PACKET_BYTES_MAX: usize = 12 * 1024 * 1024;
/// A head holds at most 10,000 outcomes or recipients.
pub const HEAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// More frames than this are never collected into one packet.
pub const FRAMES_MAX: usize = 512;

const PACKET_MAGIC: [u8; 2] = *b"PB";
const MESSAGE_MAGIC: [u8; 2] = *b"PM";
const PACKET_HEADER: usize = 2 + 1 + 2 + 16 + 16 + 8 + 8;
const FRAME_HEADER: usize = 8;
const MESSAGE_HEADER: usize = 2 + 1 + 4;

/// What is wrong with bytes that came from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It ends too early.
    #[error("truncated")]
    Truncated,
    /// It does not begin as ours do.
    #[error("not one of ours")]
    Magic,
    /// Written by a version that this build cannot read.
    #[error("version {0} is not spoken here")]
    Version(u8),
    /// A length or a count above its bound.
    #[error("over a limit")]
    TooLarge,
    /// The value does not decode.
    #[error("malformed")]
    Malformed,
    /// There is more than was announced.
    #[error("trailing bytes")]
    Trailing,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Payload {
    /// On the fanouts, and in answer to a hello.
    Hello(Hello),
    /// Within a session.
    Verb(Verb),
    /// Between `pombo` and spoolers.
    Control(Control),
}

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Pairs answer and question; 0 where there is no answer.
    pub correlation: Correlation,
    /// What it says.
    pub payload: Payload,
    /// The opaque rest: an encoded message, or a part of a body.
    pub tail: Bytes,
}

impl Frame {
    /// A frame without an answer and without a tail.
    pub fn new(payload: Payload) -> Self {
        Self {
            correlation: Correlation(0),
            payload,
            tail: Bytes::new(),
        }
    }

    /// A verb that wants an answer, or is one.
    pub fn verb(correlation: Correlation, verb: Verb) -> Self {
        Self {
            correlation,
            payload: Payload::Verb(verb),
            tail: Bytes::new(),
        }
    }

    /// The same with a tail.
    pub fn with_tail(mut self, tail: Bytes) -> Self {
        self.tail = tail;
        self
    }

    /// A rough size on the wire, by which packets are filled.
    pub fn weight(&self) -> usize {
        256 + self.tail.len()
    }
}

/// Frames from one incarnation to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Packet {
    /// Who wrote it.
    pub from: Incarnation,
    /// Whom it is for; [`Incarnation::EVERYONE`] on a fanout.
    pub to: Incarnation,
    /// The first frame's sequence number between these two; 0 outside sessions. See [`crate::outbound`].
    pub first: u64,
    /// The sequence number of the last frame that was heard from the other side; 0 outside sessions. It
    /// answers every packet up to there, so that the sender knows how many are unanswered.
    pub seen: u64,
    /// In order.
    pub frames: Vec<Frame>,
}

impl Packet {
    /// A packet outside any session.
    pub fn single(from: Incarnation, to: Incarnation, frame: Frame) -> Self {
        Self {
            from,
            to,
            first: 0,
            seen: 0,
            frames: vec![frame],
        }
    }

    /// As bytes. Infallible for values within the bounds that every constructor keeps.
    pub fn encode(&self) -> Vec<u8> {
        let weight: usize = self.frames.iter().map(Frame::weight).sum();
        let mut out = Vec::with_capacity(PACKET_HEADER + weight);
        out.put_slice(&PACKET_MAGIC);
        out.put_u8(VERSION);
        out.put_u16(self.frames.len() as u16);
        out.put_slice(self.from.0.as_bytes());
        out.put_slice(self.to.0.as_bytes());
        out.put_u64(self.first);
        out.put_u64(self.seen);
        for frame in &self.frames {
            let at = out.len();
            out.put_u32(0);
            out.put_u32(frame.tail.len() as u32);
            encode_into(&(frame.correlation, &frame.payload), &mut out);
            let head = (out.len() - at - FRAME_HEADER) as u32;
            out[at..at + 4].copy_from_slice(&head.to_be_bytes());
            out.put_slice(&frame.tail);
        }
        out
    }

    /// From bytes that anybody may have written. Tails share `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Self, Error> {
        if bytes.len() > PACKET_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let mut reader = Reader { bytes, at: 0 };
        check_start(&mut reader, PACKET_MAGIC)?;
        let count = u16::from_be_bytes(reader.array()?) as usize;
        let from = Incarnation(Uuid::from_bytes(reader.array()?));
        let to = Incarnation(Uuid::from_bytes(reader.array()?));
        let first = u64::from_be_bytes(reader.array()?);
        let seen = u64::from_be_bytes(reader.array()?);
        if count > FRAMES_MAX {
            return Err(Error::TooLarge);
        }
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let head = u32::from_be_bytes(reader.array()?) as usize;
            let tail = u32::from_be_bytes(reader.array()?) as usize;
            if head > HEAD_BYTES_MAX {
                return Err(Error::TooLarge);
            }
            let (correlation, payload) = decode_all(&reader.slice(head)?)?;
            frames.push(Frame {
                correlation,
                payload,
                tail: reader.slice(tail)?,
            });
        }
        reader.finish()?;
        Ok(Self {
            from,
            to,
            first,
            seen,
            frames,
        })
    }
}

/// An envelope and its inline body (empty for a blob), as the spool carries them.
///
/// `body` must be as long as the envelope says.
pub fn encode_message(envelope: Envelope, body: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(MESSAGE_HEADER + 512 + body.len()).writer();
    let bytes = out.get_mut();
    bytes.put_slice(&MESSAGE_MAGIC);
    bytes.put_u8(VERSION);
    bytes.put_u32(0);
    encode_into(&envelope, &mut out);
    let mut bytes = out.into_inner();
    let length = (bytes.len() - MESSAGE_HEADER) as u32;
    bytes[3..7].copy_from_slice(&length.to_be_bytes());
    let start = bytes.len();
    bytes.put_slice(body);
    let encoded = bytes.freeze();
    let inline = encoded.slice(start..);
    Message {
        envelope: std::sync::Arc::new(envelope),
        encoded,
        inline,
    }
}

/// A message from the spool, the outbox, or a SubmitMessage frame's tail.
pub fn decode_message(encoded: Bytes) -> Result<Message, Error> {
    if encoded.len() > PACKET_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let mut reader = Reader {
        bytes: &encoded,
        at: 0,
    };
    check_start(&mut reader, MESSAGE_MAGIC)?;
    let length = u32::from_be_bytes(reader.array()?) as usize;
    if length > HEAD_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let envelope: Envelope = decode_all(&reader.slice(length)?)?;
    if envelope.recipients.len() > RECIPIENTS_MAX {
        return Err(Error::TooLarge);
    }
    let inline = encoded.slice(reader.at..);
    let announced = match envelope.body {
        Body::Inline { size } => size,
        Body::Blob { .. } => 0,
    };
    match (inline.len() as u64).cmp(&announced) {
        std::cmp::Ordering::Less => Err(Error::Truncated),
        std::cmp::Ordering::Greater => Err(Error::Trailing),
        std::cmp::Ordering::Equal => Ok(Message {
            envelope: std::sync::Arc::new(envelope),
            encoded,
            inline,
        }),
    }
}

/// An encoded message without its inline body: what history keeps. Shares the bytes.
pub fn encoded_head(message: &Message) -> Bytes {
    let body = message.inline.len();
    message
        .encoded
        .slice(..message.encoded.len().saturating_sub(body))
}

/// How long the head of an encoded message is, by its first bytes (seven are enough).
pub fn head_length(start: &[u8]) -> Result<usize, Error> {
    let fixed: &[u8; MESSAGE_HEADER] = start.first_chunk().ok_or(Error::Truncated)?;
    let [m0, m1, version, length @ ..] = *fixed;
    if [m0, m1] != MESSAGE_MAGIC {
        return Err(Error::Magic);
    }
    if version != VERSION {
        return Err(Error::Version(version));
    }
    match u32::from_be_bytes(length) as usize {
        length if length > HEAD_BYTES_MAX => Err(Error::TooLarge),
        length => Ok(MESSAGE_HEADER + length),
    }
}

/// The envelope of an encoded message, or of its head: what follows the envelope may be missing and is not looked at.
pub fn decode_head(bytes: &[u8]) -> Result<Envelope, Error> {
    let length = head_length(bytes)?;
    let encoded = bytes.get(MESSAGE_HEADER..length).ok_or(Error::Truncated)?;
    let envelope: Envelope = decode_all(encoded)?;
    if envelope.recipients.len() > RECIPIENTS_MAX {
        return Err(Error::TooLarge);
    }
    Ok(envelope)
}

/// Any value that the store keeps packed.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(value, &mut out);
    out
}

/// The other way; bounded, and nothing may be left over.
pub fn decode_all<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let config = bincode::config::standard().with_limit::<HEAD_BYTES_MAX>();
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config).map_err(|_| Error::Malformed)?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(Error::Trailing)
    }
}

fn encode_into<T: Serialize>(value: &T, out: &mut impl std::io::Write) {
    // Writing to memory cannot fail, and every type of ours has a bincode form; a failure is a bug in a type.
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard())
        .expect("every type that travels has an encoding");
}

fn check_start(reader: &mut Reader<'_>, magic: [u8; 2]) -> Result<(), Error> {
    if reader.array::<2>()? != magic {
        return Err(Error::Magic);
    }
    match reader.array::<1>()?[0] {
        VERSION => Ok(()),
        other => Err(Error::Version(other)),
    }
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let slice = self
            .bytes
            .get(self.at..self.at + N)
            .ok_or(Error::Truncated)?;
        self.at += N;
        Ok(slice.try_into().expect("N bytes were taken"))
    }

    fn slice(&mut self, length: usize) -> Result<Bytes, Error> {
        let end = self
            .at
            .checked_add(length)
            .filter(|end| *end <= self.bytes.len());
        let slice = self.bytes.slice(self.at..end.ok_or(Error::Truncated)?);
        self.at += length;
        Ok(slice)
    }

    fn finish(self) -> Result<(), Error> {
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(Error::Trailing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Fence, MessageId},
        message::{Content, MessageClass, Priority, Recipient, ReportReturn, Source},
        time::UnixMillis,
        verbs::{Submit, Tenancy},
    };

    fn message() -> Message {
        let body = b"Subject: x\r\n\r\nhello\r\n";
        let envelope = Envelope {
            id: MessageId::derived("test", b"1"),
            class: MessageClass::Note,
            sender: "ann@example.org".to_owned(),
            recipients: vec![Recipient::smtp("bob@example.net")],
            priority: Priority::Normal,
            submitted_at: UnixMillis(1_700_000_000_000),
            deferred_until: None,
            expires_at: None,
            report_return: ReportReturn::Headers,
            envelope_id: None,
            content: Content::default(),
            source: Source {
                door: "test".to_owned(),
                client: String::new(),
                about: None,
            },
            body: Body::Inline {
                size: body.len() as u64,
            },
            properties: Vec::new(),
        };
        encode_message(envelope, body)
    }

    fn packet() -> Packet {
        let id = message().envelope.id;
        let submit = Verb::SubmitMessage(Submit {
            id,
            fence: Fence(3),
            begin_deferred: false,
            recipients: vec![crate::ids::RecipientIndex(0)],
        });
        Packet {
            from: Incarnation(Uuid::from_u128(1)),
            to: Incarnation(Uuid::from_u128(2)),
            first: 7,
            seen: 5,
            frames: vec![
                Frame::verb(Correlation(300), submit).with_tail(message().encoded),
                Frame::verb(
                    Correlation(0),
                    Verb::Settled(vec![Tenancy {
                        id,
                        fence: Fence(0),
                    }]),
                ),
            ],
        }
    }

    #[test]
    fn a_packet_survives_the_wire() {
        let bytes = Bytes::from(packet().encode());
        assert_eq!(Packet::decode(&bytes).unwrap(), packet());
        let tail = Packet::decode(&bytes).unwrap().frames[0].tail.clone();
        assert_eq!(decode_message(tail).unwrap().envelope, message().envelope);
    }

    /// The bytes on the wire are a contract between versions: whoever changes them raises [`VERSION`].
    #[test]
    fn golden_bytes() {
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        assert_eq!(
            hex(&packet().encode()),
            include_str!("golden/packet.hex").trim()
        );
        assert_eq!(
            hex(&message().encoded),
            include_str!("golden/message.hex").trim()
        );
    }

    #[test]
    fn every_truncation_and_every_addition_is_refused() {
        let bytes = packet().encode();
        for end in 0..bytes.len() {
            assert!(
                Packet::decode(&Bytes::copy_from_slice(&bytes[..end])).is_err(),
                "{end}"
            );
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(Packet::decode(&longer.into()), Err(Error::Trailing));
        let encoded = message().encoded;
        for end in 0..encoded.len() {
            assert!(decode_message(encoded.slice(..end)).is_err(), "{end}");
        }
    }

    #[test]
    fn a_head_alone_keeps_the_envelope() {
        let message = message();
        let head = encoded_head(&message);
        assert_eq!(head.len() + message.inline.len(), message.encoded.len());
        assert_eq!(head_length(&head), Ok(head.len()));
        assert_eq!(decode_head(&head).unwrap(), *message.envelope);
        assert_eq!(decode_head(&message.encoded).unwrap(), *message.envelope);
        for end in 0..head.len() {
            assert!(decode_head(&head[..end]).is_err(), "{end}");
        }
        assert!(decode_message(head).is_err());
    }

    #[test]
    fn other_versions_and_strangers_are_refused() {
        let mut bytes = packet().encode();
        bytes[2] = 9;
        assert_eq!(
            Packet::decode(&bytes.clone().into()),
            Err(Error::Version(9))
        );
        bytes[0] = b'X';
        assert_eq!(Packet::decode(&bytes.into()), Err(Error::Magic));
    }

    #[test]
    fn hostile_bytes_neither_panic_nor_allocate() {
        fastrand::seed(1);
        let good = packet().encode();
        for _ in 0..200_000 {
            let mut bytes = good.clone();
            for _ in 0..fastrand::usize(1..6) {
                let at = fastrand::usize(..bytes.len());
                bytes[at] = fastrand::u8(..);
            }
            let _ = Packet::decode(&bytes.into());
        }
    }
}
