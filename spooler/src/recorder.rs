//! Turns what happened into a verdict, and the verdict into one row.
//!
//! ```text
//! session, dispatcher, adoption --Conclude--> verdict -> reports -> store commit --Recorded--> dispatcher (ack, Settled)
//! ```
//!
//! A report is written in the transaction that records its cause, so there is exactly one. A commit that fails is repeated
//! until it succeeds or the incarnation ends; meanwhile leasing stops and nothing is acked. What bounds the number of
//! pending commits is what bounds the jobs: leases, claims and credit.

mod about;

use std::{sync::Arc, time::Duration};

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, WrapFuture};
use bytes::Bytes;
use pombo_proto::{
    blob::Blobs,
    ids::MessageId,
    link::Lease,
    message::Body,
    service::http::Health,
    tenure::{LeaseTag, Ordinal, Origin},
    time::UnixMillis,
    verbs::Tenancy,
};
use tracing::{error, info, warn};

use self::about::{About, Outcomes};
use crate::{
    config::Config,
    dispatcher::{Dispatcher, EndTerm, StoreTrouble, TakesAddresses},
    gather::{Gather, Gathered},
    job::{Job, SessionKey},
    outbox::{Kick, Outbox},
    progress::Progress,
    report::{self, Reporter},
    router::Router,
    rows,
    store::{Answer, Error, RowData, StoreThread, Write, Written},
    verdict::{self, Case, Disposition, Happened, Verdict},
};

/// A failed commit is repeated after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// So much of a large original is read for its report.
const REPORT_HEAD_BYTES: u64 = 256 * 1024;

/// Something happened to a message: decide and record.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Conclude {
    /// The message; its tenure is used up by this.
    pub job: Job,
    /// What happened.
    pub happened: Happened,
    /// The attempt's result was not learned: Adopt before the next one.
    pub doubt: bool,
    /// The sessions that keep an attempt of it: told Settled after the commit.
    pub sessions: Vec<SessionKey>,
    /// The session whose credit it used.
    pub spent: Option<Spent>,
    /// How long the attempt took.
    pub took: Duration,
}

/// A session of which one credit was used. An agent may have had several, one after the other, under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// Which agent.
    pub key: SessionKey,
    /// Which of its sessions.
    pub opened: Ordinal,
}

/// Several.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConcludeAll(pub Vec<Conclude>);

/// Move a delivery into the outbox, unopened.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Move(pub Lease);

/// A delivery that is in the store now.
#[derive(Clone, Copy, Debug)]
pub struct Moved(pub LeaseTag);

/// What became of a verdict.
#[derive(Debug)]
pub struct Recorded {
    /// Which message, under which fence.
    pub tenancy: Tenancy,
    /// Whether this verdict decided.
    pub written: Written,
    /// The delivery to ack.
    pub lease: Option<LeaseTag>,
    /// The sessions to tell.
    pub sessions: Vec<SessionKey>,
    /// The session whose credit is free again.
    pub spent: Option<Spent>,
}

/// One commit under way; kept until it has succeeded.
struct Pending {
    write: Write,
    then: Then,
}

enum Then {
    Recorded {
        recorded: Recorded,
        outcomes: Outcomes,
        blob: Option<MessageId>,
        kick: bool,
    },
    Moved {
        lease: LeaseTag,
        /// The message, if its body lies in the blob store.
        large: Option<MessageId>,
    },
}

/// A store callback's word.
struct Committed {
    pending: Pending,
    result: Result<Written, Arc<Error>>,
}

/// The collaborators that are made after the recorder.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wire {
    /// Who acks.
    pub dispatcher: Addr<Dispatcher>,
    /// Who claims.
    pub outbox: Addr<Outbox>,
}

