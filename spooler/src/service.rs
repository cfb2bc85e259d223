//! Puts the actors together, and takes them down in order.
//!
//! Down: doors and leasing stop; what is ready is moved to the outbox; what is submitted completes, up to the drain limit;
//! the last verdicts are committed; sessions log off; the membership is given back; the link closes; the store ends.

use std::{sync::Arc, time::Duration};

use actix::{Actor, AsyncContext, Context};
use anyhow::{Context as _, Result, bail};
use pombo_proto::{
    blob::Blobs,
    link::{Audience, Link},
    service::{
        http::{Health, Metrics, Server},
        shutdown::Shutdown,
    },
    time::UnixMillis,
    verbs::VersionRange,
};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::{
    adoption::Adoption,
    config::{Config, StoreKind},
    control::Control,
    dispatcher::{Dispatcher, Drain, InProcess},
    gather::Gather,
    horizon::Horizons,
    job::Ordinals,
    ledger::Ledger,
    membership::{Alive, Membership, Told},
    orphans::Orphans,
    outbox::{ClaimAs, IsClaiming, Outbox},
    reception::{Reception, Stop},
    recorder::{self, PendingCommits, Recorder},
    store::{self, Pruned, Sqlite, StoreThread},
    switchboard::{LogoffAll, Parts, Switchboard, Wire},
};

/// How often history is pruned, and how often gauges are set.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Between two steps of pruning. Longer than SQLite's longest sleep between two looks at a file that is busy (100 ms), so that other
/// processes come in.
const PRUNE_PAUSE: Duration = Duration::from_millis(250);
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How often a store that is away is tried at the start.
#[cfg(feature = "postgres")]
const REACH_EVERY: Duration = Duration::from_secs(1);
/// The last verdicts and the good-byes may take so long.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// Runs the spooler until SIGTERM, SIGINT or SIGHUP. Call it inside an actix system.
///
/// # Errors
/// What keeps it from starting: the store cannot be used, the blob store cannot be used, the port is taken.
pub async fn run(config: Config, versions: VersionRange) -> Result<()> {
    let config = Arc::new(config);
    let health = Health::default();
    for condition in ["broker", "store"] {
        health.set(condition, Err("not yet reached".to_owned()));
    }
    let mut asked = Shutdown::listen().context("signals")?;
    let http = Server::start(&config.http, health.clone(), Metrics::install()?)?;
    let Some(store) = opened(&config, &health, &mut asked).await? else {
        http.stop().await;
        return Ok(());
    };
    health.set("store", Ok(()));
    let blobs = Blobs::open(&config.blobs.place()?)
        .await
        .context("[blobs]")?;
    info!(spooler = config.spooler.name(), "pombo-spooler starts");

    let (parts, switchboard) = assemble(&config, versions, store.clone(), blobs, health)?;
    tidy(&parts);
    let failed = tokio::select! {
        signal = asked.asked() => {
            info!(signal, "asked to end");
            None
        }
        part = a_part_fails(&parts, &switchboard) => Some(part),
    };
    if failed.is_none() {
        tokio::select! {
            () = drain(&parts) => {}
            signal = asked.asked() => warn!(signal, "asked again: the rest is given back, in doubt"),
        }
    }
    if timeout(LEAVE_MAX, leave(&parts, &switchboard))
        .await
        .is_err()
    {
        warn!("the store takes too long: others will find what was claimed here");
    }
    parts.link.close().await;
    store.stop().await;
    http.stop().await;
    info!("pombo-spooler has ended");
    match failed {
        None => Ok(()),
        Some(part) => bail!("the {part} has failed"),
    }
}

/// The store, once it can be used; `None`: asked to end before that.
#[cfg_attr(not(feature = "postgres"), expect(unused_variables))]
async fn opened(
    config: &Config,
    health: &Health,
    asked: &mut Shutdown,
) -> Result<Option<StoreThread>> {
    let kind = config
        .store
        .kind()
        .map_err(|(key, text)| anyhow::anyhow!("store.{key}: {text}"))?;
    match kind {
        // A file that cannot be opened is a mistake of this host's.
        StoreKind::Sqlite(path) => {
            let sqlite = Sqlite::open(path, store::Options::default()).context("store.path")?;
            Ok(Some(StoreThread::spawn(sqlite)?))
        }
        #[cfg(feature = "postgres")]
        StoreKind::Postgres(options) => reached(options, health, asked).await,
    }
}

