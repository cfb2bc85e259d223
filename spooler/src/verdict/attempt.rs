//! What one attempt says of each recipient, and what follows from it.

use std::collections::HashMap;

use pombo_proto::{
    ids::RecipientIndex,
    ladder::submission::AttemptResult,
    outcome::{EndMessageFlag, Outcome, RecipientOutcome, RecipientStatus, SubmitResult},
    time::UnixMillis,
};

use super::{AdoptedAttempt, decision::Decision};
use crate::{progress::RecipientState, router::Route};

/// END_RESEND_NOW is honoured at once for so many tries of a recipient; then the schedule's pauses apply, or a transport
/// that always says it would run in circles.
const RESENDS_NOW_MAX: u32 = 3;

/// The last word about each recipient.
type Words = HashMap<RecipientIndex, Outcome>;

impl Decision<'_> {
    pub(super) fn attempt(
        &mut self,
        transport: &str,
        considered: &[RecipientIndex],
        result: AttemptResult,
        interrupted: bool,
        hold: bool,
    ) {
        let AttemptResult {
            result,
            end,
            statuses,
        } = result;
        let mut words = Words::with_capacity(considered.len());
        for (recipient, status) in statuses {
            weigh(&mut words, recipient, word(status));
        }
        let (result, outcomes) = split(result);
        for RecipientOutcome { recipient, outcome } in outcomes {
            weigh(&mut words, recipient, outcome);
        }
        let mut tally = Tally::default();
        let mut doubted = 0;
        for &index in considered {
            if !self.begin(index, transport) {
                continue;
            }
            let mut said = words.remove(&index).unwrap_or(Outcome::Left);
            tally.count(&said);
            if let Outcome::InDoubt(diagnosis) = said {
                doubted += 1;
                self.known(index).in_doubt = true;
                // What comes next is the same, unless it is held.
                said = Outcome::Deferred {
                    diagnosis,
                    destination_down: false,
                };
            }
            match said {
                Outcome::Delivered(delivery) => {
                    self.settle(index, RecipientState::Delivered(delivery))
                }
                Outcome::Failed(diagnosis) => {
                    let at = self.case.now;
                    self.settle(index, RecipientState::Failed { at, diagnosis });
                }
                undecided => self.go_on(index, transport, undecided, &result, end, interrupted),
            }
        }
        self.note("submitmessage", tally.words(transport, &result, end));
        if doubted > 0 {
            self.doubt(transport, doubted, hold);
        }
    }

    /// The transport was past its point of no return with so many, and never learned what became of them.
    fn doubt(&mut self, transport: &str, recipients: u32, hold: bool) {
        let detail = format!("{transport} was not answered; {recipients} may have been sent to");
        self.note("indoubt", detail);
        *self.doubted.entry(transport.to_owned()).or_default() += recipients;
        if hold {
            let held = format!(
                "in doubt: {transport} was not answered; release sends it again, drop gives it up"
            );
            self.held.get_or_insert(held);
        }
    }

    /// What agents kept of attempts under earlier fences.
    pub(super) fn adopted(&mut self, attempts: Vec<AdoptedAttempt>) {
        for AdoptedAttempt {
            transport,
            result,
            hold,
        } in attempts
        {
            let mut considered = named(&result);
            match result.result {
                SubmitResult::Ok(_) | SubmitResult::Cancelled(_) => {}
                // Nothing was done, and with whom is not known: it is simply offered again.
                SubmitResult::Busy | SubmitResult::NotMe => {
                    self.note("adopted", format!("{transport}: nothing was done"));
                    continue;
                }
                SubmitResult::Wait(..)
                | SubmitResult::NetworkError(..)
                | SubmitResult::CriticalError(_) => considered = self.owed_by(&transport),
            }
            // Whether somebody wanted it cancelled is marked at the message; who asked the attempt is not known.
            self.attempt(&transport, &considered, result, true, hold);
        }
    }

    /// The recipients that would be offered to this transport.
    fn owed_by(&self, transport: &str) -> Vec<RecipientIndex> {
        let owed = |index: &RecipientIndex| {
            let known = &self.progress.recipients[index.get()];
            let recipient = &self.case.envelope.recipients[index.get()];
            matches!(known.state, RecipientState::Pending { .. })
                && matches!(
                    self.case.router.route(recipient, &known.passed),
                    Route::Transport(name) if name == transport
                )
        };
        self.all().filter(owed).collect()
    }

    /// A recipient of which nothing final was said.
    fn go_on(
        &mut self,
        index: RecipientIndex,
        transport: &str,
        said: Outcome,
        result: &SubmitResult,
        end: Option<EndMessageFlag>,
        interrupted: bool,
    ) {
        let now = self.case.now;
        let (schedule, id) = (self.case.schedule, self.case.envelope.id);
        match result {
            SubmitResult::Ok(_) => self.ended(index, transport, said, end),
            SubmitResult::NotMe => self.pass(index, transport),
            SubmitResult::Busy => self.pend(index, schedule.after_busy(now)),
            SubmitResult::Cancelled(_) if interrupted && !self.case.cancelled => {
                if let Outcome::Deferred { diagnosis, .. } = said {
                    self.known(index).last = Some(diagnosis);
                }
                self.pend(index, schedule.after_busy(now));
            }
            SubmitResult::Cancelled(_) => self.settle(index, RecipientState::Cancelled { at: now }),
            SubmitResult::Wait(asked, diagnosis) => {
                let known = self.known(index);
                known.last = diagnosis.clone().or(known.last.take());
                let tries = known.tries;
                self.pend(index, schedule.wait(now, *asked, tries, id));
            }
            SubmitResult::NetworkError(asked, diagnosis) => {
                let known = self.known(index);
                known.last = Some(diagnosis.clone());
                known.tries = known.tries.saturating_add(1);
                let tries = known.tries;
                let not_before = if asked.is_zero() {
                    schedule.next_try(now, tries, id)
                } else {
                    schedule.wait(now, *asked, tries, id)
                };
                self.pend(index, not_before);
            }
            SubmitResult::CriticalError(diagnosis) => {
                self.known(index).last = Some(diagnosis.clone());
                self.pend(index, schedule.after_busy(now));
            }
        }
    }

    /// EndMessage has returned `end`; where its answer was lost, what it would have been follows from the outcome.
    fn ended(
        &mut self,
        index: RecipientIndex,
        transport: &str,
        said: Outcome,
        end: Option<EndMessageFlag>,
    ) {
        let resend = match end {
            Some(EndMessageFlag::ResendNow) => Some(true),
            Some(EndMessageFlag::ResendLater) => Some(false),
            Some(EndMessageFlag::Sent | EndMessageFlag::DontResend) | None => None,
        };
        match (said, resend) {
            (Outcome::Deferred { diagnosis, .. }, resend) => {
                self.known(index).last = Some(diagnosis);
                self.later(index, resend == Some(true));
            }
            (Outcome::Kept, Some(now)) => self.later(index, now),
            (Outcome::Kept, None) => {
                let deadline = self
                    .case
                    .schedule
                    .kept_until(self.case.now, self.case.envelope);
                let known = self.known(index);
                known.was_kept = true;
                known.state = RecipientState::Kept { deadline };
            }
            _ => self.pass(index, transport),
        }
    }

    /// It was tried, and is tried again.
    fn later(&mut self, index: RecipientIndex, at_once: bool) {
        let known = self.known(index);
        known.tries = known.tries.saturating_add(1);
        let tries = known.tries;
        let not_before = if at_once && tries <= RESENDS_NOW_MAX {
            self.case.now
        } else {
            let (schedule, id) = (self.case.schedule, self.case.envelope.id);
            schedule.next_try(self.case.now, tries, id)
        };
        self.pend(index, not_before);
    }

    /// This transport leaves it: the next one may.
    fn pass(&mut self, index: RecipientIndex, transport: &str) {
        let known = self.known(index);
        if !known.passed.iter().any(|name| name == transport) {
            known.passed.push(transport.to_owned());
        }
        self.pend(index, UnixMillis(0));
    }

    fn pend(&mut self, index: RecipientIndex, not_before: UnixMillis) {
        let known = self.known(index);
        known.was_kept = false;
        known.state = RecipientState::Pending { not_before };
    }

    pub(super) fn sent_deferred(
        &mut self,
        transport: &str,
        statuses: Vec<(RecipientIndex, RecipientStatus)>,
    ) {
        let wanted_again = statuses.is_empty();
        let mut words = Words::new();
        for (recipient, status) in statuses {
            weigh(&mut words, recipient, word(status));
        }
        let mut tally = Tally::default();
        let mut again = 0;
        for index in self.all() {
            let known = self.known(index);
            let kept = known.was_kept && known.transport.as_deref() == Some(transport);
            if !kept || known.state.is_decided() {
                continue;
            }
            if wanted_again {
                again += 1;
                known.state = RecipientState::Pending {
                    not_before: UnixMillis(0),
                };
                continue;
            }
            let Some(said) = words.remove(&index) else {
                continue;
            };
            tally.count(&said);
            self.known(index).tried_at = Some(self.case.now);
            match said {
                Outcome::Delivered(delivery) => {
                    self.settle(index, RecipientState::Delivered(delivery))
                }
                Outcome::Failed(diagnosis) => {
                    let at = self.case.now;
                    self.settle(index, RecipientState::Failed { at, diagnosis });
                }
                Outcome::Deferred { .. } | Outcome::InDoubt(_) | Outcome::Left | Outcome::Kept => {}
            }
        }
        let detail = match (wanted_again, again) {
            (true, 0) => format!("{transport}: about nobody it had kept"),
            (true, again) => format!("{transport}: wants {again} again"),
            (false, _) => format!("{transport}: {}", tally.counts()),
        };
        self.note("sentdeferred", detail);
    }
}

