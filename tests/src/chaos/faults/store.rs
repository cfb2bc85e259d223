//! A store that is locked, slow, on a disk that is full, or a server that is away.

use std::{path::Path, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use rusqlite::Connection;

use super::mail_flows_again;
use crate::chaos::stage::{self, Stage, blocking};

pub(super) fn locked(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        // Some end before any incarnation's renewal is overdue (10 s), some after.
        let hold = Duration::from_secs([4, 8, 14][stage.random.usize(..3)]);
        let store = stage.pombo.store();
        blocking(move || hold_lock(&store, hold)).await?;
        mail_flows_again(stage).await
    }
    .boxed()
}

pub(super) fn slow(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let store = stage.pombo.store();
        blocking(move || {
            for _ in 0..20 {
                hold_lock(&store, Duration::from_millis(450))?;
                std::thread::sleep(Duration::from_millis(30));
            }
            Ok(())
        })
        .await?;
        mail_flows_again(stage).await
    }
    .boxed()
}

fn hold_lock(store: &Path, time: Duration) -> anyhow::Result<()> {
    let connection = Connection::open(store)?;
    connection.busy_timeout(Duration::from_secs(30))?;
    connection.execute_batch("BEGIN EXCLUSIVE")?;
    std::thread::sleep(time);
    connection.execute_batch("ROLLBACK")?;
    Ok(())
}

pub(super) fn disk_full(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let disk = stage.small_disk()?.to_owned();
        let full = disk.clone();
        blocking(move || stage::fill(&full)).await?;
        stage.pass(Duration::from_secs(8)).await;
        // A process that cannot write may not have ended for that.
        for name in stage.pombo.spoolers().iter_mut() {
            anyhow::ensure!(name.is_running(), "{} ended on a full disk", name.name());
        }
        for name in stage.pombo.agents().iter_mut() {
            anyhow::ensure!(name.is_running(), "{} ended on a full disk", name.name());
        }
        stage::make_room(&disk);
        mail_flows_again(stage).await
    }
    .boxed()
}

/// The server is stopped, as for maintenance, and started.
pub(super) fn postgres_restart(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let server = stage.postgres()?;
        let away = absence(stage);
        blocking(move || {
            server.stop()?;
            std::thread::sleep(away);
            server.start_again()
        })
        .await?;
        mail_flows_again(stage).await
    }
    .boxed()
}

/// All of the server's processes are killed with -9: what it had not written is lost with them.
pub(super) fn postgres_kill(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let server = stage.postgres()?;
        blocking(move || {
            server.kill9();
            server.start_again()
        })
        .await?;
        mail_flows_again(stage).await
    }
    .boxed()
}

/// The server stands still: connections stay, and nothing answers.
pub(super) fn postgres_stall(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let server = stage.postgres()?;
        server.pause();
        tokio::time::sleep(absence(stage)).await;
        server.resume();
        mail_flows_again(stage).await
    }
    .boxed()
}

/// Shorter than any incarnation's renewal takes to be overdue (10 s), or longer.
fn absence(stage: &mut Stage) -> Duration {
    Duration::from_secs([2, 6, 14][stage.random.usize(..3)])
}
