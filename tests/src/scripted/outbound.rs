//! SubmitMessage and EndMessage, as the local parts say.
//!
//! | word | SubmitMessage | then |
//! |---|---|---|
//! | `ok`, `fail`, `left`, `relayed` | that outcome | |
//! | `later-N` | deferred on the first N calls | ok |
//! | `resendnow-N` | deferred on the first N calls, with END_RESEND_NOW | ok |
//! | `busy-N`, `wait-N`, `neterr-N` | that result on the first N calls; waits ask for 1 s | ok |
//! | `notme`, `unwanted` | NOT_ME, CANCEL | |
//! | `critical` | once CRITICAL_ERROR and an error; READYTOSEND is a command | ok |
//! | `statusok`, `statusfail` | StatusRecips while under way, and delivered | |
//! | `kept`, `kept-fail`, `kept-again` | kept; when the gate of the local part opens: SENTDEFERRED delivered, not delivered, or wanted again | ok |
//! | `kept-early` | SENTDEFERRED delivered, and only then kept | |
//! | `slow` | waits for the gate of the local part, or a cancel | ok |
//! | `slow-end` | EndMessage waits for it, or a cancel | |
//! | `panic-N` | panics on the first N calls | ok |
//! | `dot` | waits for the gate of the local part, asks `may_finish`: `sent`, or deferred and no trace | |
//! | `lastdot` | asks `may_finish`, `sent`, and dies unless the gate of the local part is open | ok |
//! | `abort` | dies, as often as it is tried | |

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pombo_agent::provider::{Ended, Submission};
use pombo_proto::{
    ids::{MessageId, RecipientIndex},
    outcome::{
        Delivery, Diagnosis, EndMessageFlag, EnhancedStatus, NdrReason, Outcome, RecipientOutcome,
        RecipientStatus, Relayed, SubmitResult,
    },
    properties::Property,
    time::UnixMillis,
};
use serde_json::json;

use super::{Shared, action::Action};

/// What WAIT and NETWORK_ERROR ask for.
const PAUSE: Duration = Duration::from_secs(1);

/// What it remembers of messages.
#[derive(Default)]
pub(super) struct Sent(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    calls: HashMap<MessageId, u64>,
    /// What EndMessage has to do.
    ends: HashMap<MessageId, Vec<End>>,
    submissions: HashMap<MessageId, Arc<Submission>>,
    kept: HashMap<MessageId, tokio::task::AbortHandle>,
}

#[derive(Clone)]
enum End {
    ResendNow,
    Slow(String),
}

impl Sent {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a message that is kept. True if there was one.
    pub fn abort(&self, id: MessageId) -> bool {
        let kept = self.memory().kept.remove(&id);
        kept.map(|task| task.abort()).is_some()
    }
}

fn diagnosis(class: u8, text: &str) -> Diagnosis {
    let status = EnhancedStatus::new(class, 7, 0);
    Diagnosis::new(status, NdrReason::TransferImpossible, text)
        .said_by("scripted.example", format!("{class}50 {class}.7.0 {text}"))
}

fn delivered(reply: &str) -> Delivery {
    Delivery::new(UnixMillis::now(), "scripted.example", reply)
}

pub(super) async fn submit(shared: &Arc<Shared>, message: Arc<Submission>) -> SubmitResult {
    let id = message.id();
    let name = id.to_string();
    let recipients: Vec<(RecipientIndex, String)> = message
        .recipients()
        .map(|(index, it)| (index, it.address.clone()))
        .collect();
    let body = message.body().await.unwrap_or_default();
    let envelope = message.envelope();
    let property = |it: &Property| format!("{:?}={:?}", it.tag, it.value);
    let begun = json!({
        "id": name,
        "sender": envelope.sender,
        "recipients": recipients.iter().map(|(_, address)| address).collect::<Vec<_>>(),
        "all": envelope.recipients.iter().map(|it| &it.address).collect::<Vec<_>>(),
        "class": envelope.class.name(),
        "begin_deferred": message.begin_deferred(),
        "properties": envelope.properties.iter().map(property).collect::<Vec<_>>(),
        "body": String::from_utf8_lossy(&body),
    });
    shared.journal.write("submit", begun);
    let Some(support) = shared.support.get() else {
        return SubmitResult::Busy;
    };
    let reference = support.next_reference();
    message.assign_reference(reference);
    let said = json!({ "id": name, "reference": reference.0 });
    shared.journal.write("reference", said);
    let call = {
        let mut memory = shared.sent.memory();
        let calls = memory.calls.entry(id).or_default();
        *calls += 1;
        *calls
    };
    tokio::time::sleep(shared.takes()).await;
    let result = carry_out(shared, &message, &recipients, call).await;
    let returned = json!({ "id": name, "result": word(&result) });
    shared.journal.write("returned", returned);
    result
}

