use super::*;
use crate::{
    outcome::{Delivery, Diagnosis, EnhancedStatus, NdrReason, Outcome},
    time::UnixMillis,
};

const R0: RecipientIndex = RecipientIndex(0);
const R1: RecipientIndex = RecipientIndex(1);
const REFERENCE: Reference = Reference(7);

fn delivered(recipient: RecipientIndex) -> RecipientOutcome {
    RecipientOutcome {
        recipient,
        outcome: Outcome::Delivered(Delivery::new(UnixMillis(1), "mx", "250 ok")),
    }
}

fn diagnosis() -> Diagnosis {
    Diagnosis::new(
        EnhancedStatus::new(5, 1, 1),
        NdrReason::TransferImpossible,
        "x",
    )
}

fn not_delivered(recipient: RecipientIndex) -> (RecipientIndex, RecipientStatus) {
    (recipient, RecipientStatus::NotDelivered(diagnosis()))
}

fn transferring() -> Submission {
    let mut ladder = Submission::new(&[R0]);
    ladder.handle_reference(REFERENCE).unwrap();
    ladder
}

fn drain(ladder: &mut Submission) -> Vec<Action> {
    std::iter::from_fn(|| ladder.poll_action()).collect()
}

#[test]
fn end_message_follows_s_ok_with_the_reference() {
    let mut ladder = transferring();
    ladder.handle_statuses(vec![not_delivered(R0)]).unwrap();
    ladder
        .handle_submit_reply(Ok(SubmitResult::Ok(vec![delivered(R0)])))
        .unwrap();
    let reference = REFERENCE;
    assert_eq!(drain(&mut ladder), [Action::SendEndMessage { reference }]);
    ladder.handle_end_reply(Ok(EndMessageFlag::Sent)).unwrap();
    let ended = Ended::Finished(AttemptResult {
        result: SubmitResult::Ok(vec![delivered(R0)]),
        end: Some(EndMessageFlag::Sent),
        statuses: vec![not_delivered(R0)],
    });
    assert_eq!(drain(&mut ladder), [Action::Ended(ended)]);
    assert!(ladder.is_done());
}

#[test]
fn end_message_follows_no_other_result() {
    let wait = std::time::Duration::from_secs(1);
    for result in [
        SubmitResult::Busy,
        SubmitResult::NotMe,
        SubmitResult::Cancelled(vec![delivered(R0)]),
        SubmitResult::Wait(wait, None),
        SubmitResult::NetworkError(wait, diagnosis()),
        SubmitResult::CriticalError(diagnosis()),
    ] {
        for with_reference in [false, true] {
            let mut ladder = Submission::new(&[R0]);
            if with_reference {
                ladder.handle_reference(REFERENCE).unwrap();
            }
            ladder.handle_submit_reply(Ok(result.clone())).unwrap();
            let ended = Ended::Finished(AttemptResult {
                result: result.clone(),
                end: None,
                statuses: Vec::new(),
            });
            assert_eq!(drain(&mut ladder), [Action::Ended(ended)]);
        }
    }
}

#[test]
fn s_ok_without_a_reference_is_misbehaviour() {
    let mut ladder = Submission::new(&[R0]);
    assert_eq!(
        ladder.handle_submit_reply(Ok(SubmitResult::Ok(Vec::new()))),
        Err(PeerMisbehaved::NoReference)
    );
    assert_eq!(drain(&mut ladder), []);
    assert!(!ladder.is_done());
}

#[test]
fn reserved_and_repeated_references_are_misbehaviour() {
    let mut ladder = Submission::new(&[R0]);
    for reserved in [Reference(0), Reference(1)] {
        assert_eq!(
            ladder.handle_reference(reserved),
            Err(PeerMisbehaved::ReservedReference(reserved))
        );
    }
    ladder.handle_reference(REFERENCE).unwrap();
    assert_eq!(
        ladder.handle_reference(REFERENCE),
        Err(PeerMisbehaved::ReferenceTwice)
    );
}

#[test]
fn others_recipients_and_floods_of_statuses_are_misbehaviour() {
    let mut ladder = transferring();
    assert_eq!(
        ladder.handle_statuses(vec![not_delivered(R1)]),
        Err(PeerMisbehaved::NotConsidered(R1))
    );
    assert_eq!(
        ladder.handle_submit_reply(Ok(SubmitResult::Ok(vec![delivered(R1)]))),
        Err(PeerMisbehaved::NotConsidered(R1))
    );
    assert_eq!(
        ladder.handle_submit_reply(Ok(SubmitResult::Ok(vec![delivered(R0), delivered(R0)]))),
        Err(PeerMisbehaved::TooManyOutcomes)
    );
    for _ in 0..STATUSES_PER_RECIPIENT_MAX {
        ladder.handle_statuses(vec![not_delivered(R0)]).unwrap();
    }
    assert_eq!(
        ladder.handle_statuses(vec![not_delivered(R0)]),
        Err(PeerMisbehaved::TooManyStatuses)
    );
}

