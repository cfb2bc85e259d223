//! Which destinations may be sent to, and how many messages at a time; so that a dead or slow one takes nothing from the
//! others.
//!
//! A destination is a (transport, destination) pair. Each has a gate:
//!
//! ```text
//!        down, WAIT               its time has come
//!  Open ------------> Closed(t) --------------------> Probing (exactly one message)
//!   ^                    ^                                |  |
//!   |                    +--------- down: twice as long --+  |
//!   +------------------------------ reached -----------------+
//! ```
//!
//! Open, it lets a limited number through: the limit grows by one whenever a whole limit's worth was reached, and halves
//! when the gate closes. Messages that were let in before the gate closed do not move it: twenty that fail together are
//! one failure. Destination `""` (a transport without destinations) has no limit, but is closed like all others.
//!
//! What is kept is bounded: gates that are open and idle are forgotten when there are too many.

use std::{collections::HashMap, sync::Arc, time::Duration};

use pombo_proto::{
    message::Envelope,
    outcome::{Outcome, SubmitResult},
    time::UnixMillis,
};
use serde::{Deserialize, Serialize};

use crate::{router, schedule::human};

/// How hard destinations are pressed. Per spooler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How many messages may be under way to a destination that nothing is known of. Default 20, as in Postfix.
    pub concurrency: u32,
    /// How many may be under way to one that has always been reached. Default 200.
    pub concurrency_max: u32,
    /// How long a destination is left alone after it could not be reached. Default 30 s.
    #[serde(with = "human")]
    pub rest: Duration,
    /// The longest rest, after several probes in vain; also the most that MAPI_E_WAIT closes a gate for. Default 30 min.
    #[serde(with = "human")]
    pub rest_max: Duration,
    /// How many destinations are remembered. Default 50,000, about 10 MB.
    pub remembered: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: 20,
            concurrency_max: 200,
            rest: Duration::from_secs(30),
            rest_max: Duration::from_secs(1_800),
            remembered: 50_000,
        }
    }
}

/// While a probe is under way nobody knows when the gate opens: ask again after this. Probes of SMTP servers take 1-30 s.
const PROBE_PAUSE: Duration = Duration::from_secs(5);

/// Whether a message may go to a destination now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayStart {
    /// Yes; [`Destinations::handle_started`] says that it does.
    Yes,
    /// As many as it takes are under way: when one of them ends.
    Full,
    /// Not before then.
    ClosedUntil(UnixMillis),
}

/// What an attempt has shown about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It was reached, whatever it said of the recipients.
    Reached,
    /// It could not be reached, or wants a rest of at least this long.
    Down(Duration),
    /// Nothing: the attempt ended before it came to that.
    Untold,
}

/// One message let through. To be given back by [`Destinations::handle_result`], whatever happens.
#[derive(Debug)]
#[must_use = "a message that is let through and never given back occupies its destination for ever"]
pub struct Ticket {
    transport: Arc<str>,
    destination: Arc<str>,
    epoch: u64,
    probe: bool,
}

/// All gates of a spooler.
#[derive(Debug)]
pub struct Destinations {
    limits: Limits,
    gates: HashMap<Arc<str>, HashMap<Arc<str>, Gate>>,
    swept_at: UnixMillis,
}

#[derive(Debug)]
struct Gate {
    running: u32,
    limit: u32,
    /// Reached since the limit last changed.
    reached: u32,
    door: Door,
    /// How often it has closed.
    epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    Closed { until: UnixMillis, rest: Duration },
    Probing { rest: Duration },
}

