use std::collections::BTreeSet;

use pombo_proto::ledger::{Account, Outcomes};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(5);
const PREFETCH: u64 = 20;

fn number(door: u32, sequence: u64) -> DoorNumber {
    DoorNumber { door, sequence }
}

/// Doors, a broker, spoolers and a store; messages move one step at a time, and some are between two places when somebody looks.
struct World {
    random: fastrand::Rng,
    now: UnixMillis,
    audit: Audit,
    confirmed: [u64; 2],
    ready: BTreeSet<DoorNumber>,
    /// Delivered, and not yet in the spooler's hands.
    limbo: BTreeSet<DoorNumber>,
    leased: [BTreeSet<DoorNumber>; 3],
    stored: BTreeSet<DoorNumber>,
    stolen: BTreeSet<DoorNumber>,
    /// A spooler that does not answer.
    silent: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            now: UnixMillis(1_000_000),
            audit: Audit::new(PATIENCE),
            confirmed: [0; 2],
            ready: BTreeSet::new(),
            limbo: BTreeSet::new(),
            leased: Default::default(),
            stored: BTreeSet::new(),
            stolen: BTreeSet::new(),
            silent: false,
        }
    }

    fn publish(&mut self, n: u64) {
        for _ in 0..n {
            let door = self.random.usize(..2);
            self.confirmed[door] += 1;
            self.ready.insert(number(door as u32, self.confirmed[door]));
        }
    }

    fn steal(&mut self) -> Option<DoorNumber> {
        let stolen = self.ready.pop_first()?;
        self.stolen.insert(stolen);
        Some(stolen)
    }

    /// Some of what lies somewhere goes on.
    fn flow(&mut self, share: u8) {
        let random = &mut self.random;
        let mut goes = |_: &DoorNumber| random.u8(..100) < share;
        let from_leases: Vec<_> = self
            .leased
            .iter()
            .flatten()
            .copied()
            .filter(&mut goes)
            .collect();
        let from_limbo: Vec<_> = self.limbo.iter().copied().filter(&mut goes).collect();
        let free = (3 * PREFETCH) as usize - self.leased.iter().map(BTreeSet::len).sum::<usize>();
        let free = free.saturating_sub(self.limbo.len());
        let from_ready: Vec<_> = self
            .ready
            .iter()
            .copied()
            .filter(&mut goes)
            .take(free)
            .collect();
        for number in from_leases {
            self.leased.iter_mut().for_each(|it| {
                it.remove(&number);
            });
            self.stored.insert(number);
        }
        for number in from_limbo {
            self.limbo.remove(&number);
            let spooler = self.random.usize(..3);
            self.leased[spooler].insert(number);
        }
        for number in from_ready {
            self.ready.remove(&number);
            self.limbo.insert(number);
        }
    }

    /// Its leases go back.
    fn kill(&mut self, spooler: usize) {
        let leased = std::mem::take(&mut self.leased[spooler]);
        self.ready.extend(leased);
    }

    /// In the order that an observation is made in; the world goes on meanwhile.
    fn look(&mut self) -> Audited {
        let ready = self.ready.len() as u64;
        self.flow(30);
        let sought = self.audit.sought();
        let held = self.leased.iter().flatten().copied();
        let held = held.filter(|it| sought.contains(it)).collect();
        self.flow(30);
        let accounts = (0..2).map(|door| self.account(door)).collect();
        let seen = Observation {
            accounts,
            holes: (0..2).flat_map(|door| self.holes(door)).collect(),
            ready,
            held,
            leases_max: 3 * PREFETCH,
            complete: !self.silent,
        };
        self.now = self.now.after(LOOK);
        self.audit.handle_observation(self.now, &seen).clone()
    }

    fn holes(&self, door: usize) -> Vec<DoorNumber> {
        (1..=self.confirmed[door])
            .map(|sequence| number(door as u32, sequence))
            .filter(|it| !self.stored.contains(it))
            .collect()
    }

    fn account(&self, door: usize) -> Balance {
        let holes = self.holes(door).len() as u64;
        let rows = self.confirmed[door] - holes;
        Balance {
            account: Account::Door(door as u32),
            name: String::new(),
            confirmed: self.confirmed[door],
            voided: 0,
            beyond: 0,
            rows,
            holes,
            messages: Outcomes::from([rows, 0, 0, 0]),
            recipients: Outcomes::default(),
            changed: self.now,
        }
    }
}

