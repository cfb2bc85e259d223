//! Writing session packets: not confirmed, in order, to other incarnations' inboxes or to everybody of an audience.
//!
//! Whoever sends never waits. While the broker takes nothing, packets gather up to a bound; above it they are dropped and
//! counted, and the sessions notice the gap.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{BasicProperties, Channel, options::BasicPublishOptions, types::ShortString};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tracing::warn;
use uuid::Uuid;

use super::{Event, metrics, run::Tell};
use crate::{frame::Packet, ids::Incarnation};

/// Packets handed to lapin and not yet in the socket.
const WRITING_MAX: usize = 64;
/// Packets that wait. Credit bounds what sessions send, so this is reached only when the broker stands still.
const PENDING_MAX: usize = 4_096;
/// The same in bytes.
const PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// lapin does not tell that a message came back, it must be asked. This often, ...
const RETURNS_EVERY: Duration = Duration::from_millis(20);
/// ... for so long after the last packet; a return takes one round trip.
const RETURNS_FOR: Duration = Duration::from_secs(30);

/// One encoded packet and where it goes.
pub(super) struct Outgoing {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    /// Come back if no queue takes it.
    pub(super) mandatory: bool,
    pub(super) bytes: Vec<u8>,
}

/// Hands packets to the session task. Never waits.
pub(super) struct Sender {
    packets: mpsc::UnboundedSender<(Outgoing, Share)>,
    load: Arc<Load>,
}

#[derive(Default)]
struct Load {
    packets: AtomicUsize,
    bytes: AtomicUsize,
    /// Said once per episode, not once per packet.
    overflowing: AtomicBool,
}

/// What a packet takes of the bound, until it is written.
struct Share {
    load: Arc<Load>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.load.packets.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.load.overflowing.store(false, Ordering::Relaxed);
        }
    }
}

impl Sender {
    /// A sender, and what its task needs.
    pub(super) fn new() -> (Self, Packets) {
        let (packets, receiver) = mpsc::unbounded_channel();
        let load = Arc::default();
        (Self { packets, load }, Packets(receiver))
    }

    pub(super) fn send(&self, packet: Outgoing) {
        let bytes = packet.bytes.len();
        let packets = self.load.packets.fetch_add(1, Ordering::Relaxed);
        let before = self.load.bytes.fetch_add(bytes, Ordering::Relaxed);
        let share = Share {
            load: Arc::clone(&self.load),
            bytes,
        };
        if packets >= PENDING_MAX || before >= PENDING_BYTES_MAX {
            metrics::packet_dropped();
            if !self.load.overflowing.swap(true, Ordering::Relaxed) {
                warn!(
                    packets,
                    bytes = before,
                    "the broker takes no packets: dropping"
                );
            }
            return;
        }
        if self.packets.send((packet, share)).is_err() {
            metrics::packet_dropped();
        }
    }
}

/// The task's end of a [`Sender`].
pub(super) struct Packets(mpsc::UnboundedReceiver<(Outgoing, Share)>);

/// Writes until the channel fails, or until all is written after `drain`.
pub(super) async fn run(
    channel: Channel,
    Packets(mut packets): Packets,
    tell: Tell,
    mut drain: watch::Receiver<bool>,
) -> String {
    let mut writing: FuturesUnordered<BoxFuture<'static, lapin::Result<()>>> =
        FuturesUnordered::new();
    let mut open = true;
    let mut last_mandatory = None::<Instant>;
    let mut ask = tokio::time::interval(RETURNS_EVERY);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if !open && writing.is_empty() {
            return "all is written".to_owned();
        }
        let may_return = last_mandatory.is_some_and(|last| last.elapsed() < RETURNS_FOR);
        tokio::select! {
            packet = packets.recv(), if open && writing.len() < WRITING_MAX => match packet {
                Some((packet, share)) => {
                    if packet.mandatory {
                        last_mandatory = Some(Instant::now());
                    }
                    // The first poll queues the frames: this keeps the order.
                    let mut write = write(channel.clone(), packet, share).boxed();
                    match (&mut write).now_or_never() {
                        Some(Ok(())) => {}
                        Some(Err(error)) => return format!("writing a packet: {error}"),
                        None => writing.push(write),
                    }
                }
                None => open = false,
            },
            Some(written) = writing.next() => {
                if let Err(error) = written {
                    return format!("writing a packet: {error}");
                }
            }
            _ = ask.tick(), if may_return => {
                if let Err(error) = returned(&channel, &tell).await {
                    return format!("asking for returned packets: {error}");
                }
            }
            () = super::run::set(&mut drain), if open && !packets.is_closed() => packets.close(),
        }
    }
}

async fn write(channel: Channel, packet: Outgoing, _share: Share) -> lapin::Result<()> {
    let options = BasicPublishOptions {
        mandatory: packet.mandatory,
        ..BasicPublishOptions::default()
    };
    metrics::packet_out();
    let written = channel.basic_publish(
        packet.exchange,
        packet.routing_key,
        options,
        &packet.bytes,
        BasicProperties::default(),
    );
    // Nothing to wait for beyond the socket: this channel does not confirm.
    written.await.map(drop)
}

/// Without confirms there is nothing to wait for here: this only hands out what has come back. The routing key says whose
/// inbox was not there.
async fn returned(channel: &Channel, tell: &Tell) -> lapin::Result<()> {
    let messages = channel.wait_for_confirms().await?;
    if messages.is_empty() {
        return Ok(());
    }
    metrics::packets_returned(messages.len());
    let mut gone: BTreeMap<Incarnation, Option<u64>> = BTreeMap::new();
    for message in messages {
        let Some(peer) = incarnation_of(message.delivery.routing_key.as_str()) else {
            continue;
        };
        let packet = Packet::decode(&message.delivery.data.into()).ok();
        let number = packet.filter(|it| it.to == peer).map(|it| it.first);
        let first = gone.entry(peer).or_default();
        *first = first.iter().copied().chain(number).min();
    }
    for (peer, first) in gone {
        tell(Event::Returned { peer, first });
    }
    Ok(())
}

/// The reverse of [`crate::topology::Topology::inbox`].
fn incarnation_of(inbox: &str) -> Option<Incarnation> {
    let (_, id) = inbox.rsplit_once('.')?;
    Uuid::try_parse(id).ok().map(Incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    fn packet(size: usize) -> Outgoing {
        Outgoing {
            exchange: ShortString::default(),
            routing_key: ShortString::default(),
            mandatory: false,
            bytes: vec![0; size],
        }
    }

    #[test]
    fn an_inbox_names_its_incarnation() {
        let incarnation = Incarnation::random();
        let inbox = Topology::new("a.b").inbox(incarnation);
        assert_eq!(incarnation_of(&inbox), Some(incarnation));
        assert_eq!(incarnation_of("pombo.spool.urgent"), None);
    }

    #[test]
    fn what_waits_is_bounded_in_packets_and_bytes() {
        let (sender, mut packets) = Sender::new();
        (0..PENDING_MAX + 5).for_each(|_| sender.send(packet(1)));
        assert_eq!(packets.0.len(), PENDING_MAX);
        while packets.0.try_recv().is_ok() {}
        (0..20).for_each(|_| sender.send(packet(PENDING_BYTES_MAX / 8)));
        assert_eq!(packets.0.len(), 8);
        drop(packets);
        assert_eq!(sender.load.bytes.load(Ordering::Relaxed), 0);
    }
}