/// The recipients that a result says anything of.
pub fn named(result: &AttemptResult) -> Vec<RecipientIndex> {
    let statuses = result.statuses.iter().map(|(recipient, _)| *recipient);
    let mut named: Vec<RecipientIndex> = match &result.result {
        SubmitResult::Ok(outcomes) | SubmitResult::Cancelled(outcomes) => statuses
            .chain(outcomes.iter().map(|it| it.recipient))
            .collect(),
        _ => statuses.collect(),
    };
    named.sort_unstable();
    named.dedup();
    named
}

/// The result with its outcomes taken out.
fn split(result: SubmitResult) -> (SubmitResult, Vec<RecipientOutcome>) {
    match result {
        SubmitResult::Ok(outcomes) => (SubmitResult::Ok(Vec::new()), outcomes),
        SubmitResult::Cancelled(outcomes) => (SubmitResult::Cancelled(Vec::new()), outcomes),
        other => (other, Vec::new()),
    }
}

fn word(status: RecipientStatus) -> Outcome {
    match status {
        RecipientStatus::Delivered(delivery) => Outcome::Delivered(delivery),
        RecipientStatus::NotDelivered(diagnosis) => Outcome::Failed(diagnosis),
    }
}

/// Keeps the more final word; of two equal ones the first.
fn weigh(words: &mut Words, recipient: RecipientIndex, said: Outcome) {
    match words.get(&recipient) {
        Some(known) if finality(known) >= finality(&said) => {}
        _ => {
            words.insert(recipient, said);
        }
    }
}

