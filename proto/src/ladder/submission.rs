//! One attempt to submit a message, from the spooler's side: from SubmitMessage (or Adopt) to EndMessage.
//!
//! ```text
//! SubmitMessage sent -> AwaitingReference -> Transferring -> AwaitingEnd -> Done
//! Adopt sent         -> AwaitingAdoption  --------------------^
//! ```
//!
//! What holds in every order of events:
//! - EndMessage is called once, and only if SubmitMessage returned S_OK (the table in the submission model).
//! - No reference is used after EndMessage has returned: the transport may have given it to another message by then.
//! - A cancel is said at most once, while SubmitMessage or EndMessage is under way. It decides nothing by itself.
//! - [`Action::Ended`] comes exactly once, and nothing after it.

use std::collections::VecDeque;

use super::PeerMisbehaved;
use crate::{
    ids::{RecipientIndex, Reference},
    outcome::{EndMessageFlag, RecipientOutcome, RecipientStatus, SubmitResult},
    verbs::{AdoptAnswer, Refusal},
};

/// Statuses kept of one attempt, per recipient. A transport has reason for one, perhaps two (relayed, then refused);
/// beyond this it is broken, and memory is not without end.
pub const STATUSES_PER_RECIPIENT_MAX: usize = 4;

/// All that an attempt has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptResult {
    /// What SubmitMessage returned.
    pub result: SubmitResult,
    /// What EndMessage returned; `None` where it does not follow, or where its answer was lost.
    pub end: Option<EndMessageFlag>,
    /// All StatusRecips, in order.
    pub statuses: Vec<(RecipientIndex, RecipientStatus)>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Call EndMessage.
    SendEndMessage {
        /// With this reference.
        reference: Reference,
    },
    /// TransportNotify(CANCEL_MESSAGE). The transport returns as soon as it can; its answers still count.
    SendCancel {
        /// [`Reference::UNASSIGNED_OUTBOUND`] if none is known yet: the frame names message and fence as well.
        reference: Reference,
    },
    /// Adopt was answered "under way": ask again, after a pause.
    AskAgain,
    /// The attempt is over. The last action.
    Ended(Ended),
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its result is known.
    Finished(AttemptResult),
    /// The agent did not even try, or (fenced) somebody else decides about the message.
    Refused(Refusal),
    /// The session ended before SubmitMessage returned. Whether it was sent is to be asked by Adopt.
    Lost,
    /// Adopt was answered "unknown": it is not, and will not be, sent there under an older fence.
    NotThere,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    AwaitingReference,
    Transferring {
        reference: Reference,
    },
    AwaitingAdoption,
    /// EndMessage is under way.
    AwaitingEnd {
        reference: Reference,
        outcomes: Vec<RecipientOutcome>,
    },
    Done,
}

/// One attempt. Feed it, then drain [`Submission::poll_action`].
#[derive(Debug)]
pub struct Submission {
    state: State,
    /// Sorted.
    considered: Vec<RecipientIndex>,
    statuses: Vec<(RecipientIndex, RecipientStatus)>,
    cancel_said: bool,
    actions: VecDeque<Action>,
}

impl Submission {
    /// SubmitMessage was called for these recipients.
    pub fn new(considered: &[RecipientIndex]) -> Self {
        Self::in_state(State::AwaitingReference, considered)
    }

    /// Adopt was asked, about what an earlier holder may have submitted. `considered`: whom that may have been, all of the
    /// message's recipients if that is not known.
    pub fn adopting(considered: &[RecipientIndex]) -> Self {
        Self::in_state(State::AwaitingAdoption, considered)
    }

    fn in_state(state: State, considered: &[RecipientIndex]) -> Self {
        let mut considered = considered.to_vec();
        considered.sort_unstable();
        Self {
            state,
            considered,
            statuses: Vec::new(),
            cancel_said: false,
            actions: VecDeque::new(),
        }
    }

    /// The recipients with PR_RESPONSIBILITY = FALSE, in order.
    pub fn considered(&self) -> &[RecipientIndex] {
        &self.considered
    }

