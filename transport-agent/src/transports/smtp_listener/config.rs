//! The listener's section of the configuration.

use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf, time::Duration};

use pombo_proto::{
    message::{BODY_BYTES_MAX, RECIPIENTS_MAX},
    service::config::duration,
};
use serde::Deserialize;

use super::{data, policy};

/// What the `smtp-listener` transport is told. Every key has a default; with the defaults it listens on the loopback
/// and takes no mail, because no domain is local and nobody may relay.
///
/// Memory is bounded by `memory_bytes_max` for messages, 32 KiB x `connections_max` for read buffers, and about 200
/// bytes x `repeat_entries_max`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen, `address:port` each; port 0 picks a free one. Default `["127.0.0.1:2525"]`.
    pub listen: Vec<String>,
    /// Where to listen with TLS from the first byte (port 465's way). Default none.
    pub listen_tls: Vec<String>,
    /// The name in the banner, EHLO and Received. Default: the service's host name.
    pub host: Option<String>,
    /// PEM file with the certificate chain. With `tls_key` it turns STARTTLS on. Default none.
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with the private key. Default none.
    pub tls_key: Option<PathBuf>,

    /// Domains whose mail is taken from anybody: `example.org` exactly, `*.example.org` everything below it, or an address
    /// literal `[192.0.2.1]`. Default none.
    pub local_domains: Vec<String>,
    /// Addresses or networks (`192.0.2.0/24`, `::1`) whose clients may send to any domain. The loopback is not among
    /// them unless it is named. Default none.
    pub relay_clients: Vec<String>,
    /// Per local domain the local parts that exist, compared without regard to case; a domain that is not named here or
    /// in `local_recipient_files` takes every recipient. Postmaster always exists. Default none.
    pub local_recipients: BTreeMap<String, Vec<String>>,
    /// The same from files: one local part or address per line, `#` starts a comment. Read at start and whenever the
    /// configuration is validated again. Default none.
    pub local_recipient_files: BTreeMap<String, PathBuf>,

    /// Larger messages get 552 5.3.4; in bytes, without our own trace field. Default 52,428,800 (50 MiB).
    pub message_bytes_max: u64,
    /// More recipients in one message get 452 4.5.3. 1..=10,000, default 1,000.
    pub recipients_max: usize,
    /// Longer command lines get 500 5.5.2; in bytes. RFC 5321 asks for 512, the extensions for about 1,200 more. 512..=16,384,
    /// default 2,048.
    pub command_bytes_max: usize,
    /// Longer lines in messages are refused; in bytes. RFC 5321 says 998, but longer ones are everywhere. Default: any length.
    pub line_bytes_max: Option<usize>,
    /// A message with more Received fields goes in a circle: 554 5.4.6. RFC 5321 6.3 asks for at least 100. Default 100.
    pub hops_max: usize,
    /// After more 5xx replies in one session: 421 4.7.0. Default 50.
    pub errors_max: u32,
    /// After so many messages in one session: 421 4.7.0. Default: any number.
    pub messages_max: Option<u32>,
    /// Connections at a time. Default 1,000.
    pub connections_max: usize,
    /// Connections at a time from one client (an IPv4 address or an IPv6 /64). Default 200.
    pub connections_per_client_max: usize,
    /// What the messages and recipients of all sessions together may occupy; beyond it 452 4.3.1. In bytes, default
    /// 268,435,456 (256 MiB).
    pub memory_bytes_max: u64,
    /// New connections of one client per minute; beyond it 421 4.7.0. Default: any number.
    pub connections_per_minute: Option<NonZeroU32>,
    /// Messages of one client per minute; beyond it 451 4.7.1. Default: any number.
    pub messages_per_minute: Option<NonZeroU32>,

    /// Recipients of one client per minute, over all its messages; beyond it 451 4.7.1. Default: any number.
    pub recipients_per_minute: Option<NonZeroU32>,
    /// 5xx replies to one client per minute, over all its sessions; beyond it 421 4.7.0. Default: any number.
    pub errors_per_minute: Option<NonZeroU32>,

    /// Those who may log in, and then send to any domain: one `name:verifier [address...]` per line, as `pombo passwd` writes
    /// it. Read at start and whenever the configuration is validated again. Default: nobody, and AUTH is not offered.
    pub users_file: Option<PathBuf>,
    /// Offer SCRAM-SHA-256 without TLS, too. Nobody learns a password from it, but whoever listens can try passwords on what
    /// he heard. PLAIN is for TLS alone. Default `false`.
    pub auth_without_tls: bool,
    /// Take mail only from those who have logged in (530 5.7.0): for a submission port. Default `false`.
    pub auth_required: bool,
    /// What those who have logged in may give as their sender. `any`; or `own`: the addresses that the users file gives
    /// them, otherwise 553 5.7.1. Default `any`.
    pub auth_senders: Senders,
    /// After so many wrong passwords in one session: 421 4.7.0. Default 3.
    pub auth_failures_max: u32,
    /// Wrong passwords of one client per minute; beyond it 454 4.7.0. Default 10.
    pub auth_failures_per_minute: Option<NonZeroU32>,
    /// How long the answer to a wrong password is kept back; doubles within a session, up to 30s. Default `1s`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub auth_failure_delay: Duration,

    /// How long a client may take for a command; then 421 4.4.2. Default `5m`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub command_timeout: Duration,
    /// How long a client may be silent within a message. Default `5m`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub data_timeout: Duration,
    /// A client that sends its message more slowly holds a permit that others wait for: 421 4.4.2. In bytes a second,
    /// averaged since DATA and looked at from the first minute on; 0 turns it off. Default 500.
    pub data_rate_min: u32,
    /// How long a message may take in all. Default `30m`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub transfer_timeout: Duration,
    /// How long a client at DATA waits for the spooler's permit; then 451 4.3.2. Default `10s`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub permit_timeout: Duration,
    /// How long a message under way may take to complete when the listener shuts down. That is after `agent.drain_limit`, and
    /// the service manager has to wait for both (systemd: `TimeoutStopSec`). At most `1d`, default `10s`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub shutdown_timeout: Duration,

    /// LF without CR in a message. `reject`: 550 5.5.2, as Postfix does. `keep`: passed on as it is; never the end of a
    /// message either way. Default `reject`.
    pub bare_lf: BareLineEnd,
    /// CR without LF in a message, as `bare_lf`. Default `reject`.
    pub bare_cr: BareLineEnd,

    /// How long a message is remembered whose 250 may not have arrived: sent again by the same client in this time, it gets the
    /// same id and no second message. `0s` turns it off. At most `1d`, default `10m`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub repeat_window: Duration,
    /// How long a message is remembered that the broker has never confirmed, and whose client was told to come later: it may be in
    /// the spool, so when the same client brings it again in this time, it is published under the same id. `0s` turns it off.
    /// At most `1d`, default `1h`: most mail servers try again within half of that.
    #[serde(deserialize_with = "duration::deserialize")]
    pub unclear_window: Duration,
    /// How many such messages are remembered; the one that would be forgotten first makes room. Default 10,000.
    pub repeat_entries_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        Self {
            listen: vec!["127.0.0.1:2525".to_owned()],
            listen_tls: Vec::new(),
            host: None,
            tls_certificate: None,
            tls_key: None,
            local_domains: Vec::new(),
            relay_clients: Vec::new(),
            local_recipients: BTreeMap::new(),
            local_recipient_files: BTreeMap::new(),
            message_bytes_max: BODY_BYTES_MAX,
            recipients_max: 1_000,
            command_bytes_max: 2_048,
            line_bytes_max: None,
            hops_max: 100,
            errors_max: 50,
            messages_max: None,
            connections_max: 1_000,
            connections_per_client_max: 200,
            memory_bytes_max: 256 * 1024 * 1024,
            connections_per_minute: None,
            messages_per_minute: None,
            recipients_per_minute: None,
            errors_per_minute: None,
            users_file: None,
            auth_without_tls: false,
            auth_required: false,
            auth_senders: Senders::Any,
            auth_failures_max: 3,
            auth_failures_per_minute: NonZeroU32::new(10),
            auth_failure_delay: Duration::from_secs(1),
            command_timeout: minutes(5),
            data_timeout: minutes(5),
            data_rate_min: 500,
            transfer_timeout: minutes(30),
            permit_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(10),
            bare_lf: BareLineEnd::Reject,
            bare_cr: BareLineEnd::Reject,
            repeat_window: minutes(10),
            unclear_window: minutes(60),
            repeat_entries_max: 10_000,
        }
    }
}

