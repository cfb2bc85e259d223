//! An installation that runs: its processes by name, its doors, its directory, its command line.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::future::try_join_all;

use super::{Builder, State, agent_toml, command_toml, spooler_toml};
use crate::{
    broker::Role,
    ports,
    scratch::Scratch,
    scripted::journal::Journal,
    service::{self, Output, Service},
};

/// Spoolers and agents that run, and the command line that asks them. All are killed when it is dropped.
#[derive(Debug)]
pub struct Installation {
    // Before the directory, so that they are gone when it is removed.
    spoolers: Vec<Service>,
    agents: Vec<Service>,
    doors: Vec<(String, SocketAddr)>,
    prefix: String,
    command_config: PathBuf,
    builder: Builder,
    scratch: Scratch,
}

impl Installation {
    /// Says what it is to consist of.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn start(builder: Builder) -> anyhow::Result<Self> {
        let scratch = match &builder.directory_in {
            Some(parent) => Scratch::new_in(parent, "installation")?,
            None => Scratch::new("installation")?,
        };
        let state = State {
            dir: scratch.path(),
        };
        for dir in [state.blobs(), state.maildir()] {
            std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        for role in Role::ALL {
            std::fs::write(state.password(role), role.password())?;
        }
        let command_config = scratch.write("pombo.toml", command_toml(&builder, &state))?;
        let mut installation = Self {
            spoolers: Vec::new(),
            agents: Vec::new(),
            doors: Vec::new(),
            prefix: builder
                .broker
                .as_ref()
                .map(|(_, prefix)| prefix.clone())
                .unwrap_or_default(),
            command_config,
            builder,
            scratch,
        };
        for _ in 0..installation.builder.spoolers {
            installation.add_spooler()?;
        }
        for agent in installation.builder.agents.clone() {
            installation.add_agent(agent)?;
        }
        Ok(installation)
    }

