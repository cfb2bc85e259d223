//! What goes next, and where: leases and claims in, submissions out; and permits for those that have mail.

use std::time::Instant;

use pombo_proto::{
    ids::{Fence, RecipientIndex},
    message::Priority,
    tenure::{LeaseTag, Tenure},
    time::UnixMillis,
    topology::SpoolClass,
};
use pombo_spooler::{
    job::Job,
    note::{Asks, Note},
    progress::Progress,
    rows,
    store::{ClaimRequest, Claimed, Mark, Write},
    verdict::{self, Case, Happened, Next, Plan},
};

use super::{
    Spooler, Term, holds_doubt,
    record::{Conclude, Pending, Then},
};
use crate::sim::{
    broker::Delivered,
    checks::Seen,
    context::{Context, Effect},
    options::{Millis, Sabotage},
    store::{Answer, Ask},
};

/// A job that stood so long in others' way is parked in the outbox, if there are others.
const PATIENCE: Millis = 10_000;
/// Nothing waits longer than this, crowded or not: the credit that it waits for may be held by its own earlier attempt, which is settled
/// once this one is recorded.
const READY_MAX: Millis = 600_000;
/// Rows that need no credit are claimed even when there is none.
const APPETITE_MIN: usize = 4;
/// So many of them may be ready besides what is leased.
const READY_CLAIMS_MAX: usize = 8;
/// Messages in doubt at a time.
const DOUBTS_MAX: usize = 16;

/// A job that could go if there were credit.
pub(super) struct Ready {
    job: Job,
    plan: Plan,
    queued: Millis,
}

impl Ready {
    /// The message, and whom it was to be submitted for.
    pub fn into_parts(self) -> (Job, Vec<RecipientIndex>) {
        (self.job, self.plan.recipients)
    }
}

impl Spooler {
    pub(super) fn leases(&mut self, leases: Vec<Delivered>, cx: &mut Context<'_>) {
        let since = self.next_ordinal();
        let Some(me) = self.term.as_ref().map(|term| term.me) else {
            return;
        };
        for Delivered { tag, stored } in leases {
            let tag = LeaseTag {
                incarnation: me,
                class: SpoolClass::Priority(Priority::Normal),
                delivery: tag,
            };
            if cx.broken(Sabotage::AckBeforeCommit) {
                cx.act(Effect::Ack(vec![tag.delivery]));
            }
            let message = stored.message;
            let id = message.envelope.id;
            match Tenure::leased(id, stored.redelivered, stored.marked, tag, since) {
                Some(tenure) => {
                    let progress = Progress::fresh(message.envelope.recipients.len());
                    let job = job(tenure, message, progress, cx);
                    self.intake(job, cx);
                }
                None => {
                    let now = cx.now.unix();
                    let mut row = rows::moved(&message, stored.redelivered, stored.marked, now);
                    if stored.marked && cx.broken(Sabotage::MarkedTwinFirst) {
                        (row.due, row.doubt) = (Some(now), false);
                    }
                    let write = Write::Move { id, row };
                    let then = Then::Moved(tag);
                    self.commit(Pending { write, then }, cx);
                }
            }
        }
    }

    /// Under a fresh tenure: submit, or decide at once.
    pub(super) fn intake(&mut self, job: Job, cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        if term.me != job.tenure.holder() {
            return;
        }
        if job.dropped {
            let reason = "given up by a person".to_owned();
            let happened = Happened::GivenUp { reason };
            return self.conclude(Conclude::new(job, happened), cx);
        }
        let envelope = job.message.envelope.clone();
        let case = Case {
            envelope: &envelope,
            schedule: &self.schedule,
            router: &term.router,
            cancelled: job.cancelled,
            now: cx.now.unix(),
        };
        match verdict::next(&case, &job.progress) {
            Next::Submit(plan) if self.going.is_some() => {
                self.park_for_good(job, plan.recipients, cx);
            }
            // What is noted at the dot is a row of the store: so it must be there first.
            Next::Submit(plan)
                if job.tenure.fence() == Fence(0) && holds_doubt(&plan.transport, cx) =>
            {
                let now = cx.now.unix();
                let recipients = plan.recipients.into_iter().map(|it| (it, now)).collect();
                let reason = "moved first: doubt is held".to_owned();
                let happened = Happened::Parked { reason, recipients };
                self.conclude(Conclude::new(job, happened), cx);
            }
            Next::Submit(plan) => term.ready.push_back(Ready {
                job,
                plan,
                queued: cx.now.ms,
            }),
            Next::Decide => self.conclude(Conclude::new(job, Happened::Nothing), cx),
        }
    }

