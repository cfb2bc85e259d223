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

use crate::{destination::Limits, note::Asks, schedule::Schedule};

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

/// `[store]`: exactly one of `path` and `url`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The SQLite file. Several spoolers of one host name the same one.
    pub path: Option<PathBuf>,
    /// PostgreSQL, for spoolers on any number of hosts: `postgres://user@host:port/database`, without password or parameters.
    pub url: Option<String>,
    /// The file with the password.
    pub password_file: Option<PathBuf>,
    /// Whose certificates are believed. Not set: the system's. On loopback, TLS is used only where this or `certificate` is set.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, where the server asks for one.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Speaks to other hosts in plain text, too. Default false.
    #[serde(default)]
    pub plain_text: bool,
    /// The schema within the database. Default `pombo`.
    pub schema: Option<String>,
    /// How long messages are kept from the day of their issue, at least, and never before they have finished. Default 14 days; at
    /// least two days longer than `schedule.life`. Whole days are dropped.
    #[serde(default = "fourteen_days", with = "duration")]
    pub history: Duration,
}

/// Which store it is.
#[derive(Clone, Debug)]
pub enum StoreKind {
    /// A file of this host.
    Sqlite(PathBuf),
    /// A server.
    #[cfg(feature = "postgres")]
    Postgres(crate::store::postgres::Options),
}

impl Store {
    /// Which store it is.
    ///
    /// # Errors
    /// The key within `[store]`, and what is wrong with it.
    pub fn kind(&self) -> Result<StoreKind, (&'static str, String)> {
        let url = match (&self.path, &self.url) {
            (Some(path), None) => {
                self.says_nothing_of_a_server()?;
                return Ok(StoreKind::Sqlite(path.clone()));
            }
            (None, Some(url)) => url,
            (None, None) => {
                let text = "name a file by path (SQLite), or a server by url (PostgreSQL)";
                return Err(("", text.to_owned()));
            }
            (Some(_), Some(_)) => {
                return Err(("url", "there is a path, too: one of both".to_owned()));
            }
        };
        self.postgres(url)
    }

    #[cfg(feature = "postgres")]
    fn postgres(&self, url: &str) -> Result<StoreKind, (&'static str, String)> {
        let plain = crate::store::postgres::Options::new(url);
        let options = crate::store::postgres::Options {
            password_file: self.password_file.clone(),
            ca_file: self.ca_file.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            plain_text: self.plain_text,
            schema: self.schema.clone().unwrap_or_else(|| plain.schema.clone()),
            ..plain
        };
        options.check()?;
        Ok(StoreKind::Postgres(options))
    }

    #[cfg(not(feature = "postgres"))]
    fn postgres(&self, _: &str) -> Result<StoreKind, (&'static str, String)> {
        Err(("url", "this build has no PostgreSQL in it".to_owned()))
    }

    /// A key that a file has no use for is a mistake.
    fn says_nothing_of_a_server(&self) -> Result<(), (&'static str, String)> {
        let said = [
            ("password_file", self.password_file.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("certificate", self.certificate.is_some()),
            ("key", self.key.is_some()),
            ("plain_text", self.plain_text),
            ("schema", self.schema.is_some()),
        ];
        match said.iter().find(|(_, is)| *is) {
            None => Ok(()),
            Some((key, _)) => Err((key, "it belongs to url; path is a file".to_owned())),
        }
    }
}

/// What has finished is remembered for longer than any copy of it may live: until the end of a life, a day because parts are days,
/// and a day for clocks and for what is on its way.
const HISTORY_BEYOND_LIFE: Duration = Duration::from_secs(2 * 86_400);

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
    /// An attempt that takes longer is asked to return, and made again later. Beyond everything that SMTP's own time-outs allow for
    /// one message. Default 2 h.
    #[serde(with = "duration")]
    pub attempt_max: Duration,
    /// The largest message that `pombo submit` may bring. Default 50 MiB.
    #[serde(with = "size")]
    pub body_bytes_max: u64,
    /// Deliveries held per spool queue.
    pub prefetch: Prefetch,
    /// StartMessages outstanding in one session that has mail. Default 8, growing to 64 while all are used.
    pub reception_window: u32,
    /// StartMessages outstanding over all sessions. Default 1024.
    pub reception_max: u32,
    /// A message that was in process so many times when its spooler or its agent died is suspected to be the cause: it is tried
    /// alone, and is dead if they die again. Default 3; 0 is taken as 1.
    pub suspect_after: u32,
    /// How long accepted messages may be found nowhere before the ledger calls them missing. Default 60 s; at least the time in
    /// which the broker notices that a spooler has died (three heartbeats), or its leases are called missing.
    #[serde(with = "duration")]
    pub ledger_patience: Duration,
}

