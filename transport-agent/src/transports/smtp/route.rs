//! From a recipient to the hosts that take its mail: configured hosts, an address literal, or MX (RFC 5321 5.1, RFC 7505).

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures_util::future::join_all;

use super::{
    config::{Config, Error, Route},
    dns::{self, Lookup, Mx, canonical},
    status::Failure,
};

/// More MX hosts than this are not looked at; nobody has them in earnest.
const MX_MAX: usize = 20;

/// What recipients have in common that go in one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Destination {
    /// Hosts from the configuration.
    Configured(Arc<HostSet>),
    /// The hosts of this domain by MX. Recipients of different domains are not mixed even if the hosts are the same: large
    /// providers refuse that.
    Domain(String),
    /// An address literal.
    Literal(IpAddr),
}

/// The hosts of a destination, in the order in which they are tried.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct HostSet {
    /// Names the set whatever its order: connections are shared by it.
    pub(super) key: Arc<str>,
    pub(super) hosts: Vec<Host>,
    pub(super) kind: Kind,
}

/// Where a set of hosts comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// The configured way for everything: its trouble is never the message's fault. The only one that gets the password.
    Smarthost,
    /// From the map of domains.
    Mapped,
    /// By MX.
    Mx,
    /// No MX: the domain itself is the host.
    Implicit,
    /// An address literal.
    Literal,
}

impl Kind {
    /// Whether the hosts were named by the configuration, which therefore is what a failed look-up speaks of.
    pub(super) fn is_configured(self) -> bool {
        matches!(self, Self::Smarthost | Self::Mapped)
    }
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Host {
    /// Its name, or its address as text.
    pub(super) name: String,
    /// If it was given as an address.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) preference: u16,
}

/// One address of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) host: Arc<str>,
    pub(super) address: SocketAddr,
}

/// The parsed routes of a configuration.
pub(super) struct Routes {
    fallback: Way,
    domains: HashMap<String, Way>,
    ours: Ours,
    port: u16,
}

#[derive(Clone)]
enum Way {
    Mx,
    Hosts(Arc<HostSet>),
}

/// Our own names and addresses.
#[derive(Default)]
struct Ours {
    names: HashSet<String>,
    addresses: HashSet<IpAddr>,
}

