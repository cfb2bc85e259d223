//! Our own binaries as processes: started, asked for their health, stopped in every way, with their logs kept.

use std::{
    fs::{File, OpenOptions},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::{io::AsyncWriteExt as _, time::Instant};

use crate::{
    http::{self, HttpReply},
    process::Group,
};

/// How much of a log is shown when a test fails.
const TAIL_LINES: usize = 40;
/// A command of `pombo` that takes longer hangs.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// One of our binaries, from the directory that the test binary lies in.
///
/// # Panics
/// If it has not been built: tests do not build it, because cargo builds binaries of other crates for nobody.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    // target/debug/deps/smoke-0123456789abcdef, or target/debug/examples/x
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "{name} is not beside {}: run tests/run, or first `cargo build --workspace --bins`",
            test.display()
        )
    })
}

/// A service process: `pombo-spooler` or `pombo-agent`. Killed when dropped; while a test panics, the end of its log is shown.
#[derive(Debug)]
pub struct Service {
    name: String,
    binary: PathBuf,
    config: PathBuf,
    environment: Vec<(String, String)>,
    http: SocketAddr,
    log: PathBuf,
    group: Group,
}

impl Service {
    /// Starts `binary --config config`. `http` is where it serves its health (`http.listen`), `log` gets what it prints.
    pub fn start(
        name: &str,
        binary: &Path,
        config: &Path,
        http: SocketAddr,
        log: &Path,
    ) -> anyhow::Result<Self> {
        Self::start_with(name, binary, config, http, log, &[])
    }

    /// The same, with additional environment variables.
    pub fn start_with(
        name: &str,
        binary: &Path,
        config: &Path,
        http: SocketAddr,
        log: &Path,
        environment: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let group = spawn(binary, config, log, environment)?;
        Ok(Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            config: config.to_owned(),
            environment: environment.to_vec(),
            http,
            log: log.to_owned(),
            group,
        })
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.group.pid()
    }

    /// Where it serves its health.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Starts it again after it has ended, with the configuration file as it is now; the log goes on.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            bail!("{} is still running", self.name);
        }
        self.group = spawn(&self.binary, &self.config, &self.log, &self.environment)?;
        Ok(())
    }

    /// Starts it again after it has ended, with something else in its configuration file.
    pub fn start_changed(&mut self, instead_of: &str, text: &str) -> anyhow::Result<()> {
        let before = std::fs::read_to_string(&self.config)?;
        if !before.contains(instead_of) {
            bail!("{instead_of} is not in the file of {}", self.name);
        }
        std::fs::write(&self.config, before.replace(instead_of, text))?;
        self.start_again()
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.group.ended().is_none()
    }

    /// Waits until `/readyz` answers 200. An end of the process ends the waiting at once.
    pub async fn ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = http::get(self.http, "/readyz").await;
            if matches!(&answer, Ok(reply) if reply.status == 200) {
                return Ok(());
            }
            if let Some(status) = self.group.ended() {
                bail!(
                    "{} ended ({status}) instead of getting ready; its log:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "{} is not ready after {limit:?} ({answer:?}); its log:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `GET path` from its health server.
    pub async fn get(&self, path: &str) -> anyhow::Result<HttpReply> {
        http::get(self.http, path).await
    }

    /// A metric, summed over its labels; 0 if it is not there yet.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(http::metric(&self.get("/metrics").await?.body, name).unwrap_or(0.0))
    }

    /// SIGKILL, and waits for its end.
    pub fn kill9(&mut self) {
        self.group.kill9();
    }

    /// SIGKILL without waiting.
    pub fn sigkill(&mut self) {
        self.group.signal(Signal::SIGKILL);
    }

    /// SIGSTOP: alive for the kernel, dead for everyone else.
    pub fn sigstop(&mut self) {
        self.group.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn sigcont(&mut self) {
        self.group.signal(Signal::SIGCONT);
    }

    /// SIGTERM: please drain.
    pub fn terminate(&mut self) {
        self.group.signal(Signal::SIGTERM);
    }

    /// Waits for its end and gives the exit code; -1 after a signal.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<i32> {
        match self.group.wait(limit).await {
            Some(status) => Ok(status.code().unwrap_or(-1)),
            None => bail!(
                "{} still runs after {limit:?}; its log:\n{}",
                self.name,
                self.log_tail()
            ),
        }
    }

    /// SIGTERM, and [`wait`](Self::wait).
    pub async fn terminate_and_wait(&mut self, limit: Duration) -> anyhow::Result<i32> {
        self.terminate();
        self.wait(limit).await
    }

    /// All it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until a line of the log contains `text`, and gives that line.
    pub async fn wait_for_log(&self, text: &str, limit: Duration) -> String {
        let what = format!("a line with {text:?} in the log of {}", self.name);
        crate::eventually(limit, &what, || async {
            self.log()
                .lines()
                .find(|line| line.contains(text))
                .map(str::to_owned)
        })
        .await
    }

    fn log_tail(&self) -> String {
        tail(&self.log(), TAIL_LINES)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = match self.group.ended() {
                Some(status) => status.to_string(),
                None => "running".into(),
            };
            eprintln!(
                "--- {} ({state}), end of its log ---\n{}",
                self.name,
                self.log_tail()
            );
        }
    }
}

fn spawn(
    binary: &Path,
    config: &Path,
    log: &Path,
    environment: &[(String, String)],
) -> anyhow::Result<Group> {
    let file = append(log)?;
    Group::spawn(
        Command::new(binary)
            .arg("--config")
            .arg(config)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file),
    )
}

/// Opens a log so that several processes may write to its end.
pub(crate) fn append(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// The last `lines` lines.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let skip = text.lines().count().saturating_sub(lines);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for failures.
    pub command: String,
    /// The exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output, if the exit code is what was expected.
    ///
    /// # Panics
    /// If it is another, with all that was printed.
    pub fn exits(self, code: i32) -> String {
        assert_eq!(
            self.code, code,
            "exit code of `{}`\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.stdout, self.stderr
        );
        self.stdout
    }

    /// [`exits`](Self::exits) with 0.
    pub fn succeeds(self) -> String {
        self.exits(0)
    }

    /// Standard output as JSON, if the command succeeded.
    pub fn json(self) -> serde_json::Value {
        let command = self.command.clone();
        let text = self.succeeds();
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("`{command}` printed no JSON ({e}): {text}"))
    }
}

/// Runs a command to its end with `stdin` as its standard input, at most a minute.
pub async fn run(program: &Path, args: &[&str], stdin: &[u8]) -> anyhow::Result<Output> {
    run_within(COMMAND_LIMIT, program, args, stdin).await
}

/// [`run`] with another limit.
pub async fn run_within(
    limit: Duration,
    program: &Path,
    args: &[&str],
    stdin: &[u8],
) -> anyhow::Result<Output> {
    let name = program.file_name().map_or_else(
        || program.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    );
    let command = format!("{name} {}", args.join(" "));
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting `{command}`"))?;
    let mut pipe = child.stdin.take().context("its standard input is a pipe")?;
    let feed = async move {
        // A command that does not read its input to the end is no fault of the test's.
        let _ = pipe.write_all(stdin).await;
        drop(pipe);
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(limit, both)
        .await
        .with_context(|| format!("`{command}` still runs after {limit:?}"))??;
    Ok(Output {
        command,
        code: code(output.status),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
