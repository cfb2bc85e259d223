//! Submissions of this session: the ladder of each, and what it ends in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Context, Handler};
use pombo_proto::{
    frame::{Frame, Payload},
    ids::{Correlation, RecipientIndex, Reference},
    ladder::{
        PeerMisbehaved,
        submission::{Action, AttemptResult, Ended, Submission as Ladder},
    },
    outbound,
    outcome::{EndMessageFlag, RecipientStatus, SubmitResult},
    tenure::Origin,
    time::UnixMillis,
    verbs::{Refusal, Submit as SubmitArguments, Tenancy, TransportNotification, Verb},
};
use tracing::info;

use super::{
    AbortDeferred, Adopt, Cancel, CancelAdopted, EndAdopted, LEASED_MAX, Session, Settle,
    Submission, Submit,
};
use crate::{
    adoption,
    destination::{Reach, Reaches},
    dispatcher::AttemptOver,
    job::Job,
    recorder::{Conclude, Spent},
    router,
    verdict::{self, Happened, Meaning, Tried},
};

/// One attempt.
pub(super) struct UnderWay {
    job: Job,
    /// SubmitMessage's number in the session.
    number: u64,
    begin_deferred: bool,
    considered: Vec<RecipientIndex>,
    ladder: Ladder,
    since: Instant,
    /// It was asked to return because it takes too long, not because anybody wants it cancelled.
    interrupted: bool,
}

impl UnderWay {
    pub(super) fn tenancy(&self) -> Tenancy {
        self.job.tenure.tenancy()
    }

    pub(super) fn job(&mut self) -> &mut Job {
        &mut self.job
    }

    pub(super) fn considered(&self) -> &[RecipientIndex] {
        &self.considered
    }
}

impl Session {
    pub(super) fn submit(&mut self, submission: Submission) {
        let Submission {
            mut job,
            considered,
            begin_deferred,
            ..
        } = submission;
        let arguments = SubmitArguments {
            id: job.id(),
            fence: job.tenure.fence(),
            begin_deferred,
            recipients: considered.clone(),
        };
        job.progress.note(
            UnixMillis::now(),
            "submitted",
            format!("to {} at {}", self.peer.transport, self.peer.host),
        );
        let frame = Frame {
            correlation: Correlation(0),
            payload: Payload::Verb(Verb::SubmitMessage(arguments)),
            tail: job.message.encoded.clone(),
        };
        let number = self.out.push(frame);
        let ladder = Ladder::new(&considered);
        let under_way = UnderWay {
            job,
            number,
            begin_deferred,
            considered,
            ladder,
            since: Instant::now(),
            interrupted: false,
        };
        self.under_way.insert(under_way.job.id(), under_way);
    }

    /// Feeds a ladder and carries out what it asks for. What is said of messages that are not under way here is late, and
    /// no misbehaviour: an adopted attempt's answers, or those of a fence that has lost.
    fn feed(
        &mut self,
        tenancy: Tenancy,
        feed: impl FnOnce(&mut UnderWay) -> Result<(), PeerMisbehaved>,
    ) -> Result<(), PeerMisbehaved> {
        let Some(under_way) = self.under_way.get_mut(&tenancy.id) else {
            return Ok(());
        };
        if under_way.job.tenure.fence() != tenancy.fence {
            return Ok(());
        }
        feed(under_way)?;
        self.drain(tenancy);
        Ok(())
    }

    fn drain(&mut self, tenancy: Tenancy) {
        while let Some(action) = self
            .under_way
            .get_mut(&tenancy.id)
            .and_then(|it| it.ladder.poll_action())
        {
            match action {
                Action::SendEndMessage { reference } => {
                    let (id, fence) = (tenancy.id, tenancy.fence);
                    self.say(Verb::EndMessage {
                        id,
                        fence,
                        reference,
                    });
                }
                Action::SendCancel { reference } => {
                    self.notify(TransportNotification::CancelMessage {
                        message: tenancy,
                        reference,
                        abort_deferred: false,
                    });
                }
                Action::AskAgain => {}
                Action::Ended(ended) => {
                    if let Some(under_way) = self.under_way.remove(&tenancy.id) {
                        self.ended(under_way, ended);
                    }
                }
            }
        }
    }

