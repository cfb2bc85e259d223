//! `agent.toml`: one file for one transport. `deploy/agent.sample.toml` has every key.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use pombo_proto::{
    message::BODY_BYTES_MAX,
    service::config::{Blobs, Broker, Error, Http, Log, Source, duration, size},
};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    host::registry::{self, Kind},
    provider::Transport,
};

/// The file, parsed. The transport itself is made from its own section by [`Config::transport`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Which transport this agent hosts.
    pub transport: TransportSection,
    /// How it hosts it.
    pub agent: AgentSection,
    /// RabbitMQ.
    pub broker: Broker,
    /// Large bodies.
    pub blobs: Blobs,
    /// `/healthz`, `/readyz`, `/metrics`.
    pub http: Http,
    /// Logs.
    pub log: Log,
    kinds: &'static [Kind],
    source: Source,
}

/// `[transport]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportSection {
    /// Its name in the spoolers' transport order. Agents of the same name share the work.
    pub name: String,
    /// What it is: the name of its section, too.
    pub kind: String,
}

/// `[agent]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSection {
    /// The name that this host gives itself in EHLO, Received and reports; not set: the system's host name.
    pub host: Option<String>,
    /// Threads on which the transport runs, 1 to 64.
    pub threads: usize,
    /// How long to wait at the end for what is under way, and for its being settled.
    #[serde(deserialize_with = "duration::deserialize")]
    pub drain_limit: Duration,
    /// Whether a transport is told "no" at its point of no return when no spooler has answered for 10 s.
    pub right_to_send: bool,
    /// Larger messages are not received; trace fields of our own do not count.
    #[serde(deserialize_with = "size::deserialize")]
    pub message_max: u64,
    /// What large bodies that are being sent may occupy in memory, together; further ones wait. One that is larger goes alone.
    #[serde(deserialize_with = "size::deserialize")]
    pub bodies_max: u64,
    /// How long a received message may wait for the broker's confirm.
    #[serde(deserialize_with = "duration::deserialize")]
    pub confirm_patience: Duration,
    /// The shortest interval between two notifications of new mail.
    #[serde(deserialize_with = "duration::deserialize")]
    pub notify_interval: Duration,
    /// Sessions with spoolers, at most.
    pub sessions_max: usize,
}

impl Default for AgentSection {
    fn default() -> Self {
        Self {
            host: None,
            threads: 2,
            drain_limit: Duration::from_secs(30),
            right_to_send: true,
            message_max: BODY_BYTES_MAX,
            bodies_max: 512 * 1024 * 1024,
            confirm_patience: Duration::from_secs(30),
            notify_interval: Duration::from_millis(10),
            sessions_max: 64,
        }
    }
}

/// Sections that are not a transport's.
const COMMON: [&str; 6] = ["transport", "agent", "broker", "blobs", "http", "log"];

impl Config {
    /// Reads and checks a file; the transport's section is checked by [`Self::transport`].
    ///
    /// # Errors
    /// With file, line, column and key.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::load_of(path, registry::KINDS)
    }

    /// The same for an agent with kinds of its own.
    ///
    /// # Errors
    /// With file, line, column and key.
    pub fn load_of(path: &Path, kinds: &'static [Kind]) -> Result<Self, Error> {
        Self::parse_of(Source::read(path)?, kinds)
    }

    /// The same from a text.
    ///
    /// # Errors
    /// With file, line, column and key.
    pub fn parse(source: Source) -> Result<Self, Error> {
        Self::parse_of(source, registry::KINDS)
    }

    fn parse_of(source: Source, kinds: &'static [Kind]) -> Result<Self, Error> {
        let sections: BTreeMap<String, IgnoredAny> = source.parse()?;
        for name in sections.keys() {
            if !COMMON.contains(&name.as_str()) && registry::kind(kinds, name).is_none() {
                let message = format!("no such section; there are {}", known(kinds));
                return Err(source.bad(name, message));
            }
        }
        let missing = |name: &str| source.bad(name, format!("the section [{name}] is missing"));
        let config = Self {
            transport: source
                .section("transport")?
                .ok_or_else(|| missing("transport"))?,
            agent: source.section("agent")?.unwrap_or_default(),
            broker: source.section("broker")?.unwrap_or_default(),
            blobs: source.section("blobs")?.ok_or_else(|| missing("blobs"))?,
            http: source.section("http")?.unwrap_or_default(),
            log: source.section("log")?.unwrap_or_default(),
            kinds,
            source,
        };
        config.check()?;
        Ok(config)
    }

    /// Makes the transport from its section. Touches nothing outside; that is what its logon is for.
    ///
    /// # Errors
    /// What is wrong with its section.
    pub fn transport(&self) -> Result<Arc<dyn Transport>, Error> {
        match registry::kind(self.kinds, &self.transport.kind) {
            Some(kind) => (kind.make)(&self.source),
            None => Err(self.no_such_kind()),
        }
    }

    /// An error about the value of a key.
    pub fn bad(&self, key: &str, message: impl std::fmt::Display) -> Error {
        self.source.bad(key, message)
    }

    fn no_such_kind(&self) -> Error {
        self.bad("transport.kind", format!("there are {}", names(self.kinds)))
    }

    fn check(&self) -> Result<(), Error> {
        let name = &self.transport.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let message = "1 to 64 letters, digits, '-', '_' or '.'";
            return Err(self.bad("transport.name", message));
        }
        if registry::kind(self.kinds, &self.transport.kind).is_none() {
            return Err(self.no_such_kind());
        }
        if !(1..=64).contains(&self.agent.threads) {
            return Err(self.bad("agent.threads", "1 to 64"));
        }
        if !(1..=1_000).contains(&self.agent.sessions_max) {
            return Err(self.bad("agent.sessions_max", "1 to 1000"));
        }
        if let Err(bad) = self.blobs.place() {
            return Err(self.bad(bad.key, &bad));
        }
        Ok(())
    }
}

