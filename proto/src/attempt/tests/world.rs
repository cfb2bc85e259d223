//! Spoolers that die, are paused and lose sessions; leases that are delivered twice; agents that outlive all of it; one
//! store. Checked at every step: no recipient is sent to twice, unless the first send had told that it was none. Checked
//! at the end, when the faults have stopped: every message is finished and nothing is kept.

use std::collections::HashMap;

use super::*;

const AGENTS: usize = 2;
const RECIPIENTS: u32 = 2;

#[derive(Default)]
struct Row {
    fence: u32,
    holder: Option<u32>,
    finished: bool,
    doubt: bool,
    /// The highest fence under which a verdict without doubt was recorded.
    recorded: Option<u32>,
    decided: [bool; RECIPIENTS as usize],
}

#[derive(Default)]
struct Store {
    rows: HashMap<u8, Row>,
}

impl Store {
    fn record(&mut self, work: &Work, number: u8, holder: u32, doubt: bool) -> bool {
        if work.fence > 0 || self.rows.contains_key(&number) {
            let Some(row) = self.rows.get(&number) else {
                return false;
            };
            if row.fence != work.fence || row.holder != Some(holder) {
                return false;
            }
        }
        let row = self.rows.entry(number).or_default();
        row.fence = work.fence;
        row.holder = None;
        row.decided = work.decided;
        row.doubt = doubt;
        row.finished = work.decided.iter().all(|decided| *decided);
        if !doubt {
            row.recorded = Some(work.fence);
        }
        true
    }

    fn is_recorded(&self, number: u8, fence: u32) -> bool {
        self.rows
            .get(&number)
            .is_some_and(|row| row.finished || row.recorded.is_some_and(|at| at >= fence))
    }
}

enum Down {
    Submit(Submit),
    End(Tenancy, Reference),
    Adopt(Tenancy),
    Settled(Tenancy),
}

enum Up {
    Submitted(Tenancy, Result<SubmitResult, Refusal>),
    Ended(Tenancy, Result<EndMessageFlag, Refusal>),
    Adopted(Adopted),
    Row(Vec<Tenancy>),
}

/// One session: two queues in order, and each side's own belief about whether it is open.
struct Link {
    spooler: u32,
    agent: usize,
    at_agent: Option<Session>,
    at_spooler: bool,
    opened: u64,
    down: VecDeque<Down>,
    up: VecDeque<Up>,
}

struct Work {
    fence: u32,
    since: u64,
    decided: [bool; RECIPIENTS as usize],
    step: Step,
}

enum Step {
    Fresh,
    /// Per agent: the final answer has come, or a question is out on this link.
    Adopting([Asked; AGENTS]),
    Submitted(usize),
    Ending(usize),
}

#[derive(Clone, Copy, PartialEq)]
enum Asked {
    No,
    Out(usize),
    Unknown,
    Done,
}

#[derive(Default)]
struct Spooler {
    alive: bool,
    work: HashMap<u8, Work>,
}

struct World {
    random: fastrand::Rng,
    now: u64,
    store: Store,
    leased: HashMap<u8, bool>,
    agents: Vec<(Attempts, Vec<Submit>)>,
    spoolers: HashMap<u32, Spooler>,
    incarnations: u32,
    links: Vec<Link>,
    sent: HashMap<(MessageId, u32), u32>,
    numbers: HashMap<MessageId, u8>,
    faults: bool,
}

impl World {
    fn new(seed: u64, messages: u8) -> Self {
        let agents = (0..AGENTS).map(|_| (Attempts::new(4), Vec::new()));
        Self {
            random: fastrand::Rng::with_seed(seed),
            now: 0,
            store: Store::default(),
            leased: (0..messages).map(|number| (number, false)).collect(),
            agents: agents.collect(),
            spoolers: HashMap::new(),
            incarnations: 0,
            links: Vec::new(),
            sent: HashMap::new(),
            numbers: (0..messages).map(|number| (id(number), number)).collect(),
            faults: true,
        }
    }

