//! Housekeeping of Maildirs: what dead attempts left in `tmp`, and memory of deliveries that nobody asks for any more.
//!
//! Done when the spooler says Idle, for mailboxes that got mail in this life of the process; if it never says so, behind
//! a delivery.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    copy::{EMPTY, Mailbox, Name, Trouble},
    deliver::age,
};

/// Files in `tmp` are nobody's after this long, by the Maildir convention.
const TMP_AGE_MAX: Duration = Duration::from_secs(36 * 3600);
/// A mailbox is tidied this often if there is idle time ...
const PAUSE: Duration = Duration::from_secs(3600);
/// ... and this often if there is none.
const OVERDUE: Duration = Duration::from_secs(6 * 3600);
/// How many mailboxes are remembered as in need of it; others are served when they get mail again.
const MAILBOXES_MAX: usize = 50_000;
/// How many mailboxes one call looks after.
const MAILBOXES_PER_CALL: usize = 64;
/// How many files in one `tmp` one call looks at.
const FILES_MAX: usize = 10_000;
/// How many remembered copies of one week one call looks at, without touching those that are settled.
const MEMORIES_MAX: usize = 200_000;

/// Which mailboxes got mail, and when they were last tidied.
#[derive(Debug)]
pub(super) struct Tidy {
    remember: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mailboxes: HashMap<Mailbox, Option<Instant>>,
    last_call: Instant,
    running: bool,
}

impl Tidy {
    pub(super) fn new(remember: Duration) -> Self {
        let state = State {
            mailboxes: HashMap::new(),
            last_call: Instant::now(),
            running: false,
        };
        Self {
            remember,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This mailbox gets mail.
    pub(super) fn touched(&self, mailbox: &Mailbox) {
        let mut state = self.state();
        if state.mailboxes.len() < MAILBOXES_MAX && !state.mailboxes.contains_key(mailbox) {
            state.mailboxes.insert(mailbox.clone(), None);
        }
    }

    /// The work to do if there has not been an idle moment for long.
    pub(super) fn overdue(self: &Arc<Self>) -> Option<impl FnOnce() + Send + 'static> {
        let overdue = self.state().last_call.elapsed() > OVERDUE;
        let tidy = Arc::clone(self);
        overdue.then_some(move || tidy.run())
    }

    /// Looks after some mailboxes, on the caller's thread.
    pub(super) fn run(&self) {
        let Some(mailboxes) = self.begin() else {
            return;
        };
        for mailbox in mailboxes {
            if let Err(error) = tidy(&mailbox, self.remember) {
                tracing::warn!(mailbox = %mailbox.path.display(), %error, "a mailbox could not be tidied");
            }
            self.state().mailboxes.insert(mailbox, Some(Instant::now()));
        }
        self.state().running = false;
    }

    /// The mailboxes to look after; none if another call is at it.
    fn begin(&self) -> Option<Vec<Mailbox>> {
        let mut state = self.state();
        state.last_call = Instant::now();
        if std::mem::replace(&mut state.running, true) {
            return None;
        }
        let due = |last: &Option<Instant>| last.is_none_or(|last| last.elapsed() > PAUSE);
        let mailboxes = state.mailboxes.iter().filter(|(_, last)| due(last));
        Some(
            mailboxes
                .map(|(mailbox, _)| mailbox.clone())
                .take(MAILBOXES_PER_CALL)
                .collect(),
        )
    }
}

fn tidy(mailbox: &Mailbox, remember: Duration) -> Result<(), Error> {
    for entry in fs::read_dir(mailbox.path.join("tmp"))?.take(FILES_MAX) {
        let entry = entry?;
        let found = entry.metadata()?;
        if !found.is_file() || age(found.modified()?) <= TMP_AGE_MAX {
            continue;
        }
        // An attempt that died between link and rename: with its file gone, the link would say "delivered".
        if let Some(name) = entry.file_name().to_str().and_then(Name::of_staged) {
            let memory = mailbox.memory_of(&name);
            if fs::symlink_metadata(&memory).is_ok_and(|memory| memory.ino() == found.ino()) {
                fs::remove_file(memory)?;
            }
        }
        fs::remove_file(entry.path())?;
        tracing::info!(file = %entry.path().display(), "a file left in tmp is removed");
    }
    let weeks = match fs::read_dir(mailbox.memory()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        weeks => weeks?,
    };
    for week in weeks {
        let week = week?;
        let found = week.metadata()?;
        if !found.is_dir() {
            continue;
        }
        // A directory's time is that of its last new entry.
        if age(found.modified()?) > remember {
            fs::remove_dir_all(week.path())?;
        } else {
            tidy_week(mailbox, &week)?;
        }
    }
    Ok(())
}

/// What attempts that died have left: memories that keep a copy's content, and names that were to replace them.
fn tidy_week(mailbox: &Mailbox, week: &fs::DirEntry) -> Result<(), Error> {
    let empty = fs::symlink_metadata(week.path().join(EMPTY))
        .map(|empty| empty.ino())
        .ok();
    let number = week.file_name();
    for entry in fs::read_dir(week.path())?.take(MEMORIES_MAX) {
        let entry = entry?;
        let file = entry.file_name();
        let Some(file) = file.to_str() else { continue };
        let settled = Some(DirEntryExt::ino(&entry)) == empty;
        if file == EMPTY || (settled && !file.starts_with('.')) {
            continue;
        }
        if age(entry.metadata()?.modified()?) <= PAUSE {
            continue;
        }
        match number.to_str().and_then(|week| Name::of_memory(week, file)) {
            Some(name) => mailbox.settle_left(&name)?,
            None => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path, time::SystemTime};

    use pombo_proto::{
        ids::{MessageId, RecipientIndex},
        time::UnixMillis,
    };

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn make_old(path: &Path, by: Duration) {
        File::open(path)
            .unwrap()
            .set_modified(SystemTime::now() - by)
            .unwrap();
    }

    fn mailbox() -> (tempfile::TempDir, Mailbox) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("tmp")).unwrap();
        let mailbox = Mailbox {
            path: directory.path().to_owned(),
        };
        (directory, mailbox)
    }

