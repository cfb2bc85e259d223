//! A message in process: the tenure, what it is about, and what is known so far. It moves from actor to actor; there
//! is never a second one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use pombo_proto::{
    ids::{Incarnation, MessageId},
    message::Message,
    tenure::{Ordinal, Tenure},
    time::UnixMillis,
};

use crate::{
    note::{Asks, Note},
    progress::Progress,
};

/// A message that this process may decide about.
#[derive(Debug)]
pub struct Job {
    /// The right to decide.
    pub tenure: Tenure,
    /// The message.
    pub message: Message,
    /// What became of it so far.
    pub progress: Progress,
    /// A cancel was marked before it was claimed, or has come since.
    pub cancelled: bool,
    /// A person has given it up: its sender is told, and nobody tries it again.
    pub dropped: bool,
    /// Somebody may have submitted it without our knowing.
    pub doubt: bool,
    /// Since when somebody may have: by the clock, for comparison with when agents were struck off. From this tenure on, unless it
    /// came in doubt.
    pub unsure_since: UnixMillis,
    /// How often whoever had it died with it.
    pub deaths: u32,
    /// What was noted about an earlier attempt, until that is decided; then about this one.
    pub note: Note,
    /// About which transports everybody was asked at the dot who may have submitted it since then.
    pub asks: Asks,
    /// When the tenure was obtained.
    pub since: Instant,
}

impl Job {
    /// The message's id.
    pub fn id(&self) -> MessageId {
        self.tenure.id()
    }
}

/// An agent's incarnation, by which this process names its session with it.
pub type SessionKey = Incarnation;

/// Draws ordinals: sessions and tenures from one counter.
#[derive(Clone, Debug, Default)]
pub struct Ordinals(Arc<AtomicU64>);

impl Ordinals {
    /// The next place in the order.
    pub fn next(&self) -> Ordinal {
        Ordinal(self.0.fetch_add(1, Ordering::Relaxed))
    }
}
