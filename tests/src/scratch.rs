//! A private directory, removed when it is dropped or when the test process ends.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::reaper;

/// Set to anything: scratch directories stay, to be looked at.
pub const KEEP: &str = "POMBO_TESTS_KEEP";

/// A private directory under the system's temporary one.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// A new, empty directory whose name starts with `pombo-` and `name`.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::new_in(&std::env::temp_dir(), name)
    }

    /// The same in another directory than the system's temporary one.
    pub fn new_in(parent: &Path, name: &str) -> anyhow::Result<Self> {
        let mut dir = tempfile::Builder::new()
            .prefix(&format!("pombo-{name}-"))
            .tempdir_in(parent)
            .context("making a scratch directory")?;
        if std::env::var_os(KEEP).is_some() {
            dir.disable_cleanup(true);
            eprintln!("keeping {}", dir.path().display());
        } else {
            reaper::watch_dir(dir.path());
        }
        Ok(Self { dir })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it; nothing is created.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in it, making directories on the way.
    pub fn write(
        &self,
        name: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
    ) -> anyhow::Result<PathBuf> {
        let path = self.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