fn finality(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Left => 0,
        Outcome::Deferred { .. } => 1,
        Outcome::InDoubt(_) => 2,
        Outcome::Kept => 3,
        Outcome::Delivered(_) => 4,
        Outcome::Failed(_) => 5,
    }
}

/// How many of each, for the timeline.
#[derive(Default)]
struct Tally {
    counts: [u32; 6],
    /// The first diagnosis among them.
    said: Option<String>,
}

impl Tally {
    fn count(&mut self, outcome: &Outcome) {
        self.counts[usize::from(finality(outcome))] += 1;
        if let Outcome::Failed(diagnosis)
        | Outcome::Deferred { diagnosis, .. }
        | Outcome::InDoubt(diagnosis) = outcome
            && self.said.is_none()
        {
            self.said = Some(format!("{} {}", diagnosis.status, diagnosis.text));
        }
    }

    fn counts(&self) -> String {
        let names = [
            "left",
            "deferred",
            "in doubt",
            "kept",
            "delivered",
            "failed",
        ];
        let counts: Vec<String> = names
            .iter()
            .zip(self.counts)
            .rev()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        match &self.said {
            Some(said) => format!("{} ({said})", counts.join(", ")),
            None => counts.join(", "),
        }
    }

    fn words(&self, transport: &str, result: &SubmitResult, end: Option<EndMessageFlag>) -> String {
        let what = match result {
            SubmitResult::Ok(_) => self.counts(),
            SubmitResult::Busy => "busy".to_owned(),
            SubmitResult::NotMe => "not me".to_owned(),
            SubmitResult::Cancelled(_) => format!("cancelled, {}", self.counts()),
            SubmitResult::Wait(asked, None) => format!("wait {} s", asked.as_secs()),
            SubmitResult::Wait(asked, Some(why)) => {
                format!("wait {} s: {} {}", asked.as_secs(), why.status, why.text)
            }
            SubmitResult::NetworkError(asked, why) => {
                format!("network error, wait {} s: {}", asked.as_secs(), why.text)
            }
            SubmitResult::CriticalError(why) => format!("critical error: {}", why.text),
        };
        let flag = match end {
            Some(EndMessageFlag::Sent) | None => "",
            Some(EndMessageFlag::ResendNow) => "; resend now",
            Some(EndMessageFlag::ResendLater) => "; resend later",
            Some(EndMessageFlag::DontResend) => "; don't resend",
        };
        format!("{transport}: {what}{flag}")
    }
}
