//! The host: runs one transport, and speaks for it to every spooler.
//!
//! ```text
//! link --Linked--> Agent --spawn--> transport's threads --Told--> Agent --packets--> link
//! ```
//!
//! One actor, [`Agent`], holds all sessions: it routes packets, keeps the [`Attempts`](pombo_proto::attempt::Attempts), the
//! [`Gate`](pombo_proto::gate::Gate) and the status rows. Everything that may take time (the transport's methods, the spool, the blob
//! store) runs on the transport's runtime, and tells the actor what came of it; many things told make one wake. The actor itself
//! never waits.
//!
//! | file | what |
//! |---|---|
//! | `agent` | the actor: link events, packets, time |
//! | `agent/session` | logon and the end of sessions |
//! | `agent/outbound`, `agent/inbound` | both ladders, from this side |
//! | `agent/status` | status rows, notifications, the other calls |
//! | `agent/drain` | the way down |
//! | `submission`, `permits`, `door`, `support` | what the transport holds in its hands |
//! | `right`, `cancel` | may it still be sent? |
//! | `service`, `process` | the process around it |

mod agent;
mod cancel;
mod door;
mod permits;
mod process;
pub mod registry;
pub mod right;
mod service;
mod submission;
mod support;
mod told;
mod wire;

pub use agent::{Agent, Counters, Drain, Drained, GetCounters, Linked, Parts, Settings, Stop};
pub use process::{main, main_speaking};
pub use service::run;
pub use wire::Wire;

#[cfg(test)]
mod tests;
