//! A host with several processes loses its power.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::chaos::stage::{AGENTS, SPOOLERS, Stage};

pub(super) fn power_loss(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let host = stage.random.usize(..SPOOLERS.len());
        let victims = [SPOOLERS[host], AGENTS[host]];
        for victim in victims {
            stage.kill9(victim).await;
        }
        stage.pass(Duration::from_secs(2)).await;
        for victim in victims {
            stage.service(victim).start_again()?;
        }
        stage.pass(Duration::from_secs(3)).await;
        Ok(1)
    }
    .boxed()
}
