//! Single rules first; then a world of spoolers, agents and a store, in which everything that can die or be late does.

use super::*;
use crate::{
    outcome::{Delivery, Diagnosis, EnhancedStatus, NdrReason},
    time::UnixMillis,
};

fn id(number: u8) -> MessageId {
    MessageId::derived("test", &[number])
}

fn tenancy(number: u8, fence: u32) -> Tenancy {
    Tenancy {
        id: id(number),
        fence: Fence(fence),
    }
}

fn submit(number: u8, fence: u32) -> Submit {
    submit_to(tenancy(number, fence), vec![RecipientIndex(0)])
}

fn submit_to(tenancy: Tenancy, recipients: Vec<RecipientIndex>) -> Submit {
    Submit {
        id: tenancy.id,
        fence: tenancy.fence,
        begin_deferred: false,
        recipients,
    }
}

fn outcome(recipient: u32, outcome: Outcome) -> RecipientOutcome {
    RecipientOutcome {
        recipient: RecipientIndex(recipient),
        outcome,
    }
}

fn delivered() -> Outcome {
    Outcome::Delivered(Delivery::new(UnixMillis(1), "mx", "250"))
}

fn deferred() -> Outcome {
    let status = EnhancedStatus::new(4, 4, 1);
    Outcome::Deferred {
        diagnosis: Diagnosis::new(status, NdrReason::TransferFailed, "busy"),
        destination_down: false,
    }
}

fn with_session(capacity: u32) -> (Attempts, Session) {
    let mut attempts = Attempts::new(capacity);
    let session = attempts.open_session();
    (attempts, session)
}

#[test]
fn an_unknown_answer_is_a_promise() {
    let (mut attempts, session) = with_session(10);
    let answers = attempts.handle_adopt(&[tenancy(1, 2)]);
    assert_eq!(answers[0].answer, AdoptAnswer::Unknown);
    let late = attempts.handle_submit(session, &submit(1, 1));
    assert_eq!(late, Err(Refusal::Fenced));
    assert_eq!(
        attempts.handle_adopt(&[tenancy(1, 1)])[0].answer,
        AdoptAnswer::Fenced
    );
    assert_eq!(attempts.handle_submit(session, &submit(1, 2)), Ok(()));
}

#[test]
fn only_who_submitted_it_is_asked_at_the_dot_and_nobody_once_it_was_adopted() {
    let (mut attempts, session) = with_session(10);
    let fence = Fence(2);
    attempts.handle_submit(session, &submit(1, 2)).unwrap();
    assert_eq!(attempts.owner(id(1)), Some(Owner { session, fence }));
    assert_eq!(attempts.owner(id(2)), None);
    attempts.handle_adopt(&[tenancy(1, 2)]);
    assert_eq!(attempts.owner(id(1)), Some(Owner { session, fence }));
    attempts.handle_adopt(&[tenancy(1, 3)]);
    assert_eq!(attempts.owner(id(1)), None);
    attempts.handle_submit(session, &submit(2, 1)).unwrap();
    attempts.handle_returned(id(2), SubmitResult::Busy);
    assert_eq!(attempts.owner(id(2)), None);
}

#[test]
fn a_promise_lasts_as_long_as_a_session_that_was_open_then() {
    let (mut attempts, first) = with_session(10);
    let second = attempts.open_session();
    attempts.handle_adopt(&[tenancy(1, 2)]);
    let third = attempts.open_session();
    attempts.handle_session_ended(first);
    let late = attempts.handle_submit(second, &submit(1, 1));
    assert_eq!((late, attempts.remembered()), (Err(Refusal::Fenced), 1));
    attempts.handle_session_ended(second);
    assert_eq!(attempts.remembered(), 0);
    assert_eq!(attempts.handle_submit(third, &submit(1, 1)), Ok(()));
}

#[test]
fn too_many_promises_end_the_oldest_sessions_and_no_more() {
    let mut attempts = Attempts::new(10).with_seen_max(10);
    let sessions: Vec<_> = (0..4).map(|_| attempts.open_session()).collect();
    for number in 0..10 {
        attempts.handle_adopt(&[tenancy(number, 1)]);
    }
    assert!(attempts.sessions_to_end().is_empty());
    let young = attempts.open_session();
    for number in 10..15 {
        attempts.handle_adopt(&[tenancy(number, 1)]);
    }
    assert_eq!(attempts.sessions_to_end(), sessions);
    for session in sessions {
        attempts.handle_session_ended(session);
    }
    assert_eq!(attempts.remembered(), 5);
    assert!(attempts.sessions_to_end().is_empty());
    let _ = young;
}

