use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_burst_becomes_two_notifications_a_message_time_apart() {
    let mut gate = Gate::new(10 * MS);
    let start = Instant::now();
    gate.handle_message_time(40 * MS);
    gate.handle_notify();
    assert!(gate.poll_action(start));
    gate.handle_sent(start, 1);
    for _ in 0..1_000 {
        gate.handle_notify();
        assert!(!gate.poll_action(start + 39 * MS));
    }
    assert_eq!(gate.poll_timeout(), Some(start + 40 * MS));
    assert!(gate.poll_action(start + 40 * MS));
    gate.handle_sent(start + 40 * MS, 1);
    assert!(!gate.poll_action(start + 1_000 * MS));
    let counted = gate.counters();
    assert_eq!((counted.notified, counted.sent), (1_001, 2));
}

#[test]
fn what_an_ended_session_did_not_fetch_is_announced_again() {
    let mut gate = Gate::new(MS);
    let now = Instant::now();
    gate.handle_notify();
    gate.handle_sent(now, 1);
    gate.handle_session_ended(2);
    assert!(!gate.poll_action(now + 5 * MS));
    gate.handle_session_ended(1);
    assert!(gate.poll_action(now + 5 * MS));
    gate.handle_sent(now + 5 * MS, 2);
    gate.handle_fetch(2);
    gate.handle_session_ended(2);
    assert!(!gate.poll_action(now + 50 * MS));
}

/// Under any interleaving: after the transport's last notification, a notification goes out, and it goes out no
/// earlier than the interval allows.
#[test]
fn the_last_notification_is_never_lost() {
    for seed in 0..5_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let floor = MS * random.u32(1..20);
        let mut gate = Gate::new(floor);
        let mut now = Instant::now();
        let (mut unannounced, mut last) = (false, None::<Instant>);
        for _ in 0..200 {
            match random.u8(..5) {
                0 | 1 => {
                    gate.handle_notify();
                    unannounced = true;
                }
                2 => now += MS * random.u32(..30),
                3 => gate.handle_message_time(MS * random.u32(..50)),
                _ => {
                    let session = random.u8(..3);
                    if gate.told == Some(session) {
                        unannounced = true;
                    }
                    gate.handle_session_ended(session);
                }
            }
            if gate.poll_action(now) {
                assert!(unannounced, "seed {seed}: out of nothing");
                let apart = last.is_none_or(|last| now - last >= floor.max(gate.message_time()));
                assert!(apart, "seed {seed}: too early");
                gate.handle_sent(now, random.u8(..3));
                (unannounced, last) = (false, Some(now));
            }
        }
        if unannounced {
            let at = gate.poll_timeout().expect("a time is set");
            assert!(gate.poll_action(at), "seed {seed}: lost");
        } else {
            assert_eq!(gate.poll_timeout(), None);
        }
    }
}

fn options(outstanding_max: u32) -> TurnOptions {
    TurnOptions {
        outstanding_max,
        ..TurnOptions::default()
    }
}

#[test]
fn a_window_grows_while_it_limits_and_falls_back_on_nothing() {
    let mut turns = Turns::new(options(1_000));
    turns.handle_new_mail(1);
    let mut out: VecDeque<_> = std::iter::from_fn(|| turns.next()).collect();
    assert_eq!(out.len(), 8);
    for _ in 0..100 {
        let turn = out.pop_front().unwrap();
        turns.handle_start_reply(1, turn.permit, StartReply::More { bytes: 1 });
        out.extend(std::iter::from_fn(|| turns.next()));
    }
    assert_eq!(out.len(), 64);
    while let Some(turn) = out.pop_front() {
        turns.handle_start_reply(1, turn.permit, StartReply::Nothing);
    }
    assert!(turns.next().is_none());
    turns.handle_new_mail(1);
    assert_eq!(std::iter::from_fn(|| turns.next()).count(), 8);
}

