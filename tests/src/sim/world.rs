//! The clock, the queue of events, and what each of them is.

mod outside;
mod processes;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use pombo_proto::{
    control::{QueueFilter, QueueState},
    frame::Packet,
    ids::{Incarnation, MessageId},
    message::Message,
};
use pombo_spooler::store::{Change, Store};

use super::{
    agent::{Agent, Kind},
    broker::{Acked, Broker, Delivered},
    checks::{Checks, Seen, Violation},
    context::Input,
    model::Model,
    options::{Millis, Options, Sabotage},
    spooler::Spooler,
    store::{Ask, Host},
};

/// When both ends of a dead connection notice, at the latest.
pub(super) const HEARTBEAT: std::ops::Range<Millis> = 8_000..15_000;
/// How often the checks look by themselves.
const LOOK_EVERY: Millis = 5_000;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Virtual time until everything was finished.
    pub took: Millis,
    /// Events.
    pub events: u64,
    /// A fingerprint of all of them: the same seed has the same one.
    pub trace: u64,
    /// Messages that doors accepted.
    pub accepted: u32,
    /// Final dots that remotes accepted.
    pub dots: u32,
    /// Recipients that were counted as in doubt.
    pub in_doubt: u32,
}

/// What stands in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Spooler,
    Agent(Kind),
}

enum Process {
    Spooler(Box<Spooler>),
    Agent(Box<Agent>),
}

/// A place for one process after another.
pub(super) struct Slot {
    pub role: Role,
    /// How many processes have been here.
    life: u32,
    process: Option<Process>,
    pub link: Option<Incarnation>,
    pub paused: bool,
    /// What happened to it while it was paused.
    held: Vec<Event>,
    /// Until then, nothing from the broker reaches it, nor the other way.
    pub cut_off: Millis,
    /// Until then, the store refuses it.
    pub store_away: Millis,
    /// When its last question is carried out: they are in order.
    asked: Millis,
}

/// What happens next. To processes by place and life: what was meant for the dead is lost.
pub(super) enum Event {
    Start(usize),
    Connect(usize, u32),
    LinkDown(usize, Incarnation),
    Resume(usize, u32),
    Input(usize, u32, Input),
    Packet(Packet),
    Delivery(Incarnation, Delivered),
    Publish {
        from: Incarnation,
        place: usize,
        token: u64,
        message: Message,
        marked: bool,
        fate: Fate,
    },
    Ack(Incarnation, u64),
    /// The broker notices that a connection is gone.
    Lose(Incarnation),
    Ask(usize, u32, u64, Ask),
    Client(u32),
    Folder,
    Cancel(MessageId),
    /// The broker holds publishes back, or takes them again.
    Blocked(bool),
    Fault,
    Look,
}

/// What becomes of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Confirmed,
    Unconfirmed,
    /// It surfaces although its connection is long gone.
    Late,
}

/// See the module.
pub struct World {
    pub(super) options: Options,
    broken: Option<Sabotage>,
    pub(super) random: fastrand::Rng,
    base: Instant,
    pub(super) now: Millis,
    serial: u64,
    queue: BTreeMap<(Millis, u64), Box<Event>>,
    pub(super) slots: Vec<Slot>,
    pub(super) broker: Broker,
    host: Host,
    checks: Checks,
    /// Clients whose mail is not yet accepted, and the door that each of them talks to.
    clients: BTreeMap<u32, Option<(usize, u32)>>,
    folder: BTreeSet<u32>,
    /// Between which places packets are swallowed, or take long, until when.
    pub(super) swallowed: BTreeMap<(usize, usize), Millis>,
    pub(super) delayed: BTreeMap<(usize, usize), Millis>,
    /// Until when the store is slow.
    pub(super) slow_store: Millis,
    /// Until when the broker holds publishes back.
    pub(super) blocked: Millis,
    report: Report,
    log: bool,
}

impl World {
    /// A world that nothing has happened in.
    pub fn new(seed: u64, options: Options, broken: Option<Sabotage>) -> Self {
        Self::with_store(seed, options, broken, Box::new(Model::new(broken)))
    }

    /// The same over another store.
    pub fn with_store(
        seed: u64,
        options: Options,
        broken: Option<Sabotage>,
        store: Box<dyn Store>,
    ) -> Self {
        let roles = std::iter::empty()
            .chain((0..options.spoolers).map(|_| Role::Spooler))
            .chain((0..options.agents).map(|_| Role::Agent(Kind::Smtp)))
            .chain((0..options.spares).map(|_| Role::Agent(Kind::Spare)))
            .chain((0..options.doors).map(|_| Role::Agent(Kind::Door)));
        let slot = |role| Slot {
            role,
            life: 0,
            process: None,
            link: None,
            paused: false,
            held: Vec::new(),
            cut_off: 0,
            store_away: 0,
            asked: 0,
        };
        Self {
            broken,
            random: fastrand::Rng::with_seed(seed),
            base: Instant::now(),
            now: 0,
            serial: 0,
            queue: BTreeMap::new(),
            slots: roles.map(slot).collect(),
            broker: Broker::default(),
            host: Host::new(store),
            checks: Checks::default(),
            clients: (0..options.mails).map(|number| (number, None)).collect(),
            folder: BTreeSet::new(),
            swallowed: BTreeMap::new(),
            delayed: BTreeMap::new(),
            slow_store: 0,
            blocked: 0,
            report: Report {
                took: 0,
                events: 0,
                trace: 0xcbf2_9ce4_8422_2325,
                accepted: 0,
                dots: 0,
                in_doubt: 0,
            },
            options,
            log: false,
        }
    }

