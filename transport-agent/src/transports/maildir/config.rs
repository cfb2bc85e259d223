//! The `maildir` transport's section of the configuration. Unknown keys are refused.
//!
//! ```toml
//! addresses = ["SMTP:*@example.org"]
//! path = "/var/mail/{domain}/{local}"
//! create = false
//! separator = "+"
//!
//! [pick_up]
//! folder = "/var/spool/pombo/drop"
//! style = "drop"
//! mode = "notify"
//! ```

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use pombo_proto::{message::BODY_BYTES_MAX, service::config::duration};
use serde::Deserialize;

use super::address::TemplateError;

/// Settings of one `maildir` transport. At least one of `path` and `pick_up` must be there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address spaces that it delivers, as in `SMTP:*@example.org`. Required with `path`; empty without.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Where a recipient's Maildir is: an absolute path in which `{local}`, `{domain}` and `{address}` stand for the
    /// parts of the address. Missing: this transport does not deliver.
    #[serde(default)]
    pub path: Option<String>,
    /// Whether a Maildir that does not exist is made. If not, its recipient is unknown (5.1.1). Default false.
    #[serde(default)]
    pub create: bool,
    /// Sub-addressing: the local part counts up to this character only, as in `ann+lists`. Default: none.
    #[serde(default)]
    pub separator: Option<char>,
    /// Whether the local part is put in lower case before the path is made. Default true.
    #[serde(default = "yes")]
    pub fold_case: bool,
    /// Other names of mailboxes, address to address: `"postmaster@example.org" = "ann@example.org"`. Looked up with the
    /// whole address first, then without what follows the separator; not repeated. Default: empty.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// The line ends of delivered files. Default `keep`.
    #[serde(default)]
    pub line_ends: LineEnds,
    /// How many messages the spoolers may have outstanding here. 1..=10,000, default 200.
    #[serde(default = "capacity")]
    pub capacity: u32,
    /// How many messages are written at a time, each by a thread that waits for the disk. More of them share the
    /// file system's journal commits. 1..=256, default 16.
    #[serde(default = "concurrency")]
    pub concurrency: u32,
    /// For how long a mailbox remembers what was delivered to it, so that a repeat is no second copy even if the first
    /// was read or deleted. Must exceed the longest time for which an outcome can stay unrecorded. Default `7d`.
    #[serde(default = "remember", deserialize_with = "duration::deserialize")]
    pub remember: Duration,
    /// The folder from which messages are taken in. Default: none.
    #[serde(default)]
    pub pick_up: Option<PickUpConfig>,
}

/// The line ends of delivered files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineEnds {
    /// As submitted (CRLF): a delivered message equals the submitted one but for its trace.
    #[default]
    Keep,
    /// LF, as most programs that read Maildirs expect it.
    Lf,
}

/// A folder from which messages are taken in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PickUpConfig {
    /// The folder; for `maildir` the one that holds `new`. What is not fit to be sent is moved to `failed` in it.
    pub folder: PathBuf,
    /// What the folder holds. Default `drop`.
    #[serde(default)]
    pub style: Style,
    /// How new files become known. `notify` (inotify) needs a local file system. Default `notify`.
    #[serde(default)]
    pub mode: Mode,
    /// What happens to a file whose message was saved. Default `delete`.
    #[serde(default)]
    pub after: After,
    /// Who gets the messages. Default `headers`.
    #[serde(default)]
    pub recipients: Recipients,
    /// The reverse-path of all messages; empty is the null reverse-path. Default: from each message's header.
    #[serde(default)]
    pub sender: Option<String>,
    /// For how long a file in a drop folder must not have changed before it counts as complete, unless its writer was
    /// seen to close it or to rename it into place. Default `2s`.
    #[serde(default = "settle", deserialize_with = "duration::deserialize")]
    pub settle: Duration,
    /// Larger files are moved to `failed`. Bytes, default 50 MiB.
    #[serde(default = "size_max")]
    pub size_max: u64,
}

/// What a folder to pick up from holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// Files named `*.eml`. Names that start with a dot or end in `.tmp` or `.part` are ignored; writers should rename
    /// into place.
    #[default]
    Drop,
    /// A Maildir: whatever lies in `new`.
    Maildir,
}

/// How new files become known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The file system tells (inotify), and SpoolerNotify(NEWMAIL) passes it on.
    #[default]
    Notify,
    /// The spooler asks (SP_POLL).
    Poll,
}

/// What happens to a file whose message was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// It is deleted.
    #[default]
    Delete,
    /// It is moved: in a Maildir to `cur`, marked as seen; in a drop folder to `done`.
    Move,
}

