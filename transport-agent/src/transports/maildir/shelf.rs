//! Which files of a pick-up folder wait, which are being read, and which are complete: decided from listings of the
//! folder, without touching it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs::Metadata,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::config::Style;

/// How many files one listing holds at most; the others come later.
pub(super) const LISTING_MAX: usize = 10_000;
/// How many names are remembered as closed by their writers; beyond, files wait for `settle` instead.
const CLOSED_MAX: usize = 2 * LISTING_MAX;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) modified: (i64, i64),
    pub(super) size: u64,
}

impl Stamp {
    pub(super) fn of(file: &Metadata) -> Self {
        Self {
            inode: file.ino(),
            modified: (file.mtime(), file.mtime_nsec()),
            size: file.size(),
        }
    }

    /// How long ago the file was written, by the wall clock; zero if that lies ahead.
    fn age(&self, now: SystemTime) -> Duration {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = self.modified;
        let Ok(seconds) = u64::try_from(seconds) else {
            return Duration::MAX;
        };
        let nanos = u32::try_from(nanos).unwrap_or_default();
        now.saturating_sub(Duration::new(seconds, nanos))
    }
}

/// The files of one folder.
#[derive(Debug)]
pub(super) struct Shelf {
    style: Style,
    settle: Duration,
    /// Complete and not taken; the oldest first.
    ready: BTreeMap<((i64, i64), OsString), Stamp>,
    /// Being read or saved now.
    taken: HashSet<OsString>,
    /// Done with, but they could not be removed; not to be taken again in this state.
    stuck: HashMap<OsString, Stamp>,
    /// Their writers were seen to close them or to rename them into place.
    closed: HashSet<OsString>,
    /// Not known to be complete: their state, and since when it has been so.
    growing: HashMap<OsString, (Stamp, Instant)>,
}

impl Shelf {
    pub(super) fn new(style: Style, settle: Duration) -> Self {
        Self {
            style,
            settle,
            ready: BTreeMap::new(),
            taken: HashSet::new(),
            stuck: HashMap::new(),
            closed: HashSet::new(),
            growing: HashMap::new(),
        }
    }

    /// Whether a file of this name is a message at all.
    pub(super) fn is_message(&self, name: &OsStr) -> bool {
        let name = name.as_bytes();
        let hidden = name.first().is_none_or(|first| *first == b'.');
        !hidden && (self.style == Style::Maildir || name.ends_with(b".eml"))
    }

    /// Takes over a fresh listing.
    pub(super) fn refill(
        &mut self,
        listing: Vec<(OsString, Stamp)>,
        now: Instant,
        wall: SystemTime,
    ) {
        let before = std::mem::take(&mut self.growing);
        let known = std::mem::take(&mut self.stuck);
        self.ready.clear();
        for (name, stamp) in listing {
            if self.taken.contains(&name) {
                continue;
            }
            if known.get(&name) == Some(&stamp) {
                self.stuck.insert(name, stamp);
                continue;
            }
            let since = match before.get(&name) {
                Some((seen, since)) if *seen == stamp => *since,
                _ => now,
            };
            let complete = self.style == Style::Maildir
                || self.closed.contains(&name)
                || stamp.age(wall) >= self.settle
                || now.duration_since(since) >= self.settle;
            if complete {
                self.ready.insert((stamp.modified, name), stamp);
            } else {
                self.growing.insert(name, (stamp, since));
            }
        }
    }

    /// The next file, which is the caller's until [`Shelf::put_back`], [`Shelf::remove`] or [`Shelf::give_up`].
    pub(super) fn take(&mut self) -> Option<OsString> {
        while let Some(((_, name), _)) = self.ready.pop_first() {
            if self.taken.insert(name.clone()) {
                return Some(name);
            }
        }
        None
    }

    /// It stays in the folder; the next listing finds it again.
    pub(super) fn put_back(&mut self, name: &OsStr) {
        self.taken.remove(name);
    }

    /// It changed while it was read: its writer was not finished.
    pub(super) fn still_written(&mut self, name: &OsStr) {
        self.closed.remove(name);
    }

    /// It is gone from the folder.
    pub(super) fn remove(&mut self, name: &OsStr) {
        self.taken.remove(name);
        self.closed.remove(name);
    }

    /// It should be gone, and is not.
    pub(super) fn give_up(&mut self, name: &OsStr, stamp: Stamp) {
        self.remove(name);
        self.stuck.insert(name.to_owned(), stamp);
    }

