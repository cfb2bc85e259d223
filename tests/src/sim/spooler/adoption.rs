//! What is known of messages that an earlier holder may have submitted: a plain state machine, and around it who is asked.

use std::collections::BTreeMap;

use pombo_proto::{
    ids::{Incarnation, Instance, MessageId, RecipientIndex, Reference},
    ladder::submission::AttemptResult,
    outcome::{EndMessageFlag, SubmitResult},
    verbs::{AdoptAnswer, Adopted, Refusal, Tenancy},
};
use pombo_spooler::{
    job::Job,
    router::{Route, Router},
    store::{ListedInstance, Suspect},
    verdict::{AdoptedAttempt, Happened},
};

use super::{Asked, Spooler, Term, holds_doubt};
use crate::sim::{checks::Seen, context::Context, spooler::record::Conclude, store::Ask};

/// An instance that was asked and is missing in so many looks, one after the other, was struck off by somebody.
const MISSING_MAX: u32 = 8;

/// What one instance knows of one message.
#[derive(Debug)]
enum Knows {
    /// Not yet answered; or under way, ask again. Not in the store's list for so many times.
    Asked(u32),
    /// Done, and EndMessage is under way.
    Ending(AttemptResult, Incarnation),
    /// Done.
    Done(AttemptResult, Incarnation),
    /// It has nothing, and will refuse anything older.
    Nothing,
    /// Its right to send has run out.
    Gone,
    /// It had been struck off before it could be asked.
    Struck,
}

/// One message.
struct Doubt {
    job: Job,
    instances: BTreeMap<Instance, (String, Knows)>,
}

impl Doubt {
    fn is_settled(&self) -> bool {
        let open = |knows: &Knows| matches!(knows, Knows::Asked(_) | Knows::Ending(..));
        !self.instances.values().any(|(_, knows)| open(knows))
    }
}

/// All of them. Without IO and without a clock.
#[derive(Default)]
pub(super) struct Adoption {
    doubts: BTreeMap<MessageId, Doubt>,
}

impl Adoption {
    /// Messages in doubt.
    pub fn len(&self) -> usize {
        self.doubts.len()
    }

    /// The instances that some message waits for.
    fn asked(&self) -> Vec<Instance> {
        let waits = |(instance, (_, knows)): (&Instance, &(String, Knows))| {
            matches!(knows, Knows::Asked(_)).then_some(*instance)
        };
        let all = self.doubts.values().flat_map(|it| it.instances.iter());
        let mut asked: Vec<_> = all.filter_map(waits).collect();
        asked.sort_unstable();
        asked.dedup();
        asked
    }

    /// What this instance is to be asked.
    fn questions(&self, instance: Instance) -> Vec<Tenancy> {
        let asked =
            |doubt: &&Doubt| matches!(doubt.instances.get(&instance), Some((_, Knows::Asked(_))));
        let doubts = self.doubts.values().filter(asked);
        doubts.map(|it| it.job.tenure.tenancy()).collect()
    }

    /// An answer. `Some`: EndMessage follows, with this reference. `Err`: somebody claimed it after us, whatever we would
    /// record is lost.
    fn answered(
        &mut self,
        instance: Instance,
        session: Incarnation,
        Adopted { id, fence, answer }: Adopted,
    ) -> Result<Option<Reference>, ()> {
        let Some(doubt) = self.doubts.get_mut(&id) else {
            return Ok(None);
        };
        let Some((_, knows @ Knows::Asked(_))) = doubt.instances.get_mut(&instance) else {
            return Ok(None);
        };
        if doubt.job.tenure.fence() != fence {
            return Ok(None);
        }
        match answer {
            AdoptAnswer::Unknown => *knows = Knows::Nothing,
            AdoptAnswer::UnderWay => {}
            AdoptAnswer::Fenced => {
                self.doubts.remove(&id);
                return Err(());
            }
            AdoptAnswer::Done {
                reference,
                result,
                statuses,
                ended,
            } => {
                let follows = ended.is_none() && matches!(result, SubmitResult::Ok(_));
                let result = AttemptResult {
                    result,
                    end: ended,
                    statuses,
                };
                if follows {
                    *knows = Knows::Ending(result, session);
                    return Ok(Some(reference));
                }
                *knows = Knows::Done(result, session);
            }
        }
        Ok(None)
    }

