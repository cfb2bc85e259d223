//! A disk that can be filled.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::scratch::Scratch;

/// Small enough to fill quickly, large enough for a run's store, bodies and logs.
const SMALL_DISK: &str = "size=96m,mode=700";

/// A file system of its own that is soon full. Needs root.
#[derive(Debug)]
pub(super) struct SmallDisk {
    pub(super) path: PathBuf,
    _under: Scratch,
}

impl SmallDisk {
    const FILLER: &str = "filler";

    pub(super) fn mount() -> anyhow::Result<Self> {
        let under = Scratch::new("disk")?;
        let path = under.join("small");
        std::fs::create_dir(&path)?;
        let output = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", SMALL_DISK, "pombo-chaos"])
            .arg(&path)
            .output()
            .context("running mount")?;
        ensure!(
            output.status.success(),
            "mount: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Self {
            path,
            _under: under,
        })
    }

    pub(super) fn make_room(&self) {
        let _ = std::fs::remove_file(self.path.join(Self::FILLER));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is still open in it goes with the last process.
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.path)
            .output();
    }
}

/// Whether this process may mount.
pub fn can_mount() -> bool {
    SmallDisk::mount().is_ok()
}

/// Writes until nothing fits any more. On a small disk only.
///
/// # Errors
/// Anything but a full disk.
pub fn fill(dir: &Path) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join(SmallDisk::FILLER))?;
    // Small pieces at the end leave no page free.
    for piece in [vec![0; 1 << 20], vec![0; 4 << 10], vec![0; 1]] {
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => break,
                Err(e) => return Err(e).context("filling the disk"),
            }
        }
    }
    Ok(())
}

/// Gives back what [`fill`] has taken.
pub fn make_room(dir: &Path) {
    let _ = std::fs::remove_file(dir.join(SmallDisk::FILLER));
}
