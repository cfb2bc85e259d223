//! What both kinds of process need to be a service: configuration, logs, health and metrics, and the way down.

pub mod config;
pub mod http;
pub mod log;
