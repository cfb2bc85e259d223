//! What a fault happens to: a broker or a cluster, three spoolers, three agents of one transport, a listener or two, the networks
//! between them, and the outside world. With what every fault needs: victims, pauses, and an end at which all is well again.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use self::{disk::SmallDisk, doubt::Doubt};
use super::load::{self, Load};
use crate::{
    Broker, Installation, Postgres, Sink,
    broker::Cluster,
    installation::{Agent, Builder},
    proxy::{Proxy, Weather},
    service::Service,
    sink,
};

mod arrived;
mod disk;
mod doubt;
mod end;

pub use self::{
    disk::{can_mount, fill, make_room},
    end::End,
};

/// The processes of every stage.
pub const SPOOLERS: [&str; 3] = ["spooler-1", "spooler-2", "spooler-3"];
/// All of one transport.
pub const AGENTS: [&str; 3] = ["out-1", "out-2", "out-3"];
/// The first one always, the second one if asked for.
pub const DOORS: [&str; 2] = ["door-1", "door-2"];

/// How long the outside world thinks about each message: what is under way in that time is what a fault may hit.
const DOT: Duration = Duration::from_millis(200);
/// How long a listener waits for a confirm: short, so that clients are often told "later" about what may be in the spool, and
/// send it again.
pub const CONFIRM_PATIENCE_S: u64 = 5;
/// How long agents wait for the answer to a final dot where the way to the outside world may be cut: not ten minutes, so that a
/// run sees its end.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Within this a process gets ready, on a machine that does other things too.
const READY: Duration = Duration::from_secs(90);

/// What a fault wants its stage to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// A cluster of three nodes instead of a single one.
    pub cluster: bool,
    /// A network of its own for each service's way to the broker, and one to the outside world.
    pub networks: bool,
    /// Everything that is kept lies on a small disk of its own.
    pub small_disk: bool,
    /// How many listeners.
    pub doors: usize,
    /// What is in doubt waits for a person, instead of being sent again.
    pub hold: bool,
    /// The store is a PostgreSQL server of the stage's own, instead of a file.
    pub postgres: bool,
}

impl Needs {
    /// One broker, one door, nothing else.
    pub const PLAIN: Self = Self {
        cluster: false,
        networks: false,
        small_disk: false,
        doors: 1,
        hold: false,
        postgres: false,
    };
    /// With networks.
    pub const NETWORKS: Self = Self {
        networks: true,
        ..Self::PLAIN
    };
    /// With PostgreSQL.
    pub const POSTGRES: Self = Self {
        postgres: true,
        ..Self::PLAIN
    };
    /// With a person for what is in doubt.
    pub const HOLD: Self = Self {
        hold: true,
        ..Self::PLAIN
    };
    /// With PostgreSQL, and a person for what is in doubt.
    pub const POSTGRES_HOLD: Self = Self {
        hold: true,
        ..Self::POSTGRES
    };
    /// With a cluster.
    pub const CLUSTER: Self = Self {
        cluster: true,
        ..Self::PLAIN
    };
}

/// The brokers that a lane has.
#[derive(Debug)]
pub enum Brokers {
    /// A single node.
    One(Broker),
    /// Three.
    Three(Cluster),
}

impl Brokers {
    /// Starts what is needed.
    ///
    /// # Errors
    /// RabbitMQ does not start.
    pub async fn start(cluster: bool) -> anyhow::Result<Self> {
        if cluster {
            // A paused node is to be noticed within seconds, and on waking to step back instead of going on by itself.
            let config = "cluster_partition_handling = pause_minority";
            let erlang = "-kernel net_ticktime 8";
            return Ok(Self::Three(Cluster::start_with(3, config, erlang).await?));
        }
        Ok(Self::One(Broker::start().await?))
    }

    /// Whether all nodes run and see each other.
    pub async fn are_sound(&self) -> bool {
        for node in self.nodes() {
            if !node.is_running() || !node.sees(self.nodes().len(), "10").await {
                return false;
            }
        }
        true
    }

