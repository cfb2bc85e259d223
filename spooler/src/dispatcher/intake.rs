//! What to do with a message that has come by a lease or a claim, or is looked at again: submit it by and by, or decide.

use std::{sync::Arc, time::Instant};

use actix::Handler;
use pombo_proto::{ids::Fence, tenure::Tenure, time::UnixMillis, topology::SpoolClass};

use super::{Dispatcher, GOING_DOWN, Jobs, LaneKey, Leases, ReadyJob, Stage};
use crate::{
    destination::MayStart,
    job::Job,
    note::{Asks, Note},
    progress::{Progress, RecipientState},
    recorder::Move,
    router,
    verdict::{self, Case, Happened, Next, Plan},
};

impl Dispatcher {
    pub(super) fn intake(&mut self, mut job: Job, now: UnixMillis) {
        let id = job.id();
        job.cancelled |= self.moving.is_cancelled(id);
        if job.cancelled {
            self.abort_deferred(&job);
        }
        if let Some(said) = self.said.take(id, &job.progress) {
            let happened = Happened::SentDeferred {
                transport: said.transport,
                statuses: said.statuses,
            };
            return self.conclude(job, happened);
        }
        if job.dropped {
            let reason = "given up by the administrator".to_owned();
            return self.conclude(job, Happened::GivenUp { reason });
        }
        let envelope = job.message.envelope.clone();
        let case = Case {
            envelope: &envelope,
            schedule: &self.config.schedule,
            router: &self.router,
            cancelled: job.cancelled,
            now,
        };
        match verdict::next(&case, &job.progress) {
            Next::Submit(plan) => self.enqueue(job, plan, now),
            Next::Decide => self.conclude(job, Happened::Nothing),
        }
    }

    /// Transports that keep recipients of a cancelled message forget them.
    fn abort_deferred(&self, job: &Job) {
        let mut told: Vec<&str> = Vec::new();
        for known in &job.progress.recipients {
            let kept = matches!(known.state, RecipientState::Kept { .. });
            if let (true, Some(transport)) = (kept, known.transport.as_deref())
                && !told.contains(&transport)
            {
                told.push(transport);
                let tenancy = job.tenure.tenancy();
                self.sessions.abort_deferred(transport, tenancy);
            }
        }
    }

    /// Into its lane, unless everything it is for is given a rest.
    fn enqueue(&mut self, job: Job, plan: Plan, now: UnixMillis) {
        if self.draining {
            // Delivered or claimed just before the drain began, or adopted since.
            let recipients = plan.recipients.into_iter().map(|it| (it, now)).collect();
            let reason = GOING_DOWN.to_owned();
            return self.conclude(job, Happened::Parked { reason, recipients });
        }
        if job.tenure.fence() == Fence(0) && self.config.holds_doubt(&plan.transport) {
            // What is noted at the dot is a row of the store: so it must be there first.
            let recipients = plan.recipients.into_iter().map(|it| (it, now)).collect();
            let reason = format!("moved first: doubt about {} is held", plan.transport);
            return self.conclude(job, Happened::Parked { reason, recipients });
        }
        let transport: Arc<str> = plan.transport.as_str().into();
        let (mut considered, mut resting) = (Vec::new(), Vec::new());
        let mut lane = None;
        for index in plan.recipients {
            let recipient = &job.message.envelope.recipients[index.get()];
            let destination = router::destination(recipient);
            match self.destinations.may_start(now, &transport, destination) {
                MayStart::ClosedUntil(until) => resting.push((index, until)),
                MayStart::Yes | MayStart::Full => {
                    considered.push(index);
                    lane.get_or_insert_with(|| Arc::<str>::from(destination));
                }
            }
        }
        let Some(destination) = lane else {
            let reason = format!("{transport} gives its destination a rest");
            return self.conclude(
                job,
                Happened::Parked {
                    reason,
                    recipients: resting,
                },
            );
        };
        let key = LaneKey {
            transport,
            destination,
        };
        self.moving.stage(
            job.id(),
            Stage::Ready {
                transport: key.transport.clone(),
            },
        );
        let (queued, begin_deferred) = (Instant::now(), plan.begin_deferred);
        let suspect = job.deaths >= self.config.spooler.suspect_after.max(1);
        let ready = ReadyJob {
            job,
            considered,
            begin_deferred,
            queued,
        };
        if suspect {
            self.suspects.push(key, ready);
        } else {
            self.ready.push(key, ready);
        }
    }

    /// A transport is away: what was ready for it waits in the outbox, or goes to the next one.
    pub(super) fn reconsider(&mut self, transport: &str) {
        let now = UnixMillis::now();
        for key in self.ready.keys() {
            if &*key.transport == transport {
                for ready in self.ready.take_older(&key, Instant::now()) {
                    self.intake(ready.job, now);
                }
            }
        }
        for ready in self.suspects.take_of(transport) {
            self.intake(ready.job, now);
        }
    }
}

impl Handler<Leases> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Leases(leases): Leases, _: &mut Self::Context) {
        let now = UnixMillis::now();
        for lease in leases {
            if self.term.is_some_and(|it| it != lease.tag.incarnation) {
                // It comes again.
                continue;
            }
            let id = lease.message.envelope.id;
            let since = self.ordinals.next();
            let unrouted = lease.tag.class == SpoolClass::Unrouted;
            let marked = lease.marked || unrouted;
            match Tenure::leased(id, lease.redelivered, marked, lease.tag, since) {
                Some(tenure) => {
                    let envelope = &lease.message.envelope;
                    let mut progress = Progress::fresh(envelope.recipients.len());
                    let origin = format!("{} {}", envelope.source.door, envelope.source.client);
                    progress.note(envelope.submitted_at, "accepted", origin.trim());
                    if let Some(trace) = lease.trace {
                        progress.note_trace(now, trace);
                    }
                    progress.note(now, "leased", self.name.as_str());
                    self.moving
                        .begin(id, tenure.fence(), &lease.message.envelope, now);
                    let (message, since) = (lease.message, Instant::now());
                    let job = Job {
                        tenure,
                        message,
                        progress,
                        cancelled: false,
                        dropped: false,
                        doubt: false,
                        unsure_since: now,
                        deaths: 0,
                        note: Note::default(),
                        asks: Asks::default(),
                        since,
                    };
                    self.intake(job, now);
                }
                None => self.recorder.do_send(Move(lease)),
            }
        }
        self.pump();
    }
}

impl Handler<Jobs> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Jobs(jobs): Jobs, _: &mut Self::Context) {
        let now = UnixMillis::now();
        for job in jobs {
            if self.term != Some(job.tenure.holder()) {
                continue;
            }
            self.moving
                .begin(job.id(), job.tenure.fence(), &job.message.envelope, now);
            self.intake(job, now);
        }
        self.pump();
    }
}
