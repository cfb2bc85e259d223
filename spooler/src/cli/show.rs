//! Tables for people, JSON for programs.

use comfy_table::{ContentArrangement, Table, presets::UTF8_BORDERS_ONLY};
use pombo_proto::{
    control::{
        Answer, CancelAnswer, Question, QueueRow, QueueState, SessionRow, Trace, ValidationRow, Why,
    },
    door,
    ids::MessageId,
    time::UnixMillis,
    verbs::Validation,
};
use serde::Serialize;

use super::{Error, client::Client};

pub(super) fn parse_state(text: &str) -> Result<QueueState, String> {
    let all = [
        QueueState::Moving,
        QueueState::Waiting,
        QueueState::Held,
        QueueState::Dead,
        QueueState::Finished,
    ];
    all.into_iter()
        .find(|state| state_name(*state) == text)
        .ok_or_else(|| "one of moving, waiting, held, dead, finished".to_owned())
}

pub(super) fn state_name(state: QueueState) -> &'static str {
    match state {
        QueueState::Moving => "moving",
        QueueState::Waiting => "waiting",
        QueueState::Held => "held",
        QueueState::Dead => "dead",
        QueueState::Finished => "finished",
    }
}

/// Prints JSON if that was asked for; true if so.
pub(super) fn as_json(value: &impl Serialize, json: bool) -> bool {
    if json {
        match serde_json::to_string_pretty(value) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("pombo: {error}"),
        }
    }
    json
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    table
}

fn at(time: Option<UnixMillis>) -> String {
    time.map_or_else(String::new, |time| time.to_string())
}

pub(super) fn accepted(id: MessageId, json: bool) {
    if !as_json(&serde_json::json!({ "id": id.to_string() }), json) {
        println!("{id}");
    }
}

pub(super) fn trace(trace: &Trace, json: bool) -> Result<bool, Error> {
    if as_json(trace, json) {
        return Ok(true);
    }
    println!("message    {}", trace.id);
    println!("from       <{}>, by {}", trace.sender, trace.source);
    println!(
        "accepted   {}, {} bytes, {}",
        trace.submitted_at,
        trace.size,
        trace.priority.name()
    );
    let reason = if trace.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", trace.reason)
    };
    println!("state      {}{reason}", state_name(trace.state));
    if let Some(due) = trace.due {
        println!("due        {due}");
    }
    let mut rows = table(&[
        "recipient",
        "state",
        "transport",
        "tries",
        "when",
        "remote",
        "said",
    ]);
    for it in &trace.recipients {
        let doubt = if it.in_doubt { " (in doubt)" } else { "" };
        rows.add_row([
            it.address.clone(),
            format!("{}{doubt}", it.state),
            it.transport.clone().unwrap_or_default(),
            it.tries.to_string(),
            at(it.at),
            it.remote.clone().unwrap_or_default(),
            it.text.clone(),
        ]);
    }
    println!("{rows}");
    for event in &trace.timeline {
        println!("{}  {:<10} {}", event.at, event.what, event.detail);
    }
    Ok(true)
}

pub(super) fn why(why: &Why, json: bool) -> Result<bool, Error> {
    if as_json(why, json) {
        return Ok(true);
    }
    println!("state        {}", state_name(why.state));
    println!("held by      {}", why.holder.as_deref().unwrap_or("nobody"));
    println!("waits for    {}", why.waiting_for);
    println!("since        {}", why.since);
    println!(
        "until        {}",
        why.until
            .map_or_else(|| "something happens".to_owned(), |it| it.to_string())
    );
    Ok(true)
}

/// Nobody holds it: a door-issued id still tells who issued it.
pub(super) async fn unknown(client: &mut Client, id: MessageId, json: bool) -> Result<bool, Error> {
    let text = match id.issue() {
        None => "nobody knows this message; its id is derived from its source".to_owned(),
        Some(issue) => {
            let answers = client.ask_all(&Question::Transports).await?;
            let door = answers
                .iter()
                .filter_map(|answer| match answer {
                    Answer::Transports(rows) => Some(rows),
                    _ => None,
                })
                .flatten()
                .find(|row| row.status.door == Some(issue.door));
            let door_name = door.map_or_else(
                || format!("door {:08x}", issue.door),
                |row| format!("{} at {}", row.transport, row.agent),
            );
            let confirmed = match door {
                Some(row) if is_void(&door::runs(&row.status.voided), issue.sequence) => {
                    "never published"
                }
                Some(row) if row.status.confirmed >= issue.sequence => {
                    "confirmed, not yet leased (or its history was dropped)"
                }
                Some(_) => "not yet confirmed",
                None => "nobody holds it",
            };
            format!(
                "issued by {door_name} at {} as number {}: {confirmed}",
                issue.at, issue.sequence
            )
        }
    };
    if !as_json(
        &serde_json::json!({ "id": id.to_string(), "unknown": text }),
        json,
    ) {
        println!("{text}");
    }
    Ok(false)
}

