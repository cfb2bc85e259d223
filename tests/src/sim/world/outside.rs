//! Clients and the drop folder; and the checks, who see what happens.

use std::collections::BTreeSet;

use super::{Event, Role, Slot, World};
use crate::sim::{
    agent::Kind,
    checks::{Look, Seen, Violation},
    context::Input,
};

impl World {
    pub(super) fn doors(&self) -> Vec<usize> {
        let door = |slot: &Slot| slot.role == Role::Agent(Kind::Door) && slot.process.is_some();
        let places = self.slots.iter().enumerate();
        places
            .filter(|(_, slot)| door(slot))
            .map(|(place, _)| place)
            .collect()
    }

    /// A client waits at its door, and goes to another one when that dies.
    pub(super) fn client(&mut self, number: u32) {
        let Some(at) = self.clients.get(&number).copied() else {
            return;
        };
        self.push(5_000, Event::Client(number));
        if at.is_some_and(|(place, life)| self.slots[place].life == life) {
            return;
        }
        let doors = self.doors();
        if doors.is_empty() {
            return;
        }
        let place = doors[self.random.usize(..doors.len())];
        self.clients
            .insert(number, Some((place, self.slots[place].life)));
        let after = self.latency();
        self.input(after, place, Input::Mail(number));
    }

    pub(super) fn scan_folder(&mut self) {
        if self.folder.is_empty() {
            return;
        }
        self.push(3_000, Event::Folder);
        for place in self.doors() {
            for number in self.folder.clone() {
                if self.random.bool() {
                    let after = self.latency();
                    self.input(after, place, Input::File(number));
                }
            }
        }
    }

    pub(super) fn check(&mut self, seen: Seen) -> Result<(), Violation> {
        match &seen {
            Seen::Confirmed(id) => {
                self.report.accepted += 1;
                if self.random.u32(..100) < self.options.cancelled {
                    let after = self.random.u64(..20_000);
                    self.push(after, Event::Cancel(*id));
                }
            }
            Seen::Dot { recipients, .. } => self.report.dots += recipients.len() as u32,
            Seen::InDoubt { recipients, .. } => self.report.in_doubt += recipients.len() as u32,
            _ => {}
        }
        if self.log && !matches!(seen, Seen::Held(..)) {
            println!("{:>7} -> {seen:?}", self.now);
        }
        let mut look = Look {
            now: self.now,
            store: self.host.store.as_mut(),
            spool: BTreeSet::new(),
        };
        self.checks.see(&seen, &mut look)
    }

    pub(super) fn look(&mut self) -> Result<(), Violation> {
        let mut look = Look {
            now: self.now,
            store: self.host.store.as_mut(),
            spool: self.broker.holds(),
        };
        self.checks.look(&mut look)
    }

    pub(super) fn finally(&mut self) -> Result<(), Violation> {
        let mut look = Look {
            now: self.now,
            store: self.host.store.as_mut(),
            spool: self.broker.holds(),
        };
        self.checks.finally(&mut look)
    }
}
