//! Puts the spoolers' answers together: the store says the same everywhere, but a message's holder knows more.

use std::collections::HashMap;

use pombo_proto::control::{
    Answer, CancelAnswer, QueueRow, QueueState, SessionRow, Trace, ValidationRow, Why,
};

pub(super) fn trace(answers: Vec<Answer>) -> Option<Trace> {
    let found = answers.into_iter().filter_map(|answer| match answer {
        Answer::Trace(trace) => trace,
        _ => None,
    });
    // The holder's word first, then the row with most history.
    found
        .max_by_key(|it| {
            (
                it.state == QueueState::Moving && it.timeline.len() > 1,
                it.timeline.len(),
            )
        })
        .map(|it| *it)
}

pub(super) fn why(answers: Vec<Answer>) -> Option<Why> {
    let found = answers.into_iter().filter_map(|answer| match answer {
        Answer::Why(why) => why,
        _ => None,
    });
    // Every spooler sees a claimed row; its holder says more than "claimed".
    found.max_by_key(|it| {
        (
            it.state == QueueState::Moving,
            it.waiting_for.starts_with("with "),
        )
    })
}

pub(super) fn queue(answers: Vec<Answer>) -> Vec<QueueRow> {
    let mut rows: HashMap<_, QueueRow> = HashMap::new();
    for answer in answers {
        let Answer::Queue(more) = answer else {
            continue;
        };
        for row in more {
            // Every spooler sees a claimed row; its holder's, which names no destination, says more.
            let says = |row: &QueueRow| {
                let moving = row.state == QueueState::Moving;
                (moving, moving && row.destination.is_none())
            };
            if rows
                .get(&row.id)
                .is_none_or(|known| says(known) <= says(&row))
            {
                rows.insert(row.id, row);
            }
        }
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    rows.sort_by_key(|row| (row.submitted_at, row.id));
    rows
}

pub(super) fn cancel(answers: Vec<Answer>) -> CancelAnswer {
    let rank = |answer: &CancelAnswer| match answer {
        CancelAnswer::Unknown => 0,
        CancelAnswer::Asked => 1,
        CancelAnswer::TooLate => 2,
        CancelAnswer::Partly { .. } => 3,
        CancelAnswer::InTime => 4,
    };
    let all = answers.into_iter().filter_map(|answer| match answer {
        Answer::Cancelled(answer) => Some(answer),
        _ => None,
    });
    all.max_by_key(rank).unwrap_or(CancelAnswer::Unknown)
}

pub(super) fn transports(answers: Vec<Answer>) -> Vec<SessionRow> {
    let rows = |answer| match answer {
        Answer::Transports(rows) => Some(rows),
        _ => None,
    };
    by_session(answers, rows, |row| {
        (&row.transport, &row.agent, &row.spooler)
    })
}

pub(super) fn validated(answers: Vec<Answer>) -> Vec<ValidationRow> {
    let rows = |answer| match answer {
        Answer::Validated(rows) => Some(rows),
        _ => None,
    };
    by_session(answers, rows, |row| {
        (&row.transport, &row.agent, &row.spooler)
    })
}

/// All rows of the answers, in the order of transport, agent and spooler.
fn by_session<T>(
    answers: Vec<Answer>,
    rows: impl Fn(Answer) -> Option<Vec<T>>,
    key: impl Fn(&T) -> (&String, &String, &String),
) -> Vec<T> {
    let mut all: Vec<T> = answers.into_iter().filter_map(rows).flatten().collect();
    all.sort_by(|a, b| key(a).cmp(&key(b)));
    all
}

pub(super) fn changed(answers: Vec<Answer>) -> u64 {
    let count = |answer: &Answer| {
        if let Answer::Changed { count } = answer {
            *count
        } else {
            0
        }
    };
    answers.iter().map(count).sum()
}
