//! What becomes of a file that has been dealt with: deleted, moved on, or put aside as failed.
//!
//! Names are not identities: between our reading and now, a writer may have put another file in this one's place. So a
//! file is first renamed, which takes whatever is there, and then looked at; a stranger is put back.
//!
//! Nor are links followed: who may write into the folder is not who we are, and may put one wherever we are about to write.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use super::{
    config::{After, Style},
    copy::sync_directory,
    shelf::Stamp,
};

/// Begins the names of files that are about to be deleted. Readers ignore names with a dot.
const ASIDE: &[u8] = b".pombo-gone-";
/// The random part of such a name and the dash after it.
const NONCE_BYTES: usize = 17;
/// With the prefix they must fit into 255 bytes.
const NAME_BYTES_MAX: usize = 220;
/// How many files of one name `failed` and `done` can hold.
const SAME_NAME_MAX: u32 = 10_000;

/// The directories of a pick-up folder.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) style: Style,
    pub(super) after: After,
    /// Where messages come from.
    pub(super) source: PathBuf,
    /// Where saved ones go.
    pub(super) done: PathBuf,
    /// Where unfit ones go.
    pub(super) failed: PathBuf,
}

impl Places {
    pub(super) fn new(folder: &Path, style: Style, after: After) -> Self {
        let (source, done) = match style {
            Style::Drop => (folder.to_owned(), folder.join("done")),
            Style::Maildir => (folder.join("new"), folder.join("cur")),
        };
        Self {
            style,
            after,
            source,
            done,
            failed: folder.join("failed"),
        }
    }

    /// Makes sure that files can be moved where they may have to go. The folder itself is not made: if it is missing,
    /// its file system may be.
    ///
    /// Those that are only ours, `failed` and a drop folder's `done`, have to be: not links, and not somebody else's, who could
    /// have us write elsewhere. (A Maildir's `cur` belongs to who reads it.)
    pub(super) fn prepare(&self) -> io::Result<()> {
        let folder = self.failed.parent().unwrap_or(&self.failed);
        fs::metadata(folder)?;
        for needed in [&self.source, &self.done, &self.failed] {
            let unused = needed == &self.done && self.after == After::Delete;
            if !unused {
                fs::create_dir_all(needed)?;
                self.is_safe(needed)?;
                probe(needed)?;
            }
        }
        Ok(())
    }

    /// See [`Self::prepare`]. Looked at again before each use: it may have been replaced meanwhile.
    fn is_safe(&self, directory: &Path) -> io::Result<()> {
        let ours =
            directory == self.failed || (directory == self.done && self.style == Style::Drop);
        if ours {
            is_owned_by(directory, nix::unistd::geteuid().as_raw())
        } else {
            Ok(())
        }
    }

    /// After the message was saved. Fine if the file is gone, or another one by now.
    pub(super) fn retire(&self, name: &OsStr, stamp: Stamp) -> io::Result<()> {
        let path = self.source.join(name);
        if !is_still(&path, stamp)? {
            return Ok(());
        }
        match self.after {
            After::Delete if name.len() > NAME_BYTES_MAX => fs::remove_file(path),
            After::Delete => {
                let aside = self.source.join(aside(name));
                self.take_away(&path, &aside, stamp)?;
                gone_is_fine(fs::remove_file(aside))
            }
            After::Move => {
                let mut target = name.to_owned();
                if self.style == Style::Maildir && !name.as_bytes().contains(&b':') {
                    target.push(":2,S");
                }
                self.is_safe(&self.done)?;
                let target = free_name(&self.done, &target)?;
                self.take_away(&path, &target, stamp)
            }
        }
    }

    /// A file that is no fit message goes to `failed`, with the reason beside it.
    pub(super) fn fail(&self, name: &OsStr, stamp: Stamp, reason: &str) -> io::Result<()> {
        let path = self.source.join(name);
        if !is_still(&path, stamp)? {
            return Ok(());
        }
        self.is_safe(&self.failed)?;
        let target = free_name(&self.failed, name)?;
        let mut beside = target.clone().into_os_string();
        beside.push(".reason");
        write_anew(Path::new(&beside), format!("{reason}\n").as_bytes())?;
        self.take_away(&path, &target, stamp)?;
        sync_directory(&self.failed)
    }

