//! Networks that swallow, delay, or carry little. Processes meet on the broker only, so a partition between two of them is one
//! between either and the broker; agents also need the outside world.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};

use super::mail_flows_again;
use crate::{
    chaos::stage::{AGENTS, SPOOLERS, Stage},
    proxy::Weather,
};

/// As long as a final dot may remain without an answer before it is given up (30 s of silence on the wire) does not pass.
const OUTSIDE_MAX: Duration = Duration::from_secs(8);

pub(super) fn partition(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let names: Vec<String> = stage.networks.keys().cloned().collect();
        // One more for the outside world.
        let victim = stage.random.usize(..=names.len());
        match (names.get(victim), &stage.internet) {
            (None, Some(internet)) => {
                internet.set(Weather::BlackHole);
                tokio::time::sleep(OUTSIDE_MAX).await;
            }
            (name, _) => {
                let name = name.unwrap_or(&names[0]).clone();
                stage.networks[&name].set(Weather::BlackHole);
                // Some come back before anybody has noticed, some after everybody has.
                let seconds = [3, 10, 20][stage.random.usize(..3)];
                stage.pass(Duration::from_secs(seconds)).await;
            }
        }
        clear(stage).await
    }
    .boxed()
}

pub(super) fn half_open(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let names: Vec<String> = stage.networks.keys().cloned().collect();
        let victim = names[stage.random.usize(..names.len())].clone();
        stage.networks[&victim].set(Weather::Deaf);
        stage.pass(Duration::from_secs(14)).await;
        clear(stage).await
    }
    .boxed()
}

pub(super) fn latency(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let slow = Weather::Slow {
            latency: Duration::from_millis(200),
            stall: Duration::from_millis(1_500),
        };
        stage
            .networks
            .values()
            .for_each(|network| network.set(slow));
        stage.pass(Duration::from_secs(12)).await;
        clear(stage).await
    }
    .boxed()
}

pub(super) fn throttle(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let narrow = Weather::Narrow { rate: 50 << 10 };
        for name in SPOOLERS[..2].iter().chain(&AGENTS[..2]) {
            stage.networks[*name].set(narrow);
        }
        stage.pass(Duration::from_secs(12)).await;
        clear(stage).await
    }
    .boxed()
}

async fn clear(stage: &mut Stage) -> anyhow::Result<u32> {
    for network in stage.networks.values().chain(&stage.internet) {
        network.set(Weather::Fine);
    }
    mail_flows_again(stage).await
}
