//! What Pombo's tests stand on: a private RabbitMQ and PostgreSQL, the real binaries as processes, a scripted outside world, clients that
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
//! [`chaos`] takes away everything of this under load, and counts; `tests/chaos` is its command. `tests/rabbitmq4` runs the tests on
//! another RabbitMQ than the system's.
//!
//! What cannot be set up is an `Err`; what a test claims and does not hold is a panic with the story so far.

pub mod broker;
pub mod chaos;
pub mod client;
pub mod eventually;
pub mod fuzzing;
pub mod http;
pub mod installation;
pub mod load;
pub mod mail;
pub mod names;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod reaper;
pub mod s3;
pub mod scratch;
pub mod scripted;
pub mod service;
pub mod sim;
pub mod sink;
pub mod tls;
mod wire;

pub use broker::Broker;
pub use eventually::eventually;
pub use installation::Installation;
pub use postgres::Postgres;
pub use sink::Sink;