/// The actor.
pub struct Recorder {
    config: Arc<Config>,
    store: StoreThread,
    blobs: Blobs,
    health: Health,
    router: Router,
    committed: Option<Gather<Committed>>,
    wired: Option<Wired>,
    /// Decided in this handler, for one commit.
    decided: Vec<Pending>,
    failed: Vec<Pending>,
    under_way: usize,
    trouble: bool,
}

struct Wired {
    dispatcher: Addr<Dispatcher>,
    outbox: Addr<Outbox>,
    recorded: Gather<Recorded>,
    moved: Gather<Moved>,
}

impl Recorder {
    /// Over the store.
    pub fn new(config: Arc<Config>, store: StoreThread, blobs: Blobs, health: Health) -> Self {
        let router = Router::new(config.transport_order());
        Self {
            config,
            store,
            blobs,
            health,
            router,
            committed: None,
            wired: None,
            decided: Vec::new(),
            failed: Vec::new(),
            under_way: 0,
            trouble: false,
        }
    }

    fn conclude(&mut self, conclude: Conclude, ctx: &mut Context<Self>) {
        let Conclude {
            mut job,
            happened,
            doubt,
            sessions,
            spent,
            took,
        } = conclude;
        let now = UnixMillis::now();
        if matches!(happened, Happened::Attempt { .. }) {
            // Whoever tried it has lived to tell.
            job.deaths = 0;
        }
        let about = About::of(&happened);
        let envelope = job.message.envelope.clone();
        let case = Case {
            envelope: &envelope,
            schedule: &self.config.schedule,
            router: &self.router,
            cancelled: job.cancelled,
            now,
        };
        let progress = std::mem::take(&mut job.progress);
        let mut verdict = verdict::decide(&case, progress, happened);
        let outcomes = about
            .log(&envelope, &verdict.progress, now, took)
            .with_doubted(std::mem::take(&mut verdict.doubted));
        let decided = Decided {
            job,
            verdict,
            outcomes,
            doubt,
            sessions,
            spent,
        };
        let head = match envelope.body {
            Body::Blob { .. } if !decided.verdict.reports.is_empty() => envelope.id,
            _ => {
                let inline = decided.job.message.inline.clone();
                return self.record(decided, &inline);
            }
        };
        // The original is large and lies in the blob store; its beginning goes into the report.
        let blobs = self.blobs.clone();
        let read = async move { blobs.get_head(head, REPORT_HEAD_BYTES).await };
        let recorded = read.into_actor(self).map(move |head, this, _| {
            let head = head.unwrap_or_else(|error| {
                warn!(%error, id = %decided.job.id(), "a report goes without its original");
                Bytes::new()
            });
            this.record(decided, &head);
            this.commit();
        });
        ctx.spawn(recorded);
    }

    fn record(&mut self, decided: Decided, head: &[u8]) {
        let Decided {
            job,
            verdict,
            outcomes,
            doubt,
            sessions,
            spent,
        } = decided;
        let now = UnixMillis::now();
        let envelope = &job.message.envelope;
        let tenancy = job.tenure.tenancy();
        let reports: Vec<_> = verdict
            .reports
            .iter()
            .map(|spec| {
                let host = self.config.spooler.host();
                let id = spec.id(tenancy.id, tenancy.fence);
                let retry_until = self.config.schedule.expires_at(envelope);
                let reporter = Reporter {
                    host: &host,
                    now,
                    id,
                    retry_until,
                };
                let report = report::build(&reporter, envelope, head, spec, &verdict.progress);
                info!(id = %tenancy.id, report = %id, kind = ?spec.kind, "report");
                (id, rows::fresh(&report, now, "a report, not yet tried"))
            })
            .collect();
        let finished = matches!(verdict.disposition, Disposition::Finished);
        let large = matches!(envelope.body, Body::Blob { .. });
        let kick = !reports.is_empty()
            || matches!(&verdict.disposition, Disposition::Waiting(waiting) if waiting.due <= now);
        let row = RowData {
            deaths: job.deaths,
            ..rows::judged(&job.message, &verdict, doubt, job.unsure_since)
        };
        let write = Write::Record {
            tenancy,
            holder: job.tenure.holder(),
            row,
            reports,
        };
        let lease = match job.tenure.origin() {
            Origin::Lease(tag) => Some(tag),
            Origin::Claim => None,
        };
        let recorded = Recorded {
            tenancy,
            written: Written::Won,
            lease,
            sessions,
            spent,
        };
        let blob = (finished && large).then_some(tenancy.id);
        self.decided.push(Pending {
            write,
            then: Then::Recorded {
                recorded,
                outcomes,
                blob,
                kick,
            },
        });
    }

