//! One reception, from the spooler's side.

use crate::{ids::Reference, verbs::StartResult};
use super::PeerMisbehaved;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// TransportNotify(CANCEL_MESSAGE) for a reception.
    SendCancel {
        /// Its reference.
        reference: Reference,
    },
    /// StartMessage returned this; `None`: the session ended first. The last action.
    Ended(Option<StartResult>),
}

/// The machine: the permit was sent.
#[derive(Debug)]
pub struct Reception {}
impl Reception {
    /// StartMessage was called.
    pub fn new() -> Self { unimplemented!() }
    /// The transport's reference.
    pub fn handle_reference(&mut self, reference: Reference) -> Result<(), PeerMisbehaved> { let _ = reference; unimplemented!() }
    /// StartMessage returned.
    pub fn handle_reply(&mut self, result: StartResult) -> Result<(), PeerMisbehaved> { let _ = result; unimplemented!() }
    /// Stop this delivery.
    pub fn handle_cancel(&mut self) { unimplemented!() }
    /// The session is over.
    pub fn handle_session_ended(&mut self) { unimplemented!() }
    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> { unimplemented!() }
}
