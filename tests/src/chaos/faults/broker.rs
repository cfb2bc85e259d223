//! Brokers that go away, stall, refuse, or take things away.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::{FutureExt as _, future::BoxFuture};
use pombo_proto::{
    message::Priority,
    topology::{SpoolClass, Topology},
};
use tokio::time::{Instant, sleep};

use super::{BACK, mail_flows_again};
use crate::{
    Broker,
    chaos::stage::{CONFIRM_PATIENCE_S, Stage},
    service::Service,
};

/// Two ticks of the nodes' own heartbeat (8 s here) and an election; and longer than two heartbeats of ours.
const NODE_GIVEN_UP: Duration = Duration::from_secs(18);
/// Twice as long as a listener waits for a confirm; and not so long that the agents' right to send runs out (35 s), for then what
/// they have at their dots is in doubt.
const UNCONFIRMED: Duration = Duration::from_secs(2 * CONFIRM_PATIENCE_S);

/// Long after whoever cannot publish would be taken for dead: agents that are not answered lose their right to send within 35 s.
const BLOCKED_LONG: Duration = Duration::from_secs(50);

pub(super) fn connection_cut(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        if stage.random.bool() {
            stage.brokers.first().close_all_connections().await?;
        } else {
            // Each of them by chance, but at least one.
            let names: Vec<String> = stage.networks.keys().cloned().collect();
            let certain = stage.random.usize(..names.len());
            for (number, name) in names.iter().enumerate() {
                if number == certain || stage.random.bool() {
                    stage.networks[name].cut();
                }
            }
        }
        stage.flows(BACK).await?;
        stage.pass(Duration::from_secs(2)).await;
        Ok(1)
    }
    .boxed()
}

pub(super) fn channel_closed(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let kill = "Pids = rabbit_channel:list_local(), \
            exit(lists:nth(rand:uniform(length(Pids)), Pids), kill).";
        stage.brokers.first().eval(kill).await?;
        stage.pass(Duration::from_secs(2)).await;
        stage.flows(BACK).await?;
        Ok(1)
    }
    .boxed()
}

pub(super) fn consumer_cancelled(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        // By the node itself: to everybody else an exclusive queue is locked.
        let delete = format!(
            "Prefix = <<\"{}.inbox.\">>, \
             Queues = [Q || Q <- rabbit_amqqueue:list(), \
               binary:longest_common_prefix([element(4, amqqueue:get_name(Q)), Prefix]) =:= byte_size(Prefix)], \
             Queue = lists:nth(rand:uniform(length(Queues)), Queues), \
             {{ok, _}} = rabbit_amqqueue:delete(Queue, false, false, <<\"chaos\">>), ok.",
            stage.pombo.prefix()
        );
        stage.brokers.first().eval(&delete).await?;
        stage.pass(Duration::from_secs(2)).await;
        stage.flows(BACK).await?;
        Ok(1)
    }
    .boxed()
}

/// What is in a queue is lost with it, whoever deletes it. So the doors are quiet for a moment: what was accepted is leased
/// or done, and what is leased is a spooler's. No process may declare the queue again: each spooler says so until somebody
/// imports the definitions.
pub(super) fn queue_deleted(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        stage.load().pause().await;
        let broker = stage.brokers.first();
        let topology = Topology::new(stage.pombo.prefix());
        let queue = topology.spool_queue(SpoolClass::Priority(Priority::Normal));
        let deadline = Instant::now() + BACK;
        while broker.queue_messages(&queue).await? > 0 {
            ensure!(Instant::now() < deadline, "{queue} does not become empty");
            sleep(Duration::from_millis(20)).await;
        }
        let said = format!("{queue} does not exist, and this user may not declare it");
        let before: Vec<usize> = stage
            .pombo
            .spoolers()
            .iter()
            .map(|spooler| times_said(spooler, &said))
            .collect();
        stage.brokers.first().delete_queue(&queue).await?;
        stage.load().go_on();
        let deadline = Instant::now() + BACK;
        for (spooler, before) in stage.pombo.spoolers().iter().zip(before) {
            while times_said(spooler, &said) == before {
                ensure!(
                    Instant::now() < deadline,
                    "{} does not say that {queue} is missing",
                    spooler.name()
                );
                sleep(Duration::from_millis(200)).await;
            }
        }
        stage.brokers.first().provide(stage.pombo.prefix()).await?;
        mail_flows_again(stage).await
    }
    .boxed()
}

fn times_said(service: &Service, text: &str) -> usize {
    service.log().matches(text).count()
}

pub(super) fn restart(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        stage.brokers.first().stop().await?;
        away_and_back(stage).await
    }
    .boxed()
}

pub(super) fn kill(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        stage.brokers.first().kill9();
        away_and_back(stage).await
    }
    .boxed()
}

