//! SubmitMessage, the transfer to the remote, the final dot, EndMessage, Settled.

use std::time::Duration;

use pombo_agent::host::right::{Since, VALID};
use pombo_proto::{
    attempt::{BeginEnd, Owner, Session},
    ids::{Correlation, Fence, MessageId, RecipientIndex, Reference},
    outcome::{
        Delivery, Diagnosis, EndMessageFlag, EnhancedStatus, NdrReason, Outcome, RecipientOutcome,
        SubmitResult,
    },
    verbs::{AdoptAnswer, Adopted, Refusal, Submit, Tenancy, Verb},
};

use super::{Agent, Kind};
use crate::sim::{
    checks::Seen,
    context::{Context, Timer},
    options::Sabotage,
};

/// A message on the transport's threads.
pub(super) struct Sending {
    serial: u64,
    fence: Fence,
    correlation: Correlation,
    considered: Vec<RecipientIndex>,
    reference: Reference,
    since: Since,
    cancelled: bool,
    /// It asks before its final dot; and when it has asked.
    asks: bool,
    asked: Option<Duration>,
    /// What SubmitMessage is about to return.
    result: Option<SubmitResult>,
    /// Whom EndMessage answers.
    ending: Option<(Session, Correlation, Tenancy)>,
}

impl Agent {
    pub(super) fn submit(
        &mut self,
        session: Session,
        correlation: Correlation,
        submit: Submit,
        cx: &mut Context<'_>,
    ) {
        let (id, fence) = (submit.id, submit.fence);
        if let Err(refusal) = self.attempts.handle_submit(session, &submit) {
            let result = Err(refusal);
            return self.say(
                session,
                correlation,
                Verb::SubmitReply { id, fence, result },
            );
        }
        self.known.insert(id);
        self.serial += 1;
        let reference = self.free_reference(cx);
        let sending = Sending {
            serial: self.serial,
            fence,
            correlation,
            considered: submit.recipients,
            reference,
            since: self.right.since(),
            cancelled: false,
            asks: self.peers.get(&session).is_some_and(|peer| peer.asks),
            asked: None,
            result: None,
            ending: None,
        };
        self.sending.insert(id, sending);
        cx.show(Seen::Assigned(self.instance, id, reference));
        if let Some(Owner { session, fence }) = self.attempts.handle_reference(id, reference) {
            let said = Verb::Reference {
                id,
                fence,
                reference,
            };
            self.say(session, Correlation(0), said);
        }
        let slow = cx.chance(cx.options.slow_transfers);
        let takes = if slow {
            cx.random.u64(5_000..90_000)
        } else {
            cx.random.u64(cx.options.transfer.clone())
        };
        cx.after(takes, Timer::Dot(id, self.serial));
    }

    /// The lowest that is free: references are used again as soon as they may be.
    fn free_reference(&self, cx: &Context<'_>) -> Reference {
        if cx.broken(Sabotage::ReferenceInUse) {
            return Reference::FIRST;
        }
        let used = |number: &u64| {
            let same = |it: &Sending| it.reference == Reference(*number);
            self.sending.values().any(same)
        };
        let number = (Reference::FIRST.0..).find(|number| !used(number));
        Reference(number.unwrap_or(u64::MAX))
    }

    fn current(&mut self, id: MessageId, serial: u64) -> Option<&mut Sending> {
        self.sending.get_mut(&id).filter(|it| it.serial == serial)
    }