    fn step(&mut self) {
        self.now += 1;
        if self.spoolers.values().filter(|one| one.alive).count() < 2 {
            self.start_spooler();
        }
        match self.random.u8(..if self.faults { 32 } else { 28 }) {
            0..=1 => self.lease(),
            2..=3 => self.claim(),
            4..=12 => self.work(),
            13..=17 => self.deliver_down(),
            18..=22 => self.deliver_up(),
            23..=25 => self.send(),
            26 => self.rows(),
            27 => self.open_sessions(),
            28 => self.end_incarnation(),
            29 => self.break_session(),
            30 => self.redeliver(),
            _ => {}
        }
    }

    fn start_spooler(&mut self) {
        self.incarnations += 1;
        let spooler = Spooler {
            alive: true,
            ..Spooler::default()
        };
        self.spoolers.insert(self.incarnations, spooler);
        self.open_sessions();
    }

    fn open_sessions(&mut self) {
        let alive: Vec<u32> = self.alive();
        for spooler in alive {
            for agent in 0..AGENTS {
                let open =
                    |link: &Link| link.spooler == spooler && link.agent == agent && link.at_spooler;
                if !self.links.iter().any(open) {
                    self.now += 1;
                    let session = self.agents[agent].0.open_session();
                    self.links.push(Link {
                        spooler,
                        agent,
                        at_agent: Some(session),
                        at_spooler: true,
                        opened: self.now,
                        down: VecDeque::new(),
                        up: VecDeque::new(),
                    });
                }
            }
        }
    }

