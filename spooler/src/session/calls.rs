//! The calls around messages: logon, address types, status rows, Poll, Idle, notifications.

use std::time::{Duration, Instant};

use actix::{AsyncContext, Context};
use pombo_proto::{
    door, frame,
    ids::{Correlation, MessageId, RecipientIndex},
    outcome::RecipientStatus,
    time::UnixMillis,
    verbs::{
        AddressTypes, Flush, Logon, LogonAccepted, LogonError, SpoolerNotification, StatusRow,
        Tenancy, TransportNotification, Validation, Verb,
    },
};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{Life, Session};
use crate::{
    adoption,
    dispatcher::{SentDeferred, SessionOpened, SessionStatus, TakesAddresses, kept_until},
    ledger::DoorSaid,
    outbox::MakeDue,
    progress::Progress,
    reception,
    store::DoorReport,
};

/// Idle comes only after so long without anything else.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// A poll that is not answered within this is asked again.
const POLL_MAX: Duration = Duration::from_secs(60);
/// A look-up that failed is repeated after this.
const STORE_AGAIN: Duration = Duration::from_secs(1);

impl Session {
    /// What the configuration says of this transport. The switchboard opens no session of one that it does not name.
    fn settings(&self) -> Option<&crate::config::Transport> {
        self.parts.config.transport(&self.peer.transport)
    }

    pub(super) fn logon(&mut self) {
        let logon = Logon {
            versions: self.parts.versions,
            spooler: self.parts.config.spooler.name(),
            no_connect: self.settings().is_some_and(|it| !it.connect),
            // Logon itself always comes closed; BEGIN follows once the session stands.
            no_inbound: true,
            no_outbound: true,
            blobs: self.parts.blobs.identity().to_owned(),
        };
        self.ask(Verb::TransportLogon(logon));
    }

    pub(super) fn logon_replied(
        &mut self,
        reply: Result<LogonAccepted, LogonError>,
        ctx: &mut Context<Self>,
    ) {
        if self.life != Life::AwaitingLogon {
            return;
        }
        match reply {
            Ok(accepted) => {
                self.out.agree(accepted.version);
                self.accepted = Some(accepted);
                self.life = Life::AwaitingAddressTypes;
                self.ask(Verb::AddressTypes);
            }
            Err(error) => {
                let refused = (&self.peer.transport, &self.peer.host);
                warn!(transport = refused.0, host = refused.1, %error, "logon refused");
                ctx.notify(super::End("logon was refused"));
            }
        }
    }

    pub(super) fn address_types_replied(&mut self, types: AddressTypes, ctx: &mut Context<Self>) {
        let transport = self.peer.transport.clone();
        debug!(transport, ?types, "address types");
        let takes = TakesAddresses {
            instance: self.peer.instance,
            transport,
            types,
        };
        self.parts.recorder.do_send(takes.clone());
        self.parts.adoption.do_send(takes.clone());
        self.parts.dispatcher.do_send(takes);
        if self.life == Life::AwaitingAddressTypes {
            if !self.peer.horizon.holds() {
                // What is submitted here could meet others who have not seen this agent in the store for long.
                ctx.notify(super::End("logon took too long"));
                return;
            }
            self.open();
        }
    }

    fn open(&mut self) {
        let Some(accepted) = &self.accepted else {
            return;
        };
        let (credit, version) = (accepted.credit, accepted.version);
        self.life = Life::Open;
        let opened = self.parts.ordinals.next();
        self.opened = Some(opened);
        self.status.credit = credit;
        if self.holds_doubt() {
            self.say(Verb::AskAtTheDot);
        }
        let receives = self.settings().is_some_and(|it| it.receives());
        let sends = self.settings().is_some_and(|it| it.sends());
        if receives {
            self.notify(TransportNotification::BeginInbound);
        }
        if sends {
            self.notify(TransportNotification::BeginOutbound);
        }
        let transport = self.peer.transport.clone();
        info!(
            transport, agent = %self.peer.instance, host = self.peer.host, credit, version, receives, sends,
            "session opened"
        );
        let addr = self.this();
        self.parts.dispatcher.do_send(SessionOpened {
            key: self.peer.key,
            transport: transport.clone(),
            agent: format!("{} ({})", self.peer.host, self.peer.instance),
            opened,
            credit,
            sends,
            addr: addr.clone(),
        });
        self.parts.adoption.do_send(adoption::Opened {
            instance: self.peer.instance,
            key: self.peer.key,
            transport,
            addr: addr.clone(),
        });
        self.parts.reception.do_send(reception::Opened {
            key: self.peer.key,
            addr,
        });
    }

