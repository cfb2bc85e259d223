use std::time::Duration;

use pombo_proto::{
    message::{MessageClass, Notify},
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

#[test]
fn everybody_delivered_finishes_and_tells_those_who_asked() {
    let mut fixture = Fixture::new(4);
    fixture.envelope.recipients[1].notify = Notify::default();
    let relayed = |relayed| {
        Outcome::Delivered(Delivery {
            relayed,
            ..Delivery::new(NOW, "mx", "ok")
        })
    };
    // Of the last one, the server that took NOTIFY=SUCCESS reports.
    let (unreported, promised) = (relayed(Relayed::Unreported), relayed(Relayed::Promised));
    let result = ok([delivered(), delivered(), unreported, promised]);
    let verdict = fixture.attempt(fixture.fresh(), result, SENT);
    assert_eq!(verdict.disposition, Disposition::Finished);
    assert_eq!(
        verdict.reports,
        [
            report(ReportKind::Success, &[0]),
            report(ReportKind::Relayed, &[2])
        ]
    );
}

#[test]
fn failures_of_one_verdict_make_one_report() {
    let mut fixture = Fixture::new(4);
    fixture.envelope.recipients[2].notify = Notify::NEVER;
    let result = ok([failed(), deferred(), failed(), failed()]);
    let verdict = fixture.attempt(fixture.fresh(), result, Some(EndMessageFlag::ResendLater));
    assert_eq!(verdict.reports, [report(ReportKind::Failure, &[0, 3])]);
    assert!(matches!(state(&verdict, 2), RecipientState::Failed { .. }));
    assert!(!verdict.progress.is_finished());
}

#[test]
fn busy_means_the_same_call_a_little_later() {
    let fixture = Fixture::new(1);
    let verdict = fixture.attempt(fixture.fresh(), SubmitResult::Busy, None);
    assert_eq!(waiting(&verdict).due, NOW.after(fixture.schedule.busy));
    assert_eq!(waiting(&verdict).transport.as_deref(), Some(FIRST));
    assert_eq!(verdict.progress.recipients[0].tries, 0);
}

#[test]
fn not_me_and_left_go_to_the_next_transport_and_then_to_nobody() {
    let fixture = Fixture::new(1);
    let verdict = fixture.attempt(fixture.fresh(), SubmitResult::NotMe, None);
    assert!(waiting(&verdict).again_now);
    assert_eq!(waiting(&verdict).transport.as_deref(), Some(SECOND));
    let Next::Submit(plan) = fixture.next(&verdict.progress) else {
        panic!("the second transport is there");
    };
    assert_eq!(
        (plan.transport.as_str(), plan.recipients.len()),
        (SECOND, 1)
    );
    assert_eq!(plan.destination.as_deref(), Some("example.org"));

    // Not named at all: left.
    let result = AttemptResult {
        result: ok([]),
        end: SENT,
        statuses: Vec::new(),
    };
    let verdict = fixture.decide(verdict.progress, happened(SECOND, fixture.all(), result));
    let RecipientState::Failed { diagnosis, .. } = state(&verdict, 0) else {
        panic!("nobody is left");
    };
    assert_eq!(diagnosis.status, EnhancedStatus::new(5, 4, 4));
    assert_eq!(diagnosis.reason, NdrReason::TransferImpossible);
    assert_eq!(verdict.reports, [report(ReportKind::Failure, &[0])]);
    assert_eq!(verdict.disposition, Disposition::Finished);
}

#[test]
fn what_no_transport_takes_is_reported_without_an_attempt() {
    let mut fixture = Fixture::new(1);
    fixture.envelope.recipients[0].address_type = "FAX".to_owned();
    assert_eq!(fixture.next(&fixture.fresh()), Next::Decide);
    let verdict = fixture.decide(fixture.fresh(), Happened::Nothing);
    assert_eq!(verdict.disposition, Disposition::Finished);
    assert_eq!(verdict.reports, [report(ReportKind::Failure, &[0])]);
}

#[test]
fn a_transport_that_never_spoke_is_waited_for() {
    let mut fixture = Fixture::new(1);
    fixture.router = Router::new([FIRST]);
    assert_eq!(fixture.next(&fixture.fresh()), Next::Decide);
    let verdict = fixture.decide(fixture.fresh(), Happened::Nothing);
    assert_eq!(waiting(&verdict).transport.as_deref(), Some(FIRST));
    assert!(!waiting(&verdict).again_now && verdict.reports.is_empty());
    assert!(waiting(&verdict).due > NOW);
}

#[test]
fn a_transport_that_is_away_is_waited_for_and_the_others_go_first() {
    let mut fixture = Fixture::new(2);
    fixture.envelope.recipients[0].address = "a@first.example".to_owned();
    let first = AddressTypes {
        types: Some(vec!["SMTP:*@first.example".to_owned()]),
        uids: Vec::new(),
    };
    fixture.router.set_address_types(FIRST, &first);
    fixture.router.set_available(FIRST, false);
    let Next::Submit(plan) = fixture.next(&fixture.fresh()) else {
        panic!("the second transport is there");
    };
    assert_eq!(plan.recipients, [RecipientIndex(1)]);
    let verdict = fixture.decide(fixture.fresh(), Happened::Nothing);
    assert_eq!(waiting(&verdict).transport.as_deref(), Some(SECOND));
    assert!(waiting(&verdict).again_now);
    // None of several is there: whichever comes first must find it.
    fixture.router.set_available(SECOND, false);
    assert_eq!(fixture.next(&fixture.fresh()), Next::Decide);
    let verdict = fixture.decide(fixture.fresh(), Happened::Nothing);
    assert_eq!(waiting(&verdict).transport, None);
    assert!(waiting(&verdict).due > NOW && !waiting(&verdict).again_now);
    // Only one is needed: due at once, for whenever it is back.
    fixture.envelope.recipients.truncate(1);
    let verdict = fixture.decide(fixture.fresh(), Happened::Nothing);
    assert_eq!(waiting(&verdict).due, NOW);
    assert_eq!(waiting(&verdict).reason, "first is away");
    let warning = SUBMITTED.after(fixture.schedule.delay_warning);
    assert_eq!(waiting(&verdict).wake, warning);
    assert_eq!(
        waiting(&verdict).destination.as_deref(),
        Some("first.example")
    );
    assert!(!waiting(&verdict).again_now);
}

#[test]
fn wait_and_network_errors_are_offered_again_after_so_long() {
    let fixture = Fixture::new(1);
    let asked = Duration::from_secs(100);
    for result in [
        SubmitResult::Wait(asked, Some(diagnosis())),
        SubmitResult::NetworkError(asked, diagnosis()),
    ] {
        let verdict = fixture.attempt(fixture.fresh(), result, None);
        let pause = waiting(&verdict).due.since(NOW);
        assert!(pause >= asked && pause <= asked.mul_f64(1.2), "{pause:?}");
        assert_eq!(verdict.progress.recipients[0].last, Some(diagnosis()));
        assert!(verdict.progress.recipients[0].passed.is_empty());
    }
    let result = SubmitResult::NetworkError(Duration::ZERO, diagnosis());
    let verdict = fixture.attempt(fixture.fresh(), result, None);
    assert!(waiting(&verdict).due.since(NOW) >= Duration::from_secs(48));
}

#[test]
fn a_critical_error_keeps_the_message_for_its_transport() {
    let fixture = Fixture::new(1);
    let result = SubmitResult::CriticalError(diagnosis());
    let verdict = fixture.attempt(fixture.fresh(), result, None);
    assert_eq!(waiting(&verdict).transport.as_deref(), Some(FIRST));
    assert_eq!(verdict.progress.recipients[0].tries, 0);
}

#[test]
fn resend_now_is_due_now_but_not_for_ever() {
    let fixture = Fixture::new(1);
    let mut progress = fixture.fresh();
    for at_once in [true, true, true, false, false] {
        let verdict = fixture.attempt(progress, ok([deferred()]), Some(EndMessageFlag::ResendNow));
        assert_eq!(waiting(&verdict).again_now, at_once);
        progress = verdict.progress;
    }
}

#[test]
fn resend_later_follows_the_schedule_and_sent_does_not_hide_a_deferral() {
    let fixture = Fixture::new(1);
    for flag in [
        Some(EndMessageFlag::ResendLater),
        Some(EndMessageFlag::DontResend),
        SENT,
        None,
    ] {
        let verdict = fixture.attempt(fixture.fresh(), ok([deferred()]), flag);
        let pause = waiting(&verdict).due.since(NOW).as_secs();
        assert!((48..=72).contains(&pause), "{flag:?}: {pause}");
        assert_eq!(verdict.progress.recipients[0].tries, 1);
        assert_eq!(waiting(&verdict).reason, "first: 4.4.1 no answer from host");
    }
}

#[test]
fn dont_resend_keeps_until_a_deadline_and_then_offers_it_again() {
    let mut fixture = Fixture::new(2);
    let result = ok([Outcome::Kept, delivered()]);
    let verdict = fixture.attempt(fixture.fresh(), result, Some(EndMessageFlag::DontResend));
    let deadline = NOW.after(fixture.schedule.kept);
    assert_eq!(*state(&verdict, 0), RecipientState::Kept { deadline });
    assert_eq!(waiting(&verdict).transport, None);
    // The delay warning comes first, and does not disturb it.
    let warning = SUBMITTED.after(fixture.schedule.delay_warning);
    assert_eq!(waiting(&verdict).due, warning);
    fixture.now = warning;
    assert_eq!(fixture.next(&verdict.progress), Next::Decide);
    let verdict = fixture.decide(verdict.progress, Happened::Nothing);
    assert_eq!(verdict.reports, [report(ReportKind::Delay, &[0])]);
    assert_eq!(waiting(&verdict).due, deadline);
    fixture.now = deadline;
    let verdict = fixture.decide(verdict.progress, Happened::Nothing);
    assert!(waiting(&verdict).again_now);
    let Next::Submit(plan) = fixture.next(&verdict.progress) else {
        panic!("it is offered again");
    };
    assert!(plan.begin_deferred);
    assert_eq!(plan.recipients, [RecipientIndex(0)]);
}

#[test]
fn sent_deferred_decides_only_what_that_transport_kept() {
    let fixture = Fixture::new(3);
    let result = ok([Outcome::Kept, Outcome::Kept, deferred()]);
    let kept = fixture.attempt(fixture.fresh(), result, Some(EndMessageFlag::DontResend));
    let statuses = || {
        vec![
            (RecipientIndex(0), RecipientStatus::NotDelivered(refusal())),
            (RecipientIndex(2), RecipientStatus::NotDelivered(refusal())),
            (RecipientIndex(9), RecipientStatus::NotDelivered(refusal())),
        ]
    };
    let say = |transport: &str, statuses| {
        let transport = transport.to_owned();
        let happened = Happened::SentDeferred {
            transport,
            statuses,
        };
        fixture.decide(kept.progress.clone(), happened)
    };
    assert!(say(SECOND, statuses()).reports.is_empty());
    let verdict = say(FIRST, statuses());
    assert_eq!(verdict.reports, [report(ReportKind::Failure, &[0])]);
    assert!(matches!(state(&verdict, 1), RecipientState::Kept { .. }));
    assert!(matches!(state(&verdict, 2), RecipientState::Pending { .. }));
    // Nothing said: wanted again.
    let verdict = say(FIRST, Vec::new());
    let Next::Submit(plan) = fixture.next(&verdict.progress) else {
        panic!("it is wanted again");
    };
    assert!(plan.begin_deferred);
    assert_eq!(plan.recipients.len(), 2);
}

#[test]
fn of_two_words_the_more_final_one_counts_and_makes_one_report() {
    let fixture = Fixture::new(1);
    let not = || RecipientStatus::NotDelivered(refusal());
    let yes = || RecipientStatus::Delivered(Delivery::new(NOW, "mx", "ok"));
    for (statuses, outcome, kind) in [
        (vec![not()], delivered(), ReportKind::Failure),
        (vec![yes()], failed(), ReportKind::Failure),
        (vec![yes(), not()], delivered(), ReportKind::Failure),
        (vec![not(), not()], failed(), ReportKind::Failure),
        (vec![yes()], deferred(), ReportKind::Success),
        (vec![yes(), yes()], delivered(), ReportKind::Success),
        (vec![yes()], Outcome::Left, ReportKind::Success),
    ] {
        let statuses: Vec<_> = statuses
            .into_iter()
            .map(|status| (RecipientIndex(0), status))
            .collect();
        let words = format!("{statuses:?} {outcome:?}");
        let verdict = fixture.attempt_with(fixture.fresh(), ok([outcome]), SENT, statuses);
        assert_eq!(verdict.reports, [report(kind, &[0])], "{words}");
        assert_eq!(verdict.disposition, Disposition::Finished, "{words}");
    }
}

#[test]
fn statuses_count_whatever_submit_message_returned() {
    let fixture = Fixture::new(2);
    let statuses = vec![(RecipientIndex(0), RecipientStatus::NotDelivered(refusal()))];
    let verdict = fixture.attempt_with(fixture.fresh(), SubmitResult::Busy, None, statuses);
    assert_eq!(verdict.reports, [report(ReportKind::Failure, &[0])]);
    assert!(matches!(state(&verdict, 1), RecipientState::Pending { .. }));
}

#[test]
fn a_cancelled_message_keeps_what_was_sent_and_tells_nobody_about_the_rest() {
    let mut fixture = Fixture::new(3);
    fixture.cancelled = true;
    assert_eq!(fixture.next(&fixture.fresh()), Next::Decide);
    for result in [
        SubmitResult::Cancelled(named([delivered(), deferred()])),
        ok([delivered(), deferred(), Outcome::Left]),
    ] {
        let verdict = fixture.attempt(fixture.fresh(), result, None);
        assert_eq!(verdict.disposition, Disposition::Finished);
        assert!(matches!(state(&verdict, 0), RecipientState::Delivered(_)));
        for at in [1, 2] {
            assert_eq!(*state(&verdict, at), RecipientState::Cancelled { at: NOW });
        }
        assert_eq!(verdict.reports, [report(ReportKind::Success, &[0])]);
    }
}

#[test]
fn mapi_e_cancel_without_a_mark_is_obeyed_unless_we_interrupted_it_ourselves() {
    let fixture = Fixture::new(1);
    let cancelled = || SubmitResult::Cancelled(Vec::new());
    let verdict = fixture.attempt(fixture.fresh(), cancelled(), None);
    assert_eq!(*state(&verdict, 0), RecipientState::Cancelled { at: NOW });
    let result = AttemptResult {
        result: cancelled(),
        end: None,
        statuses: Vec::new(),
    };
    let interrupted = Happened::Attempt {
        transport: FIRST.to_owned(),
        considered: fixture.all(),
        result,
        interrupted: true,
    };
    let verdict = fixture.decide(fixture.fresh(), interrupted);
    assert!(matches!(state(&verdict, 0), RecipientState::Pending { .. }));
}

#[test]
fn expiry_returns_what_is_owed_with_the_last_words() {
    let mut fixture = Fixture::new(2);
    let expiry = NOW.after(Duration::from_secs(10));
    fixture.envelope.expires_at = Some(expiry);
    let last = diagnosis().said_by("mx.example.org", "451 4.4.1 later");
    let down = Outcome::Deferred {
        diagnosis: last,
        destination_down: true,
    };
    let verdict = fixture.attempt(fixture.fresh(), ok([down, delivered()]), SENT);
    assert_eq!(waiting(&verdict).due, expiry);
    fixture.now = expiry;
    assert_eq!(fixture.next(&verdict.progress), Next::Decide);
    let verdict = fixture.decide(verdict.progress, Happened::Nothing);
    let RecipientState::Expired { diagnosis, .. } = state(&verdict, 0) else {
        panic!("it is over");
    };
    assert_eq!(diagnosis.status, EnhancedStatus::new(5, 4, 7));
    assert_eq!(diagnosis.reply.as_deref(), Some("451 4.4.1 later"));
    assert_eq!(verdict.reports, [report(ReportKind::Failure, &[0])]);
    assert_eq!(verdict.disposition, Disposition::Finished);
}

#[test]
fn a_delay_is_told_once_and_only_to_those_who_want_to_know() {
    let mut fixture = Fixture::new(2);
    fixture.envelope.recipients[1].notify.delay = false;
    fixture.now = SUBMITTED.after(fixture.schedule.delay_warning);
    let verdict = fixture.attempt(fixture.fresh(), ok([deferred(), deferred()]), SENT);
    assert_eq!(verdict.reports, [report(ReportKind::Delay, &[0])]);
    let verdict = fixture.attempt(verdict.progress, ok([deferred(), deferred()]), SENT);
    assert_eq!(verdict.reports, []);
}

#[test]
fn there_is_no_report_about_a_report_or_to_the_null_reverse_path() {
    for null in [true, false] {
        let mut fixture = Fixture::new(2);
        if null {
            fixture.envelope.sender.clear();
        } else {
            fixture.envelope.class = MessageClass::NonDeliveryReport;
        }
        fixture.now = SUBMITTED.after(fixture.schedule.delay_warning);
        let verdict = fixture.attempt(fixture.fresh(), ok([failed(), deferred()]), SENT);
        assert_eq!(verdict.reports, []);
        fixture.now = SUBMITTED.after(fixture.schedule.life);
        let verdict = fixture.decide(verdict.progress, Happened::Nothing);
        assert_eq!(
            (verdict.disposition, verdict.reports),
            (Disposition::Finished, vec![])
        );
    }
}

#[test]
fn what_is_to_be_sent_later_is_not_sent_before() {
    let mut fixture = Fixture::new(1);
    let later = NOW.after(Duration::from_secs(3_600));
    fixture.envelope.deferred_until = Some(later);
    assert_eq!(fixture.next(&fixture.fresh()), Next::Decide);
    let verdict = fixture.decide(fixture.fresh(), Happened::Nothing);
    assert_eq!(waiting(&verdict).due, later);
    assert_eq!(waiting(&verdict).reason, "to be sent later");
    fixture.now = later;
    assert!(matches!(fixture.next(&verdict.progress), Next::Submit(_)));
}

#[test]
fn a_lost_session_is_tried_again_or_held() {
    let fixture = Fixture::new(2);
    let lost = |in_doubt, hold| {
        let happened = Happened::SessionLost {
            transport: FIRST.to_owned(),
            considered: vec![RecipientIndex(0)],
            in_doubt,
            hold,
        };
        fixture.decide(fixture.fresh(), happened)
    };
    let verdict = lost(false, true);
    assert!(waiting(&verdict).again_now && !verdict.progress.recipients[0].in_doubt);
    let verdict = lost(true, false);
    assert!(waiting(&verdict).again_now && verdict.progress.recipients[0].in_doubt);
    assert!(!verdict.progress.recipients[1].in_doubt);
    assert!(matches!(
        lost(true, true).disposition,
        Disposition::Held { .. }
    ));
    // In doubt stays in doubt.
    let verdict = fixture.attempt(verdict.progress, ok([delivered(), delivered()]), SENT);
    assert!(verdict.progress.recipients[0].in_doubt);
}

#[test]
fn parked_ones_wait_with_their_reason_and_count_no_try() {
    let fixture = Fixture::new(2);
    let until = NOW.after(Duration::from_secs(30));
    let parked = Happened::Parked {
        reason: "example.org is closed".to_owned(),
        recipients: fixture.all().into_iter().map(|at| (at, until)).collect(),
    };
    let verdict = fixture.decide(fixture.fresh(), parked);
    assert_eq!(waiting(&verdict).due, until);
    assert_eq!(waiting(&verdict).reason, "example.org is closed");
    assert_eq!(
        waiting(&verdict).destination.as_deref(),
        Some("example.org")
    );
    assert_eq!(verdict.progress.recipients[0].tries, 0);
}

#[test]
fn what_cannot_be_read_is_put_away_and_what_is_given_up_is_reported() {
    let mut fixture = Fixture::new(1);
    let unreadable = Happened::Unreadable {
        transport: FIRST.to_owned(),
    };
    let verdict = fixture.decide(fixture.fresh(), unreadable);
    assert!(matches!(verdict.disposition, Disposition::Dead { .. }));
    fixture.cancelled = true;
    let given_up = Happened::GivenUp {
        reason: "dropped by the operator".to_owned(),
    };
    let verdict = fixture.decide(verdict.progress, given_up);
    assert_eq!(verdict.reports, [report(ReportKind::Failure, &[0])]);
    assert_eq!(verdict.disposition, Disposition::Finished);
}

#[test]
fn reports_about_very_many_are_split_and_their_ids_differ_and_repeat() {
    let fixture = Fixture::new(2_500);
    let result = ok((0..2_500).map(|_| failed()));
    let verdict = fixture.attempt(fixture.fresh(), result, SENT);
    let sizes: Vec<usize> = verdict.reports.iter().map(|r| r.recipients.len()).collect();
    assert_eq!(sizes, [1_000, 1_000, 500]);
    let id = fixture.envelope.id;
    let ids: Vec<_> = verdict.reports.iter().map(|r| r.id(id, Fence(1))).collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    assert_eq!(ids[0], verdict.reports[0].id(id, Fence(1)));
    assert_ne!(ids[0], verdict.reports[0].id(id, Fence(2)));
}

/// A message's whole life under any behaviour of its transports, checked against the invariants at each verdict.
#[test]
fn any_life_ends_in_time_with_one_final_report_each() {
    for seed in 0..6_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        Life::new(&mut random).live(&mut random, seed);
    }
}

