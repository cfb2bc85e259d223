//! Publishing with confirms: one task, one channel, a window of unconfirmed messages.
//!
//! One task because lapin pairs confirms with the wrong messages when two tasks publish on one channel. A window because a
//! confirm takes a disk write: one at a time gives 1,300 messages a second, 256 at a time 17,000, and more give nothing.

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{PublishError, SpoolPublish};
use crate::frame::PACKET_BYTES_MAX;

/// Messages written and not yet confirmed.
const WINDOW: usize = 256;
/// The same in bytes: lapin copies every body.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;
/// Messages accepted and not yet confirmed. Above this, publishers are told that nobody is there.
const PENDING_MAX: usize = 8_192;
/// The same in bytes.
const PENDING_BYTES_MAX: usize = 256 * 1024 * 1024;
/// A queue that has lost its majority never confirms.
const CONFIRM_MAX: Duration = Duration::from_secs(30);
/// How exactly that is kept for what waits for the window.
const TICK: Duration = Duration::from_secs(1);

/// The AMQP header of a message that was published before, with an unknown result.
pub(super) const MARKED: &str = "pombo-marked";
/// The AMQP header that says why something is in the dead queue.
const REASON: &str = "pombo-reason";
const REASON_MAX: usize = 255;

/// What to publish, and where.
pub(super) struct Publish {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl Publish {
    /// Into the spool.
    pub(super) fn spool(exchange: ShortString, message: SpoolPublish) -> Self {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(message.id.to_string().into());
        let properties = if message.marked {
            properties.with_headers(header(MARKED, AMQPValue::Boolean(true)))
        } else {
            properties
        };
        Self {
            exchange,
            routing_key: message.priority.name().into(),
            properties,
            body: message.encoded,
        }
    }

    /// Into the dead queue, cut to what a broker takes.
    pub(super) fn dead(exchange: ShortString, mut body: Bytes, reason: &str) -> Self {
        body.truncate(PACKET_BYTES_MAX);
        let reason = &reason[..reason.floor_char_boundary(REASON_MAX)];
        let reason = AMQPValue::LongString(LongString::from(reason));
        Self {
            exchange,
            routing_key: ShortString::default(),
            properties: BasicProperties::default()
                .with_delivery_mode(2)
                .with_headers(header(REASON, reason)),
            body,
        }
    }

    /// Into one queue, by its name.
    pub(super) fn queue(queue: ShortString, body: Bytes) -> Self {
        Self {
            exchange: ShortString::default(),
            routing_key: queue,
            properties: BasicProperties::default().with_delivery_mode(2),
            body,
        }
    }
}

fn header(key: &'static str, value: AMQPValue) -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert(key.into(), value);
    headers
}

/// Hands messages to the publisher task. Never waits.
#[derive(Clone)]
pub(super) struct Publisher {
    requests: mpsc::UnboundedSender<Request>,
    load: Arc<Load>,
}

impl Publisher {
    /// A publisher, and what its task needs.
    pub(super) fn new() -> (Self, Requests) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let load = Arc::default();
        (Self { requests, load }, Requests(receiver))
    }

