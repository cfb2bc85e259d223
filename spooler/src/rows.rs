//! Rows of the store, as verdicts and leases make them. Functions of what they are about, without a clock.

use std::time::Duration;

use pombo_proto::{control::QueueState, frame, message::Message as Mail, time::UnixMillis};

use crate::{
    progress::Progress,
    store::{RowData, Tally},
    verdict::{Disposition, Verdict},
};

/// A message published twice falls due after this: its first copy may surface later than its twin.
pub const TWIN_WAIT: Duration = Duration::from_secs(90);

/// A delivery that is moved into the outbox, unopened.
///
/// Messages with derived ids are always moved before they are submitted, so that only a door-issued one may have been
/// submitted by whoever held it before us: at the earliest when it was issued.
pub fn moved(message: &Mail, redelivered: bool, marked: bool, now: UnixMillis) -> RowData {
    let doubt = !message.envelope.id.is_derived() && redelivered || marked;
    let (due, reason) = if marked {
        (now.after(TWIN_WAIT), "published twice: waits for its twin")
    } else if redelivered {
        (now, "found again after its holder was lost")
    } else {
        (now, "moved before its first attempt")
    };
    let issued = message.envelope.id.issue().map_or(now, |issue| issue.at);
    RowData {
        doubt,
        unsure_since: issued.min(now),
        ..fresh(message, due, reason)
    }
}

/// A message that nobody has tried, as a row.
pub fn fresh(message: &Mail, due: UnixMillis, reason: &str) -> RowData {
    let envelope = &message.envelope;
    RowData {
        state: QueueState::Waiting,
        due: Some(due.max(envelope.deferred_until.unwrap_or_default())),
        // It waits for no transport, so it is never excluded.
        wake: None,
        reason: reason.to_owned(),
        transport: None,
        destination: None,
        priority: envelope.priority,
        doubt: false,
        unsure_since: due,
        in_doubt: 0,
        deaths: 0,
        message: message.encoded.clone(),
        progress: frame::encode(&Progress::fresh(envelope.recipients.len())),
        tally: Tally::default(),
    }
}

/// What a verdict makes of a message's row. `doubt`: the attempt's result was not learned, so Adopt comes before the next one,
/// and asks who may have had it since then.
pub fn judged(message: &Mail, verdict: &Verdict, doubt: bool, unsure_since: UnixMillis) -> RowData {
    let progress = verdict.progress.encoded();
    let base = RowData {
        state: QueueState::Finished,
        due: None,
        wake: None,
        reason: String::new(),
        transport: None,
        destination: None,
        priority: message.envelope.priority,
        doubt,
        unsure_since,
        in_doubt: verdict.progress.in_doubt(),
        deaths: 0,
        message: message.encoded.clone(),
        progress,
        tally: Tally {
            recipients: verdict.progress.outcomes(),
            is_report: message.envelope.class.is_report(),
        },
    };
    match &verdict.disposition {
        // What is finished needs its body no more.
        Disposition::Finished => RowData {
            message: frame::encoded_head(message),
            ..base
        },
        Disposition::Waiting(waiting) => RowData {
            state: QueueState::Waiting,
            due: Some(waiting.due),
            wake: Some(waiting.wake),
            reason: waiting.reason.clone(),
            transport: waiting.transport.clone(),
            destination: waiting.destination.clone(),
            ..base
        },
        Disposition::Held { reason } => RowData {
            state: QueueState::Held,
            reason: reason.clone(),
            ..base
        },
        Disposition::Dead { reason } => RowData {
            state: QueueState::Dead,
            reason: reason.clone(),
            ..base
        },
    }
}
