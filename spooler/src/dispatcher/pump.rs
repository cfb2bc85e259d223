//! What goes now, in turns by class and lane, and what is parked because it stands in others' way.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use pombo_proto::{message::Priority, time::UnixMillis};

use super::{Dispatcher, LaneKey, READY_MAX, ReadyJob, Stage};
use crate::{destination::MayStart, job::SessionKey, pick::Credit, router, session};

/// A job that stood so long in others' way is parked in the outbox.
const PATIENCE: Duration = Duration::from_secs(2);
/// A destination that made others wait is not waited for again so soon: what follows is parked at once.
const SLOW_FOR: Duration = Duration::from_secs(60);

/// The pick's own reserve is over all credit; ours is per transport ([`super::sessions`]).
const PLENTY: Credit = Credit { free: 1, total: 1 };

impl Dispatcher {
    /// Starts everything that can go now.
    pub(super) fn pump(&mut self) {
        let now = UnixMillis::now();
        let mut batches: HashMap<SessionKey, Vec<session::Submission>> = HashMap::new();
        let mut parked = Vec::new();
        loop {
            let ready = Priority::ALL.map(|class| self.ready.has(class));
            // Credit is looked at per transport, below.
            let Some(class) = self.pick.next(ready, PLENTY) else {
                break;
            };
            let Some(key) = self.ready.next_lane(class) else {
                continue;
            };
            if !self.sessions.has_credit(&key.transport, class) {
                continue;
            }
            match self
                .destinations
                .may_start(now, &key.transport, &key.destination)
            {
                MayStart::Yes => {}
                MayStart::Full => continue,
                MayStart::ClosedUntil(until) => {
                    let reason = format!("{} is given a rest", shown(&key));
                    let all = self.ready.take_older(&key, Instant::now());
                    parked.extend(all.into_iter().map(|it| (it, reason.clone(), until)));
                    continue;
                }
            }
            let Some(ready) = self.ready.pop(&key, class) else {
                continue;
            };
            self.ready.wake_lane(&key);
            match self.sessions.choose(&key.transport, &ready.job.tenure) {
                Some(session) => {
                    let submission = self.start(ready, &key, session, now);
                    batches.entry(session).or_default().push(submission);
                }
                None => {
                    // Every session with credit was opened after the tenure was obtained: claim anew.
                    let reason = "to be claimed anew for a session that is newer".to_owned();
                    parked.push((ready, reason, now));
                }
            }
        }
        for (ready, reason, until) in parked {
            self.park(ready, reason, until);
        }
        for (session, submissions) in batches {
            self.sessions.submit(session, submissions);
        }
    }

    pub(super) fn start(
        &mut self,
        ready: ReadyJob,
        key: &LaneKey,
        session: SessionKey,
        now: UnixMillis,
    ) -> session::Submission {
        let ReadyJob {
            job,
            mut considered,
            begin_deferred,
            ..
        } = ready;
        let mut destinations: Vec<Arc<str>> = vec![key.destination.clone()];
        if considered.len() > 1 {
            // Another destination that is full or closed keeps only its own recipients waiting.
            let envelope = &job.message.envelope;
            considered.retain(|index| {
                let destination = router::destination(&envelope.recipients[index.get()]);
                if destinations.iter().any(|it| **it == *destination) {
                    return true;
                }
                let open = self
                    .destinations
                    .may_start(now, &key.transport, destination);
                if open == MayStart::Yes {
                    destinations.push(destination.into());
                }
                open == MayStart::Yes
            });
        }
        let tickets = destinations
            .iter()
            .map(|it| {
                (
                    it.clone(),
                    self.destinations.handle_started(now, &key.transport, it),
                )
            })
            .collect();
        let transport = key.transport.clone();
        self.tickets
            .insert(job.tenure.tenancy(), (transport.clone(), tickets));
        self.sessions.spend(session);
        let agent = self.sessions.agent(session);
        let stage = Stage::Submitted {
            transport,
            agent,
            session,
        };
        self.moving.stage(job.id(), stage);
        session::Submission {
            job,
            considered,
            begin_deferred,
            alone: false,
        }
    }

    /// Parks what stands in others' way: behind a full window or without credit, while somebody else could go.
    pub(super) fn park_the_slow(&mut self) {
        let now = Instant::now();
        self.slow.retain(|_, since| now - *since < SLOW_FOR);
        let mut parked = Vec::new();
        if let Some(until) = now.checked_sub(READY_MAX) {
            for key in self.ready.keys() {
                let taken = self.ready.take_older(&key, until);
                let reason = format!("{} had no room for too long", shown(&key));
                parked.extend(taken.into_iter().map(|it| (it, reason.clone())));
            }
        }
        let crowded = self.ready.len() * 2 >= usize::from(self.config.spooler.prefetch.normal);
        if crowded {
            self.take_the_slow(now, &mut parked);
        }
        let now = UnixMillis::now();
        for (ready, reason) in parked {
            let until = now.after(Duration::from_millis(fastrand::u64(1_000..4_000)));
            self.park(ready, reason, until);
        }
    }

    fn take_the_slow(&mut self, now: Instant, parked: &mut Vec<(ReadyJob, String)>) {
        for key in self.ready.keys() {
            let credit = self.sessions.has_credit(&key.transport, Priority::Urgent);
            if !credit && !self.sessions.any_credit() {
                continue;
            }
            let patience = if self.slow.contains_key(&key) {
                Duration::ZERO
            } else {
                PATIENCE
            };
            let Some(until) = now.checked_sub(patience) else {
                continue;
            };
            let taken = self.ready.take_older(&key, until);
            if !taken.is_empty() {
                self.slow.insert(key.clone(), now);
            }
            let what = if credit {
                "is busy"
            } else {
                "has no agent with credit"
            };
            parked.extend(
                taken
                    .into_iter()
                    .map(|it| (it, format!("{} {what}", shown(&key)))),
            );
        }
    }
}

fn shown(key: &LaneKey) -> String {
    if key.destination.is_empty() {
        key.transport.to_string()
    } else {
        format!("{} of {}", key.destination, key.transport)
    }
}