    /// Its writer was seen to close it or to rename it into place.
    pub(super) fn closed(&mut self, name: &OsStr) {
        if self.closed.len() >= CLOSED_MAX {
            self.closed.clear();
        }
        self.closed.insert(name.to_owned());
    }

    /// How many are ready.
    pub(super) fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Whether another look after `settle` may find more.
    pub(super) fn is_growing(&self) -> bool {
        !self.growing.is_empty()
    }

    /// Those that should be gone.
    pub(super) fn stuck(&self) -> usize {
        self.stuck.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(2);

    fn stamp(modified: i64, size: u64) -> Stamp {
        Stamp {
            inode: 1,
            modified: (modified, 0),
            size,
        }
    }

    fn wall(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn listing(files: &[(&str, Stamp)]) -> Vec<(OsString, Stamp)> {
        files
            .iter()
            .map(|(name, stamp)| (OsString::from(name), *stamp))
            .collect()
    }

    #[test]
    fn files_are_taken_in_order_and_once() {
        let mut shelf = Shelf::new(Style::Maildir, SETTLE);
        let files = listing(&[("b", stamp(1, 1)), ("a", stamp(2, 1)), ("c", stamp(1, 1))]);
        shelf.refill(files.clone(), Instant::now(), wall(2));
        assert_eq!(shelf.take().unwrap(), "b");
        shelf.refill(files.clone(), Instant::now(), wall(2));
        assert_eq!(shelf.take().unwrap(), "c");
        assert_eq!(shelf.take().unwrap(), "a");
        assert_eq!(shelf.take(), None);
        shelf.put_back(OsStr::new("c"));
        shelf.refill(files, Instant::now(), wall(2));
        assert_eq!(shelf.take().unwrap(), "c");
    }

    #[test]
    fn a_drop_file_is_taken_when_closed_or_settled() {
        let mut shelf = Shelf::new(Style::Drop, SETTLE);
        let start = Instant::now();
        let file = |modified, size| listing(&[("a.eml", stamp(modified, size))]);
        shelf.refill(file(100, 1), start, wall(101));
        assert!(shelf.take().is_none() && shelf.is_growing());
        shelf.closed(OsStr::new("a.eml"));
        shelf.refill(file(100, 1), start, wall(101));
        assert_eq!(shelf.take().unwrap(), "a.eml");

        let mut shelf = Shelf::new(Style::Drop, SETTLE);
        shelf.refill(file(100, 1), start, wall(102));
        assert!(shelf.take().is_some(), "old enough by the wall clock");
    }

    #[test]
    fn a_writer_with_a_wrong_clock_is_waited_for_by_ours() {
        let mut shelf = Shelf::new(Style::Drop, SETTLE);
        let start = Instant::now();
        let file = |size| listing(&[("a.eml", stamp(5_000, size))]);
        shelf.refill(file(1), start, wall(100));
        shelf.refill(file(2), start + SETTLE, wall(102));
        assert!(shelf.take().is_none(), "it has grown");
        shelf.refill(file(2), start + 2 * SETTLE, wall(104));
        assert!(shelf.take().is_some());
    }

    #[test]
    fn what_cannot_be_removed_is_not_taken_again_unless_it_changes() {
        let mut shelf = Shelf::new(Style::Maildir, SETTLE);
        let file = |size| listing(&[("a", stamp(1, size))]);
        shelf.refill(file(1), Instant::now(), wall(1));
        let name = shelf.take().unwrap();
        shelf.give_up(&name, stamp(1, 1));
        shelf.refill(file(1), Instant::now(), wall(1));
        assert_eq!((shelf.waiting(), shelf.stuck()), (0, 1));
        shelf.refill(file(2), Instant::now(), wall(1));
        assert_eq!((shelf.waiting(), shelf.stuck()), (1, 0));
    }

    #[test]
    fn only_messages_are_looked_at() {
        let drop = Shelf::new(Style::Drop, SETTLE);
        for (name, yes) in [
            ("a.eml", true),
            (".a.eml", false),
            ("a.eml.tmp", false),
            ("a.eml.part", false),
            ("a.txt", false),
            (".eml", false),
        ] {
            assert_eq!(drop.is_message(OsStr::new(name)), yes, "{name}");
        }
        let maildir = Shelf::new(Style::Maildir, SETTLE);
        assert!(
            maildir.is_message(OsStr::new("1.P.host")) && !maildir.is_message(OsStr::new(".x"))
        );
    }
}
