//! What is noted in the store before an attempt goes on: that it is at its dot, or that it is tried alone.
//!
//! ```text
//! agent: AtTheDot -> note, conditional on the fence -> Go
//! dispatcher: a suspect -> note, conditional on the fence -> SubmitMessage
//! ```
//!
//! Only messages that are claimed come here: a first attempt from its lease notes nothing.

use actix::{Context, Handler};
use pombo_proto::{frame, time::UnixMillis, verbs::Tenancy, verbs::Verb};
use tracing::{debug, info, warn};

use super::{Session, Submission, submission::UnderWay};
use crate::{
    note::{Alone, Dot, Noted, NotedWhat},
    store::{Write, Written},
};

impl Session {
    /// Whether doubt about this transport waits for a person.
    pub(super) fn holds_doubt(&self) -> bool {
        self.parts.config.holds_doubt(&self.peer.transport)
    }

    /// The transport stands before its point of no return.
    pub(super) fn at_the_dot(&mut self, tenancy: Tenancy) {
        if !self.holds_doubt() {
            debug!(id = %tenancy.id, "asked at the dot by nobody's wish");
            return;
        }
        let (transport, instance) = (self.peer.transport.clone(), self.peer.instance);
        let Some(under_way) = self.under_way.get_mut(&tenancy.id) else {
            return;
        };
        if under_way.tenancy() != tenancy {
            return;
        }
        let dot = Dot {
            transport,
            instance,
            considered: under_way.considered().to_vec(),
        };
        under_way.job().note.dot = Some(dot);
        self.note(tenancy, NotedWhat::Dot);
    }

    /// Notes that it is tried alone, and submits it then.
    pub(super) fn submit_alone(&mut self, mut submission: Submission) {
        let job = &mut submission.job;
        job.note.alone = Some(Alone {
            deaths: job.deaths,
            instance: self.peer.instance,
            fence: job.tenure.fence(),
        });
        let tenancy = job.tenure.tenancy();
        info!(id = %tenancy.id, deaths = job.deaths, transport = self.peer.transport, "a suspect: tried alone");
        self.alone.insert(tenancy.id, submission);
        self.note(tenancy, NotedWhat::Alone);
    }

    fn note(&mut self, tenancy: Tenancy, what: NotedWhat) {
        let job = match what {
            NotedWhat::Dot => self.under_way.get_mut(&tenancy.id).map(UnderWay::job),
            NotedWhat::Alone => self.alone.get_mut(&tenancy.id).map(|it| &mut it.job),
        };
        let Some(job) = job else { return };
        let write = Write::Note {
            tenancy,
            holder: job.tenure.holder(),
            note: frame::encode(&job.note),
        };
        let me = self.this();
        self.parts.store.commit(write, move |result| {
            let written = result.unwrap_or_else(|error| {
                warn!(%error, id = %tenancy.id, "cannot note an attempt");
                Written::Lost
            });
            me.do_send(Noted {
                tenancy,
                written,
                what,
            });
        });
    }
}

impl Handler<Noted> for Session {
    type Result = ();

    fn handle(&mut self, noted: Noted, ctx: &mut Context<Self>) {
        let Noted {
            tenancy,
            written,
            what,
        } = noted;
        let over = self.life == super::Life::Over;
        let won = written == Written::Won && !over && self.parts.alive.holds();
        match what {
            NotedWhat::Alone => {
                let Some(submission) = self.alone.remove(&tenancy.id) else {
                    return;
                };
                if won && !submission.job.cancelled {
                    self.submit(submission);
                } else {
                    self.give_back(vec![submission]);
                }
            }
            NotedWhat::Dot => {
                let here = self
                    .under_way
                    .get_mut(&tenancy.id)
                    .filter(|it| it.tenancy() == tenancy);
                if let (Some(under_way), true) = (here, won) {
                    let detail = "noted: it may have been sent from now on";
                    let progress = &mut under_way.job().progress;
                    progress.note(UnixMillis::now(), "atthedot", detail);
                    self.say(Verb::Go(tenancy));
                } else if !won {
                    // Without a go there is no dot: the transport gives up after a while.
                    info!(id = %tenancy.id, "no go: nothing is noted about it");
                }
            }
        }
        if !over {
            self.flush(ctx);
        }
    }
}
