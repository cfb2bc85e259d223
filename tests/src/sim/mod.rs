//! The simulation: spoolers, agents, doors, the broker and the store on virtual time, with seeds.
//!
//! ```text
//! clients, drop folder -> [door] -> broker -> [spooler] -> [agent] -> remotes
//!                                      \         |           (checks watch all of it)
//!                                       \----- store
//! ```
//!
//! Where the product has a state machine without IO, the simulation drives that one: attempts, ladders, numbering, gate and
//! turns, tenure, router, verdict, schedule, rows, the right to send, who may have a message in doubt and what follows from the
//! answers (`adoption::{who, doubts, resolve}`), and (for some seeds) the SQLite store itself.
//! What actors do around them is written again here, as thinly as possible, one file per party. Suspects are not tried alone here:
//! that part of the dispatcher is its actor's.
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
//! POMBO_SIM_SEED=1234 cargo test -p pombo-tests --test simulation replay -- --ignored --nocapture
//! POMBO_SIM_SEED=1234 POMBO_SIM_BREAK=AckBeforeCommit cargo test -p pombo-tests --test simulation replay -- --ignored --nocapture
//! POMBO_SIM_SEEDS=1000000 cargo test --release -p pombo-tests --test simulation long -- --ignored --nocapture
//! ```
//!
//! # What the simulation breaks on purpose
//!
//! Each rule is broken around the product's machines, never in them: by what they are told, by what is done with what they say, or in
//! the store's model. `every_broken_rule_is_found` looks for the first seed that shows it, and that the same seed passes with the rule
//! intact. It prints them; so it stood when the last of these rules was added:
//!
//! | `POMBO_SIM_BREAK` | the rule, broken | invariant | `POMBO_SIM_SEED` |
//! |---|---|---|---|
//! | `NoFenceCheck` | the store records whatever it is told, under whatever fence | 2 | 11 |
//! | `AckBeforeCommit` | a lease is acked when it comes | 7 | 0 |
//! | `UnknownWithoutTombstone` | an agent that answers "unknown" does not remember the fence | 2 | 6 |
//! | `ReportOutsideTransaction` | reports are written after the verdict that causes them | 3 | 108 |
//! | `ForgetLastNotification` | a notification that comes too soon is dropped | 6 | 5 |
//! | `NoRightToSend` | an agent writes the final dot whatever it has heard | 8 | 19 |
//! | `AgentStartedAfterAdopt` | a message is submitted in whatever session there is | 2 | 63 |
//! | `MarkedTwinFirst` | what was published twice is submitted at once | 2 | 2 |
//! | `TwoArbiters` | what waits and what has finished do not know of each other | 2 | 30 |
//! | `LoserDoesNotAck` | who lost keeps its lease | 1 | 0 |
//! | `SettledLost` | what ended sessions have left is never settled | 9 | 53 |
//! | `FinishedNeverSettled` | what has finished does not count as recorded | 9 | 0 |
//! | `DeadHoldersClaim` | the claims of a spooler that died are not found again | 2 | 0 |
//! | `PauseBeforeDot` | time passes between the question for the right and the dot | 8 | 8 |
//! | `RightComesBack` | an agent that comes back sends what it had under way | 8 | 14 |
//! | `GoBeforeNote` | the go is given before the note is written | 2 | 11 |
//! | `ForgetTheStruck` | the store forgets at once who was struck off | 2 | 2 |
//! | `OnlyOursAreAsked` | only agents that have a session here are asked | 2 | 7 |
//! | `StruckAsLoggedOff` | who was struck off counts as logged off | 2 | 65 |
//! | `ResultsNotTaken` | what an agent kept of a message in doubt is not recorded | 2 | 1 |
//! | `GivenBackIsRecorded` | a claim that is given back in doubt counts as recorded, with all of before | 2 | 13 |
//! | `LeavesItBehind` | an agent that logs off says that it keeps nothing | 2 | 71 |
//! | `BlockIgnored` | agents are struck off while the broker holds publishes back | 8 | 8 |
//! | `PermitUsedTwice` | a permit is used for SaveChanges twice | 5 | 0 |
//! | `DoneBeforeConfirm` | a client is told "accepted" when its message is published | 5 | 0 |
//! | `ReferenceInUse` | a transport assigns a reference that is in use | 4 | 0 |
//!
//! Each is replayed by the second command above, with its rule and seed. With another product, or another world, the seeds are others.

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
