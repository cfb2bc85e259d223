//! The bare broker: a publisher as a door's, and one raw durable hop.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered, task::noop_waker};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

/// Messages published and not yet confirmed: what Pombo's doors allow themselves.
pub const WINDOW: usize = 256;
/// Messages delivered and not yet acked.
pub const PREFETCH: u16 = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// One message to publish.
pub struct Publish {
    /// Where to; "" for the queue named by the key.
    pub exchange: String,
    /// The routing key.
    pub key: String,
    /// Its AMQP message-id.
    pub id: String,
    /// Its body.
    pub body: Bytes,
}

/// A connection of its own.
///
/// # Errors
/// The broker is not there.
pub async fn connect(url: &str) -> anyhow::Result<Connection> {
    Connection::connect(url, ConnectionProperties::default())
        .await
        .context("connecting to the broker")
}

/// A future that was polled once, so that its frame is on its way, and is waited for elsewhere.
///
/// `basic_publish` resolves when the frame is written; to wait for that each time costs half of the throughput.
pub fn begun<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> Pin<Box<dyn Future<Output = T> + Send>> {
    let mut future = future.boxed();
    let waker = noop_waker();
    match future.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(value) => futures_util::future::ready(value).boxed(),
        Poll::Pending => future,
    }
}

/// Publishes durable messages, each confirmed, at most [`WINDOW`] at a time.
///
/// # Errors
/// One was refused, or the connection was lost.
pub async fn publish_all(
    url: &str,
    messages: impl Iterator<Item = Publish> + Send,
) -> anyhow::Result<()> {
    let connection = connect(url).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let mut open = FuturesUnordered::new();
    for message in messages {
        while open.len() >= WINDOW {
            confirmed(open.next().await)?;
        }
        let channel = channel.clone();
        open.push(begun(async move {
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(message.id.into());
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let written = channel.basic_publish(
                message.exchange.into(),
                message.key.into(),
                options,
                &message.body,
                properties,
            );
            written.await?.await
        }));
    }
    while let Some(next) = open.next().await {
        confirmed(Some(next))?;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

fn confirmed(answer: Option<lapin::Result<Confirmation>>) -> anyhow::Result<()> {
    match answer {
        None | Some(Ok(Confirmation::Ack(None))) => Ok(()),
        Some(Ok(other)) => bail!("a publish was not confirmed and routed: {other:?}"),
        Some(Err(error)) => Err(error).context("publishing"),
    }
}

/// A durable quorum queue, as Pombo's spool is.
///
/// # Errors
/// The broker refuses it.
pub async fn quorum_queue(channel: &Channel, name: &str) -> anyhow::Result<()> {
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    let kind = AMQPValue::LongString("quorum".into());
    arguments.insert("x-queue-type".into(), kind);
    channel
        .queue_declare(name.into(), options, arguments)
        .await?;
    Ok(())
}

/// One raw durable hop: `count` messages published with confirms, consumed, acked. From the first publish to the last ack.
///
/// # Errors
/// The broker failed, or a message is missing.
pub async fn raw_hop(url: &str, count: usize, body: &Bytes) -> anyhow::Result<Duration> {
    const QUEUE: &str = "bench.hop";
    let connection = connect(url).await?;
    let channel = connection.create_channel().await?;
    quorum_queue(&channel, QUEUE).await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    let mut consumer = channel
        .basic_consume(
            QUEUE.into(),
            "hop".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?
        .ready_chunks(64);
    let start = Instant::now();
    let messages = (0..count).map(|number| Publish {
        exchange: String::new(),
        key: QUEUE.to_owned(),
        id: number.to_string(),
        body: body.clone(),
    });
    let publishing = publish_all(url, messages);
    let consuming = async {
        let mut taken = 0;
        while taken < count {
            let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
            let deliveries = next.context("no delivery")?.context("the consumer ended")?;
            taken += deliveries.len();
            // The last one's ack is everybody's.
            let last = deliveries
                .into_iter()
                .next_back()
                .context("an empty chunk")?;
            last?.ack(BasicAckOptions { multiple: true }).await?;
        }
        ensure!(taken == count, "{taken} deliveries of {count} messages");
        anyhow::Ok(Instant::now())
    };
    let (published, end) = tokio::join!(publishing, consuming);
    published?;
    let elapsed = end?.duration_since(start);
    channel
        .queue_delete(QUEUE.into(), QueueDeleteOptions::default())
        .await?;
    connection.close(200, "done".into()).await?;
    Ok(elapsed)
}
