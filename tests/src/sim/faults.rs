//! What goes wrong next.

use super::{
    agent::Kind,
    context::Input,
    options::Millis,
    world::{Event, HEARTBEAT, Role, World},
};

/// The kinds, in the order of their weights.
#[derive(Clone, Copy, Debug)]
enum Fault {
    CrashSpooler,
    CrashAgent,
    CrashDoor,
    PowerLoss,
    Pause,
    Cut,
    Partition,
    TwoHolders,
    Swallow,
    Delay,
    SlowStore,
    StoreAway,
    Drain,
    Block,
}

impl World {
    /// One fault, and the time of the next.
    pub(super) fn fault(&mut self) {
        if !self.is_troubled() {
            return;
        }
        let every = self.options.faults.every;
        let next = self.random.u64(every / 5..every * 2);
        self.push(next, Event::Fault);
        if let Some(fault) = self.draw_fault() {
            self.strike(fault);
        }
    }

    fn draw_fault(&mut self) -> Option<Fault> {
        let faults = &self.options.faults;
        let weights = [
            (Fault::CrashSpooler, faults.crash_spooler),
            (Fault::CrashAgent, faults.crash_agent),
            (Fault::CrashDoor, faults.crash_door),
            (Fault::PowerLoss, faults.power_loss),
            (Fault::Pause, faults.pause),
            (Fault::Cut, faults.cut),
            (Fault::Partition, faults.partition),
            (Fault::TwoHolders, faults.two_holders),
            (Fault::Swallow, faults.swallow),
            (Fault::Delay, faults.delay),
            (Fault::SlowStore, faults.slow_store),
            (Fault::StoreAway, faults.store_away),
            (Fault::Drain, faults.drain),
            (Fault::Block, faults.block),
        ];
        let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
        if sum == 0 {
            return None;
        }
        let mut drawn = self.random.u32(..sum);
        let hit = weights.into_iter().find(|(_, weight)| {
            let hit = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            hit
        });
        hit.map(|(fault, _)| fault)
    }

    fn strike(&mut self, fault: Fault) {
        let spooler = self.place(|role| role == Role::Spooler);
        let agent = self.place(|role| matches!(role, Role::Agent(kind) if kind != Kind::Door));
        let door = self.place(|role| role == Role::Agent(Kind::Door));
        let any = self.random.usize(..self.slots.len());
        match fault {
            Fault::CrashSpooler => self.kill(spooler),
            Fault::CrashAgent => self.kill(agent),
            Fault::CrashDoor => self.kill(door),
            Fault::PowerLoss => {
                self.kill(spooler);
                self.kill(agent);
            }
            Fault::Pause => self.pause(any),
            Fault::Cut => self.cut(any, 0..5_000),
            Fault::Partition => {
                self.slots[any].cut_off = self.now + self.random.u64(16_000..90_000);
                self.cut(any, HEARTBEAT);
            }
            Fault::TwoHolders => {
                if let Some(link) = self.slots[spooler].link {
                    self.broker.hand_over(link);
                    self.deliver();
                }
            }
            Fault::Swallow => {
                let until = self.now + self.random.u64(500..10_000);
                let pair = if self.random.bool() {
                    (spooler, agent)
                } else {
                    (agent, spooler)
                };
                self.swallowed.insert(pair, until);
            }
            Fault::Delay => {
                let until = self.now + self.random.u64(2_000..20_000);
                self.delayed.insert((spooler, agent), until);
                if self.random.bool() {
                    self.delayed.insert((agent, spooler), until);
                }
            }
            Fault::SlowStore => self.slow_store = self.now + self.random.u64(2_000..20_000),
            Fault::StoreAway => {
                self.slots[spooler].store_away = self.now + self.random.u64(1_000..25_000);
            }
            Fault::Drain => self.input(0, any, Input::Drain),
            Fault::Block => self.block(),
        }
    }

    /// A memory alarm: whatever anybody publishes waits until it is over.
    fn block(&mut self) {
        if self.now < self.blocked {
            return;
        }
        let takes = self.random.u64(10_000..60_000);
        self.blocked = self.now + takes;
        self.push(0, Event::Blocked(true));
        self.push(takes, Event::Blocked(false));
    }

    /// A place of this kind; there is at least one of each.
    fn place(&mut self, is: impl Fn(Role) -> bool) -> usize {
        let places = self.slots.iter().enumerate();
        let all: Vec<usize> = places
            .filter(|(_, slot)| is(slot.role))
            .map(|(place, _)| place)
            .collect();
        all[self.random.usize(..all.len())]
    }

    /// SIGSTOP, and SIGCONT after a while. The broker gives it up if it takes long.
    fn pause(&mut self, place: usize) {
        let takes = self.random.u64(1_000..60_000);
        let noticed = self.random.u64(HEARTBEAT);
        if self.slots[place].paused {
            return;
        }
        self.slots[place].paused = true;
        self.resume_after(takes, place);
        if let Some(link) = self.slots[place].link.filter(|_| takes > noticed) {
            self.push(noticed, Event::Lose(link));
            self.push(noticed, Event::LinkDown(place, link));
        }
    }

    /// The connection is dead; its two ends notice at different times.
    fn cut(&mut self, place: usize, within: std::ops::Range<Millis>) {
        if let Some(link) = self.slots[place].link {
            let (broker, process) = (
                self.random.u64(within.clone()),
                self.random.u64(within.clone()),
            );
            self.push(broker, Event::Lose(link));
            self.push(process, Event::LinkDown(place, link));
        }
    }
}
