//! From a recipient's address to the path of a Maildir, without letting the address choose another place.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::config::Config;

/// Which Maildir belongs to an address.
#[derive(Debug)]
pub(super) struct Mailboxes {
    template: Template,
    separator: Option<char>,
    fold_case: bool,
    /// Keys and values as [`key`] makes them.
    aliases: HashMap<String, String>,
}

/// Why an address names no path. Ends as 5.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the address has no local part and domain")]
    Parts,
    #[error("the address has a part that cannot name a mailbox")]
    Unsafe,
    #[error("the address is too long to name a mailbox")]
    Long,
}

impl Mailboxes {
    pub(super) fn new(config: &Config, template: Template) -> Self {
        let aliases = config.aliases.iter();
        Self {
            template,
            separator: config.separator,
            fold_case: config.fold_case,
            aliases: aliases.map(|(from, to)| (key(from), to.clone())).collect(),
        }
    }

    /// The directory above all Maildirs. If it is not there, a file system is not mounted, and nobody is unknown.
    pub(super) fn root(&self) -> &Path {
        &self.template.root
    }

    /// The Maildir of an address.
    pub(super) fn locate(&self, address: &str) -> Result<PathBuf, Refused> {
        // Also of what comes after the separator: the whole address goes into Delivered-To.
        if address.contains(char::is_control) {
            return Err(Refused::Unsafe);
        }
        let (local, domain) = parts(address)?;
        let base = self.base(&local);
        let alias = self
            .alias(&local, &domain)
            .or_else(|| self.alias(base, &domain));
        match alias {
            Some(other) => {
                let (local, domain) = parts(other)?;
                self.path(self.base(&local), &domain)
            }
            None => self.path(base, &domain),
        }
    }

    fn alias(&self, local: &str, domain: &str) -> Option<&str> {
        if self.aliases.is_empty() {
            return None;
        }
        let key = key(&format!("{local}@{domain}"));
        self.aliases.get(&key).map(String::as_str)
    }

    /// The local part without what follows the separator. One that starts with it is a name of its own.
    fn base<'a>(&self, local: &'a str) -> &'a str {
        match self
            .separator
            .and_then(|separator| local.split_once(separator))
        {
            Some((base, _)) if !base.is_empty() => base,
            _ => local,
        }
    }

    fn path(&self, local: &str, domain: &str) -> Result<PathBuf, Refused> {
        let local = if self.fold_case {
            local.to_lowercase()
        } else {
            local.to_owned()
        };
        let domain = domain.to_lowercase();
        if !is_safe(&local) || !is_safe(&domain) {
            return Err(Refused::Unsafe);
        }
        let path = self.template.fill(&local, &domain);
        if path.iter().any(|part| part.len() > NAME_BYTES_MAX) {
            return Err(Refused::Long);
        }
        Ok(path)
    }
}

/// NAME_MAX of Linux file systems.
const NAME_BYTES_MAX: usize = 255;

fn key(address: &str) -> String {
    address.to_lowercase()
}

/// Local part (unquoted) and domain.
fn parts(address: &str) -> Result<(String, String), Refused> {
    let (local, domain) = address.rsplit_once('@').ok_or(Refused::Parts)?;
    let local = match local
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    {
        Some(quoted) => unescape(quoted),
        None => local.to_owned(),
    };
    if local.is_empty() || domain.is_empty() {
        return Err(Refused::Parts);
    }
    Ok((local, domain.to_owned()))
}

/// The content of an RFC 5321 quoted string.
fn unescape(quoted: &str) -> String {
    let mut plain = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(char) = chars.next() {
        // A lone backslash at the end stands for itself, and is refused as unsafe.
        let char = if char == '\\' {
            chars.next().unwrap_or(char)
        } else {
            char
        };
        plain.push(char);
    }
    plain
}

/// Whether a part of an address can be (part of) one file name: no separator, no control character, nothing that
/// starts with a dot (`.`, `..`, the hidden, and Maildir++'s subfolders), and no `..` at all.
fn is_safe(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && !part.contains("..")
        && !part.contains(|char: char| char.is_control() || matches!(char, '/' | '\\'))
}

/// Whether a text can stand in an envelope: one `@` with something on both sides, no space, bracket or control
/// character. Routing decides about the rest.
pub(super) fn is_mailbox(address: &str) -> bool {
    let bad = |char: char| char.is_control() || char.is_whitespace() || matches!(char, '<' | '>');
    address.len() <= ADDRESS_BYTES_MAX
        && !address.contains(bad)
        && address
            .rsplit_once('@')
            .is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty())
}

/// RFC 5321 4.5.3.1: 64 for the local part, 255 for the domain, one for the sign.
const ADDRESS_BYTES_MAX: usize = 320;

/// A path with places for the parts of an address.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pieces: Vec<Piece>,
    root: PathBuf,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Local,
    Domain,
    Address,
}

/// What is wrong with a path template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Not absolute.
    #[error("must be an absolute path")]
    Relative,
    /// Something in braces that is none of the three.
    #[error("`{{{0}}}` is none of {{local}}, {{domain}}, {{address}}")]
    Unknown(String),
    /// A brace without its partner.
    #[error("a brace is not closed")]
    Open,
}

impl std::str::FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        if !text.starts_with('/') {
            return Err(TemplateError::Relative);
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (word, after) = after.split_once('}').ok_or(TemplateError::Open)?;
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(match word {
                "local" => Piece::Local,
                "domain" => Piece::Domain,
                "address" => Piece::Address,
                other => return Err(TemplateError::Unknown(other.to_owned())),
            });
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        let fixed = text.split('{').next().unwrap_or(text);
        let fixed = fixed.trim_end_matches(|char| char == '/' && !text.contains('{'));
        let root = fixed.rsplit_once('/').map_or("", |(above, _)| above);
        Ok(Self {
            pieces,
            root: Path::new("/").join(root),
        })
    }
}