struct Life {
    fixture: Fixture,
    final_reports: Vec<u32>,
    delay_reports: Vec<u32>,
}

impl Life {
    fn new(random: &mut fastrand::Rng) -> Self {
        let mut fixture = Fixture::new(random.usize(1..6));
        for recipient in &mut fixture.envelope.recipients {
            recipient.notify = Notify {
                success: random.bool(),
                failure: random.u8(0..4) > 0,
                delay: random.bool(),
            };
            recipient.address = format!("a@d{}.example", random.u8(0..3));
            if random.u8(0..10) == 0 {
                recipient.address_type = "FAX".to_owned();
            }
        }
        if random.u8(0..8) == 0 {
            fixture.envelope.sender.clear();
        }
        if random.u8(0..4) == 0 {
            fixture.envelope.deferred_until =
                Some(NOW.after(Duration::from_secs(random.u64(0..200_000))));
        }
        if random.u8(0..4) == 0 {
            fixture.envelope.expires_at =
                Some(NOW.after(Duration::from_secs(random.u64(0..200_000))));
        }
        let count = fixture.envelope.recipients.len();
        Self {
            fixture,
            final_reports: vec![0; count],
            delay_reports: vec![0; count],
        }
    }

    fn live(&mut self, random: &mut fastrand::Rng, seed: u64) {
        let mut progress = self.fixture.fresh();
        let end = self.fixture.schedule.expires_at(&self.fixture.envelope);
        for step in 0.. {
            assert!(step < 5_000, "seed {seed}: no end");
            for name in [FIRST, SECOND] {
                self.fixture.router.set_available(name, random.u8(0..5) > 0);
            }
            self.fixture.cancelled |= random.u16(0..400) == 0;
            let happened = match self.fixture.next(&progress) {
                Next::Submit(plan) => self.submit(&plan, &progress, random, seed),
                Next::Decide => Happened::Nothing,
            };
            let verdict = self.fixture.decide(progress.clone(), happened);
            self.check(&progress, &verdict, seed);
            progress = verdict.progress;
            match verdict.disposition {
                Disposition::Finished => break,
                Disposition::Waiting(waiting) => {
                    let now = self.fixture.now;
                    assert!(
                        waiting.due <= waiting.wake && waiting.wake <= end,
                        "seed {seed}"
                    );
                    assert!(
                        waiting.due <= end && waiting.due >= now,
                        "seed {seed}: {waiting:?}"
                    );
                    assert!(!waiting.again_now || waiting.due <= now, "seed {seed}");
                    // Nothing due and not again at once: its transport is away. It comes back at some time.
                    let idle = u64::from(waiting.due == now && !waiting.again_now);
                    self.fixture.now = waiting
                        .due
                        .after(Duration::from_secs(idle * random.u64(1..9_000)));
                }
                Disposition::Held { .. } => {}
                Disposition::Dead { .. } => panic!("seed {seed}: nobody made it so"),
            }
        }
        self.check_end(&progress, seed);
    }