    /// The transport's reference, while it is alive.
    pub fn reference(&self) -> Option<Reference> {
        match self.state {
            State::Transferring { reference } | State::AwaitingEnd { reference, .. } => {
                Some(reference)
            }
            State::AwaitingReference | State::AwaitingAdoption | State::Done => None,
        }
    }

    /// Whether nothing more is expected.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The transport has assigned its reference.
    ///
    /// # Errors
    /// It is a reserved value, the second one, or nothing is being submitted.
    pub fn handle_reference(&mut self, reference: Reference) -> Result<(), PeerMisbehaved> {
        match self.state {
            State::AwaitingReference => {
                check_reference(reference)?;
                self.state = State::Transferring { reference };
                Ok(())
            }
            State::Transferring { .. } | State::AwaitingEnd { .. } => {
                Err(PeerMisbehaved::ReferenceTwice)
            }
            State::AwaitingAdoption | State::Done => Err(PeerMisbehaved::Unasked),
        }
    }

    /// StatusRecips. Collected: what they mean is decided when the attempt is over.
    ///
    /// # Errors
    /// They are of recipients that were not to be considered, too many, or of a message that is not in process.
    pub fn handle_statuses(
        &mut self,
        statuses: Vec<(RecipientIndex, RecipientStatus)>,
    ) -> Result<(), PeerMisbehaved> {
        match self.state {
            State::Transferring { .. } | State::AwaitingEnd { .. } => {}
            State::AwaitingReference | State::AwaitingAdoption | State::Done => {
                return Err(PeerMisbehaved::StatusOutOfPlace);
            }
        }
        self.check_statuses(&statuses)?;
        self.statuses.extend(statuses);
        Ok(())
    }

    /// SubmitMessage returned, or was refused.
    ///
    /// # Errors
    /// S_OK without a reference, outcomes of others than the considered, or it is not under way.
    pub fn handle_submit_reply(
        &mut self,
        result: Result<SubmitResult, Refusal>,
    ) -> Result<(), PeerMisbehaved> {
        let reference = match self.state {
            State::AwaitingReference => None,
            State::Transferring { reference } => Some(reference),
            State::AwaitingAdoption | State::AwaitingEnd { .. } | State::Done => {
                return Err(PeerMisbehaved::Unasked);
            }
        };
        match result {
            Err(refusal) => self.end(Ended::Refused(refusal)),
            Ok(result) => {
                self.check_outcomes(&result)?;
                self.submitted(reference, result)?;
            }
        }
        Ok(())
    }

    /// EndMessage returned, or was refused. The reference is dead now.
    ///
    /// # Errors
    /// EndMessage is not under way.
    pub fn handle_end_reply(
        &mut self,
        result: Result<EndMessageFlag, Refusal>,
    ) -> Result<(), PeerMisbehaved> {
        let State::AwaitingEnd { .. } = self.state else {
            return Err(PeerMisbehaved::Unasked);
        };
        match result {
            Err(Refusal::Fenced) => self.end(Ended::Refused(Refusal::Fenced)),
            // The outcomes are known; what the flag would have said follows from them.
            Err(_) => self.finish(None),
            Ok(flag) => self.finish(Some(flag)),
        }
        Ok(())
    }

