//! The transport agent: hosts one transport provider, speaks to every spooler over RabbitMQ, and keeps the results of
//! what it has sent until they are settled.
#![warn(missing_docs)]

pub mod config;
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod provider;
pub mod transports;
