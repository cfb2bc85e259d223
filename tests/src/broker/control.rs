//! What is done to a running node through `rabbitmqctl`. Each call starts an Erlang machine: about a second.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};

use super::Broker;

/// Joining a cluster on a busy machine is the longest.
const LIMIT: Duration = Duration::from_secs(120);
/// RabbitMQ's default of 3.10.
const NORMAL_WATERMARK: &str = "0.4";

impl Broker {
    /// Whether this node sees so many, itself included, within so many seconds.
    pub async fn sees(&self, nodes: usize, seconds: &str) -> bool {
        let nodes = nodes.to_string();
        self.rabbitmqctl(&["await_online_nodes", &nodes, "-t", seconds])
            .await
            .is_ok()
    }

    /// Runs `rabbitmqctl` against this node and gives its output.
    ///
    /// # Errors
    /// It failed; with what it said.
    pub async fn rabbitmqctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::from(self.spec.script("rabbitmqctl"));
        command
            .args(["-q", "-n", self.node_name()])
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let said = format!("rabbitmqctl {}", args.join(" "));
        let output = tokio::time::timeout(LIMIT, command.output())
            .await
            .with_context(|| format!("{said}: still runs after {LIMIT:?}"))??;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(
            output.status.success(),
            "{said}: {}\n{out}{err}",
            output.status
        );
        Ok(out.into_owned())
    }

    /// Evaluates an Erlang expression on the node.
    ///
    /// # Errors
    /// As [`rabbitmqctl`](Self::rabbitmqctl).
    pub async fn eval(&self, expression: &str) -> anyhow::Result<String> {
        self.rabbitmqctl(&["eval", expression]).await
    }

    /// Closes every client's connection.
    ///
    /// # Errors
    /// As [`rabbitmqctl`](Self::rabbitmqctl).
    pub async fn close_all_connections(&self) -> anyhow::Result<()> {
        self.rabbitmqctl(&["close_all_connections", "closed by a test"])
            .await
            .map(drop)
    }

    /// Raises the memory alarm: from now on publishers are blocked.
    ///
    /// # Errors
    /// As [`rabbitmqctl`](Self::rabbitmqctl), or the alarm was not raised.
    pub async fn raise_memory_alarm(&self) -> anyhow::Result<()> {
        self.rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"])
            .await?;
        self.await_memory_alarm(true).await
    }

    /// Clears the memory alarm.
    ///
    /// # Errors
    /// As [`rabbitmqctl`](Self::rabbitmqctl), or the alarm was not cleared.
    pub async fn clear_memory_alarm(&self) -> anyhow::Result<()> {
        self.rabbitmqctl(&["set_vm_memory_high_watermark", NORMAL_WATERMARK])
            .await?;
        self.await_memory_alarm(false).await
    }

    /// The monitor looks once a second; the node itself waits for it, which spares us a machine per look.
    async fn await_memory_alarm(&self, raised: bool) -> anyhow::Result<()> {
        let expression = format!(
            "Wait = fun F(0) -> late; F(N) -> \
               case lists:any(fun({{{{resource_limit, memory, _}}, _}}) -> true; (_) -> false end, rabbit_alarm:get_alarms()) of \
                 {raised} -> there; \
                 _ -> timer:sleep(50), F(N - 1) \
               end \
             end, Wait(400)."
        );
        let answer = self.eval(&expression).await?;
        ensure!(
            answer.trim() == "there",
            "the memory alarm did not become {raised}: {answer}"
        );
        Ok(())
    }

    /// One Erlang machine for both steps.
    pub(super) async fn add_vhost(&self, name: &str) -> anyhow::Result<()> {
        let expression = format!(
            "V = <<\"{name}\">>, ok = rabbit_vhost:add(V, <<\"test\">>), \
             ok = rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, V, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>)."
        );
        self.eval(&expression).await.map(drop)
    }
}
