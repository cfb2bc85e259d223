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
//! | [`process`], [`service`], [`config`] | the process |
//! | [`switchboard`], [`session`] | the link's events, and one actor per agent |
//! | [`dispatcher`], [`router`], [`destination`], [`pick`] | what goes next, and where |
//! | [`recorder`], [`verdict`], [`rows`], [`schedule`], [`report`], [`progress`] | what the outcomes mean, and that it is written once |
//! | [`store`], [`outbox`], [`adoption`], [`note`] | what waits, who may claim it, and what an earlier holder may have sent |
//! | [`membership`], [`horizon`] | which spoolers live, and until when an agent may send |
//! | [`reception`] | who may deliver next |
//! | [`ledger`] | what was accepted, and whether it all is somewhere |
//! | [`orphans`] | bodies that nothing refers to any more |
//! | [`control`], [`cli`] | people's questions, and `pombo` |

pub mod adoption;
pub mod cli;
pub mod config;
pub mod control;
pub mod destination;
pub mod dispatcher;
pub mod gather;
pub mod horizon;
pub mod job;
pub mod ledger;
pub mod membership;
pub mod note;
pub mod orphans;
pub mod outbox;
pub mod pick;
pub mod process;
pub mod progress;
pub mod reception;
pub mod recorder;
pub mod report;
pub mod router;
pub mod rows;
pub mod schedule;
pub mod service;
pub mod session;
pub mod store;
pub mod switchboard;
pub mod verdict;
