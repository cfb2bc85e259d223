//! One session's packets, both ways: numbering, batching, and the detection of gaps. Without IO and without a clock.
//!
//! Both sides of a session use one [`Outbound`] per peer:
//!
//! ```text
//! packet came   -> handle_packet: InOrder (handle its frames) | Stale (drop it) | Broken (the session has ended)
//! to say        -> push(frame)
//! after each handler, and at poll_timeout -> while let Some(packet) = poll_packet(now) { link.send(&packet) }
//! ```
//!
//! **Batching as in Nagle's algorithm.** A packet goes at once while fewer than [`UNANSWERED_MAX`] packets to the peer are
//! unanswered; above that, frames collect and the next packet carries all of them. Every packet names the
//! last frame that its sender has heard ([`Packet::seen`]), which answers all packets up to there. A side that has heard
//! [`ANSWER_EVERY`] packets and has nothing to say sends an empty packet; since that is less than the limit, nobody ever
//! waits for an answer that the other side withholds. A packet that is overdue all the same goes after
//! [`PATIENCE`].
//!
//! **And at a pace.** Answers alone do not make batches where every process is quick, and a packet costs the broker and both
//! sides a wake whatever it carries: after [`BURST`] packets in a row one goes every [`PACE`].
//!
//! **Epochs.** Two incarnations may open one session after another (after a gap, for example), and packets of the former
//! may still be on their way. The spooler, who opens sessions, gives each a number (any that it has not used
//! before with this peer); the upper half of every sequence number is that epoch, and frames count from 1 in the lower
//! half. A packet of another epoch is [`Heard::Stale`]. The sequence number 0 of an epoch stands outside the order:
//! [`no_session`] uses it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    frame::{FRAMES_MAX, Frame, Packet, Payload},
    ids::{Correlation, Incarnation},
    outcome::{RecipientOutcome, RecipientStatus, SubmitResult},
    verbs::{AdoptAnswer, VERSIONS, Verb},
};

/// While fewer packets than this are unanswered, the next one goes at once. Measured: with 4, batches of up to 32
/// calls form under load and one call on an idle session is not delayed; without a limit nothing ever collects.
pub const UNANSWERED_MAX: usize = 4;
/// After so many packets heard, one is sent even if there is nothing to say.
pub const ANSWER_EVERY: u32 = 2;
/// Frames do not wait longer than this for an answer to earlier packets.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// So many packets may go one after another. A session at rest answers every call at once.
pub const BURST: u32 = 4;
/// After them one goes every so often, and carries what has gathered. Answers alone do not make batches where every
/// process is quick: each packet costs the broker a wake and both sides one, whatever it carries. Under load a call waits for
/// half of this.
pub const PACE: Duration = Duration::from_millis(4);
/// What weighs so much goes at any pace.
pub const HEAVY: usize = 256 * 1024;
/// A packet is closed at this weight: large enough to carry a batch, small enough not to delay the others in the
/// inbox.
pub const PACKET_WEIGHT: usize = 1024 * 1024;

const EPOCH_SHIFT: u32 = 32;

/// What came, in relation to what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The next packet: handle its frames.
    InOrder,
    /// Of another epoch, or outside any session: not for this session.
    Stale,
    /// A packet is missing, or the peer has heard what was never said: the session has ended.
    Broken,
}

/// See the module.
#[derive(Debug)]
pub struct Outbound {
    from: Incarnation,
    to: Incarnation,
    epoch: u32,
    /// The layout of what is said: the oldest until one is agreed.
    version: u8,
    /// The sequence number of the next frame said.
    next: u64,
    /// The sequence number of the last frame heard.
    heard: u64,
    /// Packets heard since the last one sent.
    owed: u32,
    /// The last frame of each packet that is not yet answered.
    unanswered: VecDeque<u64>,
    /// With what each weighs.
    pending: VecDeque<(usize, Frame)>,
    /// What all pending frames weigh.
    pending_weight: usize,
    /// Since when the oldest pending frame has been held back.
    held_since: Option<Instant>,
    pace: Pace,
    correlation: u64,
}

/// A bucket of [`BURST`] packets that gains one every [`PACE`].
#[derive(Debug, Default)]
struct Pace {
    /// When the bucket was, or will be, full.
    full_at: Option<Instant>,
}

impl Pace {
    fn ready_at(&self) -> Option<Instant> {
        self.full_at
            .and_then(|at| at.checked_sub(PACE * (BURST - 1)))
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.ready_at().is_none_or(|at| at <= now)
    }

    fn sent(&mut self, now: Instant) {
        let from = self.full_at.map_or(now, |at| at.max(now));
        // Heavy ones go out of turn; what they take in advance is bounded, or they would shut up the light ones for long.
        self.full_at = Some((from + PACE).min(now + PACE * BURST));
    }
}