    fn submit(
        &self,
        plan: &Plan,
        progress: &Progress,
        random: &mut fastrand::Rng,
        seed: u64,
    ) -> Happened {
        let now = self.fixture.now;
        assert!(!plan.recipients.is_empty(), "seed {seed}");
        assert!(
            self.fixture.router.is_available(&plan.transport),
            "seed {seed}"
        );
        for index in &plan.recipients {
            let known = &progress.recipients[index.get()];
            let due =
                matches!(known.state, RecipientState::Pending { not_before } if not_before <= now);
            assert!(
                due && !known.passed.contains(&plan.transport),
                "seed {seed}"
            );
        }
        if random.u8(0..12) == 0 {
            return Happened::SessionLost {
                transport: plan.transport.clone(),
                considered: plan.recipients.clone(),
                in_doubt: random.bool(),
                hold: random.bool(),
            };
        }
        let any = |random: &mut fastrand::Rng| match random.u8(0..10) {
            0 => delivered(),
            1 => failed(),
            2 => Outcome::Left,
            3 => Outcome::Kept,
            _ => deferred(),
        };
        let outcomes: Vec<RecipientOutcome> = (0..random.usize(0..plan.recipients.len() + 2))
            .map(|_| RecipientOutcome {
                recipient: RecipientIndex(random.u32(0..8)),
                outcome: any(random),
            })
            .collect();
        let mut statuses = Vec::new();
        for at in 0..random.u32(0..3) {
            let status = if random.bool() {
                RecipientStatus::NotDelivered(refusal())
            } else {
                RecipientStatus::Delivered(Delivery::new(now, "mx", "ok"))
            };
            if random.u8(0..6) == 0 {
                statuses.push((RecipientIndex(at), status));
            }
        }
        if random.u8(0..12) == 0 {
            return Happened::SentDeferred {
                transport: plan.transport.clone(),
                statuses,
            };
        }
        let asked = Duration::from_secs(random.u64(0..20_000));
        let result = match random.u8(0..20) {
            0 => SubmitResult::Busy,
            1 => SubmitResult::NotMe,
            2 => SubmitResult::Cancelled(outcomes),
            3 => SubmitResult::Wait(asked, None),
            4 => SubmitResult::NetworkError(asked, diagnosis()),
            5 => SubmitResult::CriticalError(diagnosis()),
            _ => SubmitResult::Ok(outcomes),
        };
        let end = random.choice([
            None,
            SENT,
            Some(EndMessageFlag::ResendNow),
            Some(EndMessageFlag::ResendLater),
            Some(EndMessageFlag::DontResend),
        ]);
        let result = AttemptResult {
            result,
            end: end.flatten(),
            statuses,
        };
        happened(&plan.transport, plan.recipients.clone(), result)
    }

