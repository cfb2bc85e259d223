//! One reception, from the spooler's side: from the permit (StartMessage) to its return.
//!
//! ```text
//! StartMessage sent -> Permitted (its reference reads 1) -> Filling -> Done
//! ```
//!
//! What holds in every order of events:
//! - StartMessage returns once, so there is at most one SaveChanges per StartMessage.
//! - A message cannot have been saved without a reference: it is assigned before anything is written.
//! - CANCEL_MESSAGE names a live reference. One that is wanted earlier waits for it, for there is nothing else by which the
//!   transport could tell which delivery is meant.

use std::collections::VecDeque;

use super::PeerMisbehaved;
use crate::{ids::Reference, verbs::StartResult};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// TransportNotify(CANCEL_MESSAGE): what was written is discarded, the transport keeps the message where it is.
    SendCancel {
        /// The transport's reference.
        reference: Reference,
    },
    /// The reception is over. The last action.
    Ended(Ended),
}

/// How a reception ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// StartMessage returned.
    Returned(StartResult),
    /// The session ended first. If the message was saved, it is in the spool and will be leased by somebody.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Permitted,
    Filling { reference: Reference },
    Done,
}

/// One reception. Feed it, then drain [`Reception::poll_action`].
#[derive(Debug)]
pub struct Reception {
    state: State,
    cancel: Cancel,
    actions: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    NotWanted,
    Wanted,
    Said,
}

impl Default for Reception {
    fn default() -> Self {
        Self::new()
    }
}

impl Reception {
    /// StartMessage was called: the permit is out.
    pub fn new() -> Self {
        Self {
            state: State::Permitted,
            cancel: Cancel::NotWanted,
            actions: VecDeque::new(),
        }
    }

    /// The reference: [`Reference::UNASSIGNED_INBOUND`] until the transport has assigned it; `None` once it is dead.
    pub fn reference(&self) -> Option<Reference> {
        match self.state {
            State::Permitted => Some(Reference::UNASSIGNED_INBOUND),
            State::Filling { reference } => Some(reference),
            State::Done => None,
        }
    }

    /// Whether nothing more is expected.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The transport has assigned its reference: the message is being written.
    ///
    /// # Errors
    /// It is a reserved value, or the second one.
    pub fn handle_reference(&mut self, reference: Reference) -> Result<(), PeerMisbehaved> {
        match self.state {
            State::Permitted if reference < Reference::FIRST => {
                Err(PeerMisbehaved::ReservedReference(reference))
            }
            State::Permitted => {
                self.state = State::Filling { reference };
                self.say_cancel();
                Ok(())
            }
            State::Filling { .. } => Err(PeerMisbehaved::ReferenceTwice),
            State::Done => Err(PeerMisbehaved::Unasked),
        }
    }

    /// StartMessage returned.
    ///
    /// # Errors
    /// It returned before, or says that a message was saved that never had a reference.
    pub fn handle_reply(&mut self, result: StartResult) -> Result<(), PeerMisbehaved> {
        match self.state {
            State::Done => return Err(PeerMisbehaved::Unasked),
            State::Permitted if matches!(result, StartResult::Saved { .. }) => {
                return Err(PeerMisbehaved::NoReference);
            }
            State::Permitted | State::Filling { .. } => {}
        }
        self.end(Ended::Returned(result));
        Ok(())
    }

    /// Stop this delivery. It may still end as saved: then it was too late, and the message is ours.
    pub fn handle_cancel(&mut self) {
        if self.cancel == Cancel::NotWanted {
            self.cancel = Cancel::Wanted;
            self.say_cancel();
        }
    }

    /// The session is over.
    pub fn handle_session_ended(&mut self) {
        if self.state != State::Done {
            self.end(Ended::Lost);
        }
    }