impl Destinations {
    /// With these limits; a concurrency of 0 counts as 1.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            gates: HashMap::new(),
            swept_at: UnixMillis(0),
        }
    }

    /// Whether a message may go there now.
    pub fn may_start(&self, now: UnixMillis, transport: &str, destination: &str) -> MayStart {
        let gate = self
            .gates
            .get(transport)
            .and_then(|gates| gates.get(destination));
        let Some(gate) = gate else {
            return MayStart::Yes;
        };
        match gate.closed_until(now) {
            Some(until) => MayStart::ClosedUntil(until),
            None if gate.running >= gate.limit && !destination.is_empty() => MayStart::Full,
            None => MayStart::Yes,
        }
    }

    /// A message goes there. Where the gate is closed, it is the probe.
    pub fn handle_started(
        &mut self,
        now: UnixMillis,
        transport: &str,
        destination: &str,
    ) -> Ticket {
        self.sweep(now);
        let transport = match self.gates.get_key_value(transport) {
            Some((name, _)) => name.clone(),
            None => Arc::from(transport),
        };
        let gates = self.gates.entry(transport.clone()).or_default();
        let destination = match gates.get_key_value(destination) {
            Some((name, _)) => name.clone(),
            None => Arc::from(destination),
        };
        let gate = gates
            .entry(destination.clone())
            .or_insert_with(|| Gate::new(&self.limits));
        gate.running += 1;
        let probe = if let Door::Closed { rest, .. } = gate.door {
            gate.door = Door::Probing { rest };
            true
        } else {
            false
        };
        Ticket {
            transport,
            destination,
            epoch: gate.epoch,
            probe,
        }
    }

    /// A message that went there is back.
    pub fn handle_result(&mut self, now: UnixMillis, ticket: Ticket, reach: Reach) {
        let gate = self
            .gates
            .get_mut(&ticket.transport)
            .and_then(|gates| gates.get_mut(&ticket.destination));
        let Some(gate) = gate else {
            return;
        };
        gate.running = gate.running.saturating_sub(1);
        if ticket.epoch != gate.epoch {
            // It went before the gate closed: what it met is what closed it.
            return;
        }
        match (reach, gate.door) {
            (Reach::Reached, Door::Open) => gate.grow(&self.limits),
            (Reach::Down(asked), Door::Open) => {
                gate.close(now, self.limits.rest, asked, &self.limits)
            }
            (_, Door::Probing { rest }) if ticket.probe => match reach {
                Reach::Reached => {
                    gate.door = Door::Open;
                    gate.reached = 0;
                }
                Reach::Down(asked) => gate.close(now, rest.saturating_mul(2), asked, &self.limits),
                Reach::Untold => gate.door = Door::Closed { until: now, rest },
            },
            _ => {}
        }
    }

    /// The gates that let nothing through now, and until when: their messages need not be claimed.
    pub fn closed(&self, now: UnixMillis) -> impl Iterator<Item = (&str, &str, UnixMillis)> {
        self.gates.iter().flat_map(move |(transport, gates)| {
            gates.iter().filter_map(move |(destination, gate)| {
                Some((&**transport, &**destination, gate.closed_until(now)?))
            })
        })
    }

    /// Opens all closed gates of a transport (of all: `None`): somebody asked for a flush, or the network is back.
    pub fn reopen(&mut self, transport: Option<&str>) {
        for (name, gates) in &mut self.gates {
            if transport.is_none_or(|wanted| wanted == &**name) {
                for gate in gates.values_mut() {
                    gate.door = Door::Open;
                }
            }
        }
    }

    /// How many gates are remembered.
    pub fn len(&self) -> usize {
        self.gates.values().map(HashMap::len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.gates.values().all(HashMap::is_empty)
    }

    /// Forgets what is idle, open ones first, if there is too much; looks at most once a second, as a look costs a walk.
    fn sweep(&mut self, now: UnixMillis) {
        let recently = now.since(self.swept_at) < Duration::from_secs(1);
        if self.len() < self.limits.remembered || recently && self.swept_at <= now {
            return;
        }
        self.swept_at = now;
        for keep_closed in [true, false] {
            for gates in self.gates.values_mut() {
                gates.retain(|_, gate| gate.running > 0 || keep_closed && gate.door != Door::Open);
            }
            self.gates.retain(|_, gates| !gates.is_empty());
            if self.len() < self.limits.remembered {
                break;
            }
        }
    }
}