impl Outbound {
    /// A session that begins. `epoch` is the one that the spooler has chosen ([`opening`]), from 1.
    pub fn new(from: Incarnation, to: Incarnation, epoch: u32) -> Self {
        let base = u64::from(epoch) << EPOCH_SHIFT;
        Self {
            from,
            to,
            epoch,
            version: VERSIONS.oldest(),
            next: base + 1,
            heard: base,
            owed: 0,
            unanswered: VecDeque::new(),
            pending: VecDeque::new(),
            pending_weight: 0,
            held_since: None,
            pace: Pace::default(),
            correlation: 0,
        }
    }

    /// The peer.
    pub fn peer(&self) -> Incarnation {
        self.to
    }

    /// The session's number between these two.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// From now on packets are written in the version that was agreed at logon. A session that was agreed on a version which no
    /// packet can name (there is none above 255) stays with what it has.
    pub fn agree(&mut self, version: u16) {
        self.version = u8::try_from(version).unwrap_or(self.version);
    }

    /// Frames that are not yet in a packet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Packets that the peer has not answered.
    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// A correlation that was not used in this session, for the next question.
    pub fn correlate(&mut self) -> Correlation {
        self.correlation += 1;
        Correlation(self.correlation)
    }

    /// Something to say, in order, and in words of the agreed version. Its number in the session.
    pub fn push(&mut self, mut frame: Frame) -> u64 {
        if let Payload::Verb(verb) = &mut frame.payload {
            verb.in_version(self.version);
        }
        let weight = weight_of(&frame);
        self.pending_weight += weight;
        self.pending.push_back((weight, frame));
        self.next + self.pending.len() as u64 - 1
    }

    /// Notes a packet from the peer, before its frames are handled.
    pub fn handle_packet(&mut self, packet: &Packet) -> Heard {
        if packet.from != self.to || epoch_of(packet) != Some(self.epoch) {
            return Heard::Stale;
        }
        if packet.first != self.heard + 1 || packet.seen >= self.next {
            return Heard::Broken;
        }
        self.heard += packet.frames.len() as u64;
        while self
            .unanswered
            .front()
            .is_some_and(|last| *last <= packet.seen)
        {
            self.unanswered.pop_front();
        }
        // An empty packet is an answer and wants none, or two idle sides would answer each other for ever.
        if !packet.frames.is_empty() {
            self.owed += 1;
        }
        Heard::InOrder
    }

    /// The next packet to send now, until there is none.
    pub fn poll_packet(&mut self, now: Instant) -> Option<Packet> {
        if self.pending.is_empty() {
            self.held_since = None;
            return (self.owed >= ANSWER_EVERY).then(|| self.packet(Vec::new()));
        }
        let overdue = self
            .held_since
            .is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE);
        let paced = self.pace.is_ready(now) || self.pending_weight >= HEAVY;
        if (self.unanswered.len() >= UNANSWERED_MAX || !paced) && !overdue {
            self.held_since.get_or_insert(now);
            // What is held back answers nothing, and the peer may be waiting for just that.
            return (self.owed >= ANSWER_EVERY).then(|| self.packet(Vec::new()));
        }
        self.held_since = None;
        let mut weight = 0;
        let mut frames = Vec::with_capacity(self.pending.len().min(FRAMES_MAX));
        while let Some((weighs, _)) = self.pending.front() {
            weight += weighs;
            if frames.len() == FRAMES_MAX || (weight > PACKET_WEIGHT && !frames.is_empty()) {
                break;
            }
            if let Some((weighs, frame)) = self.pending.pop_front() {
                self.pending_weight -= weighs;
                frames.push(frame);
            }
        }
        self.pace.sent(now);
        let packet = self.packet(frames);
        self.unanswered.push_back(self.next - 1);
        Some(packet)
    }

    /// When [`Self::poll_packet`] has something to send although nothing happens until then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let overdue = self.held_since? + PATIENCE;
        if self.unanswered.len() >= UNANSWERED_MAX {
            return Some(overdue);
        }
        Some(self.pace.ready_at().map_or(overdue, |at| at.min(overdue)))
    }

    fn packet(&mut self, frames: Vec<Frame>) -> Packet {
        self.owed = 0;
        let first = self.next;
        self.next += frames.len() as u64;
        Packet {
            version: self.version,
            from: self.from,
            to: self.to,
            first,
            seen: self.heard,
            frames,
        }
    }
}

/// The epoch that a packet belongs to; `None`: outside any session.
pub fn epoch_of(packet: &Packet) -> Option<u32> {
    epoch_of_number(packet.first)
}