    /// Renames a file and makes sure that it was the right one.
    fn take_away(&self, path: &Path, target: &Path, stamp: Stamp) -> io::Result<()> {
        gone_is_fine(fs::rename(path, target))?;
        match is_still(target, stamp) {
            Ok(false) if target.exists() => put_back(target, path),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// After a crash: what had been renamed to be deleted goes back, is read again, and gives the same id again.
    pub(super) fn recover(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.source)? {
            let aside = entry?.file_name();
            let Some(rest) = aside.as_bytes().strip_prefix(ASIDE) else {
                continue;
            };
            if let Some(name) = rest.get(NONCE_BYTES..).filter(|name| !name.is_empty()) {
                let name = OsString::from_vec(name.to_vec());
                tracing::info!(file = ?name, "a file that was about to be deleted is put back");
                put_back(&self.source.join(&aside), &self.source.join(name))?;
            }
        }
        Ok(())
    }
}

fn aside(name: &OsStr) -> OsString {
    let mut aside = OsString::from_vec(ASIDE.to_vec());
    aside.push(format!("{:016x}-", fastrand::u64(..)));
    aside.push(name);
    aside
}

/// Without overwriting what has this name by now.
fn put_back(from: &Path, path: &Path) -> io::Result<()> {
    let linked = match fs::hard_link(from, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut other = OsString::from(format!("{:08x}-", fastrand::u32(..)));
            other.push(path.file_name().unwrap_or_default());
            fs::hard_link(from, path.with_file_name(other))
        }
        linked => linked,
    };
    gone_is_fine(linked)?;
    gone_is_fine(fs::remove_file(from))
}

fn is_still(path: &Path, stamp: Stamp) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Stamp::of(&found) == stamp),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A path in `directory` that nothing has yet.
fn free_name(directory: &Path, name: &OsStr) -> io::Result<PathBuf> {
    let plain = directory.join(name);
    if fs::symlink_metadata(&plain).is_err() {
        return Ok(plain);
    }
    for number in 1..SAME_NAME_MAX {
        let mut numbered = OsString::from(format!("{number}-"));
        numbered.push(name);
        let path = directory.join(numbered);
        if fs::symlink_metadata(&path).is_err() {
            return Ok(path);
        }
    }
    Err(io::Error::other(format!(
        "{} is full of files of one name",
        directory.display()
    )))
}