    pub(super) fn status_row(&mut self, row: StatusRow) {
        // Only a live incarnation answers, and only an agent whose counter in the store it keeps moving: an agent without answers
        // soon writes no final dot any more.
        let answered = self.peer.horizon.handle_row();
        if answered && self.parts.alive.holds() {
            self.say(Verb::StatusAnswer { row: row.row });
        }
        if self.life != Life::Open {
            return;
        }
        if let Some(door) = row.door {
            self.parts.ledger.do_send(DoorSaid(DoorReport {
                door,
                name: self.peer.transport.clone(),
                confirmed: row.confirmed,
                voided: door::runs(&row.voided),
            }));
        }
        if !row.unsettled.is_empty() {
            self.settle_recorded(row.unsettled.clone());
        }
        self.status = row;
        self.tell_status();
    }

    pub(super) fn tell_status(&self) {
        let usable = !self.critical_error && self.status.outbound.enabled;
        let (key, credit) = (self.peer.key, self.status.credit);
        self.parts.dispatcher.do_send(SessionStatus {
            key,
            credit,
            usable,
        });
    }

    /// Attempts that an ended session left with the agent: what the store has recorded needs them no more.
    fn settle_recorded(&self, unsettled: Vec<Tenancy>) {
        let (store, me) = (self.parts.store.clone(), self.this());
        actix::spawn(async move {
            match store.call(move |store| store.recorded(&unsettled)).await {
                Ok(recorded) if !recorded.is_empty() => me.do_send(super::Settle(recorded)),
                Ok(_) => {}
                Err(error) => debug!(%error, "cannot ask what is recorded"),
            }
        });
    }

    pub(super) fn poll_and_idle(&mut self) {
        let now = Instant::now();
        let idle = self.under_way.is_empty() && self.receiving.is_empty();
        if !idle {
            self.busy = now;
        }
        let offline = self.settings().is_none_or(|it| !it.connect);
        if self.critical_section || self.critical_error || offline {
            return;
        }
        let every = self.settings().map(|it| it.poll_every);
        let waiting = self.polled.is_some_and(|(correlation, at)| {
            let quiet = if correlation == Correlation(0) {
                every
            } else {
                Some(POLL_MAX)
            };
            now - at < quiet.unwrap_or(POLL_MAX)
        });
        // The row decides: the turn to poll is handed on when the session that had it ends.
        if self.status.poll && !waiting {
            let correlation = self.ask(Verb::Poll);
            self.polled = Some((correlation, now));
        }
        let wants_idle = self.accepted.as_ref().is_some_and(|it| it.idle);
        if wants_idle && now - self.busy > IDLE_AFTER && now - self.idled > IDLE_AFTER {
            self.idled = now;
            self.say(Verb::Idle);
        }
    }

    /// FlushQueues: a transport that is polled is asked at once.
    pub(super) fn flush_queues(&mut self, flush: Flush) {
        self.say(Verb::FlushQueues(flush));
        match self.polled {
            Some((Correlation(0), _)) if flush.download => self.polled = None,
            // Its answer may be older than what is waited for.
            Some(_) if flush.download => self.poll_again = true,
            _ => {}
        }
        if self.life == Life::Open {
            self.poll_and_idle();
        }
    }

