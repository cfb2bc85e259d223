//! Spoolers that die or stall. Nothing arrives twice: agents keep what they did until it is settled, and who comes back late has a
//! lower fence.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::chaos::stage::{AGENTS, SPOOLERS, Stage};

/// Longer than agents bear a silent session (30 s), than leases of a silent connection last (two heartbeats), and than a silent
/// incarnation's claims (10 s).
const GIVEN_UP: Duration = Duration::from_secs(33);

pub(super) fn kill(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let victim = stage.any(&SPOOLERS);
        stage.kill9(victim).await;
        // At once, or when the others are at its claims already.
        let pause = [100, 500, 2_000][stage.random.usize(..3)];
        stage.pass(Duration::from_millis(pause)).await;
        stage.service(victim).start_again()?;
        stage.pass(Duration::from_millis(1_500)).await;
        Ok(1)
    }
    .boxed()
}

pub(super) fn stall(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let victims = stage.all_but_one(&SPOOLERS);
        for victim in &victims {
            stage.service(victim).sigstop();
        }
        tokio::time::sleep(GIVEN_UP).await;
        // The agents have given them up when nobody but the third has a session.
        for agent in AGENTS {
            let agent = stage.service(agent);
            let sessions = agent.metric("pombo_agent_sessions").await?;
            anyhow::ensure!(
                sessions <= 1.0,
                "{} still has {sessions} sessions though two spoolers stand still",
                agent.name()
            );
        }
        for victim in &victims {
            stage.service(victim).sigcont();
        }
        stage.pass(Duration::from_secs(6)).await;
        Ok(victims.len() as u32)
    }
    .boxed()
}
