//! Processes: how they start, die, lose their links and stall, and what they do.

use std::time::Duration;

use pombo_proto::ids::{Incarnation, Instance};
use pombo_spooler::schedule::Schedule;

use super::{Event, Fate, HEARTBEAT, Process, Role, World};
use crate::sim::{
    agent::Agent,
    checks::Violation,
    context::{Context, Effect, Input, Now, Timer, drawn_uuid},
    options::Millis,
    spooler::Spooler,
};

impl World {
    pub(super) fn clocks(&self) -> Now {
        Now {
            ms: self.now,
            base: self.base,
        }
    }

    pub(super) fn start(&mut self, place: usize) -> Result<(), Violation> {
        let instance = Instance(drawn_uuid(&mut self.random));
        let door = self.random.u32(..);
        let capacity = self.options.capacity;
        let slot = &mut self.slots[place];
        if slot.process.is_some() {
            return Ok(());
        }
        slot.life += 1;
        slot.process = Some(match slot.role {
            Role::Spooler => Process::Spooler(Box::new(Spooler::new(schedule()))),
            Role::Agent(kind) => {
                Process::Agent(Box::new(Agent::new(kind, instance, capacity, door)))
            }
        });
        let life = slot.life;
        let after = self.random.u64(10..100);
        self.push(after, Event::Connect(place, life));
        self.handle(place, life, Input::Started)
    }

    /// kill -9: it is gone, and so are perhaps its last words.
    pub(in crate::sim) fn kill(&mut self, place: usize) {
        let slot = &mut self.slots[place];
        if slot.process.take().is_none() {
            return;
        }
        slot.life += 1;
        slot.paused = false;
        slot.held.clear();
        if let Some(link) = slot.link.take() {
            self.lose_last_words(link);
            let noticed = self.random.u64(3..30);
            self.push(noticed, Event::Lose(link));
        }
        let back = self.random.u64(200..8_000);
        self.push(back, Event::Start(place));
    }

    /// It ends by itself: what it said last arrives, and what it asked of the store is carried out.
    fn exit(&mut self, place: usize) {
        let slot = &mut self.slots[place];
        slot.process = None;
        slot.life += 1;
        slot.held.clear();
        if let Some(link) = slot.link.take() {
            let last = self.words_of(link).last().map_or(self.now, |it| it.0);
            self.push_at(last, Event::Lose(link));
        }
        let back = self.random.u64(200..8_000);
        self.push(back, Event::Start(place));
    }

    /// What is on its way from here.
    fn words_of(&self, link: Incarnation) -> Vec<(Millis, u64)> {
        let said = |event: &Event| match event {
            Event::Packet(packet) => packet.from == link,
            Event::Publish { from, fate, .. } => *from == link && *fate != Fate::Late,
            Event::Ack(from, _) => *from == link,
            _ => false,
        };
        let all = self.queue.iter().filter(|(_, event)| said(event));
        all.map(|(key, _)| *key).collect()
    }

    /// Always a suffix.
    pub(super) fn lose_last_words(&mut self, link: Incarnation) {
        let words = self.words_of(link);
        let arrive = self.random.usize(..=words.len());
        for key in &words[arrive..] {
            let lost = self.queue.remove(key).map(|event| *event);
            if let Some(Event::Publish { message, .. }) = lost {
                self.no_longer_on_the_way(message.envelope.id);
            }
        }
    }

    pub(super) fn connect(&mut self, place: usize, life: u32) -> Result<(), Violation> {
        let slot = &mut self.slots[place];
        if slot.life != life || slot.process.is_none() || slot.link.is_some() {
            return Ok(());
        }
        if slot.paused {
            slot.held.push(Event::Connect(place, life));
            return Ok(());
        }
        if self.now < slot.cut_off {
            self.push(1_000, Event::Connect(place, life));
            return Ok(());
        }
        let link = Incarnation(drawn_uuid(&mut self.random));
        self.slots[place].link = Some(link);
        self.broker.connect(link, place);
        if self.now < self.blocked {
            self.input(0, place, Input::Blocked(true));
        }
        self.handle(place, life, Input::LinkUp(link))
    }

