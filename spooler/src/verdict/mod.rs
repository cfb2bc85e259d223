//! The verdict: what the outcomes of an attempt mean for a message. A pure function of the message, what is known of it,
//! what happened, the schedule, the routes, and now.

use pombo_proto::{
    ids::{MessageId, Fence, RecipientIndex},
    ladder::submission::AttemptResult,
    message::Envelope,
    outcome::RecipientStatus,
    time::UnixMillis,
};

use crate::{progress::Progress, router::Router, schedule::Schedule};

/// What a verdict depends on besides progress and event.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub envelope: &'a Envelope,
    pub schedule: &'a Schedule,
    pub router: &'a Router,
    /// Whether a cancel is marked.
    pub cancelled: bool,
    pub now: UnixMillis,
}

/// What a holder of a tenure does first.
pub enum Next {
    /// Submit these to this transport; [`decide`] with [`Happened::Attempt`] (or `SessionLost`, `Parked`, ...) after.
    Submit(SubmitPlan),
    /// Nothing can be submitted now: [`decide`] with [`Happened::Nothing`], and record.
    Decide,
}

pub struct SubmitPlan {
    pub transport: String,
    pub recipients: Vec<RecipientIndex>,
    /// The destination, where all share one.
    pub destination: Option<String>,
    pub begin_deferred: bool,
}

/// What happened to a message.
pub enum Happened {
    /// Time passed, a cancel was marked, or it was just claimed: only see what is due.
    Nothing,
    /// An attempt has ended.
    Attempt { transport: String, considered: Vec<RecipientIndex>, result: AttemptResult },
    /// A transport says SENTDEFERRED of what it kept. Empty statuses: it wants it again.
    SentDeferred { transport: String, statuses: Vec<(RecipientIndex, RecipientStatus)> },
    /// An attempt's result will never be learned (its instance is gone). `in_doubt`: it may have sent. `hold`: a person decides.
    SessionLost { transport: String, considered: Vec<RecipientIndex>, in_doubt: bool, hold: bool },
    /// It stands in another's way; each recipient is not tried before then.
    Parked { reason: String, recipients: Vec<(RecipientIndex, UnixMillis)> },
    /// The agent cannot read the message.
    Unreadable { transport: String },
    /// A person gave it up (dead drop): with a report.
    GivenUp { reason: String },
}

pub struct Verdict {
    pub progress: Progress,
    pub disposition: Disposition,
    pub reports: Vec<ReportSpec>,
}

pub enum Disposition {
    Finished,
    Waiting(Waiting),
    Held { reason: String },
    Dead { reason: String },
}

/// What the outbox row says.
pub struct Waiting {
    pub due: UnixMillis,
    pub reason: String,
    pub transport: Option<String>,
    pub destination: Option<String>,
    /// Something can be submitted at once (`due <= now`).
    pub again_now: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReportKind { Failure, Delay, Success, Relayed }

pub struct ReportSpec {
    pub kind: ReportKind,
    /// At most [`REPORT_RECIPIENTS_MAX`]; more make several reports.
    pub recipients: Vec<RecipientIndex>,
    /// Which of several.
    pub part: u32,
}

impl ReportSpec {
    /// The report's id: the same for a repeated commit.
    pub fn id(&self, original: MessageId, fence: Fence) -> MessageId { let _ = (original, fence); unimplemented!() }
}

/// More recipients than this are split over several reports.
pub const REPORT_RECIPIENTS_MAX: usize = 1_000;

/// What to do with a message under a tenure.
pub fn next(case: &Case<'_>, progress: &Progress) -> Next { let _ = (case, progress); unimplemented!() }

/// Decides.
pub fn decide(case: &Case<'_>, progress: Progress, happened: Happened) -> Verdict { let _ = (case, progress, happened); unimplemented!() }
