//! Reading the inbox: decoded in the link's runtime, told in batches, acked in batches.
//!
//! A packet may be acked as soon as it has been told: it is transient, and its loss is what sessions are built for. Acks are
//! there so that the prefetch bounds what lapin buffers, so they may wait and go together: each costs the broker a wake.

use std::time::Duration;

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
use crate::{frame::Packet, verbs::VersionRange};

/// Packets told at once. More waiting ones come with the next event.
const BATCH: usize = 256;
/// After some were told, more gather for so long: lapin hands over one by one, and would wake two threads for each.
const GATHER: Duration = Duration::from_millis(1);
/// Acks go together, for so many packets ...
const ACK_EVERY: u64 = 64;
/// ... or, with a smaller prefetch, for this part of it ...
const ACK_PART: u16 = 4;
/// ... or when nothing has come for this long.
const ACK_AFTER: Duration = Duration::from_millis(50);

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
    prefetch: u16,
    tell: Tell,
    graveyard: Graveyard,
    versions: VersionRange,
    mut drain: watch::Receiver<bool>,
) -> String {
    let mut deliveries = consumer.ready_chunks(BATCH);
    let mut acks = Acks::new(prefetch);
    loop {
        let batch = tokio::select! {
            batch = deliveries.next() => batch,
            () = super::run::set(&mut drain) => return "not read any more".to_owned(),
            () = tokio::time::sleep(ACK_AFTER), if acks.are_owed() => {
                if let Err(error) = acks.write(&channel).await {
                    return format!("acking packets: {error}");
                }
                continue;
            }
        };
        let Some(batch) = batch else {
            return "the inbox is gone".to_owned();
        };
        let mut packets = Vec::with_capacity(batch.len());
        let mut ended = None;
        for delivery in batch {
            match delivery {
                Ok(delivery) => {
                    acks.told = delivery.delivery_tag;
                    packets.extend(decode(delivery, versions, &graveyard));
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
        if acks.are_due()
            && let Err(error) = acks.write(&channel).await
        {
            return format!("acking packets: {error}");
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Which packets were told, and which of them acked: delivery tags run from 1.
struct Acks {
    every: u64,
    told: u64,
    acked: u64,
}

impl Acks {
    fn new(prefetch: u16) -> Self {
        let part = u64::from(prefetch / ACK_PART).max(1);
        Self {
            every: part.min(ACK_EVERY),
            told: 0,
            acked: 0,
        }
    }

    fn are_owed(&self) -> bool {
        self.told > self.acked
    }

    fn are_due(&self) -> bool {
        self.told - self.acked >= self.every
    }

    async fn write(&mut self, channel: &Channel) -> lapin::Result<()> {
        self.acked = self.told;
        let options = BasicAckOptions { multiple: true };
        // To wait for the socket here is no loss: meanwhile the next batch gathers.
        channel.basic_ack(self.told, options).await.map(drop)
    }
}

fn decode(delivery: Delivery, versions: VersionRange, graveyard: &Graveyard) -> Option<Packet> {
    let bytes = Bytes::from(delivery.data);
    match Packet::decode_within(&bytes, versions) {
        Ok(packet) => Some(packet),
        Err(error) => {
            metrics::unreadable("packet");
            warn!(%error, size = bytes.len(), exchange = %delivery.exchange, "unreadable packet");
            graveyard.bury(bytes, &format!("unreadable packet: {error}"));
            None
        }
    }
}