#[test]
fn two_sends_of_one_id_never_overlap() {
    let (mut attempts, session) = with_session(10);
    let other = attempts.open_session();
    attempts.handle_submit(session, &submit(1, 1)).unwrap();
    for fence in 1..4 {
        let second = attempts.handle_submit(other, &submit(1, fence));
        assert_eq!(second, Err(Refusal::Closed), "{fence}");
    }
    let answer = &attempts.handle_adopt(&[tenancy(1, 3)])[0].answer;
    assert_eq!(*answer, AdoptAnswer::UnderWay);
}

#[test]
fn the_adopter_gets_everything_and_ends_it_once() {
    let (mut attempts, session) = with_session(10);
    attempts.handle_submit(session, &submit(1, 0)).unwrap();
    let owner = attempts.handle_reference(id(1), Reference(9)).unwrap();
    assert_eq!((owner.session, owner.fence), (session, Fence(0)));
    attempts.handle_session_ended(session);
    let result = SubmitResult::Ok(vec![outcome(0, delivered())]);
    attempts.handle_returned(id(1), result.clone()).unwrap();
    let done = |ended| AdoptAnswer::Done {
        reference: Reference(9),
        result: result.clone(),
        statuses: Vec::new(),
        ended,
    };
    assert_eq!(
        attempts.handle_adopt(&[tenancy(1, 1)])[0].answer,
        done(None)
    );
    let stale = attempts.handle_end(tenancy(1, 0), Reference(9));
    assert_eq!(stale, Err(Refusal::Fenced));
    let wrong = attempts.handle_end(tenancy(1, 1), Reference(8));
    assert_eq!(wrong, Err(Refusal::UnknownReference));
    let call = attempts.handle_end(tenancy(1, 1), Reference(9));
    assert!(matches!(call, Ok(BeginEnd::Call(_))));
    let again = attempts.handle_end(tenancy(1, 1), Reference(9));
    assert_eq!(again, Err(Refusal::Closed));
    attempts.handle_ended(id(1), EndMessageFlag::Sent);
    let again = attempts.handle_end(tenancy(1, 2), Reference(9));
    assert_eq!(again, Ok(BeginEnd::Already(EndMessageFlag::Sent)));
    assert_eq!(
        attempts.handle_adopt(&[tenancy(1, 2)])[0].answer,
        done(Some(EndMessageFlag::Sent))
    );
    attempts.handle_settled(&[tenancy(1, 0)]);
    assert!(!attempts.is_empty(), "a stale Settled frees nothing");
    attempts.handle_settled(&[tenancy(1, 2)]);
    assert!(attempts.is_empty());
}

#[test]
fn what_may_have_been_sent_is_not_sent_again() {
    let to = |tenancy, recipients: &[u32]| {
        submit_to(
            tenancy,
            recipients.iter().copied().map(RecipientIndex).collect(),
        )
    };
    let (mut attempts, session) = with_session(10);
    attempts
        .handle_submit(session, &to(tenancy(1, 1), &[0, 1]))
        .unwrap();
    let result = SubmitResult::Ok(vec![outcome(0, delivered()), outcome(1, deferred())]);
    attempts.handle_returned(id(1), result);
    let refused = Err(Refusal::Closed);
    for (fence, recipients) in [(1, [1].as_slice()), (2, &[0]), (2, &[0, 1])] {
        let again = to(tenancy(1, fence), recipients);
        assert_eq!(attempts.handle_submit(session, &again), refused);
    }
    let deferred_one = to(tenancy(1, 2), &[1]);
    assert_eq!(attempts.handle_submit(session, &deferred_one), Ok(()));
    assert_eq!(attempts.in_flight(), 1);
}

#[test]
fn a_definite_no_may_be_offered_again_under_the_same_fence() {
    let (mut attempts, session) = with_session(10);
    for result in [SubmitResult::Busy, SubmitResult::NotMe] {
        assert_eq!(attempts.handle_submit(session, &submit(1, 0)), Ok(()));
        attempts.handle_returned(id(1), result);
    }
    let end = attempts.handle_end(tenancy(1, 0), Reference::UNASSIGNED_OUTBOUND);
    assert_eq!(end, Err(Refusal::UnknownReference));
}

#[test]
fn doubt_is_not_offered_again_until_somebody_has_recorded_it() {
    let (mut attempts, session) = with_session(10);
    let status = EnhancedStatus::new(4, 4, 2);
    let diagnosis = Diagnosis::new(status, NdrReason::TransferFailed, "no answer to the dot");
    attempts.handle_submit(session, &submit(1, 1)).unwrap();
    let result = SubmitResult::Ok(vec![outcome(0, Outcome::InDoubt(diagnosis))]);
    attempts.handle_returned(id(1), result);
    let again = attempts.handle_submit(session, &submit(1, 1));
    assert_eq!(again, Err(Refusal::Closed));
    // A higher fence is that of a decision: it is to be sent again.
    assert_eq!(attempts.handle_submit(session, &submit(1, 2)), Ok(()));
}

