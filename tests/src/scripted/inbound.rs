//! StartMessage and Poll: a folder of files, each `SENDER RECIPIENT ...` in its first line and the message behind it.
//!
//! The word before the first dot of a file's name says how its delivery goes, as in local parts: `fail-2` (fails twice), `slow`
//! (waits for the gate of that word, or a cancel), `nothing` (there was no message after all), `panic-1`.
//! A file is removed only after SaveChanges has returned an id.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use pombo_agent::provider::{Incoming, Received, Reception};
use serde_json::json;

use super::{Shared, action::Action};

/// After a failure it is announced again.
const AGAIN: Duration = Duration::from_millis(50);

/// The foreign system.
#[derive(Default)]
pub(super) struct Folder {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: bool,
    announced: BTreeSet<String>,
    taken: BTreeSet<String>,
    tries: BTreeMap<String, u64>,
}

impl Folder {
    pub fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            ..Self::default()
        }
    }

    /// BEGIN_INBOUND and END_INBOUND. What is there is announced again after a pause of traffic.
    pub fn set_open(&self, open: bool) {
        let mut state = self.state();
        state.open = open;
        state.announced.clear();
    }

    /// How many there are to fetch.
    pub fn count(&self) -> u32 {
        let state = self.state();
        let names = self.names();
        let free = names.iter().filter(|name| !state.taken.contains(*name));
        let free = free.count();
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// Files that have not been announced, now they are; none while inbound is closed.
    pub fn news(&self) -> Vec<String> {
        let mut state = self.state();
        let names = self.names();
        if !state.open {
            return Vec::new();
        }
        let fresh = names.into_iter();
        fresh
            .filter(|name| !state.taken.contains(name))
            .collect::<Vec<_>>()
            .into_iter()
            .filter(|name| state.announced.insert(name.clone()))
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let Some(path) = &self.path else {
            return Vec::new();
        };
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(".eml"))
            .collect();
        names.sort();
        names
    }

    /// The next one that nobody delivers, and how often it was tried, this time included.
    fn take(&self) -> Option<(String, u64)> {
        // Read under the lock: a file that goes meanwhile is not free because it is taken no more.
        let mut state = self.state();
        let names = self.names();
        let name = names.into_iter().find(|it| !state.taken.contains(it))?;
        state.taken.insert(name.clone());
        let tries = state.tries.entry(name.clone()).or_default();
        *tries += 1;
        let tries = *tries;
        Some((name, tries))
    }

    fn give_back(&self, name: &str) {
        let mut state = self.state();
        state.taken.remove(name);
        state.announced.remove(name);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path
            .as_deref()
            .unwrap_or_else(|| Path::new(""))
            .join(name)
    }

    fn done(&self, name: &str) {
        // Under its own name no more: what is still taken is not taken again.
        let _ = std::fs::remove_file(self.file(name));
        self.give_back(name);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn start(shared: &Arc<Shared>, message: &Reception) -> Received {
    shared.journal.write("start", json!({}));
    let Some(support) = shared.support.get() else {
        return Received::Nothing;
    };
    let Some((name, tries)) = shared.folder.take() else {
        shared.journal.write("start_nothing", json!({}));
        return Received::Nothing;
    };
    let reference = support.next_reference();
    message.assign_reference(reference);
    let said = json!({ "file": name, "reference": reference.0 });
    shared.journal.write("start_reference", said);
    let received = deliver(shared, message, &name, tries).await;
    let how = match &received {
        Received::Saved { .. } => "saved",
        Received::Nothing => "nothing",
        Received::Failed(_) => "failed",
        Received::Cancelled => "cancelled",
    };
    let id = match &received {
        Received::Saved { id, .. } => id.to_string(),
        _ => String::new(),
    };
    let returned = json!({ "file": name, "how": how, "id": id, "reference": reference.0 });
    shared.journal.write("start_returned", returned);
    match &received {
        Received::Saved { .. } | Received::Nothing => shared.folder.done(&name),
        Received::Failed(_) | Received::Cancelled => {
            tokio::time::sleep(AGAIN).await;
            shared.folder.give_back(&name);
        }
    }
    received
}

async fn deliver(shared: &Shared, message: &Reception, name: &str, tries: u64) -> Received {
    let script = name.split('.').next().unwrap_or_default();
    let action = Action::of(script);
    match action.word.as_str() {
        "fail" if action.applies(tries) => return Received::Failed("as the file wished".into()),
        "nothing" => return Received::Nothing,
        "slow" => {
            tokio::select! {
                () = shared.gate(script) => {}
                () = message.cancelled() => {
                    shared.journal.write("start_cancelled", json!({ "file": name }));
                    return Received::Cancelled;
                }
            }
        }
        "ms" => tokio::time::sleep(Duration::from_millis(action.number.unwrap_or(0))).await,
        _ => {}
    }
    let Ok(bytes) = tokio::fs::read(shared.folder.file(name)).await else {
        return Received::Failed("it cannot be read".into());
    };
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words = line.split_whitespace().map(str::to_owned);
    let sender = words.next().unwrap_or_default();
    let body = Bytes::copy_from_slice(&bytes[(end + 1).min(bytes.len())..]);
    let incoming = Incoming {
        client: name.to_owned(),
        ..Incoming::new(sender, words.collect(), body)
    };
    match message.save_changes(incoming).await {
        Ok(id) => Received::Saved {
            id,
            more: shared.folder.count() > 0,
        },
        Err(pombo_agent::provider::SaveError::Cancelled) => Received::Cancelled,
        Err(error) => Received::Failed(error.to_string()),
    }
}
