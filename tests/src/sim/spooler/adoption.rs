//! What became of messages that an earlier holder may have submitted: the product's own machines, asked and carried out as its
//! actor does. What is broken on purpose here is what they are told, or what is done with what they say.

use std::time::Duration;

use pombo_proto::{
    ids::{Incarnation, Instance, MessageId, RecipientIndex, Reference},
    outcome::EndMessageFlag,
    verbs::{AddressTypes, Adopted, Refusal, TransportNotification, Verb},
};
use pombo_spooler::{
    adoption::{
        doubts::{Doubt, Doubts, End, Knows, Next, Silent},
        resolve::{self, Resolved},
        who::Who,
    },
    horizon::Observed,
    job::Job,
    router::Router,
    store::{ListedInstance, Suspect},
    verdict::Happened,
};

use super::{Asked, Spooler, Term, holds_doubt, record::Conclude};
use crate::sim::{checks::Seen, context::Context, options::Sabotage, store::Ask};

/// An adopted attempt that takes longer is cancelled: some of the slow transfers do.
const ATTEMPT_MAX: Duration = Duration::from_secs(40);
/// What waits for an agent that has no session here is given back after this.
const STRANGER_MAX: Duration = Duration::from_secs(8);

/// See the module.
pub(super) struct Adoption {
    observed: Observed,
    /// The broker holds publishes back.
    blocked: bool,
    /// All that was said since the process began.
    who: Who,
    doubts: Doubts,
    /// Messages for which the list of agents is being read.
    beginning: usize,
}

impl Adoption {
    /// Knows nobody yet.
    pub fn new() -> Self {
        Self {
            observed: Observed::default(),
            blocked: false,
            who: Who::new(Router::new(["smtp", "spare", "door"])),
            doubts: Doubts::new(ATTEMPT_MAX),
            beginning: 0,
        }
    }

    /// Messages in doubt.
    pub fn len(&self) -> usize {
        self.doubts.len() + self.beginning
    }

    /// The term is over. What was said stays.
    pub fn end_term(&mut self) {
        self.doubts.clear();
        self.beginning = 0;
        self.observed = Observed::default();
        self.blocked = false;
    }

    /// As without a broker: nobody is answered, and nobody is to be struck off for it.
    pub fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
        self.observed = Observed::default();
    }
}

fn is_open_with(term: &Term, instance: Instance) -> bool {
    let mut all = term.sessions.values();
    all.any(|it| it.is_open_with(instance))
}

impl Spooler {
    /// Claimed in doubt: who could have them?
    pub(super) fn look_for_suspects(&mut self, jobs: Vec<Job>, cx: &mut Context<'_>) {
        if let Some(since) = jobs.iter().map(|job| job.unsure_since).min() {
            self.adoption.beginning += jobs.len();
            self.ask(Ask::Suspects(since), Asked::Suspects(jobs), cx);
        }
    }

    /// The list could not be read: it is asked for again.
    pub(super) fn suspects_refused(&mut self, jobs: Vec<Job>) {
        if let Some(term) = &mut self.term {
            self.adoption.beginning -= jobs.len();
            term.unasked.extend(jobs);
        }
    }

    pub(super) fn doubt(&mut self, jobs: Vec<Job>, suspects: &[Suspect], cx: &mut Context<'_>) {
        self.adoption.beginning -= jobs.len();
        for job in jobs {
            let Some(term) = &self.term else { return };
            let has_session = |it| is_open_with(term, it);
            let mut instances = self.adoption.who.suspects(&job, suspects, has_session);
            if cx.broken(Sabotage::OnlyOursAreAsked) {
                instances.retain(|it, _| is_open_with(term, *it));
            }
            let begun = self.adoption.doubts.begin(job, instances, cx.now.instant());
            if let Some(settled) = begun {
                self.resolve_one(settled, cx);
            }
        }
        self.ask_who_could_have();
    }

    fn ask_who_could_have(&mut self) {
        for (instance, tenancies) in self.adoption.doubts.questions() {
            if let Some(session) = self.session_with(instance) {
                session.adopt(tenancies);
            }
        }
    }

    /// What the adoption does by itself.
    pub(super) fn look_at_doubts(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.instant();
        if self.adoption.blocked {
            return;
        }
        let Some(term) = &self.term else { return };
        let can_ask = |it| is_open_with(term, it);
        let doubts = &mut self.adoption.doubts;
        for (job, transport) in doubts.take_strangers(now, STRANGER_MAX, can_ask) {
            let conclude = Conclude {
                doubt: true,
                ..Conclude::new(job, Happened::Unknown { transport })
            };
            self.conclude(conclude, cx);
        }
        for (instance, message, _) in self.adoption.doubts.poll_long(now) {
            if let Some(session) = self.session_with(instance) {
                let cancel = TransportNotification::CancelMessage {
                    message,
                    reference: Reference::UNASSIGNED_OUTBOUND,
                    abort_deferred: false,
                };
                session.say(Verb::TransportNotify(cancel));
            }
        }
        self.ask_who_could_have();
    }

