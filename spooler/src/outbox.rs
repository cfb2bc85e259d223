//! Claims what is due in the outbox, against free credit, and hands it to the pipeline.
//!
//! Claims never wait in memory for credit: the dispatcher is asked for its appetite first. What is in doubt goes through
//! [`crate::adoption`] before it may be submitted again.

use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, ResponseFuture, WrapFuture};
use pombo_proto::{
    control::QueueState, frame, ids::Incarnation, tenure::Tenure, time::UnixMillis, verbs::Tenancy,
};
use tracing::{error, warn};

use crate::{
    adoption::{Adoption, OpenDoubts},
    dispatcher::{Appetite, Dispatcher, Jobs},
    job::{Job, Ordinals},
    membership::TakenOver,
    note::{Asks, Note},
    progress::Progress,
    store::{
        Change, ClaimRequest, Claimed, Error, Mark, RowData, Store, StoreThread, Tally, Write,
    },
};

/// How often the store is asked without a reason. Everything that this process itself makes due kicks at once; this
/// is for what falls due by time, and for what other spoolers wrote.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Rows per claim: enough to fill a commit, few enough that other spoolers get their share.
const CLAIM_ROWS: usize = 128;
/// Bytes per claim: what one spooler takes into memory at a time.
const CLAIM_BYTES: usize = 8 * 1024 * 1024;

/// A claimed row that is to become due is looked at so often, and a burial that failed is tried again.
const DUE_AGAIN: Duration = Duration::from_millis(500);

/// Messages in doubt that are held at a time: some of them until an agent that is gone has lost its right to send. At
/// the largest inline bodies that is about as much as a prefetch of 2,000.
const DOUBTS_MAX: usize = 2_000;

/// There may be something due.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Kick;

/// Claim under this incarnation from now on; `None`: stop.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct ClaimAs(pub Option<Incarnation>);

#[derive(Message)]
#[rtype(result = "()")]
struct Outcome {
    more: bool,
}

/// The actor. Kicked by the recorder, the control and itself; feeds the dispatcher and the adoption.
pub struct Outbox {
    store: StoreThread,
    ordinals: Ordinals,
    dispatcher: Addr<Dispatcher>,
    adoption: Addr<Adoption>,
    asks: Asks,
    holder: Option<Incarnation>,
    claiming: bool,
    kicked: bool,
}

impl Outbox {
    /// Claims nothing until it is told as whom.
    pub fn new(
        store: StoreThread,
        ordinals: Ordinals,
        dispatcher: Addr<Dispatcher>,
        adoption: Addr<Adoption>,
        asks: Asks,
    ) -> Self {
        Self {
            store,
            ordinals,
            dispatcher,
            adoption,
            asks,
            holder: None,
            claiming: false,
            kicked: false,
        }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let Some(holder) = self.holder else { return };
        if self.claiming {
            self.kicked = true;
            return;
        }
        self.claiming = true;
        self.kicked = false;
        let round = Round {
            store: self.store.clone(),
            ordinals: self.ordinals.clone(),
            dispatcher: self.dispatcher.clone(),
            adoption: self.adoption.clone(),
            asks: self.asks.clone(),
            holder,
        };
        let me = ctx.address();
        let work = async move {
            let more = round.claim().await;
            me.do_send(Outcome { more });
        };
        ctx.spawn(work.into_actor(self));
    }
}

impl Actor for Outbox {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(LOOK_EVERY, |this, ctx| this.look(ctx));
    }
}

impl Handler<Kick> for Outbox {
    type Result = ();

    fn handle(&mut self, _: Kick, ctx: &mut Self::Context) {
        self.look(ctx);
    }
}

impl Handler<TakenOver> for Outbox {
    type Result = ();

    fn handle(&mut self, _: TakenOver, ctx: &mut Self::Context) {
        self.look(ctx);
    }
}

impl Handler<ClaimAs> for Outbox {
    type Result = ();

    fn handle(&mut self, ClaimAs(holder): ClaimAs, ctx: &mut Self::Context) {
        self.holder = holder;
        self.look(ctx);
    }
}

impl Handler<Outcome> for Outbox {
    type Result = ();

    fn handle(&mut self, Outcome { more }: Outcome, ctx: &mut Self::Context) {
        self.claiming = false;
        if more || self.kicked {
            self.look(ctx);
        }
    }
}

/// Waits until no claim is under way; for the way down.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct IsClaiming;

impl Handler<IsClaiming> for Outbox {
    type Result = bool;

    fn handle(&mut self, _: IsClaiming, _: &mut Self::Context) -> bool {
        self.claiming
    }
}

struct Round {
    store: StoreThread,
    ordinals: Ordinals,
    dispatcher: Addr<Dispatcher>,
    adoption: Addr<Adoption>,
    asks: Asks,
    holder: Incarnation,
}

