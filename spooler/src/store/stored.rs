//! What both stores share: how states, marks and times are stored, what people may do to a row, and what a list takes in.
//!
//! Numbers here stand in files and databases out there: they are added to, never changed.

use bytes::Bytes;
use pombo_proto::{
    control::{QueueFilter, QueueState},
    frame,
    message::{Envelope, Priority},
    time::UnixMillis,
};

use super::{Change, Mark, Row, RowData};

/// States as they are stored. 1 and 2 also stand in the schemas' partial indexes.
pub(super) const WAITING: i64 = 1;
/// See [`WAITING`].
pub(super) const CLAIMED: i64 = 2;
/// See [`WAITING`].
pub(super) const HELD: i64 = 3;
/// See [`WAITING`].
pub(super) const DEAD: i64 = 4;
/// See [`WAITING`].
pub(super) const FINISHED: i64 = 5;

/// A cancel that the holder learned of when it claimed.
pub(super) const CANCEL_KNOWN: i64 = 1;
/// A cancel that was marked while the row was claimed: what the holder records next does not answer it.
pub(super) const CANCEL_FRESH: i64 = 2;
/// A drop: the message is given up.
pub(super) const DROP: i64 = 3;

/// Added to the recorded state where the verdict left the row in doubt: what an agent keeps of that fence must stay there
/// until somebody has adopted it.
pub(super) const IN_DOUBT: i64 = 16;

/// Derived ids carry no date: they share this part.
pub(super) const UNDATED: u32 = 0;
/// At most this many finished rows go in one call of prune (about a second on a slow disk).
pub(super) const PRUNED_MAX: usize = 20_000;

/// What one step of pruning did to a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartStep {
    /// Something in it is unfinished, nothing in it is old enough, or another process was quicker.
    Stays,
    /// Some of its rows are gone; there may be more.
    Shrunk,
    /// It is gone.
    Dropped,
}

/// The unit of parts.
pub(super) const DAY_MS: i64 = 86_400_000;

/// What a row says after its holder ended.
pub(super) const TAKEN_OVER: &str = "taken over: the spooler that held it has ended";

/// Rows in one claim, whatever is asked for.
pub(super) const CLAIMED_MAX: usize = 4_096;
/// Excluded rows that a claim in order steps over, per priority.
pub(super) const STEPPED_OVER_MAX: usize = 2_000;
/// Lanes that one claim looks into.
pub(super) const LANES_MAX: usize = 1_000;

/// Rows that one slice of a list looks at: some tens of milliseconds, if each head is opened.
pub(super) const SLICE_SEEN_MAX: usize = 2_000;
/// Bytes of heads and progress that one slice of a list reads: a message with 10,000 recipients has a megabyte of each.
const SLICE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Finished rows that a list looks at: history has hundreds of millions.
pub(super) const FINISHED_SEEN_MAX: usize = 100_000;
/// A head is usually this short; a longer one is read once more.
pub(super) const HEAD_FIRST: usize = 2_048;

/// What is remembered of a verdict besides its fence and holder.
pub(super) fn recorded_state(row: &RowData) -> i64 {
    stored(row.state) + if row.doubt { IN_DOUBT } else { 0 }
}

/// A state as it is stored. Nobody writes `Moving`: a row is claimed by a claim or not at all.
pub(super) fn stored(state: QueueState) -> i64 {
    match state {
        QueueState::Waiting | QueueState::Moving => WAITING,
        QueueState::Held => HELD,
        QueueState::Dead => DEAD,
        QueueState::Finished => FINISHED,
    }
}

/// A priority as it is stored: in the order of claims.
pub(super) fn stored_priority(priority: Priority) -> i64 {
    match priority {
        Priority::Urgent => 0,
        Priority::Normal => 1,
        Priority::Bulk => 2,
    }
}

