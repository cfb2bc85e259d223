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
    sync::{
        mpsc::{self, error::TryRecvError},
        oneshot, watch,
    },
    time::Instant,
};

use super::{PublishError, SpoolPublish};
use crate::{
    frame::PACKET_BYTES_MAX,
    trace::{TRACEPARENT, TraceParent},
};

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
/// As in Nagle's algorithm: while so many bursts are unconfirmed, what comes next gathers into one burst. A quorum queue
/// confirms a burst after one disk write, so this costs about one of those in latency, and spares the broker (and us) a wake
/// for every message.
const BURSTS_MAX: usize = 1;
/// What has gathered so far goes all the same: a burst larger than this gains nothing more.
const BURST_MESSAGES: usize = 64;
/// The same in bytes.
const BURST_BYTES: usize = 512 * 1024;
/// How often that is looked at; nobody is woken for each message meanwhile.
const BURST_LOOK: Duration = Duration::from_millis(1);
/// And after this long: a confirm that is late (a disk that stalls) does not hold back the others for longer.
const BURST_PATIENCE: Duration = Duration::from_millis(10);

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
        let trace = TraceParent::of(message.id).to_string();
        let mut headers = header(TRACEPARENT, AMQPValue::LongString(trace.into()));
        if message.marked {
            headers.insert(MARKED.into(), AMQPValue::Boolean(true));
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(message.id.to_string().into())
            .with_headers(headers);
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

    /// The token of a poll queue, to which the session exchange leads.
    pub(super) fn turn(exchange: ShortString, queue: ShortString) -> Self {
        Self {
            exchange,
            routing_key: queue,
            properties: BasicProperties::default().with_delivery_mode(2),
            body: Bytes::from_static(b"turn"),
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
        let holding = !window.may_write();
        tokio::select! {
            request = requests.recv(), if open && !holding => match request {
                Some(request) => window.wait(request),
                None => open = false,
            },
            Some(written) = window.outstanding.next() => {
                if let Err(reason) = window.confirmed(written) {
                    return reason;
                }
            }
            Ok(()) = blocked.changed() => {}
            _ = tick.tick() => window.expire(),
            () = tokio::time::sleep(BURST_LOOK), if holding => {}
            () = super::run::set(&mut drain), if open && !requests.is_closed() => requests.close(),
        }
        loop {
            match requests.try_recv() {
                Ok(request) => window.wait(request),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        if *blocked.borrow() {
            // Nothing of these is written, and nothing will be until the alarm ends.
            while window.next().is_some() {}
        }
    }
}

/// One publish is over: its bytes, its burst, and whether the channel is still good.
struct Written {
    bytes: usize,
    burst: u64,
    result: Result<(), String>,
}

struct Window {
    channel: Channel,
    waiting: VecDeque<Request>,
    waiting_bytes: usize,
    outstanding: FuturesUnordered<BoxFuture<'static, Written>>,
    bytes: usize,
    bursts: Bursts,
}

/// How many of each burst are unconfirmed; the first one is number `first`.
#[derive(Default)]
struct Bursts {
    first: u64,
    unconfirmed: VecDeque<usize>,
}

impl Bursts {
    fn number(&self) -> u64 {
        self.first + self.unconfirmed.len() as u64
    }

    fn written(&mut self, messages: usize) {
        self.unconfirmed.push_back(messages);
    }

    fn confirmed(&mut self, burst: u64) {
        let at = burst
            .checked_sub(self.first)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(left) = at.and_then(|at| self.unconfirmed.get_mut(at)) {
            *left -= 1;
        }
        while self.unconfirmed.front() == Some(&0) {
            self.unconfirmed.pop_front();
            self.first += 1;
        }
    }

    /// Whether the next burst may go although it is small.
    fn are_few(&self) -> bool {
        self.unconfirmed.iter().filter(|left| **left > 0).count() < BURSTS_MAX
    }
}

impl Window {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            outstanding: FuturesUnordered::new(),
            bytes: 0,
            bursts: Bursts::default(),
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.outstanding.is_empty()
    }

    fn wait(&mut self, request: Request) {
        self.waiting_bytes += request.publish.body.len();
        self.waiting.push_back(request);
    }

    fn next(&mut self) -> Option<Request> {
        let request = self.waiting.pop_front()?;
        self.waiting_bytes -= request.publish.body.len();
        Some(request)
    }

    fn has_room(&self) -> bool {
        self.outstanding.len() < WINDOW && self.bytes < WINDOW_BYTES
    }

    /// When what waits goes although earlier bursts are unconfirmed; not while the window is full, for then a confirm comes
    /// first.
    fn due(&self) -> Option<Instant> {
        let oldest = self.waiting.front().filter(|_| self.has_room())?;
        Some(oldest.since + BURST_PATIENCE)
    }

    /// Whether what comes is written at once, or has gathered long enough.
    fn may_write(&self) -> bool {
        self.bursts.are_few()
            || self.waiting.len() >= BURST_MESSAGES
            || self.waiting_bytes >= BURST_BYTES
            || self.due().is_some_and(|due| due <= Instant::now())
    }

    /// Writes as many as fit. The first poll of a publish queues its frames, so they go out in this order; the rest of it
    /// is awaited among the others.
    fn fill(&mut self) -> Result<(), String> {
        if self.waiting.is_empty() || !self.may_write() {
            return Ok(());
        }
        let burst = self.bursts.number();
        let mut written = 0;
        let mut over = Vec::new();
        while self.has_room() {
            let Some(request) = self.next() else {
                break;
            };
            self.bytes += request.publish.body.len();
            written += 1;
            let mut writing = write(self.channel.clone(), request, burst).boxed();
            match (&mut writing).now_or_never() {
                Some(written) => over.push(written),
                None => self.outstanding.push(writing),
            }
        }
        if written > 0 {
            self.bursts.written(written);
        }
        for written in over {
            self.confirmed(written)?;
        }
        super::metrics::unconfirmed(self.outstanding.len());
        Ok(())
    }

    fn confirmed(&mut self, written: Written) -> Result<(), String> {
        self.bytes -= written.bytes;
        self.bursts.confirmed(written.burst);
        written.result
    }

    /// What has waited for the window too long was never written.
    fn expire(&mut self) {
        let now = Instant::now();
        while self
            .waiting
            .front()
            .is_some_and(|request| now.duration_since(request.since) > CONFIRM_MAX)
        {
            self.next();
        }
    }
}

/// One publish from the first frame to the confirm; an error ends the channel for all.
async fn write(channel: Channel, request: Request, burst: u64) -> Written {
    let Request {
        publish,
        mut reply,
        since,
        ticket: _ticket,
    } = request;
    let bytes = publish.body.len();
    let over = |result| Written {
        bytes,
        burst,
        result,
    };
    if !channel.status().connected() {
        return over(Err("the publishing channel is closed".to_owned()));
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
    over(result)
}

#[cfg(test)]
mod tests;
