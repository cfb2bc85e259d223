//! What the tests are made of: a wire that they hold the other end of, spoolers that say what a test wants, and a
//! transport that hands every call to the test.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use actix::{Actor, Addr};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use pombo_proto::{
    blob::Blobs,
    frame::{Frame, Packet, Payload, encode_message},
    ids::{Correlation, DoorSequence, Fence, Incarnation, MessageId, RecipientIndex},
    link::{Audience, Event, PublishError, SpoolPublish},
    message::{
        Body, Content, Envelope, Message, MessageClass, Priority, Recipient, ReportReturn, Source,
    },
    outbound::{Heard, Outbound, PATIENCE},
    outcome::{Delivery, EndMessageFlag, Outcome, RecipientOutcome, SubmitResult},
    service::http::Health,
    time::UnixMillis,
    verbs::{
        AddressTypes, Hello, Logon, LogonAccepted, LogonError, Role, StatusRow, Submit, Tenancy,
        TransportNotification, VERSIONS, Verb, VersionRange,
    },
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    host::{Agent, Drained, Linked, Parts, Settings, Wire},
    provider::{Ended, Flow, LogonReply, Received, Reception, Submission, Support, Transport},
};

/// Nothing in these tests takes this long; only a failing test waits for it.
pub const LONG: Duration = Duration::from_secs(20);

/// What the agent has said to the link.
#[derive(Debug)]
pub enum Sent {
    Packet(Packet),
    Announced(Packet),
    PollTurn,
}

/// The wire, with its other end in the test's hands.
pub struct FakeWire {
    sent: mpsc::UnboundedSender<Sent>,
    /// What the next publishes come to; then all are confirmed.
    pub outcomes: Mutex<VecDeque<Result<(), PublishError>>>,
    pub published: Mutex<Vec<SpoolPublish>>,
}

impl Wire for FakeWire {
    fn send(&self, packet: &Packet) {
        let _ = self.sent.send(Sent::Packet(packet.clone()));
    }

    fn announce(&self, audience: Audience, packet: &Packet) {
        assert_eq!(audience, Audience::Spoolers);
        let _ = self.sent.send(Sent::Announced(packet.clone()));
    }

    fn publish(&self, publish: SpoolPublish) -> BoxFuture<'static, Result<(), PublishError>> {
        self.published.lock().unwrap().push(publish);
        let outcome = self.outcomes.lock().unwrap().pop_front();
        std::future::ready(outcome.unwrap_or(Ok(()))).boxed()
    }

    fn poll_turn(&self, _: &str, _: bool) {
        let _ = self.sent.send(Sent::PollTurn);
    }
}

/// A call of the transport, for the test to answer.
pub enum Call {
    Submit(Arc<Submission>, oneshot::Sender<SubmitResult>),
    End(Ended, oneshot::Sender<EndMessageFlag>),
    Start(Arc<Reception>, oneshot::Sender<Received>),
    Inbound(Flow),
    Outbound(Flow),
}

/// A transport that hands its calls to the test.
pub struct Scripted {
    calls: mpsc::UnboundedSender<Call>,
    pub support: Mutex<Option<Arc<dyn Support>>>,
    pub takes_permits: bool,
    pub reply: LogonReply,
}

#[async_trait]
impl Transport for Scripted {
    async fn logon(&self, support: Arc<dyn Support>) -> Result<LogonReply, LogonError> {
        *self.support.lock().unwrap() = Some(support);
        Ok(self.reply)
    }

    fn address_types(&self) -> AddressTypes {
        AddressTypes {
            types: Some(vec!["SMTP".to_owned()]),
            uids: Vec::new(),
        }
    }

    async fn inbound(&self, flow: Flow) {
        let _ = self.calls.send(Call::Inbound(flow));
    }

    async fn outbound(&self, flow: Flow) {
        let _ = self.calls.send(Call::Outbound(flow));
    }

    async fn submit_message(&self, message: Arc<Submission>) -> SubmitResult {
        let (answer, answered) = oneshot::channel();
        let _ = self.calls.send(Call::Submit(message, answer));
        answered.await.expect("the test panics on purpose")
    }

    async fn end_message(&self, ended: Ended) -> EndMessageFlag {
        let suggested = ended.suggested;
        let (answer, answered) = oneshot::channel();
        let _ = self.calls.send(Call::End(ended, answer));
        answered.await.unwrap_or(suggested)
    }

