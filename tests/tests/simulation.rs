//! The simulation (`pombo_tests::sim`): the system passes, each broken rule is found, and a seed replays exactly.
//!
//! `POMBO_SIM_SEED=N` chooses what `replay` runs, `POMBO_SIM_BREAK=RULE` the rule that is broken there, `POMBO_SIM_SEEDS=N` how
//! many seeds `long` runs.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use pombo_spooler::store::{Options as SqliteOptions, Sqlite};
use pombo_tests::sim::{self, Options, Report, Sabotage, Violation, World};

/// Seeds in the normal run.
const SEEDS: u64 = 1_500;
/// A broken rule is found within so many.
const FOUND_WITHIN: u64 = 400;

/// What seeds came to, together.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    accepted: u64,
    dots: u64,
    in_doubt: u64,
    events: u64,
    took: u64,
}

impl Sum {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.accepted += u64::from(report.accepted);
        self.dots += u64::from(report.dots);
        self.in_doubt += u64::from(report.in_doubt);
        self.events += report.events;
        self.took += report.took;
    }
}

/// Runs these seeds on two threads; the lowest one that fails, if any.
fn all_pass(seeds: std::ops::Range<u64>) -> (Sum, Option<(u64, Violation)>) {
    let next = AtomicU64::new(seeds.start);
    let worker = || {
        let mut sum = Sum::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (sum, None);
            }
            match sim::run(seed, None) {
                Ok(report) => sum.add(report),
                Err(violation) => return (sum, Some((seed, violation))),
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        let mut all = Sum::default();
        let mut failed = BTreeMap::new();
        for worker in workers {
            let (sum, failure) = worker.join().unwrap();
            all.seeds += sum.seeds;
            all.accepted += sum.accepted;
            all.dots += sum.dots;
            all.in_doubt += sum.in_doubt;
            all.events += sum.events;
            all.took += sum.took;
            failed.extend(failure);
        }
        (all, failed.pop_first())
    })
}

fn assert_all_pass(seeds: std::ops::Range<u64>) {
    let began = Instant::now();
    let (sum, failed) = all_pass(seeds);
    let rate = sum.seeds as f64 / began.elapsed().as_secs_f64();
    println!("{sum:?}, {rate:.0} seeds/s");
    if let Some((seed, violation)) = failed {
        panic!(
            "seed {seed}: {violation}\nPOMBO_SIM_SEED={seed} cargo test -p pombo-tests --test simulation replay -- --ignored --nocapture"
        );
    }
    // A world in which nothing happens proves nothing.
    assert!(sum.accepted > sum.seeds && sum.dots > sum.seeds);
    assert!(sum.in_doubt > 0);
}

#[test]
fn nothing_is_lost_and_nothing_sent_twice_whatever_fails() {
    assert_all_pass(0..SEEDS);
}

#[test]
#[ignore = "as long as one wants: POMBO_SIM_SEEDS"]
fn long() {
    let seeds = number("POMBO_SIM_SEEDS").unwrap_or(200_000);
    assert_all_pass(SEEDS..SEEDS + seeds);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..20 {
        assert_eq!(sim::run(seed, None), sim::run(seed, None), "seed {seed}");
        let broken = Some(Sabotage::AckBeforeCommit);
        assert_eq!(
            sim::run(seed, broken),
            sim::run(seed, broken),
            "seed {seed}"
        );
    }
}

/// The same worlds over the store that the product uses. It claims in an order of its own, so that other things happen; the
/// rules hold all the same.
#[test]
fn the_same_over_sqlite() {
    for seed in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteOptions {
            busy_timeout: Duration::ZERO,
            size_max: None,
        };
        let store = Sqlite::open(folder.path().join("store.db"), options).unwrap();
        let world = World::with_store(seed, Options::drawn(seed), None, Box::new(store));
        let report = world
            .run()
            .unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert!(report.dots > 0, "seed {seed}");
    }
}

