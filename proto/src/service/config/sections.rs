//! The sections that every service has.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;

use super::{Secret, duration, size};
use crate::{
    blob::{Place, S3},
    link::{Audience, Options, Tls},
    message::{INLINE_BYTES_MAX, LIFE_MAX},
    topology::Topology,
    verbs::VERSIONS,
};

/// `[broker]`: how to reach RabbitMQ.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Broker {
    /// `amqp://host:port/vhost` or `amqps://...`, tried in turn. The vhost `/` is written `%2f`.
    pub addresses: Vec<String>,
    /// The user, if the addresses do not name one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// How to log in: by that password, or by the certificate of `tls`.
    pub auth: BrokerAuth,
    /// What `amqps://` addresses are spoken to with.
    pub tls: BrokerTls,
    /// What the names of all queues and exchanges start with; the same for everybody who belongs together.
    pub prefix: String,
    /// How soon a dead connection is noticed. Whole seconds, 1 s to 10 min.
    #[serde(deserialize_with = "duration::deserialize")]
    pub heartbeat: Duration,
    /// Packets that are delivered and not yet handled: bounds what a burst can pile up in memory.
    pub inbox_prefetch: u16,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An address may have a password.
        let hosts = self.addresses.iter().map(|address| {
            let (_, authority) = address.split_once("://").unwrap_or(("", address));
            authority.rsplit('@').next().unwrap_or_default()
        });
        f.debug_struct("Broker")
            .field("hosts", &hosts.collect::<Vec<_>>())
            .field("prefix", &self.prefix)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            addresses: vec!["amqp://127.0.0.1:5672/%2f".to_owned()],
            user: None,
            password: None,
            auth: BrokerAuth::default(),
            tls: BrokerTls::default(),
            prefix: "pombo".to_owned(),
            heartbeat: Duration::from_secs(10),
            inbox_prefetch: 500,
        }
    }
}

/// How we prove to RabbitMQ who we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BrokerAuth {
    /// User and password.
    #[default]
    Password,
    /// The client certificate (SASL EXTERNAL; RabbitMQ's plugin rabbitmq_auth_mechanism_ssl).
    External,
}

/// `[broker.tls]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrokerTls {
    /// PEM file of the authorities that are believed, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of our certificate with its chain; for brokers that ask for one.
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// The name that the broker's certificate must carry, instead of the address's host.
    pub server_name: Option<String>,
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
        let tls = self.tls()?;
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
            tls,
            topology: Topology::new(self.prefix.clone()),
            audience,
            name: name.into(),
            heartbeat: heartbeat as u16,
            inbox_prefetch: self.inbox_prefetch,
            versions: VERSIONS,
        })
    }

    /// Reads the files, so that a wrong one stops the start; the link reads them again.
    fn tls(&self) -> Result<Tls, BrokerError> {
        let external = self.auth == BrokerAuth::External;
        let identity = match (&self.tls.certificate, &self.tls.key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => {
                let message = "certificate and key belong together";
                return Err(BrokerError::new("broker.tls", message));
            }
        };
        if external && identity.is_none() {
            let message = "\"external\" needs a certificate and a key in [broker.tls]";
            return Err(BrokerError::new("broker.auth", message));
        }
        let tls = Tls {
            ca_file: self.tls.ca_file.clone(),
            identity,
            server_name: self.tls.server_name.clone(),
            external,
        };
        // Somebody who has set this up does not mean to go without.
        let wanted = tls != Tls::default();
        if wanted
            && self
                .addresses
                .iter()
                .any(|one| !one.starts_with("amqps://"))
        {
            let message = "[broker.tls] is of use only if all addresses begin with amqps://";
            return Err(BrokerError::new("broker.addresses", message));
        }
        tls.check()
            .map_err(|error| BrokerError::new("broker.tls", error.to_string()))?;
        Ok(tls)
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
        let path = if path.is_empty() { "/%2f" } else { path };
        if self.auth == BrokerAuth::External {
            if user_info.is_some() || self.user.is_some() || self.password.is_some() {
                let message = "\"external\" takes the user from the certificate";
                return Err(BrokerError::new("broker.auth", message));
            }
            return Ok(SecretString::from(format!("{scheme}://{host}{path}")));
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

/// `[blobs]`: where large bodies lie. The same place for every process of an installation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blobs {
    /// A directory; made if it is not there. For processes of one host.
    pub path: Option<PathBuf>,
    /// Or a bucket: `s3://bucket/prefix`.
    pub url: Option<String>,
    /// The bucket's server, as in `https://s3.example.org`. Default: Amazon's.
    pub endpoint: Option<String>,
    /// The bucket's region. Default `us-east-1`.
    pub region: Option<String>,
    /// Who signs the requests. Default: nobody.
    pub access_key_id: Option<Secret>,
    /// With what.
    pub secret_access_key: Option<Secret>,
    /// Over plain HTTP to another host than this one.
    #[serde(default)]
    pub allow_http: bool,
    /// Bodies up to this size travel with the message. At most 1 MiB: it bounds what a spooler holds in memory.
    #[serde(default = "inline_max", deserialize_with = "size::deserialize")]
    pub inline_max: usize,
    /// A body that is older and that no unfinished message has is removed. Default 32 days; at least 31, which no message lives
    /// for.
    #[serde(default = "orphans_after", deserialize_with = "duration::deserialize")]
    pub orphans_after: Duration,
    /// Take less than 31 days, at least a second. For tests: a message that waits in the broker for longer than that, and has not
    /// been leased, loses its body.
    #[serde(default)]
    pub orphans_may_be_young: bool,
}

/// What is wrong with `[blobs]`, and at which key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BlobsError {
    /// As in `blobs.path`; for [`super::Source::bad`].
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
}

