//! Logs: `tracing` to standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::config::{Log, LogFormat};

/// The environment variable that overrides the configured filter.
pub const FILTER_VARIABLE: &str = "POMBO_LOG";

/// What stands before and after the configured filter: the AMQP client is quiet unless it is asked for by name, and
/// **returned messages are never logged**, since it logs them with their bodies.
const QUIET: &str = "lapin=warn,actix_server=warn,";
const NEVER: &str = ",lapin::returned_messages=off";

/// A filter that cannot be understood, or a log that was set up before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter's syntax.
    #[error("log filter {filter:?}: {source}")]
    Filter {
        /// As configured.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// There can be one log per process.
    #[error("the log was set up before")]
    Again,
}

/// Sets up the process's log. Once, right after the configuration was read.
///
/// # Errors
/// See [`Error`].
pub fn init(log: &Log) -> Result<(), Error> {
    let configured = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| log.filter.clone());
    let filter = filter(&configured)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A line that cannot be written (its file's disk is full) would be complained of on standard error, which is the same
        // file; and that complaint panics when it cannot be written either.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let set = match log.format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
    };
    set.map_err(|_| Error::Again)
}

fn filter(configured: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder()
        .parse(format!("{QUIET}{configured}{NEVER}"))
        .map_err(|source| Error::Filter {
            filter: configured.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returned_messages_are_never_logged() {
        for configured in ["trace", "lapin=trace", "lapin::returned_messages=trace"] {
            let text = filter(configured).unwrap().to_string();
            assert!(text.contains("lapin::returned_messages=off"), "{text}");
            assert!(!text.contains("returned_messages=trace"), "{text}");
        }
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_refused() {
        let error = filter("pombo=loud").unwrap_err();
        assert!(error.to_string().contains("pombo=loud"), "{error}");
    }
}
