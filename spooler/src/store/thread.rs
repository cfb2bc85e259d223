//! The store's own thread, and the handle by which everybody else speaks to it.
//!
//! **A commit takes all writes that have gathered since the last one**, up to [`ROWS_MAX`] and about [`BYTES_MAX`]: the disk
//! is asked once for all of them. Everything else (claims, questions, changes) is a closure that runs on the thread. Turns
//! are fair: after each commit at most [`CALLS_PER_TURN`] calls, then the next commit; so neither starves the other.
//!
//! What is under way is bounded by those who ask: a write belongs to a tenure, and tenures are bounded by credit. Nothing
//! is retried here: an error goes to the callers, who know whether it is still worth it.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use pombo_proto::time::UnixMillis;
use tokio::sync::oneshot;

use super::{Error, RowData, Store, Write, Written};

/// Writes in one commit. At 100 the disk's flush is already a small part of it; more only makes the first one wait.
const ROWS_MAX: usize = 512;
/// Bytes in one commit: it must fit the page cache and the WAL with ease.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// Calls between two commits. A claim takes milliseconds: a write waits some tens of them at worst.
const CALLS_PER_TURN: usize = 4;

/// What a write is answered by. Called exactly once, on the store's thread: it should hand over and return.
pub type Answer = Box<dyn FnOnce(Result<Written, Arc<Error>>) + Send>;

type Call = Box<dyn FnOnce(&mut dyn Store) + Send>;

/// What the thread has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commits that succeeded.
    pub commits: u64,
    /// Writes in them.
    pub writes: u64,
    /// Commits that failed.
    pub failed: u64,
    /// Everything else that was asked.
    pub calls: u64,
}

/// A handle on the store's thread. Cheap to clone; the thread ends with the last one, or by [`StoreThread::stop`].
#[derive(Clone)]
pub struct StoreThread {
    owner: Arc<Owner>,
}

/// What all handles share. Its end is the thread's end.
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    gathered: Mutex<Gathered>,
    changed: Condvar,
}

#[derive(Default)]
struct Gathered {
    writes: VecDeque<PendingWrite>,
    calls: VecDeque<Call>,
    counters: Counters,
    phase: Phase,
    /// Told when the thread has ended.
    waiting_for_end: Vec<oneshot::Sender<()>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Nothing new; what has gathered is finished.
    Stopping,
    Ended,
}

