//! A host with several processes loses its power. What it had written stays, as after every kill: this is no test of fsync.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::chaos::stage::{AGENTS, SPOOLERS, Stage};

pub(super) fn power_loss(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let host = stage.random.usize(..SPOOLERS.len());
        let victims = [SPOOLERS[host], AGENTS[host]];
        stage.kill9_all(&victims).await;
        stage.pass(Duration::from_secs(2)).await;
        for victim in victims {
            stage.service(victim).start_again()?;
        }
        stage.pass(Duration::from_secs(3)).await;
        Ok(1)
    }
    .boxed()
}
