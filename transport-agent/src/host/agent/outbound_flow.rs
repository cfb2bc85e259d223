//! Message submission, from this side: SubmitMessage, EndMessage, CANCEL_MESSAGE, Settled.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use pombo_proto::{
    attempt::{BeginEnd, Owner, Session},
    ids::{Correlation, MessageId, RecipientIndex, Reference},
    outcome::{EndMessageFlag, Outcome, RecipientStatus, SubmitResult},
    verbs::{Refusal, SpoolerNotification, Submit, Tenancy, Verb},
};
use tracing::{Instrument, debug};

use super::{Agent, Direction};
use crate::{
    host::{
        cancel::Cancel,
        right::Go,
        submission::{self, STATUSES_PER_FRAME, Sending},
    },
    provider::Ended,
};

/// A submission on the transport's threads.
pub(super) struct Running {
    correlation: Correlation,
    cancel: Cancel,
    go: Option<Arc<Go>>,
    since: Instant,
}

/// An EndMessage on the transport's threads.
pub(super) struct Ending {
    session: Session,
    correlation: Correlation,
    tenancy: Tenancy,
    reference: Reference,
}

impl Agent {
    pub(super) fn submit(
        &mut self,
        session: Session,
        correlation: Correlation,
        submit: Submit,
        encoded: Bytes,
    ) {
        let tenancy = Tenancy {
            id: submit.id,
            fence: submit.fence,
        };
        let begun = self.peers[&session].begun[Direction::Outbound as usize];
        let sends = self.logon.as_ref().is_ok_and(|reply| reply.outbound);
        let mut started = if begun && sends && self.critical_error.is_none() {
            self.attempts.handle_submit(session, &submit)
        } else {
            Err(Refusal::Closed)
        };
        if started.is_ok() {
            let cancel = Cancel::default();
            let go = self.peers[&session].asks.then(Arc::<Go>::default);
            let (tools, told) = (self.tools.clone(), cancel.clone());
            match Sending::new(tools, submit, encoded, told, go.clone()) {
                Ok(sending) => {
                    let running = Running {
                        correlation,
                        cancel,
                        go,
                        since: Instant::now(),
                    };
                    self.running.insert(tenancy.id, running);
                    let span = tracing::info_span!(
                        "submission",
                        message = %tenancy.id,
                        reference = tracing::field::Empty,
                        transport = self.settings.name,
                    );
                    let sending = sending.run(Arc::clone(&self.transport));
                    self.runtime.spawn(sending.instrument(span));
                }
                Err(submission::Unreadable) => {
                    self.attempts.withdraw(tenancy.id);
                    started = Err(Refusal::Unreadable);
                }
            }
        }
        match started {
            Ok(()) => {
                self.counters.submitted += 1;
                metrics::counter!("pombo_agent_submissions_total").increment(1);
            }
            Err(refusal) => self.refuse(session, correlation, tenancy, refusal),
        }
    }

    fn refuse(
        &mut self,
        session: Session,
        correlation: Correlation,
        tenancy: Tenancy,
        refusal: Refusal,
    ) {
        self.counters.refused += 1;
        let label = format!("{refusal:?}").to_lowercase();
        metrics::counter!("pombo_agent_refusals_total", "refusal" => label).increment(1);
        debug!(id = %tenancy.id, fence = tenancy.fence.0, ?refusal, "submit_message refused");
        let reply = Verb::SubmitReply {
            id: tenancy.id,
            fence: tenancy.fence,
            result: Err(refusal),
        };
        self.reply(session, correlation, reply);
    }

    pub(super) fn reference(&mut self, id: MessageId, reference: Reference) {
        if let Some(Owner { session, fence }) = self.attempts.handle_reference(id, reference) {
            let said = Verb::Reference {
                id,
                fence,
                reference,
            };
            self.say(session, said);
        }
    }

    pub(super) fn statuses(
        &mut self,
        id: MessageId,
        statuses: Vec<(RecipientIndex, RecipientStatus)>,
    ) {
        let Some(Owner { session, fence }) = self.attempts.handle_statuses(id, &statuses) else {
            return;
        };
        for some in statuses.chunks(STATUSES_PER_FRAME) {
            let said = Verb::StatusRecips {
                id,
                fence,
                recipients: some.to_vec(),
            };
            self.say(session, said);
        }
    }

    /// From now on the session's submissions ask before their point of no return.
    pub(super) fn ask_at_the_dot(&mut self, session: Session) {
        if let Some(peer) = self.peers.get_mut(&session) {
            peer.asks = true;
        }
    }