/// A server may be away for now, as the broker may: it is waited for.
#[cfg(feature = "postgres")]
async fn reached(
    options: store::postgres::Options,
    health: &Health,
    asked: &mut Shutdown,
) -> Result<Option<StoreThread>> {
    loop {
        let options = options.clone();
        let opened = tokio::task::spawn_blocking(move || store::Postgres::open(options)).await?;
        match opened {
            Ok(store) => return Ok(Some(StoreThread::spawn(store)?)),
            Err(store::Error::Unavailable(why)) => {
                warn!(why, "waiting for the store");
                health.set("store", Err(why));
            }
            Err(unusable) => return Err(unusable).context("store.url"),
        }
        tokio::select! {
            () = tokio::time::sleep(REACH_EVERY) => {}
            signal = asked.asked() => {
                info!(signal, "asked to end");
                return Ok(None);
            }
        }
    }
}

/// An actor that panics is gone for good, and what it held with it: better to start over. Resolves with its name.
async fn a_part_fails(parts: &Parts, switchboard: &actix::Addr<Switchboard>) -> &'static str {
    let mut look = tokio::time::interval(COUNT_EVERY);
    loop {
        look.tick().await;
        let stand = [
            ("dispatcher", parts.dispatcher.connected()),
            ("recorder", parts.recorder.connected()),
            ("adoption", parts.adoption.connected()),
            ("outbox", parts.outbox.connected()),
            ("membership", parts.membership.connected()),
            ("reception", parts.reception.connected()),
            ("control", parts.control.connected()),
            ("ledger", parts.ledger.connected()),
            ("orphans", parts.orphans.connected()),
            ("switchboard", switchboard.connected()),
        ];
        if let Some((part, _)) = stand.iter().find(|(_, stands)| !stands) {
            return part;
        }
    }
}

/// Downstream first, so that constructors hold the next one's address.
fn assemble(
    config: &Arc<Config>,
    versions: VersionRange,
    store: StoreThread,
    blobs: Blobs,
    health: Health,
) -> Result<(Parts, actix::Addr<Switchboard>)> {
    let (ordinals, alive) = (Ordinals::default(), Alive::default());
    let horizons = Horizons::default();
    let switchboard = Switchboard::default().start();
    let events = Gather::new(switchboard.clone().recipient());
    let mut options = config
        .broker
        .options(Audience::Spoolers, config.spooler.name())?;
    options.versions = versions;
    let link = Link::start(options, move |event| events.push(event));
    let recorder =
        Recorder::new(config.clone(), store.clone(), blobs.clone(), health.clone()).start();
    let dispatcher = Dispatcher::new(
        config.clone(),
        link.clone(),
        ordinals.clone(),
        recorder.clone(),
    )
    .start();
    let adoption =
        Adoption::new(config, store.clone(), dispatcher.clone(), recorder.clone()).start();
    let outbox = Outbox::new(
        store.clone(),
        ordinals.clone(),
        dispatcher.clone(),
        adoption.clone(),
        config.asks(),
    )
    .start();
    recorder.do_send(recorder::Wire {
        dispatcher: dispatcher.clone(),
        outbox: outbox.clone(),
    });
    let reception = Reception::new(config.spooler.turns()).start();
    let membership = Membership::new(
        store.clone(),
        config.spooler.name(),
        alive.clone(),
        Told {
            ended: switchboard.clone().recipient(),
            taken_over: outbox.clone().recipient(),
            listed: adoption.clone().recipient(),
        },
        health.clone(),
        horizons.clone(),
    )
    .start();
    let ledger = Ledger::new(
        config.clone(),
        store.clone(),
        link.clone(),
        dispatcher.clone(),
    )
    .start();
    let control = Control::new(
        config.clone(),
        store.clone(),
        blobs.clone(),
        link.clone(),
        dispatcher.clone(),
        outbox.clone(),
        switchboard.clone(),
        ledger.clone(),
    )
    .start();
    let orphans = Orphans::new(store.clone(), blobs.clone(), config.blobs.orphans_after).start();
    let parts = Parts {
        link,
        config: config.clone(),
        store,
        versions,
        blobs,
        ordinals,
        alive,
        horizons,
        health,
        dispatcher,
        recorder,
        adoption,
        reception,
        outbox,
        membership,
        control,
        ledger,
        orphans,
    };
    switchboard.do_send(Wire(parts.clone()));
    Ok((parts, switchboard))
}