impl StoreThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives us no thread.
    pub fn spawn(store: impl Store + 'static) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            gathered: Mutex::default(),
            changed: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                let _end = End(&of_thread);
                run(&of_thread, store);
            })
            .map_err(|error| Error::Unavailable(format!("no thread for the store: {error}")))?;
        Ok(Self {
            owner: Arc::new(Owner {
                shared,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// Hands over a write for the next commit. The callback is called exactly once, on the store's thread (on this one, if
    /// the thread has stopped): with the write's own answer, or with the error of the whole commit.
    pub fn commit(
        &self,
        write: Write,
        answer: impl FnOnce(Result<Written, Arc<Error>>) + Send + 'static,
    ) {
        self.commit_all([(write, Box::new(answer) as Answer)]);
    }

    /// Hands over several at once, for the same commit if it has room: the thread is woken when all are there.
    pub fn commit_all(&self, writes: impl IntoIterator<Item = (Write, Answer)>) {
        let pending: Vec<_> = writes
            .into_iter()
            .map(|(write, answer)| PendingWrite::new(write, answer))
            .collect();
        if pending.is_empty() {
            return;
        }
        let mut gathered = self.owner.shared.lock();
        if gathered.phase == Phase::Open {
            gathered.writes.extend(pending);
            drop(gathered);
            self.owner.shared.changed.notify_one();
        } else {
            drop(gathered);
            // Dropped unanswered, they answer for themselves.
            drop(pending);
        }
    }

    /// [`StoreThread::commit`] for those who wait for one write.
    ///
    /// # Errors
    /// Of the whole commit that the write was in.
    pub async fn committed(&self, write: Write) -> Result<Written, Arc<Error>> {
        let (sender, receiver) = oneshot::channel();
        // Who no longer waits does not want to know.
        self.commit(write, move |answer| drop(sender.send(answer)));
        receiver.await.unwrap_or_else(|_| Err(Arc::new(stopped())))
    }

    /// Runs anything else on the store's thread. Keep it short: nothing else happens meanwhile.
    ///
    /// # Errors
    /// The closure's own, or [`Error::Unavailable`] once the thread has stopped.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let call: Call = Box::new(move |store| drop(sender.send(work(store))));
        {
            let mut gathered = self.owner.shared.lock();
            if gathered.phase != Phase::Open {
                return Err(stopped());
            }
            gathered.calls.push_back(call);
        }
        self.owner.shared.changed.notify_one();
        receiver.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// What the thread has done so far.
    pub fn counters(&self) -> Counters {
        self.owner.shared.lock().counters
    }

    /// Takes nothing more, finishes what has gathered, and joins the thread.
    pub async fn stop(&self) {
        let (sender, ended) = oneshot::channel();
        {
            let mut gathered = self.owner.shared.lock();
            if gathered.phase == Phase::Ended {
                drop(sender);
            } else {
                gathered.phase = Phase::Stopping;
                gathered.waiting_for_end.push(sender);
            }
        }
        self.owner.shared.changed.notify_one();
        // An error means that it had ended before.
        let _ = ended.await;
        let thread = lock(&self.owner.thread).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("store: the thread ended by a panic");
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().phase.stop();
        self.shared.changed.notify_one();
    }
}

impl Phase {
    fn stop(&mut self) {
        if *self == Self::Open {
            *self = Self::Stopping;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        lock(&self.gathered)
    }
}

/// No code of ours panics under these locks, and queues are whole at any moment: a poisoned one is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stopped() -> Error {
    Error::Unavailable("the store's thread has stopped".to_owned())
}

fn run(shared: &Shared, mut store: impl Store) {
    while let Some((writes, calls)) = next_turn(shared) {
        if !writes.is_empty() {
            commit(shared, &mut store, writes);
        }
        // Before they run: who has an answer finds his call counted.
        shared.lock().counters.calls += calls.len() as u64;
        for call in calls {
            call(&mut store);
        }
    }
}

/// Waits for something to do; `None`: there is nothing left, and nothing comes.
fn next_turn(shared: &Shared) -> Option<(Vec<PendingWrite>, Vec<Call>)> {
    let mut gathered = shared.lock();
    while gathered.writes.is_empty() && gathered.calls.is_empty() {
        if gathered.phase != Phase::Open {
            return None;
        }
        gathered = shared
            .changed
            .wait(gathered)
            .unwrap_or_else(PoisonError::into_inner);
    }
    let mut bytes = 0;
    let fits = |pending: &&PendingWrite| {
        bytes += pending.bytes;
        bytes <= BYTES_MAX
    };
    let writes = gathered.writes.iter().take(ROWS_MAX).take_while(fits);
    // One that is too large alone goes alone.
    let writes = writes.count().max(gathered.writes.len().min(1));
    let calls = gathered.calls.len().min(CALLS_PER_TURN);
    Some((
        gathered.writes.drain(..writes).collect(),
        gathered.calls.drain(..calls).collect(),
    ))
}

fn commit(shared: &Shared, store: &mut impl Store, mut pending: Vec<PendingWrite>) {
    let writes: Vec<Write> = pending
        .iter_mut()
        .filter_map(|one| one.write.take())
        .collect();
    let began = Instant::now();
    let result = store.commit(UnixMillis::now(), &writes);
    metrics::histogram!("pombo_store_commit_seconds").record(began.elapsed());
    match result {
        Ok(answers) => {
            metrics::counter!("pombo_store_commits_total").increment(1);
            metrics::histogram!("pombo_store_commit_rows").record(writes.len() as f64);
            {
                let counters = &mut shared.lock().counters;
                counters.commits += 1;
                counters.writes += writes.len() as u64;
            }
            for (one, answer) in pending.into_iter().zip(answers) {
                one.answer(Ok(answer));
            }
        }
        Err(error) => {
            metrics::counter!("pombo_store_commit_errors_total").increment(1);
            shared.lock().counters.failed += 1;
            tracing::warn!(%error, writes = writes.len(), "store: a commit failed");
            let error = Arc::new(error);
            for one in pending {
                one.answer(Err(Arc::clone(&error)));
            }
        }
    }
}

/// A write and who waits for it. Whatever happens, it is answered: at the latest when it is dropped.
struct PendingWrite {
    write: Option<Write>,
    bytes: usize,
    answer: Option<Answer>,
}

impl PendingWrite {
    fn new(write: Write, answer: Answer) -> Self {
        let size = |row: &RowData| row.message.len() + row.progress.len();
        let bytes = match &write {
            Write::Record { row, reports, .. } => {
                size(row)
                    + reports
                        .iter()
                        .map(|(_, report)| size(report))
                        .sum::<usize>()
            }
            Write::Move { row, .. } => size(row),
            Write::Note { note, .. } => note.len(),
        };
        Self {
            write: Some(write),
            bytes,
            answer: Some(answer),
        }
    }

    fn answer(mut self, result: Result<Written, Arc<Error>>) {
        if let Some(answer) = self.answer.take() {
            answer(result);
        }
    }
}

impl Drop for PendingWrite {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer(Err(Arc::new(stopped())));
        }
    }
}

/// However the thread ends: what is left is answered, and who waits for the end is told.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let (writes, calls, waiting) = {
            let mut gathered = self.0.lock();
            gathered.phase = Phase::Ended;
            (
                std::mem::take(&mut gathered.writes),
                std::mem::take(&mut gathered.calls),
                std::mem::take(&mut gathered.waiting_for_end),
            )
        };
        drop((writes, calls));
        for sender in waiting {
            // Who no longer waits does not want to know.
            let _ = sender.send(());
        }
    }
}
