//! One recipient's copy on its way into a Maildir, and the memory that keeps it from arriving twice.
//!
//! ```text
//! stage    tmp/NAME.NONCE written and synced
//! commit   pombo/WEEK/NAME -> NONCE (a symbolic link: made whole or not at all), then rename to new/NAME
//! sync     new/
//! ```
//!
//! NAME follows from the message id and the recipient's index, so a repeat finds the link, whatever the reader did
//! with the file meanwhile (moved it to `cur`, filed it elsewhere, deleted it). The link names the staged file of the
//! attempt that made it: if that file is still in `tmp`, the attempt died between the two steps, and the repeat
//! finishes it by the same rename; if not, the copy has been delivered. So each crash leaves a state that tells what
//! happened, at the price of one `readlink` and one `symlink` per copy and nothing that grows with the mailbox. The
//! link reaches the journal before the rename does, and syncing `new/` commits both.
//!
//! The links lie in a directory per week of submission, which [`super::tidy`] removes as a whole.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::unistd::{AccessFlags, access};
use pombo_proto::{
    ids::{MessageId, RecipientIndex},
    time::UnixMillis,
};

/// Other programs may clear `tmp` of files older than 36 h, as the Maildir convention allows. A link that is older
/// than this no longer proves by the absence of its staged file that the copy was delivered.
const CLEARED_AFTER: Duration = Duration::from_secs(30 * 3600);
/// How many files in `cur` are looked at in that case.
const CUR_SCAN_MAX: usize = 200_000;
/// The end of the names of our files; where other programs put the host.
const HOST: &str = "pombo";

/// What a copy is called in a Maildir.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    base: String,
    week: u64,
}

impl Name {
    pub(super) fn new(id: MessageId, index: RecipientIndex, submitted_at: UnixMillis) -> Self {
        let seconds = submitted_at.0 / 1000;
        Self {
            base: format!("{seconds}.P{id}R{}.{HOST}", index.0),
            week: week(seconds),
        }
    }

    /// The name and the nonce of a staged file, if it is one of ours.
    pub(super) fn of_staged(file: &str) -> Option<(Self, &str)> {
        let (base, nonce) = file.rsplit_once('.')?;
        let (seconds, rest) = base.split_once('.')?;
        let ours = rest.starts_with('P') && rest.ends_with(HOST) && is_nonce(nonce);
        let week = week(seconds.parse().ok()?);
        ours.then(|| {
            (
                Self {
                    base: base.to_owned(),
                    week,
                },
                nonce,
            )
        })
    }
}

fn week(seconds: u64) -> u64 {
    seconds / (7 * 86_400)
}

fn nonce() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn is_nonce(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Where all Maildirs are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The directory above them.
    pub(super) root: PathBuf,
    /// Whether they are made.
    pub(super) create: bool,
}

impl Place {
    /// Why nothing can be delivered anywhere, if so.
    pub(super) fn ailment(&self) -> Option<String> {
        let needed = if self.create {
            AccessFlags::W_OK | AccessFlags::X_OK
        } else {
            AccessFlags::X_OK
        };
        let error = access(&self.root, needed).err()?;
        Some(format!("{}: {error}", self.root.display()))
    }
}

/// A Maildir.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mailbox {
    pub(super) path: PathBuf,
}

/// Why a copy is not in its Maildir.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("there is no such mailbox")]
    Unknown,
    /// Nothing can be said of any mailbox: most likely a file system is not mounted.
    #[error("{0}")]
    Root(String),
    #[error("{doing}: {error}")]
    Io {
        doing: &'static str,
        error: io::Error,
    },
}

fn io(doing: &'static str) -> impl Fn(io::Error) -> Trouble {
    move |error| Trouble::Io { doing, error }
}

/// What a commit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    Now,
    Before,
}

/// A copy that only needs a rename. Dropped, it leaves nothing.
#[derive(Debug)]
pub(super) struct Staged {
    mailbox: Mailbox,
    name: Name,
    nonce: String,
    /// Kept open until it is synced.
    file: Option<File>,
    /// Whether there is a file in `tmp` that belongs to this value alone.
    written: bool,
}

