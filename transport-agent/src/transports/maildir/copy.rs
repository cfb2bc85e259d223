//! One recipient's copy on its way into a Maildir, and the memory that keeps it from arriving twice.
//!
//! ```text
//! stage    tmp/NAME.NONCE written and synced
//! commit   hard link of it to pombo/WEEK/NAME, then rename to new/NAME
//! sync     new/, which makes both last
//! settle   pombo/WEEK/NAME replaced by a link to an empty file, without a sync
//! ```
//!
//! NAME follows from the message id and the recipient's index, so a repeat finds `pombo/WEEK/NAME`, whatever the reader
//! did with the file meanwhile (moved it to `cur`, filed it elsewhere, deleted it). If it is empty, the copy was
//! delivered. If not, it is the same file as the copy: if that also lies in `tmp`, the attempt died between link and
//! rename, and the repeat finishes it by the same rename; if not, it was delivered. So each crash leaves a state that
//! tells what happened, and nothing grows with the mailbox.
//!
//! Measured on ext4, 10 KiB copies: hard link and settling cost less than the scatter of the two syncs of a delivery.
//! A symbolic link or a file of its own costs 60 %, since each sync then carries another new inode. Settling is there so
//! that what a reader deletes does not live on in the memory.
//!
//! The directory per week of submission is removed as a whole by [`super::tidy`].

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, DirEntryExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};
use pombo_proto::{
    ids::{MessageId, RecipientIndex},
    time::UnixMillis,
};

