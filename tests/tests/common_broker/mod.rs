//! A private RabbitMQ node for the tests of one binary, until they share the harness.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

static SHARED: tokio::sync::Mutex<Weak<Broker>> = tokio::sync::Mutex::const_new(Weak::new());

/// A node; it and all that it started ends with this value.
pub struct Broker {
    directory: tempfile::TempDir,
    sbin: PathBuf,
    amqp_port: u16,
    distribution_port: u16,
    epmd_port: u16,
    epmd: Child,
    server: Mutex<Option<Child>>,
}

impl Broker {
    /// A node of one's own.
    pub async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let sbin = fs::read_dir("/usr/lib/rabbitmq/lib")
            .context("RabbitMQ is not installed")?
            .filter_map(|entry| Some(entry.ok()?.path().join("sbin")))
            .find(|sbin| sbin.join("rabbitmq-server").is_file())
            .context("no rabbitmq-server")?;
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text);
        write(
            "rabbitmq.conf",
            "disk_free_limit.absolute = 10MB\nlog.file.level = info\n",
        )?;
        write("enabled_plugins", "[].\n")?;
        write("rabbitmq-env.conf", "")?;
        write(".erlang.cookie", &format!("{:032x}", fastrand::u128(..)))?;
        let cookie = directory.path().join(".erlang.cookie");
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400))?;
        let (amqp_port, distribution_port, epmd_port) = (free_port()?, free_port()?, free_port()?);
        let epmd = Command::new("epmd")
            .args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("epmd")?;
        let broker = Self {
            directory,
            sbin,
            amqp_port,
            distribution_port,
            epmd_port,
            epmd,
            server: Mutex::new(None),
        };
        broker.start_again().await?;
        Ok(broker)
    }

    /// The node of all tests that do it no harm.
    pub async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(broker) = shared.upgrade() {
            return broker;
        }
        let broker = Arc::new(Self::start().await.expect("the shared broker starts"));
        *shared = Arc::downgrade(&broker);
        broker
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/", self.amqp_port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.amqp_port
    }

    /// Starts it after a stop; returns when it speaks AMQP.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        let log = fs::File::create(self.directory.path().join("console.log"))?;
        let child = self
            .command("rabbitmq-server")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        *self.server.lock().unwrap() = Some(child);
        for _ in 0..1_200 {
            if self.greets().await {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = fs::read_to_string(self.directory.path().join("console.log"))?;
        bail!("the node does not start:\n{log}")
    }

    /// Stops it cleanly.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let Some(mut child) = self.server.lock().unwrap().take() else {
            return Ok(());
        };
        killpg(group(&child), Signal::SIGTERM)?;
        for _ in 0..600 {
            if child.try_wait()?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the node does not stop")
    }

    /// Connections stay, nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// The end of a pause.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.server.lock().unwrap().as_ref() {
            killpg(group(child), signal).unwrap();
        }
    }

    /// Runs rabbitmqctl; gives what it says.
    pub async fn rabbitmqctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command("rabbitmqctl");
        command.args(["-q", "-n", "rabbit@localhost"]).args(args);
        let output = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "rabbitmqctl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, script: &str) -> Command {
        let dir = self.directory.path();
        let mut command = Command::new(self.sbin.join(script));
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LANG", "C.UTF-8")
            .env("HOME", dir)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", "rabbit@localhost")
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.amqp_port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", dir.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", dir.join("log"))
            .env("RABBITMQ_PID_FILE", dir.join("pid"))
            .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", dir.join("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", dir.join("rabbitmq-env.conf"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", dir.join("generated"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins"))
            .env("RABBITMQ_FEATURE_FLAGS_FILE", dir.join("feature_flags"))
            .env("RABBITMQ_PLUGINS_EXPAND_DIR", dir.join("plugins"))
            .current_dir(dir);
        command
    }

    async fn greets(&self) -> bool {
        let hello = async {
            let address = ("127.0.0.1", self.amqp_port);
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream.write_all(b"AMQP\0\0\x09\x01").await?;
            let mut start = [0; 3];
            stream.read_exact(&mut start).await?;
            std::io::Result::Ok(start)
        };
        let hello = tokio::time::timeout(Duration::from_secs(5), hello).await;
        matches!(hello, Ok(Ok([1, 0, 0])))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.server.get_mut().unwrap().take() {
            let _ = killpg(group(&child), Signal::SIGKILL);
            let _ = child.wait();
        }
        let _ = self.epmd.kill();
        let _ = self.epmd.wait();
    }
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid is positive"))
}

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}
