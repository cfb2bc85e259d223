//! Thousands of random steps by several processes, against the contract written as simply as possible.

mod contract;
mod world;

use self::{contract::Seen, world::World};
use super::{MODEL_STEPS, Opened, Shared};

fn run(seed: u64) -> Seen {
    let file = Shared::new();
    let mut world = World::new(&file, seed);
    for step in 0..MODEL_STEPS {
        // In the output of a failure: the seed and the step to look at.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.step();
            if step % 8 == 0 || step + 1 == MODEL_STEPS {
                world.check();
            }
        }));
        assert!(result.is_ok(), "seed {seed}, step {step}");
    }
    file.is_sound();
    world.model.seen
}

#[test]
fn the_store_does_what_the_model_does() {
    for seed in 1..=3 {
        let seen = run(seed);
        let Seen {
            claimed,
            recorded,
            repeated,
            lost,
            held_by_mark,
            due_by_cancel,
            taken_over,
            noted,
            notes_kept,
            pruned,
            given_back,
        } = seen;
        let common = [claimed, recorded, lost];
        let rare = [
            repeated,
            held_by_mark,
            due_by_cancel,
            taken_over,
            noted,
            notes_kept,
            pruned,
            given_back,
        ];
        assert!(common.iter().all(|n| *n >= 100), "seed {seed}: {seen:?}");
        assert!(rare.iter().all(|n| *n >= 5), "seed {seed}: {seen:?}");
    }
}
