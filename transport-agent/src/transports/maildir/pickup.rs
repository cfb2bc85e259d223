//! StartMessage: takes files from a folder into the spool, each once.
//!
//! A file is the caller's while its name is marked as taken on the [`Shelf`]; it leaves the folder only after SaveChanges
//! has returned an id. If anything goes wrong before, it stays and is taken again. Its id is derived from inode,
//! time, name and content, so that what is taken twice (a crash between the two, another agent on the same folder)
//! vanishes at the store. Nothing is renamed in order to claim it: a claim would have to survive its holder, and the
//! derived id is needed in any case.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use nix::{errno::Errno, fcntl::OFlag};
use pombo_proto::time::UnixMillis;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::{
    config::PickUpConfig,
    deliver::blocking,
    dispose::Places,
    envelope::{self, Letter, Rules, Unfit},
    shelf::{LISTING_MAX, Shelf, Stamp},
    watch::Alarm,
};
use crate::provider::{Identity, Incoming, Received, Reception, SaveError};

/// How many files are in memory at a time, whatever the spooler permits.
const READING_MAX: usize = 8;
/// How many files that cannot be sent one StartMessage passes over before it returns, so that the spooler can turn to others.
const PASSED_OVER_MAX: usize = 50;
/// When to try again after an error; the spooler is told of the file then.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// How much of a file's name goes into the trace.
const CLIENT_BYTES_MAX: usize = 255;

/// The receiving half of the transport.
pub(super) struct PickUp {
    pub(super) config: PickUpConfig,
    pub(super) places: Places,
    pub(super) alarm: Alarm,
    rules: Rules,
    shelf: Mutex<Shelf>,
    /// One listing at a time; who waited for it uses its result.
    listing: tokio::sync::Mutex<()>,
    reading: Semaphore,
    /// Between BEGIN_INBOUND and END_INBOUND.
    open: AtomicBool,
    /// What went wrong last and has not gone right since.
    trouble: Mutex<Option<String>>,
}

/// A file that is ours until this is dropped.
struct Taken {
    pick_up: Arc<PickUp>,
    name: OsString,
    /// False once the shelf knows what became of it: another file of this name may be taken by then.
    held: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.held {
            self.pick_up.shelf().put_back(&self.name);
        }
    }
}

impl Taken {
    /// It has left the folder, or should have.
    fn gone(mut self, moved: io::Result<()>, stamp: Stamp) {
        self.held = false;
        match moved {
            Ok(()) => self.pick_up.shelf().remove(&self.name),
            Err(error) => {
                tracing::error!(file = ?self.name, %error, "a file that is done with cannot be moved or removed");
                self.pick_up.shelf().give_up(&self.name, stamp);
            }
        }
    }
}

/// What a taken file turned out to be.
enum Found {
    /// Gone, or not a file.
    Nothing,
    /// Still being written.
    Growing,
    Unfit(Unfit, Stamp),
    Mail(Box<Incoming>, Stamp),
}

impl PickUp {
    pub(super) fn new(config: PickUpConfig) -> Self {
        Self {
            places: Places::new(&config.folder, config.style, config.after),
            alarm: Alarm::default(),
            rules: Rules {
                recipients: config.recipients.clone(),
                sender: config.sender.clone(),
            },
            shelf: Mutex::new(Shelf::new(config.style, config.settle)),
            listing: tokio::sync::Mutex::new(()),
            reading: Semaphore::new(READING_MAX),
            open: AtomicBool::new(false),
            trouble: Mutex::new(None),
            config,
        }
    }