    /// Hands over what was decided. Called at the end of a handler, so that what it decided goes into one commit.
    fn commit(&mut self) {
        let Some(committed) = self.committed.clone() else {
            return;
        };
        self.under_way += self.decided.len();
        let writes = self.decided.drain(..).map(|pending| {
            let (write, committed) = (pending.write.clone(), committed.clone());
            let answer = move |result| committed.push(Committed { pending, result });
            (write, Box::new(answer) as Answer)
        });
        self.store.commit_all(writes);
    }

    fn committed(&mut self, done: Committed, ctx: &mut Context<Self>) {
        self.under_way -= 1;
        let written = match done.result {
            Ok(written) => written,
            Err(error) => return self.stash(done.pending, &error, ctx),
        };
        if self.trouble {
            self.set_trouble(None);
        }
        if let (Then::Recorded { outcomes, .. }, Written::Won) = (&done.pending.then, written) {
            outcomes.count();
        }
        let Some(wired) = &self.wired else { return };
        match done.pending.then {
            Then::Moved { lease, large } => {
                wired.moved.push(Moved(lease));
                wired.outbox.do_send(Kick);
                if let (Some(id), Written::Lost) = (large, written) {
                    actix::spawn(forget_body_of_twin(
                        self.store.clone(),
                        self.blobs.clone(),
                        id,
                    ));
                }
            }
            Then::Recorded {
                recorded,
                blob,
                kick,
                ..
            } => {
                if kick {
                    wired.outbox.do_send(Kick);
                }
                if let (Some(id), Written::Won) = (blob, written) {
                    let blobs = self.blobs.clone();
                    actix::spawn(async move { delete_body(&blobs, id).await });
                }
                if written == Written::Lost {
                    let Tenancy { id, fence } = recorded.tenancy;
                    info!(id = %id, fence = fence.0, "lost: somebody else decides");
                }
                wired.recorded.push(Recorded {
                    written,
                    ..recorded
                });
            }
        }
    }

    fn stash(&mut self, pending: Pending, error: &Error, ctx: &mut Context<Self>) {
        if self.failed.is_empty() {
            error!(%error, "the store cannot be written: leasing stops, nothing is acked");
            self.set_trouble(Some(error.to_string()));
            ctx.run_later(RETRY_AFTER, |this, _| {
                this.decided.append(&mut this.failed);
                this.commit();
            });
        }
        self.failed.push(pending);
    }

    fn set_trouble(&mut self, error: Option<String>) {
        self.trouble = error.is_some();
        if let Some(wired) = &self.wired {
            wired.dispatcher.do_send(StoreTrouble(self.trouble));
        }
        if error.is_none() {
            info!("the store can be written again");
        }
        self.health.set("store", error.map_or(Ok(()), Err));
    }
}

struct Decided {
    job: Job,
    verdict: Verdict,
    outcomes: Outcomes,
    /// The attempt's result was not learned: Adopt before the next one.
    doubt: bool,
    sessions: Vec<SessionKey>,
    spent: Option<Spent>,
}

impl Actor for Recorder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.committed = Some(Gather::new(ctx.address().recipient()));
    }
}

impl Handler<Wire> for Recorder {
    type Result = ();