impl Gate {
    fn new(limits: &Limits) -> Self {
        Self {
            running: 0,
            limit: limits.concurrency.max(1),
            reached: 0,
            door: Door::Open,
            epoch: 0,
        }
    }

    fn closed_until(&self, now: UnixMillis) -> Option<UnixMillis> {
        match self.door {
            Door::Closed { until, .. } if now < until => Some(until),
            Door::Probing { .. } => Some(now.after(PROBE_PAUSE)),
            Door::Closed { .. } | Door::Open => None,
        }
    }

    fn grow(&mut self, limits: &Limits) {
        self.reached += 1;
        if self.reached >= self.limit {
            self.reached = 0;
            let most = limits.concurrency_max.max(limits.concurrency).max(1);
            self.limit = (self.limit + 1).min(most);
        }
    }

    fn close(&mut self, now: UnixMillis, rest: Duration, asked: Duration, limits: &Limits) {
        let rest = rest.max(asked).min(limits.rest_max);
        if self.door == Door::Open {
            self.limit = (self.limit / 2).max(1);
        }
        self.reached = 0;
        self.epoch += 1;
        self.door = Door::Closed {
            until: now.after(rest),
            rest,
        };
    }
}

/// What one attempt has shown, destination by destination.
#[derive(Debug)]
pub struct Reaches<'a> {
    told: HashMap<&'a str, Reach>,
}

impl<'a> Reaches<'a> {
    /// From what SubmitMessage returned. MAPI_E_WAIT and MAPI_E_NETWORK_ERROR speak of a destination only where the
    /// message had just one; `destination` is that one.
    pub fn of(envelope: &'a Envelope, destination: Option<&'a str>, result: &SubmitResult) -> Self {
        let mut told = HashMap::new();
        match result {
            SubmitResult::Ok(outcomes) | SubmitResult::Cancelled(outcomes) => {
                for outcome in outcomes {
                    let Some(recipient) = envelope.recipients.get(outcome.recipient.get()) else {
                        continue;
                    };
                    let reach = match &outcome.outcome {
                        Outcome::Deferred {
                            destination_down: true,
                            ..
                        } => Reach::Down(Duration::ZERO),
                        Outcome::Delivered(_)
                        | Outcome::Failed(_)
                        | Outcome::Deferred { .. }
                        | Outcome::InDoubt(_) => Reach::Reached,
                        Outcome::Left | Outcome::Kept => continue,
                    };
                    told.entry(router::destination(recipient))
                        .and_modify(|known| {
                            if matches!(reach, Reach::Down(_)) {
                                *known = reach;
                            }
                        })
                        .or_insert(reach);
                }
            }
            SubmitResult::Wait(asked, _) | SubmitResult::NetworkError(asked, _) => {
                if let Some(destination) = destination {
                    told.insert(destination, Reach::Down(*asked));
                }
            }
            SubmitResult::Busy | SubmitResult::NotMe | SubmitResult::CriticalError(_) => {}
        }
        Self { told }
    }

    /// An attempt that ended without a result.
    pub fn nothing() -> Self {
        Self {
            told: HashMap::new(),
        }
    }

