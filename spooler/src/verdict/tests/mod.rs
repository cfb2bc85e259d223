//! One message and what happens to it, decided: what it takes to ask is here; the cases are in the modules below.

use std::time::Duration;

use pombo_proto::{
    message::Notify,
    outcome::{
        Delivery, Diagnosis, EndMessageFlag, EnhancedStatus, NdrReason, Outcome, RecipientOutcome,
        Relayed, SubmitResult,
    },
    verbs::AddressTypes,
};

use super::{
    samples::{SUBMITTED, diagnosis, envelope},
    *,
};

mod doubt;
mod endings;
mod life;
mod reports;
mod resend;
mod results;
mod transports;

const FIRST: &str = "first";
const SECOND: &str = "second";
const NOW: UnixMillis = UnixMillis(SUBMITTED.0 + 1_000);

fn smtp() -> AddressTypes {
    AddressTypes {
        types: Some(vec!["SMTP".to_owned()]),
        uids: Vec::new(),
    }
}

fn router() -> Router {
    let mut router = Router::new([FIRST, SECOND]);
    for name in [FIRST, SECOND] {
        router.set_address_types(name, &smtp());
        router.set_available(name, true);
    }
    router
}

/// A message and everything that it depends on.
struct Fixture {
    envelope: Envelope,
    schedule: Schedule,
    router: Router,
    cancelled: bool,
    now: UnixMillis,
}

impl Fixture {
    fn new(recipients: usize) -> Self {
        Self {
            envelope: envelope(recipients),
            schedule: Schedule::default(),
            router: router(),
            cancelled: false,
            now: NOW,
        }
    }

    fn case(&self) -> Case<'_> {
        Case {
            envelope: &self.envelope,
            schedule: &self.schedule,
            router: &self.router,
            cancelled: self.cancelled,
            now: self.now,
        }
    }

    fn fresh(&self) -> Progress {
        Progress::fresh(self.envelope.recipients.len())
    }

    fn next(&self, progress: &Progress) -> Next {
        next(&self.case(), progress)
    }

    fn decide(&self, progress: Progress, happened: Happened) -> Verdict {
        decide(&self.case(), progress, happened)
    }

    /// An attempt of the first transport with everybody.
    fn attempt(
        &self,
        progress: Progress,
        result: SubmitResult,
        end: Option<EndMessageFlag>,
    ) -> Verdict {
        self.attempt_with(progress, result, end, Vec::new())
    }

    fn attempt_with(
        &self,
        progress: Progress,
        result: SubmitResult,
        end: Option<EndMessageFlag>,
        statuses: Vec<(RecipientIndex, RecipientStatus)>,
    ) -> Verdict {
        let result = AttemptResult {
            result,
            end,
            statuses,
        };
        self.decide(progress, happened(FIRST, self.all(), result))
    }

    fn all(&self) -> Vec<RecipientIndex> {
        (0..self.envelope.recipients.len() as u32)
            .map(RecipientIndex)
            .collect()
    }
}

fn happened(transport: &str, considered: Vec<RecipientIndex>, result: AttemptResult) -> Happened {
    Happened::Attempt {
        transport: transport.to_owned(),
        considered,
        result,
        interrupted: false,
        hold: false,
    }
}

fn ok(outcomes: impl IntoIterator<Item = Outcome>) -> SubmitResult {
    SubmitResult::Ok(named(outcomes))
}

fn named(outcomes: impl IntoIterator<Item = Outcome>) -> Vec<RecipientOutcome> {
    outcomes
        .into_iter()
        .zip(0..)
        .map(|(outcome, at)| RecipientOutcome {
            recipient: RecipientIndex(at),
            outcome,
        })
        .collect()
}

fn delivered() -> Outcome {
    Outcome::Delivered(Delivery::new(NOW, "mx.example.org", "250 2.0.0 ok"))
}

fn refusal() -> Diagnosis {
    Diagnosis::new(
        EnhancedStatus::new(5, 1, 1),
        NdrReason::TransferImpossible,
        "unknown",
    )
}

fn failed() -> Outcome {
    Outcome::Failed(refusal())
}

fn deferred() -> Outcome {
    Outcome::Deferred {
        diagnosis: diagnosis(),
        destination_down: false,
    }
}

fn waiting(verdict: &Verdict) -> &Waiting {
    match &verdict.disposition {
        Disposition::Waiting(waiting) => waiting,
        other => panic!("{other:?}"),
    }
}

fn state(verdict: &Verdict, at: usize) -> &RecipientState {
    &verdict.progress.recipients[at].state
}

fn report(kind: ReportKind, recipients: &[u32]) -> ReportSpec {
    ReportSpec {
        kind,
        recipients: recipients.iter().copied().map(RecipientIndex).collect(),
        part: 0,
    }
}

const SENT: Option<EndMessageFlag> = Some(EndMessageFlag::Sent);