    fn handle(&mut self, wire: Wire, _: &mut Self::Context) {
        self.wired = Some(Wired {
            recorded: Gather::new(wire.dispatcher.clone().recipient()),
            moved: Gather::new(wire.dispatcher.clone().recipient()),
            dispatcher: wire.dispatcher,
            outbox: wire.outbox,
        });
    }
}

impl Handler<Conclude> for Recorder {
    type Result = ();

    fn handle(&mut self, conclude: Conclude, ctx: &mut Self::Context) {
        self.conclude(conclude, ctx);
        self.commit();
    }
}

/// One that stays is found by the sweep of the blob store.
async fn delete_body(blobs: &Blobs, id: MessageId) {
    if let Err(error) = blobs.delete(id).await {
        warn!(%error, id = %id, "a body stays in the blob store");
    }
}

/// A second copy of a message brought its body with it. If the message has finished, nobody else will delete that.
async fn forget_body_of_twin(store: StoreThread, blobs: Blobs, id: MessageId) {
    let unfinished = store.call(move |s| s.unfinished(&[id])).await;
    match unfinished {
        Ok(unfinished) if unfinished.is_empty() => delete_body(&blobs, id).await,
        Ok(_) => {}
        Err(error) => warn!(%error, id = %id, "a body may stay in the blob store"),
    }
}

impl Handler<ConcludeAll> for Recorder {
    type Result = ();

    fn handle(&mut self, ConcludeAll(all): ConcludeAll, ctx: &mut Self::Context) {
        for conclude in all {
            self.conclude(conclude, ctx);
        }
        self.commit();
    }
}

impl Handler<Move> for Recorder {
    type Result = ();

    fn handle(&mut self, Move(lease): Move, _: &mut Self::Context) {
        let now = UnixMillis::now();
        let envelope = &lease.message.envelope;
        let mut row = rows::moved(&lease.message, lease.redelivered, lease.marked, now);
        if let Some(trace) = lease.trace {
            let mut progress = Progress::fresh(envelope.recipients.len());
            progress.note_trace(now, trace);
            row.progress = pombo_proto::frame::encode(&progress);
        }
        let id = envelope.id;
        let large = matches!(envelope.body, Body::Blob { .. }).then_some(id);
        self.decided.push(Pending {
            write: Write::Move { id, row },
            then: Then::Moved {
                lease: lease.tag,
                large,
            },
        });
        self.commit();
    }
}

impl Handler<Gathered<Committed>> for Recorder {
    type Result = ();

    fn handle(&mut self, committed: Gathered<Committed>, ctx: &mut Self::Context) {
        for done in committed.take() {
            self.committed(done, ctx);
        }
    }
}

impl Handler<TakesAddresses> for Recorder {
    type Result = ();

    fn handle(&mut self, takes: TakesAddresses, _: &mut Self::Context) {
        self.router
            .set_address_types(&takes.transport, &takes.types);
    }
}

impl Handler<Availability> for Recorder {
    type Result = ();

    fn handle(&mut self, it: Availability, _: &mut Self::Context) {
        self.router.set_available(&it.transport, it.available);
    }
}

impl Handler<EndTerm> for Recorder {
    type Result = ();

    fn handle(&mut self, _: EndTerm, _: &mut Self::Context) {
        // Verdicts that were never committed are given up: their leases and claims come again.
        self.failed.clear();
        // Nothing may be left that would find out that the store is well again; the next term begins with a write to it.
        if self.trouble {
            self.set_trouble(None);
        }
    }
}

/// A transport can be submitted to, or cannot any more. Verdicts say what a message waits for.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Availability {
    /// Which transport.
    pub transport: String,
    /// Whether there is a session with it.
    pub available: bool,
}

/// How many commits are under way or failed; for the way down.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct PendingCommits;

impl Handler<PendingCommits> for Recorder {
    type Result = usize;

    fn handle(&mut self, _: PendingCommits, _: &mut Self::Context) -> usize {
        self.under_way + self.failed.len()
    }
}

#[cfg(test)]
mod tests;
