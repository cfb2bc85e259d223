//! Rows and moving messages, as people see them.

use std::{collections::HashMap, sync::Arc};

use pombo_proto::{
    control::{CancelAnswer, Event, QueueRow, QueueState, RecipientTrace, Trace, Why},
    frame,
    ids::{Fence, Incarnation},
    message::{Envelope, Recipient},
    time::UnixMillis,
};

use crate::{
    dispatcher::MovingView,
    progress::{Progress, RecipientProgress, RecipientState},
    store::Row,
};

/// Recipients named in one row of the queue.
const RECIPIENTS_SHOWN: usize = 5;

/// What cancelling has come to, if the row can tell; `before`: as it stood when the question came.
pub(super) fn cancelled(row: &Row, before: bool) -> Option<CancelAnswer> {
    if row.data.state != QueueState::Finished {
        return None;
    }
    if before {
        return Some(CancelAnswer::TooLate);
    }
    let progress = frame::decode_all::<Progress>(&row.data.progress).ok()?;
    let count = |wanted: fn(&RecipientState) -> bool| {
        let all = progress
            .recipients
            .iter()
            .filter(|it| wanted(&it.state))
            .count();
        u32::try_from(all).unwrap_or(u32::MAX)
    };
    let cancelled = count(|state| matches!(state, RecipientState::Cancelled { .. }));
    let sent = count(|state| matches!(state, RecipientState::Delivered(_)));
    Some(match (cancelled, sent) {
        (0, _) => CancelAnswer::TooLate,
        (_, 0) => CancelAnswer::InTime,
        (cancelled, sent) => CancelAnswer::Partly { sent, cancelled },
    })
}

/// Everything about one message, from its row, from its holder, or from both.
pub(super) fn trace(row: Option<Row>, moving: Option<MovingView>) -> Option<Trace> {
    if let Some(moving) = moving {
        let mut trace = from_parts(&moving.envelope, &moving.progress);
        trace.fence = moving.fence;
        trace.timeline.push(Event {
            at: moving.stage_since,
            what: "now".to_owned(),
            detail: moving.stage.clone(),
        });
        trace.reason = moving.stage;
        return Some(trace);
    }
    let row = row?;
    let envelope = frame::decode_head(&row.data.message).ok()?;
    let progress = frame::decode_all::<Progress>(&row.data.progress).unwrap_or_default();
    let mut trace = from_parts(&Arc::new(envelope), &progress);
    trace.state = row.data.state;
    trace.reason = row.data.reason;
    trace.due = row.data.due;
    trace.fence = row.fence;
    Some(trace)
}

fn from_parts(envelope: &Arc<Envelope>, progress: &Progress) -> Trace {
    let source = &envelope.source;
    Trace {
        id: envelope.id,
        sender: envelope.sender.clone(),
        submitted_at: envelope.submitted_at,
        source: format!("{} {}", source.door, source.client)
            .trim()
            .to_owned(),
        size: envelope.body.size(),
        priority: envelope.priority,
        state: QueueState::Moving,
        reason: String::new(),
        due: None,
        fence: Fence(0),
        recipients: envelope
            .recipients
            .iter()
            .zip(&progress.recipients)
            .map(recipient)
            .collect(),
        timeline: progress.timeline.clone(),
    }
}

fn recipient((recipient, progress): (&Recipient, &RecipientProgress)) -> RecipientTrace {
    let last = || progress.last.as_ref().map_or_else(String::new, words);
    let (state, at, remote, text) = match &progress.state {
        RecipientState::Pending { .. } => ("pending", None, None, last()),
        RecipientState::Kept { deadline } => ("kept", Some(*deadline), None, last()),
        RecipientState::Delivered(delivery) => (
            "delivered",
            Some(delivery.at),
            Some(delivery.remote.clone()),
            delivery.reply.clone(),
        ),
        RecipientState::Failed { at, diagnosis } => (
            "failed",
            Some(*at),
            diagnosis.remote.clone(),
            words(diagnosis),
        ),
        RecipientState::Expired { at, diagnosis } => (
            "expired",
            Some(*at),
            diagnosis.remote.clone(),
            words(diagnosis),
        ),
        RecipientState::Cancelled { at } => ("cancelled", Some(*at), None, String::new()),
    };
    RecipientTrace {
        address: format!("{}:{}", recipient.address_type, recipient.address),
        state: state.to_owned(),
        transport: progress.transport.clone(),
        tries: progress.tries,
        at,
        remote,
        text,
        in_doubt: progress.in_doubt,
    }
}

fn words(diagnosis: &pombo_proto::outcome::Diagnosis) -> String {
    let said = diagnosis.reply.as_deref().unwrap_or(&diagnosis.text);
    format!("{} {said}", diagnosis.status)
}

/// Where it is and why.
pub(super) fn why(
    row: Option<Row>,
    moving: Option<MovingView>,
    names: &HashMap<Incarnation, String>,
) -> Option<Why> {
    if let Some(moving) = moving {
        return Some(Why {
            state: QueueState::Moving,
            holder: Some(moving.holder),
            waiting_for: moving.stage,
            since: moving.stage_since,
            until: None,
        });
    }
    let row = row?;
    let holder = row.holder.map(|holder| {
        names
            .get(&holder)
            .cloned()
            .unwrap_or_else(|| format!("a spooler that is gone ({holder})"))
    });
    let doubt = match row.data.in_doubt {
        0 => String::new(),
        n => format!(" ({n} in doubt: may have been sent to)"),
    };
    Some(Why {
        state: row.data.state,
        holder,
        waiting_for: row.data.reason + &doubt,
        since: row.changed,
        until: row.data.due,
    })
}

/// One row of the queue.
pub(super) fn queue_row(row: &Row) -> QueueRow {
    let envelope = frame::decode_head(&row.data.message).ok();
    let progress = frame::decode_all::<Progress>(&row.data.progress).unwrap_or_default();
    let mut shown = match &envelope {
        Some(envelope) => from_envelope(envelope, &progress),
        None => QueueRow {
            id: row.id,
            state: row.data.state,
            submitted_at: row.changed,
            sender: String::new(),
            recipients: Vec::new(),
            pending: 0,
            in_doubt: 0,
            size: row.data.message.len() as u64,
            transport: None,
            destination: None,
            reason: String::new(),
            due: None,
            tries: 0,
        },
    };
    shown.state = row.data.state;
    shown.transport.clone_from(&row.data.transport);
    shown.destination.clone_from(&row.data.destination);
    shown.reason.clone_from(&row.data.reason);
    shown.due = row.data.due;
    shown
}

/// What moves, as a row of the queue.
pub(crate) fn from_envelope(envelope: &Envelope, progress: &Progress) -> QueueRow {
    let undecided = || {
        envelope
            .recipients
            .iter()
            .zip(&progress.recipients)
            .filter(|(_, progress)| !progress.state.is_decided())
    };
    QueueRow {
        id: envelope.id,
        state: QueueState::Moving,
        submitted_at: envelope.submitted_at,
        sender: envelope.sender.clone(),
        recipients: undecided()
            .take(RECIPIENTS_SHOWN)
            .map(|(it, _)| it.address.clone())
            .collect(),
        pending: u32::try_from(undecided().count()).unwrap_or(u32::MAX),
        in_doubt: progress.in_doubt(),
        size: envelope.body.size(),
        transport: None,
        destination: None,
        reason: String::new(),
        due: None::<UnixMillis>,
        tries: progress
            .recipients
            .iter()
            .map(|it| it.tries)
            .max()
            .unwrap_or(0),
    }
}
