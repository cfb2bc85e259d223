//! The two ladders, from the spooler's side: what may follow what, as state machines.
//!
//! No clock, no channel, no log. An actor feeds a machine by its `handle_*` methods, then drains
//! [`submission::Submission::poll_action`] (or the reception's) until it returns `None`. A machine that returns
//! [`PeerMisbehaved`] has not changed: the caller ends the session, which ends all its machines.

pub mod reception;
pub mod submission;

use crate::ids::{RecipientIndex, Reference};

/// The other side said something that its place on the ladder does not allow. The session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerMisbehaved {
    /// A reference below [`Reference::FIRST`].
    #[error("{0:?} is not a reference that a transport may assign")]
    ReservedReference(Reference),
    /// A second reference for one message.
    #[error("a second reference for one message")]
    ReferenceTwice,
    /// S_OK or a saved message, but the reference was never assigned.
    #[error("it returned without having assigned a reference")]
    NoReference,
    /// An answer to a call that was not made, or that was answered before.
    #[error("an answer that nothing asks for")]
    Unasked,
    /// An outcome or a status of a recipient that it was not to consider.
    #[error("recipient {0:?} was not to be considered")]
    NotConsidered(RecipientIndex),
    /// More outcomes than recipients were to be considered.
    #[error("more outcomes than recipients")]
    TooManyOutcomes,
    /// More statuses than any transport has a reason to send.
    #[error("too many statuses")]
    TooManyStatuses,
    /// StatusRecips where the message is not in process.
    #[error("statuses of a message that is not in process")]
    StatusOutOfPlace,
}
