//! The verdict: what the outcomes of an attempt mean for a message.
//!
//! A pure function of the message, what is known of it, what happened, the schedule, the routes, and now. Retry, expiry,
//! warnings, reports and doubt meet only here. Whoever holds a tenure asks [`next`] what to do, does it, tells
//! [`decide`] what happened, and records the verdict, its reports in the same commit:
//!
//! ```text
//! claim or lease -> next -> Submit -> (ladder) -> decide(Attempt) -> record
//!                      \--> Decide ------------> decide(Nothing) -> record
//! ```
//!
//! # Rules
//! - **A recipient is decided once.** What is said of it later changes nothing and reports nothing, so there is at most one
//!   final report per recipient and message.
//! - StatusRecips are collected over the attempt and weighed together with the outcomes. Of two words about one recipient
//!   the more final one counts, in this order: not delivered, delivered, kept, in doubt, deferred, left; of two equal ones the first,
//!   where statuses come before outcomes because they are what the foreign system said. "Not delivered" beats "delivered"
//!   because a sender who wrongly hears of a failure asks, and one who wrongly hears nothing does not.
//! - A recipient that a considered transport does not name was left by it.
//! - Who is in doubt is marked and counted, and then deferred; but where the transport's doubt is held, the message waits for a person.
//! - Everything that is not decided waits for a time: no state of a message has no next step.
//! - One report per verdict and kind, never one per recipient; none about a report or to the null reverse-path
//!   (RFC 5321 6.1), and only to those who asked by NOTIFY.
//! - Of the message marked as cancelled, whatever the attempt did not send is cancelled, and nobody is told.

mod attempt;
mod decision;
mod ended;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;

use pombo_proto::{
    ids::{Fence, MessageId, RecipientIndex},
    ladder::submission::AttemptResult,
    message::Envelope,
    outcome::RecipientStatus,
    time::UnixMillis,
};

use crate::{
    progress::{Progress, RecipientState},
    router::{Route, Router, destination},
    schedule::Schedule,
};
pub use attempt::named;
use decision::Decision;
pub use ended::{Meaning, Tried, ended};

/// What a verdict depends on besides progress and event.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The message.
    pub envelope: &'a Envelope,
    /// When things are due.
    pub schedule: &'a Schedule,
    /// Which transport takes whom.
    pub router: &'a Router,
    /// Whether a cancel is marked.
    pub cancelled: bool,
    /// Now.
    pub now: UnixMillis,
}

/// What the holder of a tenure does first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// SubmitMessage.
    Submit(Plan),
    /// Nothing can be submitted now: [`decide`] with [`Happened::Nothing`], and record.
    Decide,
}

/// One SubmitMessage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// To this transport, which is available.
    pub transport: String,
    /// The recipients to consider: PR_RESPONSIBILITY = FALSE.
    pub recipients: Vec<RecipientIndex>,
    /// The destination that they share; `None`: there are several.
    pub destination: Option<String>,
    /// BEGIN_DEFERRED: this transport had kept one of them.
    pub begin_deferred: bool,
}

