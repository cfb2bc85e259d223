//! The spooler: leases messages, runs submissions and receptions, keeps outbox and history, generates reports.
//!
//! ```text
//! doors -> spool -> dispatcher -> session -> agent
//!                      |  ^          |
//!                      v  |          v
//!                   recorder <--- verdict        outbox: due + credit -> claimed -> (adoption) -> dispatcher
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`service`], [`config`] | the process |
//! | [`switchboard`], [`session`] | the link's events, and one actor per agent |
//! | [`dispatcher`], [`router`], [`destination`], [`pick`] | what goes next, and where |
//! | [`recorder`], [`verdict`], [`schedule`], [`report`], [`progress`] | what the outcomes mean, and that it is written once |
//! | [`store`], [`outbox`], [`adoption`], [`membership`] | what waits, who may claim it, and what an earlier holder may have sent |
//! | [`reception`] | who may deliver next |
//! | [`control`], [`cli`] | people's questions, and `pombo` |

pub mod adoption;
pub mod cli;
pub mod config;
pub mod control;
pub mod destination;
pub mod dispatcher;
pub mod gather;
pub mod job;
pub mod membership;
pub mod outbox;
pub mod pick;
pub mod progress;
pub mod reception;
pub mod recorder;
pub mod report;
pub mod router;
pub mod schedule;
pub mod service;
pub mod session;
pub mod store;
pub mod switchboard;
pub mod verdict;