#[test]
fn credit_is_shared_and_returns_to_whom_spent_it() {
    let (mut attempts, first) = with_session(10);
    assert_eq!(attempts.credit(first), 10);
    for number in 0..10 {
        attempts.handle_submit(first, &submit(number, 0)).unwrap();
    }
    let second = attempts.open_session();
    assert_eq!((attempts.credit(first), attempts.credit(second)), (10, 0));
    let refused = attempts.handle_submit(second, &submit(99, 0));
    assert_eq!(refused, Err(Refusal::Closed));
    for number in 0..4 {
        attempts.handle_returned(id(number), SubmitResult::Busy);
        attempts.handle_settled(&[tenancy(number, 0)]);
    }
    assert_eq!((attempts.credit(first), attempts.credit(second)), (8, 2));
    attempts.handle_session_ended(first);
    assert_eq!((attempts.credit(first), attempts.credit(second)), (0, 4));
    assert_eq!(attempts.unsettled(100).len(), 6);
}

#[test]
fn the_indivisible_rest_goes_round() {
    let (mut attempts, first) = with_session(1);
    let second = attempts.open_session();
    let mut had = [0, 0];
    for _ in 0..10 {
        attempts.tick();
        let credit = [attempts.credit(first), attempts.credit(second)];
        assert_eq!(credit[0] + credit[1], 1);
        had = [had[0] + credit[0], had[1] + credit[1]];
    }
    assert_eq!(had, [5, 5]);
}

#[test]
fn all_unsettled_are_named_in_turn() {
    let (mut attempts, session) = with_session(100);
    for number in 0..100 {
        attempts.handle_submit(session, &submit(number, 0)).unwrap();
    }
    attempts.handle_session_ended(session);
    let mut named = HashSet::new();
    for _ in 0..10 {
        let some = attempts.unsettled(10);
        assert_eq!(some.len(), 10);
        named.extend(some);
    }
    assert_eq!(named.len(), 100);
}

#[test]
fn what_was_given_up_while_under_way_is_cancelled_and_then_gone() {
    let (mut attempts, session) = with_session(10);
    attempts.handle_submit(session, &submit(1, 1)).unwrap();
    assert_eq!(attempts.handle_settled(&[tenancy(1, 5)]), [id(1)]);
    assert_eq!(attempts.in_flight(), 1, "it still runs");
    let result = SubmitResult::Cancelled(Vec::new());
    assert_eq!(attempts.handle_returned(id(1), result), None);
    assert!(attempts.is_empty());
}

#[test]
fn a_cancel_needs_the_fence_and_the_reference() {
    let (mut attempts, session) = with_session(10);
    attempts.handle_submit(session, &submit(1, 1)).unwrap();
    assert!(attempts.may_cancel(tenancy(1, 1), Reference(0)));
    attempts.handle_reference(id(1), Reference(7));
    assert!(attempts.may_cancel(tenancy(1, 1), Reference(7)));
    assert!(!attempts.may_cancel(tenancy(1, 1), Reference(6)));
    attempts.handle_adopt(&[tenancy(1, 2)]);
    assert!(!attempts.may_cancel(tenancy(1, 1), Reference(7)));
}

#[test]
fn an_answer_too_large_for_a_frame_is_given_later() {
    let (mut attempts, session) = with_session(10);
    let long = "x".repeat(1_000);
    let outcomes: Vec<_> = (0..1_500)
        .map(|index| {
            let delivery = Delivery::new(UnixMillis(1), "mx", long.clone());
            outcome(index, Outcome::Delivered(delivery))
        })
        .collect();
    for number in 0..3 {
        attempts.handle_submit(session, &submit(number, 1)).unwrap();
        attempts.handle_returned(id(number), SubmitResult::Ok(outcomes.clone()));
    }
    let asked: Vec<_> = (0..3).map(|number| tenancy(number, 2)).collect();
    let done = |answers: &[Adopted]| {
        let done = |adopted: &&Adopted| matches!(adopted.answer, AdoptAnswer::Done { .. });
        answers.iter().filter(done).count()
    };
    assert_eq!(done(&attempts.handle_adopt(&asked)), 1);
    assert_eq!(done(&attempts.handle_adopt(&asked[2..])), 1);
}

mod world;
