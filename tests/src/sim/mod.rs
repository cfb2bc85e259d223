//! The simulation: spoolers, agents, doors, the broker and the store on virtual time, with seeds.
//!
//! ```text
//! clients, drop folder -> [door] -> broker -> [spooler] -> [agent] -> remotes
//!                                      \         |           (checks watch all of it)
//!                                       \----- store
//! ```
//!
//! Where the product has a state machine without IO, the simulation drives that one: attempts, ladders, numbering, gate and
//! turns, tenure, router, verdict, schedule, rows, the right to send, and (for some seeds) the SQLite store itself.
//! What actors do around them is written again here, as thinly as possible, one file per party.
//!
//! | file | what |
//! |---|---|
//! | [`options`] | how large the world is, which faults happen how often, and which rule is broken on purpose |
//! | [`world`] | the clock, the queue of events, processes that die, stall and come back |
//! | `faults` | what goes wrong next |
//! | [`broker`] | the spool as a quorum queue, connections, inboxes |
//! | [`store`], `model` | when questions to the store are carried out, and the contract written as simply as possible |
//! | `spooler/` | a spooler's actors in one structure |
//! | `agent/` | an agent: outbound, and as a door |
//! | [`checks`] | the invariants: they see what happens, and nothing of who did it or why it went wrong |
//!
//! A seed decides everything: the options that it draws, and each thing that happens. So a seed that fails does so again:
//!
//! ```text
//! POMBO_SIM_SEED=1234 cargo test -p pombo-tests --test simulation replay -- --nocapture
//! POMBO_SIM_SEED=1234 POMBO_SIM_BREAK=AckBeforeCommit cargo test -p pombo-tests --test simulation replay -- --nocapture
//! POMBO_SIM_SEEDS=1000000 cargo test --release -p pombo-tests --test simulation long -- --nocapture
//! ```

mod agent;
pub mod broker;
pub mod checks;
mod context;
mod faults;
mod model;
pub mod options;
mod spooler;
pub mod store;
pub mod world;

pub use checks::Violation;
pub use options::{Options, Sabotage};
pub use world::{Report, World};

/// Runs one seed with the options that it draws.
///
/// # Errors
/// The first invariant that did not hold.
pub fn run(seed: u64, broken: Option<Sabotage>) -> Result<Report, Violation> {
    World::new(seed, Options::drawn_for(seed, broken), broken).run()
}
