//! What Pombo's processes say to each other, and in what order.
//!
//! `pombo-spooler` and `pombo-agent` both stand on this crate; it stands on neither. From the bottom up:
//!
//! | module | what it is |
//! |---|---|
//! | [`ids`], [`time`] | who is who, and when |
//! | [`message`], [`outcome`], [`properties`] | what moves, and what became of it |
//! | [`verbs`], [`control`] | the calls of a session; the questions people ask |
//! | [`frame`] | the only place where bytes become values and back |
//! | [`topology`], [`link`] | RabbitMQ: names and arguments; connections, channels, confirms, rebuild |
//! | [`ladder`], [`gate`], [`tenure`], [`attempt`], [`outbound`] | the rules, as state machines without clock, channel or log |
//! | [`right`] | how long who may still send, and when the others may rely on it |
//! | [`trace`] | which trace a message belongs to, for other systems |
//! | [`blob`] | large bodies, by reference |
//! | [`door`], [`ledger`] | what was accepted, and what became of it, in numbers |
//! | [`scram`] | proving a password without saying it |
//! | [`service`] | what both kinds of process need to be a service: configuration, logs, health |
#![warn(missing_docs)]

pub mod attempt;
pub mod blob;
pub mod control;
pub mod door;
pub mod frame;
pub mod gate;
pub mod ids;
pub mod ladder;
pub mod ledger;
pub mod link;
pub mod message;
pub mod outbound;
pub mod outcome;
pub mod properties;
pub mod right;
pub mod scram;
pub mod service;
pub mod tenure;
pub mod time;
pub mod topology;
pub mod trace;
pub mod verbs;