    /// EndMessage returned.
    fn ended(
        &mut self,
        instance: Instance,
        id: MessageId,
        result: Result<EndMessageFlag, Refusal>,
    ) {
        let doubt = self.doubts.get_mut(&id);
        let Some((_, knows)) = doubt.and_then(|it| it.instances.get_mut(&instance)) else {
            return;
        };
        *knows = match std::mem::replace(knows, Knows::Nothing) {
            Knows::Ending(mut attempt, session) => {
                attempt.end = result.ok();
                Knows::Done(attempt, session)
            }
            other => other,
        };
    }

    /// The session with this instance is over: what was being ended there is asked for again.
    fn session_over(&mut self, instance: Instance) {
        for doubt in self.doubts.values_mut() {
            if let Some((_, knows @ Knows::Ending(..))) = doubt.instances.get_mut(&instance) {
                *knows = Knows::Asked(0);
            }
        }
    }

    fn asked_of(&mut self, instance: Instance) -> impl Iterator<Item = &mut u32> {
        let doubts = self.doubts.values_mut();
        doubts.filter_map(move |it| match it.instances.get_mut(&instance) {
            Some((_, Knows::Asked(missing))) => Some(missing),
            _ => None,
        })
    }

    /// The store lists it.
    fn listed(&mut self, instance: Instance) {
        self.asked_of(instance).for_each(|missing| *missing = 0);
    }

    /// The store does not list it. True if that has been so for some time: it was struck off by somebody.
    fn missing(&mut self, instance: Instance) -> bool {
        let mut most = 0;
        for missing in self.asked_of(instance) {
            *missing += 1;
            most = most.max(*missing);
        }
        most >= MISSING_MAX
    }

    /// Its right to send has run out.
    fn gone(&mut self, instance: Instance) {
        for doubt in self.doubts.values_mut() {
            if let Some((_, knows @ Knows::Asked(_))) = doubt.instances.get_mut(&instance) {
                *knows = Knows::Gone;
            }
        }
    }

    fn take_settled(&mut self) -> Vec<Doubt> {
        let settled = |(id, doubt): (&MessageId, &Doubt)| doubt.is_settled().then_some(*id);
        let settled: Vec<_> = self.doubts.iter().filter_map(settled).collect();
        let taken = settled.iter().filter_map(|id| self.doubts.remove(id));
        taken.collect()
    }
}

/// Whether a transport could have been given a recipient: it takes it, or has never said what it takes.
fn could_have(router: &Router, transport: &str, job: &Job, index: usize) -> bool {
    let others: Vec<String> = router
        .transports()
        .filter(|(name, _)| *name != transport)
        .map(|(name, _)| name.to_owned())
        .collect();
    let recipient = &job.message.envelope.recipients[index];
    matches!(
        router.route(recipient, &others),
        Route::Transport(name) | Route::Unknown(name) if name == transport
    )
}

fn undecided(job: &Job) -> impl Iterator<Item = usize> + '_ {
    let all = job.progress.recipients.iter().enumerate();
    all.filter(|(_, it)| !it.state.is_decided())
        .map(|(index, _)| index)
}

impl Spooler {
    /// Claimed in doubt: who could have them?
    pub(super) fn look_for_suspects(&mut self, jobs: Vec<Job>, cx: &mut Context<'_>) {
        if let Some(since) = jobs.iter().map(|job| job.unsure_since).min() {
            self.ask(Ask::Suspects(since), Asked::Suspects(jobs), cx);
        }
    }

    pub(super) fn doubt(&mut self, jobs: Vec<Job>, suspects: &[Suspect], cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        for job in jobs {
            let could = |it: &ListedInstance| {
                undecided(&job).any(|at| could_have(&term.router, &it.transport, &job, at))
            };
            let suspect = |Suspect { instance, struck }: &Suspect| {
                let knows = match struck {
                    // Whatever it takes now.
                    None => Knows::Asked(0),
                    Some(at) if *at >= job.unsure_since && could(instance) => Knows::Struck,
                    _ => return None,
                };
                Some((instance.instance, (instance.transport.clone(), knows)))
            };
            let instances = suspects.iter().filter_map(suspect).collect();
            let newer = |it: &Doubt| it.job.tenure.fence() < job.tenure.fence();
            if term.adoption.doubts.get(&job.id()).is_none_or(newer) {
                let doubt = Doubt { job, instances };
                term.adoption.doubts.insert(doubt.job.id(), doubt);
            }
        }
        self.look_at_doubts(cx);
    }

