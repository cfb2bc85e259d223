//! The invariants, each an object of its own. They are shown what happens in the outside world, at the broker and in the
//! store, and are never asked by anybody: workload and faults do not know them, nor they the parties.

mod right;

use std::collections::{BTreeMap, BTreeSet};

use pombo_proto::{
    attempt::Session,
    control::QueueState,
    frame,
    ids::{Correlation, Fence, Instance, MessageId, RecipientIndex, Reference},
};
use pombo_spooler::{
    progress::{Progress, RecipientState},
    store::Store,
};

use super::options::Millis;
use right::{NobodyForTheBroker, RightToSend};

/// What the checks are shown.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A door was told that the broker has this message.
    Confirmed(MessageId),
    /// A door was told of a mail, by its client or by the folder. `true`: it is a file.
    Arrived(bool, u32),
    /// A door told a client, or its drop folder, that the message is accepted.
    Done(MessageId, bool, u32),
    /// SaveChanges under a permit: by which agent, in which session, for which StartMessage.
    Saved(Instance, Session, Correlation),
    /// An ack has taken the message out of the spool.
    Acked(MessageId),
    /// A report was written about recipients of this message: its own id, and whether it is final.
    Reported {
        /// The report.
        report: MessageId,
        /// About.
        about: MessageId,
        /// Whom.
        recipients: Vec<RecipientIndex>,
    },
    /// A remote has accepted the final dot.
    Dot {
        /// Of this agent.
        instance: Instance,
        /// Of this message.
        id: MessageId,
        /// Submitted under this fence.
        fence: Fence,
        /// For these.
        recipients: Vec<RecipientIndex>,
        /// When the latest answered status row of this agent had been sent.
        answered: Option<Millis>,
    },
    /// A spooler counts these as in doubt: the agent has lost its right to send.
    InDoubt {
        /// The agent.
        instance: Instance,
        /// The message.
        id: MessageId,
        /// By the holder of this fence.
        fence: Fence,
        /// Whom.
        recipients: Vec<RecipientIndex>,
    },
    /// The store does not list this agent any more: its right to send has run out.
    Struck(Instance),
    /// The store lists this agent, perhaps again.
    Listed(Instance),
    /// A spooler finds that this agent's right to send has run out.
    Strikes(Instance),
    /// The broker holds publishes back, or takes them again.
    Blocked(bool),
    /// The transport has assigned a reference.
    Assigned(Instance, MessageId, Reference),
    /// EndMessage was called.
    EndMessage(Instance, MessageId, Reference),
    /// Something has a bound: what, how much of it, and the bound.
    Held(&'static str, usize, usize),
}

/// An invariant did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its number in the design.
    pub invariant: u8,
    /// When.
    pub at: Millis,
    /// What happened.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "invariant {} at {} ms: {}",
            self.invariant, self.at, self.what
        )
    }
}

/// What a check may look at: the store, and what the broker holds.
pub struct Look<'a> {
    /// Now.
    pub now: Millis,
    /// The store.
    pub store: &'a mut dyn Store,
    /// The messages in the spool.
    pub spool: BTreeSet<MessageId>,
}

impl Look<'_> {
    fn state(&mut self, id: MessageId) -> Option<QueueState> {
        let row = self.store.get(id).ok().flatten()?;
        Some(row.data.state)
    }
}

trait Check {
    /// Its number in the design.
    fn invariant(&self) -> u8;
    /// Something happened. Err: what is wrong with it.
    fn see(&mut self, _seen: &Seen, _look: &mut Look<'_>) -> Result<(), String> {
        Ok(())
    }
    /// Every few seconds.
    fn look(&mut self, _look: &mut Look<'_>) -> Result<(), String> {
        Ok(())
    }
    /// The world is calm, and everything ought to be finished.
    fn finally(&mut self, _look: &mut Look<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
pub struct Checks {
    checks: Vec<Box<dyn Check>>,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            checks: vec![
                Box::<Accounted>::default(),
                Box::<SentOnce>::default(),
                Box::<ReportedOnce>::default(),
                Box::<References>::default(),
                Box::<DoneAfterConfirm>::default(),
                Box::<Fetched>::default(),
                Box::new(AckAfterCommit),
                Box::<RightToSend>::default(),
                Box::<NobodyForTheBroker>::default(),
                Box::new(Bounded),
            ],
        }
    }
}

impl Checks {
    /// Something happened.
    pub fn see(&mut self, seen: &Seen, look: &mut Look<'_>) -> Result<(), Violation> {
        self.each(look, |check, look| check.see(seen, look))
    }

