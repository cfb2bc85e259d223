//! Orphans: bodies in the blob store that no message can refer to any more.
//!
//! A body is written before its message is accepted, and deleted after its finish is committed. Whoever dies in between leaves it. What
//! is older than any message can be, and belongs to none that has not finished, is removed: by one spooler at a time (a chore of
//! the store), once a day, a few hundred in one go with a pause between, so that neither store notices it. Where a shorter age is
//! allowed, it is done as much more often.

use std::{collections::HashSet, time::Duration};

use actix::{Actor, AsyncContext, Context, Handler, Message, WrapFuture};
use futures_util::{StreamExt, TryStreamExt};
use pombo_proto::{
    blob::Blobs,
    control::BodiesView,
    ids::{Incarnation, MessageId},
    time::UnixMillis,
};
use tracing::{info, warn};

use crate::store::StoreThread;

/// How often it is done, by whichever spooler, at most and at least: a thirtieth of the age.
const SWEEP_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));
/// How often it is looked whether it is time, at least.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Looked at in one go: one question to the message store.
const CHUNK: usize = 500;
/// Between two goes. A million bodies take eight minutes.
const PAUSE: Duration = Duration::from_millis(250);
const CHORE: &str = "orphans";

/// Sweep under this incarnation from now on.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct SweepAs(pub Option<Incarnation>);

/// The actor.
pub struct Orphans {
    store: StoreThread,
    blobs: Blobs,
    age: Duration,
    term: Option<Incarnation>,
}

/// What a sweep has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Bodies older than any message can be.
    pub old: u64,
    /// Of these, bodies of messages that have not finished: held, for one.
    pub needed: u64,
    /// Removed.
    pub removed: u64,
    /// Uploads that never ended, removed.
    pub unfinished: u64,
}

/// Why a sweep ended early. It begins anew another time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The message store does not answer.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// The blob store does not answer.
    #[error(transparent)]
    Blobs(#[from] pombo_proto::blob::Error),
    /// Another spooler sweeps now.
    #[error("another spooler does it now")]
    NotOurs,
}

impl Orphans {
    /// Sweeps nothing until it is told as whom.
    pub fn new(store: StoreThread, blobs: Blobs, age: Duration) -> Self {
        Self {
            store,
            blobs,
            age,
            term: None,
        }
    }

    fn look(&self, ctx: &mut Context<Self>) {
        let Some(me) = self.term else { return };
        let (store, blobs, age) = (self.store.clone(), self.blobs.clone(), self.age);
        let every = sweep_every(age);
        let work = async move {
            let now = UnixMillis::now();
            let mine = store.call(move |s| s.begin_chore(now, CHORE, me, every));
            if !matches!(mine.await, Ok(true)) {
                return;
            }
            match count(&store, &blobs, age).await {
                Ok(view) => show(&view),
                Err(error) => warn!(%error, "cannot count the bodies"),
            }
            match sweep(&store, &blobs, age, me).await {
                Ok(swept) if swept.removed + swept.unfinished == 0 => {}
                Ok(swept) => info!(?swept, "bodies without a message removed"),
                Err(error) => warn!(%error, "cannot look for bodies without a message"),
            }
            let now = UnixMillis::now();
            if let Err(error) = store.call(move |s| s.end_chore(now, CHORE, me)).await {
                warn!(%error, "cannot end the search for bodies without a message");
            }
        };
        // The next look waits for the end of this one.
        ctx.wait(work.into_actor(self));
    }
}

/// Looks at every body once, and removes those that are older than `age` and belong to nothing. The chore must be `me`'s.
///
/// # Errors
/// One of the stores is away, or the chore is somebody else's now; what was removed is removed.
pub async fn sweep(
    store: &StoreThread,
    blobs: &Blobs,
    age: Duration,
    me: Incarnation,
) -> Result<Swept, Error> {
    let mut swept = Swept {
        unfinished: blobs.remove_unfinished(age).await?,
        ..Swept::default()
    };
    let old = blobs.older_than(age);
    let mut chunks = std::pin::pin!(old.try_chunks(CHUNK));
    while let Some(chunk) = chunks.next().await {
        let ids = chunk.map_err(|error| error.1)?;
        swept.old += ids.len() as u64;
        let orphans = orphans(store, ids, me).await?;
        swept.needed = swept.old - swept.removed - orphans.len() as u64;
        for id in orphans {
            blobs.delete(id).await?;
            swept.removed += 1;
            metrics::counter!("pombo_blobs_orphans_removed_total").increment(1);
            info!(%id, "a body without a message is removed");
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(swept)
}

/// Counts what lies in the blob store, by the store's rows.
///
/// # Errors
/// One of the stores is away.
pub async fn count(store: &StoreThread, blobs: &Blobs, age: Duration) -> Result<BodiesView, Error> {
    let mut view = BodiesView::default();
    let all = blobs.written();
    let before = UnixMillis::now().before(age);
    let mut chunks = std::pin::pin!(all.try_chunks(CHUNK));
    while let Some(chunk) = chunks.next().await {
        let bodies = chunk.map_err(|error| error.1)?;
        let ids: Vec<MessageId> = bodies.iter().map(|(id, _)| *id).collect();
        let needed = store.call(move |store| store.unfinished(&ids)).await?;
        let needed: HashSet<MessageId> = needed.into_iter().collect();
        view.bodies += bodies.len() as u64;
        for (id, written) in bodies {
            if !needed.contains(&id) {
                view.without_row += 1;
                view.orphans += u64::from(written < before);
            }
        }
    }
    Ok(view)
}

fn show(view: &BodiesView) {
    metrics::gauge!("pombo_blobs_bodies").set(view.bodies as f64);
    metrics::gauge!("pombo_blobs_without_row").set(view.without_row as f64);
    metrics::gauge!("pombo_blobs_orphans").set(view.orphans as f64);
}

fn sweep_every(age: Duration) -> Duration {
    (age / 30).clamp(SWEEP_EVERY.0, SWEEP_EVERY.1)
}

async fn orphans(
    store: &StoreThread,
    ids: Vec<MessageId>,
    me: Incarnation,
) -> Result<Vec<MessageId>, Error> {
    let now = UnixMillis::now();
    let asked = ids.clone();
    let needed = store
        .call(move |store| {
            let mine = store.begin_chore(now, CHORE, me, Duration::ZERO)?;
            mine.then(|| store.unfinished(&asked)).transpose()
        })
        .await?
        .ok_or(Error::NotOurs)?;
    let needed: HashSet<MessageId> = needed.into_iter().collect();
    Ok(ids.into_iter().filter(|id| !needed.contains(id)).collect())
}

impl Actor for Orphans {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let every = (sweep_every(self.age) / 2).min(LOOK_EVERY);
        ctx.run_interval(every, |this, ctx| this.look(ctx));
    }
}

impl Handler<SweepAs> for Orphans {
    type Result = ();

    fn handle(&mut self, SweepAs(term): SweepAs, _: &mut Self::Context) {
        self.term = term;
    }
}
