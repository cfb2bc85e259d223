//! A process group that we started: signals by number, an end that is waited for, nothing left over.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::time::Instant;

use crate::reaper;

/// How often an end is looked for. (`std`'s child, not tokio's: a process outlives the runtime of the test that started it.)
const INTERVAL: Duration = Duration::from_millis(10);

/// A child and all that it starts, in a process group of their own. Killed when dropped.
#[derive(Debug)]
pub struct Group {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Group {
    /// Starts `command` as the leader of a new group.
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        reaper::watch_group(child.id());
        Ok(Self { child, ended: None })
    }

    /// The leader's process id, which is the group's too.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input and output, where both are pipes; once.
    pub fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.note_end(status);
        }
        self.ended
    }

    /// Sends a signal to the whole group; to one that has ended, nothing.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // It may end between the look and the signal, but its number is not free before we have waited for it.
            let _ = killpg(self.pgid(), signal);
        }
    }

    /// Waits until the leader has ended, at most `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// SIGKILL to all of it, and waits until the kernel has taken the leader away.
    pub fn kill9(&mut self) {
        if self.ended().is_none() {
            let _ = killpg(self.pgid(), Signal::SIGKILL);
            if let Ok(status) = self.child.wait() {
                self.note_end(status);
            }
        }
    }

    fn note_end(&mut self, status: ExitStatus) {
        // Members that outlived their leader keep the group's number taken; without any this does nothing.
        let _ = killpg(self.pgid(), Signal::SIGKILL);
        reaper::forget_group(self.pid());
        self.ended = Some(status);
    }

    fn pgid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are positive i32"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill9();
    }
}