    /// Every few seconds.
    pub fn look(&mut self, look: &mut Look<'_>) -> Result<(), Violation> {
        self.each(look, |check, look| check.look(look))
    }

    /// At the end.
    pub fn finally(&mut self, look: &mut Look<'_>) -> Result<(), Violation> {
        self.each(look, |check, look| check.finally(look))
    }

    fn each(
        &mut self,
        look: &mut Look<'_>,
        mut ask: impl FnMut(&mut dyn Check, &mut Look<'_>) -> Result<(), String>,
    ) -> Result<(), Violation> {
        for check in &mut self.checks {
            ask(check.as_mut(), look).map_err(|what| Violation {
                invariant: check.invariant(),
                at: look.now,
                what,
            })?;
        }
        Ok(())
    }
}

/// 1: accepted = finished + waiting + moving.
#[derive(Default)]
struct Accounted {
    accepted: BTreeSet<MessageId>,
}

impl Check for Accounted {
    fn invariant(&self) -> u8 {
        1
    }

    fn see(&mut self, seen: &Seen, _: &mut Look<'_>) -> Result<(), String> {
        if let Seen::Confirmed(id) = seen {
            self.accepted.insert(*id);
        }
        Ok(())
    }

    fn look(&mut self, look: &mut Look<'_>) -> Result<(), String> {
        for id in &self.accepted {
            if look.state(*id).is_none() && !look.spool.contains(id) {
                return Err(format!(
                    "{id} is lost: neither in the spool nor in the store"
                ));
            }
        }
        Ok(())
    }

    fn finally(&mut self, look: &mut Look<'_>) -> Result<(), String> {
        self.look(look)?;
        if let Some(id) = look.spool.first() {
            let state = look.store.get(*id).ok().flatten().map(|row| row.data.state);
            return Err(format!(
                "{id} still moves, and in the store it is {state:?}"
            ));
        }
        Ok(())
    }
}

/// 2: no recipient is owed by two that can both send, none by nobody. Seen from outside: a recipient gets one copy, and one
/// more at most for each agent that has sent one and was counted as in doubt.
#[derive(Default)]
struct SentOnce {
    dots: BTreeMap<(MessageId, RecipientIndex), Vec<Instance>>,
    doubts: BTreeMap<(MessageId, RecipientIndex), BTreeSet<Instance>>,
    accepted: BTreeSet<MessageId>,
}

impl Check for SentOnce {
    fn invariant(&self) -> u8 {
        2
    }