    /// ValidateState, because a person asks. Nothing comes if the session ends first.
    pub(super) fn validate(&mut self) -> oneshot::Receiver<Validation> {
        let (answer, answered) = oneshot::channel();
        let verb = Verb::ValidateState {
            config_changed: false,
        };
        let correlation = self.ask(verb);
        // Who asked has stopped waiting for these.
        self.validating.retain(|_, waits| !waits.is_closed());
        self.validating.insert(correlation, answer);
        answered
    }

    pub(super) fn validated(&mut self, correlation: Correlation, validation: Validation) {
        debug!(
            transport = self.peer.transport,
            ?validation,
            "validate_state returned"
        );
        if let Some(asked) = self.validating.remove(&correlation) {
            // Whoever asked may have stopped waiting.
            let _ = asked.send(validation);
        }
    }

    pub(super) fn poll_replied(&mut self, correlation: Correlation, incoming: u32) {
        let asked = self.polled.filter(|(asked, _)| *asked == correlation);
        let Some((_, at)) = asked else { return };
        // Answered: the next one is due an interval after this one was asked.
        let again = std::mem::take(&mut self.poll_again);
        self.polled = (!again).then_some((Correlation(0), at));
        if incoming > 0 {
            self.parts
                .reception
                .do_send(reception::HasMail(self.peer.key));
        }
    }

    pub(super) fn spooler_notify(&mut self, notification: SpoolerNotification) {
        let transport = &self.peer.transport;
        match notification {
            SpoolerNotification::NewMail => {
                self.parts
                    .reception
                    .do_send(reception::HasMail(self.peer.key));
            }
            SpoolerNotification::ReadyToSend => {
                info!(transport, "the transport is ready to send again");
                self.critical_error = false;
                self.tell_status();
            }
            SpoolerNotification::CriticalError(diagnosis) => {
                warn!(transport, status = %diagnosis.status, text = diagnosis.text, "critical error");
                self.critical_error = true;
                self.tell_status();
            }
            SpoolerNotification::SentDeferred { id, statuses } => self.sent_deferred(id, statuses),
            SpoolerNotification::ConfigChange => {
                self.ask(Verb::AddressTypes);
                self.say(Verb::ValidateState {
                    config_changed: true,
                });
            }
            SpoolerNotification::CritSec => self.critical_section = true,
            SpoolerNotification::NonCrit => self.critical_section = false,
        }
    }

    /// Whoever claims the message next must know what was said of it; it is due now. The agent says it once the attempt is
    /// settled, so the store knows of the keep; if not, it is over.
    fn sent_deferred(&self, id: MessageId, statuses: Vec<(RecipientIndex, RecipientStatus)>) {
        let transport = self.peer.transport.clone();
        let (outbox, dispatcher) = (self.parts.outbox.clone(), self.parts.dispatcher.clone());
        let store = self.parts.store.clone();
        actix::spawn(async move {
            let row = loop {
                match store.call(move |store| store.get(id)).await {
                    Ok(row) => break row,
                    Err(error) => warn!(%error, id = %id, "cannot look up what was kept"),
                }
                tokio::time::sleep(STORE_AGAIN).await;
            };
            let progress =
                row.and_then(|row| frame::decode_all::<Progress>(&row.data.progress).ok());
            let Some(until) = progress.and_then(|it| kept_until(&it, &transport)) else {
                debug!(id = %id, transport, "said of a message that it does not keep");
                return;
            };
            let said = SentDeferred {
                id,
                transport,
                until,
                statuses,
            };
            if dispatcher.send(said).await.is_ok() {
                outbox.do_send(MakeDue(id));
            }
        });
    }

    pub(super) fn logged_off(&self, kept: u32) {
        if kept > 0 {
            warn!(
                transport = self.peer.transport,
                kept, "an agent left with unsettled attempts"
            );
            return;
        }
        self.peer.horizon.leave();
        let (store, instance) = (self.parts.store.clone(), self.peer.instance);
        actix::spawn(async move {
            if let Err(error) = store
                .call(move |store| store.strike_instance(UnixMillis::now(), instance, None))
                .await
            {
                debug!(%error, "cannot strike off an agent");
            }
        });
    }
}