fn is_void(runs: &[(u64, u64)], sequence: u64) -> bool {
    runs.iter()
        .any(|(first, last)| (first..=last).contains(&&sequence))
}

pub(super) fn queue(rows: &[QueueRow], json: bool) -> Result<bool, Error> {
    if as_json(&rows, json) {
        return Ok(true);
    }
    let mut shown = table(&[
        "message", "state", "accepted", "from", "to", "size", "tries", "due", "why",
    ]);
    for row in rows {
        let more = (row.pending as usize).saturating_sub(row.recipients.len());
        let more = if more > 0 {
            format!(" +{more}")
        } else {
            String::new()
        };
        shown.add_row([
            row.id.to_string(),
            if row.in_doubt > 0 {
                format!("{}, {} in doubt", state_name(row.state), row.in_doubt)
            } else {
                state_name(row.state).to_owned()
            },
            row.submitted_at.to_string(),
            format!("<{}>", row.sender),
            format!("{}{more}", row.recipients.join(" ")),
            row.size.to_string(),
            row.tries.to_string(),
            at(row.due),
            row.reason.clone(),
        ]);
    }
    if rows.is_empty() {
        println!("nothing is moving or waiting");
    } else {
        println!("{shown}");
    }
    Ok(true)
}

pub(super) fn transports(rows: &[SessionRow], json: bool) -> Result<bool, Error> {
    if as_json(&rows, json) {
        return Ok(!rows.is_empty());
    }
    let mut shown = table(&[
        "transport",
        "agent",
        "spooler",
        "age",
        "state",
        "in",
        "out",
        "credit",
        "outstanding",
        "per message",
        "last error",
    ]);
    let flow = |it: &pombo_proto::verbs::FlowState| {
        let words = [
            (it.enabled, "enabled"),
            (it.active, "active"),
            (it.flush, "flush"),
        ];
        words
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, word)| *word)
            .collect::<Vec<_>>()
            .join(" ")
    };
    for row in rows {
        let error = row.status.last_error.as_ref();
        shown.add_row([
            row.transport.clone(),
            row.agent.clone(),
            row.spooler.clone(),
            humantime::format_duration(std::time::Duration::from_secs(row.age.as_secs()))
                .to_string(),
            format!("{:?}", row.status.state).to_lowercase(),
            flow(&row.status.inbound),
            flow(&row.status.outbound),
            row.credit.to_string(),
            row.outstanding.to_string(),
            format!(
                "{:.1?} out, {:.1?} in",
                row.status.outbound_time, row.status.inbound_time
            ),
            error
                .map(|(at, text)| format!("{at} {text}"))
                .unwrap_or_default(),
        ]);
    }
    if rows.is_empty() {
        println!("no agent has a session");
    } else {
        println!("{shown}");
    }
    Ok(!rows.is_empty())
}

/// True if all are healthy.
pub(super) fn validated(rows: &[ValidationRow], json: bool) -> Result<bool, Error> {
    let healthy = |row: &ValidationRow| row.validation == Some(Validation::Ok);
    let all = !rows.is_empty() && rows.iter().all(healthy);
    if as_json(&rows, json) {
        return Ok(all);
    }
    let mut shown = table(&["transport", "agent", "spooler", "state"]);
    for row in rows {
        let state = match &row.validation {
            Some(Validation::Ok) => "healthy".to_owned(),
            Some(Validation::Busy) => "busy: in a critical section".to_owned(),
            Some(Validation::Failing(why)) => format!("failing: {why}"),
            None => "no answer".to_owned(),
        };
        shown.add_row([&row.transport, &row.agent, &row.spooler, &state]);
    }
    if rows.is_empty() {
        println!("no agent has a session");
    } else {
        println!("{shown}");
    }
    Ok(all)
}

pub(super) fn changed(count: u64, what: &str, json: bool) -> Result<bool, Error> {
    if !as_json(&serde_json::json!({ "changed": count }), json) {
        println!("{count} {what}");
    }
    Ok(count > 0)
}

pub(super) fn cancelled(answer: &CancelAnswer, json: bool) {
    if as_json(answer, json) {
        return;
    }
    match answer {
        CancelAnswer::InTime => println!("in time: nobody was sent to"),
        CancelAnswer::Partly { sent, cancelled } => {
            println!("{cancelled} cancelled, {sent} had been sent to");
        }
        CancelAnswer::TooLate => println!("too late: everything was decided before"),
        CancelAnswer::Asked => println!("asked; its holder has not answered yet (see `pombo why`)"),
        CancelAnswer::Unknown => println!(
            "no such message here; if it still lies in the broker, it will be cancelled when it is leased"
        ),
    }
}
