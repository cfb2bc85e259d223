//! Until when an agent may still send, as its spoolers write it into the store and as others read it there.
//!
//! Whoever answers an agent's status rows lets it write final dots for a while. So a spooler answers only under a
//! [`Horizon`]: a renewal of its own membership that has raised the agent's counter in the store, too, and is not older
//! than a renewal may be. One transaction every two seconds carries all of them, whatever the number of rows and messages.
//! Who finds a counter unchanged on its own clock for [`GONE_AFTER`] ([`Observed`]) knows that the agent has lost its right.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pombo_proto::{ids::Instance, right::GONE_AFTER, time::boot_time};

use crate::{membership::HOLDS, store::ListedInstance};

/// One agent, as one session sees it.
#[derive(Clone, Debug)]
pub struct Horizon(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    listed: ListedInstance,
    /// Of the boot clock, in milliseconds.
    until: AtomicU64,
    /// A status row has come since the last renewal.
    heard: AtomicBool,
    left: AtomicBool,
}

impl Horizon {
    /// Which agent.
    pub fn listed(&self) -> &ListedInstance {
        &self.0.listed
    }

    /// A status row has come: the next renewal is for this agent, too. True if it may be answered now.
    pub fn handle_row(&self) -> bool {
        self.0.heard.store(true, Ordering::Release);
        self.holds()
    }

    /// Whether the agent may be answered now.
    pub fn holds(&self) -> bool {
        self.holds_at(boot_time())
    }

    /// What was sent to the store at this time of the boot clock has been written.
    pub fn renewed(&self, sent_at: Duration) {
        let until = sent_at.saturating_add(HOLDS).as_millis();
        let until = u64::try_from(until).unwrap_or(0);
        self.0.until.fetch_max(until, Ordering::AcqRel);
    }

    /// The agent has logged off: it is not listed again by a renewal.
    pub fn leave(&self) {
        self.0.left.store(true, Ordering::Release);
    }

    fn holds_at(&self, now: Duration) -> bool {
        now < Duration::from_millis(self.0.until.load(Ordering::Acquire))
    }

    fn take_heard(&self) -> bool {
        self.0.heard.swap(false, Ordering::AcqRel) && !self.0.left.load(Ordering::Acquire)
    }
}

/// Those of all sessions of this process. What bounds it is the number of sessions.
#[derive(Clone, Debug, Default)]
pub struct Horizons(Arc<Mutex<Vec<Weak<Shared>>>>);

impl Horizons {
    /// For a session with an agent whose listing was sent to the store at this time of the boot clock, and written.
    pub fn open(&self, listed: ListedInstance, sent_at: Duration) -> Horizon {
        let shared = Shared {
            listed,
            until: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            left: AtomicBool::new(false),
        };
        let horizon = Horizon(Arc::new(shared));
        horizon.renewed(sent_at);
        self.lock().push(Arc::downgrade(&horizon.0));
        horizon
    }

    /// Those that have been heard of since the last time: a renewal is due for them.
    pub fn due(&self) -> Vec<Horizon> {
        let mut all = self.lock();
        all.retain(|it| it.strong_count() > 0);
        all.iter()
            .filter_map(|it| it.upgrade().map(Horizon))
            .filter(Horizon::take_heard)
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Shared>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The counters of all listed agents, and since when each has stood still on this process's clock.
#[derive(Debug, Default)]
pub struct Observed(HashMap<Instance, (u64, Instant)>);

impl Observed {
    /// What the store lists now.
    pub fn handle_listed(&mut self, listed: &[ListedInstance], now: Instant) {
        let mut all = HashMap::with_capacity(listed.len());
        for it in listed {
            let known = self.0.get(&it.instance).copied();
            let since = match known {
                Some((counter, since)) if counter == it.counter => since,
                _ => now,
            };
            all.insert(it.instance, (it.counter, since));
        }
        self.0 = all;
    }

    /// Whether it is listed.
    pub fn is_listed(&self, instance: Instance) -> bool {
        self.0.contains_key(&instance)
    }

    /// The counter of an agent that has lost its right to send, if that still stands there.
    pub fn gone(&self, instance: Instance, now: Instant) -> Option<u64> {
        let (counter, since) = self.0.get(&instance)?;
        (now.saturating_duration_since(*since) > GONE_AFTER).then_some(*counter)
    }

    /// All of these.
    pub fn all_gone(&self, now: Instant) -> impl Iterator<Item = (Instance, u64)> {
        let all = self.0.keys();
        all.filter_map(move |it| Some((*it, self.gone(*it, now)?)))
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(counter: u64) -> ListedInstance {
        ListedInstance {
            instance: Instance::random(),
            transport: "smtp".to_owned(),
            host: "a".to_owned(),
            counter,
        }
    }

    #[test]
    fn an_agent_is_answered_only_while_a_renewal_for_it_holds() {
        let horizons = Horizons::default();
        let at = Duration::from_secs(100);
        let horizon = horizons.open(listed(0), at);
        assert!(horizon.holds_at(at + HOLDS - Duration::from_millis(1)));
        assert!(!horizon.holds_at(at + HOLDS));
        horizon.renewed(at + Duration::from_secs(2));
        assert!(horizon.holds_at(at + HOLDS));
        // A late word about an earlier one takes nothing back.
        horizon.renewed(at);
        assert!(horizon.holds_at(at + HOLDS));
    }

    #[test]
    fn only_who_was_heard_of_is_renewed_and_nobody_who_has_left() {
        let horizons = Horizons::default();
        let now = boot_time();
        let (heard, silent, leaving) = (
            horizons.open(listed(0), now),
            horizons.open(listed(0), now),
            horizons.open(listed(0), now),
        );
        assert!(heard.handle_row() && leaving.handle_row());
        leaving.leave();
        let due = horizons.due();
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].listed(), heard.listed());
        assert!(horizons.due().is_empty());
        assert!(silent.handle_row());
        drop((heard, silent, due));
        assert!(horizons.due().is_empty());
        assert_eq!(horizons.lock().len(), 1);
    }

    #[test]
    fn an_agent_is_gone_once_its_counter_has_stood_still_for_long_enough() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut observed = Observed::default();
        let mut agent = listed(7);
        observed.handle_listed(std::slice::from_ref(&agent), start);
        observed.handle_listed(std::slice::from_ref(&agent), after(20));
        let limit = GONE_AFTER.as_secs();
        assert_eq!(observed.gone(agent.instance, after(limit)), None);
        assert_eq!(observed.gone(agent.instance, after(limit + 1)), Some(7));
        agent.counter = 8;
        observed.handle_listed(std::slice::from_ref(&agent), after(limit + 1));
        assert_eq!(observed.gone(agent.instance, after(2 * limit)), None);
        observed.handle_listed(&[], after(2 * limit));
        assert!(!observed.is_listed(agent.instance));
        assert_eq!(observed.gone(agent.instance, after(9 * limit)), None);
    }
}