    fn alive(&self) -> Vec<u32> {
        let mut alive: Vec<u32> = self.spoolers.keys().copied().collect();
        alive.retain(|one| self.spoolers[one].alive);
        alive.sort_unstable();
        alive
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.random.usize(..from.len())])
    }

    fn lease(&mut self) {
        let mut free: Vec<u8> = self.leased.keys().copied().collect();
        free.retain(|number| !self.leased[number]);
        free.sort_unstable();
        let alive = self.alive();
        let (Some(number), Some(spooler)) = (self.pick(&free), self.pick(&alive)) else {
            return;
        };
        self.leased.insert(number, true);
        self.begin(spooler, number, 0, false, [false; RECIPIENTS as usize]);
    }

    /// The broker gives a lease to somebody else: it is moved, and the first holder is not told.
    fn redeliver(&mut self) {
        let mut out: Vec<u8> = self.leased.keys().copied().collect();
        out.retain(|number| self.leased[number] && !self.store.rows.contains_key(number));
        out.sort_unstable();
        if let Some(number) = self.pick(&out) {
            let row = Row {
                doubt: true,
                ..Row::default()
            };
            self.store.rows.insert(number, row);
        }
    }

    fn claim(&mut self) {
        let mut waiting: Vec<u8> = self.store.rows.keys().copied().collect();
        waiting.retain(|number| {
            let row = &self.store.rows[number];
            !row.finished && row.holder.is_none()
        });
        waiting.sort_unstable();
        let alive = self.alive();
        let (Some(number), Some(spooler)) = (self.pick(&waiting), self.pick(&alive)) else {
            return;
        };
        let row = self.store.rows.get_mut(&number).unwrap();
        row.fence += 1;
        row.holder = Some(spooler);
        let (fence, doubt, decided) = (row.fence, row.doubt, row.decided);
        self.begin(spooler, number, fence, doubt, decided);
    }

    fn begin(&mut self, spooler: u32, number: u8, fence: u32, doubt: bool, decided: [bool; 2]) {
        self.now += 1;
        let step = if doubt {
            Step::Adopting([Asked::No; AGENTS])
        } else {
            Step::Fresh
        };
        let work = Work {
            fence,
            since: self.now,
            decided,
            step,
        };
        let spooler = self.spoolers.get_mut(&spooler).unwrap();
        spooler.work.insert(number, work);
    }

    /// The store's view: this incarnation has ended. It may live on for a while without knowing.
    fn end_incarnation(&mut self) {
        let alive = self.alive();
        let Some(spooler) = self.pick(&alive) else {
            return;
        };
        for row in self.store.rows.values_mut() {
            if row.holder == Some(spooler) {
                (row.holder, row.doubt) = (None, true);
            }
        }
        let unaware = self.random.bool();
        let leases: Vec<u8> = self.spoolers[&spooler].work.keys().copied().collect();
        for number in leases {
            if self.spoolers[&spooler].work[&number].fence == 0 {
                let row = || Row {
                    doubt: true,
                    ..Row::default()
                };
                self.store.rows.entry(number).or_insert_with(row);
            }
        }
        let one = self.spoolers.get_mut(&spooler).unwrap();
        if !unaware {
            one.alive = false;
            one.work.clear();
            for link in &mut self.links {
                if link.spooler == spooler {
                    link.at_spooler = false;
                }
            }
        }
    }

    fn break_session(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let index = self.random.usize(..self.links.len());
        if self.random.bool() {
            self.links[index].at_spooler = false;
        } else {
            self.end_at_agent(index);
        }
    }

    fn end_at_agent(&mut self, index: usize) {
        let link = &mut self.links[index];
        link.down.clear();
        if let Some(session) = link.at_agent.take() {
            self.agents[link.agent].0.handle_session_ended(session);
        }
    }

    /// One spooler looks after one message.
    fn work(&mut self) {
        let alive = self.alive();
        let Some(spooler) = self.pick(&alive) else {
            return;
        };
        let mut numbers: Vec<u8> = self.spoolers[&spooler].work.keys().copied().collect();
        numbers.sort_unstable();
        let Some(number) = self.pick(&numbers) else {
            return;
        };
        let mut work = self
            .spoolers
            .get_mut(&spooler)
            .and_then(|one| one.work.remove(&number))
            .unwrap();
        if self.advance(spooler, number, &mut work) {
            let one = self.spoolers.get_mut(&spooler).unwrap();
            one.work.insert(number, work);
        }
    }

    fn link_to(&self, spooler: u32, agent: usize) -> Option<usize> {
        self.links
            .iter()
            .position(|link| link.spooler == spooler && link.agent == agent && link.at_spooler)
    }

    fn advance(&mut self, spooler: u32, number: u8, work: &mut Work) -> bool {
        let tenancy = tenancy(number, work.fence);
        match &mut work.step {
            Step::Fresh => {
                let agents: Vec<usize> = (0..AGENTS)
                    .filter_map(|agent| self.link_to(spooler, agent))
                    .filter(|link| self.links[*link].opened < work.since)
                    .collect();
                let Some(link) = self.pick(&agents) else {
                    // Never submitted: moved, and claimed anew.
                    self.store.record(work, number, spooler, false);
                    return false;
                };
                let open = (0..RECIPIENTS).filter(|index| !work.decided[*index as usize]);
                let submit = submit_to(tenancy, open.map(RecipientIndex).collect());
                self.links[link].down.push_back(Down::Submit(submit));
                work.step = Step::Submitted(link);
                true
            }
            Step::Adopting(asked) => {
                for (agent, asked) in asked.iter_mut().enumerate() {
                    let lost = matches!(*asked, Asked::Out(link) if !self.links[link].at_spooler);
                    if *asked != Asked::No && !lost {
                        continue;
                    }
                    *asked = Asked::No;
                    let open = |link: &Link| {
                        link.spooler == spooler && link.agent == agent && link.at_spooler
                    };
                    if let Some(link) = self.links.iter().position(open) {
                        self.links[link].down.push_back(Down::Adopt(tenancy));
                        *asked = Asked::Out(link);
                    }
                }
                if asked.iter().all(|one| *one == Asked::Unknown) {
                    work.step = Step::Fresh;
                } else if asked
                    .iter()
                    .all(|one| matches!(one, Asked::Unknown | Asked::Done))
                {
                    if self.store.record(work, number, spooler, false) {
                        (0..AGENTS).for_each(|agent| self.settle(spooler, agent, tenancy));
                    }
                    return false;
                }
                true
            }
            Step::Submitted(link) | Step::Ending(link) => {
                if !self.links[*link].at_spooler {
                    self.store.record(work, number, spooler, true);
                    return false;
                }
                true
            }
        }
    }

    fn settle(&mut self, spooler: u32, agent: usize, tenancy: Tenancy) {
        if let Some(link) = self.link_to(spooler, agent) {
            self.links[link].down.push_back(Down::Settled(tenancy));
        }
    }

    fn deliver_down(&mut self) {
        let mut full: Vec<usize> = (0..self.links.len()).collect();
        full.retain(|link| !self.links[*link].down.is_empty());
        let Some(index) = self.pick(&full) else {
            return;
        };
        let link = &mut self.links[index];
        let frame = link.down.pop_front().unwrap();
        let Some(session) = link.at_agent else {
            link.at_spooler = false;
            return;
        };
        let (attempts, running) = &mut self.agents[link.agent];
        match frame {
            Down::Submit(submit) => {
                let tenancy = Tenancy {
                    id: submit.id,
                    fence: submit.fence,
                };
                match attempts.handle_submit(session, &submit) {
                    Ok(()) => {
                        assert!(running.iter().all(|other| other.id != submit.id));
                        running.push(submit);
                        attempts.handle_reference(tenancy.id, Reference(7));
                    }
                    Err(refusal) => link.up.push_back(Up::Submitted(tenancy, Err(refusal))),
                }
            }
            Down::End(tenancy, reference) => {
                let flag = match attempts.handle_end(tenancy, reference) {
                    Ok(BeginEnd::Call(_)) => {
                        attempts.handle_ended(tenancy.id, EndMessageFlag::Sent);
                        Ok(EndMessageFlag::Sent)
                    }
                    Ok(BeginEnd::Already(flag)) => Ok(flag),
                    Err(refusal) => Err(refusal),
                };
                link.up.push_back(Up::Ended(tenancy, flag));
            }
            Down::Adopt(tenancy) => {
                let adopted = attempts.handle_adopt(&[tenancy]).remove(0);
                link.up.push_back(Up::Adopted(adopted));
            }
            Down::Settled(tenancy) => {
                let cancel = attempts.handle_settled(&[tenancy]);
                assert!(cancel.is_empty(), "nobody gives up what is under way here");
            }
        }
        assert!(attempts.in_flight() <= 4);
    }

    /// A send completes: here, mail goes out.
    fn send(&mut self) {
        let agent = self.random.usize(..AGENTS);
        if self.agents[agent].1.is_empty() {
            return;
        }
        let index = self.random.usize(..self.agents[agent].1.len());
        let submit = self.agents[agent].1.swap_remove(index);
        let result = match self.random.u8(..6) {
            0 => SubmitResult::Busy,
            1 => SubmitResult::Wait(std::time::Duration::from_secs(1), None),
            _ => {
                let outcomes = submit.recipients.iter().map(|recipient| {
                    if self.random.u8(..3) == 0 {
                        return outcome(recipient.0, deferred());
                    }
                    let sent = self.sent.entry((submit.id, recipient.0)).or_default();
                    *sent += 1;
                    assert_eq!(*sent, 1, "sent twice");
                    outcome(recipient.0, delivered())
                });
                SubmitResult::Ok(outcomes.collect())
            }
        };
        let attempts = &mut self.agents[agent].0;
        let owner = attempts.handle_returned(submit.id, result.clone()).unwrap();
        let link = self
            .links
            .iter_mut()
            .find(|link| link.agent == agent && link.at_agent == Some(owner.session));
        if let Some(link) = link {
            let tenancy = Tenancy {
                id: submit.id,
                fence: owner.fence,
            };
            link.up.push_back(Up::Submitted(tenancy, Ok(result)));
        }
    }

    fn rows(&mut self) {
        for index in 0..self.links.len() {
            if !self.links[index].at_spooler {
                self.links[index].up.clear();
            } else if self.links[index].at_agent.is_some() {
                let attempts = &mut self.agents[self.links[index].agent].0;
                attempts.tick();
                let row = Up::Row(attempts.unsettled(8));
                self.links[index].up.push_back(row);
            } else {
                self.links[index].at_spooler = false;
            }
            if !self.links[index].at_spooler && !self.faults {
                self.end_at_agent(index);
            }
        }
    }

    fn deliver_up(&mut self) {
        let mut full: Vec<usize> = (0..self.links.len()).collect();
        full.retain(|link| !self.links[*link].up.is_empty());
        let Some(index) = self.pick(&full) else {
            return;
        };
        let link = &mut self.links[index];
        let frame = link.up.pop_front().unwrap();
        let (spooler, agent) = (link.spooler, link.agent);
        if !link.at_spooler {
            return;
        }
        if let Up::Row(unsettled) = frame {
            for tenancy in unsettled {
                let number = self.numbers[&tenancy.id];
                if self.store.is_recorded(number, tenancy.fence.0) {
                    self.settle(spooler, agent, tenancy);
                }
            }
            return;
        }
        let tenancy = match &frame {
            Up::Submitted(tenancy, _) | Up::Ended(tenancy, _) => *tenancy,
            Up::Adopted(adopted) => Tenancy {
                id: adopted.id,
                fence: adopted.fence,
            },
            Up::Row(_) => return,
        };
        let number = self.numbers[&tenancy.id];
        let one = self.spoolers.get_mut(&spooler).unwrap();
        let Some(mut work) = one.work.remove(&number) else {
            return;
        };
        let keep = work.fence != tenancy.fence.0 || self.heard(index, number, &mut work, frame);
        if keep {
            let one = self.spoolers.get_mut(&spooler).unwrap();
            one.work.insert(number, work);
        }
    }

    fn heard(&mut self, index: usize, number: u8, work: &mut Work, frame: Up) -> bool {
        let (spooler, agent) = (self.links[index].spooler, self.links[index].agent);
        let tenancy = tenancy(number, work.fence);
        let finish = |world: &mut Self, work: &Work| {
            if world.store.record(work, number, spooler, false) {
                (0..AGENTS).for_each(|agent| world.settle(spooler, agent, tenancy));
            }
            false
        };
        match (&mut work.step, frame) {
            (Step::Submitted(_), Up::Submitted(_, Ok(SubmitResult::Ok(outcomes)))) => {
                apply(&mut work.decided, &outcomes);
                let end = Down::End(tenancy, Reference(7));
                self.links[index].down.push_back(end);
                work.step = Step::Ending(index);
                true
            }
            (Step::Submitted(..), Up::Submitted(_, Err(Refusal::Fenced))) => false,
            (Step::Submitted(..), Up::Submitted(..)) => finish(self, work),
            (Step::Ending(..), Up::Ended(_, Ok(_))) => finish(self, work),
            (Step::Ending(..), Up::Ended(..)) => false,
            (Step::Adopting(asked), Up::Adopted(adopted)) => {
                match adopted.answer {
                    AdoptAnswer::Fenced => return false,
                    AdoptAnswer::Unknown => asked[agent] = Asked::Unknown,
                    AdoptAnswer::UnderWay => asked[agent] = Asked::No,
                    AdoptAnswer::Done { result, .. } => {
                        asked[agent] = Asked::Done;
                        if let SubmitResult::Ok(outcomes) = result {
                            apply(&mut work.decided, &outcomes);
                        }
                    }
                }
                true
            }
            _ => true,
        }
    }
}

fn apply(decided: &mut [bool; 2], outcomes: &[RecipientOutcome]) {
    for outcome in outcomes {
        if matches!(outcome.outcome, Outcome::Delivered(_)) {
            decided[outcome.recipient.get()] = true;
        }
    }
}

#[test]
fn nothing_is_sent_twice_and_everything_is_settled_whoever_dies() {
    for seed in 0..2_000 {
        let messages = 6;
        let mut world = World::new(seed, messages);
        (0..600).for_each(|_| world.step());
        world.faults = false;
        let mut steps = 0;
        let finished = |world: &World| {
            let rows = &world.store.rows;
            rows.len() == usize::from(messages)
                && rows.values().all(|row| row.finished)
                && world.agents.iter().all(|(attempts, _)| attempts.is_empty())
        };
        while !finished(&world) {
            world.step();
            steps += 1;
            assert!(steps < 60_000, "seed {seed}: stuck");
        }
        let sent = usize::from(messages) * RECIPIENTS as usize;
        assert_eq!(world.sent.len(), sent, "seed {seed}");
    }
}