    /// Prints what happens.
    pub fn logged(mut self) -> Self {
        self.log = true;
        self
    }

    /// To the end: until everything is finished, or ought to be.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn run(mut self) -> Result<Report, Violation> {
        self.begin();
        let end = self.options.trouble + self.options.calm;
        loop {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                return Err(self.stuck("nothing happens any more"));
            };
            let calm = at >= self.options.trouble;
            if calm && self.now < self.options.trouble {
                self.calm_down();
            }
            self.now = at;
            self.report.events += 1;
            if let Event::Look = *event {
                self.look()?;
                if calm && self.is_finished()? {
                    self.report.took = self.now;
                    return Ok(self.report);
                }
                if calm {
                    self.drop_what_is_held();
                }
                if self.now > end {
                    self.finally()?;
                    self.check(Seen::Held("attempts kept", self.kept(), 0))?;
                    return Err(self.stuck("not everything is finished"));
                }
                self.push(LOOK_EVERY, Event::Look);
                continue;
            }
            self.happen(*event)?;
        }
    }

    fn begin(&mut self) {
        for place in 0..self.slots.len() {
            let at = self.random.u64(..500);
            self.push(at, Event::Start(place));
        }
        let workload = self.options.trouble / 2;
        let mut at = 0;
        for number in 0..self.options.mails {
            // Some come one by one, others in a burst.
            at = if self.random.bool() {
                self.random.u64(500..workload)
            } else {
                at + self.random.u64(..1_500)
            };
            self.push(at, Event::Client(number));
        }
        self.folder = (0..self.options.files).collect();
        self.push(1_000, Event::Folder);
        self.push(LOOK_EVERY, Event::Look);
        if self.options.faults.every > 0 {
            self.push(self.options.faults.every, Event::Fault);
        }
    }

    /// Nothing goes wrong any more, and what has gone wrong ends.
    fn calm_down(&mut self) {
        self.swallowed.clear();
        self.delayed.clear();
        self.slow_store = 0;
        for place in 0..self.slots.len() {
            let slot = &mut self.slots[place];
            (slot.cut_off, slot.store_away) = (0, 0);
            let life = slot.life;
            self.push(0, Event::Resume(place, life));
        }
    }

    /// Whether faults still happen.
    pub(super) fn is_troubled(&self) -> bool {
        self.now < self.options.trouble
    }

    fn is_finished(&mut self) -> Result<bool, Violation> {
        let done = self.clients.is_empty() && self.folder.is_empty() && self.kept() == 0;
        Ok(done && self.finally().is_ok())
    }

    /// Somebody looks after what waits for a person. It was perhaps sent, so it is not sent again.
    fn drop_what_is_held(&mut self) {
        let now = self.clocks().unix();
        let filter = QueueFilter {
            state: Some(QueueState::Held),
            ..QueueFilter::default()
        };
        let held = self.host.store.list(&filter, 1_000, None);
        for row in held.unwrap_or_default().rows {
            let _ = self.host.store.change(now, row.id, Change::Drop);
        }
    }

    fn kept(&self) -> usize {
        let kept = |slot: &Slot| match &slot.process {
            Some(Process::Agent(agent)) => agent.keeps() as usize,
            _ => 0,
        };
        self.slots.iter().map(kept).sum()
    }

    fn stuck(&self, what: &str) -> Violation {
        Violation {
            invariant: 1,
            at: self.now,
            what: what.to_owned(),
        }
    }

    // ---- the queue

    /// Something happens after so long.
    pub(super) fn push(&mut self, after: Millis, event: Event) {
        self.push_at(self.now + after, event);
    }

    fn push_at(&mut self, at: Millis, event: Event) {
        self.serial += 1;
        self.queue.insert((at, self.serial), Box::new(event));
    }

    pub(super) fn input(&mut self, after: Millis, place: usize, input: Input) {
        let life = self.slots[place].life;
        self.push(after, Event::Input(place, life, input));
    }

    fn latency(&mut self) -> Millis {
        self.random.u64(self.options.latency.clone())
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.is_troubled() && self.random.u32(..100) < percent
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Start(place) => return self.start(place),
            Event::Connect(place, life) => return self.connect(place, life),
            Event::LinkDown(place, link) => return self.link_down(place, link),
            Event::Resume(place, life) => self.resume(place, life),
            Event::Input(place, life, input) => return self.handle(place, life, input),
            Event::Packet(packet) => return self.arrive(packet),
            Event::Delivery(link, delivered) => {
                if let Some((place, life)) = self.reach(link) {
                    return self.handle(place, life, Input::Leases(vec![delivered]));
                }
            }
            Event::Publish {
                from,
                place,
                token,
                message,
                marked,
                fate,
            } => self.published(from, place, token, message, marked, fate),
            Event::Ack(link, tag) => {
                if let Some(Acked::Gone(id)) = self.broker.ack(link, tag) {
                    self.check(Seen::Acked(id))?;
                }
                self.deliver();
            }
            Event::Lose(link) => {
                self.broker.lose(link);
                self.deliver();
            }
            Event::Ask(place, life, ticket, ask) => return self.asked(place, life, ticket, &ask),
            Event::Client(number) => self.client(number),
            Event::Folder => self.scan_folder(),
            Event::Cancel(id) => {
                let now = self.clocks().unix();
                // A store that refuses is asked by nobody again: people give up.
                let _ = self.host.store.change(now, id, Change::Cancel);
            }
            Event::Blocked(blocked) => return self.tell_blocked(blocked),
            Event::Fault => self.fault(),
            Event::Look => {}
        }
        Ok(())
    }
}
