//! Several nodes that are one broker.

use std::{ops::Index, sync::Arc};

use futures_util::future::try_join_all;

use super::{Broker, node::Family};

/// A cluster of private nodes; about 13 s for three.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
}

impl Cluster {
    /// Starts `size` nodes and joins them.
    ///
    /// # Errors
    /// RabbitMQ is not installed, a node did not come up, or did not join.
    pub async fn start(size: usize) -> anyhow::Result<Self> {
        Self::start_with(size, "", "").await
    }

    /// [`start`](Self::start) with additional lines of `rabbitmq.conf`, and arguments of the Erlang machines.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(size: usize, config: &str, erlang: &str) -> anyhow::Result<Self> {
        let family = Arc::new(Family::new(erlang)?);
        let starts = (1..=size).map(|number| {
            let family = Arc::clone(&family);
            async move { Broker::start_in(family, &format!("rabbit{number}"), config, "").await }
        });
        let nodes = try_join_all(starts).await?;
        if let Some((first, others)) = nodes.split_first() {
            // One after the other: joins at the same time may collide.
            for node in others {
                node.rabbitmqctl(&["stop_app"]).await?;
                node.rabbitmqctl(&["join_cluster", first.node_name()])
                    .await?;
                node.rabbitmqctl(&["start_app"]).await?;
                node.ready().await?;
            }
        }
        Ok(Self { nodes })
    }

    /// The nodes in the order of their start.
    pub fn nodes(&self) -> &[Broker] {
        &self.nodes
    }

    /// The addresses of all nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Broker::url).collect()
    }
}

impl Index<usize> for Cluster {
    type Output = Broker;

    fn index(&self, number: usize) -> &Broker {
        &self.nodes[number]
    }
}
