//! EndMessage's flags, and what was kept until SentDeferred.

use super::*;

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