    /// The process notices that its link is down, and starts over.
    pub(super) fn link_down(&mut self, place: usize, link: Incarnation) -> Result<(), Violation> {
        let slot = &mut self.slots[place];
        if slot.link != Some(link) {
            return Ok(());
        }
        if slot.paused {
            slot.held.push(Event::LinkDown(place, link));
            return Ok(());
        }
        slot.link = None;
        let life = slot.life;
        let cut_off = self.now < self.slots[place].cut_off;
        let noticed = if cut_off {
            self.random.u64(HEARTBEAT)
        } else {
            0
        };
        self.push(noticed, Event::Lose(link));
        let again = self.random.u64(100..2_000);
        self.push(again, Event::Connect(place, life));
        self.handle(place, life, Input::LinkDown)
    }

    /// Until it resumes.
    pub(in crate::sim) fn resume_after(&mut self, takes: Millis, place: usize) {
        let life = self.slots[place].life;
        self.push(takes, Event::Resume(place, life));
    }

    pub(super) fn resume(&mut self, place: usize, life: u32) {
        let slot = &mut self.slots[place];
        if slot.life == life && slot.paused {
            slot.paused = false;
            let held = std::mem::take(&mut slot.held);
            if self.now < self.blocked {
                // Before it finds out how long it was away.
                self.input(0, place, Input::Blocked(true));
            }
            for event in held {
                self.push(0, event);
            }
        }
    }

    pub(super) fn handle(
        &mut self,
        place: usize,
        life: u32,
        input: Input,
    ) -> Result<(), Violation> {
        let now = self.clocks();
        let slot = &mut self.slots[place];
        if slot.life != life {
            return Ok(());
        }
        if slot.paused {
            slot.held.push(Event::Input(place, life, input));
            return Ok(());
        }
        if self.log && !matches!(input, Input::Timer(Timer::Tick | Timer::Look)) {
            let (ms, role) = (self.now, slot.role);
            println!("{ms:>7} {role:?} {place}: {}", brief(&input));
        }
        let mut cx = Context {
            now,
            random: &mut self.random,
            options: &self.options,
            broken: self.broken,
            effects: Vec::new(),
            seen: Vec::new(),
        };
        match &mut slot.process {
            Some(Process::Spooler(spooler)) => spooler.handle(input, &mut cx),
            Some(Process::Agent(agent)) => agent.handle(input, &mut cx),
            None => {}
        }
        let Context { effects, seen, .. } = cx;
        self.report.trace = (self.report.trace ^ (self.now << 8) ^ place as u64)
            .wrapping_mul(0x0100_0000_01b3)
            ^ effects.len() as u64;
        for seen in seen {
            self.check(seen)?;
        }
        for effect in effects {
            if let Effect::Exit = effect {
                self.exit(place);
                break;
            }
            self.act(place, effect);
        }
        Ok(())
    }

    pub(super) fn act(&mut self, place: usize, effect: Effect) {
        let link = self.slots[place].link;
        let cut_off = self.now < self.slots[place].cut_off;
        match (effect, link) {
            (Effect::After(after, timer), _) => self.input(after, place, Input::Timer(timer)),
            (Effect::Store(ticket, ask), _) => self.ask(place, ticket, ask),
            (Effect::Accept(number), _) => {
                self.clients.remove(&number);
            }
            (Effect::Remove(number), _) => {
                self.folder.remove(&number);
            }
            (_, None) => {}
            (Effect::Exit, _) => {}
            (Effect::CloseLink, Some(link)) => self.push(0, Event::LinkDown(place, link)),
            (
                Effect::Publish {
                    token,
                    message,
                    marked,
                },
                Some(link),
            ) => {
                self.publish(place, link, cut_off, (token, message, marked));
            }
            (_, Some(_)) if cut_off => {}
            (Effect::Send(packet), Some(link)) if packet.from == link => self.send(place, packet),
            (Effect::Send(_), Some(_)) => {}
            (Effect::Hello(hello), Some(_)) => self.tell_everybody(&hello),
            (Effect::Lease(prefetch), Some(link)) => {
                self.broker.lease(link, prefetch);
                self.deliver();
            }
            (Effect::Ack(tags), Some(link)) => {
                for tag in tags {
                    let after = self.held_back() + self.latency();
                    self.push(after, Event::Ack(link, tag));
                }
            }
        }
    }
}

/// Minutes instead of days.
fn schedule() -> Schedule {
    Schedule {
        first: Duration::from_secs(2),
        factor: 1.5,
        max: Duration::from_secs(15),
        life: Duration::from_secs(400),
        delay_warning: Duration::from_secs(60),
        ..Schedule::default()
    }
}

fn brief(input: &Input) -> String {
    let mut text = format!("{input:?}");
    text.truncate(text.floor_char_boundary(400));
    text
}
