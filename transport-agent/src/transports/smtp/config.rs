//! What the configuration of an `smtp` transport may say, and whether it makes sense.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use pombo_proto::{right::TCP_USER_TIMEOUT, service::config::duration};
use serde::Deserialize;

/// The configuration of one `smtp` transport. Every key has a default; unknown keys are refused.
///
/// ```toml
/// route = { smarthost = "mail.example.net:587" }
///
/// [domains]
/// "example.org" = "mx1.example.org:25, mx2.example.org:25"
/// "*.lan" = "[192.0.2.1]"
///
/// [tls]
/// mode = "required"
///
/// [auth]
/// username = "pombo"
/// password_file = "/etc/pombo/smarthost.password"
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where mail goes whose domain is not in `domains`: `"mx"` (default), or `{ smarthost = "host:port" }`. Several
    /// hosts, separated by commas, are tried in this order.
    pub route: Route,
    /// Where mail for some domains goes instead: `"host:port"` (several: by commas) or `"mx"`. Keys are a domain,
    /// `*.example.org` (its subdomains, not itself; the longest match wins) or `*`. Default: none.
    pub domains: BTreeMap<String, String>,
    /// The port where none is given: of hosts by MX, of address literals, and of hosts named without one.
    /// Default: 25, or 465 with `tls.mode = "implicit"`.
    pub port: Option<u16>,
    /// Which recipients this transport takes, as AddressTypes answers: `SMTP`, `SMTP:*@example.org`, ...
    /// Default: `["SMTP"]`.
    pub address_types: Vec<String>,
    /// Our own names and addresses, by which a mail loop is seen in MX records: hosts of that preference and
    /// above are not tried, and if none is left the message fails with 5.4.6. The HELO name always counts. Default: none.
    pub local_names: Vec<String>,
    /// Which addresses of a host are tried, in which order: `"ipv4-first"` (default), `"ipv6-first"`, `"ipv4-only"`,
    /// `"ipv6-only"`.
    pub addresses: AddressPreference,
    /// The source address of IPv4 connections. Default: the system's choice.
    pub source_ipv4: Option<Ipv4Addr>,
    /// The source address of IPv6 connections. Default: the system's choice.
    pub source_ipv6: Option<Ipv6Addr>,
    /// The name in EHLO and HELO. Default: the service's host name.
    pub helo: Option<String>,
    /// How names are looked up.
    pub dns: Dns,
    /// Encryption.
    pub tls: Tls,
    /// Authentication with the smart host. Default: none. Never used with other hosts.
    pub auth: Option<Auth>,
    /// How many connections, and for how long.
    pub connections: Connections,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// Whether commands are sent in groups where the server offers PIPELINING (RFC 2920). Default: true.
    pub pipelining: bool,
    /// At most so many recipients in one transaction; a server that takes fewer (452) is obeyed. Default: 100, which every
    /// server must take (RFC 5321 4.5.3.1.8).
    pub recipients_per_transaction: u32,
    /// Send eight-bit content to a server that does not offer 8BITMIME. Default: false, such a message fails with 5.6.3
    /// (RFC 6152 section 3: convert or return).
    pub send_8bit_anyway: bool,
    /// What happens to a CR or LF that stands alone in the content: `"keep"` (default), `"crlf"`, `"refuse"`.
    pub bare_newlines: BareNewlines,
    /// How many messages this transport wants to have at a time. More than it has connections, so that a connection
    /// need not wait for work. 1..=10,000. Default: 200.
    pub capacity: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            route: Route::Mx,
            domains: BTreeMap::new(),
            port: None,
            address_types: vec![pombo_proto::message::SMTP.to_owned()],
            local_names: Vec::new(),
            addresses: AddressPreference::default(),
            source_ipv4: None,
            source_ipv6: None,
            helo: None,
            dns: Dns::default(),
            tls: Tls::default(),
            auth: None,
            connections: Connections::default(),
            timeouts: Timeouts::default(),
            pipelining: true,
            recipients_per_transaction: 100,
            send_8bit_anyway: false,
            bare_newlines: BareNewlines::default(),
            capacity: 200,
        }
    }
}

/// Where mail goes by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// By the MX records of the recipient's domain.
    #[default]
    Mx,
    /// To this host, whatever the domain.
    Smarthost(String),
}

/// Which addresses of a host are tried, in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressPreference {
    /// IPv4, then IPv6.
    #[default]
    Ipv4First,
    /// IPv6, then IPv4.
    Ipv6First,
    /// IPv4 alone.
    Ipv4Only,
    /// IPv6 alone.
    Ipv6Only,
}

impl AddressPreference {
    /// Whether this address may be used at all.
    pub(super) fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Ipv4Only => address.is_ipv4(),
            Self::Ipv6Only => address.is_ipv6(),
            Self::Ipv4First | Self::Ipv6First => true,
        }
    }
}