    /// Starts one more spooler (which is not ready yet), and gives its number.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn add_spooler(&mut self) -> anyhow::Result<usize> {
        self.add_spooler_by("pombo-spooler")
    }

    /// The same by a neighbouring release, see [`super::Agent::neighbour`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn add_neighbour_spooler(&mut self) -> anyhow::Result<usize> {
        self.add_spooler_by("pombo-neighbour-spooler")
    }

    fn add_spooler_by(&mut self, program: &str) -> anyhow::Result<usize> {
        let number = self.spoolers.len();
        let (name, http) = (format!("spooler-{}", number + 1), ports::free_address());
        let text = spooler_toml(
            &self.builder,
            &State {
                dir: self.scratch.path(),
            },
            &name,
            http,
        );
        let service = self.service(&name, program, &text, http)?;
        self.spoolers.push(service);
        Ok(number)
    }

    /// Starts one more agent (which is not ready yet).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn add_agent(&mut self, agent: super::Agent) -> anyhow::Result<()> {
        let folder = State {
            dir: self.scratch.path(),
        }
        .drop_folder(&agent.name);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let http = ports::free_address();
        let text = agent_toml(
            &self.builder,
            &State {
                dir: self.scratch.path(),
            },
            &agent,
            http,
        );
        let service = self.service(&agent.name, agent.binary(), &text, http)?;
        self.agents.push(service);
        self.doors
            .extend(agent.listen.map(|address| (agent.name, address)));
        Ok(())
    }

    fn service(
        &self,
        name: &str,
        binary: &str,
        config: &str,
        http: SocketAddr,
    ) -> anyhow::Result<Service> {
        let path = self.scratch.write(format!("{name}.toml"), config)?;
        let log = self.scratch.join(format!("{name}.log"));
        Service::start_with(
            name,
            &service::binary(binary),
            &path,
            http,
            &log,
            &self.builder.environment,
        )
    }

    /// Waits until every process is ready.
    ///
    /// # Errors
    /// One did not get ready; with the end of its log.
    pub async fn ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        try_join_all(
            self.spoolers
                .iter_mut()
                .chain(&mut self.agents)
                .map(|service| service.ready(limit)),
        )
        .await
        .map(drop)
    }

    /// A spooler by its number, from 0.
    pub fn spooler(&mut self, number: usize) -> &mut Service {
        &mut self.spoolers[number]
    }

    /// All spoolers.
    pub fn spoolers(&mut self) -> &mut [Service] {
        &mut self.spoolers
    }

    /// An agent by its name.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn agent(&mut self, name: &str) -> &mut Service {
        self.agents
            .iter_mut()
            .find(|agent| agent.name() == name)
            .unwrap_or_else(|| panic!("no agent is named {name}"))
    }

    /// All agents.
    pub fn agents(&mut self) -> &mut [Service] {
        &mut self.agents
    }

    /// Where the first listener takes mail.
    ///
    /// # Panics
    /// If there is none.
    pub fn door(&self) -> SocketAddr {
        self.doors
            .first()
            .expect("the installation has no smtp-listener")
            .1
    }

    /// Where all listeners take mail.
    pub fn doors(&self) -> Vec<SocketAddr> {
        self.doors.iter().map(|(_, address)| *address).collect()
    }

    /// Where the listener of this name takes mail.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn door_of(&self, agent: &str) -> SocketAddr {
        self.doors
            .iter()
            .find(|(name, _)| name == agent)
            .unwrap_or_else(|| panic!("no listener is named {agent}"))
            .1
    }

    /// Where everything is kept.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The SQLite file, unless the store is PostgreSQL.
    pub fn store(&self) -> PathBuf {
        State {
            dir: self.directory(),
        }
        .store()
    }

    /// Where large bodies lie.
    pub fn blobs(&self) -> PathBuf {
        State {
            dir: self.directory(),
        }
        .blobs()
    }

    /// The new messages in the Maildir of an address, oldest first.
    pub fn delivered_to(&self, address: &str) -> Vec<Vec<u8>> {
        let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
        let new = self.maildir().join(domain).join(local).join("new");
        let mut found: Vec<_> = std::fs::read_dir(new)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((
                    entry.metadata().ok()?.modified().ok()?,
                    std::fs::read(entry.path()).ok()?,
                ))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, message)| message).collect()
    }

    /// Where Maildirs lie: `domain/local`.
    pub fn maildir(&self) -> PathBuf {
        State {
            dir: self.directory(),
        }
        .maildir()
    }

    /// Where the agent of this name picks up mail, if it is one that does.
    pub fn drop_folder(&self, agent: &str) -> PathBuf {
        State {
            dir: self.directory(),
        }
        .drop_folder(agent)
    }

    /// What the scripted agent of this name was asked to do.
    pub fn journal(&self, agent: &str) -> Journal {
        Journal::at(self.directory().join(format!("{agent}.journal")))
    }

    /// Opens a gate of a scripted agent: what waits for this name goes on.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn open_gate(&self, agent: &str, name: &str) {
        self.put(agent, &format!("open.{name}"), b"");
    }

    /// Makes a scripted agent say something by itself: see [`crate::scripted`].
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn command(&self, agent: &str, command: &str) {
        self.put(agent, &format!("do.{command}"), b"");
    }

    /// Gives a scripted agent a message to deliver; the name says how its delivery goes.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn incoming(&self, agent: &str, name: &str, from: &str, to: &[&str], message: &[u8]) {
        let mut bytes = format!("{from} {}\n", to.join(" ")).into_bytes();
        bytes.extend_from_slice(message);
        self.put(agent, &format!("{name}.eml"), &bytes);
    }

    fn put(&self, agent: &str, name: &str, bytes: &[u8]) {
        let folder = self.drop_folder(agent);
        let aside = folder.join(format!("aside.{name}.part"));
        std::fs::write(&aside, bytes)
            .and_then(|()| std::fs::rename(&aside, folder.join(name)))
            .unwrap_or_else(|e| panic!("writing {name} for {agent}: {e}"));
    }

    /// The topology prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Runs `pombo` with these arguments.
    ///
    /// # Panics
    /// If it cannot be started, or hangs.
    pub async fn pombo(&self, args: &[&str]) -> Output {
        self.pombo_with(args, b"").await
    }

    /// Runs `pombo` with these arguments and this standard input.
    ///
    /// # Panics
    /// If it cannot be started, or hangs.
    pub async fn pombo_with(&self, args: &[&str], stdin: &[u8]) -> Output {
        let config = self.command_config.to_string_lossy();
        let all: Vec<&str> = ["--config", &config]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        service::run(&service::binary("pombo"), &all, stdin)
            .await
            .unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Stops everything with SIGTERM, all at the same time, and claims that each drains and exits with 0.
    ///
    /// # Panics
    /// If one does not.
    pub async fn stops_cleanly(mut self, limit: Duration) {
        for service in self.spoolers.iter_mut().chain(&mut self.agents) {
            service.terminate();
        }
        for service in self.spoolers.iter_mut().chain(&mut self.agents) {
            let code = service
                .wait(limit)
                .await
                .unwrap_or_else(|e| panic!("{e:#}"));
            assert_eq!(code, 0, "exit code of {}", service.name());
        }
    }
}