fn names(kinds: &[Kind]) -> String {
    let names: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
    names.join(", ")
}

fn known(kinds: &[Kind]) -> String {
    format!("{}, {}", COMMON.join(", "), names(kinds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[transport]\nname = \"out\"\nkind = \"null\"\n[blobs]\npath = \"/tmp/b\"\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Source::new("agent.toml", text)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_file_is_enough() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.agent.drain_limit, Duration::from_secs(30));
        assert!(config.transport().is_ok());
    }

    #[test]
    fn errors_name_the_place() {
        for (add, expected) in [
            ("[smpt]\nx = 1\n", "agent.toml:6:1: smpt: no such section; "),
            (
                "[agent]\nthreads = 0\n",
                "agent.toml:7:11: agent.threads: 1 to 64",
            ),
            ("[agent]\nthread = 1\n", "agent.toml:7:1: agent"),
            (
                "[broker]\nheartbeat = 10\n",
                "agent.toml:7:13: broker.heartbeat: ",
            ),
        ] {
            let error = parse(&format!("{GOOD}{add}")).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let config = parse(&format!("{GOOD}[null]\ndelay = \"x\"\n")).unwrap();
        let error = config.transport().err().unwrap().to_string();
        assert!(error.starts_with("agent.toml:7:9: null.delay: "), "{error}");
        let config = parse(&format!("{GOOD}[null]\ncapacity = 0\n")).unwrap();
        let error = config.transport().err().unwrap().to_string();
        assert!(
            error.starts_with("agent.toml:6:1: null: the capacity"),
            "{error}"
        );
        let error = parse(&GOOD.replace("null", "smtq")).unwrap_err();
        assert!(
            error.starts_with("agent.toml:3:8: transport.kind: there are"),
            "{error}"
        );
    }

    #[test]
    fn the_sample_has_every_key_and_parses() {
        let text = include_str!("../../deploy/agent.sample.toml");
        parse(text).unwrap();
        let uncomment = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_key(key)) => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let all: Vec<_> = text.lines().map(uncomment).collect();
        let config = parse(&all.join("\n")).unwrap();
        assert!(config.broker.user.is_some() && config.agent.host.is_some());
        // With a bucket instead of the directory.
        let bucket = |line: &str| match line.strip_prefix("# ") {
            Some(rest)
                if rest
                    .split_once(" = ")
                    .is_some_and(|(key, _)| is_of_bucket(key)) =>
            {
                let secret = rest.replace("file = \"/etc/pombo/s3-key\"", "env = \"PATH\"");
                secret.replace("file = \"/etc/pombo/s3-secret\"", "env = \"PATH\"")
            }
            _ if line.starts_with("path = \"/var/lib/pombo/blobs\"") => String::new(),
            _ => line.to_owned(),
        };
        let all: Vec<_> = text.lines().map(bucket).collect();
        let config = parse(&all.join("\n")).unwrap();
        assert!(config.blobs.url.is_some() && config.blobs.access_key_id.is_some());
        assert!(config.blobs.endpoint.is_some() && config.blobs.region.is_some());
    }

    /// Keys that stand for a bucket, where the sample has a directory.
    fn is_of_bucket(key: &str) -> bool {
        [
            "url",
            "endpoint",
            "allow_http",
            "region",
            "access_key_id",
            "secret_access_key",
        ]
        .contains(&key)
    }

    fn is_key(text: &str) -> bool {
        // The password's file is not there.
        text != "password"
            && !is_of_bucket(text)
            && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    }
}
