//! New files, told by the file system: inotify on the pick-up folder, and what it misses.
//!
//! ```text
//! file closed or renamed into place -> new_mail
//! file begun, or linked             -> look again when it has settled
//! events lost (queue overflow)      -> look now
//! folder gone or replaced           -> status FAILURE, watch again as soon as it is there, look
//! nothing for a minute              -> look all the same
//! ```

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::sync::Notify;

use super::{config::Style, deliver::blocking, pickup::PickUp};
use crate::provider::Support;

/// How often the folder is listed although nothing was heard: a watch can be lost silently (bind mounts, network file
/// systems), and a listing of an empty folder costs nothing.
const LOOK_PAUSE: Duration = Duration::from_secs(60);
/// Between attempts to watch a folder that is not there.
const LOST_PAUSE: Duration = Duration::from_secs(1);

/// What the watching task is woken for.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    wake: Notify,
    /// A complete file has come.
    news: AtomicBool,
    /// The watch is no longer one of this folder.
    lost: AtomicBool,
    /// When to look next, if before the regular time.
    look: Mutex<Option<Instant>>,
}

impl Alarm {
    /// Look at the folder then, or earlier.
    pub(super) fn look_by(&self, when: Instant) {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        *look = Some(look.map_or(when, |earlier| earlier.min(when)));
        drop(look);
        self.wake.notify_one();
    }

    /// The folder has gone.
    pub(super) fn lost(&self) {
        self.lost.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn news(&self) {
        self.news.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// True once it is time.
    fn take_look(&self) -> bool {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let due = look.is_some_and(|when| when <= Instant::now());
        if due {
            *look = None;
        }
        due
    }

    fn next_look(&self) -> Option<Instant> {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watched directory: the same path can be another directory later.
struct Watch {
    _watcher: notify::RecommendedWatcher,
    directory: (u64, u64),
}

/// Watches until it is aborted.
pub(super) async fn run(pick_up: Arc<PickUp>, support: Arc<dyn Support>, says: impl Fn() + Send) {
    let mut watch: Option<Watch> = None;
    let mut last_look: Option<Instant> = None;
    loop {
        let source = pick_up.places.source.clone();
        let present = blocking(move || directory(&source)).await.ok().flatten();
        let lost = pick_up.alarm.lost.swap(false, Ordering::AcqRel);
        if lost || present.is_none() || watch.as_ref().map(|watch| watch.directory) != present {
            drop(watch.take());
            match begin(&pick_up).await {
                Ok(begun) => {
                    watch = Some(begun);
                    last_look = None;
                    if pick_up.set_trouble(None) {
                        tracing::info!(folder = %pick_up.config.folder.display(), "the folder is watched");
                        says();
                    }
                }
                Err(error) => {
                    let text = format!(
                        "{} cannot be watched: {error}",
                        pick_up.config.folder.display()
                    );
                    if pick_up.set_trouble(Some(text)) {
                        tracing::warn!(folder = %pick_up.config.folder.display(), %error, "the folder cannot be watched");
                        says();
                    }
                    tokio::time::sleep(LOST_PAUSE).await;
                    continue;
                }
            }
        }
        let regular = last_look.is_none_or(|last| last.elapsed() >= LOOK_PAUSE);
        if pick_up.alarm.take_look() || regular {
            last_look = Some(Instant::now());
            let ready = pick_up.look().await;
            if pick_up.is_open() && ready.is_ok_and(|ready| ready > 0) {
                support.new_mail();
            }
        }
        if pick_up.alarm.news.swap(false, Ordering::AcqRel) && pick_up.is_open() {
            support.new_mail();
        }
        let regular = last_look.unwrap_or_else(Instant::now) + LOOK_PAUSE;
        let next = pick_up
            .alarm
            .next_look()
            .map_or(regular, |next| next.min(regular));
        tokio::select! {
            () = pick_up.alarm.wake.notified() => {}
            () = tokio::time::sleep_until(next.into()) => {}
        }
    }
}

async fn begin(pick_up: &Arc<PickUp>) -> Result<Watch, notify::Error> {
    let source = pick_up.places.source.clone();
    let teller = Arc::downgrade(pick_up);
    let begun = blocking(move || {
        let handler = move |event| heard(&teller, event);
        let mut watcher = notify::recommended_watcher(handler)?;
        let directory = directory(&source).ok_or(notify::Error::path_not_found())?;
        watcher.watch(&source, RecursiveMode::NonRecursive)?;
        Ok(Watch {
            _watcher: watcher,
            directory,
        })
    });
    begun.await.map_err(notify::Error::io)?
}

fn directory(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    found.is_dir().then(|| (found.dev(), found.ino()))
}

/// On the watcher's own thread.
fn heard(pick_up: &Weak<PickUp>, event: notify::Result<Event>) {
    let Some(pick_up) = pick_up.upgrade() else {
        return;
    };
    let event = match event {
        Ok(event) if event.need_rescan() => return pick_up.alarm.look_by(Instant::now()),
        Ok(event) => event,
        Err(error) => {
            tracing::warn!(%error, "watching a folder failed");
            return pick_up.alarm.lost();
        }
    };
    let about_folder = event.paths.contains(&pick_up.places.source);
    let name = event.paths.last().and_then(|path| path.file_name());
    match event.kind {
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From))
            if about_folder =>
        {
            pick_up.alarm.lost();
        }
        _ if about_folder => {}
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => {
            complete(&pick_up, name)
        }
        // Linked from elsewhere, which makes a Maildir's file complete; in a drop folder it may as well be begun.
        EventKind::Create(_) if pick_up.config.style == Style::Maildir => complete(&pick_up, name),
        EventKind::Create(_) if name.is_some_and(|name| pick_up.shelf().is_message(name)) => {
            pick_up
                .alarm
                .look_by(Instant::now() + pick_up.config.settle);
        }
        EventKind::Modify(ModifyKind::Data(_)) => {
            if let Some(name) = name {
                pick_up.shelf().still_written(name);
            }
        }
        _ => {}
    }
}

fn complete(pick_up: &PickUp, name: Option<&OsStr>) {
    let Some(name) = name else { return };
    let mut shelf = pick_up.shelf();
    if shelf.is_message(name) {
        shelf.closed(name);
        drop(shelf);
        pick_up.alarm.news();
    }
}
