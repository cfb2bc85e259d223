//! One incarnation: both connections, their channels and tasks, from the first declaration to the good-bye.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::BoxStream};
use lapin::{Channel, Connection, Consumer, options::ConfirmSelectOptions, types::ShortString};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{info, warn};

use super::{
    Event, Options, bury,
    connect::{Address, Wire},
    declare,
    error::{Error, within},
    inbox, lease,
    poll::{self, Poll},
    publish::{self, Publisher, Requests},
    run::{Inner, Tell, set},
    session::{self, Packets, Sender},
};
use crate::{ids::Incarnation, topology::SpoolClass};

/// Two logins and some twenty round trips; a broker that boots is slow.
const BUILD_MAX: Duration = Duration::from_secs(45);
/// lapin does not tell every end of a connection or channel.
const CHECK: Duration = Duration::from_secs(1);
/// To write what is pending at the end.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// What callers use of an incarnation.
pub(super) struct Live {
    pub(super) incarnation: Incarnation,
    pub(super) session: Sender,
    pub(super) publisher: Publisher,
    pub(super) spool_exchange: ShortString,
    pub(super) consuming: Arc<Connection>,
    /// In the order of [`SpoolClass::ALL`].
    pub(super) acks: Vec<mpsc::UnboundedSender<Vec<u64>>>,
    blocked: watch::Sender<bool>,
    turn: Arc<AtomicBool>,
}

impl Live {
    pub(super) fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    /// Takes back what was told and does not hold any more.
    pub(super) fn retract(&self, tell: &Tell) {
        if self.turn.swap(false, Ordering::AcqRel) {
            tell(Event::PollTurn(false));
        }
        if self.blocked.send_replace(false) {
            tell(Event::Blocked(false));
        }
    }
}

type Events = BoxStream<'static, lapin::Event>;

/// A link that stands, and that nobody has heard of yet.
pub(super) struct Up {
    incarnation: Incarnation,
    wires: Wires,
    packets: Consumer,
}

/// Both connections, and the channels without which there is no link.
struct Wires {
    publishing: Wire,
    publishing_events: Events,
    consuming: Wire,
    consuming_events: Events,
    spool: Channel,
    session: Channel,
    inbox: Channel,
}

impl Up {
    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) async fn build(options: &Options, address: &Address) -> Result<Self, Error> {
        let building = Box::pin(Self::try_build(options, address));
        within("building the link", BUILD_MAX, building).await
    }

    async fn try_build(options: &Options, address: &Address) -> Result<Self, Error> {
        let (names, tls) = (&options.topology, &options.tls);
        let publishing = Wire::open(address, tls, format!("{} publishing", options.name)).await?;
        let publishing_events = publishing.connection.events_listener().boxed();
        let consuming = Wire::open(address, tls, format!("{} consuming", options.name)).await?;
        let consuming_events = consuming.connection.events_listener().boxed();

        let incarnation = Incarnation::random();
        declare::topology(&consuming.connection, names, options.audience).await?;
        let inbox = consuming.connection.create_channel().await?;
        let queue = declare::inbox(&inbox, names, incarnation, options.audience).await?;
        let packets = inbox::consume(&inbox, queue, options.inbox_prefetch).await?;

        let spool = publishing.connection.create_channel().await?;
        spool
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let session = publishing.connection.create_channel().await?;
        let wires = Wires {
            publishing,
            publishing_events,
            consuming,
            consuming_events,
            spool,
            session,
            inbox,
        };
        Ok(Self {
            incarnation,
            wires,
            packets,
        })
    }

    /// From `Up` to `Down`. Returns when all is closed.
    pub(super) async fn live(self, inner: &Arc<Inner>) {
        let mut wires = self.wires;
        let (publisher, requests) = Publisher::new();
        let (session, packets) = Sender::new();
        let (acks, ack_receivers) = SpoolClass::ALL
            .map(|_| mpsc::unbounded_channel())
            .into_iter()
            .unzip();
        let live = Arc::new(Live {
            incarnation: self.incarnation,
            session,
            publisher,
            spool_exchange: declared(inner.options.topology.spool_exchange()),
            consuming: Arc::clone(&wires.consuming.connection),
            acks,
            blocked: watch::Sender::new(false),
            turn: Arc::default(),
        });
        inner.set_live(Some(Arc::clone(&live)));
        (inner.tell)(Event::Up(self.incarnation));

        let drain = watch::Sender::new(false);
        let ends = Ends {
            requests,
            packets,
            acks: ack_receivers,
            inbox: self.packets,
        };
        let mut tasks = spawn(inner, &live, &wires, ends, &drain);
        let mut closing = inner.closing.subscribe();
        let lost = tokio::select! {
            () = set(&mut closing) => None,
            () = inner.restart.notified() => Some("asked to start over".to_owned()),
            reason = wires.watch(&live, &inner.tell) => Some(reason),
            Some(ended) = tasks.join_next() => {
                Some(ended.unwrap_or_else(|panic| panic.to_string()))
            }
        };
        if lost.is_none() {
            let flush = async {
                // Burials go through the publisher, so they go first.
                inner.graveyard.emptied().await;
                drain.send_replace(true);
                while tasks.join_next().await.is_some() {}
            };
            if tokio::time::timeout(FLUSH_MAX, flush).await.is_err() {
                warn!("the broker did not take everything that was pending");
            }
        }
        tasks.shutdown().await;
        let reason = lost.unwrap_or_else(|| "closed".to_owned());
        info!(incarnation = %live.incarnation, reason, "link down");
        inner.end(&reason);
        tokio::join!(wires.publishing.close(), wires.consuming.close());
    }
}

