//! Looking into queues over AMQP, each time on a connection of its own.
//!
//! `rabbitmqctl list_queues` shows counts of quorum queues that are seconds old. A passive declare asks the queue's leader.

use anyhow::{Context as _, ensure};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::FieldTable,
};

use super::Broker;

/// A message taken out of a queue.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its properties, headers among them.
    pub properties: BasicProperties,
    /// Its body.
    pub body: Vec<u8>,
}

impl Broker {
    /// A connection as guest to the default virtual host.
    ///
    /// # Errors
    /// The node is not there.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        Connection::connect(&self.url(), ConnectionProperties::default())
            .await
            .with_context(|| format!("connecting to {}", self.url()))
    }

    /// How many messages of a queue are ready: not those that a consumer holds unacknowledged.
    ///
    /// # Errors
    /// The node or the queue is not there.
    pub async fn queue_messages(&self, queue: &str) -> anyhow::Result<u32> {
        self.briefly(async |channel| {
            let passive = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let declared = channel
                .queue_declare(queue.into(), passive, FieldTable::default())
                .await?;
            Ok(declared.message_count())
        })
        .await
        .with_context(|| format!("looking at queue {queue}"))
    }

    /// Whether a queue of this name exists.
    ///
    /// # Errors
    /// The node is not there.
    pub async fn queue_exists(&self, queue: &str) -> anyhow::Result<bool> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let answer = channel
            .queue_declare(queue.into(), passive, FieldTable::default())
            .await;
        let _ = connection.close(200, "seen".into()).await;
        match answer {
            Ok(_) => Ok(true),
            // RESOURCE_LOCKED: there, and exclusive to someone else.
            Err(e) if amqp_code(&e) == Some(405) => Ok(true),
            Err(e) if amqp_code(&e) == Some(404) => Ok(false),
            Err(e) => Err(e).with_context(|| format!("looking for queue {queue}")),
        }
    }

    /// Takes one message out of a queue for good.
    ///
    /// # Errors
    /// The node or the queue is not there.
    pub async fn take(&self, queue: &str) -> anyhow::Result<Option<Taken>> {
        self.briefly(async |channel| {
            let got = channel
                .basic_get(queue.into(), BasicGetOptions { no_ack: true })
                .await?;
            Ok(got.map(|got| Taken {
                properties: got.delivery.properties,
                body: got.delivery.data,
            }))
        })
        .await
        .with_context(|| format!("taking from queue {queue}"))
    }

    /// Publishes anything to an exchange ("" for a queue's own), confirmed: for bad input.
    ///
    /// # Errors
    /// The node refused it.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> anyhow::Result<()> {
        self.briefly(async |channel| {
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let confirmation = channel
                .basic_publish(
                    exchange.into(),
                    routing_key.into(),
                    options,
                    body,
                    properties,
                )
                .await?
                .await?;
            // Alone on its channel, so that a return can only be this message's.
            ensure!(
                matches!(confirmation, Confirmation::Ack(None)),
                "not routed or not confirmed: {confirmation:?}"
            );
            Ok(())
        })
        .await
        .with_context(|| format!("publishing to {exchange:?}/{routing_key:?}"))
    }

    /// Deletes a queue with all that is in it.
    ///
    /// # Errors
    /// The node is not there.
    pub async fn delete_queue(&self, queue: &str) -> anyhow::Result<()> {
        self.briefly(async |channel| {
            channel
                .queue_delete(queue.into(), QueueDeleteOptions::default())
                .await?;
            Ok(())
        })
        .await
        .with_context(|| format!("deleting queue {queue}"))
    }

    async fn briefly<T>(
        &self,
        work: impl AsyncFnOnce(&Channel) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let result = work(&channel).await;
        // After a channel error the connection is still there; a failed close has nothing left to close.
        let _ = connection.close(200, "done".into()).await;
        result
    }
}

fn amqp_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