    /// The content is there. Most of what can go wrong has done so by now; else it is the moment to ask.
    pub(super) fn at_the_dot(&mut self, id: MessageId, serial: u64, cx: &mut Context<'_>) {
        let kind = self.kind;
        let Some(sending) = self.current(id, serial) else {
            return;
        };
        let nothing = match cx.random.u8(..40) {
            0..=1 => Some(SubmitResult::Busy),
            2 if kind == Kind::Smtp => Some(SubmitResult::NotMe),
            3..=4 => Some(SubmitResult::Wait(Duration::from_secs(2), None)),
            5 => Some(SubmitResult::NetworkError(Duration::ZERO, diagnosis(4))),
            _ => None,
        };
        if nothing.is_some() {
            sending.result = nothing;
            return soon(cx, Timer::Return(id, serial));
        }
        let since = sending.since;
        let enforced = !cx.broken(Sabotage::NoRightToSend);
        let may = if cx.broken(Sabotage::RightComesBack) {
            self.right.holds(self.right.since(), cx.now.boot())
        } else {
            self.right.holds(since, cx.now.boot())
        };
        if self.current(id, serial).is_some_and(|it| it.asks) && may {
            return self.ask_for_a_go(id, serial, cx);
        }
        if cx.broken(Sabotage::PauseBeforeDot) && may && cx.chance(30) {
            let late = cx.random.u64(5_000..30_000);
            return cx.after(late, Timer::LateDot(id, serial));
        }
        self.dot(id, serial, may || !enforced, cx);
    }

    /// Doubt is held: the spooler notes it first.
    fn ask_for_a_go(&mut self, id: MessageId, serial: u64, cx: &mut Context<'_>) {
        let now = cx.now.boot();
        if let Some(sending) = self.current(id, serial) {
            sending.asked = Some(now);
        }
        if let Some(Owner { session, fence }) = self.attempts.owner(id) {
            let verb = Verb::AtTheDot(Tenancy { id, fence });
            self.say(session, Correlation(0), verb);
        }
        cx.after(VALID.as_millis() as u64, Timer::NoGo(id, serial));
    }

    pub(super) fn go(&mut self, tenancy: Tenancy, cx: &mut Context<'_>) {
        let now = cx.now.boot();
        let sending = self.sending.get_mut(&tenancy.id);
        let Some(sending) = sending.filter(|it| it.fence == tenancy.fence) else {
            return;
        };
        let (serial, since) = (sending.serial, sending.since);
        if let Some(asked) = sending.asked.take() {
            let may = now < asked + VALID && self.right.holds(since, now);
            self.dot(tenancy.id, serial, may, cx);
        }
    }

    pub(super) fn no_go(&mut self, id: MessageId, serial: u64, cx: &mut Context<'_>) {
        let sending = self.current(id, serial);
        if sending.is_some_and(|it| it.asked.take().is_some()) {
            self.dot(id, serial, false, cx);
        }
    }

    pub(super) fn dot(&mut self, id: MessageId, serial: u64, may: bool, cx: &mut Context<'_>) {
        let (kind, instance, answered) = (self.kind, self.instance, self.answered);
        let Some(sending) = self.current(id, serial) else {
            return;
        };
        let may = may && !sending.cancelled;
        let mut sent = Vec::new();
        let mut outcomes = Vec::new();
        for recipient in sending.considered.clone() {
            let outcome = match cx.random.u8(..20) {
                0..=1 => Outcome::Failed(diagnosis(5)),
                2..=4 => deferred(),
                5 if kind == Kind::Smtp => Outcome::Left,
                _ if !may => deferred(),
                _ => {
                    sent.push(recipient);
                    Outcome::Delivered(Delivery::new(cx.now.unix(), "remote", "250 2.0.0 Ok"))
                }
            };
            outcomes.push(RecipientOutcome { recipient, outcome });
        }
        if !sent.is_empty() {
            cx.show(Seen::Dot {
                instance,
                id,
                fence: sending.fence,
                recipients: sent,
                answered,
            });
        }
        sending.result = Some(if sending.cancelled {
            SubmitResult::Cancelled(outcomes)
        } else {
            SubmitResult::Ok(outcomes)
        });
        soon(cx, Timer::Return(id, serial));
    }

    pub(super) fn submit_returned(&mut self, id: MessageId, serial: u64) {
        let Some(sending) = self.current(id, serial) else {
            return;
        };
        let correlation = sending.correlation;
        let Some(result) = sending.result.clone() else {
            return;
        };
        let owner = self.attempts.handle_returned(id, result.clone());
        if owner.is_none() || !matches!(result, SubmitResult::Ok(_)) {
            self.sending.remove(&id);
        }
        if let Some(Owner { session, fence }) = owner {
            let result = Ok(result);
            self.say(
                session,
                correlation,
                Verb::SubmitReply { id, fence, result },
            );
        }
    }

