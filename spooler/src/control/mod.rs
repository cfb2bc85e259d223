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
    door::Account,
    frame::{self, Frame, Packet, Payload},
    ids::{Correlation, Incarnation, MessageId},
    link::Link,
    time::UnixMillis,
};
use tracing::{debug, warn};

use crate::{
    config::Config,
    dispatcher::{CancelMoving, Dispatcher, HoldsWhich, ListMoving, WhereIs},
    ledger::{DoorSaid, Ledger, Look},
    orphans,
    outbox::{Kick, Outbox},
    store::{Change, DoorReport, StoreThread},
    switchboard::{FlushSessions, ListSessions, Switchboard, ValidateSessions},
};

mod answers;
mod submit;
mod uploads;

pub(crate) use answers::from_envelope;
use uploads::Uploads;

/// A cancel waits so long for the holder's commit before it answers "asked".
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

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
    door: Account,
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
    ledger: Addr<Ledger>,
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
        ledger: Addr<Ledger>,
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
                ledger,
            },
            uploads: Uploads::default(),
            door: Account::default(),
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

    /// Where this door stands.
    fn tell_the_ledger(&self) {
        if let Some(door) = self.door.door() {
            self.desk.ledger.do_send(DoorSaid(DoorReport {
                door,
                name: format!("submit at {}", self.desk.config.spooler.name()),
                confirmed: self.door.confirmed(),
                voided: self.door.voided(),
            }));
        }
    }
}

impl Actor for Control {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        ctx.run_interval(Duration::from_secs(10), |this, _| {
            this.uploads.forget(UnixMillis::now());
            this.tell_the_ledger();
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
                payload: fitting(answer),
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
                    let void = matches!(answer, Err(submit::Failure { written: false, .. }));
                    reply(&desk, answer.map_err(|failure| failure.error));
                    void
                };
                ctx.spawn(work.into_actor(self).map(move |void, this, _| {
                    if let Some(issue) = id.issue() {
                        this.door.close(issue.sequence, void);
                        this.tell_the_ledger();
                    }
                }));
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
            Question::Ledger => {
                let view = self.ledger.send(Look).await.map_err(gone)?;
                let view = view.map_err(|error| ControlError::Later(error.to_string()))?;
                Ok(Answer::Ledger(Box::new(view)))
            }
            Question::Held(numbers) => {
                let holds = self.dispatcher.send(HoldsWhich(numbers)).await;
                Ok(Answer::Held(holds.map_err(gone)?.held))
            }
            Question::Bodies => {
                let age = self.config.blobs.orphans_after;
                let counted = orphans::count(&self.store, &self.blobs, age).await;
                let view = counted.map_err(|error| ControlError::Later(error.to_string()))?;
                Ok(Answer::Bodies(view))
            }
            Question::WriteOff(numbers) => {
                let now = UnixMillis::now();
                warn!(numbers = numbers.len(), "written off by a person");
                let count = self
                    .ask_store(move |store| store.write_off(now, &numbers))
                    .await?;
                Ok(Answer::Changed { count })
            }
            Question::Validate { transport } => {
                let validate = ValidateSessions { transport };
                let rows = self.switchboard.send(validate).await.map_err(gone)?;
                Ok(Answer::Validated(rows))
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

    async fn change(&self, what: Selection, change: Change) -> Result<Answer, ControlError> {
        let now = UnixMillis::now();
        let changed = match what {
            Selection::One(id) => self
                .store
                .call(move |store| store.change(now, id, change))
                .await
                .map(u64::from),
            Selection::Matching(filter) => self.store.change_matching(now, filter, change).await,
        };
        self.outbox.do_send(Kick);
        let count = changed.map_err(|error| ControlError::Later(error.to_string()))?;
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
        let listed = self.store.list(filter.clone(), answers::queue_row).await;
        let mut rows = listed.map_err(|error| ControlError::Later(error.to_string()))?;
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

/// An answer that nobody could read is none: who asked would wait in vain.
fn fitting(answer: Result<Answer, ControlError>) -> Payload {
    let long = matches!(
        answer,
        Ok(Answer::Queue(_) | Answer::Trace(_) | Answer::Ledger(_))
    );
    let payload = Payload::Control(Said::Answer(answer));
    // With the correlation before it.
    if !long || frame::encode(&payload).len() + 16 <= frame::HEAD_BYTES_MAX {
        return payload;
    }
    let text = "the answer is too long: ask for fewer, by --limit or a filter";
    Payload::Control(Said::Answer(Err(ControlError::Bad(text.to_owned()))))
}

fn gone(error: actix::MailboxError) -> ControlError {
    warn!(%error, "a part of the spooler does not answer");
    ControlError::Later("the spooler is going down".to_owned())
}

#[cfg(test)]
mod tests {
    use pombo_proto::control::QueueRow;

    use super::*;

    #[test]
    fn an_answer_that_is_too_long_is_an_error_that_says_so() {
        let envelope = crate::verdict::samples::envelope(1);
        let row = from_envelope(&envelope, &crate::progress::Progress::fresh(1));
        let answer = |text: usize| {
            let reason = "x".repeat(text);
            let row = QueueRow {
                reason,
                ..row.clone()
            };
            fitting(Ok(Answer::Queue(vec![row])))
        };
        let short = answer(frame::HEAD_BYTES_MAX - 1_000);
        assert!(matches!(
            short,
            Payload::Control(Said::Answer(Ok(Answer::Queue(_))))
        ));
        let refused = answer(frame::HEAD_BYTES_MAX);
        assert!(matches!(
            refused,
            Payload::Control(Said::Answer(Err(ControlError::Bad(_))))
        ));
    }
}