    pub(super) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Release);
        if open {
            self.alarm.look_by(Instant::now());
        }
    }

    /// What to show in the status row.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let stuck = self.shelf().stuck();
        let stuck = (stuck > 0).then(|| {
            format!(
                "{stuck} files cannot be removed from {}",
                self.config.folder.display()
            )
        });
        trouble.or(stuck)
    }

    /// Notes what went wrong, or that all is well; true if that is news.
    pub(super) fn set_trouble(&self, trouble: Option<String>) -> bool {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *known != trouble;
        *known = trouble;
        news
    }

    /// Lists the folder; how many files are ready.
    pub(super) async fn look(self: &Arc<Self>) -> io::Result<usize> {
        let _one = self.listing.lock().await;
        self.list().await
    }

    async fn list(self: &Arc<Self>) -> io::Result<usize> {
        let this = Arc::clone(self);
        let listed = blocking(move || this.read_folder()).await?;
        let ready = match listed {
            Ok(listing) => {
                let mut shelf = self.shelf();
                shelf.refill(listing, Instant::now(), SystemTime::now());
                if shelf.is_growing() {
                    self.alarm.look_by(Instant::now() + self.config.settle);
                }
                shelf.waiting()
            }
            Err(error) => {
                self.alarm.lost();
                return Err(error);
            }
        };
        Ok(ready)
    }

    fn read_folder(&self) -> io::Result<Vec<(OsString, Stamp)>> {
        let mut listing = Vec::new();
        for entry in fs::read_dir(&self.places.source)? {
            let entry = entry?;
            let name = entry.file_name();
            if !self.shelf().is_message(&name) {
                continue;
            }
            // Gone since, or a link: not ours.
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.is_file() {
                listing.push((name, Stamp::of(&found)));
            }
            if listing.len() >= LISTING_MAX {
                break;
            }
        }
        Ok(listing)
    }

    async fn take(self: &Arc<Self>) -> io::Result<Option<Taken>> {
        let mut name = self.shelf().take();
        if name.is_none() {
            let _one = self.listing.lock().await;
            name = self.shelf().take();
            if name.is_none() {
                self.list().await?;
                name = self.shelf().take();
            }
        }
        let pick_up = Arc::clone(self);
        let held = true;
        Ok(name.map(|name| Taken {
            pick_up,
            name,
            held,
        }))
    }

    /// StartMessage, after the reference is assigned.
    pub(super) async fn start(self: &Arc<Self>, reception: &Reception, host: &str) -> Received {
        let Ok(_reading) = self.reading.acquire().await else {
            return Received::Nothing;
        };
        // Those that cannot be taken now stay marked until the end, so that others get their turn.
        let mut passed_over = Vec::new();
        let (mut trouble, mut exhausted) = (None, false);
        for _ in 0..PASSED_OVER_MAX {
            if reception.is_cancelled() {
                return self.later(Received::Cancelled);
            }
            if !self.is_open() {
                return Received::Nothing;
            }
            let taken = match self.take().await {
                Ok(Some(taken)) => taken,
                Ok(None) => {
                    exhausted = true;
                    break;
                }
                Err(error) => {
                    trouble = Some(format!(
                        "{} cannot be read: {error}",
                        self.config.folder.display()
                    ));
                    break;
                }
            };
            match self.read(&taken, host).await {
                Ok(Found::Mail(incoming, stamp)) => {
                    return self.save(reception, taken, *incoming, stamp).await;
                }
                Ok(Found::Nothing) => passed_over.push(taken),
                Ok(Found::Growing) => {
                    self.shelf().still_written(&taken.name);
                    self.alarm.look_by(Instant::now() + self.config.settle);
                    passed_over.push(taken);
                }
                Ok(Found::Unfit(unfit, stamp)) => self.reject(taken, stamp, &unfit).await,
                Err(error) => {
                    trouble = Some(format!("{} cannot be read: {error}", taken.name.display()));
                    passed_over.push(taken);
                }
            }
        }
        drop(passed_over);
        match trouble {
            Some(trouble) => {
                self.set_trouble(Some(trouble.clone()));
                self.later(Received::Failed(trouble))
            }
            None if exhausted => Received::Nothing,
            None => self.later(Received::Nothing),
        }
    }

    async fn save(
        self: &Arc<Self>,
        reception: &Reception,
        taken: Taken,
        incoming: Incoming,
        stamp: Stamp,
    ) -> Received {
        if reception.is_cancelled() {
            return self.later(Received::Cancelled);
        }
        match reception.save_changes(incoming).await {
            Ok(id) => {
                self.retire(taken, stamp).await;
                self.set_trouble(None);
                let more = self.has_more().await;
                Received::Saved { id, more }
            }
            Err(SaveError::Cancelled) => self.later(Received::Cancelled),
            Err(error @ (SaveError::TooLarge(_) | SaveError::Recipients(_))) => {
                self.reject(taken, stamp, &Unfit::Unsaved(error.to_string()))
                    .await;
                // SaveChanges may be called once only.
                self.later(Received::Nothing)
            }
            Err(error) => self.later(Received::Failed(error.to_string())),
        }
    }

    async fn has_more(self: &Arc<Self>) -> bool {
        let waiting = self.shelf().waiting();
        waiting > 0 || self.look().await.is_ok_and(|ready| ready > 0)
    }

    /// The files are still there, and nothing new may come to remind of them.
    fn later(&self, received: Received) -> Received {
        let pause = match received {
            Received::Failed(_) => RETRY_PAUSE,
            _ => Duration::ZERO,
        };
        self.alarm.look_by(Instant::now() + pause);
        received
    }

    async fn read(self: &Arc<Self>, taken: &Taken, host: &str) -> io::Result<Found> {
        let (this, name, host) = (Arc::clone(self), taken.name.clone(), host.to_owned());
        blocking(move || this.read_file(&name, &host)).await?
    }

    fn read_file(&self, name: &OsStr, host: &str) -> io::Result<Found> {
        let path = self.places.source.join(name);
        // Whoever can write into the folder must not make us read what only we can, or wait at a pipe.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match File::options()
            .read(true)
            .custom_flags(flags.bits())
            .open(path)
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_link(&error) => {
                return Ok(Found::Nothing);
            }
            file => file?,
        };
        let before = file.metadata()?;
        let stamp = Stamp::of(&before);
        if !before.is_file() {
            return Ok(Found::Nothing);
        }
        let size_max = self.config.size_max;
        if stamp.size > size_max {
            return Ok(Found::Unfit(Unfit::Large(size_max), stamp));
        }
        let mut content = Vec::with_capacity(usize::try_from(stamp.size).unwrap_or_default());
        (&file).take(size_max + 1).read_to_end(&mut content)?;
        let whole = u64::try_from(content.len()).is_ok_and(|read| read == stamp.size);
        if !whole || Stamp::of(&file.metadata()?) != stamp {
            return Ok(Found::Growing);
        }
        // A parser that panics must not be given the same file for ever.
        let read = || envelope::read(&content, &self.rules, host, UnixMillis::now());
        let letter = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
        Ok(match letter.unwrap_or(Err(Unfit::Unreadable)) {
            Ok(letter) => Found::Mail(
                Box::new(incoming(letter, identity(name, stamp, &content), name)),
                stamp,
            ),
            Err(unfit) => Found::Unfit(unfit, stamp),
        })
    }

    async fn retire(self: &Arc<Self>, taken: Taken, stamp: Stamp) {
        let (places, name) = (self.places.clone(), taken.name.clone());
        let retired = blocking(move || places.retire(&name, stamp)).await;
        taken.gone(retired.and_then(|retired| retired), stamp);
    }

    async fn reject(self: &Arc<Self>, taken: Taken, stamp: Stamp, unfit: &Unfit) {
        let reason = unfit.to_string();
        tracing::warn!(file = ?taken.name, reason, "a file is no fit message and goes to failed");
        metrics::counter!("pombo_maildir_unfit_total").increment(1);
        let (places, name) = (self.places.clone(), taken.name.clone());
        let moved = blocking(move || places.fail(&name, stamp, &reason)).await;
        taken.gone(moved.and_then(|moved| moved), stamp);
    }
}

/// What O_NOFOLLOW says of a symbolic link.
fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ELOOP as i32)
}

fn incoming(letter: Letter, identity: Vec<u8>, name: &OsStr) -> Incoming {
    let mut client = name.to_string_lossy().into_owned();
    client.truncate(client.floor_char_boundary(CLIENT_BYTES_MAX));
    Incoming {
        identity: Identity::Derived(identity),
        content: letter.content,
        client,
        ..Incoming::new(letter.sender, letter.recipients, letter.body)
    }
}

/// What the message id is derived from. The name last, since it is the only part of unknown length.
fn identity(name: &OsStr, stamp: Stamp, content: &[u8]) -> Vec<u8> {
    let mut identity = Vec::with_capacity(64 + name.len());
    identity.extend(stamp.inode.to_be_bytes());
    identity.extend(stamp.modified.0.to_be_bytes());
    identity.extend(stamp.modified.1.to_be_bytes());
    identity.extend(Sha256::digest(content));
    identity.extend(name.as_bytes());
    identity
}
