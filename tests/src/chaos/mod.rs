//! Chaos: a whole Pombo under load, one kind of fault again and again, and a verdict that counts.
//!
//! ```text
//! clients ──> [listener] ──> [broker] ──> [spoolers] ──> [smtp agents] ──> sink that counts every message
//!    |            `────────── a fault every few seconds ──────'              |
//!    `──> book of what was accepted ──────────> verdict <────────────────────'
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`options`] | the one struct that says what is to happen |
//! | [`faults`] | the kinds of faults, one file per party that suffers |
//! | [`stage`] | what a fault happens to: brokers, processes, networks, the outside world |
//! | [`load`] | SMTP clients at a steady pace, and the book of what they were told |
//! | [`verdict`] | what was accepted against what arrived: knows nothing of the fault |
//! | [`report`] | the table and the JSON |
//! | [`run`](mod@run) | lanes, each with a broker, that take one fault after the other |
//!
//! Each fault has a stage of its own, so that its figures are its own. Lanes run side by side, because most of a fault's
//! time is waiting: for leases to end, for silent agents to be given up.
//!
//! **The promises.** Lost is 0 everywhere. Duplicated is 0, except where an agent, or an answer, is taken away between a final dot and its
//! result, and where a listener is killed between the broker's confirm and its 250; there each copy too many is explained by its own
//! message's doubt, or by a final dot of its own client that nobody answered. In doubt is 0 where nobody who knows is taken away.
//! No client hears a 5xx.

pub mod faults;
pub mod load;
pub mod options;
pub mod report;
pub mod run;
pub mod stage;
pub mod verdict;

pub use self::{
    faults::{FAULTS, Fault},
    options::{Length, Options},
    run::run,
};