    fn takes_permits(&self) -> bool {
        self.takes_permits
    }

    async fn start_message(&self, message: Arc<Reception>) -> Received {
        let (answer, answered) = oneshot::channel();
        let _ = self.calls.send(Call::Start(message, answer));
        answered.await.unwrap_or(Received::Nothing)
    }

    async fn poll(&self) -> u32 {
        7
    }
}

/// What a test may set.
pub struct Setup {
    pub capacity: u32,
    pub sends: bool,
    pub takes_permits: bool,
    pub poll: bool,
    pub blobs: Option<Blobs>,
    pub right_to_send: bool,
    pub drain_limit: Duration,
    pub confirm_patience: Duration,
    pub versions: VersionRange,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            capacity: 10,
            sends: true,
            takes_permits: false,
            poll: false,
            blobs: None,
            right_to_send: true,
            drain_limit: LONG,
            confirm_patience: LONG,
            versions: VERSIONS,
        }
    }
}

/// One agent, and everything around it.
pub struct World {
    pub agent: Addr<Agent>,
    pub mine: Incarnation,
    pub wire: Arc<FakeWire>,
    pub transport: Arc<Scripted>,
    pub done: oneshot::Receiver<Drained>,
    pub health: Health,
    sent: mpsc::UnboundedReceiver<Sent>,
    calls: mpsc::UnboundedReceiver<Call>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl World {
    /// An agent whose link is up and whose transport is logged on.
    pub async fn new(setup: Setup) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (sent, sent_to) = mpsc::unbounded_channel();
        let (calls, called) = mpsc::unbounded_channel();
        let (done, done_to) = oneshot::channel();
        let wire = Arc::new(FakeWire {
            sent,
            outcomes: Mutex::default(),
            published: Mutex::default(),
        });
        let health = Health::default();
        let transport = Arc::new(Scripted {
            calls,
            support: Mutex::default(),
            takes_permits: setup.takes_permits,
            reply: LogonReply {
                poll: setup.poll,
                idle: false,
                resolve: false,
                outbound: setup.sends,
                inbound: true,
                capacity: setup.capacity,
            },
        });
        let parts = Parts {
            settings: Settings {
                name: "scripted".to_owned(),
                host: "host.example".to_owned(),
                right_to_send: setup.right_to_send,
                drain_limit: setup.drain_limit,
                message_max: 1_000_000,
                bodies_max: 10_000_000,
                confirm_patience: setup.confirm_patience,
                notify_interval: Duration::from_millis(1),
                sessions_max: 4,
                inline_max: 100,
                versions: setup.versions,
            },
            transport: Arc::clone(&transport) as Arc<dyn Transport>,
            wire: Arc::clone(&wire) as Arc<dyn Wire>,
            runtime: runtime.handle().clone(),
            blobs: setup.blobs,
            health: health.clone(),
            done,
        };
        let agent = Agent::create(|ctx| Agent::new(parts, ctx));
        let mut world = Self {
            agent,
            mine: Incarnation::random(),
            wire,
            transport,
            done: done_to,
            health,
            sent: sent_to,
            calls: called,
            runtime: Some(runtime),
        };
        world.up().await;
        world
    }

    /// The link comes up as a new incarnation; waits for the hello.
    pub async fn up(&mut self) -> Hello {
        self.mine = Incarnation::random();
        self.agent.send(Linked(Event::Up(self.mine))).await.unwrap();
        loop {
            if let Sent::Announced(packet) = self.sent().await
                && packet.from == self.mine
                && let Payload::Hello(hello) = &packet.frames[0].payload
            {
                return hello.clone();
            }
        }
    }

    pub async fn linked(&self, event: Event) {
        // An agent that has drained hears nothing more.
        let _ = self.agent.send(Linked(event)).await;
    }

    pub async fn sent(&mut self) -> Sent {
        let sent = tokio::time::timeout(LONG, self.sent.recv()).await;
        sent.expect("the agent says something").unwrap()
    }

    pub async fn call(&mut self) -> Call {
        let call = tokio::time::timeout(LONG, self.calls.recv()).await;
        call.expect("the transport is called").unwrap()
    }