impl Template {
    fn fill(&self, local: &str, domain: &str) -> PathBuf {
        let mut path = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Local => path.push_str(local),
                Piece::Domain => path.push_str(domain),
                Piece::Address => path.extend([local, "@", domain]),
            }
        }
        PathBuf::from(path)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use super::*;

    fn mailboxes(settings: &str) -> Mailboxes {
        let text =
            format!("addresses = ['SMTP']\npath = '/var/mail/{{domain}}/{{local}}'\n{settings}");
        let config: Config = toml::from_str(&text).unwrap();
        let template = config.path.as_deref().unwrap().parse().unwrap();
        Mailboxes::new(&config, template)
    }

    #[test]
    fn an_address_names_its_maildir() {
        let plain = mailboxes("");
        let locate = |address| plain.locate(address).map(|path| path.display().to_string());
        assert_eq!(
            locate("Ann@Example.ORG").unwrap(),
            "/var/mail/example.org/ann"
        );
        assert_eq!(locate("\"a b\"@x.org").unwrap(), "/var/mail/x.org/a b");
        assert_eq!(locate("ann+x@x.org").unwrap(), "/var/mail/x.org/ann+x");
        assert_eq!(plain.root(), Path::new("/var/mail"));
    }

    #[test]
    fn sub_addresses_and_aliases_lead_to_the_base() {
        let mailboxes = mailboxes(
            "separator = '+'\n[aliases]\n'post@x.org' = 'Ann@x.org'\n'ann+red@x.org' = 'bob@y.org'",
        );
        let locate = |address| mailboxes.locate(address).unwrap().display().to_string();
        assert_eq!(locate("ann+lists+a@x.org"), "/var/mail/x.org/ann");
        assert_eq!(locate("+ann@x.org"), "/var/mail/x.org/+ann");
        assert_eq!(locate("POST+urgent@X.org"), "/var/mail/x.org/ann");
        assert_eq!(locate("ann+red@x.org"), "/var/mail/y.org/bob");
    }

    #[test]
    fn an_address_cannot_leave_its_place() {
        let mailboxes = mailboxes("");
        for (address, refused) in [
            ("../../etc@x.org", Refused::Unsafe),
            ("..@x.org", Refused::Unsafe),
            ("a/b@x.org", Refused::Unsafe),
            ("a\\b@x.org", Refused::Unsafe),
            ("\"a\\\\b\"@x.org", Refused::Unsafe),
            ("\"\\../x\"@x.org", Refused::Unsafe),
            ("a\0b@x.org", Refused::Unsafe),
            ("a\r\nb@x.org", Refused::Unsafe),
            (".ssh@x.org", Refused::Unsafe),
            ("a..b@x.org", Refused::Unsafe),
            ("ann@..", Refused::Unsafe),
            ("ann@a/b", Refused::Unsafe),
            ("ann@.x", Refused::Unsafe),
            ("\"\"@x.org", Refused::Parts),
            ("ann", Refused::Parts),
            ("@x.org", Refused::Parts),
            ("ann@", Refused::Parts),
        ] {
            assert_eq!(mailboxes.locate(address), Err(refused), "{address:?}");
        }
        let long = format!("{}@x.org", "a".repeat(256));
        assert_eq!(mailboxes.locate(&long), Err(Refused::Long));
    }

    #[test]
    fn random_addresses_stay_two_levels_below_the_root() {
        let mailboxes = mailboxes("separator = '+'");
        let alphabet: Vec<char> = "aZ9./\\@+\"~-_ \0\r\n\u{7f}\u{85}ä{}:%\u{2024}"
            .chars()
            .collect();
        let mut random = fastrand::Rng::with_seed(11);
        let mut accepted = 0;
        for _ in 0..100_000 {
            let length = random.usize(1..12);
            let mut address: String = (0..length)
                .map(|_| alphabet[random.usize(..alphabet.len())])
                .collect();
            if random.bool() {
                address.push_str("@x.org");
            }
            let Ok(path) = mailboxes.locate(&address) else {
                continue;
            };
            accepted += 1;
            assert!(!address.contains(char::is_control), "{address:?}");
            let below = path.strip_prefix("/var/mail").unwrap();
            let names = below
                .components()
                .filter(|part| matches!(part, Component::Normal(_)));
            assert_eq!(
                (names.count(), below.components().count()),
                (2, 2),
                "{address:?}"
            );
            assert!(
                !path.to_string_lossy().contains(char::is_control),
                "{address:?}"
            );
            assert!(
                !path
                    .iter()
                    .any(|part| part.to_string_lossy().starts_with('.')),
                "{address:?}"
            );
        }
        assert!(accepted > 10_000, "{accepted}");
    }

    #[test]
    fn templates_are_checked_and_know_their_root() {
        let root = |text: &str| text.parse::<Template>().map(|template| template.root);
        assert_eq!(root("/m/{domain}/x-{local}").unwrap(), Path::new("/m"));
        assert_eq!(root("/m/box-{address}").unwrap(), Path::new("/m"));
        assert_eq!(root("/m/all").unwrap(), Path::new("/m"));
        assert_eq!(root("/m/all/").unwrap(), Path::new("/m"));
        assert_eq!(root("/{local}").unwrap(), Path::new("/"));
        assert_eq!(root("m/{local}"), Err(TemplateError::Relative));
        assert_eq!(
            root("/m/{user}"),
            Err(TemplateError::Unknown("user".to_owned()))
        );
        assert_eq!(root("/m/{local"), Err(TemplateError::Open));
    }
}
