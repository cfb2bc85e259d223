//! The limit: what the broker has to do for one message, and nothing else.
//!
//! ```text
//! publisher ─> quorum queue ─> worker ─ call 1 (the body) ─> peer
//!                                 ^  <─ answer ──────────────┘
//!                                 │  ─ call 2 ──────────────> peer
//!                                 └ ack  <─ answer ──────────┘
//! ```
//! Calls and answers travel between exclusive queues, at most [`CALLS_MAX`] in one AMQP message and at most
//! [`UNANSWERED_MAX`] AMQP messages unanswered. Like any service of Pombo, worker and peer publish on one connection and consume
//! on another.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Connection, Consumer,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
};

use crate::amqp::{PREFETCH, Publish, begun, connect, publish_all, quorum_queue};

const CALLS_MAX: usize = 32;
const UNANSWERED_MAX: usize = 4;
const QUEUE: &str = "bench.flow";
/// About what a result per recipient and its flags take.
const ANSWER: [u8; 64] = [0; 64];
const PATIENCE: Duration = Duration::from_secs(60);

type Writing = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send>>;

/// One side: an exclusive inbox on one connection, a channel to publish on the other.
struct Side {
    reading: Connection,
    writing: Connection,
    out: Channel,
    inbox: Consumer,
    /// Frames handed to the connection and not yet written.
    writes: FuturesUnordered<Writing>,
}

impl Side {
    async fn new(url: &str, name: &str) -> anyhow::Result<Self> {
        let (reading, writing) = (connect(url).await?, connect(url).await?);
        let channel = reading.create_channel().await?;
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(name.into(), options, FieldTable::default())
            .await?;
        channel
            .basic_qos(PREFETCH, BasicQosOptions::default())
            .await?;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let inbox = channel
            .basic_consume(name.into(), name.into(), options, FieldTable::default())
            .await?;
        Ok(Self {
            out: writing.create_channel().await?,
            reading,
            writing,
            inbox,
            writes: FuturesUnordered::new(),
        })
    }

    fn write(&mut self, to: &'static str, packet: Bytes) {
        let out = self.out.clone();
        self.writes.push(begun(async move {
            let options = BasicPublishOptions::default();
            let properties = BasicProperties::default();
            out.basic_publish("".into(), to.into(), options, &packet, properties)
                .await
                .map(drop)
        }));
    }

    async fn close(self) {
        for connection in [self.reading, self.writing] {
            let _ = connection.close(200, "done".into()).await;
        }
    }
}

/// A call: of which message, and which of its two.
#[derive(Clone, Copy)]
struct Call {
    id: u64,
    second: bool,
}

fn packed(calls: &[(Call, Bytes)]) -> Bytes {
    let size: usize = calls.iter().map(|(_, body)| 13 + body.len()).sum();
    let mut out = BytesMut::with_capacity(size);
    for (call, body) in calls {
        out.put_u64(call.id);
        out.put_u8(u8::from(call.second));
        out.put_u32(body.len() as u32);
        out.put_slice(body);
    }
    out.freeze()
}

fn unpacked(mut packet: Bytes) -> Vec<(Call, Bytes)> {
    let mut calls = Vec::new();
    while packet.remaining() >= 13 {
        let id = packet.get_u64();
        let second = packet.get_u8() == 1;
        let length = packet.get_u32() as usize;
        let body = packet.split_to(length.min(packet.len()));
        calls.push((Call { id, second }, body));
    }
    calls
}

const WORKER: &str = "bench.worker";
const PEER: &str = "bench.peer";

/// Answers every packet with one packet.
async fn peer(mut side: Side) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            delivery = side.inbox.next() => {
                let Some(delivery) = delivery else { return Ok(()) };
                let calls = unpacked(delivery?.data.into());
                let answer = Bytes::from_static(&ANSWER);
                let answers: Vec<_> = calls.iter().map(|(call, _)| (*call, answer.clone())).collect();
                side.write(WORKER, packed(&answers));
            }
            Some(written) = side.writes.next() => written?,
        }
    }
}

/// The worker's state: what it leases, what it has to say, what it may ack.
#[derive(Default)]
struct Work {
    next: u64,
    tags: HashMap<u64, u64>,
    pending: VecDeque<(Call, Bytes)>,
    unanswered: usize,
    finished: usize,
}

