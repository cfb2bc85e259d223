//! A private, real RabbitMQ node on the loopback interface: everything of its own (home, cookie, epmd, ports, directory), no
//! systemd, and nothing left when the test process is gone.
//!
//! A node boots in about five seconds, so the tests of one binary share one: [`Broker::shared`]. They keep apart by a topology
//! prefix ([`Broker::fresh_prefix`], free) or a virtual host ([`Broker::fresh_vhost`], one `rabbitmqctl`). A test that stops,
//! kills, pauses or alarms the node takes its own: [`Broker::start`].

mod cluster;
mod control;
mod definitions;
mod node;
mod queues;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::sync::OnceCell;

use self::node::{Family, Spec};
pub use self::{
    cluster::Cluster,
    definitions::{Role, SHIPPED as SHIPPED_DEFINITIONS},
};
use crate::process::Group;

/// A clean stop takes two seconds; this much when eight others compile on the same two cores.
const STOP_LIMIT: Duration = Duration::from_secs(60);

static SHARED: OnceCell<Broker> = OnceCell::const_new();

/// One RabbitMQ node.
#[derive(Debug)]
pub struct Broker {
    spec: Spec,
    /// `None`: stopped.
    group: Mutex<Option<Group>>,
    fresh: AtomicU32,
}

/// A virtual host of one's own on a shared node.
#[derive(Clone, Debug)]
pub struct Vhost {
    /// Its name.
    pub name: String,
    /// `amqp://guest:guest@127.0.0.1:port/name`.
    pub url: String,
}

impl Broker {
    /// A node of one's own, ready for clients.
    ///
    /// # Errors
    /// RabbitMQ is not installed, or did not come up; with the end of its log.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with("").await
    }

    /// [`start`](Self::start) with additional lines of `rabbitmq.conf`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(config: &str) -> anyhow::Result<Self> {
        let family = Arc::new(Family::new("")?);
        Self::start_in(family, "rabbit", config, "").await
    }

    /// [`start_with`](Self::start_with) and a plugin that comes with RabbitMQ.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with_plugin(config: &str, plugin: &str) -> anyhow::Result<Self> {
        let family = Arc::new(Family::new("")?);
        Self::start_in(family, "rabbit", config, plugin).await
    }

    /// The node that the tests of this process share. It ends with the process.
    ///
    /// # Panics
    /// If it cannot be started: no test of the process can run then.
    pub async fn shared() -> &'static Self {
        let start = || async {
            Self::start()
                .await
                .unwrap_or_else(|e| panic!("the shared broker: {e:#}"))
        };
        SHARED.get_or_init(start).await
    }

    async fn start_in(
        family: Arc<Family>,
        name: &str,
        config: &str,
        plugins: &str,
    ) -> anyhow::Result<Self> {
        let spec = Spec::new(family, name, config, plugins)?;
        let broker = Self {
            group: Mutex::new(Some(spec.spawn()?)),
            spec,
            fresh: AtomicU32::new(0),
        };
        broker.ready().await?;
        Ok(broker)
    }

    /// `amqp://guest:guest@127.0.0.1:port/%2f`: the default virtual host. (With nothing after the slash, the URI names one
    /// whose name is empty.)
    pub fn url(&self) -> String {
        format!("{}/%2f", self.authority())
    }

    /// `amqp://127.0.0.1:port/%2f`: for whoever logs in as a user of his own, see [`Role`].
    pub fn address(&self) -> String {
        format!("amqp://127.0.0.1:{}/%2f", self.spec.amqp_port)
    }

    /// Declares the shared topology of a prefix, as an administrator would by importing definitions: the users of
    /// [`Role`] may not.
    ///
    /// # Errors
    /// The node refused.
    pub async fn provide(&self, prefix: &str) -> anyhow::Result<()> {
        let declared = definitions::declare(&self.url(), prefix).await;
        declared.with_context(|| format!("declaring the topology of {prefix}"))
    }

    /// The port for clients; stays the same over stops and starts.
    pub fn port(&self) -> u16 {
        self.spec.amqp_port
    }

    /// The process that leads its group (the node itself, or the script that has started it); `None` while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.group().as_ref().map(Group::pid)
    }

    /// Its Erlang name, as `rabbitmqctl` shows it.
    pub fn node_name(&self) -> &str {
        &self.spec.node_name
    }

    /// Its log files' text.
    pub fn log(&self) -> String {
        self.spec.log()
    }

    /// A topology prefix that no other test of this node has.
    pub fn fresh_prefix(&self) -> String {
        format!("t{}", self.fresh.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// A virtual host that no other test of this node has, open to guest.
    ///
    /// # Errors
    /// `rabbitmqctl` failed.
    pub async fn fresh_vhost(&self) -> anyhow::Result<Vhost> {
        let name = format!("v{}", self.fresh.fetch_add(1, Ordering::Relaxed) + 1);
        self.add_vhost(&name).await?;
        let url = format!("{}/{name}", self.authority());
        Ok(Vhost { name, url })
    }

    /// Stops it cleanly; returns when it is gone.
    ///
    /// # Errors
    /// It did not stop, and was killed.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let Some(mut group) = self.group().take() else {
            return Ok(());
        };
        group.signal(Signal::SIGTERM);
        match group.wait(STOP_LIMIT).await {
            Some(_) => Ok(()),
            None => bail!("{} did not stop within {STOP_LIMIT:?}", self.spec.node_name),
        }
    }

    /// Kills it with -9.
    pub fn kill9(&self) {
        drop(self.group().take());
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill9`](Self::kill9), with what it had; returns when it is ready.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.start_again_unready()?;
        self.ready().await
    }

    /// [`start_again`](Self::start_again) without waiting: nodes of a cluster may wait for each other.
    ///
    /// # Errors
    /// It still runs, or could not be started.
    pub fn start_again_unready(&self) -> anyhow::Result<()> {
        let mut group = self.group();
        if group.as_mut().is_some_and(|group| group.ended().is_none()) {
            bail!("{} is still running", self.spec.node_name);
        }
        *group = Some(self.spec.spawn()?);
        Ok(())
    }

    /// Whether its process is there.
    pub fn is_running(&self) -> bool {
        let mut group = self.group();
        group.as_mut().is_some_and(|group| group.ended().is_none())
    }

    /// SIGSTOP: connections stay, nothing answers.
    pub fn pause(&self) {
        if let Some(group) = self.group().as_mut() {
            group.signal(Signal::SIGSTOP);
        }
    }

    /// SIGCONT.
    pub fn resume(&self) {
        if let Some(group) = self.group().as_mut() {
            group.signal(Signal::SIGCONT);
        }
    }

    /// Waits until it speaks AMQP.
    ///
    /// # Errors
    /// It ended, or took too long; with the end of its log.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let ended = || {
            self.group()
                .as_mut()
                .is_none_or(|group| group.ended().is_some())
        };
        self.spec
            .ready(ended)
            .await
            .with_context(|| format!("starting RabbitMQ node {}", self.spec.node_name))
    }

    /// Where it keeps its files.
    pub fn directory(&self) -> PathBuf {
        self.spec.directory()
    }

    fn authority(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.spec.amqp_port)
    }

    fn group(&self) -> MutexGuard<'_, Option<Group>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
