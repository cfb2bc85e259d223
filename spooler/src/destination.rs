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
mod tests;
