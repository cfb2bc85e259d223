//! SubmitMessage: the copies of one message into Maildirs, and what is said of each recipient.
//!
//! Copies are written in groups: all files of a group, then their syncs, then the renames, then one sync per Maildir.
//! The spooler is asked between staging and renames whether the group may still be finished. File IO runs on blocking
//! threads, at most `concurrency` at a time; the file system makes one journal commit of syncs that meet in it.
//!
//! Nothing here is ever in doubt: a copy is named after its message and recipient, so a repeat finds what is there.

use std::{
    collections::HashSet,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use pombo_proto::{
    ids::RecipientIndex,
    message::SMTP,
    outcome::{
        Delivery, Diagnosis, EnhancedStatus, NdrReason, Outcome, RecipientOutcome, SubmitResult,
    },
    time::UnixMillis,
};
use tokio::sync::Semaphore;

use super::{
    address::{Mailboxes, Refused},
    config::{Config, LineEnds},
    copy::{Arrived, Mailbox, Name, Place, Staged, Trouble, settle},
    fields::{self, Field},
    tidy::Tidy,
};
use crate::provider::Submission;

/// How many copies of one message are staged before any of them is finished. The right to finish, once given, is good
/// for ten seconds only, and a slow disk takes some 10 ms for each sync.
const GROUP_MAX: usize = 64;
/// When to come back if the content cannot be read.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(30);

/// The delivering half of the transport.
pub(super) struct Deliverer {
    mailboxes: Mailboxes,
    pub(super) place: Place,
    line_ends: LineEnds,
    slots: Semaphore,
    pub(super) tidy: Arc<Tidy>,
}

/// What is the same in all copies of a message.
struct Text {
    return_path: String,
    newline: &'static str,
    body: Bytes,
    /// Recipients that the message has been delivered to before, in lower case.
    delivered_to: HashSet<String>,
}

/// One recipient's copy before it is staged.
struct Plan {
    index: RecipientIndex,
    mailbox: Mailbox,
    name: Name,
    head: String,
}

/// A copy's number in the message, with what happened to it.
type Each<T> = (RecipientIndex, Result<T, Trouble>);

impl Deliverer {
    pub(super) fn new(config: &Config, mailboxes: Mailboxes) -> Self {
        let place = Place {
            root: mailboxes.root().to_owned(),
            create: config.create,
        };
        Self {
            mailboxes,
            place,
            line_ends: config.line_ends,
            slots: Semaphore::new(config.concurrency as usize),
            tidy: Arc::new(Tidy::new(config.remember)),
        }
    }

    pub(super) async fn submit(&self, message: &Submission, host: &str) -> SubmitResult {
        let slot = tokio::select! {
            slot = self.slots.acquire() => slot,
            () = message.cancelled() => return SubmitResult::Cancelled(Vec::new()),
        };
        let Ok(_slot) = slot else {
            return SubmitResult::Busy;
        };
        let body = match message.body().await {
            Ok(body) => body,
            Err(error) => {
                let text = format!("the content cannot be read: {error}");
                let diagnosis = system(EnhancedStatus::new(4, 3, 0), text);
                return SubmitResult::Wait(UNREADABLE_PAUSE, Some(diagnosis));
            }
        };
        let (sender, line_ends) = (message.envelope().sender.clone(), self.line_ends);
        let text = blocking(move || Text::new(&sender, body, line_ends)).await;
        let text = match text {
            Ok(text) => Arc::new(text),
            Err(error) => {
                let diagnosis = system(EnhancedStatus::new(4, 3, 0), error.to_string());
                return SubmitResult::Wait(UNREADABLE_PAUSE, Some(diagnosis));
            }
        };
        let mut outcomes = Vec::new();
        let mut plans = self.plan(message, &text, &mut outcomes);
        while !plans.is_empty() {
            let rest = plans.split_off(plans.len().min(GROUP_MAX));
            let group = std::mem::replace(&mut plans, rest);
            if !self
                .deliver(message, &text, group, host, &mut outcomes)
                .await
            {
                return SubmitResult::Cancelled(outcomes);
            }
        }
        if let Some(work) = self.tidy.overdue() {
            tokio::task::spawn_blocking(work);
        }
        SubmitResult::Ok(outcomes)
    }

    /// What to write where, with an outcome for everybody for whom nothing will be written.
    fn plan(
        &self,
        message: &Submission,
        text: &Text,
        outcomes: &mut Vec<RecipientOutcome>,
    ) -> Vec<Plan> {
        let envelope = message.envelope();
        let mut plans = Vec::new();
        for (index, recipient) in message.recipients() {
            let address = recipient.address.as_str();
            if recipient.address_type != SMTP {
                outcomes.push(said(index, Outcome::Left));
                continue;
            }
            let path = match self.mailboxes.locate(address) {
                Ok(path) => path,
                Err(refused) => {
                    outcomes.push(said(index, Outcome::Failed(bad_address(refused))));
                    continue;
                }
            };
            if text.delivered_to.contains(&address.to_lowercase()) {
                outcomes.push(said(index, Outcome::Failed(going_round())));
                continue;
            }
            plans.push(Plan {
                index,
                mailbox: Mailbox { path },
                name: Name::new(envelope.id, index, envelope.submitted_at),
                head: text.head(address),
            });
        }
        plans
    }

    /// Delivers a group; false if it was cancelled.
    async fn deliver(
        &self,
        message: &Submission,
        text: &Arc<Text>,
        group: Vec<Plan>,
        host: &str,
        outcomes: &mut Vec<RecipientOutcome>,
    ) -> bool {
        let everybody: Vec<_> = group.iter().map(|plan| plan.index).collect();
        let (text, place) = (Arc::clone(text), self.place.clone());
        let staged = blocking(move || stage(&text, &place, group)).await;
        let staged = match staged {
            Ok(staged) => staged,
            Err(error) => return all(outcomes, everybody, &error),
        };
        let mut ready = Vec::new();
        for (index, staged) in staged {
            match staged {
                Ok(staged) => ready.push((index, staged)),
                Err(trouble) => outcomes.push(said(index, trouble.outcome())),
            }
        }
        if message.is_cancelled() {
            drop_elsewhere(ready);
            return false;
        }
        if ready.is_empty() {
            return true;
        }
        let waiting: Vec<_> = ready.iter().map(|(index, _)| *index).collect();
        if !message.may_finish().await {
            drop_elsewhere(ready);
            let error = io::Error::other("the right to deliver has run out");
            return all(outcomes, waiting, &error);
        }
        for (_, staged) in &ready {
            self.tidy.touched(staged.mailbox());
        }
        let arrived = match blocking(move || commit(ready)).await {
            Ok(arrived) => arrived,
            Err(error) => return all(outcomes, waiting, &error),
        };
        let now = UnixMillis::now();
        outcomes.extend(arrived.into_iter().map(|(index, arrived)| {
            let outcome = match arrived {
                Ok(arrived) => Outcome::Delivered(Delivery::new(now, host, arrived.text())),
                Err(trouble) => trouble.outcome(),
            };
            said(index, outcome)
        }));
        true
    }
}

impl Text {
    fn new(sender: &str, body: Bytes, line_ends: LineEnds) -> Self {
        let header = fields::header(&body);
        let delivered_to = fields::split(header)
            .filter(|field| field.is("delivered-to"))
            .map(|field| String::from_utf8_lossy(field.value()).trim().to_lowercase())
            .collect();
        let body = match line_ends {
            LineEnds::Keep => body,
            LineEnds::Lf => fields::with_lf(body),
        };
        // A message has one kind of line ends, its trace included.
        let newline = match fields::split(&body).next().map(Field::whole) {
            Some(line) if !line.ends_with(b"\r\n") => "\n",
            None if line_ends == LineEnds::Lf => "\n",
            _ => "\r\n",
        };
        Self {
            return_path: sender.replace(|char: char| char.is_control(), "?"),
            newline,
            body,
            delivered_to,
        }
    }

    /// The trace of one copy. The address has been found safe: it holds no control character.
    fn head(&self, address: &str) -> String {
        let Self {
            return_path,
            newline,
            ..
        } = self;
        format!("Return-Path: <{return_path}>{newline}Delivered-To: {address}{newline}")
    }
}

fn stage(text: &Text, place: &Place, group: Vec<Plan>) -> Vec<Each<Staged>> {
    let write = |plan: Plan| {
        let parts = [plan.head.as_bytes(), &text.body];
        (plan.index, plan.mailbox.stage(plan.name, place, parts))
    };
    let mut staged: Vec<_> = group.into_iter().map(write).collect();
    for (_, copy) in &mut staged {
        let synced = copy.as_mut().map_or(Ok(()), Staged::sync);
        if let Err(trouble) = synced {
            *copy = Err(trouble);
        }
    }
    staged
}

fn commit(ready: Vec<(RecipientIndex, Staged)>) -> Vec<Each<Arrived>> {
    let mut mailboxes = Vec::with_capacity(ready.len());
    let mut memories = Vec::with_capacity(ready.len());
    let mut arrived = Vec::with_capacity(ready.len());
    for (index, staged) in ready {
        mailboxes.push(staged.mailbox().clone());
        let committed = staged.commit().map(|(how, memory)| {
            memories.push(memory);
            how
        });
        arrived.push((index, committed));
    }
    let mut synced = HashSet::new();
    for (mailbox, (_, outcome)) in mailboxes.iter().zip(&mut arrived) {
        // One sync covers all copies in this mailbox; after a failure each copy tries, and fails, for itself.
        if outcome.is_err() || synced.contains(mailbox) {
            continue;
        }
        match mailbox.sync() {
            Ok(()) => {
                synced.insert(mailbox);
            }
            Err(trouble) => *outcome = Err(trouble),
        }
    }
    // Also where the sync failed: then a repeat syncs again.
    for memory in memories {
        settle(&memory);
    }
    arrived
}

/// The same temporary failure for all; the message goes on.
fn all(
    outcomes: &mut Vec<RecipientOutcome>,
    indices: Vec<RecipientIndex>,
    error: &io::Error,
) -> bool {
    let diagnosis = system(EnhancedStatus::new(4, 3, 0), error.to_string());
    let outcome = Outcome::Deferred {
        diagnosis,
        destination_down: false,
    };
    outcomes.extend(
        indices
            .into_iter()
            .map(|index| said(index, outcome.clone())),
    );
    true
}

/// Unlinking is file IO as well.
fn drop_elsewhere(ready: Vec<(RecipientIndex, Staged)>) {
    tokio::task::spawn_blocking(move || drop(ready));
}

/// Runs file IO on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

fn said(recipient: RecipientIndex, outcome: Outcome) -> RecipientOutcome {
    RecipientOutcome { recipient, outcome }
}

impl Arrived {
    fn text(self) -> &'static str {
        match self {
            Self::Now => "2.0.0 in the mailbox",
            Self::Before => "2.0.0 in the mailbox since an earlier attempt",
        }
    }
}