impl Routes {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let port = config.default_port();
        let fallback = match &config.route {
            Route::Mx => Way::Mx,
            Route::Smarthost(hosts) => {
                Way::Hosts(host_set(hosts, port, Kind::Smarthost, "route.smarthost")?)
            }
        };
        let mut domains = HashMap::new();
        for (pattern, target) in &config.domains {
            let key = format!("domains.{pattern:?}");
            let way = match target.trim() {
                "mx" => Way::Mx,
                hosts => Way::Hosts(host_set(hosts, port, Kind::Mapped, &key)?),
            };
            let bare = pattern.strip_prefix("*.").unwrap_or(pattern);
            if pattern != "*" && (bare.is_empty() || bare.contains('*')) {
                return Err(Error::new(key, "a domain, `*.domain` or `*`"));
            }
            let canonical = match pattern.strip_prefix("*.") {
                Some(parent) => format!("*.{}", canonical(parent)),
                None => canonical(pattern),
            };
            domains.insert(canonical, way);
        }
        let mut ours = Ours::default();
        for name in &config.local_names {
            match name.parse() {
                Ok(address) => ours.addresses.insert(address),
                Err(_) => ours.names.insert(canonical(name)),
            };
        }
        ours.names.extend(config.helo.as_deref().map(canonical));
        Ok(Self {
            fallback,
            domains,
            ours,
            port,
        })
    }

    /// The smart host, if that is where mail goes by default.
    pub(super) fn smarthost(&self) -> Option<&Arc<HostSet>> {
        match &self.fallback {
            Way::Hosts(hosts) => Some(hosts),
            Way::Mx => None,
        }
    }

    /// Where a recipient's mail goes. `domain` is what stands behind the last `@`, if there is one.
    pub(super) fn destination(&self, domain: Option<&str>) -> Result<Destination, Failure> {
        let bad = |text: String| Failure::permanent((1, 3), text);
        let Some(domain) = domain else {
            return match self.domains.get("*").unwrap_or(&self.fallback) {
                Way::Hosts(hosts) => Ok(Destination::Configured(Arc::clone(hosts))),
                Way::Mx => Err(bad("the address has no domain".to_owned())),
            };
        };
        let domain = canonical(domain);
        match self.way(&domain) {
            Way::Hosts(hosts) => Ok(Destination::Configured(Arc::clone(hosts))),
            Way::Mx if domain.starts_with('[') => literal(&domain)
                .map(Destination::Literal)
                .ok_or_else(|| bad(format!("{domain} is not an address literal known here"))),
            Way::Mx if domain.is_empty() => Err(bad("the address has no domain".to_owned())),
            Way::Mx => Ok(Destination::Domain(domain)),
        }
    }

    fn way(&self, domain: &str) -> &Way {
        if self.domains.is_empty() {
            return &self.fallback;
        }
        if let Some(way) = self.domains.get(domain) {
            return way;
        }
        let mut rest = domain;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(way) = self.domains.get(&format!("*.{parent}")) {
                return way;
            }
            rest = parent;
        }
        self.domains.get("*").unwrap_or(&self.fallback)
    }

    /// The hosts of a destination.
    pub(super) async fn hosts(
        &self,
        destination: &Destination,
        lookup: &dyn Lookup,
        helo: &str,
    ) -> Result<Arc<HostSet>, Failure> {
        match destination {
            Destination::Configured(hosts) => Ok(Arc::clone(hosts)),
            Destination::Literal(address) if self.ours.addresses.contains(address) => {
                Err(looped(&format!("[{address}]")))
            }
            Destination::Literal(address) => Ok(Arc::new(HostSet {
                key: format!("[{address}]:{}", self.port).into(),
                hosts: vec![Host {
                    name: address.to_string(),
                    address: Some(*address),
                    port: self.port,
                    preference: 0,
                }],
                kind: Kind::Literal,
            })),
            Destination::Domain(domain) => self.by_mx(domain, lookup, helo).await,
        }
    }

    async fn by_mx(
        &self,
        domain: &str,
        lookup: &dyn Lookup,
        helo: &str,
    ) -> Result<Arc<HostSet>, Failure> {
        let (mut records, kind) = match lookup.mx(domain).await {
            Ok(records) => (records, Kind::Mx),
            // RFC 5321 5.1: no MX is an implicit one to the domain itself.
            Err(dns::Error::NoRecords) => {
                let itself = Mx {
                    preference: 0,
                    host: domain.to_owned(),
                };
                (vec![itself], Kind::Implicit)
            }
            Err(error) => return Err(Failure::lookup(&error, domain, (1, 2))),
        };
        records.retain(|mx| !mx.host.is_empty());
        if records.is_empty() {
            return Err(Failure::permanent(
                (1, 10),
                format!("{domain} takes no mail (null MX)"),
            ));
        }
        // Equal preferences in random order (RFC 5321 5.1): shuffle, then a stable sort.
        fastrand::shuffle(&mut records);
        records.sort_by_key(|mx| mx.preference);
        let is_us =
            |mx: &Mx| self.ours.names.contains(&mx.host) || mx.host.eq_ignore_ascii_case(helo);
        if let Some(limit) = records.iter().find(|mx| is_us(mx)).map(|mx| mx.preference) {
            records.retain(|mx| mx.preference < limit);
            if records.is_empty() {
                return Err(looped(domain));
            }
        }
        records.truncate(MX_MAX);
        let host = |mx: Mx| Host {
            name: mx.host,
            address: None,
            port: self.port,
            preference: mx.preference,
        };
        let hosts: Vec<Host> = records.into_iter().map(host).collect();
        let mut names: Vec<String> = hosts
            .iter()
            .map(|host| format!("{} {}", host.preference, host.name))
            .collect();
        names.sort_unstable();
        Ok(Arc::new(HostSet {
            key: format!("mx {}", names.join(",")).into(),
            hosts,
            kind,
        }))
    }

    /// The addresses of a set of hosts, in the order in which they are tried.
    pub(super) async fn endpoints(
        &self,
        set: &HostSet,
        lookup: &dyn Lookup,
        config: &Config,
    ) -> Result<Vec<Endpoint>, Failure> {
        let addresses = set.hosts.iter().map(async |host| match host.address {
            Some(address) => Ok(vec![address]),
            None => lookup.addresses(&host.name, config.addresses).await,
        });
        let answers = join_all(addresses).await;
        let loops_at = self.loop_preference(set, &answers);
        let mut found = Vec::new();
        let mut failed: Option<Failure> = None;
        for (host, answer) in set.hosts.iter().zip(answers) {
            if loops_at.is_some_and(|limit| host.preference >= limit) {
                continue;
            }
            let name: Arc<str> = host.name.as_str().into();
            match answer {
                Ok(addresses) => found.extend(
                    addresses
                        .into_iter()
                        .filter(|address| config.addresses.allows(*address))
                        .map(|address| Endpoint {
                            host: Arc::clone(&name),
                            address: SocketAddr::new(address, host.port),
                        }),
                ),
                Err(error) => {
                    let failure = host_failure(&error, &host.name, set.kind);
                    // One that may pass counts more than one that will not.
                    if failed.as_ref().is_none_or(|failed| failed.permanent) {
                        failed = Some(failure);
                    }
                }
            }
        }
        match (found.is_empty(), failed, loops_at) {
            (false, _, _) => Ok(found),
            (true, Some(failure), _) => Err(failure),
            (true, None, Some(_)) => Err(looped(&set.key)),
            (true, None, None) => Err(Failure::temporary(
                (4, 1),
                true,
                format!("{}: no address of the kind that is in use here", set.key),
            )),
        }
    }

    /// The lowest preference at which one of the addresses is ours. Configured hosts are believed.
    fn loop_preference(
        &self,
        set: &HostSet,
        answers: &[Result<Vec<IpAddr>, dns::Error>],
    ) -> Option<u16> {
        if set.kind.is_configured() || self.ours.addresses.is_empty() {
            return None;
        }
        let is_us = |answer: &Result<Vec<IpAddr>, _>| {
            answer
                .iter()
                .flatten()
                .any(|address| self.ours.addresses.contains(address))
        };
        let loops = set
            .hosts
            .iter()
            .zip(answers)
            .filter(|(_, answer)| is_us(answer));
        loops.map(|(host, _)| host.preference).min()
    }
}