impl Blobs {
    /// Where that is.
    ///
    /// # Errors
    /// With the key and what is wrong with it.
    pub fn place(&self) -> Result<Place, BlobsError> {
        let bad = |key, message: &str| {
            let message = message.to_owned();
            Err(BlobsError { key, message })
        };
        if self.inline_max > INLINE_MAX {
            return bad("blobs.inline_max", "at most 1MiB");
        }
        if self.orphans_may_be_young {
            if self.orphans_after < Duration::from_secs(1) {
                return bad("blobs.orphans_after", "at least 1s");
            }
        } else if self.orphans_after < LIFE_MAX + Duration::from_secs(86_400) {
            return bad(
                "blobs.orphans_after",
                "at least 31 days: a message may live for 30",
            );
        }
        match (&self.path, &self.url) {
            (Some(path), None) if !path.as_os_str().is_empty() => self.directory(path),
            (None, Some(url)) => self.bucket(url),
            (Some(_), Some(_)) => bad("blobs.url", "either a path or a url"),
            _ => bad("blobs.path", "there is none, and no url"),
        }
    }

    fn directory(&self, path: &std::path::Path) -> Result<Place, BlobsError> {
        let of_buckets = [
            ("blobs.endpoint", self.endpoint.is_some()),
            ("blobs.region", self.region.is_some()),
            ("blobs.access_key_id", self.access_key_id.is_some()),
            ("blobs.secret_access_key", self.secret_access_key.is_some()),
            ("blobs.allow_http", self.allow_http),
        ];
        match of_buckets.into_iter().find(|(_, there)| *there) {
            None => Ok(Place::Directory(path.to_owned())),
            Some((key, _)) => Err(BlobsError {
                key,
                message: "this is for a bucket (url), and there is a path".to_owned(),
            }),
        }
    }

    fn bucket(&self, url: &str) -> Result<Place, BlobsError> {
        let bad = |key, message: &str| {
            let message = message.to_owned();
            Err(BlobsError { key, message })
        };
        let Some(rest) = url.strip_prefix("s3://") else {
            return bad("blobs.url", "as in s3://bucket/prefix");
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if bucket.is_empty() || !bucket.chars().all(plain) {
            return bad("blobs.url", "as in s3://bucket/prefix");
        }
        let mut allow_http = false;
        if let Some(endpoint) = &self.endpoint {
            let Some((scheme, host)) = endpoint.split_once("://") else {
                return bad("blobs.endpoint", "as in https://s3.example.org");
            };
            let host = host.split('/').next().unwrap_or_default();
            allow_http = match scheme {
                "https" => false,
                "http" if is_loopback(host) || self.allow_http => true,
                "http" => {
                    let message = "plain HTTP: https, or allow_http = true for a network that you trust with people's mail";
                    return bad("blobs.endpoint", message);
                }
                _ => return bad("blobs.endpoint", "as in https://s3.example.org"),
            };
        }
        let credentials = match (&self.access_key_id, &self.secret_access_key) {
            (Some(key), Some(secret)) => Some((key.expose().into(), secret.expose().into())),
            (None, None) => None,
            (Some(_), None) => return bad("blobs.secret_access_key", "there is none"),
            (None, Some(_)) => return bad("blobs.access_key_id", "there is none"),
        };
        Ok(Place::S3(S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            credentials,
            allow_http,
        }))
    }
}

/// What a spooler holds is prefetch times this, at worst.
const INLINE_MAX: usize = 1024 * 1024;

fn inline_max() -> usize {
    INLINE_BYTES_MAX
}

fn orphans_after() -> Duration {
    LIFE_MAX + Duration::from_secs(2 * 86_400)
}
