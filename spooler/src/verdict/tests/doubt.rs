//! An attempt whose session is gone: what was found of it, what is in doubt, and what kills.

use super::*;

fn adopted(transport: &str, result: SubmitResult) -> AdoptedAttempt {
    AdoptedAttempt {
        transport: transport.to_owned(),
        result: AttemptResult {
            result,
            end: None,
            statuses: Vec::new(),
        },
        hold: false,
    }
}

fn of(recipient: u32, outcome: Outcome) -> RecipientOutcome {
    RecipientOutcome {
        recipient: RecipientIndex(recipient),
        outcome,
    }
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
fn what_was_lost_at_its_dot_is_held_unless_its_results_were_found() {
    let fixture = Fixture::new(2);
    let lost = |found: Vec<AdoptedAttempt>| {
        let happened = Happened::LostAtTheDot {
            transport: FIRST.to_owned(),
            considered: vec![RecipientIndex(0)],
            found,
        };
        fixture.decide(fixture.fresh(), happened)
    };
    let verdict = lost(Vec::new());
    assert!(matches!(verdict.disposition, Disposition::Held { .. }));
    let doubts = |verdict: &Verdict| {
        let all = verdict.progress.recipients.iter();
        all.map(|it| it.in_doubt).collect::<Vec<_>>()
    };
    assert_eq!(doubts(&verdict), [true, false]);
    assert_eq!(verdict.progress.in_doubt(), 1);
    assert!(verdict.reports.is_empty());

    let found = |outcomes| AdoptedAttempt {
        transport: FIRST.to_owned(),
        result: AttemptResult {
            result: ok(outcomes),
            end: SENT,
            statuses: Vec::new(),
        },
        hold: true,
    };
    let verdict = lost(vec![found([delivered(), deferred()])]);
    assert!(matches!(verdict.disposition, Disposition::Waiting(_)));
    assert_eq!(doubts(&verdict), [false, false]);
    let verdict = lost(vec![found([deferred(), delivered()])]);
    assert!(matches!(verdict.disposition, Disposition::Held { .. }));
    assert_eq!(doubts(&verdict), [true, false]);
    // A person released it, and it was delivered: nothing is left to doubt, though it may have been delivered twice.
    let verdict = fixture.attempt(verdict.progress, ok([delivered(), delivered()]), SENT);
    assert!(matches!(verdict.disposition, Disposition::Finished));
    assert_eq!(verdict.progress.in_doubt(), 0);
}

#[test]
fn what_was_deadly_alone_is_dead_unless_it_was_delivered() {
    let fixture = Fixture::new(1);
    let deadly = |found: Vec<AdoptedAttempt>| {
        let happened = Happened::Deadly {
            reason: "it kills".to_owned(),
            found,
        };
        fixture.decide(fixture.fresh(), happened)
    };
    let dead = |verdict: &Verdict| matches!(&verdict.disposition, Disposition::Dead { reason } if reason == "it kills");
    assert!(dead(&deadly(Vec::new())));
    let found = |outcome| {
        let result = AttemptResult {
            result: ok([outcome]),
            end: SENT,
            statuses: Vec::new(),
        };
        vec![AdoptedAttempt {
            transport: FIRST.to_owned(),
            result,
            hold: true,
        }]
    };
    assert!(dead(&deadly(found(deferred()))));
    let verdict = deadly(found(delivered()));
    assert!(matches!(verdict.disposition, Disposition::Finished));
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

fn in_doubt() -> Outcome {
    Outcome::InDoubt(diagnosis())
}

/// Whom the verdict marks, and what it has counted.
fn marked(verdict: &Verdict) -> (Vec<bool>, u32) {
    let all = verdict.progress.recipients.iter();
    let counted = verdict.doubted.get(FIRST).copied().unwrap_or_default();
    (all.map(|it| it.in_doubt).collect(), counted)
}

#[test]
fn who_may_have_been_sent_to_is_marked_and_counted_and_tried_again_or_held() {
    let fixture = Fixture::new(3);
    let attempt = |progress, hold| {
        let result = AttemptResult {
            result: ok([in_doubt(), delivered(), in_doubt()]),
            end: Some(EndMessageFlag::ResendLater),
            statuses: Vec::new(),
        };
        let happened = Happened::Attempt {
            transport: FIRST.to_owned(),
            considered: fixture.all(),
            result,
            interrupted: false,
            hold,
        };
        fixture.decide(progress, happened)
    };
    let verdict = attempt(fixture.fresh(), false);
    assert_eq!(marked(&verdict), (vec![true, false, true], 2));
    let known = &verdict.progress.recipients[0];
    assert!((known.tries, known.last.as_ref()) == (1, Some(&diagnosis())));
    // As whoever is deferred.
    assert!(waiting(&verdict).due > NOW);
    let noted = |verdict: &Verdict| {
        let all = verdict.progress.timeline.iter();
        all.filter(|it| it.what == "indoubt").count()
    };
    assert_eq!(noted(&verdict), 1);

    let held = attempt(fixture.fresh(), true);
    assert_eq!(marked(&held), (vec![true, false, true], 2));
    let Disposition::Held { reason } = &held.disposition else {
        panic!("{:?}", held.disposition)
    };
    assert!(reason.starts_with("in doubt"), "{reason}");
    assert_eq!(held.progress.in_doubt(), 2);

    // The next attempt counts again, and only whom it was about. One that ends well ends it.
    let again = attempt(verdict.progress, true);
    assert_eq!((marked(&again).1, noted(&again)), (2, 2));
    let released = fixture.attempt(
        held.progress,
        ok([delivered(), delivered(), delivered()]),
        SENT,
    );
    assert!(matches!(released.disposition, Disposition::Finished));
    assert!(released.doubted.is_empty());
    assert_eq!(released.progress.in_doubt(), 0);
}

#[test]
fn doubt_that_is_found_by_adoption_is_counted_and_held_as_any_other() {
    let fixture = Fixture::new(2);
    let found = |hold| AdoptedAttempt {
        hold,
        ..adopted(FIRST, SubmitResult::Ok(vec![of(1, in_doubt())]))
    };
    let verdict = fixture.decide(fixture.fresh(), Happened::Adopted(vec![found(false)]));
    assert_eq!(marked(&verdict), (vec![false, true], 1));
    assert!(matches!(verdict.disposition, Disposition::Waiting(_)));
    let verdict = fixture.decide(fixture.fresh(), Happened::Adopted(vec![found(true)]));
    assert_eq!(marked(&verdict), (vec![false, true], 1));
    assert!(matches!(verdict.disposition, Disposition::Held { .. }));
    // Dead is dead: a person sees it anyway.
    let deadly = Happened::Deadly {
        reason: "it kills".to_owned(),
        found: vec![found(true)],
    };
    let verdict = fixture.decide(fixture.fresh(), deadly);
    assert_eq!(marked(&verdict), (vec![false, true], 1));
    assert!(matches!(verdict.disposition, Disposition::Dead { .. }));
}

#[test]
fn a_status_that_says_what_became_of_it_leaves_no_doubt() {
    let fixture = Fixture::new(1);
    let delivery = Delivery::new(NOW, "mx.example.org", "250 ok");
    let statuses = vec![(RecipientIndex(0), RecipientStatus::Delivered(delivery))];
    let verdict = fixture.attempt_with(fixture.fresh(), ok([in_doubt()]), SENT, statuses);
    assert_eq!(marked(&verdict), (vec![false], 0));
    assert!(matches!(verdict.disposition, Disposition::Finished));
}

/// An attempt that takes too long is asked to return, and does so behind its dot, without an answer.
#[test]
fn doubt_outlives_an_interruption_and_a_cancel_ends_it() {
    let mut fixture = Fixture::new(1);
    let interrupted = || Happened::Attempt {
        transport: FIRST.to_owned(),
        considered: vec![RecipientIndex(0)],
        result: AttemptResult {
            result: SubmitResult::Cancelled(vec![of(0, in_doubt())]),
            end: None,
            statuses: Vec::new(),
        },
        interrupted: true,
        hold: true,
    };
    let verdict = fixture.decide(fixture.fresh(), interrupted());
    assert_eq!(marked(&verdict), (vec![true], 1));
    assert!(matches!(verdict.disposition, Disposition::Held { .. }));
    fixture.cancelled = true;
    let verdict = fixture.decide(fixture.fresh(), interrupted());
    assert_eq!(marked(&verdict), (vec![true], 1));
    assert!(matches!(verdict.disposition, Disposition::Finished));
}
