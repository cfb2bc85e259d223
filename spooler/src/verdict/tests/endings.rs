//! Too early, too late, and no longer wanted: what the clock and people decide.

use super::*;

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
        hold: true,
    };
    let verdict = fixture.decide(fixture.fresh(), interrupted);
    assert!(matches!(state(&verdict, 0), RecipientState::Pending { .. }));
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
