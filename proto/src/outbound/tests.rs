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
    let packets = drain(&mut left, now + PACE);
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
fn packets_are_written_in_the_oldest_version_until_another_is_agreed() {
    let now = Instant::now();
    let (mut left, mut right) = pair(1);
    left.push(numbered(1));
    let before = drain(&mut left, now);
    assert_eq!(before[0].version, VERSIONS.oldest());
    left.agree(2);
    left.push(numbered(2));
    let after = drain(&mut left, now);
    assert_eq!(after[0].version, 2);
    // Which version it is does not matter to the order.
    for packet in before.iter().chain(&after) {
        assert_eq!(right.handle_packet(packet), Heard::InOrder);
    }
}

#[test]
fn a_peer_that_has_no_word_for_doubt_hears_of_a_deferral() {
    use crate::{
        ids::{RecipientIndex, Reference},
        outcome::{Diagnosis, EnhancedStatus, NdrReason, Outcome},
        verbs::Adopted,
    };
    let status = EnhancedStatus::new(4, 4, 2);
    let diagnosis = Diagnosis::new(status, NdrReason::TransferFailed, "no answer to the dot");
    let id = MessageId::derived("test", b"1");
    let fence = Fence(3);
    let say = |version: u16, outcome: Outcome| {
        let (mut left, _) = pair(1);
        left.agree(version);
        let result = SubmitResult::Ok(vec![RecipientOutcome {
            recipient: RecipientIndex(0),
            outcome,
        }]);
        let answer = AdoptAnswer::Done {
            reference: Reference(7),
            result: result.clone(),
            statuses: Vec::new(),
            ended: None,
        };
        let adopted = vec![Adopted { id, fence, answer }];
        let result = Ok(result);
        for verb in [
            Verb::SubmitReply { id, fence, result },
            Verb::AdoptReply(adopted),
        ] {
            left.push(Frame::verb(Correlation(1), verb));
        }
        let packets = drain(&mut left, Instant::now());
        packets.into_iter().flat_map(|it| it.frames).collect()
    };
    let deferred = || Outcome::Deferred {
        diagnosis: diagnosis.clone(),
        destination_down: false,
    };
    let in_doubt = || Outcome::InDoubt(diagnosis.clone());
    let said: Vec<Frame> = say(1, in_doubt());
    assert_eq!(said.len(), 2);
    assert_eq!(said, say(1, deferred()));
    assert_ne!(say(2, in_doubt()), said);
    assert_eq!(say(2, deferred()), said);
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