    pub(super) fn look_at_doubts(&mut self, cx: &mut Context<'_>) {
        let (now, instant) = (cx.now.ms, cx.now.instant());
        let Some(term) = &mut self.term else { return };
        let observed = &term.membership.observed;
        let mut run_out: Vec<_> = observed.all_gone(instant).collect();
        run_out.sort_unstable();
        let mut struck = Vec::new();
        for instance in term.adoption.asked() {
            let session = term
                .sessions
                .values_mut()
                .find(|it| it.is_open_with(instance));
            if let Some(session) = session {
                session.ask_adopt(now, term.adoption.questions(instance));
            }
            if observed.is_listed(instance) {
                term.adoption.listed(instance);
            } else if term.adoption.missing(instance) {
                struck.push(instance);
            }
        }
        for (instance, counter) in run_out {
            self.ask(Ask::Strike(instance, counter), Asked::Strike(instance), cx);
        }
        for instance in struck {
            self.gone(instance, cx);
        }
        self.resolve(cx);
    }

    /// Its right to send has run out, and it is struck off.
    pub(super) fn gone(&mut self, instance: Instance, cx: &mut Context<'_>) {
        if let Some(term) = &mut self.term {
            term.adoption.gone(instance);
        }
        self.resolve(cx);
    }

    pub(super) fn adopt_replied(
        &mut self,
        session: Incarnation,
        answers: Vec<Adopted>,
        cx: &mut Context<'_>,
    ) {
        let Some(Term {
            adoption, sessions, ..
        }) = &mut self.term
        else {
            return;
        };
        let Some(at) = sessions.get_mut(&session) else {
            return;
        };
        for answer in answers {
            let tenancy = Tenancy::from((answer.id, answer.fence));
            if let Ok(Some(reference)) = adoption.answered(at.instance, session, answer) {
                at.end_message(tenancy, reference);
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
        let Some(term) = &mut self.term else { return };
        if let Some(instance) = term.sessions.get(&session).map(|it| it.instance) {
            term.adoption.ended(instance, id, result);
        }
        self.resolve(cx);
    }

    pub(super) fn doubts_of_ended_session(&mut self, instance: Instance) {
        if let Some(term) = &mut self.term {
            term.adoption.session_over(instance);
        }
    }

    fn resolve(&mut self, cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        for doubt in term.adoption.take_settled() {
            self.resolve_one(doubt, cx);
        }
    }

    fn resolve_one(&mut self, Doubt { mut job, instances }: Doubt, cx: &mut Context<'_>) {
        let Some(term) = &self.term else { return };
        job.doubt = false;
        job.unsure_since = cx.now.unix();
        let mut dot = std::mem::take(&mut job.note).dot;
        let (mut found, mut sessions) = (Vec::new(), Vec::new());
        let mut lost = false;
        for (instance, (transport, knows)) in instances {
            match knows {
                Knows::Done(result, session) => {
                    // It has a result: no doubt about that one.
                    dot = dot.filter(|it| it.instance != instance);
                    found.push(AdoptedAttempt {
                        hold: holds_doubt(&transport, cx),
                        transport,
                        result,
                    });
                    sessions.push(session);
                }
                Knows::Gone | Knows::Struck => {
                    let took = |at| could_have(&term.router, &transport, &job, at);
                    let could = undecided(&job).any(took);
                    lost |= could && matches!(knows, Knows::Gone);
                    // Where doubt is held, what was not noted was not sent.
                    if could && !holds_doubt(&transport, cx) {
                        self.mark_in_doubt(&mut job, instance, &transport, cx);
                    }
                }
                _ => {}
            }
        }
        job.deaths += u32::from(lost);
        let happened = match dot {
            Some(dot) => Happened::LostAtTheDot {
                transport: dot.transport,
                considered: dot.considered,
                found,
            },
            None if found.is_empty() => return self.intake(job, cx),
            None => Happened::Adopted(found),
        };
        let conclude = Conclude {
            sessions,
            ..Conclude::new(job, happened)
        };
        self.conclude(conclude, cx);
    }

    fn mark_in_doubt(
        &self,
        job: &mut Job,
        instance: Instance,
        transport: &str,
        cx: &mut Context<'_>,
    ) {
        let Some(term) = &self.term else { return };
        let could = |at: &usize| could_have(&term.router, transport, job, *at);
        let marked: Vec<usize> = undecided(job).filter(could).collect();
        for index in &marked {
            job.progress.recipients[*index].in_doubt = true;
        }
        cx.show(Seen::InDoubt {
            instance,
            id: job.id(),
            fence: job.tenure.fence(),
            recipients: marked.iter().map(|it| RecipientIndex(*it as u32)).collect(),
        });
    }
}
