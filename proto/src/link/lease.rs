//! Consuming one spool queue: a channel of its own, deliveries told in batches, acks as few as possible.
//!
//! The channel is opened by the first wish for messages and stays: what was delivered on it can only be acked on it, also
//! after the consumer is gone or has been replaced by one with another prefetch.

use std::{future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{FuturesUnordered, ReadyChunks},
};
use lapin::{
    Channel, Connection, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tracing::{debug, warn};

use super::{
    Event, Lease,
    acks::{Ack, AckBook},
    bury::bury,
    error::{Error, within},
    metrics,
    publish::{MARKED, Publisher},
    run::Tell,
};
use crate::{
    frame::decode_message,
    ids::Incarnation,
    tenure::LeaseTag,
    topology::SpoolClass,
    trace::{TRACEPARENT, TraceParent},
};

/// What a quorum queue allows.
const PREFETCH_MAX: u16 = 2_000;
/// Leases told at once.
const BATCH: usize = 256;
/// For a change of consumers.
const CHANGE_MAX: Duration = Duration::from_secs(20);
/// Acks gather for so long: each costs the broker a wake and an entry in the queue's log.
const ACKS_GATHER: Duration = Duration::from_millis(5);
/// After some were told, more gather for so long: lapin hands over one by one, and would wake two threads for each.
const LEASES_GATHER: Duration = Duration::from_millis(1);
/// How often a gap between acks is looked at.
const GAP_LOOK: Duration = Duration::from_millis(20);
/// A channel without a consumer ends without a word; leases on it are then lost.
const CHECK: Duration = Duration::from_secs(1);

/// What the tasks of all classes need.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) connection: Arc<Connection>,
    pub(super) incarnation: Incarnation,
    pub(super) tell: Tell,
    pub(super) publisher: Publisher,
    pub(super) dead: ShortString,
}

/// What one class needs.
pub(super) struct Class {
    pub(super) class: SpoolClass,
    pub(super) queue: ShortString,
    pub(super) prefetch: watch::Receiver<u16>,
    pub(super) acks: mpsc::UnboundedReceiver<Vec<u64>>,
}

/// Leases until something fails, or until all acks are written after `drain`.
pub(super) async fn run(
    context: Context,
    class: Class,
    mut drain: watch::Receiver<bool>,
) -> String {
    let Class {
        class,
        queue,
        mut prefetch,
        mut acks,
    } = class;
    let mut spool = Spool::new(context, class, queue);
    let mut check = tokio::time::interval(CHECK);
    let mut look = tokio::time::interval(GAP_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut gathering, mut resting) = (None, None);
    // A wish from before this incarnation counts.
    prefetch.mark_changed();
    loop {
        let step = tokio::select! {
            Ok(()) = prefetch.changed(), if !acks.is_closed() => {
                let wanted = (*prefetch.borrow_and_update()).min(PREFETCH_MAX);
                let change = spool.change(wanted);
                within("changing a consumer", CHANGE_MAX, change).await.map_err(|e| e.to_string())
            }
            batch = next(&mut spool.consumer), if resting.is_none() && !acks.is_closed() => {
                resting = Some(Instant::now() + LEASES_GATHER);
                spool.delivered(batch)
            }
            () = until(resting), if resting.is_some() => {
                resting = None;
                Ok(())
            }
            tags = acks.recv(), if gathering.is_none() => match tags {
                Some(tags) => {
                    spool.book.settle(tags);
                    gathering = Some(Instant::now() + ACKS_GATHER);
                    Ok(())
                }
                None => return spool.finish().await,
            },
            () = until(gathering), if gathering.is_some() => {
                gathering = None;
                while let Ok(more) = acks.try_recv() {
                    spool.book.settle(more);
                }
                let ack = spool.book.below_the_gap();
                spool.write(ack)
            }
            _ = look.tick(), if spool.book.has_gap() => {
                let acks = spool.book.around_the_gap();
                spool.write(acks)
            }
            Some(written) = spool.writing.next() => written.map_err(|e| format!("acking: {e}")),
            Some(tag) = spool.burying.next() => {
                spool.book.settle([tag]);
                let acks = spool.book.all();
                spool.write(acks)
            }
            _ = check.tick() => spool.check(),
            () = super::run::set(&mut drain), if !acks.is_closed() => {
                acks.close();
                Ok(())
            }
        };
        if let Err(reason) = step {
            return format!("{} queue: {reason}", class.name());
        }
    }
}

struct Spool {
    context: Context,
    class: SpoolClass,
    queue: ShortString,
    channel: Option<Channel>,
    consumer: Option<Running>,
    book: AckBook,
    writing: FuturesUnordered<BoxFuture<'static, lapin::Result<()>>>,
    burying: FuturesUnordered<BoxFuture<'static, u64>>,
}

struct Running {
    tag: ShortString,
    prefetch: u16,
    deliveries: ReadyChunks<Consumer>,
}

type Batch = Vec<lapin::Result<Delivery>>;

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}

async fn next(consumer: &mut Option<Running>) -> Option<Batch> {
    match consumer {
        Some(consumer) => consumer.deliveries.next().await,
        None => pending().await,
    }
}

