//! Who may send to whom: local domains, their recipients, and the clients that may relay. Without any configuration
//! nobody may send anything anywhere.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Display,
    net::IpAddr,
    path::Path as FilePath,
};

use super::{
    Config,
    address::{self, Mailbox, Path},
};

/// A list of recipients larger than this is not read; in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What is wrong with the policy's configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither `example.org`, nor `*.example.org`, nor an address literal.
    #[error("`{0}` is not a domain")]
    Domain(String),
    /// Neither an address nor a network.
    #[error("`{0}` is not an address or a network such as 192.0.2.0/24")]
    Network(String),
    /// A recipient that no address can have.
    #[error("`{name}` is not a recipient of {domain}")]
    Recipient {
        /// The domain whose list it is in.
        domain: String,
        /// The entry.
        name: String,
    },
    /// A list that cannot be read.
    #[error("recipients of {domain}: {reason}")]
    File {
        /// Whose list.
        domain: String,
        /// Why not.
        reason: String,
    },
}

/// The answer to one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Taken, as this address.
    Accepted(String),
    /// A local domain, but nobody there by this name: 550 5.1.1.
    Unknown,
    /// Not local, and this client may not relay: 550 5.7.1.
    RelayDenied,
}

/// Who may send to whom.
#[derive(Debug, Default)]
pub(super) struct Policy {
    exact: HashSet<String>,
    /// `.example.org` for `*.example.org`.
    below: Vec<String>,
    relays: Vec<Network>,
    /// Local parts in lower case, by domain.
    recipients: HashMap<String, HashSet<String>>,
    /// Where mail to `<Postmaster>` goes.
    postmaster: String,
}

impl Policy {
    /// Whether a configuration can be understood, without reading files.
    pub fn check(config: &Config) -> Result<(), Error> {
        Self::without_files(config, "localhost").map(|_| ())
    }

    /// Reads the configuration and its files. Blocks; call it off the runtime.
    pub fn read(config: &Config, host: &str) -> Result<Self, Error> {
        let mut policy = Self::without_files(config, host)?;
        for (domain, file) in &config.local_recipient_files {
            let text = read_bounded(file).map_err(|error| Error::File {
                domain: domain.clone(),
                reason: format!("{}: {error}", file.display()),
            })?;
            let names = text
                .lines()
                .map(|line| line.split('#').next().unwrap_or_default().trim())
                .filter(|line| !line.is_empty());
            policy.add_recipients(domain, names)?;
        }
        Ok(policy)
    }

    fn without_files(config: &Config, host: &str) -> Result<Self, Error> {
        let mut policy = Self::default();
        let mut postmaster_domain = None;
        for entry in &config.local_domains {
            match entry.strip_prefix("*.") {
                Some(parent) if !parent.starts_with('[') => {
                    policy.below.push(format!(".{}", domain(parent)?));
                }
                _ => {
                    let domain = domain(entry)?;
                    postmaster_domain.get_or_insert_with(|| domain.clone());
                    policy.exact.insert(domain);
                }
            }
        }
        let postmaster_domain = postmaster_domain.unwrap_or_else(|| host.to_ascii_lowercase());
        policy.postmaster = format!("postmaster@{postmaster_domain}");
        for entry in &config.relay_clients {
            policy.relays.push(Network::parse(entry)?);
        }
        let lists: &BTreeMap<_, _> = &config.local_recipients;
        for (domain, names) in lists {
            policy.add_recipients(domain, names.iter().map(String::as_str))?;
        }
        for listed in config.local_recipient_files.keys() {
            domain(listed)?;
        }
        Ok(policy)
    }

    fn add_recipients<'a>(
        &mut self,
        of: &str,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<(), Error> {
        let domain = domain(of)?;
        let list = self.recipients.entry(domain.clone()).or_default();
        for name in names {
            // Complete addresses are understood as well as local parts.
            let mailbox = address::mailbox(name)
                .or_else(|| address::mailbox(&format!("{name}@{domain}")))
                .filter(|mailbox| mailbox.domain() == domain)
                .ok_or_else(|| Error::Recipient {
                    domain: domain.clone(),
                    name: name.to_owned(),
                })?;
            list.insert(mailbox.local().to_lowercase());
        }
        Ok(())
    }

    /// Whether this client may send to any domain.
    pub fn may_relay(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.relays.iter().any(|network| network.contains(client))
    }

    /// What to do with a recipient from a client that may or may not relay.
    pub fn recipient(&self, to: &Path, may_relay: bool) -> Verdict {
        let mailbox = match to {
            Path::Mailbox(mailbox) => mailbox,
            Path::Postmaster => return Verdict::Accepted(self.postmaster.clone()),
            Path::Null => return Verdict::Unknown,
        };
        if self.is_local(mailbox.domain()) {
            if !self.exists(mailbox) {
                return Verdict::Unknown;
            }
        } else if !may_relay {
            return Verdict::RelayDenied;
        }
        Verdict::Accepted(mailbox.as_str().to_owned())
    }

    fn is_local(&self, domain: &str) -> bool {
        let is_below =
            |suffix: &String| domain.len() > suffix.len() && domain.ends_with(suffix.as_str());
        self.exact.contains(domain) || self.below.iter().any(is_below)
    }

    fn exists(&self, mailbox: &Mailbox) -> bool {
        let Some(list) = self.recipients.get(mailbox.domain()) else {
            return true;
        };
        let local = mailbox.local().to_lowercase();
        local == "postmaster" || list.contains(&local)
    }
}

fn domain(text: &str) -> Result<String, Error> {
    address::domain_or_literal(text).ok_or_else(|| Error::Domain(text.to_owned()))
}

pub(super) fn read_bounded(file: &FilePath) -> Result<String, Box<dyn Display>> {
    use std::io::Read;
    let file = std::fs::File::open(file).map_err(|error| Box::new(error) as Box<dyn Display>)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| Box::new(error) as Box<dyn Display>)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Box::new(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// An address with a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    bits: u128,
    mask: u128,
    is_v4: bool,
}

impl Network {
    fn parse(text: &str) -> Result<Self, Error> {
        let error = || Error::Network(text.to_owned());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let length: u32 = match length {
            Some(length) => length.parse().map_err(|_| error())?,
            None => width,
        };
        if length > width {
            return Err(error());
        }
        // Aligned to the upper end of 128 bits, so that one mask serves both families.
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        let bits = upper_bits(address) & mask;
        Ok(Self {
            bits,
            mask,
            is_v4: address.is_ipv4(),
        })
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_v4 && upper_bits(address) & self.mask == self.bits
    }
}

fn upper_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}