/// What happens to a CR or LF that stands alone in the content. RFC 5321 2.3.8 forbids to send one, since receivers differ in
/// whether they end a line, which is how messages are smuggled into messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BareNewlines {
    /// The bytes go as they are. A dot behind a lone CR or LF is doubled like one behind CRLF, so that no receiver, however
    /// lax, sees the end of the data or a command in the content; one that knows only CRLF keeps that dot twice.
    #[default]
    Keep,
    /// Each becomes CRLF. All receivers then read the same, and a signature over the original no longer fits.
    Crlf,
    /// The message fails with 5.6.0.
    Refuse,
}

/// How names are looked up.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Name servers, as `address` or `address:port`. Default: those of the system (`/etc/resolv.conf`).
    pub nameservers: Vec<String>,
    /// How long one question may take. Default: 5s.
    #[serde(deserialize_with = "duration::deserialize")]
    pub timeout: Duration,
    /// How often a question is repeated. Default: 2.
    pub attempts: usize,
    /// How many answers are remembered, for as long as they say. Default: 8192.
    pub cache_size: u64,
    /// A "there is no such name" is remembered no longer than this. Default: 5m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub negative_ttl_max: Duration,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            cache_size: 8192,
            negative_ttl_max: Duration::from_secs(300),
        }
    }
}

/// Encryption.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// `"off"`, `"opportunistic"` (default), `"required"`, `"implicit"`.
    pub mode: TlsMode,
    /// Trusted certificates (PEM) instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The name that certificates must carry, instead of the host's. Default: none.
    pub server_name: Option<String>,
}

/// When connections are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Never.
    Off,
    /// STARTTLS if the server offers it, with whatever certificate; in the clear if that fails. Protects from those who
    /// only listen.
    #[default]
    Opportunistic,
    /// STARTTLS, with a certificate that is trusted and carries the host's name; otherwise nothing is sent.
    Required,
    /// TLS from the first byte, verified as with `required`.
    Implicit,
}

impl TlsMode {
    /// Whether a connection of this mode is always encrypted, to a verified server.
    pub(super) fn verifies(self) -> bool {
        matches!(self, Self::Required | Self::Implicit)
    }
}

/// Authentication with the smart host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The user.
    pub username: String,
    /// The file that holds the password; line ends at its end do not count. Read at start and on ValidateState.
    pub password_file: PathBuf,
    /// `"auto"` (default: SCRAM-SHA-256 if offered, else PLAIN, else LOGIN), `"scram-sha-256"`, `"plain"`, `"login"`.
    #[serde(default)]
    pub mechanism: Mechanism,
    /// Allow the password to go over a connection that is not both encrypted and verified. Default: false.
    #[serde(default)]
    pub allow_plaintext_auth: bool,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// SCRAM-SHA-256 if offered, else PLAIN, else LOGIN.
    #[default]
    Auto,
    /// RFC 7677: the password stays here, and the server has to prove that it knows it, too.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// RFC 4616.
    Plain,
    /// The older one, which some servers still want.
    Login,
}

/// How many connections, and for how long.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connections {
    /// At most so many at a time to one destination (a set of hosts). Default: 20.
    pub per_destination: usize,
    /// At most so many open in all. Default: 500.
    pub total: usize,
    /// One that was not used for this long is closed. Default: 30s; less than servers' patience, which is minutes.
    #[serde(deserialize_with = "duration::deserialize")]
    pub idle_timeout: Duration,
    /// Messages over one connection. Default: 10,000 to the smart host and to hosts of `domains`, 100 to hosts by MX, whose
    /// balance of load lives from new connections.
    pub uses_max: Option<u32>,
    /// How long a message waits for a connection when all are in use, before it is deferred. Default: 1m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub wait: Duration,
    /// At most so many addresses of a destination are tried for one message. Default: 10.
    pub attempts_max: usize,
    /// An address that could not be reached is tried after all others for this long. Default: 1m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub unreachable_memory: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            per_destination: 20,
            total: 500,
            idle_timeout: Duration::from_secs(30),
            uses_max: None,
            wait: Duration::from_secs(60),
            attempts_max: 10,
            unreachable_memory: Duration::from_secs(60),
        }
    }
}

