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
//!
//! **Versions.** bincode does not describe itself, so the version byte is what tells two layouts apart, and two neighbouring
//! releases must be able to run side by side while one is replaced by the other:
//!
//! | bytes | are written in | are read |
//! |---|---|---|
//! | packets of a session | the version agreed at logon, the newest that both sides speak | in any version spoken |
//! | packets outside (hellos, questions, the logon itself) | the oldest version spoken: who hears it is not known | likewise |
//! | messages (spool, outbox, history, tails) | [`VERSION`]: nobody can be asked who will read it, perhaps in weeks | from [`MESSAGE_VERSION_MIN`] to [`MESSAGE_VERSION_MAX`] |
//!
//! So a new layout takes two releases. The first one reads it, speaks it where it is agreed ([`crate::verbs::VERSIONS`] grows by
//! one at its upper end), and goes on writing messages as before. The second one writes it, and drops the oldest from what it
//! speaks; messages stay readable as long as a store may hold them.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    control::Control,
    ids::{Correlation, Incarnation},
    message::{Body, Envelope, Message, RECIPIENTS_MAX},
    verbs::{Hello, VERSIONS, Verb, VersionRange},
};

/// The version of messages that this build writes.
pub const VERSION: u8 = 1;
/// The oldest version of messages that this build reads.
pub const MESSAGE_VERSION_MIN: u8 = 1;
/// The newest version of messages that this build reads; a release reads it before any writes it.
pub const MESSAGE_VERSION_MAX: u8 = 1;
/// RabbitMQ 4.x closes the channel above 16 MiB; a packet stays below it.
pub const PACKET_BYTES_MAX: usize = 12 * 1024 * 1024;
/// A head holds at most 10,000 outcomes or recipients.
pub const HEAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What decoding may claim: bincode counts a number by its width in memory, not on the wire, so a head of as many bytes as are
/// allowed claims more. (By a quarter, with 10,000 recipients.)
const CLAIMED_BYTES_MAX: usize = 2 * HEAD_BYTES_MAX;
/// More frames than this are never collected into one packet.
pub const FRAMES_MAX: usize = 512;
/// A part shares the memory of the whole if it is at least three quarters of it; otherwise it is copied. Then what keeps parts
/// is bounded by their sizes and a third, and a large one that came alone is not copied.
const SHARED_MIN: (usize, usize) = (3, 4);

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
    /// The layout that it is written in, or was.
    pub version: u8,
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
    /// A packet outside any session, in the oldest layout: every neighbour reads it.
    pub fn single(from: Incarnation, to: Incarnation, frame: Frame) -> Self {
        Self {
            version: VERSIONS.oldest(),
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
        out.put_u8(self.version);
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

    /// From bytes that anybody may have written. A tail shares `bytes` if there is little else in them, see [`detached`].
    pub fn decode(bytes: &Bytes) -> Result<Self, Error> {
        Self::decode_within(bytes, VERSIONS)
    }

    /// The same for a process that speaks other versions than this build does by itself.
    pub fn decode_within(bytes: &Bytes, spoken: VersionRange) -> Result<Self, Error> {
        if bytes.len() > PACKET_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let mut reader = Reader { bytes, at: 0 };
        let version = check_magic(&mut reader, PACKET_MAGIC)?;
        if !spoken.contains(version) {
            return Err(Error::Version(version));
        }
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
                tail: detached(reader.slice(tail)?, bytes.len()),
            });
        }
        reader.finish()?;
        Ok(Self {
            version,
            from,
            to,
            first,
            seen,
            frames,
        })
    }
}

/// A part of `whole` bytes that will be kept for longer than they are needed: the same memory, or its own if the part is so much
/// smaller that it must not hold all of the others. One slow message of a batch would keep the whole packet.
pub fn detached(part: Bytes, whole: usize) -> Bytes {
    let (least, of) = SHARED_MIN;
    if part.len().saturating_mul(of) >= whole.saturating_mul(least) {
        part
    } else {
        Bytes::copy_from_slice(&part)
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
    check_message_version(check_magic(&mut reader, MESSAGE_MAGIC)?)?;
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
    check_message_version(version)?;
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
    let config = bincode::config::standard().with_limit::<CLAIMED_BYTES_MAX>();
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

/// The version that follows.
fn check_magic(reader: &mut Reader<'_>, magic: [u8; 2]) -> Result<u8, Error> {
    if reader.array::<2>()? != magic {
        return Err(Error::Magic);
    }
    Ok(reader.array::<1>()?[0])
}

fn check_message_version(version: u8) -> Result<(), Error> {
    match version {
        MESSAGE_VERSION_MIN..=MESSAGE_VERSION_MAX => Ok(()),
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
mod tests;