impl Round {
    async fn claim(self) -> bool {
        let Ok(appetite) = self.dispatcher.send(Appetite).await else {
            return false;
        };
        // What is in doubt waits in memory for its agents' answers.
        let Ok(doubts) = self.adoption.send(OpenDoubts).await else {
            return false;
        };
        let room = DOUBTS_MAX.saturating_sub(doubts);
        let limit = appetite.limit.min(CLAIM_ROWS).min(room);
        if limit == 0 {
            return false;
        }
        let request = ClaimRequest {
            holder: self.holder,
            now: UnixMillis::now(),
            limit,
            bytes: CLAIM_BYTES,
            excluded: appetite.excluded,
            asks: self.asks.to_stored(),
        };
        let claimed = match self.store.call(move |store| store.claim(&request)).await {
            Ok(claimed) => claimed,
            Err(error) => {
                warn!(%error, "cannot claim from the outbox");
                return false;
            }
        };
        let more = claimed.len() == limit;
        let (mut sure, mut doubtful) = (Vec::new(), Vec::new());
        for row in claimed {
            match self.job(row) {
                Ok(job) if job.doubt => doubtful.push(job),
                Ok(job) => sure.push(job),
                Err(write) => {
                    actix::spawn(bury(self.store.clone(), *write));
                }
            }
        }
        if !doubtful.is_empty() {
            self.adoption.do_send(Jobs(doubtful));
        }
        if !sure.is_empty() {
            self.dispatcher.do_send(Jobs(sure));
        }
        more
    }

    /// A row that cannot be read any more is dead: visible, and out of the way.
    fn job(&self, row: Claimed) -> Result<Job, Box<Write>> {
        let tenure = Tenure::claimed(row.id, row.fence, self.holder, self.ordinals.next());
        let read = frame::decode_message(row.message.clone()).and_then(|message| {
            let progress = frame::decode_all::<Progress>(&row.progress)?;
            let note = row.note.as_deref().map(Note::decode).transpose()?;
            Ok((message, progress, note.unwrap_or_default()))
        });
        match read {
            Ok((message, progress, note)) => Ok(Job {
                tenure,
                message,
                progress,
                cancelled: row.mark == Mark::Cancel,
                dropped: row.mark == Mark::Drop,
                doubt: row.doubt,
                unsure_since: row.unsure_since,
                deaths: row.deaths,
                note,
                asks: Asks::stored(row.asks),
                since: Instant::now(),
            }),
            Err(error) => {
                error!(id = %row.id, %error, "a row of the outbox cannot be read: dead");
                Err(Box::new(Write::Record {
                    tenancy: Tenancy {
                        id: row.id,
                        fence: row.fence,
                    },
                    holder: self.holder,
                    row: RowData {
                        state: QueueState::Dead,
                        due: None,
                        wake: None,
                        reason: format!("cannot be read: {error}"),
                        transport: None,
                        destination: None,
                        priority: pombo_proto::message::Priority::Normal,
                        doubt: row.doubt,
                        unsure_since: row.unsure_since,
                        in_doubt: 0,
                        deaths: row.deaths,
                        message: row.message,
                        progress: row.progress,
                        tally: Tally::default(),
                    },
                    reports: Vec::new(),
                }))
            }
        }
    }
}

/// Until it is written down, or somebody else has the row: it would stay claimed, and nobody would look at it.
async fn bury(store: StoreThread, write: Write) {
    while let Err(error) = store.committed(write.clone()).await {
        warn!(%error, "cannot write down that a row cannot be read");
        tokio::time::sleep(DUE_AGAIN).await;
    }
}

/// Asks the outbox to become due for one message, when somebody outside learned something about it. One that is claimed
/// becomes due once its holder has let it go.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MakeDue(pub pombo_proto::ids::MessageId);

impl Handler<MakeDue> for Outbox {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, MakeDue(id): MakeDue, ctx: &mut Self::Context) -> Self::Result {
        let (store, me) = (self.store.clone(), ctx.address());
        Box::pin(async move {
            loop {
                let changed = store.call(move |store| make_due(store, id)).await;
                match changed {
                    Ok(Due::Now) => return me.do_send(Kick),
                    Ok(Due::Never) => return,
                    Ok(Due::Claimed) => {}
                    Err(error) => warn!(%error, id = %id, "cannot make due"),
                }
                tokio::time::sleep(DUE_AGAIN).await;
            }
        })
    }
}

enum Due {
    Now,
    /// Somebody has it; asked for again.
    Claimed,
    /// It is held, dead, finished or not there.
    Never,
}

fn make_due(store: &mut dyn Store, id: pombo_proto::ids::MessageId) -> Result<Due, Error> {
    if store.change(UnixMillis::now(), id, Change::Retry)? {
        return Ok(Due::Now);
    }
    let claimed = store
        .get(id)?
        .is_some_and(|row| row.data.state == QueueState::Moving);
    Ok(if claimed { Due::Claimed } else { Due::Never })
}