    /// The node, or the first one.
    pub fn first(&self) -> &Broker {
        match self {
            Self::One(broker) => broker,
            Self::Three(cluster) => &cluster[0],
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Broker] {
        match self {
            Self::One(broker) => std::slice::from_ref(broker),
            Self::Three(cluster) => cluster.nodes(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Stage {
    /// The processes.
    pub pombo: Installation,
    /// The outside world.
    pub world: Sink,
    /// The broker.
    pub brokers: Arc<Brokers>,
    /// Each service's way to the broker, if the fault asked for it.
    pub networks: BTreeMap<String, Proxy>,
    /// The agents' way to the outside world, likewise.
    pub internet: Option<Proxy>,
    /// The clients; `None` after the end.
    load: Option<Load>,
    /// Chooses victims and pauses.
    pub random: fastrand::Rng,
    /// Strikes before this one.
    pub turn: usize,
    doubt: Doubt,
    needs: Needs,
    // Stopped after all processes are gone.
    postgres: Option<Arc<Postgres>>,
    // Unmounted after all processes are gone.
    disk: Option<SmallDisk>,
}

impl Stage {
    /// Builds it, starts it, and waits until mail flows.
    ///
    /// # Errors
    /// Something does not start, or the first mails do not arrive.
    pub async fn set(
        brokers: Arc<Brokers>,
        needs: Needs,
        rate: u32,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let world = Sink::builder().transcript_max(2_000).start().await?;
        behave(&world);
        let (mut networks, mut internet) = (BTreeMap::new(), None);
        if needs.networks {
            let broker = address(brokers.first().port());
            for name in SPOOLERS.iter().chain(&AGENTS).chain(&DOORS[..needs.doors]) {
                networks.insert((*name).to_owned(), Proxy::start(broker).await?);
            }
            internet = Some(Proxy::start(world.address()).await?);
        }
        let disk = needs.small_disk.then(SmallDisk::mount).transpose()?;
        let postgres = match needs.postgres {
            true => Some(Arc::new(blocking(Postgres::start).await?)),
            false => None,
        };
        let way_out = internet.as_ref().map_or(world.address(), Proxy::address);
        let prefix = brokers.first().fresh_prefix();
        brokers.first().provide(&prefix).await?;
        let mut builder = builder(&brokers, &prefix, needs, way_out);
        for (name, network) in &networks {
            let url = format!("amqp://{}/%2f", network.address());
            builder = builder.route(name, &[url]);
        }
        if let Some(server) = &postgres {
            builder = builder.postgres(server);
        }
        if let Some(disk) = &disk {
            builder = builder.directory_in(&disk.path);
        }
        let mut pombo = builder.start_unready().await?;
        pombo.ready(READY).await?;
        let doors: Vec<_> = DOORS[..needs.doors]
            .iter()
            .map(|door| pombo.door_of(door))
            .collect();
        let doubt = Doubt::watch(pombo.spoolers());
        let load = Load::start(&doors, rate, seed);
        let stage = Self {
            pombo,
            world,
            brokers,
            networks,
            internet,
            load: Some(load),
            random: fastrand::Rng::with_seed(seed),
            turn: 0,
            doubt,
            needs,
            postgres,
            disk,
        };
        stage.flows(READY).await?;
        Ok(stage)
    }

    /// The clients.
    ///
    /// # Panics
    /// After the end.
    pub fn load(&self) -> &Load {
        self.load.as_ref().expect("the load ends with the stage")
    }

    /// Waits until some more mails have arrived.
    ///
    /// # Errors
    /// They have not within `limit`.
    pub async fn flows(&self, limit: Duration) -> anyhow::Result<()> {
        let wanted = self.arrived_so_far() + 10;
        let deadline = Instant::now() + limit;
        while self.arrived_so_far() < wanted {
            ensure!(
                Instant::now() < deadline,
                "no mail has come through for {limit:?}"
            );
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn arrived_so_far(&self) -> usize {
        self.world.look(sink::Seen::distinct_deliveries)
    }

    /// Any of the three.
    pub fn any<'a>(&mut self, names: &[&'a str]) -> &'a str {
        names[self.random.usize(..names.len())]
    }

    /// Of every so many messages that the outside world takes, one is not answered: the connection is closed instead. `None`: it
    /// answers again.
    pub fn world_hangs_up(&self, every: Option<u32>) {
        self.world.accept_everything();
        if let Some(every) = every {
            let dot = sink::at(sink::Stage::Dot).every(every);
            self.world.rule(dot.wait(DOT).accept_and_drop());
        }
        behave(&self.world);
    }

    /// All but one of them, that one by chance.
    pub fn all_but_one<'a>(&mut self, names: &[&'a str]) -> Vec<&'a str> {
        let mut names = names.to_vec();
        names.swap_remove(self.random.usize(..names.len()));
        names
    }

    /// One after the other, a strike each: even two strikes try two of them.
    pub fn in_turn<T: Copy>(&self, all: &[T]) -> T {
        all[self.turn % all.len()]
    }

    /// A service by its name.
    pub fn service(&mut self, name: &str) -> &mut Service {
        match SPOOLERS.iter().position(|spooler| *spooler == name) {
            Some(number) => self.pombo.spooler(number),
            None => self.pombo.agent(name),
        }
    }

    /// SIGKILL. What the spoolers count is looked at before: a counter dies with its process.
    pub async fn kill9(&mut self, name: &str) {
        self.kill9_all(&[name]).await;
    }

    /// SIGKILL for all of them in one moment.
    pub async fn kill9_all(&mut self, names: &[&str]) {
        self.doubt.look().await;
        for name in names {
            self.service(name).sigkill();
        }
        for name in names {
            self.service(name).kill9();
        }
    }

    /// The load goes on meanwhile. Up to a quarter longer or shorter.
    pub async fn pass(&mut self, time: Duration) {
        let factor = 0.75 + self.random.f64() / 2.0;
        sleep(time.mul_f64(factor)).await;
    }

    /// The small disk's directory.
    ///
    /// # Errors
    /// The fault did not ask for one.
    pub fn small_disk(&self) -> anyhow::Result<&Path> {
        let disk = self.disk.as_ref().context("a stage without a small disk")?;
        Ok(&disk.path)
    }

    /// The store's server.
    ///
    /// # Errors
    /// The fault did not ask for one.
    pub fn postgres(&self) -> anyhow::Result<Arc<Postgres>> {
        let server = self.postgres.as_ref();
        server.cloned().context("a stage without PostgreSQL")
    }

    /// Ends whatever is still wrong: networks, stopped and dead processes, brokers.
    ///
    /// # Errors
    /// A process does not come back.
    pub async fn heal(&mut self) -> anyhow::Result<()> {
        let networks = self.networks.values().chain(&self.internet);
        networks.for_each(|network| network.set(Weather::Fine));
        self.world_hangs_up(None);
        for node in self.brokers.nodes() {
            node.resume();
            if !node.is_running() {
                node.start_again().await?;
            }
        }
        if let Some(disk) = &self.disk {
            disk.make_room();
        }
        for name in self.names() {
            let service = self.service(&name);
            service.sigcont();
            if !service.is_running() {
                service.start_again()?;
            }
        }
        self.pombo.ready(READY).await
    }

    fn names(&mut self) -> Vec<String> {
        let mut names: Vec<String> = SPOOLERS.map(str::to_owned).into();
        names.extend(self.pombo.agents().iter().map(|it| it.name().to_owned()));
        names
    }
}

fn behave(world: &Sink) {
    world.rule(sink::at(sink::Stage::Dot).wait(DOT));
}

/// The topology of the prefix is there: processes log in as the users of the shipped definitions, who may not declare it.
fn builder(brokers: &Brokers, prefix: &str, needs: Needs, way_out: SocketAddr) -> Builder {
    let urls: Vec<String> = brokers.nodes().iter().map(Broker::address).collect();
    let mut builder = Installation::builder()
        .with_least_rights(&urls, prefix)
        .broker_lines("heartbeat = \"4s\"")
        .spoolers(SPOOLERS.len())
        // Who was found out, for the explanation of doubt.
        .log_filter("info,pombo_spooler::adoption=debug")
        .spooler_lines(
            "[schedule]\nfirst = \"500ms\"\nmax = \"2s\"\njitter = 0.2\n\
             [destinations]\nrest = \"1s\"\nrest_max = \"4s\"",
        );
    for door in &DOORS[..needs.doors] {
        builder = builder.agent(
            Agent::smtp_listener(door)
                .transport("door")
                .host_line(&format!("confirm_patience = \"{CONFIRM_PATIENCE_S}s\""))
                .relay_for_everyone(),
        );
    }
    if needs.hold {
        builder = builder.transport_line("out", "in_doubt = \"hold\"");
    }
    for agent in AGENTS {
        let agent = Agent::smtp(agent)
            .transport("out")
            .smarthost(way_out)
            .host_of(load::DOMAINS[1], way_out);
        builder = builder.agent(match needs.networks {
            true => agent.line(&format!("timeouts.data_end = \"{ANSWER_PATIENCE:?}\"")),
            false => agent,
        });
    }
    // Each process prefers another node, as behind a balancer.
    let services = SPOOLERS.iter().chain(&AGENTS).chain(&DOORS[..needs.doors]);
    for (number, name) in services.enumerate() {
        let mut own = urls.clone();
        own.rotate_left(number % urls.len());
        builder = builder.route(name, &own);
    }
    builder
}

/// Work that waits for a program.
///
/// # Errors
/// As the work.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