/// An instant as it is stored.
pub(super) fn stored_time(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// Back from [`stored`].
pub(super) fn state_from(stored: i64) -> QueueState {
    match stored {
        CLAIMED => QueueState::Moving,
        HELD => QueueState::Held,
        DEAD => QueueState::Dead,
        FINISHED => QueueState::Finished,
        _ => QueueState::Waiting,
    }
}

/// Back from [`stored_priority`].
pub(super) fn priority_from(stored: i64) -> Priority {
    match stored {
        0 => Priority::Urgent,
        1 => Priority::Normal,
        _ => Priority::Bulk,
    }
}

/// Back from [`stored_time`].
pub(super) fn time_from(stored: i64) -> UnixMillis {
    UnixMillis(stored.unsigned_abs())
}

/// What a claim learns of the cancel column.
pub(super) fn mark_from(cancel: i64) -> Mark {
    match cancel {
        0 => Mark::None,
        DROP => Mark::Drop,
        _ => Mark::Cancel,
    }
}

/// Where a change leads.
pub(super) struct After {
    pub state: i64,
    pub cancel: i64,
    pub hold: bool,
}

/// The table of what people may do to a row in this state with these marks; `None` where it does not apply.
pub(super) fn changed(state: i64, cancel: i64, hold: bool, change: Change) -> Option<After> {
    let to = |state, cancel, hold| {
        Some(After {
            state,
            cancel,
            hold,
        })
    };
    match (change, state) {
        (Change::Retry, WAITING) | (Change::Release, HELD) | (Change::Requeue, DEAD) => {
            to(WAITING, cancel, false)
        }
        (Change::Hold, WAITING) => to(HELD, cancel, false),
        (Change::Hold, CLAIMED) => to(CLAIMED, cancel, true),
        (Change::Release, CLAIMED) if hold => to(CLAIMED, cancel, false),
        (Change::Cancel, WAITING | HELD | DEAD) => to(WAITING, CANCEL_KNOWN, false),
        (Change::Drop, DEAD | HELD) => to(WAITING, DROP, false),
        (Change::Cancel, CLAIMED) if cancel == CANCEL_KNOWN || cancel == DROP => {
            to(CLAIMED, cancel, hold)
        }
        (Change::Cancel, CLAIMED) => to(CLAIMED, CANCEL_FRESH, hold),
        _ => None,
    }
}

/// A slice of a list as it grows.
pub(super) struct Listed<'a> {
    pub filter: &'a QueueFilter,
    limit: usize,
    bytes: usize,
    pub rows: Vec<Row>,
}

impl<'a> Listed<'a> {
    pub fn new(filter: &'a QueueFilter, limit: usize) -> Self {
        Self {
            filter,
            limit: limit.max(1),
            bytes: 0,
            rows: Vec::new(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.rows.len() >= self.limit || self.bytes >= SLICE_BYTES_MAX
    }

    /// Takes a row whose head has been read, if it is wanted. What it cost to read counts in any case.
    pub fn offer(&mut self, row: Row) {
        self.bytes += row.data.message.len() + row.data.progress.len();
        if self.fits(&row.data) && self.wants(&row.data.message) {
            self.rows.push(row);
        }
    }

    /// By state, transport and destination, as an index or a row says them, before anything more is read.
    pub fn may_fit(&self, state: i64, transport: &str, destination: &str) -> bool {
        let there =
            |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        let state = state_from(state);
        self.filter
            .state
            .map_or(state != QueueState::Finished, |wanted| wanted == state)
            && there(&self.filter.transport, transport)
            && there(&self.filter.destination, destination)
    }

    /// Likewise, and by doubt; no transport and an empty one are the same here.
    fn fits(&self, data: &RowData) -> bool {
        let state = match data.state {
            QueueState::Moving => CLAIMED,
            other => stored(other),
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        self.may_fit(state, &text(&data.transport), &text(&data.destination))
            && (!self.filter.in_doubt || data.in_doubt > 0)
    }

    /// By sender and recipients, which stand in the head alone.
    fn wants(&self, head: &Bytes) -> bool {
        if self.filter.sender.is_none() && self.filter.recipient.is_none() {
            return true;
        }
        frame::decode_head(head).is_ok_and(|envelope| self.matches(&envelope))
    }

    fn matches(&self, envelope: &Envelope) -> bool {
        let sender = match self.filter.sender.as_deref() {
            None => true,
            // The null reverse-path, as people write it.
            Some("" | "<>") => envelope.sender.is_empty(),
            Some(part) => contains(&envelope.sender, part),
        };
        let recipient = self.filter.recipient.as_deref().is_none_or(|part| {
            let mut recipients = envelope.recipients.iter();
            recipients.any(|recipient| contains(&recipient.address, part))
        });
        sender && recipient
    }
}

/// Whether `part` stands somewhere in `text`, in whatever case.
fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}
