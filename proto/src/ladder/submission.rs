//! One attempt to submit a message, from the spooler's side.

use crate::{
    ids::{RecipientIndex, Reference},
    outcome::{EndMessageFlag, RecipientStatus, SubmitResult},
    verbs::{AdoptAnswer, Refusal},
};
use super::PeerMisbehaved;

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
    /// TransportNotify(CANCEL_MESSAGE).
    SendCancel {
        /// 0 if none is known yet.
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
    /// The agent did not even try.
    Refused(Refusal),
    /// The session ended before SubmitMessage returned: ask by Adopt.
    Lost,
    /// Adopt was answered "unknown": it is not, and will not be, sent there.
    NotThere,
}

/// The machine.
#[derive(Debug)]
pub struct Submission {}

impl Submission {
    /// SubmitMessage was sent for these recipients.
    pub fn new(considered: &[RecipientIndex]) -> Self { let _ = considered; unimplemented!() }
    /// Adopt was sent, for what an earlier holder may have submitted.
    pub fn adopting(considered: &[RecipientIndex]) -> Self { let _ = considered; unimplemented!() }
    /// The transport's reference.
    pub fn handle_reference(&mut self, reference: Reference) -> Result<(), PeerMisbehaved> { let _ = reference; unimplemented!() }
    /// StatusRecips.
    pub fn handle_statuses(&mut self, statuses: Vec<(RecipientIndex, RecipientStatus)>) -> Result<(), PeerMisbehaved> { let _ = statuses; unimplemented!() }
    /// SubmitMessage returned.
    pub fn handle_submit_reply(&mut self, result: Result<SubmitResult, Refusal>) -> Result<(), PeerMisbehaved> { let _ = result; unimplemented!() }
    /// EndMessage returned.
    pub fn handle_end_reply(&mut self, result: Result<EndMessageFlag, Refusal>) -> Result<(), PeerMisbehaved> { let _ = result; unimplemented!() }
    /// Adopt was answered.
    pub fn handle_adopted(&mut self, answer: AdoptAnswer) -> Result<(), PeerMisbehaved> { let _ = answer; unimplemented!() }
    /// Somebody wants it cancelled.
    pub fn handle_cancel(&mut self) { unimplemented!() }
    /// The session is over.
    pub fn handle_session_ended(&mut self) { unimplemented!() }
    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> { unimplemented!() }
}