#[test]
fn a_cancel_during_submit_message_is_said_once_and_its_answer_counts() {
    let mut ladder = transferring();
    ladder.handle_cancel();
    ladder.handle_cancel();
    let reference = REFERENCE;
    assert_eq!(drain(&mut ladder), [Action::SendCancel { reference }]);
    ladder
        .handle_submit_reply(Ok(SubmitResult::Cancelled(vec![delivered(R0)])))
        .unwrap();
    assert!(matches!(
        drain(&mut ladder)[..],
        [Action::Ended(Ended::Finished(_))]
    ));
}

#[test]
fn a_cancel_before_the_reference_names_none() {
    let mut ladder = Submission::new(&[R0]);
    ladder.handle_cancel();
    let reference = Reference::UNASSIGNED_OUTBOUND;
    assert_eq!(drain(&mut ladder), [Action::SendCancel { reference }]);
}

#[test]
fn a_cancel_during_end_message_is_said_and_after_it_is_not() {
    let mut ladder = transferring();
    ladder
        .handle_submit_reply(Ok(SubmitResult::Ok(vec![delivered(R0)])))
        .unwrap();
    drain(&mut ladder);
    ladder.handle_cancel();
    let reference = REFERENCE;
    assert_eq!(drain(&mut ladder), [Action::SendCancel { reference }]);
    ladder.handle_end_reply(Ok(EndMessageFlag::Sent)).unwrap();
    ladder.handle_cancel();
    assert!(matches!(drain(&mut ladder)[..], [Action::Ended(_)]));
}

#[test]
fn a_cancel_that_was_not_yet_sent_is_dropped_when_end_message_returns() {
    let mut ladder = transferring();
    ladder
        .handle_submit_reply(Ok(SubmitResult::Ok(vec![delivered(R0)])))
        .unwrap();
    drain(&mut ladder);
    ladder.handle_cancel();
    ladder.handle_end_reply(Ok(EndMessageFlag::Sent)).unwrap();
    assert!(matches!(drain(&mut ladder)[..], [Action::Ended(_)]));
}

#[test]
fn a_lost_session_leaves_the_question_open_only_while_submit_message_runs() {
    let mut ladder = transferring();
    ladder.handle_session_ended();
    assert_eq!(drain(&mut ladder), [Action::Ended(Ended::Lost)]);
    let mut ladder = transferring();
    ladder
        .handle_submit_reply(Ok(SubmitResult::Ok(vec![delivered(R0)])))
        .unwrap();
    ladder.handle_session_ended();
    let ended = Ended::Finished(AttemptResult {
        result: SubmitResult::Ok(vec![delivered(R0)]),
        end: None,
        statuses: Vec::new(),
    });
    assert_eq!(drain(&mut ladder), [Action::Ended(ended)]);
}

#[test]
fn an_adopter_asks_until_it_is_final_and_then_ends_the_message() {
    let mut ladder = Submission::adopting(&[R0]);
    ladder.handle_adopted(AdoptAnswer::UnderWay).unwrap();
    assert_eq!(drain(&mut ladder), [Action::AskAgain]);
    let done = |ended| AdoptAnswer::Done {
        reference: REFERENCE,
        result: SubmitResult::Ok(vec![delivered(R0)]),
        statuses: vec![not_delivered(R0)],
        ended,
    };
    ladder.handle_adopted(done(None)).unwrap();
    let reference = REFERENCE;
    assert_eq!(drain(&mut ladder), [Action::SendEndMessage { reference }]);
    assert_eq!(
        ladder.handle_adopted(AdoptAnswer::Unknown),
        Err(PeerMisbehaved::Unasked)
    );

    let mut ladder = Submission::adopting(&[R0]);
    ladder
        .handle_adopted(done(Some(EndMessageFlag::ResendLater)))
        .unwrap();
    let [Action::Ended(Ended::Finished(result))] = &drain(&mut ladder)[..] else {
        panic!("it had ended before");
    };
    assert_eq!(result.end, Some(EndMessageFlag::ResendLater));
    assert_eq!(result.statuses.len(), 1);
}

