//! Packets: to which session, and whether they are in order; then each verb to where it is handled.

use pombo_proto::{
    attempt::Session,
    frame::{Frame, Packet, Payload},
    ids::{Correlation, Incarnation},
    outbound::{self, Heard},
    verbs::{Role, Verb},
};
use tracing::info;

use super::Agent;

impl Agent {
    pub(super) fn packet(&mut self, packet: Packet) {
        let Some(mine) = self.incarnation else { return };
        let from = packet.from;
        let everyone = packet.to == Incarnation::EVERYONE;
        if packet.to != mine && !everyone {
            return;
        }
        let known = self.sessions.get(&from).copied();
        let Some(epoch) = outbound::epoch_of(&packet) else {
            for frame in packet.frames {
                match frame.payload {
                    // Only what was said to everyone is answered, or two would greet each other for ever.
                    Payload::Hello(hello) if everyone && hello.role == Role::Spooler => {
                        self.greet(hello.incarnation);
                    }
                    Payload::Verb(Verb::NoSession) => {
                        if let Some(session) = known {
                            self.forget_session(session);
                        }
                    }
                    _ => {}
                }
            }
            return;
        };
        if let Some(ended) = outbound::ended(&packet) {
            if let Some(session) = known
                && self.peers[&session].out.epoch() == ended
            {
                self.forget_session(session);
            }
            return;
        }
        let opens = outbound::opening(&packet).is_some();
        let session = match known {
            Some(session) if self.peers[&session].out.epoch() == epoch => session,
            // Of an epoch that is over here.
            Some(_) if !opens => return,
            None if !opens => {
                self.wire.send(&outbound::no_session(mine, from, epoch));
                return;
            }
            _ => {
                if let Some(former) = known {
                    self.forget_session(former);
                }
                match self.open(mine, &packet, epoch) {
                    Some(session) => session,
                    None => return,
                }
            }
        };
        let Some(peer) = self.peers.get_mut(&session) else {
            return;
        };
        match peer.out.handle_packet(&packet) {
            Heard::Stale => return,
            Heard::Broken => {
                self.counters.broken += 1;
                self.end_session(session, "a packet is missing");
                return;
            }
            Heard::InOrder => {}
        }
        for Frame {
            correlation,
            payload,
            tail,
        } in packet.frames
        {
            let Payload::Verb(verb) = payload else {
                continue;
            };
            if !self.peers.contains_key(&session) {
                return;
            }
            self.verb(session, correlation, verb, tail);
        }
    }

    fn verb(&mut self, session: Session, correlation: Correlation, verb: Verb, tail: bytes::Bytes) {
        match verb {
            Verb::TransportLogon(logon) => self.logon(session, correlation, logon),
            Verb::AddressTypes => {
                let types = self.address_types();
                self.reply(session, correlation, Verb::AddressTypesReply(types));
            }
            Verb::TransportNotify(notification) => self.transport_notify(session, notification),
            Verb::SubmitMessage(submit) => self.submit(session, correlation, submit, tail),
            Verb::EndMessage {
                id,
                fence,
                reference,
            } => self.end_message(session, correlation, (id, fence).into(), reference),
            Verb::Adopt(tenancies) => {
                let answers = self.attempts.handle_adopt(&tenancies);
                self.reply(session, correlation, Verb::AdoptReply(answers));
            }
            Verb::Settled(tenancies) => self.settled(&tenancies),
            Verb::StartMessage => self.start_message(session, correlation),
            Verb::Poll => self.poll(session, correlation),
            Verb::Idle => self.idle(session),
            Verb::FlushQueues(flush) => self.flush_queues(session, flush),
            Verb::ValidateState { config_changed } => {
                self.validate(session, correlation, config_changed);
            }
            Verb::StatusAnswer { row } => self.status_answered(session, row),
            Verb::TransportLogoff => {
                info!(
                    spooler = self.peers[&session].name,
                    "the spooler logged off"
                );
                self.forget_session(session);
            }
            Verb::AskAtTheDot => self.ask_at_the_dot(session),
            Verb::Go(tenancy) => self.go(tenancy),
            _ => self.end_session(session, "it says what only agents say"),
        }
    }
}
