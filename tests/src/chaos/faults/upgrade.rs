//! Everything is restarted, one process at a time, as in an upgrade.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::chaos::stage::{AGENTS, DOORS, SPOOLERS, Stage};

/// A drain may take 30 s, and the way out some more.
const DRAINED: Duration = Duration::from_secs(50);
const READY: Duration = Duration::from_secs(60);

pub(super) fn rolling_restart(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let mut order: Vec<&str> = SPOOLERS
            .iter()
            .chain(&AGENTS)
            .chain(&DOORS)
            .copied()
            .collect();
        stage.random.shuffle(&mut order);
        for name in &order {
            let service = stage.service(name);
            let code = service.terminate_and_wait(DRAINED).await?;
            anyhow::ensure!(code == 0, "{name} left with exit code {code}");
            service.start_again()?;
            service.ready(READY).await?;
            stage.flows(READY).await?;
        }
        Ok(order.len() as u32)
    }
    .boxed()
}