    /// Resolves when it is confirmed and routed.
    pub(super) fn publish(
        &self,
        publish: Publish,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> {
        let answer = self.submit(publish);
        async move {
            let lost = || Err(PublishError::Unknown("the publisher ended".to_owned()));
            answer?.await.unwrap_or_else(|_| lost())
        }
    }

    fn submit(
        &self,
        publish: Publish,
    ) -> Result<oneshot::Receiver<Result<(), PublishError>>, PublishError> {
        if publish.body.len() > PACKET_BYTES_MAX {
            // The broker would close the channel, and with it everybody's confirms.
            return Err(PublishError::Refused("larger than any packet".to_owned()));
        }
        let ticket = Load::admit(&self.load, publish.body.len());
        let ticket = ticket.ok_or(PublishError::NotConnected)?;
        let (answer, receiver) = oneshot::channel();
        let request = Request {
            publish,
            reply: Reply {
                answer: Some(answer),
                written: false,
            },
            since: Instant::now(),
            ticket,
        };
        self.requests
            .send(request)
            .map_err(|_| PublishError::NotConnected)?;
        Ok(receiver)
    }
}

/// The task's end of a [`Publisher`].
pub(super) struct Requests(mpsc::UnboundedReceiver<Request>);

struct Request {
    publish: Publish,
    reply: Reply,
    since: Instant,
    ticket: Ticket,
}

/// Answers exactly once, even if its task is dropped in the middle: with what is then true.
struct Reply {
    answer: Option<oneshot::Sender<Result<(), PublishError>>>,
    written: bool,
}

impl Reply {
    fn send(&mut self, result: Result<(), PublishError>) {
        if let Some(answer) = self.answer.take() {
            super::metrics::published(&result);
            // Whoever asked may have given up meanwhile.
            let _ = answer.send(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Err(if self.written {
            PublishError::Unknown("the connection was lost".to_owned())
        } else {
            PublishError::NotConnected
        }));
    }
}

/// What is accepted and not yet answered.
#[derive(Default)]
struct Load {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Load {
    fn admit(load: &Arc<Self>, bytes: usize) -> Option<Ticket> {
        let messages = load.messages.fetch_add(1, Ordering::Relaxed);
        let before = load.bytes.fetch_add(bytes, Ordering::Relaxed);
        let ticket = Ticket {
            load: Arc::clone(load),
            bytes,
        };
        (messages < PENDING_MAX && before < PENDING_BYTES_MAX).then_some(ticket)
    }
}

/// Gives its share back when dropped.
struct Ticket {
    load: Arc<Load>,
    bytes: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.load.messages.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Publishes until the channel fails, or until all is confirmed after `drain`.
pub(super) async fn run(
    channel: Channel,
    Requests(mut requests): Requests,
    mut blocked: watch::Receiver<bool>,
    mut drain: watch::Receiver<bool>,
) -> String {
    let mut window = Window::new(channel);
    let mut open = true;
    let mut tick = tokio::time::interval(TICK);
    loop {
        if let Err(reason) = window.fill() {
            return reason;
        }
        if !open && window.is_empty() {
            return "all is confirmed".to_owned();
        }
        tokio::select! {
            request = requests.recv(), if open => match request {
                Some(request) => window.waiting.push_back(request),
                None => open = false,
            },
            Some(written) = window.outstanding.next() => {
                if let Err(reason) = window.confirmed(written) {
                    return reason;
                }
            }
            Ok(()) = blocked.changed() => {}
            _ = tick.tick() => window.expire(),
            () = super::run::set(&mut drain), if open && !requests.is_closed() => requests.close(),
        }
        while let Ok(request) = requests.try_recv() {
            window.waiting.push_back(request);
        }
        if *blocked.borrow() {
            // Nothing of these is written, and nothing will be until the alarm ends.
            window.waiting.clear();
        }
    }
}

type Written = (usize, Result<(), String>);

struct Window {
    channel: Channel,
    waiting: VecDeque<Request>,
    outstanding: FuturesUnordered<BoxFuture<'static, Written>>,
    bytes: usize,
}

impl Window {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            waiting: VecDeque::new(),
            outstanding: FuturesUnordered::new(),
            bytes: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.outstanding.is_empty()
    }

    /// Writes as many as fit. The first poll of a publish queues its frames, so they go out in this order; the rest of it
    /// is awaited among the others.
    fn fill(&mut self) -> Result<(), String> {
        while self.outstanding.len() < WINDOW && self.bytes < WINDOW_BYTES {
            let Some(request) = self.waiting.pop_front() else {
                break;
            };
            self.bytes += request.publish.body.len();
            let mut writing = write(self.channel.clone(), request).boxed();
            match (&mut writing).now_or_never() {
                Some(written) => self.confirmed(written)?,
                None => self.outstanding.push(writing),
            }
        }
        super::metrics::unconfirmed(self.outstanding.len());
        Ok(())
    }

    fn confirmed(&mut self, (bytes, result): Written) -> Result<(), String> {
        self.bytes -= bytes;
        result
    }