/// A name that was declared before, and so is none that is too long.
fn declared(name: String) -> ShortString {
    declare::name(name).unwrap_or_default()
}

/// The tasks' ends of what callers hold, and the inbox.
struct Ends {
    requests: Requests,
    packets: Packets,
    acks: Vec<mpsc::UnboundedReceiver<Vec<u64>>>,
    inbox: Consumer,
}

/// Every task ends with a reason; whichever ends first ends the incarnation.
fn spawn(
    inner: &Inner,
    live: &Live,
    wires: &Wires,
    ends: Ends,
    drain: &watch::Sender<bool>,
) -> JoinSet<String> {
    let mut tasks = JoinSet::new();
    let names = &inner.options.topology;
    let dead = declared(names.dead_exchange());
    let tell = || Arc::clone(&inner.tell);
    let drain = || drain.subscribe();

    tasks.spawn(publish::run(
        wires.spool.clone(),
        ends.requests,
        live.blocked.subscribe(),
        drain(),
    ));
    tasks.spawn(session::run(
        wires.session.clone(),
        ends.packets,
        tell(),
        drain(),
    ));
    tasks.spawn(inbox::run(
        wires.inbox.clone(),
        ends.inbox,
        inner.options.inbox_prefetch,
        tell(),
        inner.graveyard.clone(),
        inner.options.versions,
        drain(),
    ));
    tasks.spawn(bury::run(
        inner.graveyard.clone(),
        live.publisher.clone(),
        dead.clone(),
        drain(),
    ));
    let poll = Poll {
        connection: Arc::clone(&wires.consuming.connection),
        publisher: live.publisher.clone(),
        topology: names.clone(),
        tell: tell(),
        turn: Arc::clone(&live.turn),
    };
    tasks.spawn(poll::run(poll, inner.turn.subscribe(), drain()));

    let context = lease::Context {
        connection: Arc::clone(&wires.consuming.connection),
        incarnation: live.incarnation,
        tell: tell(),
        publisher: live.publisher.clone(),
        dead,
    };
    let classes = SpoolClass::ALL.into_iter().zip(&inner.prefetch);
    for ((class, prefetch), acks) in classes.zip(ends.acks) {
        let class = lease::Class {
            class,
            queue: declared(names.spool_queue(class)),
            prefetch: prefetch.subscribe(),
            acks,
        };
        tasks.spawn(lease::run(context.clone(), class, drain()));
    }
    tasks
}

impl Wires {
    /// Listens to both connections until one of them, or a channel, is lost.
    async fn watch(&mut self, live: &Live, tell: &Tell) -> String {
        let mut check = tokio::time::interval(CHECK);
        let mut last = None;
        loop {
            let event = tokio::select! {
                Some(event) = self.publishing_events.next() => Some(event),
                // It never publishes, so it is never blocked.
                Some(lapin::Event::Error(error)) = self.consuming_events.next() => {
                    Some(lapin::Event::Error(error))
                }
                _ = check.tick() => None,
            };
            match event {
                Some(lapin::Event::ConnectionBlocked(reason)) => {
                    warn!(reason, "the broker blocks publishes");
                    if !live.blocked.send_replace(true) {
                        tell(Event::Blocked(true));
                    }
                }
                Some(lapin::Event::ConnectionUnblocked) => {
                    info!("the broker takes publishes again");
                    if live.blocked.send_replace(false) {
                        tell(Event::Blocked(false));
                    }
                }
                Some(lapin::Event::Error(error)) => last = Some(error),
                _ => {}
            }
            match (self.lost(), &last) {
                (Some(what), Some(error)) => return format!("{what} is lost: {error}"),
                (Some(what), None) => return format!("{what} is lost"),
                // The channel of the poll turn, which looks after itself.
                (None, _) => last = None,
            }
        }
    }

    fn lost(&self) -> Option<&'static str> {
        let stands = [
            ("the publishing connection", self.publishing.is_up()),
            ("the consuming connection", self.consuming.is_up()),
            ("the spool channel", self.spool.status().connected()),
            ("the session channel", self.session.status().connected()),
            ("the inbox channel", self.inbox.status().connected()),
        ];
        let lost = stands.into_iter().find(|(_, stands)| !stands);
        lost.map(|(what, _)| what)
    }
}