    fn check(&mut self, before: &Progress, verdict: &Verdict, seed: u64) {
        let kinds: Vec<ReportKind> = verdict.reports.iter().map(|report| report.kind).collect();
        for (at, kind) in kinds.iter().enumerate() {
            assert!(!kinds[..at].contains(kind), "seed {seed}: two of {kind:?}");
        }
        for report in &verdict.reports {
            assert!(!self.fixture.envelope.sender.is_empty(), "seed {seed}");
            for index in &report.recipients {
                let notify = self.fixture.envelope.recipients[index.get()].notify;
                let known = &verdict.progress.recipients[index.get()].state;
                match report.kind {
                    ReportKind::Delay => {
                        assert!(notify.delay && !known.is_decided(), "seed {seed}");
                        self.delay_reports[index.get()] += 1;
                    }
                    ReportKind::Failure => {
                        assert!(notify.failure, "seed {seed}");
                        let fits = matches!(
                            known,
                            RecipientState::Failed { .. } | RecipientState::Expired { .. }
                        );
                        assert!(fits, "seed {seed}: {known:?}");
                        self.final_reports[index.get()] += 1;
                    }
                    ReportKind::Success | ReportKind::Relayed => {
                        assert!(notify.success, "seed {seed}");
                        assert!(matches!(known, RecipientState::Delivered(_)), "seed {seed}");
                        self.final_reports[index.get()] += 1;
                    }
                }
            }
        }
        let finished = verdict.disposition == Disposition::Finished;
        assert_eq!(finished, verdict.progress.is_finished(), "seed {seed}");
        for (before, after) in before.recipients.iter().zip(&verdict.progress.recipients) {
            if before.state.is_decided() {
                assert_eq!(before.state, after.state, "seed {seed}: decided twice");
            }
            assert!(
                after.passed.len() <= 2 && after.passed.starts_with(&before.passed),
                "seed {seed}"
            );
            assert!(after.in_doubt >= before.in_doubt, "seed {seed}");
        }
        assert!(verdict.progress.timeline.len() <= crate::progress::TIMELINE_MAX);
    }