/// How long to wait for what. The defaults are those of RFC 5321 4.5.3.2 where it names one.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a TCP connection. Default: 30s.
    #[serde(deserialize_with = "duration::deserialize")]
    pub connect: Duration,
    /// For the greeting. Default: 5m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub greeting: Duration,
    /// For the answers to EHLO, HELO, STARTTLS and RSET. Default: 5m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub hello: Duration,
    /// For the TLS handshake. Default: 1m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub tls: Duration,
    /// For each answer of an authentication. Default: 1m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub auth: Duration,
    /// For the answer to MAIL. Default: 5m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub mail: Duration,
    /// For the answer to RCPT. Default: 5m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub rcpt: Duration,
    /// For the answer to DATA. Default: 2m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub data_start: Duration,
    /// For each block of the content to be taken. Default: 3m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub data_block: Duration,
    /// For the answer to the final dot. Default: 10m: giving up sooner makes duplicates (RFC 5321 4.5.3.2.6).
    #[serde(deserialize_with = "duration::deserialize")]
    pub data_end: Duration,
    /// For the answer to the final dot once the message was cancelled. Default: 30s.
    #[serde(deserialize_with = "duration::deserialize")]
    pub after_cancel: Duration,
    /// For the answer to QUIT. Default: 2s.
    #[serde(deserialize_with = "duration::deserialize")]
    pub quit: Duration,
    /// TCP_USER_TIMEOUT: what the kernel has taken and the other side does not acknowledge in this time breaks the
    /// connection, so that nothing goes out long after its sender was given up. Default, and at most: 12s.
    #[serde(deserialize_with = "duration::deserialize")]
    pub tcp_user: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let (seconds, minutes) = (Duration::from_secs, |n: u64| Duration::from_secs(n * 60));
        Self {
            connect: seconds(30),
            greeting: minutes(5),
            hello: minutes(5),
            tls: minutes(1),
            auth: minutes(1),
            mail: minutes(5),
            rcpt: minutes(5),
            data_start: minutes(2),
            data_block: minutes(3),
            data_end: minutes(10),
            after_cancel: seconds(30),
            quit: seconds(2),
            tcp_user: TCP_USER_TIMEOUT,
        }
    }
}

/// A key whose value makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Error {
    /// Which key, in dotted form.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Error {
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

impl Config {
    /// The port where none is given.
    pub fn default_port(&self) -> u16 {
        self.port.unwrap_or(match self.tls.mode {
            TlsMode::Implicit => 465,
            TlsMode::Off | TlsMode::Opportunistic | TlsMode::Required => 25,
        })
    }

    /// Checks what the types cannot. Hosts and domains are checked where they are parsed.
    pub(super) fn check(&self) -> Result<(), Error> {
        let positive = |key: &str, value: usize| match value {
            0 => Err(Error::new(key, "must be at least 1")),
            _ => Ok(()),
        };
        positive(
            "connections.per_destination",
            self.connections.per_destination,
        )?;
        positive("connections.total", self.connections.total)?;
        positive("connections.attempts_max", self.connections.attempts_max)?;
        positive(
            "recipients_per_transaction",
            self.recipients_per_transaction as usize,
        )?;
        if self.connections.uses_max == Some(0) {
            return Err(Error::new("connections.uses_max", "must be at least 1"));
        }
        // A tokio semaphore holds no more; nobody means such a number.
        if self.connections.total.max(self.connections.per_destination) > 1_000_000 {
            return Err(Error::new("connections", "more than a million"));
        }
        if !(1..=10_000).contains(&self.capacity) {
            return Err(Error::new("capacity", "must be 1 to 10,000"));
        }
        if self.timeouts.tcp_user.is_zero() || self.timeouts.tcp_user > TCP_USER_TIMEOUT {
            // What arrives later may meet what somebody else has sent.
            return Err(Error::new("timeouts.tcp_user", "must be 1ms to 12s"));
        }
        if let Some(helo) = &self.helo
            && !is_helo_name(helo)
        {
            return Err(Error::new("helo", "not a host name or address literal"));
        }
        self.nameservers()?;
        self.check_auth()
    }

    fn check_auth(&self) -> Result<(), Error> {
        let Some(auth) = &self.auth else {
            return Ok(());
        };
        if !matches!(self.route, Route::Smarthost(_)) {
            return Err(Error::new(
                "auth",
                "needs `route = { smarthost = .. }`: the password is for no other host",
            ));
        }
        let says_it = auth.mechanism != Mechanism::ScramSha256;
        if says_it && !self.tls.mode.verifies() && !auth.allow_plaintext_auth {
            return Err(Error::new(
                "auth",
                "needs `tls.mode` \"required\" or \"implicit\", `auth.mechanism = \"scram-sha-256\"`, or `auth.allow_plaintext_auth = true`",
            ));
        }
        // NUL separates the parts of SASL PLAIN.
        if auth.username.contains('\0') {
            return Err(Error::new("auth.username", "contains NUL"));
        }
        Ok(())
    }

    /// The configured name servers.
    pub(super) fn nameservers(&self) -> Result<Vec<SocketAddr>, Error> {
        let parse = |text: &String| {
            let with_port = text.parse::<SocketAddr>().ok();
            let alone = || {
                let bare = text.trim_start_matches('[').trim_end_matches(']');
                bare.parse::<IpAddr>()
                    .ok()
                    .map(|ip| SocketAddr::new(ip, 53))
            };
            with_port
                .or_else(alone)
                .ok_or_else(|| Error::new("dns.nameservers", format!("{text:?} is not an address")))
        };
        self.dns.nameservers.iter().map(parse).collect()
    }
}

/// Whether a name may stand behind EHLO.
pub(super) fn is_helo_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_graphic())
}
