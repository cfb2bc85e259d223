//! Reading the inbox: decoded in the link's runtime, told in batches, acked in batches.
//!
//! A packet is acked as soon as it has been told: it is transient, and its loss is what sessions are built for. Acks are
//! there so that the prefetch bounds what lapin buffers.

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::sync::watch;
use tracing::warn;

use super::{Event, bury::Graveyard, error::Error, metrics, run::Tell};
use crate::frame::Packet;

/// Packets told at once. More waiting ones come with the next event.
const BATCH: usize = 256;

/// Starts to consume.
pub(super) async fn consume(
    channel: &Channel,
    inbox: ShortString,
    prefetch: u16,
) -> Result<Consumer, Error> {
    // 0 would mean: everything, into an unbounded buffer.
    channel
        .basic_qos(prefetch.max(1), BasicQosOptions::default())
        .await?;
    let options = BasicConsumeOptions::default();
    let tag = ShortString::default();
    let consumer = channel.basic_consume(inbox, tag, options, FieldTable::default());
    Ok(consumer.await?)
}

/// Tells until the consumer ends, or until `drain`.
pub(super) async fn run(
    channel: Channel,
    consumer: Consumer,
    tell: Tell,
    graveyard: Graveyard,
    mut drain: watch::Receiver<bool>,
) -> String {
    let mut deliveries = consumer.ready_chunks(BATCH);
    loop {
        let batch = tokio::select! {
            batch = deliveries.next() => batch,
            () = super::run::set(&mut drain) => return "not read any more".to_owned(),
        };
        let Some(batch) = batch else {
            return "the inbox is gone".to_owned();
        };
        let mut packets = Vec::with_capacity(batch.len());
        let (mut last, mut ended) = (None, None);
        for delivery in batch {
            match delivery {
                Ok(delivery) => {
                    last = Some(delivery.delivery_tag);
                    packets.extend(decode(delivery, &graveyard));
                }
                Err(error) => ended = Some(format!("the inbox ended: {error}")),
            }
        }
        if !packets.is_empty() {
            metrics::packets_in(packets.len());
            tell(Event::Packets(packets));
        }
        if let Some(reason) = ended {
            return reason;
        }
        if let Some(last) = last {
            let options = BasicAckOptions { multiple: true };
            // To wait for the socket here is no loss: meanwhile the next batch gathers.
            if let Err(error) = channel.basic_ack(last, options).await {
                return format!("acking packets: {error}");
            }
        }
    }
}

fn decode(delivery: Delivery, graveyard: &Graveyard) -> Option<Packet> {
    let bytes = Bytes::from(delivery.data);
    match Packet::decode(&bytes) {
        Ok(packet) => Some(packet),
        Err(error) => {
            metrics::unreadable("packet");
            warn!(%error, size = bytes.len(), exchange = %delivery.exchange, "unreadable packet");
            graveyard.bury(bytes, &format!("unreadable packet: {error}"));
            None
        }
    }
}
