//! What is under way between a process and the broker, and between a spooler and the store.

use std::collections::BTreeMap;

use pombo_proto::{
    frame::Packet,
    ids::{Incarnation, MessageId},
    message::Message,
    verbs::{Hello, Role as Party},
};
use pombo_spooler::store::Suspect;

use super::{Event, Fate, Role, World};
use crate::sim::{
    checks::{Seen, Violation},
    context::Input,
    options::Millis,
    spooler::reports_in,
    store::{Answer, Ask},
};

impl World {
    /// The process behind a link, if something sent there now arrives.
    pub(super) fn reach(&self, link: Incarnation) -> Option<(usize, u32)> {
        let place = self.broker.owner(link)?;
        let slot = &self.slots[place];
        let here = slot.link == Some(link) && self.now >= slot.cut_off;
        here.then_some((place, slot.life))
    }

    /// How long what is published now waits for the broker to take it.
    pub(super) fn held_back(&self) -> Millis {
        self.blocked.saturating_sub(self.now)
    }

    /// Everybody who has a connection is told.
    pub(super) fn tell_blocked(&mut self, blocked: bool) -> Result<(), Violation> {
        let over = !blocked && self.now < self.blocked;
        if over {
            return Ok(());
        }
        for place in 0..self.slots.len() {
            if self.slots[place].link.is_some() {
                let after = self.latency();
                self.input(after, place, Input::Blocked(blocked));
            }
        }
        self.check(Seen::Blocked(blocked))
    }

    pub(super) fn send(&mut self, place: usize, packet: Packet) {
        if self.broker.owner(packet.from).is_none() {
            return;
        }
        let pair = (place, self.broker.owner(packet.to).unwrap_or(usize::MAX));
        let until = |map: &BTreeMap<_, Millis>| map.get(&pair).copied().unwrap_or(0);
        if self.now < until(&self.swallowed) {
            return;
        }
        let mut after = self.held_back() + self.latency();
        if self.now < until(&self.delayed) {
            after += self.random.u64(500..6_000);
        }
        let at = self
            .broker
            .arrival(packet.from, packet.to, self.now + after);
        self.push_at(at, Event::Packet(packet));
    }

    pub(super) fn arrive(&mut self, packet: Packet) -> Result<(), Violation> {
        if let Some((place, life)) = self.reach(packet.to) {
            return self.handle(place, life, Input::Packet(packet));
        }
        // To an inbox that is gone: it comes back, or it does not.
        if self.broker.owner(packet.to).is_none()
            && self.random.bool()
            && let Some((place, life)) = self.reach(packet.from)
        {
            let after = self.latency();
            self.push(after, Event::Input(place, life, Input::Returned(packet)));
        }
        Ok(())
    }

    pub(super) fn tell_everybody(&mut self, hello: &Hello) {
        for place in 0..self.slots.len() {
            let slot = &self.slots[place];
            let spooler = slot.role == Role::Spooler;
            let heard = slot.link.is_some() && self.now >= slot.cut_off;
            if heard && spooler != (hello.role == Party::Spooler) {
                let after = self.held_back() + self.latency();
                self.input(after, place, Input::Hello(hello.clone()));
            }
        }
    }

    pub(super) fn publish(
        &mut self,
        place: usize,
        from: Incarnation,
        cut_off: bool,
        (token, message, marked): (u64, Message, bool),
    ) {
        let (late, unconfirmed) = (
            self.chance(self.options.faults.late_publish),
            self.chance(self.options.faults.lost_confirm),
        );
        let fate = match (late, unconfirmed) {
            (true, _) => Fate::Late,
            (_, true) => Fate::Unconfirmed,
            _ => Fate::Confirmed,
        };
        if cut_off && fate != Fate::Late {
            return;
        }
        let mut after = self.held_back() + self.latency();
        if fate != Fate::Confirmed {
            let noticed = self.random.u64(..3_000);
            self.push(noticed, Event::LinkDown(place, from));
        }
        if fate == Fate::Late {
            after += self.random.u64(1_000..60_000);
        }
        let id = message.envelope.id;
        *self.broker.on_the_way.entry(id).or_default() += 1;
        self.push(
            after,
            Event::Publish {
                from,
                place,
                token,
                message,
                marked,
                fate,
            },
        );
    }