    fn ended(&mut self, under_way: UnderWay, ended: Ended) {
        let UnderWay {
            job,
            considered,
            since,
            interrupted,
            ..
        } = under_way;
        let tenancy = job.tenure.tenancy();
        let results = match &ended {
            Ended::Finished(result) => reaches(&job, &considered, result),
            Ended::Refused(refusal) => {
                tracing::debug!(id = %tenancy.id, ?refusal, "submission refused");
                Vec::new()
            }
            Ended::Lost | Ended::NotThere => Vec::new(),
        };
        let tried = Tried {
            transport: self.peer.transport.clone(),
            considered,
            interrupted,
            hold: self.holds_doubt(),
        };
        let pause = Duration::from_millis(fastrand::u64(500..2_000));
        let Meaning {
            happened,
            kept,
            doubt,
        } = verdict::ended(tried, ended, UnixMillis::now(), pause);
        self.parts
            .dispatcher
            .do_send(AttemptOver { tenancy, results });
        let session = kept.then_some(self.peer.key);
        self.concluded.push(Conclude {
            job,
            happened,
            doubt,
            sessions: session.into_iter().collect(),
            spent: self.spent(),
            took: since.elapsed(),
        });
    }

    /// Whose credit an attempt here uses.
    fn spent(&self) -> Option<Spent> {
        self.opened.map(|opened| Spent {
            key: self.peer.key,
            opened,
        })
    }

    /// The session ended before these were submitted. Nobody has heard of them, so nobody needs to be asked.
    pub(super) fn give_back(&mut self, submissions: Vec<Submission>) {
        let now = UnixMillis::now();
        for Submission {
            job, considered, ..
        } in submissions
        {
            let tenancy = job.tenure.tenancy();
            let results = Vec::new();
            self.parts
                .dispatcher
                .do_send(AttemptOver { tenancy, results });
            let reason = "its session ended before it was submitted".to_owned();
            self.concluded.push(Conclude {
                job,
                happened: parked(reason, &considered, now),
                doubt: false,
                sessions: Vec::new(),
                spent: self.spent(),
                took: Duration::ZERO,
            });
        }
        self.hand_over();
    }

    /// A lease is not held for longer than the broker allows: the message is moved, in doubt, and its result is asked for
    /// by Adopt. And an attempt that takes hours is asked to return.
    pub(super) fn look_at_the_long(&mut self) {
        let attempt_max = self.parts.config.spooler.attempt_max;
        let mut asked = Vec::new();
        let mut moved = Vec::new();
        for (id, it) in &mut self.under_way {
            let leased = matches!(it.job.tenure.origin(), Origin::Lease(_));
            if leased && it.job.since.elapsed() > LEASED_MAX {
                moved.push(*id);
            } else if it.since.elapsed() > attempt_max && !it.interrupted {
                it.interrupted = true;
                it.ladder.handle_cancel();
                asked.push(it.job.tenure.tenancy());
            }
        }
        for tenancy in asked {
            tracing::warn!(id = %tenancy.id, transport = self.peer.transport, "an attempt takes too long: cancelled");
            self.drain(tenancy);
        }
        for id in moved {
            tracing::info!(id = %id, transport = self.peer.transport, "a long attempt gives back its lease");
            if let Some(under_way) = self.under_way.remove(&id) {
                self.ended(under_way, Ended::Lost);
            }
        }
        self.hand_over();
    }

    /// Hands what has ended to the recorder, one message for all.
    pub(super) fn hand_over(&mut self) {
        if !self.concluded.is_empty() {
            let concluded = std::mem::take(&mut self.concluded);
            self.parts
                .recorder
                .do_send(crate::recorder::ConcludeAll(concluded));
        }
    }

    pub(super) fn reference(
        &mut self,
        tenancy: Tenancy,
        reference: Reference,
    ) -> Result<(), PeerMisbehaved> {
        self.feed(tenancy, |it| it.ladder.handle_reference(reference))
    }

    pub(super) fn status_recips(
        &mut self,
        tenancy: Tenancy,
        recipients: Vec<(RecipientIndex, RecipientStatus)>,
    ) -> Result<(), PeerMisbehaved> {
        self.feed(tenancy, |it| it.ladder.handle_statuses(recipients))
    }

    pub(super) fn submit_replied(
        &mut self,
        tenancy: Tenancy,
        result: Result<SubmitResult, Refusal>,
    ) -> Result<(), PeerMisbehaved> {
        self.feed(tenancy, |it| it.ladder.handle_submit_reply(result))
    }

    pub(super) fn end_replied(
        &mut self,
        tenancy: Tenancy,
        result: Result<EndMessageFlag, Refusal>,
    ) -> Result<(), PeerMisbehaved> {
        if !self.under_way.contains_key(&tenancy.id) {
            let ended = adoption::AdoptedEnded {
                instance: self.peer.instance,
                tenancy,
                result,
            };
            self.parts.adoption.do_send(ended);
            return Ok(());
        }
        self.feed(tenancy, |it| it.ladder.handle_end_reply(result))
    }

