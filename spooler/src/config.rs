//! The spooler's configuration: one TOML file. `deploy/spooler.sample.toml` comments every key.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use pombo_proto::{
    gate::TurnOptions,
    link::Audience,
    message::{BODY_BYTES_MAX, Priority},
    service::config::{Blobs, Broker, Error as ConfigError, Http, Log, Source, duration, size},
    topology::SpoolClass,
};
use serde::Deserialize;

use crate::{destination::Limits, schedule::Schedule};

/// All of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to reach RabbitMQ.
    #[serde(default)]
    pub broker: Broker,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    #[serde(default)]
    pub http: Http,
    /// How it logs.
    #[serde(default)]
    pub log: Log,
    /// Outbox and history.
    pub store: Store,
    /// Large bodies.
    pub blobs: Blobs,
    /// The spooler itself.
    #[serde(default)]
    pub spooler: Spooler,
    /// When messages are tried again, warned about, given up.
    #[serde(default)]
    pub schedule: Schedule,
    /// How destinations are treated.
    #[serde(default)]
    pub destinations: Limits,
    /// The transport order.
    #[serde(default, rename = "transport")]
    pub transports: Vec<Transport>,
}

/// `[store]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The SQLite file. Several spoolers of one host name the same one.
    pub path: PathBuf,
    /// How long finished messages are kept, at least. Default 14 days. Whole days are dropped.
    #[serde(default = "fourteen_days", with = "duration")]
    pub history: Duration,
}

fn fourteen_days() -> Duration {
    Duration::from_secs(14 * 86_400)
}

/// `[spooler]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spooler {
    /// Its name in logs, traces and the list of spoolers. Default: host name and process id.
    pub name: Option<String>,
    /// The host name in Received and in reports (Reporting-MTA). Default: the machine's.
    pub host: Option<String>,
    /// How long a SIGTERM waits for what is in process before it is moved to the outbox. Default 30 s.
    #[serde(with = "duration")]
    pub drain: Duration,
    /// The largest message that `pombo submit` may bring. Default 50 MiB.
    #[serde(with = "size")]
    pub body_bytes_max: u64,
    /// Deliveries held per spool queue.
    pub prefetch: Prefetch,
    /// StartMessages outstanding in one session that has mail. Default 8, growing to 64 while all are used.
    pub reception_window: u32,
    /// StartMessages outstanding over all sessions. Default 1024.
    pub reception_max: u32,
}

impl Default for Spooler {
    fn default() -> Self {
        Self {
            name: None,
            host: None,
            drain: Duration::from_secs(30),
            body_bytes_max: BODY_BYTES_MAX,
            prefetch: Prefetch::default(),
            reception_window: 8,
            reception_max: 1024,
        }
    }
}

impl Spooler {
    /// The host name.
    pub fn host(&self) -> String {
        self.host.clone().unwrap_or_else(host_name)
    }

    /// The spooler's name.
    pub fn name(&self) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| format!("{}-{}", self.host(), std::process::id()))
    }

    /// How permits are given.
    pub fn turns(&self) -> TurnOptions {
        TurnOptions {
            window: self.reception_window.max(1),
            outstanding_max: self.reception_max.max(1),
            ..TurnOptions::default()
        }
    }
}

/// `[spooler.prefetch]`: 1..=2,000 each. Memory is prefetch x the inline threshold of bodies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prefetch {
    /// Default 100.
    pub urgent: u16,
    /// Default 400.
    pub normal: u16,
    /// Default 100.
    pub bulk: u16,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            urgent: 100,
            normal: 400,
            bulk: 100,
        }
    }
}

impl Prefetch {
    /// Of one queue.
    pub fn of(&self, class: SpoolClass) -> u16 {
        let prefetch = match class {
            SpoolClass::Priority(Priority::Urgent) => self.urgent,
            SpoolClass::Priority(Priority::Normal) => self.normal,
            SpoolClass::Priority(Priority::Bulk) | SpoolClass::Unrouted => self.bulk,
        };
        prefetch.clamp(1, 2_000)
    }
}

/// One `[[transport]]`, in transport order.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transport {
    /// The name that its agents have in their configuration.
    pub name: String,
    /// How often Poll is called if it asks for it. Default 1 s.
    #[serde(default = "one_second", with = "duration")]
    pub poll_every: Duration,
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

impl Config {
    /// One transport.
    pub fn transport(&self, name: &str) -> Option<&Transport> {
        self.transports.iter().find(|it| it.name == name)
    }

    /// The names, in order.
    pub fn transport_order(&self) -> Vec<String> {
        self.transports.iter().map(|it| it.name.clone()).collect()
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// With file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let source = Source::read(path)?;
        let config: Self = source.parse()?;
        config
            .check()
            .map_err(|(key, message)| source.bad(&key, message))?;
        Ok(config)
    }

    /// What the types cannot say: the key, and what is wrong with it.
    fn check(&self) -> Result<(), (String, String)> {
        if self.transports.is_empty() {
            let message = "name at least one [[transport]], in the order of their turns";
            return Err(("transport".to_owned(), message.to_owned()));
        }
        for (at, transport) in self.transports.iter().enumerate() {
            let bad = |key: &str, message: String| Err((format!("transport.{at}.{key}"), message));
            if transport.name.is_empty() {
                return bad("name", "it is empty".to_owned());
            }
            if self.transports[..at]
                .iter()
                .any(|it| it.name == transport.name)
            {
                return bad("name", format!("{} is there twice", transport.name));
            }
            if transport.poll_every < Duration::from_millis(10) {
                return bad("poll_every", "at least 10ms".to_owned());
            }
        }
        if let Err(error) = self.broker.options(Audience::Spoolers, self.spooler.name()) {
            return Err((error.key.to_owned(), error.message));
        }
        Ok(())
    }
}

/// The machine's own name; what a host without one calls itself is RFC 5321's last resort anyway.
fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}
