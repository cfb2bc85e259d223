//! Agents that die, stall, or lose the broker. What they had under way is in doubt; nothing else may arrive twice.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::{
    chaos::stage::{AGENTS, Stage},
    proxy::Weather,
};

/// By then the silent ones' right to send has run out (35 s), and the spoolers have sent their messages by others.
const GIVEN_UP: Duration = Duration::from_secs(42);

pub(super) fn kill(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let victim = stage.any(&AGENTS);
        stage.kill9(victim).await;
        stage.service(victim).start_again()?;
        stage.pass(Duration::from_secs(2)).await;
        Ok(1)
    }
    .boxed()
}

pub(super) fn stall(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let victims = stage.all_but_one(&AGENTS);
        for victim in &victims {
            stage.service(victim).sigstop();
        }
        tokio::time::sleep(GIVEN_UP).await;
        for victim in &victims {
            stage.service(victim).sigcont();
        }
        stage.pass(Duration::from_secs(6)).await;
        Ok(victims.len() as u32)
    }
    .boxed()
}

pub(super) fn cut_off(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let victims = stage.all_but_one(&AGENTS);
        // One is told, the other only hears nothing more.
        for (victim, weather) in victims.iter().zip([Weather::Refusing, Weather::BlackHole]) {
            let network = &stage.networks[*victim];
            network.set(weather);
            if weather == Weather::Refusing {
                network.cut();
            }
        }
        tokio::time::sleep(GIVEN_UP).await;
        for victim in &victims {
            stage.networks[*victim].set(Weather::Fine);
        }
        stage.pass(Duration::from_secs(6)).await;
        Ok(victims.len() as u32)
    }
    .boxed()
}
