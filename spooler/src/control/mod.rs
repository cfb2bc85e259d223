//! Answers what people ask by `pombo`.
//!
//! A question about one message is answered from the store first, then from what moves here; other spoolers answer
//! for themselves, and `pombo` puts the answers together.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, WrapFuture};
use bytes::Bytes;
use pombo_proto::{
    blob::Blobs,
    control::{
        Answer, CancelAnswer, Control as Said, ControlError, Question, QueueFilter, Selection,
    },
    frame::{Frame, Packet, Payload},
    ids::{Correlation, DoorSequence, Incarnation, MessageId},
    link::Link,
    time::UnixMillis,
};
use tracing::{debug, warn};

use crate::{
    config::Config,
    dispatcher::{CancelMoving, Dispatcher, ListMoving, WhereIs},
    outbox::{Kick, Outbox},
    store::{Change, StoreThread},
    switchboard::{FlushSessions, ListSessions, Switchboard},
};

mod answers;
mod submit;
mod uploads;

pub(crate) use answers::from_envelope;
use uploads::Uploads;

/// A cancel waits so long for the holder's commit before it answers "asked".
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);
/// How many rows one change touches at most; asked again, it goes on.
const CHANGE_ROWS: u32 = 10_000;

/// A question, from the switchboard.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Asked {
    /// Who asks.
    pub from: Incarnation,
    /// To be repeated in the answer.
    pub correlation: Correlation,
    /// What.
    pub question: Question,
    /// The tail of the frame: a part of an upload.
    pub tail: Bytes,
}

/// Answer under this incarnation from now on.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct AnswerAs(pub Option<Incarnation>);

/// The actor. Spoken to by the switchboard; asks the store, the dispatcher and the switchboard.
pub struct Control {
    desk: Desk,
    uploads: Uploads,
    door: DoorSequence,
    incarnation: Option<Incarnation>,
}

/// What answering needs; cloned into every answer's future.
#[derive(Clone)]
struct Desk {
    config: Arc<Config>,
    store: StoreThread,
    blobs: Blobs,
    link: Link,
    dispatcher: Addr<Dispatcher>,
    outbox: Addr<Outbox>,
    switchboard: Addr<Switchboard>,
}

impl Control {
    /// Over the given parts.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        config: Arc<Config>,
        store: StoreThread,
        blobs: Blobs,
        link: Link,
        dispatcher: Addr<Dispatcher>,
        outbox: Addr<Outbox>,
        switchboard: Addr<Switchboard>,
    ) -> Self {
        Self {
            desk: Desk {
                config,
                store,
                blobs,
                link,
                dispatcher,
                outbox,
                switchboard,
            },
            uploads: Uploads::default(),
            door: DoorSequence::default(),
            incarnation: None,
        }
    }

    fn upload(
        &mut self,
        upload: uuid::Uuid,
        offset: u64,
        part: &Bytes,
    ) -> Result<Answer, ControlError> {
        let limit = self.desk.config.spooler.body_bytes_max;
        let size = self
            .uploads
            .add(upload, offset, part, limit, UnixMillis::now())?;
        Ok(Answer::Uploaded { size })
    }
}

impl Actor for Control {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        ctx.run_interval(Duration::from_secs(10), |this, _| {
            this.uploads.forget(UnixMillis::now())
        });
    }
}

impl Handler<AnswerAs> for Control {
    type Result = ();

    fn handle(&mut self, AnswerAs(incarnation): AnswerAs, _: &mut Self::Context) {
        self.incarnation = incarnation;
    }
}

impl Handler<Asked> for Control {
    type Result = ();

    fn handle(&mut self, asked: Asked, ctx: &mut Self::Context) {
        let Some(incarnation) = self.incarnation else {
            return;
        };
        let (desk, from, correlation) = (self.desk.clone(), asked.from, asked.correlation);
        debug!(%from, "question");
        let reply = move |desk: &Desk, answer| {
            let frame = Frame {
                correlation,
                payload: Payload::Control(Said::Answer(answer)),
                tail: Bytes::new(),
            };
            desk.link.send(&Packet::single(incarnation, from, frame));
        };
        match asked.question {
            Question::Upload { upload, offset } => {
                let answer = self.upload(upload, offset, &asked.tail);
                reply(&desk, answer);
            }
            Question::Submit { upload, submission } => {
                let id = submission.key.as_deref().map_or_else(
                    || self.door.issue(UnixMillis::now()),
                    |key| MessageId::derived("submit", key.as_bytes()),
                );
                let Some(body) = self.uploads.take(upload) else {
                    reply(
                        &desk,
                        Err(ControlError::Bad("there is no such upload".to_owned())),
                    );
                    return;
                };
                let work = async move {
                    let answer = submit::submit(&desk, id, submission, body).await;
                    reply(&desk, answer);
                };
                ctx.spawn(work.into_actor(self));
            }
            other => {
                let work = async move {
                    let answer = desk.answer(other).await;
                    reply(&desk, answer);
                };
                ctx.spawn(work.into_actor(self).map(|(), _, _| ()));
            }
        }
    }
}