#[test]
fn nothing_is_missing_while_everything_moves_whatever_happens() {
    for seed in 0..8 {
        let mut world = World::new(seed);
        let load = world.random.u64(0..60);
        for step in 0..400 {
            if step % 100 > 80 {
                // Now and then it gets quiet.
            } else {
                world.publish(load);
            }
            let share = world.random.u8(5..100);
            world.flow(share);
            match world.random.u8(..40) {
                0 => {
                    let spooler = world.random.usize(..3);
                    world.kill(spooler);
                }
                1 => world.silent = !world.silent,
                _ => {}
            }
            let found = world.look();
            assert_eq!(
                found.missing_count, 0,
                "seed {seed}, step {step}: {found:?}"
            );
            assert!(found.missing.is_empty() && found.unsound.is_empty());
        }
    }
}

#[test]
fn what_is_stolen_is_named_once_the_broker_is_empty_and_nothing_else_is() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..50 {
            world.publish(5);
            if world.random.u8(..10) == 0 {
                world.steal();
            }
            world.flow(60);
            world.look();
        }
        world.publish(1);
        world.steal();
        let mut looks = 0;
        let found = loop {
            world.flow(60);
            let found = world.look();
            for missing in &found.missing {
                assert!(
                    world.stolen.contains(missing),
                    "seed {seed}: {missing} is no loss"
                );
            }
            looks += 1;
            if found.missing_count == world.stolen.len() as u64 || looks > 100 {
                break found;
            }
        };
        let stolen: Vec<_> = world.stolen.iter().copied().collect();
        assert_eq!(found.missing, stolen, "seed {seed}");
        // The patience, and the time to empty the broker.
        assert!(looks <= 30, "seed {seed}: {looks}");
    }
}

#[test]
fn a_loss_under_steady_load_is_seen_as_soon_as_the_queue_has_been_empty_a_few_times() {
    let mut world = World::new(1);
    world.publish(1);
    let stolen = world.steal().unwrap();
    let mut empty = 0;
    for _ in 0..200 {
        world.publish(3);
        world.flow(80);
        empty += u32::from(world.ready.is_empty());
        let found = world.look();
        assert!(found.missing.iter().all(|it| *it == stolen));
        if !found.missing.is_empty() {
            assert!(empty >= SIGHTINGS);
            return;
        }
    }
    panic!("never seen, although the queue was empty {empty} times");
}

#[test]
fn a_queue_that_somebody_has_purged_is_seen_by_count_while_others_still_wait() {
    let mut world = World::new(2);
    world.publish(500);
    for _ in 0..300 {
        world.steal();
    }
    // Nobody leases; something is always ready.
    let mut last = Audited::default();
    for _ in 0..15 {
        last = world.look();
    }
    // Of the 500, 200 are ready or leased, and up to 60 more might be leased.
    assert!(
        (240..=300).contains(&last.missing_count),
        "{}",
        last.missing_count
    );
    assert_eq!(last.missing.len() as u64, last.missing_count);
}

#[test]
fn who_does_not_answer_may_have_it() {
    let mut world = World::new(3);
    world.publish(1);
    world.steal();
    world.silent = true;
    for _ in 0..50 {
        assert_eq!(world.look().missing_count, 0);
    }
    world.silent = false;
    let found = (0..20).map(|_| world.look()).last().unwrap();
    assert_eq!(found.missing_count, 1);
}

#[test]
fn a_number_that_comes_after_all_is_no_longer_missing() {
    let mut world = World::new(4);
    world.publish(1);
    let stolen = world.steal().unwrap();
    let found = (0..20).map(|_| world.look()).last().unwrap();
    assert_eq!(found.missing, [stolen]);
    world.stored.insert(stolen);
    assert_eq!(world.look(), Audited::default());
}

#[test]
fn books_that_contradict_themselves_are_named() {
    let mut world = World::new(5);
    world.publish(10);
    let mut accounts = vec![world.account(0), world.account(1)];
    accounts[1].rows += 1;
    let seen = Observation {
        accounts,
        ..Observation::default()
    };
    let found = Audit::new(PATIENCE)
        .handle_observation(world.now, &seen)
        .clone();
    assert_eq!(found.unsound, [Account::Door(1)]);
}
