//! The end of a fault: all that was accepted is to arrive, and nothing to be left.

use std::{path::Path, time::Duration};

use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Stage;
use crate::chaos::{load::Entry, verdict::Arrived};

/// What is in doubt is free after 35 s, a dead spooler's claims sooner; then a retry or two.
const SETTLE: Duration = Duration::from_secs(180);
/// Who decide at once what becomes of what is held in doubt.
const PERSONS: usize = 8;
/// A spooler starts with another age for orphans, becomes a member, and sweeps.
const SWEPT: Duration = Duration::from_secs(60);
/// What deletes a body does so right after its commit, unless it died between.
const TIDIED: Duration = Duration::from_secs(10);

/// What a spooler logs when it has found out what became of a message that an agent may have had, and the answers that leave it
/// in doubt.
const FOUND_OUT: &str = "in doubt: found out";
const GIVEN_UP: [&str; 2] = ["Gone", "Struck"];
/// Of each spooler's.
const LINES_SHOWN: usize = 3;

/// What came of it all.
#[derive(Debug)]
pub struct End {
    /// What the clients were told.
    pub book: Vec<Entry>,
    /// What the outside world saw.
    pub arrived: Arrived,
    /// Recipients that the spoolers counted in doubt.
    pub doubt: u64,
    /// What their logs say of it: the first few agents that were given up for a message.
    pub given_up: Vec<String>,
    /// What somebody still has, in words.
    pub left: Vec<String>,
    /// Bodies that nobody had deleted when all was over.
    pub abandoned: u64,
    /// Bodies that the sweep of the blob store has not removed after that.
    pub bodies: u64,
}

impl Stage {
    /// Ends the load and waits until all that was accepted has arrived or been reported, and until nobody has anything left.
    pub async fn end(&mut self) -> End {
        let book = match self.load.take() {
            Some(load) => load.finish().await,
            None => Vec::new(),
        };
        let deadline = Instant::now() + SETTLE;
        while !self.has_all(&book) && Instant::now() < deadline {
            if self.needs.hold {
                self.decide(&book).await;
            }
            sleep(Duration::from_millis(200)).await;
        }
        let mut left = self.left().await;
        while !left.is_empty() && Instant::now() < deadline {
            if self.needs.hold {
                self.decide(&book).await;
            }
            sleep(Duration::from_millis(500)).await;
            left = self.left().await;
        }
        let tidied = Instant::now() + TIDIED;
        while self.bodies() > 0 && Instant::now() < tidied {
            sleep(Duration::from_millis(500)).await;
        }
        let abandoned = self.bodies();
        self.doubt.look().await;
        if abandoned > 0 && left.is_empty() {
            left.extend(self.sweep().await.err().map(|error| format!("{error:#}")));
        }
        End {
            arrived: self.arrived(&book).await,
            doubt: self.doubt.sum(),
            given_up: self.given_up(),
            book,
            left,
            abandoned,
            bodies: self.bodies(),
        }
    }

    fn bodies(&self) -> u64 {
        bodies(&self.pombo.blobs())
    }

    /// Nothing is under way any more, so every body that is there is an orphan, however young.
    async fn sweep(&mut self) -> anyhow::Result<()> {
        let service = self.pombo.spooler(0);
        service.terminate();
        let _ = service.wait(SWEPT).await;
        service.start_changed(
            "[blobs]\n",
            "[blobs]\norphans_after = \"5s\"\norphans_may_be_young = true\n",
        )?;
        let deadline = Instant::now() + SWEPT;
        while self.bodies() > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    fn has_all(&self, book: &[Entry]) -> bool {
        let mut accepted = book.iter().filter(|entry| entry.accepted);
        accepted.all(|entry| entry.recipients.iter().all(|it| self.has(entry, it)))
    }

    /// The person for whom messages in doubt are held: asks the outside world whether it has them, and says so.
    async fn decide(&self, book: &[Entry]) {
        let held = self.pombo.pombo(&["--json", "queue", "--in-doubt"]).await;
        let rows: Vec<Value> = serde_json::from_str(&held.stdout).unwrap_or_default();
        let decisions = rows
            .iter()
            .filter(|row| row["state"] == "held")
            .filter_map(|row| {
                let entry = book.iter().find(|entry| row["sender"] == *entry.sender)?;
                Some((
                    self.word_for(entry, &row["recipients"]),
                    row["id"].as_str()?,
                ))
            });
        // A program for each word: some hundreds, one after the other, would take the whole time to settle.
        let words = futures_util::stream::iter(decisions);
        words
            .for_each_concurrent(PERSONS, |(word, id)| async move {
                self.pombo.pombo(&[word, id]).await;
            })
            .await;
    }

    /// The words are about all that is undecided of a message: where the outside world has it for some only, and the person can
    /// neither send it again nor be silent about it, its sender is to know.
    fn word_for(&self, entry: &Entry, undecided: &Value) -> &'static str {
        let undecided = undecided.as_array().map_or(&[][..], Vec::as_slice);
        let has = |it: &&Value| it.as_str().is_some_and(|it| self.has(entry, it));
        match undecided.iter().filter(has).count() {
            0 => "release",
            all if all == undecided.len() => "cancel",
            _ => "drop",
        }
    }

    fn given_up(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for spooler in self.pombo.spoolers() {
            let log = spooler.log();
            let given_up = log.lines().filter(|line| {
                line.contains(FOUND_OUT) && GIVEN_UP.iter().any(|how| line.contains(how))
            });
            let named = given_up.map(|line| format!("{}: {line}", spooler.name()));
            lines.extend(named.take(LINES_SHOWN));
        }
        lines
    }

    /// Writes all logs into this directory.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep_logs(&mut self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir)?;
        let mut logs = Vec::new();
        for service in self.pombo.spoolers() {
            logs.push((service.name().to_owned(), service.log()));
        }
        for service in self.pombo.agents() {
            logs.push((service.name().to_owned(), service.log()));
        }
        for node in self.brokers.nodes() {
            logs.push((node.node_name().to_owned(), node.log()));
        }
        for (name, text) in logs {
            std::fs::write(dir.join(format!("{name}.log")), text)?;
        }
        Ok(())
    }

    /// What somebody still has: in the queues, or at an agent.
    async fn left(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        let queue = self.pombo.pombo(&["--json", "queue"]).await;
        match serde_json::from_str::<Value>(&queue.stdout) {
            Ok(Value::Array(rows)) if rows.is_empty() => {}
            Ok(rows) => left.push(format!("in the queue: {rows:.600}")),
            Err(_) => left.push(format!("pombo queue: {} {}", queue.stdout, queue.stderr)),
        }
        for agent in self.pombo.agents() {
            let busy = agent.metric("pombo_agent_in_flight").await;
            if !matches!(busy, Ok(count) if count == 0.0) {
                left.push(format!("under way at {}: {busy:?}", agent.name()));
            }
        }
        left
    }
}

fn bodies(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => bodies(&path),
            _ if entry.file_name().to_string_lossy().starts_with("pombo-") => 0,
            _ => 1,
        })
        .sum()
}
