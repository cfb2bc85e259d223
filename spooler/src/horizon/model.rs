//! Agents, spoolers and an observer on virtual time, with stalls and delays: whoever is given up sends nothing any more.

use std::collections::VecDeque;

use pombo_proto::right::VALID;

use super::*;

const STEP: Duration = Duration::from_millis(100);
const ROW_EVERY: Duration = Duration::from_secs(1);
const RENEW_EVERY: Duration = Duration::from_secs(2);
const END: Duration = Duration::from_secs(180);
/// A debug build takes some milliseconds for each.
const SEEDS: u64 = 600;

/// What is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    AllHold,
    AnswersWithoutAHorizon,
    LapsesAreForgiven,
    FirstProofAnyTime,
    GivesUpEarly,
}

struct Spooler {
    horizon: Horizon,
    renewal: Option<Renewal>,
    next: Duration,
    stalled_until: Duration,
}

struct Renewal {
    sent: Duration,
    written: Duration,
    committed: bool,
}

struct Agent {
    proven: Option<Duration>,
    /// Since when the first proof is waited for.
    awaited: Option<Duration>,
    lapses: u32,
    stalled_until: Duration,
    row_at: Duration,
}

impl Agent {
    /// As its right is: see the agent's host.
    fn is_fresh(&self, now: Duration) -> bool {
        self.proven.is_some_and(|at| now.saturating_sub(at) < VALID)
    }

    fn has_lapsed(&self, now: Duration) -> bool {
        let since = self.proven.or(self.awaited);
        since.is_some_and(|at| now.saturating_sub(at) >= VALID)
    }
}

/// True if an attempt that began at the start could be at its dot after the agent was given up.
fn sends_after_it_was_given_up(seed: u64, rule: Rule) -> (bool, bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let start = Instant::now();
    let ms = Duration::from_millis;
    let mut listed = ListedInstance {
        instance: Instance::random(),
        transport: "smtp".to_owned(),
        host: String::new(),
        counter: 1,
    };
    let horizons = Horizons::default();
    let mut spoolers: Vec<_> = (0..3)
        .map(|n| Spooler {
            horizon: horizons.open(listed.clone(), Duration::ZERO),
            renewal: None,
            next: ms(n * 700),
            stalled_until: Duration::ZERO,
        })
        .collect();
    let mut agent = Agent {
        proven: None,
        awaited: Some(Duration::ZERO),
        lapses: 0,
        stalled_until: Duration::ZERO,
        row_at: Duration::ZERO,
    };
    // (arrives, sent, spooler, whether it is an answer)
    let mut wires: VecDeque<(Duration, Duration, usize, bool)> = VecDeque::new();
    let mut observed = Observed::default();
    let (mut looks, mut cut_until) = (Duration::ZERO, Duration::ZERO);
    let mut gone_at = None;
    let mut now = Duration::ZERO;
    while now < END {
        now += STEP;
        if random.u32(..300) == 0 {
            cut_until = now + ms(random.u64(1_000..60_000));
        }
        if random.u32(..400) == 0 {
            agent.stalled_until = now + ms(random.u64(1_000..60_000));
        }
        for spooler in &mut spoolers {
            if random.u32(..300) == 0 {
                spooler.stalled_until = now + ms(random.u64(1_000..40_000));
            }
        }
        // What was sent into a partition arrives when it is over.
        let arrival = |random: &mut fastrand::Rng| now.max(cut_until) + ms(random.u64(..300));
        for (at, spooler) in spoolers.iter_mut().enumerate() {
            // The write happens then, whoever is asleep.
            if let Some(renewal) = &mut spooler.renewal
                && now >= renewal.written
                && !renewal.committed
            {
                renewal.committed = true;
                listed.counter += 1;
            }
            if now < spooler.stalled_until {
                continue;
            }
            if let Some(renewal) = spooler.renewal.take_if(|it| it.committed) {
                spooler.horizon.renewed(renewal.sent);
            }
            if spooler.renewal.is_none() && now >= spooler.next {
                spooler.next = now + RENEW_EVERY;
                if spooler.horizon.take_heard() {
                    // A store that is full or locked answers in its own time.
                    let slow = [50, 50, 50, 50, 50, 50, 50, 9_000, 90_000][random.usize(..9)];
                    spooler.renewal = Some(Renewal {
                        sent: now,
                        written: now + ms(random.u64(..slow)),
                        committed: false,
                    });
                }
            }
            for wire in wires
                .iter_mut()
                .filter(|it| it.2 == at && !it.3 && it.0 <= now)
            {
                spooler.horizon.0.heard.store(true, Ordering::Release);
                if spooler.horizon.holds_at(now) || rule == Rule::AnswersWithoutAHorizon {
                    *wire = (arrival(&mut random), wire.1, at, true);
                } else {
                    wire.0 = Duration::MAX;
                }
            }
        }
        wires.retain(|it| it.0 != Duration::MAX);
        if now >= agent.stalled_until {
            let answers: Vec<_> = wires
                .iter()
                .filter(|it| it.3 && it.0 <= now)
                .copied()
                .collect();
            wires.retain(|it| !(it.3 && it.0 <= now));
            let awaits = agent.proven.is_none() && rule == Rule::FirstProofAnyTime;
            if agent.has_lapsed(now) && !awaits {
                (agent.proven, agent.awaited) = (None, None);
                agent.lapses += 1;
            }
            for (_, sent, ..) in answers {
                agent.proven = agent.proven.max(Some(sent));
            }
            if now >= agent.row_at {
                agent.row_at = now + ROW_EVERY;
                for at in 0..spoolers.len() {
                    wires.push_back((arrival(&mut random), now, at, false));
                }
            }
            let unbroken = agent.lapses == 0 || rule == Rule::LapsesAreForgiven;
            if gone_at.is_some() && agent.is_fresh(now) && unbroken {
                return (true, true);
            }
        }
        if gone_at.is_none() && now >= looks {
            looks = now + RENEW_EVERY;
            let clock = start + now;
            observed.handle_listed(std::slice::from_ref(&listed), clock);
            let early = rule == Rule::GivesUpEarly;
            let clock = if early {
                clock + Duration::from_secs(27)
            } else {
                clock
            };
            if observed.gone(listed.instance, clock) == Some(listed.counter) {
                gone_at = Some(now);
            }
        }
    }
    (gone_at.is_some(), false)
}

fn runs(rule: Rule) -> (u32, u32) {
    let (mut gone, mut wrong) = (0, 0);
    for seed in 0..SEEDS {
        let (given_up, sends) = sends_after_it_was_given_up(seed, rule);
        gone += u32::from(given_up);
        wrong += u32::from(sends);
        assert!(rule != Rule::AllHold || !sends, "seed {seed}");
    }
    (gone, wrong)
}

#[test]
fn whoever_is_given_up_sends_nothing_any_more() {
    let (gone, _) = runs(Rule::AllHold);
    assert!(gone > 60, "only {gone} were given up at all");
}

#[test]
fn each_rule_is_needed() {
    for rule in [
        Rule::AnswersWithoutAHorizon,
        Rule::LapsesAreForgiven,
        Rule::FirstProofAnyTime,
        Rule::GivesUpEarly,
    ] {
        let (_, wrong) = runs(rule);
        assert!(wrong > 0, "rule {} is never missed", rule as u8);
    }
}