impl Mailbox {
    /// Writes a copy to `tmp`, unless an earlier attempt has come as far as that. Not synced yet.
    pub(super) fn stage(
        &self,
        name: Name,
        place: &Place,
        text: [&[u8]; 2],
    ) -> Result<Staged, Trouble> {
        let nonce = match self.recall(&name)? {
            Some(nonce) => return Ok(self.staged(name, nonce, None)),
            None => nonce(),
        };
        let path = self.tmp(&name, &nonce);
        let file = match new_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.prepare(place)?;
                new_file(&path)
            }
            other => other,
        };
        let mut file = file.map_err(io("making a file in tmp"))?;
        let mut staged = self.staged(name, nonce, None);
        staged.written = true;
        for part in text {
            file.write_all(part).map_err(io("writing to tmp"))?;
        }
        staged.file = Some(file);
        Ok(staged)
    }

    fn staged(&self, name: Name, nonce: String, file: Option<File>) -> Staged {
        Staged {
            mailbox: self.clone(),
            name,
            nonce,
            file,
            written: false,
        }
    }

    /// The nonce of the attempt that has marked this copy as its own.
    fn recall(&self, name: &Name) -> Result<Option<String>, Trouble> {
        let link = self.link(name);
        let target = match fs::read_link(&link) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("looking for an earlier copy")(error)),
        };
        let target = target.to_string_lossy();
        if is_nonce(&target) && !self.is_doubtful(name, &target)? {
            return Ok(Some(target.into_owned()));
        }
        fs::remove_file(&link).map_err(io("forgetting an earlier copy"))?;
        Ok(None)
    }

    /// Whether the earlier copy may have been cleared from `tmp` before it was delivered.
    fn is_doubtful(&self, name: &Name, nonce: &str) -> Result<bool, Trouble> {
        let made = fs::symlink_metadata(self.link(name)).and_then(|link| link.modified());
        let made = made.map_err(io("looking for an earlier copy"))?;
        let age = SystemTime::now().duration_since(made).unwrap_or_default();
        Ok(age > CLEARED_AFTER
            && !self.tmp(name, nonce).exists()
            && !self.new_path(name).exists()
            && !self.is_in_cur(name))
    }

    fn is_in_cur(&self, name: &Name) -> bool {
        let entries = fs::read_dir(self.path.join("cur"));
        let mut entries = entries.into_iter().flatten().flatten().take(CUR_SCAN_MAX);
        entries.any(|entry| {
            let file = entry.file_name();
            let rest = file.to_str().and_then(|file| file.strip_prefix(&name.base));
            rest.is_some_and(|flags| flags.is_empty() || flags.starts_with(':'))
        })
    }

    /// Makes what is missing of a Maildir, if there is one or may be one.
    fn prepare(&self, place: &Place) -> Result<(), Trouble> {
        if let Some(ailment) = place.ailment() {
            return Err(Trouble::Root(ailment));
        }
        match fs::metadata(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("looking for the mailbox")(error));
            }
            Err(_) if !place.create => return Err(Trouble::Unknown),
            _ => {}
        }
        for part in ["tmp", "new", "cur"] {
            make_directory(&self.path.join(part)).map_err(io("making the mailbox"))?;
        }
        let above = self.path.parent().unwrap_or(&self.path);
        for directory in [self.path.as_path(), above] {
            sync_directory(directory).map_err(io("making the mailbox"))?;
        }
        Ok(())
    }

    /// Makes the renames of earlier commits last.
    pub(super) fn sync(&self) -> Result<(), Trouble> {
        sync_directory(&self.path.join("new")).map_err(io("syncing new"))
    }

    pub(super) fn tmp(&self, name: &Name, nonce: &str) -> PathBuf {
        self.path.join("tmp").join(format!("{}.{nonce}", name.base))
    }

    fn new_path(&self, name: &Name) -> PathBuf {
        self.path.join("new").join(&name.base)
    }

    /// The directory of all links.
    pub(super) fn memory(&self) -> PathBuf {
        self.path.join(HOST)
    }

    pub(super) fn link(&self, name: &Name) -> PathBuf {
        self.memory().join(name.week.to_string()).join(&name.base)
    }
}

impl Staged {
    /// Puts the file's content on the disk.
    pub(super) fn sync(&mut self) -> Result<(), Trouble> {
        let file = self.file.take();
        file.map_or(Ok(()), |file| {
            file.sync_all().map_err(io("syncing a file in tmp"))
        })
    }

    pub(super) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// The point of no return. [`Mailbox::sync`] must follow.
    pub(super) fn commit(mut self) -> Result<Arrived, Trouble> {
        if self.written {
            match self.mark() {
                Ok(()) => {}
                // Another attempt was faster. What it staged is as good as ours.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let other = self.mailbox.recall(&self.name)?;
                    let other = other.ok_or_else(|| io("remembering the copy")(error))?;
                    let own = std::mem::replace(&mut self.nonce, other);
                    self.written = false;
                    discard(&self.mailbox.tmp(&self.name, &own));
                }
                Err(error) => return Err(io("remembering the copy")(error)),
            }
        }
        let from = self.mailbox.tmp(&self.name, &self.nonce);
        let renamed = fs::rename(from, self.mailbox.new_path(&self.name));
        self.written = false;
        match renamed {
            Ok(()) => Ok(Arrived::Now),
            // Delivered before, or by another attempt that found our link just now.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && self.mailbox.path.join("new").is_dir() =>
            {
                Ok(Arrived::Before)
            }
            Err(error) => Err(io("moving to new")(error)),
        }
    }

    fn mark(&self) -> io::Result<()> {
        let link = self.mailbox.link(&self.name);
        match symlink(&self.nonce, &link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                link.parent().map_or(Ok(()), make_directory)?;
                symlink(&self.nonce, &link)
            }
            other => other,
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.written {
            discard(&self.mailbox.tmp(&self.name, &self.nonce));
        }
    }
}

/// A file that stays is cleared by [`super::tidy`].
fn discard(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "a staged file stays in tmp");
    }
}

/// Only the owner reads mail; what the process's umask takes away stays away.
fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
