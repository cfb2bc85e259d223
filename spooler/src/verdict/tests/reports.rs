//! Which reports a verdict makes, and about whom.

use pombo_proto::message::MessageClass;

use super::*;

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
