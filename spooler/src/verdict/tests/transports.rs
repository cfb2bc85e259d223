//! Who takes a recipient, and what becomes of those whom nobody takes, or nobody yet.

use super::*;

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