impl Work {
    fn leased(&mut self, tag: u64, body: Vec<u8>) {
        let call = Call {
            id: self.next,
            second: false,
        };
        self.next += 1;
        self.tags.insert(call.id, tag);
        self.pending.push_back((call, body.into()));
    }

    /// As in Nagle's algorithm: at once while little is unanswered, else together.
    fn packet(&mut self) -> Option<Bytes> {
        if self.pending.is_empty() || self.unanswered >= UNANSWERED_MAX {
            return None;
        }
        let count = self.pending.len().min(CALLS_MAX);
        let calls: Vec<_> = self.pending.drain(..count).collect();
        self.unanswered += 1;
        Some(packed(&calls))
    }

    /// The tags to ack.
    fn answered(&mut self, packet: Vec<u8>) -> Vec<u64> {
        self.unanswered -= 1;
        let mut acks = Vec::new();
        for (call, _) in unpacked(packet.into()) {
            if call.second {
                self.finished += 1;
                acks.extend(self.tags.remove(&call.id));
            } else {
                let second = Call {
                    second: true,
                    ..call
                };
                self.pending.push_back((second, Bytes::new()));
            }
        }
        acks
    }
}

/// `count` messages through it, from the first publish to the last ack.
///
/// # Errors
/// The broker failed, or a message is missing.
pub async fn flow(url: &str, count: usize, body: &Bytes) -> anyhow::Result<Duration> {
    let mut side = Side::new(url, WORKER).await?;
    let answering = tokio::spawn(peer(Side::new(url, PEER).await?));
    let spool = side.reading.create_channel().await?;
    quorum_queue(&spool, QUEUE).await?;
    spool
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    let options = BasicConsumeOptions::default();
    let mut leases = spool
        .basic_consume(QUEUE.into(), "lease".into(), options, FieldTable::default())
        .await?;
    let start = Instant::now();
    let (address, content) = (url.to_owned(), body.clone());
    let publishing = tokio::spawn(async move {
        let messages = (0..count).map(|number| Publish {
            exchange: String::new(),
            key: QUEUE.to_owned(),
            id: number.to_string(),
            body: content.clone(),
        });
        publish_all(&address, messages).await
    });
    let mut work = Work::default();
    while work.finished < count {
        tokio::select! {
            lease = leases.next() => {
                let lease = lease.context("the lease ended")??;
                work.leased(lease.delivery_tag, lease.data);
            }
            answer = side.inbox.next() => {
                let answer = answer.context("the inbox ended")??;
                // One peer answers in order, so the last one's ack is everybody's.
                if let Some(tag) = work.answered(answer.data).into_iter().max() {
                    let spool = spool.clone();
                    side.writes.push(begun(async move {
                        let options = BasicAckOptions { multiple: true };
                        spool.basic_ack(tag, options).await.map(drop)
                    }));
                }
            }
            Some(written) = side.writes.next() => written?,
            () = tokio::time::sleep(PATIENCE) => anyhow::bail!("nothing happens; {} of {count} are finished", work.finished),
        }
        while let Some(packet) = work.packet() {
            side.write(PEER, packet);
        }
    }
    while let Some(written) = side.writes.next().await {
        written?;
    }
    let elapsed = start.elapsed();
    publishing.await??;
    ensure!(
        work.finished == count,
        "{} of {count} were finished",
        work.finished
    );
    answering.abort();
    spool
        .queue_delete(QUEUE.into(), QueueDeleteOptions::default())
        .await?;
    side.close().await;
    Ok(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_collected_only_while_enough_is_unanswered() {
        let mut work = Work::default();
        for tag in 0..100 {
            work.leased(tag, vec![0; 10]);
        }
        let mut packets: Vec<_> = std::iter::from_fn(|| work.packet()).collect();
        assert_eq!(packets.len(), 4);
        assert_eq!(unpacked(packets[0].clone()).len(), 32);
        let mut acks = 0;
        while let Some(packet) = packets.pop() {
            acks += work.answered(packet.to_vec()).len();
            packets.extend(work.packet());
        }
        assert_eq!((acks, work.finished), (100, 100));
    }
}