async fn carry_out(
    shared: &Arc<Shared>,
    message: &Arc<Submission>,
    recipients: &[(RecipientIndex, String)],
    call: u64,
) -> SubmitResult {
    for (_, address) in recipients {
        let action = Action::of(address);
        if let Some(result) = whole(shared, &action, call) {
            return result;
        }
    }
    let (mut outcomes, mut ends, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for (index, address) in recipients {
        let action = Action::of(address);
        let local = address.split('@').next().unwrap_or_default();
        let outcome = match action.word.as_str() {
            "slow" => {
                tokio::select! {
                    () = shared.gate(local) => Outcome::Delivered(delivered("250 slowly")),
                    () = message.cancelled() => {
                        let about = json!({ "id": message.id().to_string() });
                        shared.journal.write("cancelled", about);
                        return SubmitResult::Cancelled(outcomes);
                    }
                }
            }
            "slow-end" => {
                ends.push(End::Slow(local.to_owned()));
                later_or_ok(&action, call)
            }
            "resendnow" if action.applies(call) => {
                ends.push(End::ResendNow);
                later_or_ok(&action, call)
            }
            "kept" | "kept-fail" | "kept-again" if !message.begin_deferred() => {
                kept.push((*index, action.word, local.to_owned()));
                Outcome::Kept
            }
            "dot" => {
                shared.gate(local).await;
                at_the_dot(shared, message).await
            }
            "lastdot" => {
                let outcome = at_the_dot(shared, message).await;
                if matches!(outcome, Outcome::Delivered(_)) && !shared.is_open(local) {
                    std::process::abort();
                }
                outcome
            }
            "abort" => std::process::abort(),
            "kept-early" if !message.begin_deferred() => {
                let statuses = vec![(*index, RecipientStatus::Delivered(delivered("250 early")))];
                say_sent_deferred(shared, message.id(), statuses);
                Outcome::Kept
            }
            "statusok" | "statusfail" => status(message, *index, &action),
            _ => outcome(&action, call),
        };
        outcomes.push(RecipientOutcome {
            recipient: *index,
            outcome,
        });
    }
    let mut memory = shared.sent.memory();
    let id = message.id();
    memory.ends.insert(id, ends);
    memory.submissions.insert(id, Arc::clone(message));
    drop(memory);
    for (index, word, local) in kept {
        keep(shared, id, index, word, local);
    }
    SubmitResult::Ok(outcomes)
}

/// The point of no return: what is sent from here on is written down as `sent`.
async fn at_the_dot(shared: &Shared, message: &Submission) -> Outcome {
    let id = message.id().to_string();
    let may = message.may_finish().await;
    let said = json!({ "id": id, "may": may });
    shared.journal.write("may_finish", said);
    if !may {
        return deferred();
    }
    shared.journal.write("sent", json!({ "id": id }));
    Outcome::Delivered(delivered("250 at the dot"))
}

/// What concerns the whole message.
fn whole(shared: &Shared, action: &Action, call: u64) -> Option<SubmitResult> {
    if !action.applies(call) {
        return None;
    }
    Some(match action.word.as_str() {
        "busy" => SubmitResult::Busy,
        "notme" => SubmitResult::NotMe,
        "unwanted" => SubmitResult::Cancelled(Vec::new()),
        "wait" => SubmitResult::Wait(PAUSE, Some(diagnosis(4, "wait a second"))),
        "neterr" => SubmitResult::NetworkError(PAUSE, diagnosis(4, "no route")),
        "critical" if call == 1 => {
            let error = diagnosis(4, "the disk is on fire");
            if let Some(support) = shared.support.get() {
                support.critical_error(error.clone());
            }
            SubmitResult::CriticalError(error)
        }
        "panic" => panic!("as the recipient wished"),
        _ => return None,
    })
}

fn outcome(action: &Action, call: u64) -> Outcome {
    match action.word.as_str() {
        "fail" => Outcome::Failed(diagnosis(5, "never ever")),
        "left" => Outcome::Left,
        "later" if action.applies(call) => deferred(),
        "relayed" => Outcome::Delivered(Delivery {
            relayed: Relayed::Unreported,
            ..delivered("250 relayed")
        }),
        _ => Outcome::Delivered(delivered("250 fine")),
    }
}

fn later_or_ok(action: &Action, call: u64) -> Outcome {
    let later = action.number.is_some() && action.applies(call) || action.word == "slow-end";
    if later {
        deferred()
    } else {
        Outcome::Delivered(delivered("250 fine"))
    }
}

fn deferred() -> Outcome {
    Outcome::Deferred {
        diagnosis: diagnosis(4, "not now"),
        destination_down: false,
    }
}

/// StatusRecips, while it is under way.
fn status(message: &Submission, index: RecipientIndex, action: &Action) -> Outcome {
    let status = if action.word == "statusok" {
        RecipientStatus::Delivered(delivered("250 said by StatusRecips"))
    } else {
        RecipientStatus::NotDelivered(diagnosis(5, "said by StatusRecips"))
    };
    message.status_recips(vec![(index, status)]);
    Outcome::Delivered(delivered("250 said by the outcome"))
}

/// END_DONT_RESEND: SENTDEFERRED when the gate opens.
fn keep(shared: &Arc<Shared>, id: MessageId, index: RecipientIndex, word: String, local: String) {
    let held = Arc::clone(shared);
    let task = tokio::spawn(async move {
        held.gate(&local).await;
        let statuses = match word.as_str() {
            "kept" => vec![(index, RecipientStatus::Delivered(delivered("250 at last")))],
            "kept-fail" => {
                let never = diagnosis(5, "kept in vain");
                vec![(index, RecipientStatus::NotDelivered(never))]
            }
            _ => Vec::new(),
        };
        say_sent_deferred(&held, id, statuses);
    });
    let mut memory = shared.sent.memory();
    memory.kept.insert(id, task.abort_handle());
}

fn say_sent_deferred(
    shared: &Shared,
    id: MessageId,
    statuses: Vec<(RecipientIndex, RecipientStatus)>,
) {
    let said = json!({ "id": id.to_string(), "statuses": statuses.len() });
    shared.journal.write("sent_deferred", said);
    if let Some(support) = shared.support.get() {
        support.sent_deferred(id, statuses);
    }
}

pub(super) async fn end(shared: &Arc<Shared>, ended: Ended) -> EndMessageFlag {
    let name = ended.id.to_string();
    let begun = json!({
        "id": name,
        "reference": ended.reference.0,
        "suggested": format!("{:?}", ended.suggested),
    });
    shared.journal.write("end", begun);
    let (ends, submission) = {
        let mut memory = shared.sent.memory();
        let ends = memory.ends.remove(&ended.id).unwrap_or_default();
        (ends, memory.submissions.remove(&ended.id))
    };
    let mut flag = ended.suggested;
    for todo in ends {
        match (todo, &submission) {
            (End::ResendNow, _) => flag = EndMessageFlag::ResendNow,
            (End::Slow(gate), Some(submission)) => {
                tokio::select! {
                    () = shared.gate(&gate) => {}
                    () = submission.cancelled() => {
                        shared.journal.write("end_cancelled", json!({ "id": name }));
                    }
                }
            }
            (End::Slow(gate), None) => shared.gate(&gate).await,
        }
    }
    let said = json!({ "id": name, "flag": format!("{flag:?}") });
    shared.journal.write("ended", said);
    flag
}

fn word(result: &SubmitResult) -> &'static str {
    match result {
        SubmitResult::Ok(_) => "ok",
        SubmitResult::Busy => "busy",
        SubmitResult::NotMe => "notme",
        SubmitResult::Cancelled(_) => "cancelled",
        SubmitResult::Wait(..) => "wait",
        SubmitResult::NetworkError(..) => "neterr",
        SubmitResult::CriticalError(_) => "critical",
    }
}