    /// Starts everything that can go now.
    pub(super) fn pump(&mut self, cx: &mut Context<'_>) {
        let anywhere = cx.broken(Sabotage::AgentStartedAfterAdopt);
        let now = cx.now.ms;
        let lives = |it: &&mut Term| it.membership.lives(now);
        let Some(term) = self.term.as_mut().filter(lives) else {
            return;
        };
        let mut parked = Vec::new();
        let waiting = std::mem::take(&mut term.ready);
        for ready in waiting {
            let free: Vec<_> = term
                .sessions
                .iter()
                .filter(|(_, it)| it.transport == ready.plan.transport && it.free() > 0)
                .map(|(key, it)| (it.free(), *key, it.opened()))
                .collect();
            let usable = |opened: &Option<_>| {
                anywhere || opened.is_some_and(|at| ready.job.tenure.may_use_session(at))
            };
            let chosen = free.iter().filter(|it| usable(&it.2)).max_by_key(|it| it.0);
            match chosen {
                Some((_, key, _)) => {
                    if let Some(session) = term.sessions.get_mut(key) {
                        let Plan {
                            recipients,
                            begin_deferred,
                            ..
                        } = ready.plan;
                        session.submit(ready.job, recipients, begin_deferred);
                    }
                }
                None if free.is_empty() => term.ready.push_back(ready),
                None => parked.push(ready),
            }
        }
        for ready in parked {
            let reason = "to be claimed anew for a session that is newer";
            self.park(ready, reason, cx.now.unix(), cx);
        }
    }

    fn park(&mut self, ready: Ready, reason: &str, until: UnixMillis, cx: &mut Context<'_>) {
        let recipients: Vec<(RecipientIndex, UnixMillis)> = ready
            .plan
            .recipients
            .into_iter()
            .map(|index| (index, until))
            .collect();
        let reason = reason.to_owned();
        let happened = Happened::Parked { reason, recipients };
        self.conclude(Conclude::new(ready.job, happened), cx);
    }

    /// Parks what stands in others' way.
    pub(super) fn park_the_slow(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.ms;
        let Some(term) = &mut self.term else { return };
        let ready = term.ready.len();
        let most = cx.options.prefetch + 2 * READY_CLAIMS_MAX + DOUBTS_MAX;
        cx.show(Seen::Held("messages ready", ready, most));
        let crowded = ready * 2 >= cx.options.prefetch;
        let patience = if crowded { PATIENCE } else { READY_MAX };
        let all = std::mem::take(&mut term.ready);
        let (slow, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|it| now > it.queued + patience);
        term.ready.extend(others);
        for ready in slow {
            let until = UnixMillis(cx.now.unix().0 + cx.random.u64(1_000..4_000));
            self.park(ready, "no agent has credit", until, cx);
        }
    }

    /// A transport is away: what was ready for it waits in the outbox, or goes to the next one.
    pub(super) fn reconsider(&mut self, transport: &str, cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        let all = std::mem::take(&mut term.ready);
        let (its, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|it| it.plan.transport == transport);
        term.ready.extend(others);
        for ready in its {
            self.intake(ready.job, cx);
        }
    }

    /// Leases while somebody could take something and the store can record it.
    pub(super) fn adjust_leasing(&mut self, cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        let open = term.sessions.values().any(|it| it.opened().is_some());
        let wanted = term.entered && open && !term.trouble && self.going.is_none();
        if wanted != term.leasing {
            term.leasing = wanted;
            cx.act(Effect::Lease(if wanted { cx.options.prefetch } else { 0 }));
        }
    }

