//! The kinds of transports that an agent can host. To add one: its module under `transports/`, and one line here.

use std::{fmt::Display, sync::Arc};

use pombo_proto::service::config::{Error, Source};
use serde::de::DeserializeOwned;

use crate::{
    provider::Transport,
    transports::{maildir, null, smtp, smtp_listener},
};

/// A kind of transport: its name, which is that of its section in the configuration, and how one is made.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// As in `[transport] kind`.
    pub name: &'static str,
    /// Makes one from its section.
    pub make: fn(&Source) -> Result<Arc<dyn Transport>, Error>,
}

/// All kinds.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "smtp",
        make: |source| make(source, "smtp", smtp::SmtpTransport::new),
    },
    Kind {
        name: "smtp-listener",
        make: |source| make(source, "smtp-listener", smtp_listener::SmtpListener::new),
    },
    Kind {
        name: "maildir",
        make: |source| make(source, "maildir", maildir::Maildir::new),
    },
    Kind {
        name: "null",
        make: |source| make(source, "null", null::Null::new),
    },
];

/// The kind of this name among these.
pub fn kind(kinds: &'static [Kind], name: &str) -> Option<&'static Kind> {
    kinds.iter().find(|kind| kind.name == name)
}

/// Makes a transport from its section: what a [`Kind`] calls.
///
/// # Errors
/// What is wrong with the section, with file and line.
pub fn make<C, T, E>(
    source: &Source,
    name: &str,
    new: fn(C) -> Result<T, E>,
) -> Result<Arc<dyn Transport>, Error>
where
    C: DeserializeOwned,
    T: Transport,
    E: Display,
{
    let config = match source.section(name)? {
        Some(config) => config,
        // Some have a default for everything; the others say what is missing.
        None => Source::new("", "")
            .parse()
            .map_err(|_| source.bad(name, format!("the section [{name}] is missing")))?,
    };
    match new(config) {
        Ok(transport) => Ok(Arc::new(transport)),
        Err(error) => Err(source.bad(name, error)),
    }
}