/// Who gets the messages of a pick-up folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "RecipientsText")]
pub enum Recipients {
    /// Whoever `X-Pombo-To` names; without that field, To, Cc and Bcc. `X-Pombo-To`, `X-Pombo-From` and Bcc are removed
    /// from the message; nothing else is changed.
    #[default]
    Headers,
    /// Always these. The message is not changed.
    Fixed(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RecipientsText {
    Word(HeadersWord),
    Fixed(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum HeadersWord {
    Headers,
}

impl From<RecipientsText> for Recipients {
    fn from(text: RecipientsText) -> Self {
        match text {
            RecipientsText::Word(HeadersWord::Headers) => Self::Headers,
            RecipientsText::Fixed(addresses) => Self::Fixed(addresses),
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither direction is configured.
    #[error("neither `path` (delivery) nor `pick_up` is there")]
    Nothing,
    /// `path` without addresses.
    #[error("`path` needs `addresses`, as in [\"SMTP:*@example.org\"]")]
    NoAddresses,
    /// Addresses without a `path`.
    #[error("`addresses` needs `path`")]
    NoPath,
    /// `path` cannot be used.
    #[error("`path`: {0}")]
    Path(#[from] TemplateError),
    /// A number or a duration is out of its range.
    #[error("`{key}` must be {range}")]
    Range {
        /// Which.
        key: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// The pick-up folder is not an absolute path.
    #[error("`pick_up.folder` must be an absolute path")]
    Folder,
    /// A fixed sender or recipient, or an alias, is no address.
    #[error("`{key}`: {address:?} is no mail address")]
    Address {
        /// Which key.
        key: &'static str,
        /// What it says.
        address: String,
    },
}

impl Config {
    /// Checks what the types do not.
    pub(super) fn check(&self) -> Result<(), Error> {
        match (&self.path, self.addresses.is_empty()) {
            (Some(_), true) => return Err(Error::NoAddresses),
            (None, false) => return Err(Error::NoPath),
            (None, true) if self.pick_up.is_none() => return Err(Error::Nothing),
            _ => {}
        }
        let range = |good: bool, key, range| good.then_some(()).ok_or(Error::Range { key, range });
        range(
            (1..=10_000).contains(&self.capacity),
            "capacity",
            "1..=10000",
        )?;
        range(
            (1..=256).contains(&self.concurrency),
            "concurrency",
            "1..=256",
        )?;
        range(self.remember >= HOUR, "remember", "an hour or more")?;
        for address in self.aliases.iter().flat_map(|(from, to)| [from, to]) {
            known("aliases", address)?;
        }
        self.pick_up.as_ref().map_or(Ok(()), PickUpConfig::check)
    }
}

impl PickUpConfig {
    fn check(&self) -> Result<(), Error> {
        if !self.folder.is_absolute() {
            return Err(Error::Folder);
        }
        if self.size_max == 0 {
            return Err(Error::Range {
                key: "pick_up.size_max",
                range: "more than 0",
            });
        }
        if let Recipients::Fixed(addresses) = &self.recipients {
            if addresses.is_empty() {
                return Err(Error::Range {
                    key: "pick_up.recipients",
                    range: "\"headers\" or at least one address",
                });
            }
            for address in addresses {
                known("pick_up.recipients", address)?;
            }
        }
        match self.sender.as_deref() {
            None | Some("") => Ok(()),
            Some(sender) => known("pick_up.sender", sender),
        }
    }
}

fn known(key: &'static str, address: &str) -> Result<(), Error> {
    if super::address::is_mailbox(address) {
        return Ok(());
    }
    Err(Error::Address {
        key,
        address: address.to_owned(),
    })
}

const HOUR: Duration = Duration::from_secs(3600);

fn yes() -> bool {
    true
}

fn capacity() -> u32 {
    200
}

fn concurrency() -> u32 {
    16
}

fn remember() -> Duration {
    7 * 24 * HOUR
}

fn settle() -> Duration {
    Duration::from_secs(2)
}

fn size_max() -> u64 {
    BODY_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_short_configuration_gets_the_defaults() {
        let config = parse("addresses = ['SMTP:*@example.org']\npath = '/m/{local}'").unwrap();
        assert!(!config.create && config.fold_case && config.pick_up.is_none());
        assert_eq!(config.remember, Duration::from_secs(7 * 86_400));
        assert_eq!(config.line_ends, LineEnds::Keep);

        let config = parse("[pick_up]\nfolder = '/drop'").unwrap();
        let pick_up = config.pick_up.unwrap();
        assert_eq!(pick_up.recipients, Recipients::Headers);
        assert_eq!((pick_up.style, pick_up.mode), (Style::Drop, Mode::Notify));
        assert_eq!(pick_up.settle, Duration::from_secs(2));
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            "addresses = ['SMTP:*@example.org']\npath = '/m/{local}'\ncreate = true\nseparator = '+'\n\
             fold_case = false\nline_ends = 'lf'\ncapacity = 5\nconcurrency = 2\nremember = '2d'\n\
             [aliases]\n'postmaster@example.org' = 'ann@example.org'\n\
             [pick_up]\nfolder = '/drop'\nstyle = 'maildir'\nmode = 'poll'\nafter = 'move'\n\
             recipients = ['ann@example.org']\nsender = ''\nsettle = '500ms'\nsize_max = 1000",
        )
        .unwrap();
        let pick_up = config.pick_up.unwrap();
        assert_eq!(
            pick_up.recipients,
            Recipients::Fixed(vec!["ann@example.org".to_owned()])
        );
        assert_eq!((pick_up.mode, pick_up.after), (Mode::Poll, After::Move));
        assert_eq!(config.separator, Some('+'));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for text in [
            "",
            "addresses = ['SMTP:*@example.org']",
            "path = '/m/{local}'",
            "addresses = ['SMTP']\npath = '/m/{local}'\nsurprise = 1",
            "addresses = ['SMTP']\npath = '/m/{local}'\ncapacity = 0",
            "addresses = ['SMTP']\npath = '/m/{local}'\nremember = '1s'",
            "[pick_up]\nfolder = 'relative'",
            "[pick_up]\nfolder = '/drop'\nrecipients = 'somebody'",
            "[pick_up]\nfolder = '/drop'\nrecipients = []",
            "[pick_up]\nfolder = '/drop'\nrecipients = ['nobody']",
            "[pick_up]\nfolder = '/drop'\nsender = 'a b@example.org'",
            "[pick_up]\nfolder = '/drop'\nsettle = 'soon'",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