impl Default for Spooler {
    fn default() -> Self {
        Self {
            name: None,
            host: None,
            drain: Duration::from_secs(30),
            attempt_max: Duration::from_secs(2 * 3600),
            body_bytes_max: BODY_BYTES_MAX,
            prefetch: Prefetch::default(),
            reception_window: 8,
            reception_max: 1024,
            suspect_after: 3,
            ledger_patience: Duration::from_secs(60),
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
    /// What becomes of a message of which nobody will ever know whether it was sent. Default `retry`.
    #[serde(default)]
    pub in_doubt: InDoubt,
    /// False: TransportLogon says NO_CONNECT. The transport's sessions stand, and it does not reach out: nothing is sent, fetched,
    /// polled, flushed or validated. What is for it waits. Default true.
    #[serde(default = "yes")]
    pub connect: bool,
    /// False: NO_INBOUND stays, BEGIN_INBOUND is never said: nothing is taken from it. Default true.
    #[serde(default = "yes")]
    pub inbound: bool,
    /// False: NO_OUTBOUND stays, BEGIN_OUTBOUND is never said: what is for it waits. Default true.
    #[serde(default = "yes")]
    pub outbound: bool,
}

impl Transport {
    /// Whether this spooler takes what it receives.
    pub fn receives(&self) -> bool {
        self.connect && self.inbound
    }

    /// Whether this spooler gives it messages.
    pub fn sends(&self) -> bool {
        self.connect && self.outbound
    }
}

fn yes() -> bool {
    true
}

/// What becomes of a message that an agent had when it was lost, and that nobody else knows anything of; or that an agent has sent
/// without an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InDoubt {
    /// It is sent again: at least once.
    #[default]
    Retry,
    /// It waits for a person if it was at its final dot, and is sent again if it was not: at most once by itself. Each
    /// message costs two more commits.
    Hold,
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

impl Config {
    /// Whether doubt about a transport waits for a person.
    pub fn holds_doubt(&self, transport: &str) -> bool {
        let transport = self.transport(transport);
        transport.is_some_and(|it| it.in_doubt == InDoubt::Hold)
    }

    /// All of these.
    pub fn asks(&self) -> Asks {
        let held = self.transports.iter();
        let held = held.filter(|it| it.in_doubt == InDoubt::Hold);
        Asks::about(held.map(|it| it.name.as_str()))
    }

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
        if let Err((key, message)) = self.store.kind() {
            let key = format!("store.{key}");
            return Err((key.trim_end_matches('.').to_owned(), message));
        }
        if let Err(error) = self.blobs.place() {
            return Err((error.key.to_owned(), error.message));
        }
        let least = self.schedule.life.saturating_add(HISTORY_BEYOND_LIFE);
        if self.store.history < least {
            let least = humantime::format_duration(least);
            let message = format!("at least {least}: two days longer than schedule.life");
            return Err(("store.history".to_owned(), message));
        }
        if self.spooler.attempt_max < Duration::from_secs(1) {
            return Err(("spooler.attempt_max".to_owned(), "at least 1s".to_owned()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_that_ends_before_a_life_does_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spooler.toml");
        let load = |history: &str, schedule: &str| {
            let text = format!(
                "[store]\npath = \"s\"\n{history}\n[blobs]\npath = \"/b\"\n[[transport]]\nname = \"out\"\n{schedule}\n"
            );
            std::fs::write(&path, text).unwrap();
            Config::load(&path)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let life = "[schedule]\nlife = \"20days\"";
        let refused = load("history = \"6days\"", "").unwrap_err();
        for said in [":3:", "store.history", "7days"] {
            assert!(refused.contains(said), "{refused}");
        }
        assert_eq!(load("history = \"7days\"", ""), Ok(()));
        let refused = load("", life).unwrap_err();
        for said in [":1:", "store.history", "22days"] {
            assert!(refused.contains(said), "{refused}");
        }
        assert_eq!(load("history = \"22days\"", life), Ok(()));
    }
}
