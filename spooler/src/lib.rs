//! The spooler: leases messages, runs submissions and receptions, keeps outbox and history, generates reports.
//!
//! ```text
//! doors -> spool -> dispatcher -> session -> agent
//!                      |  ^          |
//!                      v  |          v
//!                   recorder <--- verdict        outbox: due + credit -> claimed -> dispatcher
//! ```

pub mod destination;
pub mod pick;
pub mod progress;
pub mod report;
pub mod router;
pub mod schedule;
pub mod store;
pub mod verdict;
