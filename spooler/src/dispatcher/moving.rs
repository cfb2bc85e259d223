//! What moves here: where every message in process is, for `trace`, `why`, `queue` and `cancel`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Context, Handler, Message};
use pombo_proto::{
    control::{QueueFilter, QueueRow},
    ids::{Fence, MessageId},
    ledger::DoorNumber,
    message::Envelope,
    time::UnixMillis,
    verbs::Tenancy,
};

use super::{Dispatcher, ReadyJob};
use crate::{control::from_envelope, job::SessionKey, progress::Progress, verdict::Happened};

/// A cancel that nobody here could act on is remembered for so long, in case the message is leased here next.
const MARK_FOR: Duration = Duration::from_secs(600);
/// So many marks are remembered.
const MARKS_MAX: usize = 10_000;
/// Rows listed if no limit is given.
const LIST_DEFAULT: usize = 1_000;

/// Where a message in process is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Just obtained, or between actors.
    Intake,
    /// Waits for credit, or for room at its destination.
    Ready { transport: Arc<str> },
    /// Submitted, and EndMessage has not returned.
    Submitted {
        transport: Arc<str>,
        agent: String,
        session: SessionKey,
    },
    /// The verdict is on its way into the store.
    Recording,
}

struct Entry {
    envelope: Arc<Envelope>,
    fence: Fence,
    stage: Stage,
    since: UnixMillis,
}

/// All of them.
pub(super) struct Moving {
    name: String,
    entries: HashMap<MessageId, Entry>,
    marks: HashMap<MessageId, Instant>,
}

/// One of them, for people.
#[derive(Clone, Debug)]
pub struct MovingView {
    /// The envelope.
    pub envelope: Arc<Envelope>,
    /// Its fence.
    pub fence: Fence,
    /// What is known, as far as it can be seen from here.
    pub progress: Progress,
    /// Where it is, in words.
    pub stage: String,
    /// Since when.
    pub stage_since: UnixMillis,
    /// This spooler, or the agent that it is with.
    pub holder: String,
}

impl Moving {
    pub fn new(name: String) -> Self {
        Self {
            name,
            entries: HashMap::new(),
            marks: HashMap::new(),
        }
    }

    pub fn begin(
        &mut self,
        id: MessageId,
        fence: Fence,
        envelope: &Arc<Envelope>,
        now: UnixMillis,
    ) {
        let entry = Entry {
            envelope: envelope.clone(),
            fence,
            stage: Stage::Intake,
            since: now,
        };
        self.entries.insert(id, entry);
    }

    pub fn stage(&mut self, id: MessageId, stage: Stage) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stage = stage;
            entry.since = UnixMillis::now();
        }
    }

    pub fn end(&mut self, id: MessageId) {
        self.entries.remove(&id);
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it moves here under this very fence.
    pub fn is_under(&self, tenancy: Tenancy) -> bool {
        self.entries
            .get(&tenancy.id)
            .is_some_and(|entry| entry.fence == tenancy.fence)
    }

    pub fn is_cancelled(&self, id: MessageId) -> bool {
        self.marks.contains_key(&id)
    }

    pub fn forget_marks(&mut self) {
        self.marks.retain(|_, since| since.elapsed() < MARK_FOR);
    }

    /// What still moves, for the log of a drain: a few words each, not all of them.
    pub fn summary(&self) -> Vec<String> {
        let shown = self.entries.iter().take(5);
        shown
            .map(|(id, entry)| format!("{id}: {}", self.words(&entry.stage)))
            .collect()
    }

    fn words(&self, stage: &Stage) -> String {
        match stage {
            Stage::Intake => "taken by the spooler".to_owned(),
            Stage::Ready { transport } => format!("waits for credit or room at {transport}"),
            Stage::Submitted {
                transport, agent, ..
            } => format!("with {transport} at {agent}"),
            Stage::Recording => "being recorded".to_owned(),
        }
    }

    fn view(&self, id: MessageId) -> Option<MovingView> {
        let entry = self.entries.get(&id)?;
        let mut progress = Progress::fresh(entry.envelope.recipients.len());
        let source = &entry.envelope.source;
        progress.note(
            entry.envelope.submitted_at,
            "accepted",
            format!("{} {}", source.door, source.client),
        );
        let holder = match &entry.stage {
            Stage::Submitted { agent, .. } => format!("{} and {agent}", self.name),
            _ => self.name.clone(),
        };
        Some(MovingView {
            envelope: entry.envelope.clone(),
            fence: entry.fence,
            progress,
            stage: self.words(&entry.stage),
            stage_since: entry.since,
            holder,
        })
    }

    fn rows(&self, filter: &QueueFilter) -> Vec<QueueRow> {
        if filter
            .state
            .is_some_and(|state| state != pombo_proto::control::QueueState::Moving)
        {
            return Vec::new();
        }
        if filter.in_doubt {
            // The store knows.
            return Vec::new();
        }
        let limit = if filter.limit == 0 {
            LIST_DEFAULT
        } else {
            filter.limit as usize
        };
        let row = |entry: &Entry| {
            let progress = Progress::fresh(entry.envelope.recipients.len());
            let mut row = from_envelope(&entry.envelope, &progress);
            row.reason = self.words(&entry.stage);
            if let Stage::Ready { transport } | Stage::Submitted { transport, .. } = &entry.stage {
                row.transport = Some(transport.to_string());
            }
            row
        };
        let asked =
            |text: &Option<String>, has: &dyn Fn(&str) -> bool| text.as_deref().is_none_or(has);
        let matches = |entry: &&Entry| {
            let recipients = &entry.envelope.recipients;
            asked(&filter.sender, &|it| entry.envelope.sender == it)
                && asked(&filter.recipient, &|it| {
                    recipients.iter().any(|r| r.address == it)
                })
                && asked(&filter.destination, &|it| {
                    recipients.iter().any(|r| r.domain() == it)
                })
        };
        let rows = self.entries.values().filter(matches).map(row);
        let of_transport =
            |row: &QueueRow| filter.transport.is_none() || row.transport == filter.transport;
        rows.filter(of_transport).take(limit).collect()
    }
}