/// The epoch that a frame's number belongs to; `None`: outside any session.
pub fn epoch_of_number(number: u64) -> Option<u32> {
    let epoch = (number >> EPOCH_SHIFT) as u32;
    (epoch != 0).then_some(epoch)
}

/// The epoch of the session that a packet opens: its first frame is a TransportLogon with the epoch's number 1.
pub fn opening(packet: &Packet) -> Option<u32> {
    let epoch = epoch_of(packet)?;
    let logon = packet
        .frames
        .first()
        .is_some_and(|frame| matches!(frame.payload, Payload::Verb(Verb::TransportLogon(_))));
    (logon && packet.first as u32 == 1).then_some(epoch)
}

/// Says that there is no session of this epoch (any more).
pub fn no_session(from: Incarnation, to: Incarnation, epoch: u32) -> Packet {
    Packet {
        version: VERSIONS.oldest(),
        from,
        to,
        first: u64::from(epoch) << EPOCH_SHIFT,
        seen: 0,
        frames: vec![Frame::verb(Correlation(0), Verb::NoSession)],
    }
}

/// The epoch whose end a packet says; `None`: it says something else. Ask this before [`Outbound::handle_packet`], and end
/// the session only if the epoch is its own.
pub fn ended(packet: &Packet) -> Option<u32> {
    let epoch = epoch_of(packet)?;
    let said = matches!(
        packet.frames.as_slice(),
        [Frame {
            payload: Payload::Verb(Verb::NoSession),
            ..
        }]
    );
    (said && packet.first as u32 == 0).then_some(epoch)
}

/// An estimate of a frame's size on the wire, heads included: some heads hold thousands of recipients.
pub fn weight_of(frame: &Frame) -> usize {
    let head = match &frame.payload {
        Payload::Verb(verb) => verb_weight(verb),
        Payload::Hello(_) | Payload::Control(_) => 0,
    };
    frame.weight() + head
}

fn verb_weight(verb: &Verb) -> usize {
    match verb {
        Verb::SubmitMessage(submit) => submit.recipients.len() * 3,
        Verb::Adopt(tenancies) | Verb::Settled(tenancies) => tenancies.len() * 22,
        Verb::SubmitReply {
            result: Ok(result), ..
        } => result_weight(result),
        Verb::StatusRecips { recipients, .. } => recipients
            .iter()
            .map(|(_, status)| status_weight(status))
            .sum(),
        Verb::AdoptReply(adopted) => adopted
            .iter()
            .map(|adopted| answer_weight(&adopted.answer))
            .sum(),
        Verb::ModifyStatusRow(row) => row.unsettled.len() * 22 + row.voided.len() * 9,
        _ => 0,
    }
}

/// An estimate of an Adopt answer's size on the wire.
pub fn answer_weight(answer: &AdoptAnswer) -> usize {
    match answer {
        AdoptAnswer::Done {
            result, statuses, ..
        } => {
            let statuses: usize = statuses
                .iter()
                .map(|(_, status)| status_weight(status))
                .sum();
            64 + result_weight(result) + statuses
        }
        _ => 32,
    }
}

fn result_weight(result: &SubmitResult) -> usize {
    match result {
        SubmitResult::Ok(outcomes) | SubmitResult::Cancelled(outcomes) => {
            outcomes.iter().map(outcome_weight).sum()
        }
        SubmitResult::Wait(_, Some(diagnosis))
        | SubmitResult::NetworkError(_, diagnosis)
        | SubmitResult::CriticalError(diagnosis) => diagnosis_weight(diagnosis),
        SubmitResult::Busy | SubmitResult::NotMe | SubmitResult::Wait(_, None) => 0,
    }
}

fn outcome_weight(outcome: &RecipientOutcome) -> usize {
    use crate::outcome::Outcome;
    8 + match &outcome.outcome {
        Outcome::Delivered(delivery) => 16 + delivery.remote.len() + delivery.reply.len(),
        Outcome::Failed(diagnosis)
        | Outcome::Deferred { diagnosis, .. }
        | Outcome::InDoubt(diagnosis) => diagnosis_weight(diagnosis),
        Outcome::Left | Outcome::Kept => 0,
    }
}

fn status_weight(status: &RecipientStatus) -> usize {
    8 + match status {
        RecipientStatus::Delivered(delivery) => 16 + delivery.remote.len() + delivery.reply.len(),
        RecipientStatus::NotDelivered(diagnosis) => diagnosis_weight(diagnosis),
    }
}

fn diagnosis_weight(diagnosis: &crate::outcome::Diagnosis) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    24 + diagnosis.text.len() + length(&diagnosis.remote) + length(&diagnosis.reply)
}

#[cfg(test)]
mod tests;