/// Other programs may clear `tmp` of files older than 36 h, as the Maildir convention allows. If the memory is the only
/// link that is left of a file, and that came about so long after it was written, then it no longer proves that the copy was delivered.
const CLEARED_AFTER_SECONDS: i64 = 30 * 3600;
/// How many files in `tmp` are looked at for a repeat.
const TMP_SCAN_MAX: usize = 100_000;
/// The empty file that all settled entries of a week are links to.
pub(super) const EMPTY: &str = ".delivered";
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

    /// The name of a copy by its staged file, if that is one of ours.
    pub(super) fn of_staged(file: &str) -> Option<Self> {
        let (base, nonce) = file.rsplit_once('.')?;
        let (seconds, rest) = base.split_once('.')?;
        let ours = rest.starts_with('P') && rest.ends_with(HOST) && is_nonce(nonce);
        let week = week(seconds.parse().ok()?);
        ours.then(|| Self {
            base: base.to_owned(),
            week,
        })
    }

    /// The name of a copy by the file that remembers it.
    pub(super) fn of_memory(week: &str, file: &str) -> Option<Self> {
        let week = week.parse().ok()?;
        let base = file.to_owned();
        (!file.starts_with('.')).then_some(Self { base, week })
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

/// For their owner alone, as Maildirs are.
fn make_all(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
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
    /// Makes the directory, if Maildirs are made. At logon alone: one that is gone later is a file system that is not mounted,
    /// and what was written in its place would be hidden by it.
    pub(super) fn prepare(&self) {
        if self.create
            && let Err(error) = make_all(&self.root)
        {
            tracing::warn!(path = %self.root.display(), %error, "cannot be made");
        }
    }

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

/// A copy that is not in `new` yet, as far as we know. Dropped, it leaves nothing.
#[derive(Debug)]
pub(super) struct Staged {
    mailbox: Mailbox,
    name: Name,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// A file in `tmp` that belongs to this value alone; open until it is synced.
    Written(PathBuf, Option<File>),
    /// What an earlier attempt has left in `tmp` to be renamed.
    Left(PathBuf),
    /// It has been delivered.
    Delivered,
}

impl Mailbox {
    /// Writes a copy to `tmp`, unless an earlier attempt has come as far as that. Not synced yet.
    pub(super) fn stage(
        &self,
        name: Name,
        place: &Place,
        text: [&[u8]; 2],
    ) -> Result<Staged, Trouble> {
        let mailbox = self.clone();
        if let Some(stage) = self.recall(&name)? {
            return Ok(Staged {
                mailbox,
                name,
                stage,
            });
        }
        let path = self.tmp(&name, &nonce());
        let file = match new_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.prepare(place)?;
                new_file(&path)
            }
            other => other,
        };
        let mut file = file.map_err(io("making a file in tmp"))?;
        let mut staged = Staged {
            mailbox,
            name,
            stage: Stage::Written(path, None),
        };
        for part in text {
            file.write_all(part).map_err(io("writing to tmp"))?;
        }
        if let Stage::Written(_, open) = &mut staged.stage {
            *open = Some(file);
        }
        Ok(staged)
    }

    /// Settles what an attempt that died has left unsettled.
    pub(super) fn settle_left(&self, name: &Name) -> Result<(), Trouble> {
        if let Some(Stage::Delivered) = self.recall(name)? {
            settle(&self.memory_of(name));
        }
        Ok(())
    }

    /// What an earlier attempt has come to, if one has come as far as the link.
    fn recall(&self, name: &Name) -> Result<Option<Stage>, Trouble> {
        let memory = self.memory_of(name);
        let found = match fs::symlink_metadata(&memory) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("looking for an earlier copy")(error)),
        };
        if found.size() == 0 {
            return Ok(Some(Stage::Delivered));
        }
        let left = self
            .in_tmp(name, found.ino())
            .map_err(io("looking for an earlier copy"))?;
        if let Some(left) = left {
            return Ok(Some(Stage::Left(left)));
        }
        let cleared = found.nlink() == 1 && found.ctime() - found.mtime() > CLEARED_AFTER_SECONDS;
        if cleared {
            fs::remove_file(memory).map_err(io("forgetting an earlier copy"))?;
            return Ok(None);
        }
        Ok(Some(Stage::Delivered))
    }

    /// The staged file of a copy that is this inode.
    fn in_tmp(&self, name: &Name, inode: u64) -> io::Result<Option<PathBuf>> {
        for (number, entry) in fs::read_dir(self.path.join("tmp"))?.enumerate() {
            if number >= TMP_SCAN_MAX {
                return Err(io::Error::other("too many files in tmp"));
            }
            let entry = entry?;
            let file = entry.file_name();
            let rest = file.to_str().and_then(|file| file.strip_prefix(&name.base));
            if rest.is_some_and(|rest| rest.starts_with('.')) && DirEntryExt::ino(&entry) == inode {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
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

    /// The directory of all that is remembered.
    pub(super) fn memory(&self) -> PathBuf {
        self.path.join(HOST)
    }

    pub(super) fn memory_of(&self, name: &Name) -> PathBuf {
        self.memory().join(name.week.to_string()).join(&name.base)
    }
}

impl Staged {
    /// Puts the file's content on the disk.
    pub(super) fn sync(&mut self) -> Result<(), Trouble> {
        match &mut self.stage {
            Stage::Written(_, file) => {
                let file = file.take();
                file.map_or(Ok(()), |file| {
                    file.sync_all().map_err(io("syncing a file in tmp"))
                })
            }
            Stage::Left(_) | Stage::Delivered => Ok(()),
        }
    }

    pub(super) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// The point of no return. [`Mailbox::sync`] and then [`settle`] of what this returns must follow.
    pub(super) fn commit(mut self) -> Result<(Arrived, PathBuf), Trouble> {
        let memory = self.mailbox.memory_of(&self.name);
        if let Stage::Written(path, _) = &self.stage {
            match link(path, &memory) {
                // From now on the file is not ours alone.
                Ok(()) => self.stage = Stage::Left(path.clone()),
                // Another attempt was faster. What it staged is as good as ours.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let other = self.mailbox.recall(&self.name)?;
                    let other = other.ok_or_else(|| io("remembering the copy")(error))?;
                    discard(path);
                    self.stage = other;
                }
                Err(error) => return Err(io("remembering the copy")(error)),
            }
        }
        let Stage::Left(path) = &self.stage else {
            return Ok((Arrived::Before, memory));
        };
        match fs::rename(path, self.mailbox.new_path(&self.name)) {
            Ok(()) => Ok((Arrived::Now, memory)),
            // By another attempt, which found our link just now.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && self.mailbox.path.join("new").is_dir() =>
            {
                Ok((Arrived::Before, memory))
            }
            Err(error) => Err(io("moving to new")(error)),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Stage::Written(path, _) = &self.stage {
            discard(path);
        }
    }
}

fn link(path: &Path, memory: &Path) -> io::Result<()> {
    match fs::hard_link(path, memory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            memory.parent().map_or(Ok(()), make_directory)?;
            fs::hard_link(path, memory)
        }
        other => other,
    }
}

/// Lets the memory of a delivered copy go on without its content. If it cannot, [`super::tidy`] will.
pub(super) fn settle(memory: &Path) {
    let settled = match fs::symlink_metadata(memory) {
        Ok(found) if found.size() == 0 => Ok(()),
        Ok(_) => replace_by_empty(memory),
        Err(error) => Err(error),
    };
    if let Err(error) = settled {
        tracing::debug!(memory = %memory.display(), %error, "a copy's memory keeps its content for now");
    }
}

fn replace_by_empty(memory: &Path) -> io::Result<()> {
    let empty = memory.with_file_name(EMPTY);
    let aside = memory.with_file_name(format!(".{}", nonce()));
    match fs::hard_link(&empty, &aside) {
        // The first of the week, or the file system allows no more links to one file (ext4: 65,000).
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::TooManyLinks
            ) =>
        {
            new_file(&aside)?;
            fs::rename(&aside, &empty)?;
            fs::hard_link(&empty, &aside)?;
        }
        other => other?,
    }
    fs::rename(&aside, memory)?;
    // A rename between two links of one file leaves both: another attempt settled it just now.
    match fs::remove_file(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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