impl Trouble {
    /// What a recipient is told.
    fn outcome(&self) -> Outcome {
        let text = self.to_string();
        let (status, destination_down) = match self {
            Self::Unknown => {
                let status = EnhancedStatus::new(5, 1, 1);
                return Outcome::Failed(Diagnosis::new(
                    status,
                    NdrReason::TransferImpossible,
                    text,
                ));
            }
            Self::Root(_) => (EnhancedStatus::new(4, 3, 0), true),
            Self::Io { error, .. } => (status_of(error.kind()), false),
        };
        let diagnosis = system(status, text);
        Outcome::Deferred {
            diagnosis,
            destination_down,
        }
    }
}

fn status_of(kind: io::ErrorKind) -> EnhancedStatus {
    match kind {
        io::ErrorKind::QuotaExceeded => EnhancedStatus::new(4, 2, 2),
        io::ErrorKind::StorageFull => EnhancedStatus::new(4, 3, 1),
        _ => EnhancedStatus::new(4, 3, 0),
    }
}

fn system(status: EnhancedStatus, text: String) -> Diagnosis {
    Diagnosis::new(status, NdrReason::TransferFailed, text)
}

fn bad_address(refused: Refused) -> Diagnosis {
    let status = EnhancedStatus::new(5, 1, 3);
    Diagnosis::new(status, NdrReason::TransferImpossible, refused.to_string())
}

fn going_round() -> Diagnosis {
    let status = EnhancedStatus::new(5, 4, 6);
    let text = "the message has been delivered to this recipient before: mail is going round";
    Diagnosis::new(status, NdrReason::TransferImpossible, text)
}

/// How old a file is; none if the clock was set back.
pub(super) fn age(modified: SystemTime) -> Duration {
    SystemTime::now()
        .duration_since(modified)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_file_system_have_their_status() {
        for (errno, status) in [
            (nix::errno::Errno::EDQUOT, "4.2.2"),
            (nix::errno::Errno::ENOSPC, "4.3.1"),
            (nix::errno::Errno::EACCES, "4.3.0"),
            (nix::errno::Errno::EROFS, "4.3.0"),
            (nix::errno::Errno::EIO, "4.3.0"),
        ] {
            let trouble = Trouble::Io {
                doing: "testing",
                error: errno.into(),
            };
            let Outcome::Deferred { diagnosis, .. } = trouble.outcome() else {
                panic!("{errno} is temporary");
            };
            assert_eq!(diagnosis.status.to_string(), status, "{errno}");
        }
    }
}
