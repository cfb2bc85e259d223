//! The journal of a scripted transport: one JSON object per line, with `what` and the time `at` in microseconds since the epoch.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::eventually;

/// The side that writes.
pub(super) struct Writer(Mutex<File>);

impl Writer {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Mutex::new(file)))
    }

    /// One call, and what was said in it. A journal that cannot be written would make every test lie.
    pub(super) fn write(&self, what: &str, mut about: Value) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        about["at"] = now.map_or(0, |it| it.as_micros() as u64).into();
        about["what"] = what.into();
        let line = format!("{about}\n");
        if let Err(error) = file.write_all(line.as_bytes()) {
            eprintln!("the journal cannot be written: {error}");
            std::process::abort();
        }
    }
}

/// The side that reads: what a transport was asked to do so far.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry(pub Value);

impl Entry {
    /// Which call.
    pub fn what(&self) -> &str {
        self.text("what")
    }

    /// A field that is a text; empty if there is none.
    pub fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// A field that is a list of texts.
    pub fn list(&self, field: &str) -> Vec<&str> {
        let all = self.0[field].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).collect()
    }

    /// A field that is a number; 0 if there is none.
    pub fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_default()
    }

    /// A field that is true or false.
    pub fn flag(&self, field: &str) -> bool {
        self.0[field].as_bool().unwrap_or_default()
    }

    /// When, since the epoch.
    pub fn at(&self) -> Duration {
        Duration::from_micros(self.number("at"))
    }
}

impl Journal {
    /// Of this file.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// All so far. A last line that is still being written is left for later.
    pub fn entries(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let parsed = complete.lines().map(|line| {
            let value = serde_json::from_str(line);
            Entry(value.unwrap_or_else(|e| panic!("a broken line in the journal ({e}): {line}")))
        });
        parsed.collect()
    }

    /// The calls of this kind.
    pub fn all(&self, what: &str) -> Vec<Entry> {
        self.entries()
            .into_iter()
            .filter(|entry| entry.what() == what)
            .collect()
    }

    /// All about one message, in order.
    pub fn about(&self, id: &str) -> Vec<Entry> {
        self.entries()
            .into_iter()
            .filter(|entry| entry.text("id") == id)
            .collect()
    }

    /// The names of the calls about one message, in order.
    pub fn story(&self, id: &str) -> Vec<String> {
        let about = self.about(id);
        about.iter().map(|entry| entry.what().to_owned()).collect()
    }

    /// Waits for the `count`-th call of this kind that `matches`.
    ///
    /// # Panics
    /// It does not come within `limit`.
    pub async fn wait_for(
        &self,
        limit: Duration,
        what: &str,
        count: usize,
        matches: impl Fn(&Entry) -> bool,
    ) -> Entry {
        let name = format!("call {count} of {what} in {}", self.path.display());
        eventually(limit, &name, || async {
            let mut found: Vec<_> = self.all(what);
            found.retain(|entry| matches(entry));
            if found.len() < count {
                let seen: Vec<_> = self.entries().iter().map(|it| it.0.to_string()).collect();
                return Err(format!("{} of them in\n{}", found.len(), seen.join("\n")));
            }
            Ok(found.swap_remove(count - 1))
        })
        .await
    }

    /// Waits for the `count`-th call of this kind about one message.
    ///
    /// # Panics
    /// It does not come within `limit`.
    pub async fn wait_about(&self, limit: Duration, what: &str, count: usize, id: &str) -> Entry {
        self.wait_for(limit, what, count, |entry| entry.text("id") == id)
            .await
    }
}