    /// What was submitted from this number of the session on has come back, or is written into an inbox that is gone: nobody has
    /// heard of it.
    pub(super) fn take_back_unheard(&mut self, first: u64) {
        if outbound::epoch_of_number(first) != Some(self.out.epoch()) {
            return;
        }
        let unheard = self.under_way.extract_if(|_, it| it.number >= first);
        let submissions: Vec<Submission> = unheard
            .map(|(_, it)| Submission {
                job: it.job,
                considered: it.considered,
                begin_deferred: it.begin_deferred,
                alone: false,
            })
            .collect();
        if !submissions.is_empty() {
            let (count, agent) = (submissions.len(), self.agent());
            info!(
                transport = self.peer.transport,
                agent, count, "submissions came back: nobody has heard of them"
            );
        }
        self.give_back(submissions);
    }

    /// The session is over: whatever is under way is unknown, and will be asked for by Adopt.
    pub(super) fn lose_submissions(&mut self) {
        let ids: Vec<_> = self
            .under_way
            .values()
            .map(|it| it.job.tenure.tenancy())
            .collect();
        for tenancy in ids {
            let _ = self.feed(tenancy, |it| {
                it.ladder.handle_session_ended();
                Ok(())
            });
        }
        let alone = std::mem::take(&mut self.alone);
        self.give_back(alone.into_values().collect());
    }
}

fn parked(reason: String, considered: &[RecipientIndex], until: UnixMillis) -> Happened {
    let recipients = considered.iter().map(|index| (*index, until)).collect();
    Happened::Parked { reason, recipients }
}

/// What an attempt says of its destinations.
fn reaches(
    job: &Job,
    considered: &[RecipientIndex],
    result: &AttemptResult,
) -> Vec<(Arc<str>, Reach)> {
    let envelope = &job.message.envelope;
    let of = |index: &RecipientIndex| router::destination(&envelope.recipients[index.get()]);
    let mut destinations: Vec<&str> = Vec::new();
    for destination in considered.iter().map(of) {
        if !destinations.contains(&destination) {
            destinations.push(destination);
        }
    }
    let only = (destinations.len() == 1).then(|| destinations[0]);
    let reaches = Reaches::of(envelope, only, &result.result);
    destinations
        .into_iter()
        .map(|it| (it.into(), reaches.at(it)))
        .collect()
}

impl Handler<Submit> for Session {
    type Result = ();

    fn handle(&mut self, Submit(submissions): Submit, ctx: &mut Self::Context) {
        if self.life == super::Life::Over || !self.parts.alive.holds() {
            // The dispatcher did not know yet; or nobody here does, because all of us were stopped for a while.
            self.give_back(submissions);
            return;
        }
        for submission in submissions {
            if submission.alone {
                self.submit_alone(submission);
            } else {
                self.submit(submission);
            }
        }
        self.flush(ctx);
    }
}

impl Handler<Cancel> for Session {
    type Result = ();

    fn handle(&mut self, Cancel(id): Cancel, ctx: &mut Self::Context) {
        if let Some(submission) = self.alone.get_mut(&id) {
            // Nobody has heard of it: it is given back once its note is written.
            submission.job.cancelled = true;
        } else if let Some(under_way) = self.under_way.get_mut(&id) {
            under_way.job.cancelled = true;
            under_way.ladder.handle_cancel();
            let tenancy = under_way.job.tenure.tenancy();
            self.drain(tenancy);
        }
        self.flush(ctx);
    }
}

impl Handler<AbortDeferred> for Session {
    type Result = ();

    fn handle(&mut self, AbortDeferred(message): AbortDeferred, ctx: &mut Self::Context) {
        self.notify(TransportNotification::CancelMessage {
            message,
            reference: Reference::UNASSIGNED_OUTBOUND,
            abort_deferred: true,
        });
        self.flush(ctx);
    }
}

impl Handler<Settle> for Session {
    type Result = ();

    fn handle(&mut self, Settle(tenancies): Settle, ctx: &mut Context<Self>) {
        self.say(Verb::Settled(tenancies));
        self.flush(ctx);
    }
}

impl Handler<Adopt> for Session {
    type Result = ();

    fn handle(&mut self, Adopt(tenancies): Adopt, ctx: &mut Context<Self>) {
        self.ask(Verb::Adopt(tenancies));
        self.flush(ctx);
    }
}

impl Handler<CancelAdopted> for Session {
    type Result = ();

    fn handle(&mut self, CancelAdopted(message): CancelAdopted, ctx: &mut Context<Self>) {
        self.notify(TransportNotification::CancelMessage {
            message,
            reference: Reference::UNASSIGNED_OUTBOUND,
            abort_deferred: false,
        });
        self.flush(ctx);
    }
}

impl Handler<EndAdopted> for Session {
    type Result = ();

    fn handle(&mut self, EndAdopted { tenancy, reference }: EndAdopted, ctx: &mut Context<Self>) {
        let (id, fence) = (tenancy.id, tenancy.fence);
        self.say(Verb::EndMessage {
            id,
            fence,
            reference,
        });
        self.flush(ctx);
    }
}
