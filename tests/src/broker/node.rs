//! How a node is started: its files, its environment, its epmd, and when it is ready.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::definitions;
use crate::{ports::free_port, process::Group, scratch::Scratch, service};

/// Where Debian and the generic archive put the scripts. Those in /usr/sbin change user, home and cookie.
const LIBRARY: &str = "/usr/lib/rabbitmq/lib";
/// Another `sbin` directory, for other versions.
const SBIN: &str = "POMBO_TESTS_RABBITMQ_SBIN";
/// Five seconds alone; the rest is for machines that compile meanwhile.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
const LOG_LINES: usize = 40;
/// Loopback for the nodes' own talk too; and no busy waiting on cores that the tests need.
const ERL_ARGS: &str =
    "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none";

/// What the nodes of one cluster share: a directory, a home with the cookie, an epmd.
#[derive(Debug)]
pub(super) struct Family {
    scratch: Scratch,
    sbin: PathBuf,
    epmd_port: u16,
    /// More arguments of the Erlang machines.
    erlang: String,
    /// In the foreground, so that it is ours to end; the one a node starts by itself would outlive it.
    _epmd: Group,
}

impl Family {
    pub(super) fn new(erlang: &str) -> anyhow::Result<Self> {
        let sbin = sbin()?;
        let scratch = Scratch::new("rabbitmq")?;
        let cookie = scratch.write(
            "home/.erlang.cookie",
            format!("{:032x}", fastrand::u128(..)),
        )?;
        std::fs::set_permissions(&cookie, std::fs::Permissions::from_mode(0o400))?;
        let epmd_port = free_port();
        let epmd = Group::spawn(
            clean(&mut Command::new("epmd"))
                .args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"])
                .current_dir(scratch.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(service::append(&scratch.join("epmd.log"))?),
        )?;
        Ok(Self {
            scratch,
            sbin,
            epmd_port,
            erlang: erlang.to_owned(),
            _epmd: epmd,
        })
    }
}

/// Everything about one node that stays the same over its starts.
#[derive(Debug)]
pub(super) struct Spec {
    family: Arc<Family>,
    short_name: String,
    pub(super) node_name: String,
    pub(super) amqp_port: u16,
    distribution_port: u16,
}

impl Spec {
    pub(super) fn new(
        family: Arc<Family>,
        short_name: &str,
        config: &str,
        plugins: &str,
    ) -> anyhow::Result<Self> {
        let spec = Self {
            node_name: format!("{short_name}@localhost"),
            short_name: short_name.to_owned(),
            amqp_port: free_port(),
            distribution_port: free_port(),
            family,
        };
        let files = &spec.family.scratch;
        // A full /tmp is not what these tests are about.
        let definitions = files.write(spec.file("definitions.json"), definitions::of_node()?)?;
        files.write(
            spec.file("rabbitmq.conf"),
            format!(
                "disk_free_limit.absolute = 10MB\nlog.file.level = info\nload_definitions = {}\n{config}\n",
                definitions.display()
            ),
        )?;
        files.write(spec.file("enabled_plugins"), format!("[{plugins}].\n"))?;
        files.write(spec.file("rabbitmq-env.conf"), "")?;
        Ok(spec)
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.family.scratch.join(&self.short_name)
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(&self.short_name).join(name)
    }

    pub(super) fn spawn(&self) -> anyhow::Result<Group> {
        let console = service::append(&self.directory().join("console.log"))?;
        let mut command = self.script("rabbitmq-server");
        Group::spawn(
            command
                .stdin(Stdio::null())
                .stdout(console.try_clone()?)
                .stderr(console),
        )
    }

    /// One of RabbitMQ's scripts in this node's environment, and in no other.
    pub(super) fn script(&self, name: &str) -> Command {
        let dir = self.directory();
        let mut command = Command::new(self.family.sbin.join(name));
        clean(&mut command)
            .current_dir(&dir)
            .env("HOME", self.family.scratch.join("home"))
            .env("ERL_EPMD_PORT", self.family.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            .env("RABBITMQ_NODENAME", &self.node_name)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.amqp_port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                format!("{ERL_ARGS} {}", self.family.erlang),
            )
            .env("RABBITMQ_MNESIA_BASE", dir.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", dir.join("log"))
            .env("RABBITMQ_PID_FILE", dir.join("pid"))
            .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", dir.join("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", dir.join("rabbitmq-env.conf"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", dir.join("generated"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins"))
            .env("RABBITMQ_FEATURE_FLAGS_FILE", dir.join("feature_flags"))
            .env("RABBITMQ_PLUGINS_EXPAND_DIR", dir.join("plugins"));
        command
    }

    /// Waits until the node greets an AMQP client: its listener is opened last, when queues and users are there.
    pub(super) async fn ready(&self, ended: impl Fn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while !self.greets().await {
            if ended() {
                bail!(
                    "it ended; its log:\n{}",
                    service::tail(&self.log(), LOG_LINES)
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "it is not there after {BOOT_LIMIT:?}; its log:\n{}",
                    service::tail(&self.log(), LOG_LINES)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn greets(&self) -> bool {
        let hello = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.amqp_port)).await?;
            stream.write_all(b"AMQP\0\0\x09\x01").await?;
            // Connection.Start is a method frame (1) on channel 0.
            let mut start = [0; 3];
            stream.read_exact(&mut start).await?;
            std::io::Result::Ok(start)
        };
        matches!(
            timeout(Duration::from_secs(5), hello).await,
            Ok(Ok([1, 0, 0]))
        )
    }

    pub(super) fn log(&self) -> String {
        let dir = self.directory();
        let logs = [
            dir.join("console.log"),
            dir.join("log").join(format!("{}.log", self.node_name)),
        ];
        logs.iter()
            .filter_map(|path| std::fs::read(path).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect()
    }
}

/// Nothing from outside: a `RABBITMQ_*` or `NOTIFY_SOCKET` of the caller would be obeyed.
fn clean(command: &mut Command) -> &mut Command {
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env_clear()
        .env("PATH", format!("{path}:/usr/bin:/bin:/usr/sbin:/sbin"))
        .env("LANG", "C.UTF-8")
}

fn sbin() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os(SBIN) {
        return Ok(dir.into());
    }
    let installed = std::fs::read_dir(LIBRARY).with_context(|| {
        format!("RabbitMQ is not installed (no {LIBRARY}); tests/run installs it")
    })?;
    let mut found: Vec<_> = installed
        .filter_map(|entry| Some(entry.ok()?.path().join("sbin")))
        .filter(|dir| dir.join("rabbitmq-server").is_file())
        .collect();
    found.sort();
    found
        .pop()
        .with_context(|| format!("no rabbitmq_server-*/sbin in {LIBRARY}"))
}