/// What happened to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// Time passed, a cancel was marked, a transport came or went: only see what is due.
    Nothing,
    /// An attempt has ended.
    Attempt {
        /// With which transport.
        transport: String,
        /// Whom it was to consider.
        considered: Vec<RecipientIndex>,
        /// What it brought.
        result: AttemptResult,
        /// The spooler itself had asked for a cancel, for its own reasons (a time limit, going down), and nobody has marked
        /// the message: MAPI_E_CANCEL then means "not sent", and not "not wanted".
        interrupted: bool,
        /// Whether this transport's doubt waits for a person.
        hold: bool,
    },
    /// Attempts of earlier holders were found with the agents that keep them. Several: the result of one may have been
    /// recorded before, and another one's not.
    Adopted(Vec<AdoptedAttempt>),
    /// The session was lost under an attempt. What became of it can still be asked, so nothing is decided: neither a
    /// cancel nor an expiry, for it may be delivered this moment. It is due now, for Adopt.
    Unknown {
        /// With which transport.
        transport: String,
    },
    /// A transport says SENTDEFERRED of what it kept.
    SentDeferred {
        /// Which.
        transport: String,
        /// What became of whom; empty: it wants the message again.
        statuses: Vec<(RecipientIndex, RecipientStatus)>,
    },
    /// The result of an attempt will never be learned: its instance is gone, or never had it. (While that can still be
    /// asked, there is nothing to decide: the row is marked as in doubt, and Adopt asks.)
    SessionLost {
        /// Which transport.
        transport: String,
        /// Whom it was to consider.
        considered: Vec<RecipientIndex>,
        /// Whether it may have been sent.
        in_doubt: bool,
        /// Whether this transport's doubt waits for a person.
        hold: bool,
    },
    /// It was, or may have been, at its final dot with an agent that is lost, and its transport's doubt waits for a person.
    LostAtTheDot {
        /// Which transport.
        transport: String,
        /// Whom it was to consider.
        considered: Vec<RecipientIndex>,
        /// Attempts that were found elsewhere.
        found: Vec<AdoptedAttempt>,
    },
    /// It was tried alone, and whoever tried it died again.
    Deadly {
        /// Why, in words.
        reason: String,
        /// Attempts that were found.
        found: Vec<AdoptedAttempt>,
    },
    /// It stands in another's way, or its destination is closed: each of these is not tried before then.
    Parked {
        /// Why, in words.
        reason: String,
        /// Whom, and until when.
        recipients: Vec<(RecipientIndex, UnixMillis)>,
    },
    /// The agent could not read the message: it is put away for a person.
    Unreadable {
        /// Which transport said so.
        transport: String,
    },
    /// A person gave it up: whoever is owed it gets no more than a report.
    GivenUp {
        /// Why, in words.
        reason: String,
    },
}

/// An attempt that was made under an earlier fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptedAttempt {
    /// With which transport.
    pub transport: String,
    /// What it brought. Whom it was to consider is known by whom it names: an agent names all of them.
    pub result: AttemptResult,
    /// Whether this transport's doubt waits for a person.
    pub hold: bool,
}

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is known of the recipients now.
    pub progress: Progress,
    /// Where the message goes.
    pub disposition: Disposition,
    /// What its sender is told.
    pub reports: Vec<ReportSpec>,
    /// How many recipients may have been sent to by attempts that said so themselves, by transport: to be counted once this is
    /// recorded.
    pub doubted: BTreeMap<String, u32>,
}

/// Where a message goes after a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// All recipients are decided.
    Finished,
    /// Into the outbox, until due.
    Waiting(Waiting),
    /// Into the outbox, until a person releases it.
    Held {
        /// Why, in words.
        reason: String,
    },
    /// Into the outbox as dead, until a person requeues or drops it.
    Dead {
        /// Why, in words.
        reason: String,
    },
}

/// What the outbox row of a waiting message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// When something is to be done: a try, a warning, an expiry. Never later than the message's end.
    pub due: UnixMillis,
    /// The next warning, expiry or kept deadline; never before `due`. From then on the row must be claimed even while its
    /// transport or destination is excluded, or mail for a transport that is away would neither be warned about nor expire.
    pub wake: UnixMillis,
    /// What it waits for, in words.
    pub reason: String,
    /// The transport that those who are due next wait for; `None`: they wait for several, any of which may come first.
    pub transport: Option<String>,
    /// Their destination, if they share one.
    pub destination: Option<String>,
    /// Something can be submitted at once: it is due, and its transport is available.
    pub again_now: bool,
}

/// What a report tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReportKind {
    /// Not delivered, and never will be.
    Failure,
    /// Not delivered yet.
    Delay,
    /// Delivered.
    Success,
    /// Handed on to a system that does not report delivery.
    Relayed,
}