/// What to do with half a line end in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BareLineEnd {
    /// Refuse the message.
    Reject,
    /// Take it as any other byte.
    Keep,
}

/// As whom somebody who has logged in may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Senders {
    /// As anybody.
    Any,
    /// As the addresses of the users file.
    Own,
}

/// What is wrong with a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A number outside its range.
    #[error("`{key}` must be within {range}")]
    Range {
        /// Which key.
        key: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// Certificate and key come together.
    #[error("`tls_certificate` and `tls_key` belong together, and `listen_tls` needs them")]
    Tls,
    /// Nobody could log in.
    #[error("`auth_required` needs a `users_file`, and TLS or `auth_without_tls`")]
    Auth,
    /// Nothing to listen on.
    #[error("`listen` and `listen_tls` are both empty")]
    NoListener,
    /// Who may send what.
    #[error(transparent)]
    Policy(#[from] policy::Error),
}

impl Config {
    /// Whether it makes sense, as far as can be told without touching files and network.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn check(&self) -> Result<(), Error> {
        let range = |good: bool, key, range| good.then_some(()).ok_or(Error::Range { key, range });
        if self.listen.is_empty() && self.listen_tls.is_empty() {
            return Err(Error::NoListener);
        }
        let has_tls = self.tls_certificate.is_some();
        if has_tls != self.tls_key.is_some() || (!has_tls && !self.listen_tls.is_empty()) {
            return Err(Error::Tls);
        }
        let can_log_in = self.users_file.is_some() && (has_tls || self.auth_without_tls);
        if self.auth_required && !can_log_in {
            return Err(Error::Auth);
        }
        range(self.auth_failures_max >= 1, "auth_failures_max", "1..")?;
        let recipients = (1..=RECIPIENTS_MAX).contains(&self.recipients_max);
        range(recipients, "recipients_max", "1..=10000")?;
        let command = (512..=16_384).contains(&self.command_bytes_max);
        range(command, "command_bytes_max", "512..=16384")?;
        range(self.message_bytes_max >= 1, "message_bytes_max", "1..")?;
        range(self.connections_max >= 1, "connections_max", "1..")?;
        range(
            self.connections_per_client_max >= 1,
            "connections_per_client_max",
            "1..",
        )?;
        range(
            self.memory_bytes_max >= 65_536,
            "memory_bytes_max",
            "65536..",
        )?;
        for (key, value) in [
            ("command_timeout", self.command_timeout),
            ("data_timeout", self.data_timeout),
            ("transfer_timeout", self.transfer_timeout),
            ("permit_timeout", self.permit_timeout),
        ] {
            let sensible = !value.is_zero() && value <= Duration::from_secs(86_400);
            range(sensible, key, "more than 0s and at most 1d")?;
        }
        for (key, value) in [
            ("shutdown_timeout", self.shutdown_timeout),
            ("repeat_window", self.repeat_window),
            ("unclear_window", self.unclear_window),
        ] {
            let bounded = value <= Duration::from_secs(86_400);
            range(bounded, key, "at most 1d")?;
        }
        policy::Policy::check(self)?;
        Ok(())
    }

    pub(super) fn limits(&self) -> data::Limits {
        data::Limits {
            message_bytes: self.message_bytes_max,
            line_bytes: self.line_bytes_max,
            refuse_bare_lf: self.bare_lf == BareLineEnd::Reject,
            refuse_bare_cr: self.bare_cr == BareLineEnd::Reject,
        }
    }
}