    pub(super) fn end_message(
        &mut self,
        session: Session,
        correlation: Correlation,
        tenancy: Tenancy,
        reference: Reference,
        cx: &mut Context<'_>,
    ) {
        let result = match self.attempts.handle_end(tenancy, reference) {
            Ok(BeginEnd::Call(_)) => {
                cx.show(Seen::EndMessage(self.instance, tenancy.id, reference));
                if let Some(sending) = self.sending.get_mut(&tenancy.id) {
                    sending.ending = Some((session, correlation, tenancy));
                    let serial = sending.serial;
                    return soon(cx, Timer::Ended(tenancy.id, serial));
                }
                // It has been overtaken by a newer attempt, whose reference this is not.
                Err(Refusal::UnknownReference)
            }
            Ok(BeginEnd::Already(flag)) => Ok(flag),
            Err(refusal) => Err(refusal),
        };
        self.end_replied(session, correlation, tenancy, result);
    }

    pub(super) fn end_returned(&mut self, id: MessageId, serial: u64, cx: &mut Context<'_>) {
        let Some(sending) = self.current(id, serial) else {
            return;
        };
        let Some((session, correlation, tenancy)) = sending.ending.take() else {
            return;
        };
        let Some(SubmitResult::Ok(outcomes)) = sending.result.clone() else {
            return;
        };
        self.sending.remove(&id);
        let later = |it: &RecipientOutcome| matches!(it.outcome, Outcome::Deferred { .. });
        let flag = match outcomes.iter().any(later) {
            true if cx.chance(10) => EndMessageFlag::ResendNow,
            true => EndMessageFlag::ResendLater,
            false => EndMessageFlag::Sent,
        };
        self.attempts.handle_ended(id, flag);
        self.end_replied(session, correlation, tenancy, Ok(flag));
    }

    fn end_replied(
        &mut self,
        session: Session,
        correlation: Correlation,
        Tenancy { id, fence }: Tenancy,
        result: Result<EndMessageFlag, Refusal>,
    ) {
        self.say(session, correlation, Verb::EndReply { id, fence, result });
    }

    pub(super) fn cancel_message(&mut self, message: Tenancy, reference: Reference) {
        if self.attempts.may_cancel(message, reference)
            && let Some(sending) = self.sending.get_mut(&message.id)
        {
            sending.cancelled = true;
        }
    }

    pub(super) fn settled(&mut self, tenancies: &[Tenancy]) {
        for id in self.attempts.handle_settled(tenancies) {
            if let Some(sending) = self.sending.get_mut(&id) {
                sending.cancelled = true;
            }
        }
    }

    /// The broken rule: what is not known is said to be unknown, and forgotten.
    pub(super) fn careless_answers(&self, asked: Vec<Tenancy>) -> (Vec<Tenancy>, Vec<Adopted>) {
        let known = |it: &Tenancy| self.known.contains(&it.id);
        let (known, unknown): (Vec<_>, Vec<_>) = asked.into_iter().partition(known);
        let answer = |it: Tenancy| Adopted {
            id: it.id,
            fence: it.fence,
            answer: AdoptAnswer::Unknown,
        };
        (known, unknown.into_iter().map(answer).collect())
    }
}

/// Something that takes a moment.
fn soon(cx: &mut Context<'_>, timer: Timer) {
    let takes = cx.random.u64(1..150);
    cx.after(takes, timer);
}

fn diagnosis(class: u8) -> Diagnosis {
    let status = EnhancedStatus::new(class, 0, 0);
    Diagnosis::new(status, NdrReason::TransferFailed, "the remote says no")
}

fn deferred() -> Outcome {
    Outcome::Deferred {
        diagnosis: diagnosis(4),
        destination_down: false,
    }
}
