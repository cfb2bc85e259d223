//! The end of a fault: all that was accepted is to arrive, and nothing to be left.

use std::{collections::HashMap, path::Path, time::Duration};

use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Stage;
use crate::{
    chaos::{
        load::Entry,
        verdict::{Arrived, Copies},
    },
    mail,
};

/// What is in doubt is free after 35 s, a dead spooler's claims sooner; then a retry or two.
const SETTLE: Duration = Duration::from_secs(180);
/// Who decide at once what becomes of what is held in doubt.
const PERSONS: usize = 8;
/// A spooler starts with another age for orphans, becomes a member, and sweeps.
const SWEPT: Duration = Duration::from_secs(60);
/// What deletes a body does so right after its commit, unless it died between.
const TIDIED: Duration = Duration::from_secs(10);

/// What came of it all.
#[derive(Debug)]
pub struct End {
    /// What the clients were told.
    pub book: Vec<Entry>,
    /// What the outside world saw.
    pub arrived: Arrived,
    /// Recipients that the spoolers counted in doubt.
    pub doubt: u64,
    /// What somebody still has, in words.
    pub left: Vec<String>,
    /// Bodies that nobody had deleted when all was over.
    pub abandoned: u64,
    /// Bodies that the sweep of the blob store has not removed after that.
    pub bodies: u64,
}

impl Stage {
    /// Ends the load and waits until all that was accepted has arrived or been reported, and until nobody has anything left.
    pub async fn end(mut self) -> End {
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
            arrived: self.arrived(&book),
            doubt: self.doubt.sum(),
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
        accepted.all(|entry| self.has(entry))
    }

    fn has(&self, entry: &Entry) -> bool {
        self.world.look(|seen| {
            seen.copies(&entry.id, &format!("r{}@example.net", entry.id)) > 0
                || seen.mail_for(&entry.sender).next().is_some()
        })
    }

    /// The person for whom messages in doubt are held: asks the outside world whether it has them, and says so.
    async fn decide(&self, book: &[Entry]) {
        let held = self.pombo.pombo(&["--json", "queue", "--in-doubt"]).await;
        let rows: Vec<Value> = serde_json::from_str(&held.stdout).unwrap_or_default();
        let decisions = rows
            .iter()
            .filter(|row| row["state"] == "held")
            .filter_map(|row| {
                let (id, sender) = (row["id"].as_str()?, row["sender"].as_str()?);
                let entry = book.iter().find(|entry| entry.sender == sender)?;
                Some((if self.has(entry) { "cancel" } else { "release" }, id))
            });
        // A program for each word: some hundreds, one after the other, would take the whole time to settle.
        let words = futures_util::stream::iter(decisions);
        words
            .for_each_concurrent(PERSONS, |(word, id)| async move {
                self.pombo.pombo(&[word, id]).await;
            })
            .await;
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

    fn arrived(&self, book: &[Entry]) -> Arrived {
        let by_id: HashMap<&str, &Entry> = book.iter().map(|it| (it.id.as_str(), it)).collect();
        let by_sender: HashMap<&str, &Entry> =
            book.iter().map(|it| (it.sender.as_str(), it)).collect();
        let mut arrived = Arrived::default();
        for mail in self.world.look(|seen| seen.transactions().to_vec()) {
            if mail.from.is_empty() {
                for entry in mail.to().iter().filter_map(|to| by_sender.get(to)) {
                    *arrived.reported.entry(entry.id.clone()).or_default() += 1;
                }
                continue;
            }
            let original = mail::without_trace(&mail.data);
            let Some(entry) = mail.id().and_then(|id| by_id.get(id.as_str()).copied()) else {
                continue;
            };
            let copies: &mut Copies = arrived.copies.entry(entry.id.clone()).or_default();
            copies.count += 1;
            copies.changed += u32::from(mail::sha256(original) != entry.sha256);
        }
        arrived
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