/// Where is it?
#[derive(Message)]
#[rtype(result = "Option<MovingView>")]
pub struct WhereIs(pub MessageId);

impl Handler<WhereIs> for Dispatcher {
    type Result = Option<MovingView>;

    fn handle(&mut self, WhereIs(id): WhereIs, _: &mut Context<Self>) -> Self::Result {
        self.moving.view(id)
    }
}

/// What moves here?
#[derive(Message)]
#[rtype(result = "Vec<QueueRow>")]
pub struct ListMoving(pub QueueFilter);

impl Handler<ListMoving> for Dispatcher {
    type Result = Vec<QueueRow>;

    fn handle(&mut self, ListMoving(filter): ListMoving, _: &mut Context<Self>) -> Self::Result {
        self.moving.rows(&filter)
    }
}

/// Which of these numbers move here, and how many deliveries do.
#[derive(Message)]
#[rtype(result = "Holds")]
pub struct HoldsWhich(pub Vec<DoorNumber>);

/// The answer.
#[derive(Debug, Default, actix::MessageResponse)]
pub struct Holds {
    /// Those that move here.
    pub held: Vec<DoorNumber>,
    /// Deliveries that are leased and not acked, but for those on their way into the outbox.
    pub leased: u64,
}

impl Handler<HoldsWhich> for Dispatcher {
    type Result = Holds;

    fn handle(&mut self, HoldsWhich(numbers): HoldsWhich, _: &mut Context<Self>) -> Self::Result {
        let leases = self.moving.entries.values();
        let leased = leases.filter(|entry| entry.fence == Fence(0)).count() as u64;
        let mut held = Vec::new();
        if !numbers.is_empty() {
            let mine = self.moving.entries.keys().copied();
            let mine: HashSet<DoorNumber> = mine.filter_map(DoorNumber::of).collect();
            held = numbers;
            held.retain(|number| mine.contains(number));
        }
        Holds { held, leased }
    }
}

/// Cancel it if it moves here, and remember the mark. True if it moves here.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct CancelMoving(pub MessageId);

impl Handler<CancelMoving> for Dispatcher {
    type Result = bool;

    fn handle(&mut self, CancelMoving(id): CancelMoving, _: &mut Context<Self>) -> bool {
        if self.moving.marks.len() < MARKS_MAX {
            self.moving.marks.insert(id, Instant::now());
        }
        let ready = self.ready.take(id).or_else(|| self.suspects.take(id));
        if let Some(ReadyJob { mut job, .. }) = ready {
            job.cancelled = true;
            self.conclude(job, Happened::Nothing);
            return true;
        }
        let Some(entry) = self.moving.entries.get(&id) else {
            return false;
        };
        if let Stage::Submitted { session, .. } = entry.stage {
            self.sessions.cancel(session, id);
        }
        true
    }
}