    fn check_end(&self, progress: &Progress, seed: u64) {
        for (at, known) in progress.recipients.iter().enumerate() {
            let notify = self.fixture.envelope.recipients[at].notify;
            let asked = match known.state {
                RecipientState::Delivered(_) => notify.success,
                RecipientState::Failed { .. } | RecipientState::Expired { .. } => notify.failure,
                _ => false,
            };
            let expected = u32::from(asked && !self.fixture.envelope.sender.is_empty());
            assert_eq!(
                self.final_reports[at], expected,
                "seed {seed}: recipient {at}"
            );
            assert!(self.delay_reports[at] <= 1, "seed {seed}: recipient {at}");
        }
    }
}

fn adopted(transport: &str, result: SubmitResult) -> AdoptedAttempt {
    AdoptedAttempt {
        transport: transport.to_owned(),
        result: AttemptResult {
            result,
            end: None,
            statuses: Vec::new(),
        },
    }
}

fn of(recipient: u32, outcome: Outcome) -> RecipientOutcome {
    RecipientOutcome {
        recipient: RecipientIndex(recipient),
        outcome,
    }
}

/// The attempt was about one of two recipients: the other one was never offered to anybody.
#[test]
fn an_adopted_attempt_says_nothing_of_whom_it_does_not_name() {
    let fixture = Fixture::new(2);
    let result = SubmitResult::Ok(vec![of(0, delivered())]);
    let happened = Happened::Adopted(vec![adopted(FIRST, result)]);
    let verdict = fixture.decide(fixture.fresh(), happened);
    let [first, second] = verdict.progress.recipients.as_slice() else {
        panic!("two recipients");
    };
    assert!(matches!(first.state, RecipientState::Delivered(_)));
    assert!(matches!(second.state, RecipientState::Pending { .. }));
    assert!(second.passed.is_empty());
}