/// Nothing can be confirmed, so nothing may be accepted; clients are told "later".
async fn away_and_back(stage: &mut Stage) -> anyhow::Result<u32> {
    // What was confirmed before may still be on its way to its client.
    sleep(Duration::from_millis(500)).await;
    let (accepted, deferred) = (stage.load().accepted(), stage.load().deferred());
    sleep(Duration::from_secs(4)).await;
    let more = stage.load().accepted() - accepted;
    ensure!(more == 0, "{more} messages were accepted without a broker");
    ensure!(
        stage.load().deferred() > deferred,
        "no client was told to come later while the broker was away"
    );
    stage.brokers.first().start_again().await?;
    mail_flows_again(stage).await
}

pub(super) fn node_kill(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let node = stage.random.usize(..3);
        stage.brokers.nodes()[node].kill9();
        stage.flows(BACK).await.context("with two of three nodes")?;
        stage.pass(Duration::from_secs(1)).await;
        let node = &stage.brokers.nodes()[node];
        node.start_again().await?;
        // The next one may only go when this one's queues are whole again.
        ensure!(node.sees(3, "60").await, "a node stays away");
        stage.flows(BACK).await?;
        Ok(1)
    }
    .boxed()
}

pub(super) fn node_pause(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let node = stage.random.usize(..3);
        stage.brokers.nodes()[node].pause();
        sleep(NODE_GIVEN_UP).await;
        stage
            .flows(BACK)
            .await
            .context("with a node that stands still")?;
        stage.brokers.nodes()[node].resume();
        together_again(stage, node).await
    }
    .boxed()
}

/// Clients are told "later" about what was published and may yet come to be in the spool; they send it again.
pub(super) fn majority_lost(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let stays = stage.random.usize(..3);
        let others: Vec<usize> = (0..3).filter(|node| *node != stays).collect();
        for &node in &others {
            stage.brokers.nodes()[node].pause();
        }
        // What was confirmed before may still be on its way to its client.
        sleep(Duration::from_secs(2)).await;
        let (accepted, deferred) = (stage.load().accepted(), stage.load().deferred());
        sleep(UNCONFIRMED).await;
        let more = stage.load().accepted() - accepted;
        ensure!(
            more == 0,
            "{more} messages were accepted without a majority"
        );
        ensure!(
            stage.load().deferred() > deferred,
            "no client was told to come later without a majority"
        );
        for &node in &others {
            stage.brokers.nodes()[node].resume();
        }
        for node in 0..3 {
            comes_back(&stage.brokers.nodes()[node]).await?;
        }
        mail_flows_again(stage).await
    }
    .boxed()
}

pub(super) fn node_partition(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let node = stage.random.usize(..3);
        let names: Vec<&str> = stage
            .brokers
            .nodes()
            .iter()
            .map(Broker::node_name)
            .collect();
        let names = names.join("', '");
        // Nodes that do not share a secret do not talk.
        let part = format!(
            "[begin erlang:set_cookie(N, parted), erlang:disconnect_node(N) end || \
               N <- ['{names}'], N =/= node()], ok."
        );
        stage.brokers.nodes()[node].eval(&part).await?;
        sleep(NODE_GIVEN_UP).await;
        stage.flows(BACK).await.context("with a node apart")?;
        let join = format!(
            "[erlang:set_cookie(N, erlang:get_cookie()) || N <- ['{names}'], N =/= node()], ok."
        );
        stage.brokers.nodes()[node].eval(&join).await?;
        together_again(stage, node).await
    }
    .boxed()
}

/// A node that was in the minority steps back and comes back by itself. One that missed its own absence (it woke and was
/// connected again before it had noticed) stays apart until somebody restarts it, as RabbitMQ's guide to partitions has it.
async fn together_again(stage: &mut Stage, number: usize) -> anyhow::Result<u32> {
    comes_back(&stage.brokers.nodes()[number]).await?;
    mail_flows_again(stage).await
}

async fn comes_back(node: &Broker) -> anyhow::Result<()> {
    if !node.sees(3, "20").await {
        node.kill9();
        node.start_again().await?;
        ensure!(node.sees(3, "60").await, "a node stays away");
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Alarm {
    Short,
    Long,
}

/// Nobody can publish: no message, no answer, no sign of life. Nobody is gone for that.
pub(super) fn memory_alarm(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        let deferred = stage.load().deferred();
        stage.brokers.first().raise_memory_alarm().await?;
        let deadline = Instant::now() + BACK;
        while stage.load().deferred() == deferred {
            ensure!(
                Instant::now() < deadline,
                "no client was told to come later under a memory alarm"
            );
            sleep(Duration::from_millis(50)).await;
        }
        match stage.in_turn(&[Alarm::Short, Alarm::Long]) {
            Alarm::Short => stage.pass(Duration::from_secs(5)).await,
            Alarm::Long => sleep(BLOCKED_LONG).await,
        }
        stage.brokers.first().clear_memory_alarm().await?;
        stage.flows(BACK).await?;
        stage.pass(Duration::from_secs(2)).await;
        Ok(1)
    }
    .boxed()
}