    /// A transport stands before it. Whoever submitted is asked, unless that session is over or somebody has adopted the attempt:
    /// then there is no go, and the attempt gives up.
    pub(super) fn at_the_dot(&mut self, id: MessageId) {
        match self.attempts.owner(id) {
            Some(Owner { session, fence }) if self.peers.contains_key(&session) => {
                self.say(session, Verb::AtTheDot(Tenancy { id, fence }));
            }
            _ => {
                debug!(id = %id, "no go: somebody else decides about it");
                if let Some(running) = self.running.get(&id) {
                    running.cancel.cancel();
                }
            }
        }
    }

    /// The spooler has noted it in the store.
    pub(super) fn go(&mut self, tenancy: Tenancy) {
        let asked = self.attempts.owner(tenancy.id);
        let go = self.running.get(&tenancy.id).and_then(|it| it.go.as_ref());
        if let (Some(go), Some(owner)) = (go, asked)
            && owner.fence == tenancy.fence
        {
            go.give();
        }
    }

    /// SubmitMessage returned; `None`: the message turned out to be unreadable, and nothing was done.
    pub(super) fn returned(&mut self, id: MessageId, result: Option<SubmitResult>) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        let Some(result) = result else {
            if let Some(Owner { session, fence }) = self.attempts.withdraw(id) {
                let tenancy = Tenancy { id, fence };
                self.refuse(session, running.correlation, tenancy, Refusal::Unreadable);
            }
            return;
        };
        let took = running.since.elapsed();
        self.counters.returned += 1;
        self.submit_time.add(took);
        metrics::histogram!("pombo_agent_submission_seconds").record(took.as_secs_f64());
        count(&result);
        if let Some(Owner { session, fence }) = self.attempts.handle_returned(id, result.clone()) {
            if matches!(result, SubmitResult::Ok(_)) {
                // EndMessage follows, and may be cancelled as well. Of what was settled meanwhile nobody asks again.
                self.cancels.insert(id, running.cancel);
            }
            debug!(id = %id, fence = fence.0, result = name(&result), ?took, "submit_message");
            let reply = Verb::SubmitReply {
                id,
                fence,
                result: Ok(result),
            };
            self.reply(session, running.correlation, reply);
        }
    }

    pub(super) fn end_message(
        &mut self,
        session: Session,
        correlation: Correlation,
        tenancy: Tenancy,
        reference: Reference,
    ) {
        let flag = match self.attempts.handle_end(tenancy, reference) {
            Ok(BeginEnd::Call(outcomes)) => {
                let outcomes = outcomes.iter().map(|outcome| &outcome.outcome);
                let ended = Ended {
                    id: tenancy.id,
                    reference,
                    suggested: Ended::suggested_by(outcomes),
                };
                let ending = Ending {
                    session,
                    correlation,
                    tenancy,
                    reference,
                };
                self.ending.insert(tenancy.id, ending);
                let (transport, teller) = (Arc::clone(&self.transport), self.tools.teller.clone());
                self.runtime
                    .spawn(submission::end(transport, ended, teller));
                return;
            }
            Ok(BeginEnd::Already(flag)) => Ok(flag),
            Err(refusal) => Err(refusal),
        };
        self.end_replied(session, correlation, tenancy, flag);
    }

    pub(super) fn ended(&mut self, id: MessageId, flag: EndMessageFlag) {
        self.attempts.handle_ended(id, flag);
        self.cancels.remove(&id);
        if let Some(ending) = self.ending.remove(&id) {
            let Ending {
                session,
                correlation,
                tenancy,
                ..
            } = ending;
            self.end_replied(session, correlation, tenancy, Ok(flag));
        }
    }

    fn end_replied(
        &mut self,
        session: Session,
        correlation: Correlation,
        tenancy: Tenancy,
        result: Result<EndMessageFlag, Refusal>,
    ) {
        let reply = Verb::EndReply {
            id: tenancy.id,
            fence: tenancy.fence,
            result,
        };
        self.reply(session, correlation, reply);
    }

    pub(super) fn settled(&mut self, tenancies: &[Tenancy]) {
        for tenancy in tenancies {
            self.cancels.remove(&tenancy.id);
        }
        for id in self.attempts.handle_settled(tenancies) {
            if let Some(running) = self.running.get(&id) {
                running.cancel.cancel();
            }
        }
        self.say_the_early();
        // Who had no credit at all learns at once that there is some; the others at the next row.
        for session in self.open_sessions() {
            if self.peers[&session].credit == 0 && self.credit(session) > 0 {
                self.row_due(session);
            }
        }
    }

    /// CANCEL_MESSAGE of a submission.
    pub(super) fn cancel_message(
        &mut self,
        message: Tenancy,
        reference: Reference,
        abort_deferred: bool,
    ) {
        if self.attempts.may_cancel(message, reference) {
            debug!(id = %message.id, "cancel_message");
            if let Some(running) = self.running.get(&message.id) {
                running.cancel.cancel();
            }
        } else if self.is_ending(message, reference) {
            debug!(id = %message.id, "cancel_message during end_message");
            if let Some(cancel) = self.cancels.get(&message.id) {
                cancel.cancel();
            }
        } else if abort_deferred && !self.running.contains_key(&message.id) {
            let transport = Arc::clone(&self.transport);
            self.runtime.spawn(async move {
                let aborted = transport.abort_deferred(message.id).await;
                debug!(id = %message.id, aborted, "abort_deferred");
            });
        }
    }

    fn is_ending(&self, message: Tenancy, reference: Reference) -> bool {
        self.ending.get(&message.id).is_some_and(|ending| {
            ending.tenancy.fence <= message.fence
                && (reference == Reference::UNASSIGNED_OUTBOUND || reference == ending.reference)
        })
    }

    /// Adopt may have raised more fences than we can remember: the oldest sessions end, and with them what is remembered
    /// for their sake.
    pub(super) fn bound_fences(&mut self) {
        for session in self.attempts.sessions_to_end() {
            self.end_session(session, "too many fences are remembered for it");
        }
    }

    pub(super) fn set_critical_error(&mut self, diagnosis: pombo_proto::outcome::Diagnosis) {
        tracing::error!(status = %diagnosis.status, text = diagnosis.text, "critical error");
        self.critical_error = Some(diagnosis.clone());
        self.broadcast(SpoolerNotification::CriticalError(diagnosis));
        self.shares_changed();
    }

    pub(super) fn ready_to_send(&mut self) {
        self.critical_error = None;
        self.broadcast(SpoolerNotification::ReadyToSend);
        self.shares_changed();
    }

    /// SENTDEFERRED: not to be lost. It waits until the attempt that left the message here is recorded, or the spoolers would
    /// look for something that is not there yet; and for a session if there is none.
    pub(super) fn sent_deferred(
        &mut self,
        id: MessageId,
        mut statuses: Vec<(RecipientIndex, RecipientStatus)>,
    ) {
        if self.attempts.keeps(id) {
            self.early.entry(id).or_default().append(&mut statuses);
            return;
        }
        loop {
            let rest = statuses.split_off(statuses.len().min(STATUSES_PER_FRAME));
            self.broadcast(SpoolerNotification::SentDeferred { id, statuses });
            if rest.is_empty() {
                return;
            }
            statuses = rest;
        }
    }

    /// Attempts were settled: what was said too early can be said now.
    pub(super) fn say_the_early(&mut self) {
        if self.early.is_empty() {
            return;
        }
        let now = |id: &&MessageId| !self.attempts.keeps(**id);
        for id in self.early.keys().filter(now).copied().collect::<Vec<_>>() {
            let statuses = self.early.remove(&id).unwrap_or_default();
            self.sent_deferred(id, statuses);
        }
    }

    /// For the log of the drain.
    pub(super) fn oldest_running(&self) -> Option<(MessageId, std::time::Duration)> {
        let oldest = self.running.iter().min_by_key(|(_, running)| running.since);
        oldest.map(|(id, running)| (*id, running.since.elapsed()))
    }
}

fn name(result: &SubmitResult) -> &'static str {
    match result {
        SubmitResult::Ok(_) => "ok",
        SubmitResult::Busy => "busy",
        SubmitResult::NotMe => "not_me",
        SubmitResult::Cancelled(_) => "cancelled",
        SubmitResult::Wait(..) => "wait",
        SubmitResult::NetworkError(..) => "network_error",
        SubmitResult::CriticalError(_) => "critical_error",
    }
}

fn count(result: &SubmitResult) {
    metrics::counter!("pombo_agent_results_total", "result" => name(result)).increment(1);
    let (SubmitResult::Ok(outcomes) | SubmitResult::Cancelled(outcomes)) = result else {
        return;
    };
    for outcome in outcomes {
        let label = match outcome.outcome {
            Outcome::Delivered(_) => "delivered",
            Outcome::Failed(_) => "failed",
            Outcome::Deferred { .. } => "deferred",
            Outcome::Left => "left",
            Outcome::Kept => "kept",
            Outcome::InDoubt(_) => "in_doubt",
        };
        metrics::counter!("pombo_agent_outcomes_total", "outcome" => label).increment(1);
    }
}