    /// About this destination.
    pub fn at(&self, destination: &str) -> Reach {
        self.told.get(destination).copied().unwrap_or(Reach::Untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::samples;

    const T: &str = "smtp";
    const D: &str = "example.org";
    const START: UnixMillis = UnixMillis(1_000_000);

    fn destinations() -> Destinations {
        Destinations::new(Limits::default())
    }

    fn down() -> Reach {
        Reach::Down(Duration::ZERO)
    }

    fn close(gates: &mut Destinations, now: UnixMillis) -> UnixMillis {
        let ticket = gates.handle_started(now, T, D);
        gates.handle_result(now, ticket, down());
        match gates.may_start(now, T, D) {
            MayStart::ClosedUntil(until) => until,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_limit_holds_grows_with_success_and_halves_when_it_closes() {
        let mut gates = destinations();
        let tickets: Vec<Ticket> = (0..20).map(|_| gates.handle_started(START, T, D)).collect();
        assert_eq!(gates.may_start(START, T, D), MayStart::Full);
        assert_eq!(gates.may_start(START, T, "example.net"), MayStart::Yes);
        assert_eq!(gates.may_start(START, "other", D), MayStart::Yes);
        for ticket in tickets {
            gates.handle_result(START, ticket, Reach::Reached);
        }
        assert_eq!(gates.gates[T][D].limit, 21);
        close(&mut gates, START);
        assert_eq!(gates.gates[T][D].limit, 10);
    }

    #[test]
    fn those_that_fail_together_are_one_failure() {
        let mut gates = destinations();
        let tickets: Vec<Ticket> = (0..20).map(|_| gates.handle_started(START, T, D)).collect();
        for ticket in tickets {
            gates.handle_result(START, ticket, down());
        }
        let until = START.after(Duration::from_secs(30));
        assert_eq!(gates.may_start(START, T, D), MayStart::ClosedUntil(until));
        assert_eq!(gates.gates[T][D].limit, 10);
        assert_eq!(gates.closed(START).collect::<Vec<_>>(), [(T, D, until)]);
    }

    #[test]
    fn exactly_one_probe_goes_and_rests_grow_up_to_the_longest() {
        let mut gates = destinations();
        let mut until = close(&mut gates, START);
        for rest in [60, 120, 240, 480, 960, 1_800, 1_800] {
            let now = until;
            assert_eq!(gates.may_start(now, T, D), MayStart::Yes);
            let probe = gates.handle_started(now, T, D);
            let asked_again = MayStart::ClosedUntil(now.after(PROBE_PAUSE));
            assert_eq!(gates.may_start(now, T, D), asked_again);
            gates.handle_result(now, probe, down());
            until = now.after(Duration::from_secs(rest));
            assert_eq!(gates.may_start(now, T, D), MayStart::ClosedUntil(until));
        }
        let probe = gates.handle_started(until, T, D);
        gates.handle_result(until, probe, Reach::Reached);
        assert_eq!(gates.may_start(until, T, D), MayStart::Yes);
        assert_eq!(gates.closed(until).count(), 0);
    }

    #[test]
    fn a_straggler_from_before_neither_opens_nor_closes_and_a_probe_in_vain_is_repeated() {
        let mut gates = destinations();
        let [one, two] = [(); 2].map(|()| gates.handle_started(START, T, D));
        let until = close(&mut gates, START);
        gates.handle_result(START, one, Reach::Reached);
        assert_eq!(gates.may_start(START, T, D), MayStart::ClosedUntil(until));
        let probe = gates.handle_started(until, T, D);
        gates.handle_result(until, two, down());
        assert_eq!(gates.gates[T][D].running, 1);
        gates.handle_result(until, probe, Reach::Untold);
        assert_eq!(gates.may_start(until, T, D), MayStart::Yes);
    }

    #[test]
    fn wait_closes_for_as_long_as_it_asks_up_to_the_longest() {
        for (asked, rest) in [(1, 30), (300, 300), (9_999, 1_800)] {
            let mut gates = destinations();
            let ticket = gates.handle_started(START, T, "");
            gates.handle_result(START, ticket, Reach::Down(Duration::from_secs(asked)));
            let until = START.after(Duration::from_secs(rest));
            assert_eq!(gates.may_start(START, T, ""), MayStart::ClosedUntil(until));
            gates.reopen(Some(T));
            assert_eq!(gates.may_start(START, T, ""), MayStart::Yes);
        }
    }

    #[test]
    fn a_transport_without_destinations_has_no_limit_of_its_own() {
        let mut gates = destinations();
        let tickets: Vec<Ticket> = (0..50)
            .map(|_| gates.handle_started(START, T, ""))
            .collect();
        assert_eq!(gates.may_start(START, T, ""), MayStart::Yes);
        for ticket in tickets {
            gates.handle_result(START, ticket, Reach::Untold);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_runs_is_never_forgotten() {
        let mut gates = Destinations::new(Limits {
            remembered: 100,
            ..Limits::default()
        });
        let running = gates.handle_started(START, T, "running");
        for n in 0..5_000_u64 {
            let now = START.after(Duration::from_millis(1_001 * n));
            let ticket = gates.handle_started(now, T, &format!("d{n}"));
            let reach = if n % 2 == 0 { down() } else { Reach::Reached };
            gates.handle_result(now, ticket, reach);
            assert!(gates.len() <= 101, "{n}");
        }
        assert_eq!(gates.gates[T]["running"].running, 1);
        gates.handle_result(START, running, Reach::Reached);
    }

    #[test]
    fn what_an_attempt_shows_is_told_apart_by_destination() {
        use pombo_proto::{
            ids::RecipientIndex,
            outcome::{Delivery, RecipientOutcome},
        };
        let mut envelope = samples::envelope(3);
        envelope.recipients[1].address = "b@down.example".to_owned();
        envelope.recipients[2].address = "c@left.example".to_owned();
        let outcomes = [
            Outcome::Delivered(Delivery::new(START, "mx", "ok")),
            Outcome::Deferred {
                diagnosis: samples::diagnosis(),
                destination_down: true,
            },
            Outcome::Left,
        ];
        let result = SubmitResult::Ok(
            outcomes
                .into_iter()
                .zip(0..)
                .map(|(outcome, at)| RecipientOutcome {
                    recipient: RecipientIndex(at),
                    outcome,
                })
                .collect(),
        );
        let reaches = Reaches::of(&envelope, None, &result);
        assert_eq!(reaches.at(envelope.recipients[0].domain()), Reach::Reached);
        assert_eq!(reaches.at("down.example"), down());
        assert_eq!(reaches.at("left.example"), Reach::Untold);

        let wait = SubmitResult::Wait(Duration::from_secs(9), None);
        let asked = Reach::Down(Duration::from_secs(9));
        assert_eq!(Reaches::of(&envelope, Some("a"), &wait).at("a"), asked);
        assert_eq!(Reaches::of(&envelope, None, &wait).at("a"), Reach::Untold);
        assert_eq!(Reaches::nothing().at("a"), Reach::Untold);
    }

    /// Whatever comes: never more than the limit, never two probes, nothing leaks.
    #[test]
    fn the_gate_holds_under_any_traffic() {
        for seed in 0..3_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut gates = Destinations::new(Limits {
                concurrency: random.u32(0..5),
                concurrency_max: random.u32(0..8),
                ..Limits::default()
            });
            let mut now = START;
            let mut out: Vec<Ticket> = Vec::new();
            for _ in 0..100 {
                now = now.after(Duration::from_millis(random.u64(0..20_000)));
                if random.bool() && gates.may_start(now, T, D) == MayStart::Yes {
                    out.push(gates.handle_started(now, T, D));
                    let probes = out
                        .iter()
                        .filter(|t| t.probe && t.epoch == gates.gates[T][D].epoch);
                    assert!(probes.count() <= 1, "seed {seed}");
                    assert!(out.len() <= 8, "seed {seed}");
                } else if !out.is_empty() {
                    let ticket = out.swap_remove(random.usize(..out.len()));
                    let reach = *random
                        .choice(&[Reach::Reached, down(), Reach::Untold])
                        .unwrap();
                    gates.handle_result(now, ticket, reach);
                }
            }
            for ticket in out.drain(..) {
                gates.handle_result(now, ticket, Reach::Untold);
            }
            let later = now.after(Duration::from_secs(3_600));
            assert_eq!(gates.may_start(later, T, D), MayStart::Yes, "seed {seed}");
            let running = gates.gates.get(T).map_or(0, |gates| gates[D].running);
            assert_eq!(running, 0, "seed {seed}");
        }
    }
}