impl Desk {
    async fn answer(&self, question: Question) -> Result<Answer, ControlError> {
        match question {
            Question::WhoIsThere => {
                let members = self.ask_store(|store| store.members()).await?;
                Ok(Answer::Here {
                    spooler: self.config.spooler.name(),
                    alive: u32::try_from(members.len()).unwrap_or(u32::MAX),
                })
            }
            Question::Trace(id) => self.trace(id).await,
            Question::Why(id) => self.why(id).await,
            Question::Queue(filter) => self.queue(filter).await,
            Question::Dead => {
                let filter = QueueFilter {
                    state: Some(pombo_proto::control::QueueState::Dead),
                    ..QueueFilter::default()
                };
                self.queue(filter).await
            }
            Question::Cancel(id) => self.cancel(id).await,
            Question::Retry(what) => self.change(what, Change::Retry).await,
            Question::Hold(what) => self.change(what, Change::Hold).await,
            Question::Release(what) => self.change(what, Change::Release).await,
            Question::DeadRequeue(what) => self.change(what, Change::Requeue).await,
            Question::DeadDrop(what) => self.change(what, Change::Drop).await,
            Question::Transports => {
                let sessions = self.switchboard.send(ListSessions).await.map_err(gone)?;
                Ok(Answer::Transports(sessions))
            }
            Question::Flush {
                transport,
                upload,
                download,
            } => {
                let flush = FlushSessions {
                    transport,
                    upload,
                    download,
                };
                let count = self.switchboard.send(flush).await.map_err(gone)?;
                Ok(Answer::Changed { count })
            }
            Question::Upload { .. } | Question::Submit { .. } => {
                Err(ControlError::Bad("not a question for here".to_owned()))
            }
        }
    }

    async fn ask_store<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut dyn crate::store::Store) -> Result<T, crate::store::Error>
        + Send
        + 'static,
    ) -> Result<T, ControlError> {
        self.store
            .call(ask)
            .await
            .map_err(|error| ControlError::Later(error.to_string()))
    }

    /// The states that a change applies to, so that a filter without a state means the right ones.
    async fn change(&self, what: Selection, change: Change) -> Result<Answer, ControlError> {
        use pombo_proto::control::QueueState::{Dead, Held, Waiting};
        let now = UnixMillis::now();
        let count = match what {
            Selection::One(id) => u64::from(
                self.ask_store(move |store| store.change(now, id, change))
                    .await?,
            ),
            Selection::Matching(mut filter) => {
                filter.state = Some(match change {
                    Change::Retry | Change::Hold | Change::Cancel => Waiting,
                    Change::Release => Held,
                    Change::Requeue | Change::Drop => Dead,
                });
                if filter.limit == 0 {
                    filter.limit = CHANGE_ROWS;
                }
                self.ask_store(move |store| {
                    let mut count = 0;
                    for row in store.list(&filter)? {
                        count += u64::from(store.change(now, row.id, change)?);
                    }
                    Ok(count)
                })
                .await?
            }
        };
        self.outbox.do_send(Kick);
        Ok(Answer::Changed { count })
    }

    async fn cancel(&self, id: MessageId) -> Result<Answer, ControlError> {
        let now = UnixMillis::now();
        let before = self.ask_store(move |store| store.get(id)).await?;
        if let Some(answer) = before
            .as_ref()
            .and_then(|row| answers::cancelled(row, true))
        {
            return Ok(Answer::Cancelled(answer));
        }
        // Every spooler gets this question: each remembers the mark for what it may yet lease, the holder acts on it, and the
        // store keeps it for whoever claims next.
        let moving = self.dispatcher.send(CancelMoving(id)).await.map_err(gone)?;
        let marked = self
            .ask_store(move |store| store.change(now, id, Change::Cancel))
            .await?;
        if !moving && !marked && before.is_none() {
            return Ok(Answer::Cancelled(CancelAnswer::Unknown));
        }
        self.outbox.do_send(Kick);
        let deadline = tokio::time::Instant::now() + CANCEL_PATIENCE;
        loop {
            let row = self.ask_store(move |store| store.get(id)).await?;
            if let Some(answer) = row.as_ref().and_then(|row| answers::cancelled(row, false)) {
                return Ok(Answer::Cancelled(answer));
            }
            if tokio::time::Instant::now() > deadline {
                return Ok(Answer::Cancelled(CancelAnswer::Asked));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn trace(&self, id: MessageId) -> Result<Answer, ControlError> {
        let row = self.ask_store(move |store| store.get(id)).await?;
        let moving = self.dispatcher.send(WhereIs(id)).await.map_err(gone)?;
        Ok(Answer::Trace(answers::trace(row, moving).map(Box::new)))
    }

    async fn why(&self, id: MessageId) -> Result<Answer, ControlError> {
        let row = self.ask_store(move |store| store.get(id)).await?;
        let moving = self.dispatcher.send(WhereIs(id)).await.map_err(gone)?;
        let members = self
            .ask_store(|store| store.members())
            .await
            .unwrap_or_default();
        let names: HashMap<_, _> = members
            .into_iter()
            .map(|member| (member.incarnation, member.name))
            .collect();
        Ok(Answer::Why(answers::why(row, moving, &names)))
    }

    async fn queue(&self, filter: QueueFilter) -> Result<Answer, ControlError> {
        let asked = filter.clone();
        let rows = self.ask_store(move |store| store.list(&asked)).await?;
        let mut rows: Vec<_> = rows.iter().map(answers::queue_row).collect();
        // Claimed rows are in both; what the holder says of them is more.
        let moving = self
            .dispatcher
            .send(ListMoving(filter))
            .await
            .map_err(gone)?;
        let held: std::collections::HashSet<_> = moving.iter().map(|row| row.id).collect();
        rows.retain(|row| !held.contains(&row.id));
        rows.extend(moving);
        Ok(Answer::Queue(rows))
    }
}

fn gone(error: actix::MailboxError) -> ControlError {
    warn!(%error, "a part of the spooler does not answer");
    ControlError::Later("the spooler is going down".to_owned())
}
