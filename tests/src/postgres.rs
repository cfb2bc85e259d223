//! A private, real PostgreSQL on the loopback interface: own directory, own port, and nothing left when the test process is gone.
//!
//! Made anew and started it is there in two seconds. Tests of one process share one ([`Postgres::shared`]) and take a schema each
//! ([`Postgres::fresh_schema`], free); a test that stops, pauses or fills it takes its own ([`Postgres::start`]).
//!
//! PostgreSQL refuses to run as root: then it is run as the user that its package has made.

mod spec;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::spec::{Spec, bin, owner};
use crate::{ports::free_port, process::Group, scratch::Scratch, service, tls::Certificate};

/// Two seconds alone; the rest is for machines that compile meanwhile.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOG_LINES: usize = 40;

static SHARED: OnceLock<Postgres> = OnceLock::new();

/// What a server is to be like.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    lines: Vec<String>,
    access: Option<String>,
    certificate: Option<Certificate>,
    clients: Option<String>,
    small_disk: Option<u64>,
}

impl Builder {
    /// One more line of `postgresql.conf`.
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Other lines of `pg_hba.conf` than "everybody on loopback, with a password".
    pub fn access(mut self, lines: &str) -> Self {
        self.access = Some(lines.to_owned());
        self
    }

    /// Speaks TLS with this certificate.
    pub fn certificate(mut self, certificate: &Certificate) -> Self {
        self.certificate = Some(certificate.clone());
        self
    }

    /// Believes clients' certificates that come from this one (PEM).
    pub fn clients(mut self, certificate_pem: &str) -> Self {
        self.clients = Some(certificate_pem.to_owned());
        self
    }

    /// Tables lie on a disk of this many bytes; what the server itself needs (its log of writes) lies elsewhere, so that a full
    /// disk is an error and not the server's end. See [`Postgres::fill_disk`].
    pub fn small_disk(mut self, bytes: u64) -> Self {
        self.small_disk = Some(bytes);
        self
    }

    /// Makes and starts it; returns when it takes connections.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or did not come up; with the end of its log.
    pub fn start(self) -> anyhow::Result<Postgres> {
        let bin = bin()?;
        let scratch = Scratch::new("postgres")?;
        // The other user must get at what is below; others see nothing but names.
        std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o711))?;
        let owner = owner()?;
        let spec = Spec {
            bin,
            port: free_port(),
            password: format!("{:032x}", fastrand::u128(..)),
            owner,
            small_disk: self.small_disk,
            scratch,
        };
        spec.make(&self)?;
        let server = Postgres {
            group: Mutex::new(Some(spec.spawn()?)),
            spec,
            fresh: AtomicU32::new(0),
        };
        server.ready()?;
        if self.small_disk.is_some() {
            let disk = server.spec.disk();
            server.sql(&format!(
                "CREATE TABLESPACE small LOCATION '{}'",
                disk.join("tables").display()
            ))?;
            server.sql("CREATE DATABASE mail TABLESPACE small")?;
        }
        Ok(server)
    }
}

/// One PostgreSQL server.
#[derive(Debug)]
pub struct Postgres {
    // Before its directory, so that it is gone when that is removed.
    group: Mutex<Option<Group>>,
    spec: Spec,
    fresh: AtomicU32,
}

impl Postgres {
    /// A server of one's own.
    ///
    /// # Errors
    /// See [`Builder::start`].
    pub fn start() -> anyhow::Result<Self> {
        Builder::default().start()
    }

