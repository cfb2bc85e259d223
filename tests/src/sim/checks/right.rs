//! The right to send.

use std::collections::{BTreeMap, BTreeSet};

use pombo_proto::ids::{Fence, Instance, MessageId};

use super::{Check, Look, Seen};
use crate::sim::options::Millis;

/// How long an answered row gives the right to send.
const RIGHT: Millis = 10_000;
/// How long an agent's counter stands still before it is struck off.
const SILENT: Millis = 35_000;
/// Within this everybody knows that the broker holds publishes back.
const TOLD: Millis = 1_000;

/// 8: no final dot without the right to send, and none after somebody has given up waiting for it.
#[derive(Default)]
pub(super) struct RightToSend {
    given_up: BTreeMap<(Instance, MessageId), Fence>,
    struck: BTreeSet<Instance>,
}

impl Check for RightToSend {
    fn invariant(&self) -> u8 {
        8
    }

    fn see(&mut self, seen: &Seen, look: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::InDoubt {
                instance,
                id,
                fence,
                ..
            } => {
                self.given_up.insert((*instance, *id), *fence);
            }
            Seen::Struck(instance) => {
                self.struck.insert(*instance);
            }
            Seen::Listed(instance) => {
                self.struck.remove(instance);
            }
            Seen::Dot {
                instance,
                id,
                fence,
                answered,
                ..
            } => {
                if answered.is_none_or(|at| look.now >= at + RIGHT) {
                    return Err(format!(
                        "{instance} sends {id}, and the last answered row was sent at {answered:?}"
                    ));
                }
                if self.struck.contains(instance) {
                    return Err(format!("{instance} sends {id}, and has been struck off"));
                }
                let given_up = self.given_up.get(&(*instance, *id));
                if given_up.is_some_and(|by| by > fence) {
                    return Err(format!("{instance} sends {id}, which counts as in doubt"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// 8, too: nobody loses the right to send, nor is struck off, because the broker takes nothing from anybody.
#[derive(Default)]
pub(super) struct NobodyForTheBroker {
    since: Option<Millis>,
    until: Option<Millis>,
}

impl Check for NobodyForTheBroker {
    fn invariant(&self) -> u8 {
        8
    }

    fn see(&mut self, seen: &Seen, look: &mut Look<'_>) -> Result<(), String> {
        match seen {
            Seen::Blocked(true) => (self.since, self.until) = (Some(look.now), None),
            Seen::Blocked(false) => self.until = Some(look.now),
            Seen::Strikes(instance) => {
                let began = self.since.is_some_and(|at| look.now > at + TOLD);
                let over = self.until.is_some_and(|at| look.now > at + SILENT);
                if began && !over {
                    return Err(format!(
                        "{instance} is to be struck off, and the broker has just held everything back"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