#[test]
fn of_several_adopted_attempts_all_count() {
    let fixture = Fixture::new(1);
    let deferred = Outcome::Deferred {
        diagnosis: diagnosis(),
        destination_down: false,
    };
    let stale = adopted(FIRST, SubmitResult::Ok(vec![of(0, deferred)]));
    let sent = adopted(SECOND, SubmitResult::Ok(vec![of(0, delivered())]));
    for attempts in [[stale.clone(), sent.clone()], [sent, stale]] {
        let happened = Happened::Adopted(attempts.to_vec());
        let verdict = fixture.decide(fixture.fresh(), happened);
        assert_eq!(verdict.disposition, Disposition::Finished);
    }
}

#[test]
fn an_adopted_attempt_that_did_nothing_passes_nobody_on() {
    let fixture = Fixture::new(1);
    for result in [SubmitResult::NotMe, SubmitResult::Busy] {
        let happened = Happened::Adopted(vec![adopted(FIRST, result)]);
        let verdict = fixture.decide(fixture.fresh(), happened);
        assert!(verdict.progress.recipients[0].passed.is_empty());
        assert!(matches!(verdict.disposition, Disposition::Waiting(it) if it.again_now));
    }
}

#[test]
fn what_may_be_delivered_this_moment_is_neither_cancelled_nor_expired() {
    let mut fixture = Fixture::new(1);
    fixture.cancelled = true;
    fixture.now = fixture.schedule.expires_at(&fixture.envelope);
    let happened = Happened::Unknown {
        transport: FIRST.to_owned(),
    };
    let verdict = fixture.decide(fixture.fresh(), happened);
    assert!(verdict.reports.is_empty());
    assert!(matches!(
        verdict.progress.recipients[0].state,
        RecipientState::Pending { .. }
    ));
    let Disposition::Waiting(waiting) = verdict.disposition else {
        panic!("it waits to be asked for");
    };
    assert_eq!((waiting.due, waiting.wake), (fixture.now, fixture.now));
    assert_eq!(waiting.transport, None);
}