/// Which invariants a broken rule may show by.
fn shows_by(broken: Sabotage) -> &'static [u8] {
    match broken {
        Sabotage::NoFenceCheck => &[1, 2, 3, 9],
        Sabotage::AckBeforeCommit => &[7],
        Sabotage::UnknownWithoutTombstone => &[2],
        Sabotage::ReportOutsideTransaction => &[3],
        Sabotage::ForgetLastNotification => &[6],
        Sabotage::NoRightToSend => &[8],
        Sabotage::AgentStartedAfterAdopt => &[2],
        Sabotage::MarkedTwinFirst => &[2],
        Sabotage::TwoArbiters => &[2, 3],
        Sabotage::LoserDoesNotAck => &[1],
        // What is never settled is credit that never returns: in the end nothing is submitted any more.
        Sabotage::SettledLost | Sabotage::FinishedNeverSettled => &[2, 9],
        Sabotage::DeadHoldersClaim => &[2],
        Sabotage::PauseBeforeDot | Sabotage::RightComesBack => &[8],
        Sabotage::GoBeforeNote | Sabotage::ForgetTheStruck => &[2],
        Sabotage::OnlyOursAreAsked | Sabotage::StruckAsLoggedOff => &[2],
        Sabotage::ResultsNotTaken | Sabotage::LeavesItBehind => &[2],
        Sabotage::GivenBackIsRecorded => &[2],
        Sabotage::BlockIgnored => &[8],
        Sabotage::PermitUsedTwice | Sabotage::DoneBeforeConfirm => &[5],
        Sabotage::ReferenceInUse => &[4],
    }
}

#[test]
fn every_broken_rule_is_found() {
    let found: Vec<_> = std::thread::scope(|scope| {
        let (left, right) = Sabotage::ALL.split_at(Sabotage::ALL.len() / 2);
        let halves = [left, right].map(|half| {
            scope.spawn(move || {
                let first = |broken: &Sabotage| {
                    let fails = |seed| Some((seed, sim::run(seed, Some(*broken)).err()?));
                    (*broken, (0..FOUND_WITHIN).find_map(fails))
                };
                half.iter().map(first).collect::<Vec<_>>()
            })
        });
        halves
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect()
    });
    for (broken, found) in &found {
        match found {
            Some((seed, violation)) => println!("{broken:?}: seed {seed}: {violation}"),
            None => println!("{broken:?}: not found"),
        }
    }
    for (broken, found) in found {
        let (seed, violation) = found.unwrap_or_else(|| panic!("{broken:?} is not found"));
        assert!(
            shows_by(broken).contains(&violation.invariant),
            "{broken:?}, seed {seed}: {violation}"
        );
        // What was found is the broken rule, and not the world.
        let unbroken = World::new(seed, Options::drawn_for(seed, Some(broken)), None);
        assert!(unbroken.run().is_ok(), "seed {seed} fails unbroken");
    }
}

#[test]
#[ignore = "one seed, told at length: POMBO_SIM_SEED, POMBO_SIM_BREAK"]
fn replay() {
    let Some(seed) = number("POMBO_SIM_SEED") else {
        panic!("which one? POMBO_SIM_SEED=N");
    };
    let broken = std::env::var("POMBO_SIM_BREAK").ok();
    let broken = broken.map(|name| Sabotage::named(&name).expect("a rule's name"));
    let options = Options::drawn_for(seed, broken);
    println!("{options:#?}");
    match World::new(seed, options, broken).logged().run() {
        Ok(report) => println!("{report:?}"),
        Err(violation) => panic!("seed {seed}: {violation}"),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// For whom leans the options of a rule: in which seeds it is found when it is broken, and whether they pass unbroken.
#[test]
#[ignore = "one rule, many seeds: POMBO_SIM_BREAK, POMBO_SIM_SEEDS"]
fn explore() {
    let broken = std::env::var("POMBO_SIM_BREAK").ok();
    let broken = broken.map(|name| Sabotage::named(&name).expect("a rule's name"));
    let seeds = number("POMBO_SIM_SEEDS").unwrap_or(100);
    let mut found = 0;
    for seed in 0..seeds {
        let options = Options::drawn_for(seed, broken);
        if let Err(violation) = World::new(seed, options.clone(), None).run() {
            panic!("seed {seed} fails unbroken: {violation}");
        }
        if let Err(violation) = World::new(seed, options, broken).run() {
            println!("seed {seed}: {violation}");
            found += 1;
        }
    }
    println!("{broken:?}: found in {found} of {seeds} seeds");
}
