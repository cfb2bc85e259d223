//! What is known of each recipient of one message: kept beside the message while it waits, and as its history after.

use pombo_proto::{
    control::Event,
    outcome::{Delivery, Diagnosis},
    time::UnixMillis,
};
use serde::{Deserialize, Serialize};

/// The state of one message's delivery. Small: one row of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// In the order of the envelope's recipients.
    pub recipients: Vec<RecipientProgress>,
    /// What happened, oldest first; at most [`TIMELINE_MAX`], the middle is dropped.
    pub timeline: Vec<Event>,
    /// Whether the sender was told that it takes long.
    pub delay_reported: bool,
}

/// A message that is tried for days keeps its first and its last events.
pub const TIMELINE_MAX: usize = 48;

/// One recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientProgress {
    /// Where it stands.
    pub state: RecipientState,
    /// The transport that had it last, or has it.
    pub transport: Option<String>,
    /// Transports that left it or are not it, by name: they are not asked again.
    pub passed: Vec<String>,
    /// Completed attempts that ended in "later".
    pub tries: u32,
    /// The last thing that kept it from being delivered.
    pub last: Option<Diagnosis>,
    /// It may have been sent by an attempt whose result was never learned.
    pub in_doubt: bool,
    /// Its transport had kept it (END_DONT_RESEND): SubmitMessage to it says BEGIN_DEFERRED.
    pub was_kept: bool,
    /// When the last attempt ended.
    pub tried_at: Option<UnixMillis>,
}

impl Default for RecipientProgress {
    fn default() -> Self {
        Self {
            state: RecipientState::Pending {
                not_before: UnixMillis(0),
            },
            transport: None,
            passed: Vec::new(),
            tries: 0,
            last: None,
            in_doubt: false,
            was_kept: false,
            tried_at: None,
        }
    }
}

/// Where one recipient stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecipientState {
    /// Owed; not tried again before then.
    Pending {
        /// When it may be tried.
        not_before: UnixMillis,
    },
    /// Left with a transport by END_DONT_RESEND, until it says SENTDEFERRED.
    Kept {
        /// When we stop believing in it and offer it again.
        deadline: UnixMillis,
    },
    /// Sent or delivered.
    Delivered(Delivery),
    /// Never will be.
    Failed {
        /// When that was decided.
        at: UnixMillis,
        /// Why.
        diagnosis: Diagnosis,
    },
    /// Not delivered in time (the schedule's end, or PR_EXPIRY_TIME).
    Expired {
        /// When that was decided.
        at: UnixMillis,
        /// What kept it from being delivered.
        diagnosis: Diagnosis,
    },
    /// Cancelled before it was sent.
    Cancelled {
        /// When.
        at: UnixMillis,
    },
}

impl RecipientState {
    /// Whether nothing more happens to it.
    pub fn is_decided(&self) -> bool {
        !matches!(self, Self::Pending { .. } | Self::Kept { .. })
    }
}

impl Progress {
    /// A message that nobody has tried.
    pub fn fresh(recipients: usize) -> Self {
        Self {
            recipients: vec![RecipientProgress::default(); recipients],
            ..Self::default()
        }
    }

    /// A person has made the message due: whoever is still owed may be tried at once, whatever the schedule said.
    pub fn make_due(&mut self, now: UnixMillis) {
        for recipient in &mut self.recipients {
            if let RecipientState::Pending { not_before } = &mut recipient.state {
                *not_before = now.min(*not_before);
            }
        }
    }

    /// Notes what happened.
    pub fn note(&mut self, at: UnixMillis, what: &str, detail: impl Into<String>) {
        if self.timeline.len() >= TIMELINE_MAX {
            self.timeline.remove(TIMELINE_MAX / 2);
        }
        self.timeline.push(Event {
            at,
            what: what.to_owned(),
            detail: detail.into(),
        });
    }

    /// Whoever is owed it may be tried now: somebody has asked for that.
    pub fn end_pauses(&mut self) {
        for recipient in &mut self.recipients {
            if let RecipientState::Pending { not_before } = &mut recipient.state {
                *not_before = UnixMillis(0);
            }
        }
    }

    /// Whether every recipient is decided.
    pub fn is_finished(&self) -> bool {
        self.recipients
            .iter()
            .all(|recipient| recipient.state.is_decided())
    }
}
