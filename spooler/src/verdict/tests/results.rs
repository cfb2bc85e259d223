//! What SubmitMessage may return, and when it is called again.

use super::*;

#[test]
fn busy_means_the_same_call_a_little_later() {
    let fixture = Fixture::new(1);
    let verdict = fixture.attempt(fixture.fresh(), SubmitResult::Busy, None);
    assert_eq!(waiting(&verdict).due, NOW.after(fixture.schedule.busy));
    assert_eq!(waiting(&verdict).transport.as_deref(), Some(FIRST));
    assert_eq!(verdict.progress.recipients[0].tries, 0);
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
fn statuses_count_whatever_submit_message_returned() {
    let fixture = Fixture::new(2);
    let statuses = vec![(RecipientIndex(0), RecipientStatus::NotDelivered(refusal()))];
    let verdict = fixture.attempt_with(fixture.fresh(), SubmitResult::Busy, None, statuses);
    assert_eq!(verdict.reports, [report(ReportKind::Failure, &[0])]);
    assert!(matches!(state(&verdict, 1), RecipientState::Pending { .. }));
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
