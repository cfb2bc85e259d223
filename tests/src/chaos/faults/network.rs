//! Networks that swallow, delay, or carry little. Processes meet on the broker only, so a partition between two of them is one
//! between either and the broker; agents also need the outside world, which may take a message and not say so.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::{FutureExt as _, future::BoxFuture};

use super::mail_flows_again;
use crate::{
    chaos::stage::{AGENTS, ANSWER_PATIENCE, SPOOLERS, Stage},
    proxy::Weather,
};

/// How long agents cannot reach the outside world. In the first two, answers come late ([`ANSWER_PATIENCE`] is 30 s); in the last, who
/// had written a final dot has given up, and its message is there all the same.
const OUTSIDE: [Duration; 3] = [
    Duration::from_secs(8),
    Duration::from_secs(20),
    Duration::from_secs(40),
];
const _: () = assert!(
    OUTSIDE[1].as_secs() < ANSWER_PATIENCE.as_secs()
        && ANSWER_PATIENCE.as_secs() < OUTSIDE[2].as_secs()
);
/// The outside world hangs up after every so many messages that it has taken.
const HANGS_UP_EVERY: u32 = 8;

pub(super) fn partition(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let names: Vec<String> = stage.networks.keys().cloned().collect();
        let victim = &names[stage.random.usize(..names.len())];
        stage.networks[victim].set(Weather::BlackHole);
        // Some come back before anybody has noticed, some after everybody has.
        let seconds = [3, 10, 20][stage.random.usize(..3)];
        stage.pass(Duration::from_secs(seconds)).await;
        clear(stage).await
    }
    .boxed()
}

pub(super) fn partition_outside(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let internet = stage.internet.as_ref();
        let internet = internet.context("a stage without an outside network")?;
        internet.set(Weather::BlackHole);
        tokio::time::sleep(stage.in_turn(&OUTSIDE)).await;
        clear(stage).await
    }
    .boxed()
}

/// What is taken and not answered is in doubt as much as what an agent took with it.
pub(super) fn remote_hangs_up(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        stage.world_hangs_up(Some(HANGS_UP_EVERY));
        stage.pass(Duration::from_secs(8)).await;
        stage.world_hangs_up(None);
        mail_flows_again(stage).await
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
