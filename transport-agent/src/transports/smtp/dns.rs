//! Looking up names, behind a trait so that tests can answer by themselves.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
};

use super::config::{self, AddressPreference};

/// One MX record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mx {
    /// Lower is better.
    pub preference: u16,
    /// The host, in lower case without a final dot; empty for the root, which RFC 7505 makes "no mail here".
    pub host: String,
}

/// Why a look-up gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// NXDOMAIN, or a name that cannot exist.
    #[error("there is no such domain")]
    NoSuchName,
    /// The name exists, without records of this type.
    #[error("the domain has no such record")]
    NoRecords,
    /// No answer, SERVFAIL, REFUSED, or one that makes no sense: later perhaps.
    #[error("the name service failed: {0}")]
    Temporary(String),
}

/// What this transport asks of a name service.
#[async_trait]
pub trait Lookup: Send + Sync + 'static {
    /// The MX records of a domain.
    ///
    /// # Errors
    /// See [`Error`].
    async fn mx(&self, domain: &str) -> Result<Vec<Mx>, Error>;

    /// The addresses of a host, best first.
    ///
    /// # Errors
    /// See [`Error`].
    async fn addresses(
        &self,
        host: &str,
        preference: AddressPreference,
    ) -> Result<Vec<IpAddr>, Error>;

    /// Forgets what was remembered.
    fn forget(&self) {}
}

/// The real one.
pub(super) struct Resolver {
    resolver: TokioResolver,
}

impl Resolver {
    /// With the configured name servers, or the system's.
    pub(super) fn new(config: &config::Config) -> Result<Self, String> {
        let provider = TokioRuntimeProvider::default();
        let servers = config.nameservers().map_err(|error| error.to_string())?;
        let mut builder = if servers.is_empty() {
            TokioResolver::builder(provider).map_err(|error| error.to_string())?
        } else {
            let servers = servers.into_iter().map(name_server).collect();
            TokioResolver::builder_with_config(ResolverConfig::from_name_servers(servers), provider)
        };
        let options = builder.options_mut();
        options.timeout = config.dns.timeout;
        options.attempts = config.dns.attempts;
        options.cache_size = config.dns.cache_size;
        options.negative_max_ttl = Some(config.dns.negative_ttl_max);
        let resolver = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { resolver })
    }

    async fn of_type(&self, name: &Name, record: RecordType) -> Result<Vec<RData>, Error> {
        let answer = self.resolver.lookup(name.clone(), record).await;
        let answer = answer.map_err(|error| classify(&error))?;
        Ok(answer
            .answers()
            .iter()
            .map(|answer| answer.data.clone())
            .collect())
    }
}

#[async_trait]
impl Lookup for Resolver {
    async fn mx(&self, domain: &str) -> Result<Vec<Mx>, Error> {
        let records = self.of_type(&absolute(domain)?, RecordType::MX).await?;
        let found: Vec<Mx> = records
            .into_iter()
            .filter_map(|record| match record {
                RData::MX(mx) => Some(Mx {
                    preference: mx.preference,
                    host: host_name(&mx.exchange),
                }),
                _ => None,
            })
            .collect();
        if found.is_empty() {
            // A CNAME chain that ends in nothing.
            return Err(Error::NoRecords);
        }
        Ok(found)
    }

    async fn addresses(
        &self,
        host: &str,
        preference: AddressPreference,
    ) -> Result<Vec<IpAddr>, Error> {
        let name = absolute(host)?;
        let ipv4 = self.of_type(&name, RecordType::A);
        let ipv6 = self.of_type(&name, RecordType::AAAA);
        let answers = match preference {
            AddressPreference::Ipv4Only => vec![ipv4.await],
            AddressPreference::Ipv6Only => vec![ipv6.await],
            AddressPreference::Ipv4First => <[_; 2]>::from(tokio::join!(ipv4, ipv6)).into(),
            AddressPreference::Ipv6First => <[_; 2]>::from(tokio::join!(ipv6, ipv4)).into(),
        };
        merge(answers)
    }

    fn forget(&self) {
        self.resolver.clear_cache();
    }
}

/// Any address is an answer; else a failure that may pass counts more than "nothing there".
fn merge(answers: Vec<Result<Vec<RData>, Error>>) -> Result<Vec<IpAddr>, Error> {
    let mut found = Vec::new();
    let mut nothing = Error::NoRecords;
    let mut failed = None;
    for answer in answers {
        match answer {
            Ok(records) => found.extend(records.iter().filter_map(RData::ip_addr)),
            Err(error @ Error::Temporary(_)) => failed = Some(error),
            Err(Error::NoSuchName) => nothing = Error::NoSuchName,
            Err(Error::NoRecords) => {}
        }
    }
    if found.is_empty() {
        Err(failed.unwrap_or(nothing))
    } else {
        Ok(found)
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let at_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    NameServerConfig::new(
        address.ip(),
        true,
        vec![
            at_port(ConnectionConfig::udp()),
            at_port(ConnectionConfig::tcp()),
        ],
    )
}

/// As a name from the root, so that no search list applies. What is no name does not exist.
fn absolute(name: &str) -> Result<Name, Error> {
    let mut name = Name::from_utf8(name).map_err(|_| Error::NoSuchName)?;
    if name.num_labels() == 0 {
        return Err(Error::NoSuchName);
    }
    name.set_fqdn(true);
    Ok(name)
}

fn host_name(name: &Name) -> String {
    let mut host = name.to_lowercase().to_ascii();
    if host.ends_with('.') {
        host.pop();
    }
    host
}

/// A domain in the form by which domains are compared: lower case, A-labels, no final dot.
pub(super) fn canonical(domain: &str) -> String {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    if domain.is_ascii() {
        return domain.to_ascii_lowercase();
    }
    Name::from_utf8(domain).map_or_else(|_| domain.to_lowercase(), |name| host_name(&name))
}

fn classify(error: &NetError) -> Error {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Error::NoSuchName,
            ResponseCode::NoError => Error::NoRecords,
            _ => Error::Temporary(error.to_string()),
        },
        _ => Error::Temporary(error.to_string()),
    }
}

/// Stands in where there are no name servers to ask.
pub(super) struct Unavailable(pub(super) String);

#[async_trait]
impl Lookup for Unavailable {
    async fn mx(&self, _domain: &str) -> Result<Vec<Mx>, Error> {
        Err(Error::Temporary(self.0.clone()))
    }

    async fn addresses(
        &self,
        _host: &str,
        _preference: AddressPreference,
    ) -> Result<Vec<IpAddr>, Error> {
        Err(Error::Temporary(self.0.clone()))
    }
}

/// The configured name service; where there is none (an agent that only knows addresses needs none), one that says so.
pub(super) fn configured(config: &config::Config) -> Arc<dyn Lookup> {
    match Resolver::new(config) {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => {
            tracing::warn!(%error, "no name service");
            Arc::new(Unavailable(error))
        }
    }
}