    /// What has waited for the window too long was never written.
    fn expire(&mut self) {
        let now = Instant::now();
        while self
            .waiting
            .front()
            .is_some_and(|request| now.duration_since(request.since) > CONFIRM_MAX)
        {
            self.waiting.pop_front();
        }
    }
}

/// One publish from the first frame to the confirm; an error ends the channel for all.
async fn write(channel: Channel, request: Request) -> Written {
    let Request {
        publish,
        mut reply,
        since,
        ticket: _ticket,
    } = request;
    let bytes = publish.body.len();
    if !channel.status().connected() {
        return (bytes, Err("the publishing channel is closed".to_owned()));
    }
    reply.written = true;
    let mut confirmation = pin!(async {
        let written = channel.basic_publish(
            publish.exchange,
            publish.routing_key,
            BasicPublishOptions::default(),
            &publish.body,
            publish.properties,
        );
        written.await?.await
    });
    let confirmation =
        match tokio::time::timeout_at(since + CONFIRM_MAX, confirmation.as_mut()).await {
            Ok(confirmation) => confirmation,
            Err(_) => {
                let late = format!("no confirm within {CONFIRM_MAX:?}");
                reply.send(Err(PublishError::Unknown(late)));
                // A confirm that is dropped is kept by lapin for ever; and the place in the window is still taken.
                confirmation.await
            }
        };
    let (answer, result) = match confirmation {
        Ok(Confirmation::Ack(_)) => (Ok(()), Ok(())),
        Ok(Confirmation::Nack(_)) => {
            let nack = "negative confirm".to_owned();
            (Err(PublishError::Refused(nack)), Ok(()))
        }
        Ok(Confirmation::NotRequested) => {
            let reason = "the publishing channel does not confirm".to_owned();
            (Err(PublishError::Unknown(reason.clone())), Err(reason))
        }
        Err(error) => {
            let reason = error.to_string();
            (Err(PublishError::Unknown(reason.clone())), Err(reason))
        }
    };
    reply.send(answer);
    (bytes, result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::MessageId, message::Priority};

    fn body(size: usize) -> Publish {
        Publish::queue("q".into(), Bytes::from(vec![0; size]))
    }

    #[tokio::test]
    async fn what_was_never_written_is_not_unknown() {
        let (publisher, requests) = Publisher::new();
        let publish = publisher.publish(body(1));
        drop(requests);
        assert_eq!(publish.await, Err(PublishError::NotConnected));
        let after = publisher.publish(body(1)).await;
        assert_eq!(after, Err(PublishError::NotConnected));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_its_place_is_given_back() {
        let (publisher, mut requests) = Publisher::new();
        let waiting: Vec<_> = (0..PENDING_MAX)
            .map(|_| publisher.publish(body(0)))
            .collect();
        let refused = publisher.publish(body(0)).await;
        assert_eq!(refused, Err(PublishError::NotConnected));
        drop(requests.0.recv().await);
        let admitted = publisher.publish(body(0));
        drop(waiting);
        while requests.0.try_recv().is_ok() {}
        assert_eq!(admitted.await, Err(PublishError::NotConnected));
        assert_eq!(publisher.load.messages.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_no_broker_takes_is_refused() {
        let (publisher, _requests) = Publisher::new();
        let refused = publisher.publish(body(PACKET_BYTES_MAX + 1)).await;
        assert!(matches!(refused, Err(PublishError::Refused(_))));
    }

    #[test]
    fn a_spooled_message_is_persistent_and_carries_its_id_and_mark() {
        let id = MessageId::derived("test", b"1");
        let publish = |marked| {
            Publish::spool(
                "x".into(),
                SpoolPublish {
                    id,
                    priority: Priority::Bulk,
                    encoded: Bytes::from_static(b"m"),
                    marked,
                },
            )
        };
        let properties = publish(false).properties;
        assert_eq!(*properties.delivery_mode(), Some(2));
        assert_eq!(*properties.message_id(), Some(id.to_string().into()));
        assert_eq!(*properties.headers(), None);
        assert!(publish(true).properties.headers().is_some());
        assert_eq!(publish(true).routing_key.as_str(), "bulk");
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let dead = Publish::dead("x".into(), Bytes::new(), &"\u{e4}".repeat(200));
        let headers = dead.properties.headers().clone().unwrap();
        let Some(AMQPValue::LongString(reason)) = headers.inner().get(REASON) else {
            panic!("no reason in {headers:?}");
        };
        assert_eq!(reason.len(), 254);
    }
}
