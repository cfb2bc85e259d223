//! What Pombo's tests stand on: a private RabbitMQ, the real binaries as processes, a scripted outside world, clients that
//! play people, and loads that remember what they sent.
//!
//! ```text
//! client, load -> [pombo-agent smtp-listener] -> [broker] -> [pombo-spooler] -> [pombo-agent smtp] -> sink
//!                 `------------------------- installation ---------------------------------'
//! ```
//!
//! Nothing here sleeps to synchronise: everything is a condition with a limit ([`eventually()`], [`sink::Sink::wait_for`]). No port
//! is fixed ([`ports`]). Whatever is started dies with the test process, even when that is killed ([`reaper`]).
//!
//! What cannot be set up is an `Err`; what a test claims and does not hold is a panic with the story so far.

pub mod broker;
pub mod client;
pub mod eventually;
pub mod http;
pub mod installation;
pub mod load;
pub mod mail;
pub mod ports;
pub mod process;
pub mod reaper;
pub mod scratch;
pub mod scripted;
pub mod service;
pub mod sink;
pub mod tls;
mod wire;

pub use broker::Broker;
pub use eventually::eventually;
pub use installation::Installation;
pub use sink::Sink;
