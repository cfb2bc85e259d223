//! The sections that every service has.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;

use super::{Secret, duration, size};
use crate::{
    link::{Audience, Options},
    message::INLINE_BYTES_MAX,
    topology::Topology,
};

/// `[broker]`: how to reach RabbitMQ.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Broker {
    /// `amqp://host:port/vhost` or `amqps://...`, tried in turn. The vhost `/` is written `%2f`.
    pub addresses: Vec<String>,
    /// The user, if the addresses do not name one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// What the names of all queues and exchanges start with; the same for everybody who belongs together.
    pub prefix: String,
    /// How soon a dead connection is noticed. Whole seconds, 1 s to 10 min.
    #[serde(deserialize_with = "duration::deserialize")]
    pub heartbeat: Duration,
    /// Packets that are delivered and not yet handled: bounds what a burst can pile up in memory.
    pub inbox_prefetch: u16,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            addresses: vec!["amqp://127.0.0.1:5672/%2f".to_owned()],
            user: None,
            password: None,
            prefix: "pombo".to_owned(),
            heartbeat: Duration::from_secs(10),
            inbox_prefetch: 500,
        }
    }
}

/// What is wrong with `[broker]`, and at which key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BrokerError {
    /// As in `broker.addresses`; for [`super::Source::bad`].
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
}

impl BrokerError {
    fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self {
            key,
            message: message.into(),
        }
    }
}

impl Broker {
    /// The link's options. `name` is shown in the broker's list of connections.
    ///
    /// # Errors
    /// An address makes no sense, or credentials are missing: RabbitMQ's `guest` is assumed on loopback only.
    pub fn options(
        &self,
        audience: Audience,
        name: impl Into<String>,
    ) -> Result<Options, BrokerError> {
        if self.addresses.is_empty() {
            return Err(BrokerError::new("broker.addresses", "there is none"));
        }
        let addresses: Result<Vec<_>, _> =
            self.addresses.iter().map(|one| self.address(one)).collect();
        let heartbeat = self.heartbeat.as_secs();
        if !(1..=600).contains(&heartbeat) || self.heartbeat.subsec_nanos() != 0 {
            let message = "whole seconds, from 1s to 10min";
            return Err(BrokerError::new("broker.heartbeat", message));
        }
        if self.inbox_prefetch == 0 {
            return Err(BrokerError::new("broker.inbox_prefetch", "at least 1"));
        }
        if self.prefix.is_empty() || self.prefix.len() > 100 {
            return Err(BrokerError::new("broker.prefix", "1 to 100 characters"));
        }
        Ok(Options {
            addresses: addresses?,
            topology: Topology::new(self.prefix.clone()),
            audience,
            name: name.into(),
            heartbeat: heartbeat as u16,
            inbox_prefetch: self.inbox_prefetch,
        })
    }

    fn address(&self, address: &str) -> Result<SecretString, BrokerError> {
        let key = "broker.addresses";
        let (scheme, rest) = address
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "amqp" | "amqps"))
            .ok_or_else(|| BrokerError::new(key, "an address begins with amqp:// or amqps://"))?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user_info, host) = match authority.rsplit_once('@') {
            Some((user_info, host)) => (Some(user_info), host),
            None => (None, authority),
        };
        if host.is_empty() {
            return Err(BrokerError::new(key, "an address without a host"));
        }
        let credentials = match (user_info, &self.user, &self.password) {
            (Some(both), None, None) if both.contains(':') => both.to_owned(),
            (Some(user), None, Some(password)) if !user.contains(':') => {
                format!("{user}:{}", encoded(password.expose()))
            }
            (None, Some(user), Some(password)) => {
                format!("{}:{}", encoded(user), encoded(password.expose()))
            }
            (None, None, None) if is_loopback(host) => "guest:guest".to_owned(),
            (Some(_), Some(_), _) => {
                return Err(BrokerError::new(
                    "broker.user",
                    "the address names a user, too",
                ));
            }
            (Some(_), None, Some(_)) => {
                let message = "the address has a password, too";
                return Err(BrokerError::new("broker.password", message));
            }
            (None, Some(_), None) | (Some(_), None, None) => {
                return Err(BrokerError::new("broker.user", "a user without a password"));
            }
            (None, None, Some(_)) => {
                return Err(BrokerError::new(
                    "broker.password",
                    "a password without a user",
                ));
            }
            (None, None, None) => {
                let message = "user and password are needed for any host but this one";
                return Err(BrokerError::new("broker.user", message));
            }
        };
        let path = if path.is_empty() { "/%2f" } else { path };
        Ok(SecretString::from(format!(
            "{scheme}://{credentials}@{host}{path}"
        )))
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let address = name.parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// RFC 3986 percent-encoding of everything but the unreserved.
fn encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// `[http]`: `/healthz`, `/readyz`, `/metrics`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// As in `127.0.0.1:9101`; not set: nowhere.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Text for people or JSON for programs, on standard error.
    pub format: LogFormat,
    /// `info`, or as in `info,pombo_agent=debug`. The environment's `POMBO_LOG` overrides it.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: "info".to_owned(),
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `[blobs]`: where large bodies lie. The same directory for every process of an installation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blobs {
    /// The directory; made if it is not there.
    pub path: PathBuf,
    /// Bodies up to this size travel with the message. At most 1 MiB: it bounds what a spooler holds in memory.
    #[serde(default = "inline_max", deserialize_with = "size::deserialize")]
    pub inline_max: usize,
}

fn inline_max() -> usize {
    INLINE_BYTES_MAX
}