    pub(super) fn no_longer_on_the_way(&mut self, id: MessageId) {
        if let Some(copies) = self.broker.on_the_way.get_mut(&id) {
            *copies -= 1;
            if *copies == 0 {
                self.broker.on_the_way.remove(&id);
            }
        }
    }

    pub(super) fn published(
        &mut self,
        from: Incarnation,
        place: usize,
        token: u64,
        message: Message,
        marked: bool,
        fate: Fate,
    ) {
        self.no_longer_on_the_way(message.envelope.id);
        let connected = self.broker.owner(from).is_some();
        if !connected && fate != Fate::Late {
            return;
        }
        self.broker.publish(message, marked);
        self.deliver();
        if fate == Fate::Confirmed && self.reach(from).is_some() {
            let after = self.latency();
            self.input(after, place, Input::Confirmed(token));
        }
    }

    /// What can be delivered is on its way.
    pub(in crate::sim) fn deliver(&mut self) {
        for (link, delivered) in self.broker.deliver(&mut self.random) {
            let after = self.latency();
            let at = self.broker.arrival(link, link, self.now + after);
            self.push_at(at, Event::Delivery(link, delivered));
        }
    }

    pub(super) fn ask(&mut self, place: usize, ticket: u64, ask: Ask) {
        let mut after = self.random.u64(1..10);
        if self.now < self.slow_store {
            after += self.random.u64(500..4_000);
        }
        let slot = &mut self.slots[place];
        slot.asked = slot.asked.max(self.now + after);
        let (at, life) = (slot.asked, slot.life);
        self.push_at(at, Event::Ask(place, life, ticket, ask));
    }

    pub(super) fn asked(
        &mut self,
        place: usize,
        life: u32,
        ticket: u64,
        ask: &Ask,
    ) -> Result<(), Violation> {
        let slot = &mut self.slots[place];
        let earlier = slot.held.iter().any(|it| matches!(it, Event::Ask(..)));
        if slot.paused && slot.life == life && (earlier || self.random.bool()) {
            // It had not left the process yet: a late commit. Nor had those that come after it.
            slot.held.push(Event::Ask(place, life, ticket, ask.clone()));
            return Ok(());
        }
        if slot.life != life && self.random.bool() {
            return Ok(());
        }
        let refused = self.now < slot.store_away;
        let mut answer = Answer::Failed;
        if !refused {
            answer = self.host.run(self.clocks().unix(), ask);
            match (ask, &answer) {
                (Ask::LookUp(instance, Some(_)), Answer::Suspects(all)) => {
                    let listed = |it: &Suspect| it.struck.is_none();
                    let mut listed = all.iter().filter(|it| listed(it));
                    if !listed.any(|it| it.instance.instance == *instance) {
                        self.check(Seen::Struck(*instance))?;
                    }
                }
                (Ask::List(listed), Answer::Done) => self.check(Seen::Listed(listed.instance))?,
                (Ask::Renew(_, listed), Answer::Renewed { lives: true, .. }) => {
                    for it in listed {
                        self.check(Seen::Listed(it.instance))?;
                    }
                }
                _ => {}
            }
            if let Ask::Commit(writes) = ask {
                for seen in writes.iter().flat_map(reports_in) {
                    self.check(seen)?;
                }
                if self.chance(self.options.faults.unknown_commit) {
                    answer = Answer::Failed;
                }
            }
        }
        let after = self.random.u64(1..5);
        self.push(
            after,
            Event::Input(place, life, Input::Answer(ticket, answer)),
        );
        Ok(())
    }
}