fn is_owned_by(directory: &Path, user: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(directory)?;
    if found.is_dir() && found.uid() == user {
        return Ok(());
    }
    let text = format!(
        "{} has to be a directory (no link) that belongs to this service's user, {user}",
        directory.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Writes a file that was not there before. What has its name (a link, or left from before a crash) loses that name and is
/// not touched otherwise; if it comes back at once, this fails.
fn write_anew(path: &Path, content: &[u8]) -> io::Result<()> {
    gone_is_fine(fs::remove_file(path))?;
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)
}

/// Whether files can be made here; `access` would say yes to root on any file system.
fn probe(directory: &Path) -> io::Result<()> {
    let path = directory.join(format!(".pombo-probe-{:016x}", fastrand::u64(..)));
    fs::File::options()
        .write(true)
        .create_new(true)
        .open(&path)?;
    gone_is_fine(fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(style: Style, after: After) -> (tempfile::TempDir, Places) {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::new(directory.path(), style, after);
        places.prepare().unwrap();
        (directory, places)
    }

    fn put(places: &Places, name: &str, text: &str) -> Stamp {
        let path = places.source.join(name);
        fs::write(&path, text).unwrap();
        Stamp::of(&fs::metadata(path).unwrap())
    }

    #[test]
    fn a_file_that_replaced_the_one_read_stays() {
        for after in [After::Delete, After::Move] {
            let (_directory, places) = folder(Style::Drop, after);
            let stamp = put(&places, "a.eml", "read");
            fs::rename(places.source.join("a.eml"), places.source.join("old")).unwrap();
            put(&places, "a.eml", "replacement");
            places.retire(OsStr::new("a.eml"), stamp).unwrap();
            places.fail(OsStr::new("a.eml"), stamp, "why").unwrap();
            // The same in the moment between the look and the rename.
            places
                .take_away(
                    &places.source.join("a.eml"),
                    &places.source.join(".x"),
                    stamp,
                )
                .unwrap();
            assert_eq!(
                fs::read(places.source.join("a.eml")).unwrap(),
                b"replacement"
            );
            assert!(!places.source.join(".x").exists());
        }
    }

    #[test]
    fn a_crash_before_the_deletion_puts_the_file_back_with_its_stamp() {
        let (_directory, places) = folder(Style::Drop, After::Delete);
        let stamp = put(&places, "a.eml", "x");
        fs::rename(
            places.source.join("a.eml"),
            places.source.join(aside(OsStr::new("a.eml"))),
        )
        .unwrap();
        places.recover().unwrap();
        let found = fs::metadata(places.source.join("a.eml")).unwrap();
        assert_eq!(Stamp::of(&found), stamp);
    }

    #[test]
    fn files_of_one_name_do_not_replace_each_other() {
        let (_directory, places) = folder(Style::Drop, After::Move);
        for text in ["1", "2"] {
            let stamp = put(&places, "a.eml", text);
            places.retire(OsStr::new("a.eml"), stamp).unwrap();
            let stamp = put(&places, "b.eml", text);
            places.fail(OsStr::new("b.eml"), stamp, "why").unwrap();
        }
        assert_eq!(fs::read(places.done.join("a.eml")).unwrap(), b"1");
        assert_eq!(fs::read(places.done.join("1-a.eml")).unwrap(), b"2");
        assert_eq!(fs::read(places.failed.join("1-b.eml")).unwrap(), b"2");
        assert_eq!(
            fs::read(places.failed.join("1-b.eml.reason")).unwrap(),
            b"why\n"
        );
    }

    #[test]
    fn a_reason_is_not_written_through_a_link() {
        let (directory, places) = folder(Style::Drop, After::Delete);
        let precious = directory.path().join("precious");
        fs::write(&precious, "keep me").unwrap();
        let beside = places.failed.join("x.eml.reason");
        std::os::unix::fs::symlink(&precious, &beside).unwrap();
        let stamp = put(&places, "x.eml", "x");
        places.fail(OsStr::new("x.eml"), stamp, "why").unwrap();
        assert_eq!(fs::read(&precious).unwrap(), b"keep me");
        assert_eq!(fs::read(&beside).unwrap(), b"why\n");
        let found = fs::symlink_metadata(&beside).unwrap();
        assert!(found.is_file());
        assert_eq!(found.mode() & 0o777, 0o600);
        assert!(places.failed.join("x.eml").exists());
    }

    #[test]
    fn directories_that_are_links_or_somebody_elses_are_refused_and_nothing_is_lost() {
        for name in ["failed", "done"] {
            let (directory, places) = folder(Style::Drop, After::Move);
            let elsewhere = tempfile::tempdir().unwrap();
            let replaced = directory.path().join(name);
            fs::remove_dir(&replaced).unwrap();
            std::os::unix::fs::symlink(elsewhere.path(), &replaced).unwrap();
            let error = places.prepare().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains(&*replaced.to_string_lossy()));
            // Replaced after it was looked at first.
            let stamp = put(&places, "x.eml", "x");
            let moved = match name {
                "done" => places.retire(OsStr::new("x.eml"), stamp),
                _ => places.fail(OsStr::new("x.eml"), stamp, "why"),
            };
            moved.unwrap_err();
            assert!(places.source.join("x.eml").exists());
            assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        }
        let (_directory, places) = folder(Style::Drop, After::Move);
        let us = nix::unistd::geteuid().as_raw();
        is_owned_by(&places.failed, us).unwrap();
        is_owned_by(&places.failed, us + 1).unwrap_err();
    }

    /// It is the user's, and a service that only may write there moves what it has read there.
    #[test]
    fn a_maildirs_cur_may_be_anybodys() {
        let (directory, places) = folder(Style::Maildir, After::Move);
        let elsewhere = tempfile::tempdir().unwrap();
        fs::remove_dir(directory.path().join("cur")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), directory.path().join("cur")).unwrap();
        places.prepare().unwrap();
        let stamp = put(&places, "x", "x");
        places.retire(OsStr::new("x"), stamp).unwrap();
        assert!(elsewhere.path().join("x:2,S").exists());
    }

    #[test]
    fn a_missing_folder_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::new(&directory.path().join("gone"), Style::Drop, After::Delete);
        assert_eq!(
            places.prepare().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
