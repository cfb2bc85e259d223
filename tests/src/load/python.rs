//! Python's smtplib as a client: messages of mixed sizes from several processes with several connections each.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;

use super::{Sent, SentMessage};
use crate::{mail, service};

const SCRIPT: &str = include_str!("python_client.py");

/// A load by smtplib.
///
/// ```no_run
/// # async fn test(listener: std::net::SocketAddr) -> anyhow::Result<()> {
/// let sent = pombo_tests::load::Python::messages(1_000).to(&["bob@example.net"]).send(listener).await?;
/// assert_eq!(sent.accepted(), 1_000);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Python {
    messages: usize,
    from: String,
    to: Vec<String>,
    processes: usize,
    threads: usize,
    per_connection: usize,
    sizes: Vec<(u32, usize, usize)>,
    seed: u64,
    patience: Duration,
    limit: Duration,
}

impl Python {
    /// So many messages: from 500 bytes to 1 MiB, most of them small, over 2 x 4 connections.
    pub fn messages(count: usize) -> Self {
        Self {
            messages: count,
            from: "load@example.org".into(),
            to: vec!["bob@example.net".into()],
            processes: 2,
            threads: 4,
            per_connection: 50,
            sizes: vec![
                (700, 500, 4 << 10),
                (250, 4 << 10, 32 << 10),
                (45, 32 << 10, 128 << 10),
                (5, 256 << 10, 1 << 20),
            ],
            seed: 1,
            patience: Duration::from_secs(60),
            limit: Duration::from_secs(900),
        }
    }

    /// The reverse-path.
    pub fn from(mut self, address: &str) -> Self {
        self.from = address.into();
        self
    }

    /// The recipients of each message. `{n}` in an address becomes the message's number.
    pub fn to(mut self, addresses: &[&str]) -> Self {
        self.to = addresses
            .iter()
            .map(|&address| address.to_owned())
            .collect();
        self
    }

    /// How many connections at a time: processes x threads.
    pub fn connections(mut self, processes: usize, threads: usize) -> Self {
        (self.processes, self.threads) = (processes.max(1), threads.max(1));
        self
    }

    /// How many messages go through one connection.
    pub fn per_connection(mut self, messages: usize) -> Self {
        self.per_connection = messages.max(1);
        self
    }

    /// Ranges of sizes in bytes, each with its weight.
    pub fn sizes(mut self, sizes: &[(u32, usize, usize)]) -> Self {
        self.sizes = sizes.to_vec();
        self
    }

    /// Another seed makes other sizes and texts.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How long a message is tried again after a 4xx or a cut connection; zero: once.
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }

    /// Sends them all, and returns when the last is accepted or given up.
    ///
    /// # Errors
    /// There is no Python, or the script failed. What a server refuses is no error.
    pub async fn send(self, server: SocketAddr) -> anyhow::Result<Sent> {
        let run = mail::fresh_id();
        let jobs = (0..self.processes).map(|process| self.process(server, &run, process));
        let messages = try_join_all(jobs).await?.into_iter().flatten().collect();
        Ok(Sent { messages })
    }

    async fn process(
        &self,
        server: SocketAddr,
        run: &str,
        process: usize,
    ) -> anyhow::Result<Vec<SentMessage>> {
        let mine: Vec<_> = (process..self.messages).step_by(self.processes).collect();
        let job = serde_json::json!({
            "host": server.ip().to_string(),
            "port": server.port(),
            "id_header": mail::ID_HEADER,
            "run": run,
            "numbers": mine,
            "from": self.from,
            "to": self.to,
            "threads": self.threads,
            "per_connection": self.per_connection,
            "sizes": self.sizes,
            "seed": self.seed,
            "patience": self.patience.as_secs_f64(),
        });
        let output = service::run_within(
            self.limit,
            Path::new("python3"),
            &["-c", SCRIPT],
            job.to_string().as_bytes(),
        )
        .await
        .context("the load by Python's smtplib needs python3")?;
        ensure!(
            output.code == 0,
            "the load by Python's smtplib failed:\n{}",
            output.stderr
        );
        let sent: Vec<SentMessage> =
            serde_json::from_str(&output.stdout).context("what the load by Python printed")?;
        ensure!(
            sent.len() == mine.len(),
            "the load by Python tells of {} messages instead of {}:\n{}",
            sent.len(),
            mine.len(),
            output.stderr
        );
        Ok(sent)
    }
}