    /// Says what it is to be like.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The server that the tests of this process share. It ends with the process.
    ///
    /// # Panics
    /// If it cannot be started: no test of the process can run then.
    pub fn shared() -> &'static Self {
        SHARED.get_or_init(|| {
            Self::start().unwrap_or_else(|e| panic!("the shared PostgreSQL: {e:#}"))
        })
    }

    /// `postgres://postgres@127.0.0.1:port/database`, as in `store.url`.
    pub fn url(&self) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{}",
            self.port(),
            self.database()
        )
    }

    /// Its port; stays the same over stops and starts.
    pub fn port(&self) -> u16 {
        self.spec.port
    }

    fn database(&self) -> &'static str {
        match self.spec.small_disk {
            Some(_) => "mail",
            None => "postgres",
        }
    }

    /// The file with the password of `postgres`.
    pub fn password_file(&self) -> PathBuf {
        self.spec.scratch.join("password")
    }

    /// The name of a schema that no other test of this server has.
    pub fn fresh_schema(&self) -> String {
        format!("t{}", self.fresh.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Runs statements with `psql`, as a person would; gives what they print, unaligned.
    ///
    /// # Errors
    /// They failed; with what it said.
    pub fn sql(&self, statements: &str) -> anyhow::Result<String> {
        let database = if statements.starts_with("CREATE TABLESPACE")
            || statements.starts_with("CREATE DATABASE")
        {
            "postgres"
        } else {
            self.database()
        };
        let mut child = self
            .psql(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting psql")?;
        if let Some(mut input) = child.stdin.take() {
            // One that ends early says why.
            let _ = input.write_all(statements.as_bytes());
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{statements}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn psql(&self, database: &str) -> Command {
        let mut command = Command::new(self.spec.bin.join("psql"));
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-h", "127.0.0.1", "-p", &self.port().to_string()])
            .args(["-U", "postgres", "-d", database])
            .env("PGPASSWORD", &self.spec.password)
            .env("PGCONNECT_TIMEOUT", "20");
        command
    }

    /// Holds a table of a schema locked against everybody until it is dropped.
    ///
    /// # Errors
    /// It could not be locked.
    pub fn lock(&self, schema: &str, table: &str) -> anyhow::Result<Lock> {
        self.lock_rows(&format!(
            "LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE"
        ))
    }

    /// Runs a statement in a transaction that ends when this is dropped: what it locks, or only reads, stays so.
    ///
    /// # Errors
    /// It failed.
    pub fn lock_rows(&self, statement: &str) -> anyhow::Result<Lock> {
        let mut session = Group::spawn(
            self.psql(self.database())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit()),
        )?;
        let (mut input, mut output) = session.pipes().context("psql's pipes")?;
        let statements = format!("BEGIN; {statement} \\g /dev/null\nSELECT 'locked';\n");
        input.write_all(statements.as_bytes())?;
        let mut said = [0; 6];
        output.read_exact(&mut said).context("psql ended")?;
        ensure!(&said == b"locked", "psql said {said:?}");
        Ok(Lock {
            _input: input,
            _session: session,
        })
    }

    /// Fills the small disk to the last block.
    ///
    /// # Errors
    /// It has none.
    pub fn fill_disk(&self) -> anyhow::Result<()> {
        let mut ballast = std::fs::File::create(self.ballast()?)?;
        for size in [1 << 20, 1 << 12] {
            let block = vec![0; size];
            while ballast.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// It has no small disk, or that was not filled.
    pub fn free_disk(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.ballast()?)?)
    }

    /// As the server sees it: nobody else sees that disk.
    fn ballast(&self) -> anyhow::Result<PathBuf> {
        ensure!(self.spec.small_disk.is_some(), "it has no small disk");
        let group = self.group();
        let pid = group.as_ref().context("it is stopped")?.pid();
        let disk = self.spec.disk();
        let inside = disk.strip_prefix("/")?;
        Ok(Path::new("/proc")
            .join(pid.to_string())
            .join("root")
            .join(inside)
            .join("ballast"))
    }

    /// Stops it: connections are closed, nothing is lost. Returns when it is gone.
    ///
    /// # Errors
    /// It did not stop, and was killed.
    pub fn stop(&self) -> anyhow::Result<()> {
        let Some(mut group) = self.group().take() else {
            return Ok(());
        };
        // "Fast": it does not wait for its clients.
        group.signal(Signal::SIGINT);
        let deadline = Instant::now() + STOP_LIMIT;
        while group.ended().is_none() {
            if Instant::now() > deadline {
                bail!("PostgreSQL did not stop within {STOP_LIMIT:?}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Kills all of its processes with -9, as a crash of the host would.
    pub fn kill9(&self) {
        let group = self.group().take();
        if let Some(group) = &group {
            signal_all(group.pid(), Signal::SIGKILL);
        }
        drop(group);
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill9`](Self::kill9), with what it had; returns when it takes connections.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_again(&self) -> anyhow::Result<()> {
        {
            let mut group = self.group();
            ensure!(group.is_none(), "it is still running");
            *group = Some(self.spec.spawn()?);
        }
        self.ready()
    }

    /// SIGSTOP to all of its processes: connections stay, nothing answers.
    pub fn pause(&self) {
        if let Some(group) = self.group().as_ref() {
            signal_all(group.pid(), Signal::SIGSTOP);
        }
    }

    /// SIGCONT.
    pub fn resume(&self) {
        if let Some(group) = self.group().as_ref() {
            signal_all(group.pid(), Signal::SIGCONT);
        }
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read(self.spec.log())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()));
            if TcpStream::connect(address).is_ok() && self.accepts() {
                return Ok(());
            }
            let ended = self
                .group()
                .as_mut()
                .is_none_or(|group| group.ended().is_some());
            if ended || Instant::now() > deadline {
                let log = service::tail(&self.log(), LOG_LINES);
                bail!("PostgreSQL did not come up; its log:\n{log}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn accepts(&self) -> bool {
        let mut command = Command::new(self.spec.bin.join("pg_isready"));
        command.args(["-q", "-h", "127.0.0.1", "-p", &self.port().to_string()]);
        command.status().is_ok_and(|status| status.success())
    }

    fn group(&self) -> MutexGuard<'_, Option<Group>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its children are in sessions of their own, and a stopped one does not notice that its parent is gone.
        self.kill9();
    }
}

/// A table that is locked.
#[derive(Debug)]
pub struct Lock {
    _input: std::process::ChildStdin,
    _session: Group,
}

/// The server's process first: what it would start in between, it does not start.
fn signal_all(leader: u32, signal: Signal) {
    let send = |pid: u32| {
        if let Ok(pid) = i32::try_from(pid) {
            // One that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    };
    let children = children(leader);
    send(leader);
    for child in children {
        send(child);
    }
}

fn children(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // pid (name) state ppid ...
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        after.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(is_child)
        .collect()
}