/// Slow ones hold their permits, and no reply comes: who comes later must get one all the same.
#[test]
fn a_window_that_is_all_in_use_grows_with_each_notification() {
    let mut turns = Turns::new(options(1_000));
    let mut out = 0;
    for expected in [8, 16, 32, 64, 64] {
        turns.handle_new_mail(1);
        out += std::iter::from_fn(|| turns.next()).count();
        assert_eq!(out, expected);
    }
    // One that is not all in use does not.
    let mut turns = Turns::new(options(5));
    for _ in 0..10 {
        turns.handle_new_mail(1);
        while turns.next().is_some() {}
    }
    assert_eq!(turns.sessions[&1].window, 8);
}

#[test]
fn nothing_never_makes_the_window_smaller_than_what_is_out() {
    let mut turns = Turns::new(options(1_000));
    turns.handle_new_mail(1);
    let mut out: VecDeque<_> = std::iter::from_fn(|| turns.next()).collect();
    while out.len() < 20 {
        let turn = out.pop_front().unwrap();
        turns.handle_start_reply(1, turn.permit, StartReply::More { bytes: 1 });
        out.extend(std::iter::from_fn(|| turns.next()));
    }
    // The newest one was for nothing; the others are slow.
    let newest = out.pop_back().unwrap();
    turns.handle_start_reply(1, newest.permit, StartReply::Nothing);
    assert!(turns.next().is_none());
    turns.handle_new_mail(1);
    assert!(turns.next().is_some(), "{} are out", out.len());
    // It falls back as they come back, whichever of them says so.
    let mut turns = Turns::new(options(1_000));
    for _ in 0..4 {
        turns.handle_new_mail(1);
        out = std::iter::from_fn(|| turns.next()).chain(out).collect();
    }
    out.truncate(64);
    for turn in out.drain(..) {
        turns.handle_start_reply(1, turn.permit, StartReply::Nothing);
    }
    assert_eq!(turns.sessions[&1].window, 8);
}

#[test]
fn a_window_set_above_the_busy_one_stays() {
    let mut turns = Turns::new(TurnOptions {
        window: 100,
        ..options(1_000)
    });
    for _ in 0..3 {
        turns.handle_new_mail(1);
        let turn = std::iter::from_fn(|| turns.next()).last();
        assert_eq!(turns.outstanding(), 100);
        if let Some(turn) = turn {
            turns.handle_start_reply(1, turn.permit, StartReply::More { bytes: 1 });
        }
        while turns.next().is_some() {}
    }
    assert_eq!(turns.outstanding(), 100);
}

#[test]
fn nothing_from_an_earlier_permit_does_not_contradict_a_notification() {
    let mut turns = Turns::new(options(1_000));
    turns.handle_new_mail(1);
    let out: Vec<_> = std::iter::from_fn(|| turns.next()).collect();
    turns.handle_new_mail(1);
    for turn in out {
        turns.handle_start_reply(1, turn.permit, StartReply::Nothing);
        assert!(turns.has_mail(1));
    }
    let turn = turns.next().unwrap();
    turns.handle_start_reply(1, turn.permit, StartReply::Nothing);
    assert!(!turns.has_mail(1));
}

#[test]
fn small_and_large_messages_share_by_bytes_and_by_messages() {
    let mut turns = Turns::new(options(4));
    let size = [1_000, 1_000, 1_000_000];
    let (mut messages, mut bytes) = ([0u64; 3], [0u64; 3]);
    let mut out = VecDeque::new();
    (0..3).for_each(|session| turns.handle_new_mail(session));
    for _ in 0..30_000 {
        out.extend(std::iter::from_fn(|| turns.next()));
        let turn: Turn<usize> = out.pop_front().unwrap();
        let session = turn.session;
        messages[session] += 1;
        bytes[session] += size[session];
        let reply = StartReply::More {
            bytes: size[session],
        };
        turns.handle_start_reply(session, turn.permit, reply);
    }
    let rounds = messages[0] as f64 / 8.0;
    assert!((messages[0] as f64 / messages[1] as f64 - 1.0).abs() < 0.05);
    let large = bytes[2] as f64 / (rounds * 256.0 * 1024.0);
    assert!((0.9..1.1).contains(&large), "{large}");
}

