//! The audit: does what moves fit what the broker and the spoolers hold?
//!
//! A plain state machine. It is fed observations; each is made in this order: the broker's ready messages are counted, the spoolers
//! say which of the sought numbers they hold, the store is read. So a message that goes on its way meanwhile is seen later on
//! it, and not twice.
//!
//! A **hole** is a number that its door has confirmed and that is not in the store. It is all right while somebody holds it, or
//! while it may lie in the broker. Two things are evidence that it does not, and both must stand for the patience:
//!
//! - **By number.** The broker had nothing ready, nobody held it, it was not in the store: in three observations at least, over
//!   the patience, and in none between was it held. Observations with something ready in the broker say nothing.
//! - **By count.** More holes than the broker has ready and all spoolers could have leased: then that many are missing at
//!   least, the oldest among them most likely.
//!
//! With a backlog in the broker a single loss is seen when the backlog is gone. What bounds it: [`SOUGHT_MAX`] numbers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pombo_proto::{control::Audited, ledger::Balance, ledger::DoorNumber, time::UnixMillis};

/// Numbers that are followed, over all doors: the oldest of each.
pub const SOUGHT_MAX: usize = 10_000;
/// Numbers named.
const NAMED_MAX: usize = 1_000;
/// Sought numbers shown.
const SHOWN_MAX: usize = 100;
/// A message under way from the broker's ready count to a spooler's memory is seen nowhere for some milliseconds: so often in a
/// row is no chance.
const SIGHTINGS: u32 = 3;

/// One look at everything.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The accounts.
    pub accounts: Vec<Balance>,
    /// The first holes of every door.
    pub holes: Vec<DoorNumber>,
    /// Ready in the broker.
    pub ready: u64,
    /// Those of [`Audit::sought`] that somebody holds.
    pub held: BTreeSet<DoorNumber>,
    /// What all spoolers together may have leased, by their prefetch.
    pub leases_max: u64,
    /// Every listed spooler was asked and has answered. Else this says only which holes are gone.
    pub complete: bool,
}

/// What speaks against a number.
#[derive(Clone, Copy, Debug)]
struct Evidence {
    since: UnixMillis,
    sightings: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Audit {
    patience: Duration,
    sought: BTreeMap<DoorNumber, Option<Evidence>>,
    /// Since when there have been too many in every observation, and the fewest.
    too_many: Option<(UnixMillis, u64)>,
    found: Audited,
}

impl Audit {
    /// Nothing is sought. What does not fit for the patience is missing.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            sought: BTreeMap::new(),
            too_many: None,
            found: Audited::default(),
        }
    }

    /// Which numbers the spoolers are to be asked for: the holes of the last observation.
    pub fn sought(&self) -> Vec<DoorNumber> {
        self.sought.keys().copied().collect()
    }

    /// What was found by the last observation.
    pub fn found(&self) -> &Audited {
        &self.found
    }

    /// Takes an observation in.
    ///
    /// # Returns
    /// What it finds now.
    pub fn handle_observation(&mut self, now: UnixMillis, seen: &Observation) -> &Audited {
        let asked: BTreeSet<DoorNumber> = self.sought.keys().copied().collect();
        self.follow(&seen.holes);
        if seen.complete {
            self.weigh(now, seen, &asked);
            self.count(now, seen);
        }
        self.find(now, seen);
        &self.found
    }

    /// What has come into the store, or was written off, is sought no more.
    fn follow(&mut self, holes: &[DoorNumber]) {
        let holes: BTreeSet<DoorNumber> = holes.iter().copied().take(SOUGHT_MAX).collect();
        self.sought.retain(|number, _| holes.contains(number));
        for number in holes {
            self.sought.entry(number).or_insert(None);
        }
    }

    fn weigh(&mut self, now: UnixMillis, seen: &Observation, asked: &BTreeSet<DoorNumber>) {
        for (number, evidence) in &mut self.sought {
            if seen.held.contains(number) {
                *evidence = None;
            } else if seen.ready == 0 && asked.contains(number) {
                let known = evidence.get_or_insert(Evidence {
                    since: now,
                    sightings: 0,
                });
                known.sightings += 1;
            }
        }
    }

    fn count(&mut self, now: UnixMillis, seen: &Observation) {
        let holes: u64 = seen.accounts.iter().map(|it| it.holes).sum();
        let room = seen.ready.saturating_add(seen.leases_max);
        self.too_many = match (holes.saturating_sub(room), self.too_many) {
            (0, _) => None,
            (excess, Some((since, least))) => Some((since, least.min(excess))),
            (excess, None) => Some((now, excess)),
        };
    }

    fn find(&mut self, now: UnixMillis, seen: &Observation) {
        let patience = self.patience;
        let long = |since: UnixMillis| now.since(since) >= patience;
        let is_missing = |evidence: &Option<Evidence>| {
            evidence.is_some_and(|it| it.sightings >= SIGHTINGS && long(it.since))
        };
        let (missing, others): (Vec<_>, Vec<_>) = self
            .sought
            .iter()
            .partition(|(_, evidence)| is_missing(evidence));
        let by_number = missing.len() as u64;
        let by_count = match self.too_many {
            Some((since, least)) if long(since) => least,
            _ => 0,
        };
        let missing_count = by_number.max(by_count);
        let more = usize::try_from(missing_count - by_number).unwrap_or(usize::MAX);
        let numbers = |all: &[(&DoorNumber, &Option<Evidence>)], limit: usize| -> Vec<_> {
            all.iter().take(limit).map(|(it, _)| **it).collect()
        };
        let mut named = numbers(&missing, NAMED_MAX);
        named.extend(numbers(&others, more.min(NAMED_MAX - named.len())));
        let sought: Vec<_> = others
            .into_iter()
            .filter(|(number, _)| !seen.held.contains(number))
            .collect();
        self.found = Audited {
            missing: named,
            missing_count,
            sought: numbers(&sought, SHOWN_MAX),
            unsound: seen
                .accounts
                .iter()
                .filter(|account| !account.is_sound())
                .map(|account| account.account)
                .collect(),
        };
    }
}

#[cfg(test)]
mod tests;
