//! What is known of each recipient of one message: kept beside the message while it waits, and as its history after.

use pombo_proto::{
    control::Event,
    frame,
    ledger::Outcomes,
    outcome::{Delivery, Diagnosis},
    time::UnixMillis,
    trace::{TRACEPARENT, TraceParent},
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

/// What others said of all recipients together, where it is kept: beside it there must be room for the rest of what is known of
/// 10,000 recipients in what can be read again ([`frame::HEAD_BYTES_MAX`]).
const TEXTS_BYTES_MAX: usize = 2 * 1024 * 1024;

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

impl RecipientProgress {
    /// Three of the state, three of what was last.
    const TEXTS: usize = 6;

    /// Bytes of what others said, and of our words about it.
    fn text_bytes(&self) -> usize {
        let of = |diagnosis: &Diagnosis| {
            let (remote, reply) = (diagnosis.remote.as_ref(), diagnosis.reply.as_ref());
            [Some(&diagnosis.text), remote, reply].map(|text| text.map_or(0, String::len))
        };
        let state = match &self.state {
            RecipientState::Delivered(delivery) => [delivery.remote.len(), delivery.reply.len(), 0],
            RecipientState::Failed { diagnosis, .. }
            | RecipientState::Expired { diagnosis, .. } => of(diagnosis),
            RecipientState::Pending { .. }
            | RecipientState::Kept { .. }
            | RecipientState::Cancelled { .. } => [0; 3],
        };
        let last = self.last.as_ref().map_or([0; 3], of);
        state.into_iter().chain(last).sum()
    }

    /// Each of them to so many bytes.
    fn cut(&mut self, most: usize) {
        let cut = |text: &mut String| text.truncate(text.floor_char_boundary(most));
        let cut_all = |diagnosis: &mut Diagnosis| {
            cut(&mut diagnosis.text);
            diagnosis.remote.iter_mut().for_each(cut);
            diagnosis.reply.iter_mut().for_each(cut);
        };
        match &mut self.state {
            RecipientState::Delivered(delivery) => {
                cut(&mut delivery.remote);
                cut(&mut delivery.reply);
            }
            RecipientState::Failed { diagnosis, .. }
            | RecipientState::Expired { diagnosis, .. } => cut_all(diagnosis),
            RecipientState::Pending { .. }
            | RecipientState::Kept { .. }
            | RecipientState::Cancelled { .. } => {}
        }
        self.last.iter_mut().for_each(cut_all);
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

    /// As the store keeps it. Where many servers have said much, or one server much of many recipients, it is cut evenly.
    pub fn encoded(&self) -> Vec<u8> {
        let texts = self.recipients.iter().map(RecipientProgress::text_bytes);
        if texts.sum::<usize>() <= TEXTS_BYTES_MAX {
            return frame::encode(self);
        }
        let most = TEXTS_BYTES_MAX / self.recipients.len().max(1) / RecipientProgress::TEXTS;
        let mut short = self.clone();
        for known in &mut short.recipients {
            known.cut(most);
        }
        frame::encode(&short)
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

    /// The message's publisher has put it into a trace of its own: kept with what happened.
    pub fn note_trace(&mut self, at: UnixMillis, trace: TraceParent) {
        self.note(at, TRACEPARENT, trace.to_string());
    }

    /// That trace. Without one, the message's id is its trace.
    pub fn trace(&self) -> Option<&str> {
        // Noted first, and the first events are never dropped.
        let mut first = self.timeline.iter().take(2);
        let noted = first.find(|event| event.what == TRACEPARENT)?;
        Some(&noted.detail)
    }

    /// How many undecided recipients may have been sent to without our knowing.
    pub fn in_doubt(&self) -> u32 {
        let doubted = |it: &&RecipientProgress| it.in_doubt && !it.state.is_decided();
        let count = self.recipients.iter().filter(doubted).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The recipients that are decided, for the ledger.
    pub fn outcomes(&self) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for recipient in &self.recipients {
            *match recipient.state {
                RecipientState::Delivered(_) => &mut outcomes.delivered,
                RecipientState::Failed { .. } => &mut outcomes.failed,
                RecipientState::Expired { .. } => &mut outcomes.expired,
                RecipientState::Cancelled { .. } => &mut outcomes.cancelled,
                RecipientState::Pending { .. } | RecipientState::Kept { .. } => continue,
            } += 1;
        }
        outcomes
    }

    /// Whether every recipient is decided.
    pub fn is_finished(&self) -> bool {
        self.recipients
            .iter()
            .all(|recipient| recipient.state.is_decided())
    }
}

#[cfg(test)]
mod tests {
    use pombo_proto::{
        message::RECIPIENTS_MAX,
        outcome::{EnhancedStatus, NdrReason, TEXT_BYTES_MAX},
    };

    use super::*;

    /// A server that has much to say of many recipients must not make a message that cannot be read again.
    #[test]
    fn however_much_is_said_of_however_many_it_is_read_again() {
        let long = "\u{e4}".repeat(TEXT_BYTES_MAX);
        let diagnosis = Diagnosis::new(
            EnhancedStatus::new(5, 999, 999),
            NdrReason::TransferFailed,
            long.as_str(),
        );
        let diagnosis = diagnosis.said_by(long.as_str(), long.as_str());
        let at = UnixMillis(u64::MAX);
        let known = RecipientProgress {
            state: RecipientState::Expired {
                at,
                diagnosis: diagnosis.clone(),
            },
            transport: Some("a-transport-by-a-long-name".to_owned()),
            passed: vec!["another-transport".to_owned(); 2],
            tries: u32::MAX,
            last: Some(diagnosis),
            in_doubt: true,
            was_kept: true,
            tried_at: Some(at),
        };
        let mut progress = Progress::fresh(RECIPIENTS_MAX);
        progress.recipients.fill(known);
        for _ in 0..TIMELINE_MAX {
            progress.note(at, "submitmessage", "x".repeat(TEXT_BYTES_MAX));
        }
        let read: Progress = frame::decode_all(&progress.encoded()).unwrap();
        assert_eq!(read.recipients.len(), RECIPIENTS_MAX);
        assert_eq!(read.timeline, progress.timeline);
        let last = read.recipients[0].last.as_ref().unwrap();
        assert!(long.starts_with(&last.text) && last.text.len() >= 32);
        // What has room stays as it is.
        progress.recipients.truncate(300);
        let read: Progress = frame::decode_all(&progress.encoded()).unwrap();
        assert_eq!(read, progress);
    }
}