#[test]
fn a_debtor_without_competition_does_not_wait() {
    let mut turns = Turns::new(options(1));
    turns.handle_new_mail(1);
    for _ in 0..100 {
        let turn = turns.next().expect("nobody else wants it");
        let reply = StartReply::More { bytes: 50 << 20 };
        turns.handle_start_reply(1, turn.permit, reply);
    }
}

/// A model of agents with mail: whatever happens in whatever order, no mail stays behind without a permit or the bit,
/// windows and the cap hold, and nobody who has mail is passed over for long.
#[test]
fn no_mail_stays_behind_and_nobody_starves() {
    for seed in 0..3_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let sessions = random.usize(1..6);
        let cap = random.u32(1..40);
        let mut turns = Turns::new(options(cap));
        let mut mail = vec![0u32; sessions];
        let mut out: Vec<Turn<usize>> = Vec::new();
        let mut passed_over = vec![0u32; sessions];
        for step in 0..400 {
            let session = random.usize(..sessions);
            match random.u8(..8) {
                0 | 1 if step < 250 => {
                    mail[session] += random.u32(1..20);
                    turns.handle_new_mail(session);
                    let waiting = &turns.sessions[&session];
                    let can = waiting.is_ready() || waiting.outstanding >= 64;
                    assert!(can, "seed {seed}: shut out");
                }
                2 if random.u8(..20) == 0 => {
                    turns.handle_session_ended(session);
                    out.retain(|turn| turn.session != session);
                    mail[session] = 0;
                }
                3..=5 => {
                    let Some(turn) = turns.next() else { continue };
                    for (other, passed) in passed_over.iter_mut().enumerate() {
                        let held = out.iter().filter(|turn| turn.session == other).count();
                        let waits = other != turn.session && turns.has_mail(other) && held < 8;
                        *passed = if waits { *passed + 1 } else { 0 };
                    }
                    out.push(turn);
                    assert!(out.len() <= cap as usize, "seed {seed}: over the cap");
                    // Small messages only: a round is at most 8 of every other session.
                    let worst = passed_over.iter().max().unwrap();
                    assert!(*worst <= 16 * sessions as u32, "seed {seed}: starved");
                }
                _ => answer(&mut turns, &mut out, &mut mail, &mut random),
            }
            for waiting in turns.sessions.values() {
                assert!((8..=64).contains(&waiting.window), "seed {seed}");
                assert!(waiting.outstanding <= waiting.window, "seed {seed}");
            }
        }
        for _ in 0..2_000 {
            out.extend(std::iter::from_fn(|| turns.next()));
            answer(&mut turns, &mut out, &mut mail, &mut random);
        }
        assert!(mail.iter().all(|left| *left == 0), "seed {seed}: {mail:?}");
        while !out.is_empty() {
            answer(&mut turns, &mut out, &mut mail, &mut random);
        }
        assert_eq!(turns.outstanding(), 0, "seed {seed}");
    }
}

fn answer(
    turns: &mut Turns<usize>,
    out: &mut Vec<Turn<usize>>,
    mail: &mut [u32],
    random: &mut fastrand::Rng,
) {
    if out.is_empty() {
        return;
    }
    let turn = out.swap_remove(random.usize(..out.len()));
    let left = &mut mail[turn.session];
    let reply = match *left {
        0 => StartReply::Nothing,
        1 => StartReply::Last { bytes: 100 },
        _ => StartReply::More { bytes: 100 },
    };
    *left = left.saturating_sub(1);
    turns.handle_start_reply(turn.session, turn.permit, reply);
}