/// Gauges and pruning, beside everything else.
fn tidy(parts: &Parts) {
    Tidy {
        parts: parts.clone(),
    }
    .start();
}

struct Tidy {
    parts: Parts,
}

impl Actor for Tidy {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(COUNT_EVERY, |this, _| {
            let store = this.parts.store.clone();
            actix::spawn(async move {
                if let Ok(counts) = store.call(|store| store.counts()).await {
                    let set = |state: &'static str, count: u64| {
                        metrics::gauge!("pombo_messages", "state" => state).set(count as f64);
                    };
                    set("waiting", counts.waiting);
                    set("claimed", counts.claimed);
                    set("held", counts.held);
                    set("dead", counts.dead);
                    metrics::gauge!("pombo_in_doubt").set(counts.in_doubt as f64);
                }
            });
        });
        ctx.run_interval(PRUNE_EVERY, |this, _| {
            let store = this.parts.store.clone();
            let before = UnixMillis::now()
                .before(this.parts.config.store.history)
                .day();
            actix::spawn(async move {
                match prune(&store, before).await {
                    Ok(pruned) if pruned == Pruned::default() => {}
                    Ok(pruned) => info!(?pruned, "history dropped"),
                    Err(error) => warn!(%error, "cannot prune"),
                }
            });
        });
    }
}

/// Step by step: each is a call of its own, and after each everybody who waits for the store has a turn.
async fn prune(store: &StoreThread, before: u32) -> Result<Pruned, crate::store::Error> {
    let mut pruned = Pruned::default();
    loop {
        pruned = pruned.and(store.call(move |store| store.prune(before)).await?);
        if !pruned.more {
            return Ok(pruned);
        }
        tokio::time::sleep(PRUNE_PAUSE).await;
    }
}

async fn drain(parts: &Parts) {
    info!("draining: no new work");
    parts.health.set("draining", Err("going down".to_owned()));
    parts.reception.do_send(Stop);
    parts.outbox.do_send(ClaimAs(None));
    parts.dispatcher.do_send(Drain);
    let deadline = tokio::time::Instant::now() + parts.config.spooler.drain;
    let mut told = tokio::time::Instant::now();
    loop {
        let claiming = parts.outbox.send(IsClaiming).await.unwrap_or(false);
        let (moving, what) = parts.dispatcher.send(InProcess).await.unwrap_or_default();
        let commits = parts.recorder.send(PendingCommits).await.unwrap_or(0);
        // Doubts wait for others and may take a minute; they are not counted, their claims are simply given back.
        if moving == 0 && commits == 0 && !claiming {
            break;
        }
        if tokio::time::Instant::now() > deadline {
            warn!(
                moving,
                commits,
                ?what,
                "drain limit: the rest is given back, in doubt"
            );
            break;
        }
        if told.elapsed() > Duration::from_secs(1) {
            told = tokio::time::Instant::now();
            info!(moving, commits, ?what, "still waiting for");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Logs off, records what was lost by that, and gives the claims back.
async fn leave(parts: &Parts, switchboard: &actix::Addr<Switchboard>) {
    let _ = switchboard.send(LogoffAll).await;
    settle_the_rest(parts).await;
    if let Ok(Some(term)) = switchboard.send(crate::switchboard::LeaveTerm).await {
        let _ = parts.membership.send(crate::membership::Leave(term)).await;
    }
}

/// Logging off loses what is still submitted: those verdicts ("in doubt") are committed before the link goes.
async fn settle_the_rest(parts: &Parts) {
    for _ in 0..250 {
        let commits = parts.recorder.send(PendingCommits).await.unwrap_or(0);
        let (moving, _) = parts.dispatcher.send(InProcess).await.unwrap_or_default();
        if commits == 0 && moving == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