    /// The next submission, once all flows before it are passed over.
    pub async fn submission(&mut self) -> (Arc<Submission>, oneshot::Sender<SubmitResult>) {
        loop {
            if let Call::Submit(submission, answer) = self.call().await {
                return (submission, answer);
            }
        }
    }

    pub async fn reception(&mut self) -> (Arc<Reception>, oneshot::Sender<Received>) {
        loop {
            if let Call::Start(reception, answer) = self.call().await {
                return (reception, answer);
            }
        }
    }

    pub async fn flow(&mut self) -> (bool, Flow) {
        loop {
            match self.call().await {
                Call::Inbound(flow) => return (true, flow),
                Call::Outbound(flow) => return (false, flow),
                _ => {}
            }
        }
    }

    pub fn support(&self) -> Arc<dyn Support> {
        self.transport.support.lock().unwrap().clone().unwrap()
    }

    /// A spooler that has logged on, with both directions begun.
    pub async fn spooler(&mut self) -> Spooler {
        let mut spooler = Spooler::new(self.mine);
        spooler.logon(self).await.unwrap();
        spooler
            .notify(self, TransportNotification::BeginInbound)
            .await;
        spooler
            .notify(self, TransportNotification::BeginOutbound)
            .await;
        spooler
            .row(self, |row| row.outbound.enabled && row.inbound.enabled)
            .await;
        spooler
    }
}

/// A scripted spooler.
pub struct Spooler {
    pub incarnation: Incarnation,
    pub out: Outbound,
    /// Whether status rows are answered.
    pub answers: bool,
    verbs: VecDeque<(Correlation, Verb)>,
    pub rows: Vec<StatusRow>,
    /// Of the packets heard in this session.
    pub versions: Vec<u8>,
}

impl Spooler {
    pub fn new(agent: Incarnation) -> Self {
        let incarnation = Incarnation::random();
        Self {
            incarnation,
            out: Outbound::new(incarnation, agent, 1),
            answers: true,
            verbs: VecDeque::new(),
            rows: Vec::new(),
            versions: Vec::new(),
        }
    }

    /// The same incarnation opens another session.
    pub fn reopened(&self, epoch: u32) -> Self {
        let mut other = Self::new(self.out.peer());
        other.incarnation = self.incarnation;
        other.out = Outbound::new(self.incarnation, self.out.peer(), epoch);
        other
    }

    pub async fn logon(&mut self, world: &mut World) -> Result<LogonAccepted, LogonError> {
        let logon = Logon {
            versions: VERSIONS,
            spooler: "spooler".to_owned(),
            no_connect: false,
            no_inbound: true,
            no_outbound: true,
            blobs: String::new(),
        };
        self.logon_with(world, logon).await
    }