    #[test]
    fn only_what_is_old_leaves_tmp() {
        let (_directory, mailbox) = mailbox();
        let tidy = Tidy::new(DAY);
        for (name, days) in [("old", 2), ("young", 0)] {
            let path = mailbox.path.join("tmp").join(name);
            fs::write(&path, "x").unwrap();
            make_old(&path, DAY * days);
        }
        tidy.run();
        assert!(
            mailbox.path.join("tmp/old").exists(),
            "got no mail, so it is not looked at"
        );
        tidy.touched(&mailbox);
        tidy.run();
        assert!(!mailbox.path.join("tmp/old").exists());
        assert!(mailbox.path.join("tmp/young").exists());
    }

    #[test]
    fn a_cleared_attempt_is_forgotten_and_not_taken_for_delivered() {
        let (_directory, mailbox) = mailbox();
        let name = Name::new(
            MessageId::derived("test", b"1"),
            RecipientIndex(3),
            UnixMillis::now(),
        );
        let nonce = "0123456789abcdef";
        let staged = mailbox.tmp(&name, nonce);
        let file = staged.file_name().unwrap().to_str().unwrap();
        assert_eq!(Name::of_staged(file), Some(name.clone()));
        fs::write(&staged, "x").unwrap();
        make_old(&staged, DAY * 2);
        let memory = mailbox.memory_of(&name);
        fs::create_dir_all(memory.parent().unwrap()).unwrap();
        fs::hard_link(&staged, &memory).unwrap();

        tidy(&mailbox, DAY).unwrap();
        assert!(!staged.exists());
        assert!(!memory.exists());
    }

    #[test]
    fn what_was_left_unsettled_is_settled_and_then_left_alone() {
        let (_directory, mailbox) = mailbox();
        let name = |number| {
            Name::new(
                MessageId::derived("test", b"1"),
                RecipientIndex(number),
                UnixMillis::now(),
            )
        };
        let memories = [mailbox.memory_of(&name(1)), mailbox.memory_of(&name(2))];
        let week = memories[0].parent().unwrap();
        fs::create_dir_all(week).unwrap();
        for memory in &memories {
            fs::write(memory, "content").unwrap();
        }
        make_old(&memories[0], DAY);
        fs::write(week.join(".0123456789abcdef"), "").unwrap();
        make_old(&week.join(".0123456789abcdef"), DAY);
        for _ in 0..2 {
            tidy(&mailbox, DAY).unwrap();
            assert_eq!(fs::read(&memories[0]).unwrap(), b"");
            assert_eq!(
                fs::read(&memories[1]).unwrap(),
                b"content",
                "perhaps its attempt is alive"
            );
            assert_eq!(fs::read_dir(week).unwrap().count(), 3);
        }
    }

    #[test]
    fn old_weeks_are_forgotten() {
        let (_directory, mailbox) = mailbox();
        for (week, days) in [("1", 8), ("2", 6)] {
            let path = mailbox.memory().join(week);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("name"), "").unwrap();
            make_old(&path, DAY * days);
        }
        tidy(&mailbox, DAY * 7).unwrap();
        assert!(!mailbox.memory().join("1").exists());
        assert!(mailbox.memory().join("2").exists());
    }
}