fn looped(what: &str) -> Failure {
    Failure::permanent((4, 6), format!("mail for {what} loops back to this system"))
}

/// A host without an address: the message's fault only if the message named it.
fn host_failure(error: &dns::Error, host: &str, kind: Kind) -> Failure {
    match kind {
        Kind::Smarthost | Kind::Mapped => match error {
            dns::Error::Temporary(_) => Failure::lookup(error, host, (4, 4)),
            dns::Error::NoSuchName | dns::Error::NoRecords => {
                Failure::temporary((4, 4), true, format!("{host}: {error}"))
            }
        },
        Kind::Implicit => Failure::lookup(error, host, (1, 2)),
        Kind::Mx | Kind::Literal => Failure::lookup(error, host, (4, 4)),
    }
}

/// `[192.0.2.1]`, `[IPv6:2001:db8::1]` (RFC 5321 4.1.3).
fn literal(domain: &str) -> Option<IpAddr> {
    let inner = domain.strip_prefix('[')?.strip_suffix(']')?;
    match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => inner[5..].parse().ok().map(IpAddr::V6),
        _ => inner.parse().ok().map(IpAddr::V4),
    }
}

/// `host`, `host:port`, `192.0.2.1:25`, `[2001:db8::1]:25`; several by commas.
fn host_set(text: &str, port: u16, kind: Kind, key: &str) -> Result<Arc<HostSet>, Error> {
    let mut hosts = Vec::new();
    for (place, item) in text.split(',').map(str::trim).enumerate() {
        let (name, port) = host_and_port(item, port)
            .ok_or_else(|| Error::new(key, format!("{item:?} is not `host:port`")))?;
        hosts.push(Host {
            address: name.parse().ok(),
            name,
            port,
            // In this order, unlike MX hosts of one preference.
            preference: u16::try_from(place).unwrap_or(u16::MAX),
        });
    }
    let names: Vec<String> = hosts
        .iter()
        .map(|host| format!("{}:{}", host.name, host.port))
        .collect();
    let prefix = if kind == Kind::Smarthost {
        "smarthost"
    } else {
        "hosts"
    };
    Ok(Arc::new(HostSet {
        key: format!("{prefix} {}", names.join(",")).into(),
        hosts,
        kind,
    }))
}

fn host_and_port(text: &str, default: u16) -> Option<(String, u16)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() > 0).then(|| (address.ip().to_string(), address.port()));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(text).parse::<IpAddr>() {
        return Some((address.to_string(), default));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, port.parse().ok().filter(|port| *port > 0)?),
        None => (text, default),
    };
    let is_name = !name.is_empty()
        && name.len() <= 255
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    is_name.then(|| (canonical(name), port))
}