    /// What to do next; `None`: nothing for now.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn say_cancel(&mut self) {
        if let (Cancel::Wanted, State::Filling { reference }) = (self.cancel, self.state) {
            self.cancel = Cancel::Said;
            self.actions.push_back(Action::SendCancel { reference });
        }
    }

    fn end(&mut self, ended: Ended) {
        self.state = State::Done;
        // The reference died with the return: a cancel that was not yet sent is moot.
        self.actions.clear();
        self.actions.push_back(Action::Ended(ended));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;

    fn saved() -> StartResult {
        StartResult::Saved {
            id: MessageId::derived("test", b"1"),
            size: 1,
            more: false,
        }
    }

    fn drain(ladder: &mut Reception) -> Vec<Action> {
        std::iter::from_fn(|| ladder.poll_action()).collect()
    }

    #[test]
    fn the_reference_reads_1_until_it_is_assigned() {
        let mut ladder = Reception::new();
        assert_eq!(ladder.reference(), Some(Reference(1)));
        ladder.handle_reference(Reference(9)).unwrap();
        assert_eq!(ladder.reference(), Some(Reference(9)));
        ladder.handle_reply(saved()).unwrap();
        assert_eq!(ladder.reference(), None);
        let ended = Ended::Returned(saved());
        assert_eq!(drain(&mut ladder), [Action::Ended(ended)]);
    }

    #[test]
    fn returning_without_a_reference_is_fine_unless_something_was_saved() {
        let mut ladder = Reception::new();
        assert_eq!(
            ladder.handle_reply(saved()),
            Err(PeerMisbehaved::NoReference)
        );
        ladder.handle_reply(StartResult::Nothing).unwrap();
        assert_eq!(
            ladder.handle_reply(StartResult::Nothing),
            Err(PeerMisbehaved::Unasked)
        );
    }

    #[test]
    fn a_cancel_waits_for_the_reference() {
        let mut ladder = Reception::new();
        ladder.handle_cancel();
        assert_eq!(drain(&mut ladder), []);
        let reference = Reference(3);
        ladder.handle_reference(reference).unwrap();
        ladder.handle_cancel();
        assert_eq!(drain(&mut ladder), [Action::SendCancel { reference }]);
        ladder.handle_reply(StartResult::Cancelled).unwrap();
        let ended = Ended::Returned(StartResult::Cancelled);
        assert_eq!(drain(&mut ladder), [Action::Ended(ended)]);
    }

    /// Any order of events: one end, one save at most, cancels only on a live reference.
    #[test]
    fn the_rules_hold_in_every_order_of_events() {
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut ladder = Reception::new();
            let (mut assigned, mut actions, mut saves) = (None, Vec::new(), 0);
            for _ in 0..random.usize(1..10) {
                match random.u8(0..5) {
                    0 => {
                        let reference = Reference(random.u64(0..4));
                        if ladder.handle_reference(reference).is_ok() {
                            assigned = Some(reference);
                        }
                    }
                    1 if ladder.handle_reply(saved()).is_ok() => {
                        saves += 1;
                        assert!(assigned.is_some(), "seed {seed}");
                    }
                    2 => drop(ladder.handle_reply(StartResult::Failed(String::new()))),
                    3 => ladder.handle_cancel(),
                    _ if random.u8(0..4) == 0 => ladder.handle_session_ended(),
                    _ => {}
                }
                let live = ladder.reference();
                for action in drain(&mut ladder) {
                    if let Action::SendCancel { reference } = action {
                        assert_eq!(Some(reference), live, "seed {seed}");
                        assert_eq!(Some(reference), assigned, "seed {seed}");
                    }
                    actions.push(action);
                }
            }
            ladder.handle_session_ended();
            actions.extend(drain(&mut ladder));
            let ends = actions
                .iter()
                .filter(|action| matches!(action, Action::Ended(_)));
            assert_eq!(ends.count(), 1, "seed {seed}");
            assert!(
                matches!(actions.last(), Some(Action::Ended(_))),
                "seed {seed}"
            );
            assert!(saves <= 1 && actions.len() <= 2, "seed {seed}");
        }
    }
}