/// A report to be made in the commit of its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSpec {
    /// What it tells.
    pub kind: ReportKind,
    /// Of whom. At most [`REPORT_RECIPIENTS_MAX`].
    pub recipients: Vec<RecipientIndex>,
    /// Which of several with the same kind, from 0.
    pub part: u32,
}

/// More recipients than this make several reports: one of 10,000 would not fit where messages must.
pub const REPORT_RECIPIENTS_MAX: usize = 1_000;

impl ReportSpec {
    /// The report's own id. It follows from the verdict that it belongs to, so a commit that is repeated makes the same one.
    pub fn id(&self, original: MessageId, fence: Fence) -> MessageId {
        let mut identity = original.0.as_bytes().to_vec();
        identity.extend(fence.0.to_be_bytes());
        identity.push(match self.kind {
            ReportKind::Failure => 0,
            ReportKind::Delay => 1,
            ReportKind::Success => 2,
            ReportKind::Relayed => 3,
        });
        identity.extend(self.part.to_be_bytes());
        MessageId::derived("report", &identity)
    }
}

/// What to do with a message under a fresh tenure.
pub fn next(case: &Case<'_>, progress: &Progress) -> Next {
    let now = case.now;
    let over = case.cancelled || now >= case.schedule.expires_at(case.envelope);
    let send_later = case.envelope.deferred_until.is_some_and(|at| at > now);
    if over || send_later {
        return Next::Decide;
    }
    let kept_too_long = |state: &RecipientState| matches!(state, RecipientState::Kept { deadline } if *deadline <= now);
    if progress.recipients.iter().any(|r| kept_too_long(&r.state)) {
        return Next::Decide;
    }
    let mut chosen: Option<(&str, Vec<RecipientIndex>)> = None;
    for (index, (recipient, known)) in case
        .envelope
        .recipients
        .iter()
        .zip(&progress.recipients)
        .enumerate()
    {
        let due =
            matches!(known.state, RecipientState::Pending { not_before } if not_before <= now);
        if !due {
            continue;
        }
        let Route::Transport(name) = case.router.route(recipient, &known.passed) else {
            continue;
        };
        let index = RecipientIndex(index as u32);
        match &mut chosen {
            Some((transport, recipients)) if *transport == name => recipients.push(index),
            Some(_) => {}
            None if case.router.is_available(name) => chosen = Some((name, vec![index])),
            None => {}
        }
    }
    match chosen {
        Some((transport, recipients)) => Next::Submit(plan(case, progress, transport, recipients)),
        None => Next::Decide,
    }
}

fn plan(
    case: &Case<'_>,
    progress: &Progress,
    transport: &str,
    recipients: Vec<RecipientIndex>,
) -> Plan {
    let kept = |index: &RecipientIndex| {
        let known = &progress.recipients[index.get()];
        known.was_kept && known.transport.as_deref() == Some(transport)
    };
    Plan {
        transport: transport.to_owned(),
        destination: shared_destination(case.envelope, recipients.iter().copied())
            .map(str::to_owned),
        begin_deferred: recipients.iter().any(kept),
        recipients,
    }
}

/// The destination that all of these share.
fn shared_destination(
    envelope: &Envelope,
    recipients: impl IntoIterator<Item = RecipientIndex>,
) -> Option<&str> {
    let mut all = recipients
        .into_iter()
        .filter_map(|index| envelope.recipients.get(index.get()))
        .map(destination);
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

/// What `happened` means for a message.
pub fn decide(case: &Case<'_>, progress: Progress, happened: Happened) -> Verdict {
    let mut decision = Decision::new(case, progress);
    if let Happened::Unknown { transport } = happened {
        return decision.unknown(&transport);
    }
    let put_away = decision.take_in(happened);
    decision.cancel();
    decision.give_up_on_keepers();
    decision.expire();
    decision.fail_what_nobody_takes();
    decision.warn();
    decision.finish(put_away)
}