impl Spool {
    fn new(context: Context, class: SpoolClass, queue: ShortString) -> Self {
        Self {
            context,
            class,
            queue,
            channel: None,
            consumer: None,
            book: AckBook::default(),
            writing: FuturesUnordered::new(),
            burying: FuturesUnordered::new(),
        }
    }

    /// Another prefetch is another consumer: the broker applies it to new ones only.
    async fn change(&mut self, prefetch: u16) -> Result<(), Error> {
        let current = self.consumer.as_ref().map_or(0, |running| running.prefetch);
        if prefetch == current {
            return Ok(());
        }
        debug!(
            class = self.class.name(),
            from = current,
            to = prefetch,
            "lease"
        );
        self.cancel().await?;
        if prefetch == 0 {
            return Ok(());
        }
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.context.connection.create_channel().await?;
                self.channel.insert(channel).clone()
            }
        };
        channel
            .basic_qos(prefetch, BasicQosOptions::default())
            .await?;
        let consumer = channel.basic_consume(
            self.queue.clone(),
            ShortString::default(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = consumer.await?;
        self.consumer = Some(Running {
            tag: consumer.tag(),
            prefetch,
            deliveries: consumer.ready_chunks(BATCH),
        });
        Ok(())
    }

    /// What is delivered until the broker has agreed is leased like the rest.
    async fn cancel(&mut self) -> Result<(), Error> {
        let (Some(mut running), Some(channel)) = (self.consumer.take(), self.channel.clone())
        else {
            return Ok(());
        };
        channel
            .basic_cancel(running.tag.clone(), BasicCancelOptions::default())
            .await?;
        while let Some(batch) = running.deliveries.next().await {
            self.lease(batch).map_err(Error::from)?;
        }
        Ok(())
    }

    fn delivered(&mut self, batch: Option<Batch>) -> Result<(), String> {
        let ended = match batch {
            Some(batch) => match self.lease(batch) {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
            None => "the consumer was cancelled".to_owned(),
        };
        if self.context.connection.status().connected() {
            (self.context.tell)(Event::LeaseEnded(self.class));
        }
        Err(ended)
    }

    fn lease(&mut self, batch: Batch) -> lapin::Result<()> {
        let mut leases = Vec::with_capacity(batch.len());
        let mut ended = Ok(());
        for delivery in batch {
            match delivery {
                Ok(delivery) => leases.extend(self.decode(delivery)),
                Err(error) => ended = Err(error),
            }
        }
        if !leases.is_empty() {
            metrics::leases(leases.len());
            (self.context.tell)(Event::Leases(leases));
        }
        ended
    }

    fn decode(&mut self, delivery: Delivery) -> Option<Lease> {
        self.book.delivered(delivery.delivery_tag);
        let tag = LeaseTag {
            incarnation: self.context.incarnation,
            class: self.class,
            delivery: delivery.delivery_tag,
        };
        let header = |name| {
            let headers = delivery.properties.headers().as_ref();
            headers.and_then(|headers| headers.inner().get(name))
        };
        let marked = matches!(header(MARKED), Some(AMQPValue::Boolean(true)));
        let trace = match header(TRACEPARENT) {
            Some(AMQPValue::LongString(text)) => TraceParent::parse(text.as_bytes()),
            _ => None,
        };
        let bytes = Bytes::from(delivery.data);
        match decode_message(bytes.clone()) {
            Ok(message) => Some(Lease {
                tag,
                redelivered: delivery.redelivered,
                marked,
                trace: trace.filter(|trace| !trace.is_of(message.envelope.id)),
                message,
            }),
            Err(error) => {
                metrics::unreadable("message");
                warn!(%error, size = bytes.len(), class = self.class.name(), "unreadable message");
                self.bury(tag.delivery, bytes, format!("unreadable message: {error}"));
                None
            }
        }
    }

    /// Acked when the dead queue has it, and not before.
    fn bury(&self, tag: u64, bytes: Bytes, reason: String) {
        let Context {
            publisher, dead, ..
        } = self.context.clone();
        let burial = async move {
            bury(&publisher, &dead, bytes, &reason).await;
            tag
        };
        self.burying.push(burial.boxed());
    }

    fn write(&mut self, acks: impl IntoIterator<Item = Ack>) -> Result<(), String> {
        let Some(channel) = &self.channel else {
            return Ok(());
        };
        for Ack { tag, multiple } in acks {
            let channel = channel.clone();
            let ack = async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await };
            // The first poll queues the frame; one after the other would wait for the socket each time.
            let mut ack = ack.boxed();
            match (&mut ack).now_or_never() {
                Some(written) => written.map_err(|e| format!("acking: {e}"))?,
                None => self.writing.push(ack),
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        match &self.channel {
            Some(channel) if !channel.status().connected() => {
                let outstanding = self.book.outstanding();
                Err(format!("the channel closed with {outstanding} leases"))
            }
            _ => Ok(()),
        }
    }

    async fn finish(mut self) -> String {
        let acks = self.book.all();
        if let Err(error) = self.write(acks) {
            return error;
        }
        while let Some(written) = self.writing.next().await {
            if let Err(error) = written {
                return format!("acking: {error}");
            }
        }
        "all acks are written".to_owned()
    }
}