    /// Adopt was answered. "Under way" is no end: ask again.
    ///
    /// # Errors
    /// Nothing was asked, or what it says of recipients or reference cannot be.
    pub fn handle_adopted(&mut self, answer: AdoptAnswer) -> Result<(), PeerMisbehaved> {
        if self.state != State::AwaitingAdoption {
            return Err(PeerMisbehaved::Unasked);
        }
        match answer {
            AdoptAnswer::Unknown => self.end(Ended::NotThere),
            AdoptAnswer::Fenced => self.end(Ended::Refused(Refusal::Fenced)),
            AdoptAnswer::UnderWay => self.actions.push_back(Action::AskAgain),
            AdoptAnswer::Done {
                reference,
                result,
                statuses,
                ended,
            } => {
                self.check_statuses(&statuses)?;
                self.check_outcomes(&result)?;
                match (result, ended) {
                    (SubmitResult::Ok(outcomes), Some(flag)) => {
                        self.statuses = statuses;
                        self.state = State::AwaitingEnd {
                            reference,
                            outcomes,
                        };
                        self.finish(Some(flag));
                    }
                    (result, _) => {
                        if matches!(result, SubmitResult::Ok(_)) {
                            check_reference(reference)?;
                        }
                        self.statuses = statuses;
                        self.submitted(Some(reference), result)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Somebody wants it cancelled. Said to the transport once, while there is something to stop.
    pub fn handle_cancel(&mut self) {
        let reference = match self.state {
            State::Done => return,
            State::AwaitingReference | State::AwaitingAdoption => Reference::UNASSIGNED_OUTBOUND,
            State::Transferring { reference } | State::AwaitingEnd { reference, .. } => reference,
        };
        if !self.cancel_said {
            self.cancel_said = true;
            self.actions.push_back(Action::SendCancel { reference });
        }
    }

    /// The session is over. If SubmitMessage had returned, its outcomes stand.
    pub fn handle_session_ended(&mut self) {
        // What was not yet sent has nobody to go to.
        self.actions
            .retain(|action| matches!(action, Action::Ended(_)));
        match self.state {
            State::Done => {}
            State::AwaitingEnd { .. } => self.finish(None),
            State::AwaitingReference | State::Transferring { .. } | State::AwaitingAdoption => {
                self.end(Ended::Lost);
            }
        }
    }

    /// What to do next; `None`: nothing for now.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn submitted(
        &mut self,
        reference: Option<Reference>,
        result: SubmitResult,
    ) -> Result<(), PeerMisbehaved> {
        match result {
            SubmitResult::Ok(outcomes) => {
                let reference = reference.ok_or(PeerMisbehaved::NoReference)?;
                self.state = State::AwaitingEnd {
                    reference,
                    outcomes,
                };
                self.actions.push_back(Action::SendEndMessage { reference });
            }
            result => {
                let statuses = std::mem::take(&mut self.statuses);
                self.end(Ended::Finished(AttemptResult {
                    result,
                    end: None,
                    statuses,
                }));
            }
        }
        Ok(())
    }

    fn finish(&mut self, end: Option<EndMessageFlag>) {
        if let State::AwaitingEnd { outcomes, .. } = std::mem::replace(&mut self.state, State::Done)
        {
            let statuses = std::mem::take(&mut self.statuses);
            self.end(Ended::Finished(AttemptResult {
                result: SubmitResult::Ok(outcomes),
                end,
                statuses,
            }));
        }
    }

    fn end(&mut self, ended: Ended) {
        self.state = State::Done;
        self.actions
            .retain(|action| !matches!(action, Action::SendCancel { .. } | Action::AskAgain));
        self.actions.push_back(Action::Ended(ended));
    }

    fn check_statuses(
        &self,
        statuses: &[(RecipientIndex, RecipientStatus)],
    ) -> Result<(), PeerMisbehaved> {
        let most = self.considered.len() * STATUSES_PER_RECIPIENT_MAX;
        if self.statuses.len() + statuses.len() > most {
            return Err(PeerMisbehaved::TooManyStatuses);
        }
        statuses
            .iter()
            .try_for_each(|(recipient, _)| self.check_considered(*recipient))
    }

    fn check_outcomes(&self, result: &SubmitResult) -> Result<(), PeerMisbehaved> {
        let (SubmitResult::Ok(outcomes) | SubmitResult::Cancelled(outcomes)) = result else {
            return Ok(());
        };
        if outcomes.len() > self.considered.len() {
            return Err(PeerMisbehaved::TooManyOutcomes);
        }
        outcomes
            .iter()
            .try_for_each(|outcome| self.check_considered(outcome.recipient))
    }

    fn check_considered(&self, recipient: RecipientIndex) -> Result<(), PeerMisbehaved> {
        match self.considered.binary_search(&recipient) {
            Ok(_) => Ok(()),
            Err(_) => Err(PeerMisbehaved::NotConsidered(recipient)),
        }
    }
}

fn check_reference(reference: Reference) -> Result<(), PeerMisbehaved> {
    if reference < Reference::FIRST {
        return Err(PeerMisbehaved::ReservedReference(reference));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