    /// Claims what is due, as much as there is appetite for.
    pub(super) fn claim(&mut self, cx: &mut Context<'_>) {
        let Some(term) = self.term.as_mut().filter(|it| it.entered && !it.trouble) else {
            return;
        };
        if self.going.is_some() {
            return;
        }
        if term.claiming {
            term.kicked = true;
            return;
        }
        let outbound = |name: &str| {
            let its = term
                .sessions
                .values()
                .filter(move |it| it.transport == name);
            its.map(|it| it.free() as usize).sum::<usize>()
        };
        let free: usize = ["smtp", "spare"].into_iter().map(outbound).sum();
        let appetite = free.saturating_sub(term.ready.len()).max(APPETITE_MIN);
        let room = READY_CLAIMS_MAX.saturating_sub(term.ready.len());
        let limit = appetite
            .min(room)
            .min(DOUBTS_MAX.saturating_sub(self.adoption.len()));
        if limit == 0 {
            return;
        }
        let without = |name: &&str| outbound(name) == 0;
        let excluded = ["smtp", "spare"].into_iter().filter(without);
        let held = ["smtp"].into_iter().filter(|name| holds_doubt(name, cx));
        let request = ClaimRequest {
            asks: Asks::about(held).to_stored(),
            holder: term.me,
            now: cx.now.unix(),
            limit,
            bytes: 1 << 20,
            excluded: excluded.map(|name| (name.to_owned(), None)).collect(),
        };
        term.claiming = true;
        term.kicked = false;
        self.ask(Ask::Claim(request), super::Asked::Claim, cx);
    }

    pub(super) fn claimed(&mut self, answer: Answer, cx: &mut Context<'_>) {
        let ordinal = self.next_ordinal();
        let Some(term) = &mut self.term else { return };
        term.claiming = false;
        let (me, kicked) = (term.me, term.kicked);
        let Answer::Claimed(rows) = answer else {
            return;
        };
        let mut doubtful = Vec::new();
        for row in rows {
            let doubt = row.doubt;
            let tenure = Tenure::claimed(row.id, row.fence, me, ordinal);
            let Some(job) = claimed_job(tenure, row, cx) else {
                continue;
            };
            if doubt {
                doubtful.push(job);
            } else {
                self.intake(job, cx);
            }
        }
        self.look_for_suspects(doubtful, cx);
        if kicked {
            self.claim(cx);
        }
    }

    /// Permits, to whom the turns name.
    pub(super) fn give_permits(&mut self, _: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        if self.going.is_some() {
            return;
        }
        while let Some(turn) = term.turns.next() {
            if let Some(session) = term.sessions.get_mut(&turn.session) {
                session.start_message(turn.permit);
            }
        }
    }
}

fn job(
    tenure: Tenure,
    message: pombo_proto::message::Message,
    progress: Progress,
    cx: &Context<'_>,
) -> Job {
    let since: Instant = cx.now.instant();
    Job {
        tenure,
        message,
        progress,
        cancelled: false,
        dropped: false,
        doubt: false,
        unsure_since: cx.now.unix(),
        deaths: 0,
        note: Note::default(),
        asks: Asks::default(),
        since,
    }
}

fn claimed_job(tenure: Tenure, row: Claimed, cx: &Context<'_>) -> Option<Job> {
    let message = pombo_proto::frame::decode_message(row.message).ok()?;
    let note = row
        .note
        .as_deref()
        .map(pombo_proto::frame::decode_all::<Note>);
    let progress: Progress = pombo_proto::frame::decode_all(&row.progress).ok()?;
    Some(Job {
        cancelled: row.mark == Mark::Cancel,
        dropped: row.mark == Mark::Drop,
        doubt: row.doubt,
        unsure_since: row.unsure_since,
        deaths: row.deaths,
        asks: Asks::stored(row.asks),
        note: note.transpose().ok()?.unwrap_or_default(),
        ..job(tenure, message, progress, cx)
    })
}
