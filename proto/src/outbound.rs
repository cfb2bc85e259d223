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
    verbs::{AdoptAnswer, Verb},
};

/// While fewer packets than this are unanswered, the next one goes at once. Measured: with 4, batches of up to 32
/// calls form under load and one call on an idle session is not delayed; without a limit nothing ever collects.
pub const UNANSWERED_MAX: usize = 4;
/// After so many packets heard, one is sent even if there is nothing to say.
pub const ANSWER_EVERY: u32 = 2;
/// Frames do not wait longer than this for an answer to earlier packets.
pub const PATIENCE: Duration = Duration::from_millis(100);
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
    /// The sequence number of the next frame said.
    next: u64,
    /// The sequence number of the last frame heard.
    heard: u64,
    /// Packets heard since the last one sent.
    owed: u32,
    /// The last frame of each packet that is not yet answered.
    unanswered: VecDeque<u64>,
    pending: VecDeque<Frame>,
    /// Since when the oldest pending frame has been held back.
    held_since: Option<Instant>,
    correlation: u64,
}

impl Outbound {
    /// A session that begins. `epoch` is the one that the spooler has chosen ([`opening`]), from 1.
    pub fn new(from: Incarnation, to: Incarnation, epoch: u32) -> Self {
        let base = u64::from(epoch) << EPOCH_SHIFT;
        Self {
            from,
            to,
            epoch,
            next: base + 1,
            heard: base,
            owed: 0,
            unanswered: VecDeque::new(),
            pending: VecDeque::new(),
            held_since: None,
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

    /// Something to say, in order.
    pub fn push(&mut self, frame: Frame) {
        self.pending.push_back(frame);
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
        if self.unanswered.len() >= UNANSWERED_MAX && !overdue {
            self.held_since.get_or_insert(now);
            // What is held back answers nothing, and the peer may be waiting for just that.
            return (self.owed >= ANSWER_EVERY).then(|| self.packet(Vec::new()));
        }
        self.held_since = None;
        let mut weight = 0;
        let mut frames = Vec::with_capacity(self.pending.len().min(FRAMES_MAX));
        while let Some(frame) = self.pending.front() {
            weight += weight_of(frame);
            if frames.len() == FRAMES_MAX || (weight > PACKET_WEIGHT && !frames.is_empty()) {
                break;
            }
            frames.extend(self.pending.pop_front());
        }
        let packet = self.packet(frames);
        self.unanswered.push_back(self.next - 1);
        Some(packet)
    }

    /// When [`Self::poll_packet`] has something to send although nothing happens until then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.held_since.map(|since| since + PATIENCE)
    }

    fn packet(&mut self, frames: Vec<Frame>) -> Packet {
        self.owed = 0;
        let first = self.next;
        self.next += frames.len() as u64;
        Packet {
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
    let epoch = (packet.first >> EPOCH_SHIFT) as u32;
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
        Outcome::Failed(diagnosis) | Outcome::Deferred { diagnosis, .. } => {
            diagnosis_weight(diagnosis)
        }
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
mod tests {
    use super::*;
    use crate::{ids::Fence, ids::MessageId, verbs::Logon, verbs::Tenancy};

    fn pair(epoch: u32) -> (Outbound, Outbound) {
        let (left, right) = (Incarnation::random(), Incarnation::random());
        (
            Outbound::new(left, right, epoch),
            Outbound::new(right, left, epoch),
        )
    }

    fn numbered(number: u64) -> Frame {
        Frame::verb(Correlation(number), Verb::StartMessage)
    }

    fn drain(side: &mut Outbound, now: Instant) -> Vec<Packet> {
        std::iter::from_fn(|| side.poll_packet(now)).collect()
    }

    #[test]
    fn at_once_while_few_are_unanswered_then_all_in_one() {
        let now = Instant::now();
        let (mut left, mut right) = pair(1);
        for number in 0..4 {
            left.push(numbered(number));
            assert_eq!(drain(&mut left, now).len(), 1);
        }
        for number in 4..40 {
            left.push(numbered(number));
            assert!(left.poll_packet(now).is_none());
        }
        // One answer opens the window again, and the next packet carries everything.
        let answer = Packet {
            seen: (1 << 32) + 1,
            ..right.packet(Vec::new())
        };
        assert_eq!(left.handle_packet(&answer), Heard::InOrder);
        let packets = drain(&mut left, now);
        assert_eq!((packets.len(), packets[0].frames.len()), (1, 36));
    }

    #[test]
    fn what_is_held_back_goes_when_patience_ends() {
        let now = Instant::now();
        let (mut left, _) = pair(1);
        for number in 0..5 {
            left.push(numbered(number));
            let _ = drain(&mut left, now);
        }
        assert_eq!((left.pending(), left.unanswered()), (1, UNANSWERED_MAX));
        let at = left.poll_timeout().unwrap();
        assert!(left.poll_packet(at - Duration::from_millis(1)).is_none());
        assert_eq!(left.poll_packet(at).unwrap().frames.len(), 1);
        assert_eq!(left.poll_timeout(), None);
    }

    #[test]
    fn two_idle_sides_fall_silent() {
        let now = Instant::now();
        let (mut left, mut right) = pair(1);
        left.push(numbered(1));
        right.push(numbered(1));
        for _ in 0..10 {
            for packet in drain(&mut left, now) {
                assert_eq!(right.handle_packet(&packet), Heard::InOrder);
            }
            for packet in drain(&mut right, now) {
                assert_eq!(left.handle_packet(&packet), Heard::InOrder);
            }
        }
        assert_eq!(
            drain(&mut left, now).len() + drain(&mut right, now).len(),
            0
        );
    }

    #[test]
    fn a_lost_packet_breaks_the_session_and_a_former_epoch_does_not() {
        let now = Instant::now();
        let (mut left, mut right) = pair(2);
        left.push(numbered(1));
        let _lost = left.poll_packet(now).unwrap();
        left.push(numbered(2));
        let packet = left.poll_packet(now).unwrap();
        let former = Packet {
            first: (1 << 32) + 1,
            ..packet.clone()
        };
        let outside = Packet {
            first: 0,
            ..packet.clone()
        };
        assert_eq!(right.handle_packet(&former), Heard::Stale);
        assert_eq!(right.handle_packet(&outside), Heard::Stale);
        assert_eq!(right.handle_packet(&packet), Heard::Broken);
    }

    #[test]
    fn hearing_what_was_never_said_breaks_the_session() {
        let (mut left, mut right) = pair(1);
        let lie = Packet {
            seen: (1 << 32) + 1,
            ..right.packet(Vec::new())
        };
        assert_eq!(left.handle_packet(&lie), Heard::Broken);
    }

    #[test]
    fn a_logon_opens_and_no_session_ends_one_epoch() {
        let now = Instant::now();
        let (mut left, _) = pair(7);
        left.push(Frame::verb(
            Correlation(1),
            Verb::TransportLogon(Logon {
                versions: crate::verbs::VERSIONS,
                spooler: String::new(),
                no_connect: false,
                no_inbound: true,
                no_outbound: true,
                blobs: String::new(),
            }),
        ));
        let packet = left.poll_packet(now).unwrap();
        assert_eq!((opening(&packet), ended(&packet)), (Some(7), None));
        let end = no_session(packet.to, packet.from, 7);
        assert_eq!((opening(&end), ended(&end)), (None, Some(7)));
    }

    #[test]
    fn a_packet_is_closed_at_its_weight() {
        let now = Instant::now();
        let (mut left, _) = pair(1);
        let tenancy = Tenancy {
            id: MessageId::derived("test", b"1"),
            fence: Fence(1),
        };
        for _ in 0..5 {
            left.push(Frame::verb(
                Correlation(0),
                Verb::Settled(vec![tenancy; 30_000]),
            ));
        }
        let frames: Vec<_> = drain(&mut left, now)
            .iter()
            .map(|packet| packet.frames.len())
            .collect();
        assert_eq!(frames, [1, 1, 1, 1]);
    }

    /// Whatever the two sides say and however the packets are delayed, everything arrives in order, and nothing is
    /// stuck once both have been heard.
    #[test]
    fn everything_arrives_in_order_under_any_interleaving() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut now = Instant::now();
            let (left, right) = pair(1 + random.u32(..100));
            let mut sides = [left, right];
            let mut wires: [VecDeque<Packet>; 2] = Default::default();
            let (mut said, mut heard) = ([0u64; 2], [0u64; 2]);
            for step in 0..400 {
                let side = random.usize(..2);
                match random.u8(..4) {
                    0 | 1 if step < 300 => {
                        for _ in 0..random.u8(..6) {
                            said[side] += 1;
                            sides[side].push(numbered(said[side]));
                        }
                    }
                    2 => {
                        if let Some(packet) = wires[1 - side].pop_front() {
                            assert_eq!(sides[side].handle_packet(&packet), Heard::InOrder);
                            for frame in packet.frames {
                                heard[side] += 1;
                                assert_eq!(frame.correlation, Correlation(heard[side]));
                            }
                        }
                    }
                    _ => now += Duration::from_millis(random.u64(..3)),
                }
                while let Some(packet) = sides[side].poll_packet(now) {
                    wires[side].push_back(packet);
                }
            }
            // No time passes any more: answers alone must move everything.
            for _ in 0..200 {
                for side in 0..2 {
                    while let Some(packet) = wires[1 - side].pop_front() {
                        assert_eq!(sides[side].handle_packet(&packet), Heard::InOrder);
                        heard[side] += packet.frames.len() as u64;
                    }
                    while let Some(packet) = sides[side].poll_packet(now) {
                        wires[side].push_back(packet);
                    }
                }
            }
            assert_eq!([said[1], said[0]], heard, "seed {seed}");
            assert_eq!(sides[0].pending() + sides[1].pending(), 0, "seed {seed}");
        }
    }
}