#[test]
fn adoption_of_what_is_not_there_or_is_others() {
    let ended = |answer| {
        let mut ladder = Submission::adopting(&[R0]);
        ladder.handle_adopted(answer).unwrap();
        drain(&mut ladder)
    };
    assert_eq!(
        ended(AdoptAnswer::Unknown),
        [Action::Ended(Ended::NotThere)]
    );
    assert_eq!(
        ended(AdoptAnswer::Fenced),
        [Action::Ended(Ended::Refused(Refusal::Fenced))]
    );
}

/// Any order of events, from a peer that behaves or not: the rules in the module's head hold.
#[test]
fn the_rules_hold_in_every_order_of_events() {
    for seed in 0..20_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let adopting = random.bool();
        let mut ladder = if adopting {
            Submission::adopting(&[R1, R0])
        } else {
            Submission::new(&[R1, R0])
        };
        let mut check = Checker::default();
        for _ in 0..random.usize(1..14) {
            feed(&mut ladder, &mut random, &mut check);
            if random.bool() {
                check.actions(&drain(&mut ladder), seed);
            }
        }
        ladder.handle_session_ended();
        check.actions(&drain(&mut ladder), seed);
        assert_eq!(check.ended, 1, "seed {seed}");
        assert!(ladder.is_done(), "seed {seed}");
    }
}

fn feed(ladder: &mut Submission, random: &mut fastrand::Rng, check: &mut Checker) {
    let recipient = RecipientIndex(random.u32(0..3));
    let result = match random.u8(0..4) {
        0 => SubmitResult::Busy,
        1 => SubmitResult::Cancelled(Vec::new()),
        _ => SubmitResult::Ok(vec![delivered(recipient)]),
    };
    let is_ok = matches!(result, SubmitResult::Ok(_));
    match random.u8(0..8) {
        0 | 1 => {
            let reference = Reference(random.u64(0..5));
            if ladder.handle_reference(reference).is_ok() {
                check.reference = Some(reference);
            }
        }
        2 => {
            let _ = ladder.handle_statuses(vec![not_delivered(recipient)]);
        }
        3 | 4 => {
            if ladder.handle_submit_reply(Ok(result)).is_ok() {
                check.submitted_ok = is_ok;
            }
        }
        5 => {
            if ladder.handle_end_reply(Ok(EndMessageFlag::Sent)).is_ok() {
                check.end_returned = true;
            }
        }
        6 => ladder.handle_cancel(),
        _ => {
            let reference = Reference(random.u64(0..5));
            let ended = random.bool().then_some(EndMessageFlag::Sent);
            let answer = match random.u8(0..3) {
                0 => AdoptAnswer::UnderWay,
                1 => AdoptAnswer::Unknown,
                _ => AdoptAnswer::Done {
                    reference,
                    result,
                    statuses: Vec::new(),
                    ended,
                },
            };
            let done = matches!(answer, AdoptAnswer::Done { .. });
            if ladder.handle_adopted(answer).is_ok() && done {
                check.reference = Some(reference);
                check.submitted_ok = is_ok;
                check.end_returned = ended.is_some();
            }
        }
    }
}

#[derive(Default)]
struct Checker {
    reference: Option<Reference>,
    submitted_ok: bool,
    end_returned: bool,
    ended: u32,
    ends_sent: u32,
    cancels: u32,
}

impl Checker {
    fn actions(&mut self, actions: &[Action], seed: u64) {
        for (at, action) in actions.iter().enumerate() {
            assert_eq!(self.ended, 0, "seed {seed}: {action:?} after the end");
            match action {
                Action::SendEndMessage { reference } => {
                    self.ends_sent += 1;
                    assert_eq!(self.ends_sent, 1, "seed {seed}");
                    assert!(self.submitted_ok, "seed {seed}");
                    assert_eq!(Some(*reference), self.reference, "seed {seed}");
                }
                Action::SendCancel { reference } => {
                    self.cancels += 1;
                    assert_eq!(self.cancels, 1, "seed {seed}");
                    assert!(!self.end_returned, "seed {seed}");
                    let unassigned = *reference == Reference::UNASSIGNED_OUTBOUND;
                    assert!(
                        unassigned || Some(*reference) == self.reference,
                        "seed {seed}"
                    );
                }
                Action::AskAgain => {}
                Action::Ended(_) => {
                    self.ended += 1;
                    assert_eq!(at + 1, actions.len(), "seed {seed}");
                }
            }
        }
    }
}