    pub async fn logon_with(
        &mut self,
        world: &mut World,
        logon: Logon,
    ) -> Result<LogonAccepted, LogonError> {
        match self.ask(world, Verb::TransportLogon(logon)).await {
            Verb::LogonReply(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub async fn say(&mut self, world: &World, verb: Verb) {
        self.push(world, Frame::verb(Correlation(0), verb)).await;
    }

    pub async fn push(&mut self, world: &World, frame: Frame) {
        self.out.push(frame);
        self.flush(world).await;
    }

    pub async fn flush(&mut self, world: &World) {
        let now = Instant::now();
        // Whether or not earlier packets are answered: a test's spooler has no patience.
        for at in [now, now + 2 * PATIENCE] {
            while let Some(packet) = self.out.poll_packet(at) {
                world.linked(Event::Packets(vec![packet])).await;
            }
        }
    }

    pub async fn notify(&mut self, world: &World, notification: TransportNotification) {
        self.say(world, Verb::TransportNotify(notification)).await;
    }

    /// Asks, and waits for the answer to it.
    pub async fn ask(&mut self, world: &mut World, verb: Verb) -> Verb {
        let correlation = self.out.correlate();
        self.push(world, Frame::verb(correlation, verb)).await;
        self.answer(world, correlation).await
    }

    pub async fn answer(&mut self, world: &mut World, correlation: Correlation) -> Verb {
        loop {
            let place = self.verbs.iter().position(|(it, _)| *it == correlation);
            if let Some((_, verb)) = place.and_then(|place| self.verbs.remove(place)) {
                return verb;
            }
            self.hear(world).await;
        }
    }

    /// The next thing said that is no status row.
    pub async fn next(&mut self, world: &mut World) -> Verb {
        loop {
            if let Some((_, verb)) = self.verbs.pop_front() {
                return verb;
            }
            self.hear(world).await;
        }
    }

    /// The same with the question that it answers.
    pub async fn next_with(&mut self, world: &mut World) -> (Correlation, Verb) {
        loop {
            if let Some(next) = self.verbs.pop_front() {
                return next;
            }
            self.hear(world).await;
        }
    }

    /// Waits for a status row like this.
    pub async fn row(
        &mut self,
        world: &mut World,
        wanted: impl Fn(&StatusRow) -> bool,
    ) -> StatusRow {
        loop {
            let row = self.rows.iter().position(&wanted);
            if let Some(row) = row {
                return self.rows.drain(..=row).next_back().unwrap();
            }
            self.rows.clear();
            self.hear(world).await;
        }
    }

    /// Waits until the agent has ended this session.
    pub async fn ended(&mut self, world: &mut World) {
        while self.next(world).await != Verb::NoSession {}
    }

    async fn hear(&mut self, world: &mut World) {
        let Sent::Packet(packet) = world.sent().await else {
            return;
        };
        if packet.to != self.incarnation {
            return;
        }
        if pombo_proto::outbound::ended(&packet) == Some(self.out.epoch()) {
            self.verbs.push_back((Correlation(0), Verb::NoSession));
            return;
        }
        if self.out.handle_packet(&packet) == Heard::Stale {
            return;
        }
        self.versions.push(packet.version);
        for frame in packet.frames {
            let Payload::Verb(verb) = frame.payload else {
                continue;
            };
            if let Verb::ModifyStatusRow(row) = verb {
                if self.answers {
                    let answer = Verb::StatusAnswer { row: row.row };
                    self.out.push(Frame::verb(Correlation(0), answer));
                }
                self.rows.push(row);
            } else {
                self.verbs.push_back((frame.correlation, verb));
            }
        }
        self.flush(world).await;
    }

    /// SubmitMessage; does not wait.
    pub async fn submit(&mut self, world: &World, message: &Message, fence: u32) {
        let recipients = (0..message.envelope.recipients.len() as u32).map(RecipientIndex);
        let submit = Submit {
            id: message.envelope.id,
            fence: Fence(fence),
            begin_deferred: false,
            recipients: recipients.collect(),
        };
        let frame = Frame::verb(Correlation(0), Verb::SubmitMessage(submit));
        self.push(world, frame.with_tail(message.encoded.clone()))
            .await;
    }

    /// A hello to all agents.
    pub fn hello(&self) -> Packet {
        let hello = Hello {
            role: Role::Spooler,
            instance: pombo_proto::ids::Instance::random(),
            incarnation: self.incarnation,
            versions: VERSIONS,
            host: "spooler.example".to_owned(),
        };
        let frame = Frame::new(Payload::Hello(hello));
        Packet::single(self.incarnation, Incarnation::EVERYONE, frame)
    }
}

pub fn tenancy(id: MessageId, fence: u32) -> Tenancy {
    (id, Fence(fence)).into()
}

pub fn envelope(recipients: u32, body: Body) -> Envelope {
    let recipient = |index| Recipient::smtp(format!("r{index}@example.org"));
    Envelope {
        id: DoorSequence::default().issue(UnixMillis::now()),
        class: MessageClass::Note,
        sender: "ann@example.org".to_owned(),
        recipients: (0..recipients).map(recipient).collect(),
        priority: Priority::Normal,
        submitted_at: UnixMillis::now(),
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source::default(),
        body,
        properties: Vec::new(),
    }
}

/// A message with so many recipients.
pub fn message(recipients: u32) -> Message {
    let body = Bytes::from_static(b"Subject: x\r\n\r\nhello\r\n");
    let size = body.len() as u64;
    encode_message(envelope(recipients, Body::Inline { size }), &body)
}

pub fn delivered(recipient: u32) -> RecipientOutcome {
    RecipientOutcome {
        recipient: RecipientIndex(recipient),
        outcome: Outcome::Delivered(Delivery::new(UnixMillis(1), "mx", "250 ok")),
    }
}
