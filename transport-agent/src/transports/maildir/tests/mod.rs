//! The transport through its trait, over real directories.

mod delivery;
mod pick_up;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Config, Maildir, fakes::FakeSupport};
use crate::provider::{LogonReply, Transport};

/// A transport with its files in a directory of its own; `ROOT` in the settings stands for it.
struct Fixture {
    directory: tempfile::TempDir,
    maildir: Arc<Maildir>,
    support: Arc<FakeSupport>,
    reply: LogonReply,
}

impl Fixture {
    async fn new(settings: &str) -> Self {
        Self::over(tempfile::tempdir().unwrap(), settings).await
    }

    /// Another life of the transport over the same files.
    async fn restarted(self, settings: &str) -> Self {
        self.maildir.shutdown().await;
        Self::over(self.directory, settings).await
    }

    async fn over(directory: tempfile::TempDir, settings: &str) -> Self {
        let maildir = Arc::new(made(directory.path(), settings));
        let support = Arc::new(FakeSupport::default());
        let reply = maildir.logon(support.clone()).await.unwrap();
        Self {
            directory,
            maildir,
            support,
            reply,
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }
}

fn made(root: &Path, settings: &str) -> Maildir {
    let settings = settings.replace("ROOT", root.to_str().unwrap());
    let config: Config = toml::from_str(&settings).unwrap();
    Maildir::new(config).unwrap()
}

/// The names in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .map(|entries| {
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}