    fn see(&mut self, seen: &Seen, _: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::Confirmed(id) => {
                self.accepted.insert(*id);
            }
            Seen::InDoubt {
                instance,
                id,
                recipients,
                ..
            } => {
                for recipient in recipients {
                    let doubts = self.doubts.entry((*id, *recipient)).or_default();
                    doubts.insert(*instance);
                }
            }
            Seen::Dot {
                instance,
                id,
                recipients,
                ..
            } => {
                for recipient in recipients {
                    let key = (*id, *recipient);
                    let dots = self.dots.entry(key).or_default();
                    dots.push(*instance);
                    let doubts = self.doubts.get(&key).into_iter().flatten();
                    let doubts = doubts.filter(|it| dots.contains(it)).count();
                    let copies = dots.len();
                    if copies > 1 + doubts {
                        let index = recipient.0;
                        return Err(format!(
                            "recipient {index} of {id} got copy {copies}, {doubts} being in doubt"
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn finally(&mut self, look: &mut Look<'_>) -> Result<(), String> {
        for id in &self.accepted {
            let Some(row) = look.store.get(*id).ok().flatten() else {
                continue;
            };
            let progress: Progress =
                frame::decode_all(&row.data.progress).map_err(|error| error.to_string())?;
            if row.data.state != QueueState::Finished {
                let (state, reason) = (row.data.state, row.data.reason);
                return Err(format!("{id} is owed by nobody: {state:?}, {reason}"));
            }
            for (index, recipient) in progress.recipients.iter().enumerate() {
                let key = (*id, RecipientIndex(index as u32));
                let delivered = matches!(recipient.state, RecipientState::Delivered(_));
                if delivered && !self.dots.contains_key(&key) {
                    return Err(format!("recipient {index} of {id} never got its copy"));
                }
            }
        }
        Ok(())
    }
}

/// 3: one final report per recipient and message, and no failure without one.
#[derive(Default)]
struct ReportedOnce {
    reports: BTreeSet<MessageId>,
    about: BTreeMap<(MessageId, RecipientIndex), MessageId>,
    accepted: BTreeSet<MessageId>,
}

impl Check for ReportedOnce {
    fn invariant(&self) -> u8 {
        3
    }

    fn see(&mut self, seen: &Seen, look: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::Confirmed(id) => {
                self.accepted.insert(*id);
            }
            Seen::Reported {
                report,
                about,
                recipients,
            } => {
                if look.state(*report).is_none() || !self.reports.insert(*report) {
                    return Ok(());
                }
                for recipient in recipients {
                    if let Some(other) = self.about.insert((*about, *recipient), *report) {
                        let index = recipient.0;
                        return Err(format!(
                            "{report} and {other} both tell of recipient {index} of {about}"
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn finally(&mut self, look: &mut Look<'_>) -> Result<(), String> {
        for id in &self.accepted {
            let Some(row) = look.store.get(*id).ok().flatten() else {
                continue;
            };
            let progress: Progress =
                frame::decode_all(&row.data.progress).map_err(|error| error.to_string())?;
            for (index, recipient) in progress.recipients.iter().enumerate() {
                let key = (*id, RecipientIndex(index as u32));
                let failed = matches!(
                    recipient.state,
                    RecipientState::Failed { .. } | RecipientState::Expired { .. }
                );
                if failed && !self.about.contains_key(&key) {
                    return Err(format!(
                        "nobody is told that recipient {index} of {id} failed"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// 4: no reference is used after EndMessage, nor twice for it.
#[derive(Default)]
struct References {
    alive: BTreeMap<(Instance, Reference), MessageId>,
}

impl Check for References {
    fn invariant(&self) -> u8 {
        4
    }

    fn see(&mut self, seen: &Seen, _: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::Assigned(instance, id, reference) => {
                self.alive.insert((*instance, *reference), *id);
            }
            Seen::EndMessage(instance, id, reference) => {
                let owner = self.alive.remove(&(*instance, *reference));
                if owner != Some(*id) {
                    let number = reference.0;
                    return Err(format!(
                        "EndMessage of {id} with reference {number}, which is {owner:?}'s"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// 5: at most one SaveChanges per StartMessage; nothing is done before the confirm.
#[derive(Default)]
struct DoneAfterConfirm {
    confirmed: BTreeSet<MessageId>,
    saved: BTreeSet<(Instance, Session, Correlation)>,
}

impl Check for DoneAfterConfirm {
    fn invariant(&self) -> u8 {
        5
    }

    fn see(&mut self, seen: &Seen, _: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::Confirmed(id) => {
                self.confirmed.insert(*id);
            }
            Seen::Done(id, ..) if !self.confirmed.contains(id) => {
                return Err(format!("{id} is called done, and nobody has confirmed it"));
            }
            Seen::Saved(instance, session, permit)
                if !self.saved.insert((*instance, *session, *permit)) =>
            {
                let (session, permit) = (session.0, permit.0);
                return Err(format!(
                    "permit {permit} of session {session} with {instance} was used twice"
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

/// 6: the gate never loses the last notification, and so all mail is fetched.
#[derive(Default)]
struct Fetched {
    waiting: BTreeSet<(bool, u32)>,
    /// A door that was away may hear of these once more.
    done: BTreeSet<(bool, u32)>,
}

impl Check for Fetched {
    fn invariant(&self) -> u8 {
        6
    }

    fn see(&mut self, seen: &Seen, _: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::Arrived(file, number) if !self.done.contains(&(*file, *number)) => {
                self.waiting.insert((*file, *number));
            }
            Seen::Done(_, file, number) => {
                self.waiting.remove(&(*file, *number));
                self.done.insert((*file, *number));
            }
            _ => {}
        }
        Ok(())
    }

    fn finally(&mut self, _: &mut Look<'_>) -> Result<(), String> {
        match self.waiting.first() {
            Some((_, number)) => Err(format!("mail {number} waits, and nobody fetches it")),
            None => Ok(()),
        }
    }
}

/// 7: ack only after commit.
struct AckAfterCommit;

impl Check for AckAfterCommit {
    fn invariant(&self) -> u8 {
        7
    }

    fn see(&mut self, seen: &Seen, look: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::Acked(id) if look.state(*id).is_none() => Err(format!(
                "{id} is acked, and the store has never heard of it"
            )),
            _ => Ok(()),
        }
    }
}

/// 9: nobody holds more than its budget.
struct Bounded;

impl Check for Bounded {
    fn invariant(&self) -> u8 {
        9
    }

    fn see(&mut self, seen: &Seen, _: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::Held(what, held, most) if held > most => {
                Err(format!("{what}: {held}, and at most {most} are allowed"))
            }
            _ => Ok(()),
        }
    }
}