    /// The agents that the store lists now.
    pub(super) fn listed(&mut self, listed: &[ListedInstance], cx: &mut Context<'_>) {
        let now = cx.now.instant();
        let adoption = &mut self.adoption;
        if adoption.blocked {
            return;
        }
        adoption.observed.handle_listed(listed, now);
        let Silent { gone, missing } = adoption.doubts.handle_listed(&adoption.observed, now);
        let gone = gone.into_iter().map(|(it, counter)| (it, Some(counter)));
        let missing = missing.into_iter().map(|it| (it, None));
        for (instance, counter) in gone.chain(missing) {
            if counter.is_some() {
                cx.show(Seen::Strikes(instance));
            }
            let strike = Ask::LookUp(instance, counter);
            self.ask(strike, Asked::LookUp(instance), cx);
        }
    }

    /// It was looked up, and struck off if it was silent for too long.
    pub(super) fn looked_up(&mut self, instance: Instance, all: &[Suspect], cx: &mut Context<'_>) {
        let mut end = End::of(instance, all);
        if end == End::Struck && cx.broken(Sabotage::StruckAsLoggedOff) {
            end = End::LoggedOff;
        }
        self.adoption.doubts.handle_end(instance, end);
        self.resolve(cx);
    }

    /// An agent says what it takes.
    pub(super) fn takes_addresses(
        &mut self,
        instance: Instance,
        transport: &str,
        types: &AddressTypes,
    ) {
        let Some(term) = &self.term else { return };
        let has_session = |it| is_open_with(term, it);
        self.adoption
            .who
            .handle_word(instance, transport, types, has_session);
    }

    /// A session is open.
    pub(super) fn adoption_opened(&mut self) {
        self.ask_who_could_have();
    }

    pub(super) fn adopt_replied(
        &mut self,
        session: Incarnation,
        answers: Vec<Adopted>,
        cx: &mut Context<'_>,
    ) {
        let Some(at) = self
            .term
            .as_mut()
            .and_then(|it| it.sessions.get_mut(&session))
        else {
            return;
        };
        for answer in answers {
            let next = self
                .adoption
                .doubts
                .handle_answer(at.instance, session, answer);
            match next {
                Next::Wait | Next::Lost(_) => {}
                Next::End(tenancy, reference) => at.end_message(tenancy, reference),
            }
        }
        self.resolve(cx);
    }

    pub(super) fn adopted_ended(
        &mut self,
        session: Incarnation,
        id: MessageId,
        result: Result<EndMessageFlag, Refusal>,
        cx: &mut Context<'_>,
    ) {
        let Some(term) = &self.term else { return };
        if let Some(instance) = term.sessions.get(&session).map(|it| it.instance) {
            self.adoption.doubts.handle_ended(instance, id, result);
        }
        self.resolve(cx);
    }

    /// The open session with an instance is over.
    pub(super) fn adoption_closed(&mut self, instance: Instance, cx: &mut Context<'_>) {
        if self.session_with(instance).is_some() {
            // Its successor stands already.
            return;
        }
        self.adoption.doubts.handle_session_over(instance);
        if self.adoption.who.only_brings(instance) {
            self.adoption.doubts.let_go(instance);
            self.resolve(cx);
        }
    }

    fn resolve(&mut self, cx: &mut Context<'_>) {
        for doubt in self.adoption.doubts.take_settled() {
            self.resolve_one(doubt, cx);
        }
    }

    fn resolve_one(&mut self, mut doubt: Doubt, cx: &mut Context<'_>) {
        if cx.broken(Sabotage::ResultsNotTaken) {
            doubt
                .instances
                .retain(|_, it| !matches!(it.knows, Knows::Done { .. }));
        }
        let holds = |transport: &str| holds_doubt(transport, cx);
        let Resolved {
            job,
            happened,
            sessions,
            lost,
        } = resolve::resolve(doubt, &self.adoption.who, holds, cx.now.unix());
        for it in lost {
            let recipients = it.recipients.iter();
            cx.show(Seen::InDoubt {
                instance: it.instance,
                id: job.id(),
                fence: job.tenure.fence(),
                recipients: recipients.map(|it| RecipientIndex(*it as u32)).collect(),
            });
        }
        let Some(happened) = happened else {
            return self.intake(job, cx);
        };
        let conclude = Conclude {
            sessions,
            ..Conclude::new(job, happened)
        };
        self.conclude(conclude, cx);
    }
}
