//! Who could have a message: a plain state machine, without clock, channel or log.
//!
//! Whom a transport takes now says nothing about an attempt of before: types are narrowed, and a transport leaves the order of a
//! spooler that starts again. So everybody who is listed is asked, which costs one frame, and is waited for until he has answered or
//! is struck off; that happens to whoever is dead, asked or not, within [`pombo_proto::right::GONE_AFTER`]. One exception: whoever has only ever
//! said that it takes nobody (a door) is asked while it has a session here, but not waited for without one.
//!
//! Of those that never answer, what each has said itself counts, all of it since this process began. An agent that never spoke to
//! us may have been listed for anything, unless its transport takes nobody. Of one that had been struck off before, we believe
//! what its transport takes now, if that is known: many are struck off in the time that a message may be in doubt about, and nearly all of them
//! have nothing to do with it.

use std::collections::{BTreeMap, HashMap, HashSet};

use pombo_proto::{ids::Instance, message::Recipient, verbs::AddressTypes};

use super::doubts::{Knows, Suspected};
use crate::{
    job::Job,
    router::{Route, Router},
    store::Suspect,
    verdict,
};

/// So many different words of one instance are kept; who says more could have had anything.
const WORDS_MAX: usize = 8;
/// So many instances are remembered; more, and those that have no session are forgotten: each could have had anything.
const INSTANCES_MAX: usize = 1_000;

/// What agents and transports have said.
#[derive(Debug)]
pub struct Who {
    /// What each transport takes now.
    transports: Router,
    /// What each instance has said that it takes.
    said: HashMap<Instance, Vec<Word>>,
}

/// One answer to AddressTypes, and a router that knows nothing else.
#[derive(Debug)]
struct Word {
    types: AddressTypes,
    router: Router,
}

impl Who {
    /// Nobody has said anything yet; the transports in the order of the routes.
    pub fn new(transports: Router) -> Self {
        Self {
            transports,
            said: HashMap::new(),
        }
    }

    /// An instance says what it takes. `has_session`: whom not to forget.
    pub fn handle_word(
        &mut self,
        instance: Instance,
        transport: &str,
        types: &AddressTypes,
        has_session: impl Fn(Instance) -> bool,
    ) {
        self.transports.set_address_types(transport, types);
        if self.said.len() >= INSTANCES_MAX && !self.said.contains_key(&instance) {
            self.said.retain(|it, _| has_session(*it));
        }
        let words = self.said.entry(instance).or_default();
        if words.len() < WORDS_MAX && words.iter().all(|it| it.types != *types) {
            let mut router = Router::new([transport]);
            router.set_address_types(transport, types);
            let types = types.clone();
            words.push(Word { types, router });
        }
    }

    /// Whether it has said that it takes nobody, and never anything else: it only brings mail in.
    pub fn only_brings(&self, instance: Instance) -> bool {
        let words = self.said.get(&instance);
        words.is_some_and(|words| words.iter().all(Word::takes_nobody))
    }

    /// Those that are to be asked about a message, and those that had been struck off and could have had it.
    pub fn suspects(
        &self,
        job: &Job,
        suspects: &[Suspect],
        has_session: impl Fn(Instance) -> bool,
    ) -> BTreeMap<Instance, Suspected> {
        let suspect = |Suspect { instance, struck }: &Suspect| {
            let (id, transport) = (instance.instance, instance.transport.clone());
            let knows = match struck {
                None if self.only_brings(id) && !has_session(id) && !had_it(job, id) => {
                    return None;
                }
                None => Knows::Asked { missing: 0 },
                Some(at) if *at >= job.unsure_since => Knows::Struck,
                Some(_) => return None,
            };
            let suspected = Suspected { transport, knows };
            let never = matches!(suspected.knows, Knows::Struck)
                && self.could_have(id, &suspected, job).is_empty();
            (!never).then_some((id, suspected))
        };
        suspects.iter().filter_map(suspect).collect()
    }

    /// Whom those that will not answer any more could have had. Whoever has a result here is not among them: as long as an attempt
    /// is not recorded, nobody else is given its recipients.
    pub fn lost(
        &self,
        job: &Job,
        instances: &BTreeMap<Instance, Suspected>,
    ) -> BTreeMap<Instance, Vec<usize>> {
        let results = instances.values().filter_map(|it| match &it.knows {
            Knows::Done { result, .. } => Some(verdict::named(result)),
            _ => None,
        });
        let found: HashSet<usize> = results.flatten().map(|it| it.get()).collect();
        let lost = instances.iter();
        let lost = lost.filter(|(_, it)| matches!(it.knows, Knows::Gone | Knows::Struck));
        lost.map(|(instance, it)| {
            let mut recipients = self.could_have(*instance, it, job);
            recipients.retain(|index| !found.contains(index));
            (*instance, recipients)
        })
        .collect()
    }

    /// The undecided recipients of a message that an instance could have had which will not answer any more.
    fn could_have(&self, instance: Instance, it: &Suspected, job: &Job) -> Vec<usize> {
        let envelope = &job.message.envelope;
        let all = envelope.recipients.iter().zip(&job.progress.recipients);
        all.enumerate()
            .filter(|(_, (_, progress))| !progress.state.is_decided())
            .filter(|(_, (recipient, _))| self.could_have_had(instance, it, recipient))
            .map(|(index, _)| index)
            .collect()
    }

    /// Whether an instance that died takes an undecided recipient by what is known of it or of its transport. A death counts
    /// against a message, so it needs more than that nothing is known.
    pub fn takes_it(&self, instance: Instance, transport: &str, job: &Job) -> bool {
        let it = Suspected {
            transport: transport.to_owned(),
            knows: Knows::Struck,
        };
        !self.could_have(instance, &it, job).is_empty()
    }

    fn could_have_had(&self, instance: Instance, it: &Suspected, recipient: &Recipient) -> bool {
        if let Some(words) = self.said.get(&instance) {
            return words.len() >= WORDS_MAX || words.iter().any(|word| word.takes(recipient));
        }
        if self.transports.takes_nobody(&it.transport) {
            return false;
        }
        !matches!(it.knows, Knows::Struck) || self.takes(&it.transport, recipient)
    }

    /// Whether a transport takes a recipient, or has never said what it takes.
    fn takes(&self, transport: &str, recipient: &Recipient) -> bool {
        let known = self.transports.transports().any(|(it, _)| it == transport);
        let alone = |name: &str| name == transport;
        let route = self.transports.route_among(recipient, alone);
        !known || !matches!(route, Route::Nobody)
    }
}

impl Word {
    fn takes(&self, recipient: &Recipient) -> bool {
        !matches!(self.router.route(recipient, &[]), Route::Nobody)
    }

    fn takes_nobody(&self) -> bool {
        let mut all = self.router.transports();
        all.all(|(name, _)| self.router.takes_nobody(name))
    }
}

/// Whether it was noted at its dot with this message.
pub(super) fn had_it(job: &Job, instance: Instance) -> bool {
    let dot = job.note.dot.as_ref();
    dot.is_some_and(|dot| dot.instance == instance)
}

#[cfg(test)]
mod tests {
    use pombo_proto::{
        ids::{Incarnation, RecipientIndex},
        ladder::submission::AttemptResult,
        outcome::{Delivery, Outcome, RecipientOutcome, SubmitResult},
        time::UnixMillis,
    };

    use super::{
        super::doubts::tests::{job, job_to, listed},
        *,
    };

    const NOW: UnixMillis = UnixMillis(1_000);

    fn types(types: &[&str]) -> AddressTypes {
        AddressTypes {
            types: Some(types.iter().map(|it| (*it).to_owned()).collect()),
            uids: Vec::new(),
        }
    }

    fn who() -> Who {
        Who::new(Router::new(["smtp", "spare"]))
    }

    fn suspect(instance: Instance, struck: Option<UnixMillis>) -> Suspect {
        Suspect {
            instance: listed(instance),
            struck,
        }
    }

    fn lost(knows: Knows) -> Suspected {
        Suspected {
            transport: "smtp".to_owned(),
            knows,
        }
    }

    #[test]
    fn whoever_is_listed_is_asked_whatever_its_transport_takes_now() {
        let (narrowed, away) = (Instance::random(), Instance::random());
        let mut who = who();
        who.handle_word(narrowed, "smtp", &types(&["SMTP"]), |_| true);
        who.handle_word(narrowed, "smtp", &types(&["SMTP:*@other.example"]), |_| {
            true
        });
        who.handle_word(Instance::random(), "spare", &types(&["SMTP"]), |_| true);
        let mut gone = suspect(away, None);
        gone.instance.transport = "not-in-the-order".to_owned();
        let all = [suspect(narrowed, None), gone];
        let asked = who.suspects(&job(3), &all, |_| false);
        assert_eq!(asked.len(), 2);
        for it in asked.values() {
            assert!(matches!(it.knows, Knows::Asked { .. }));
        }
    }

    #[test]
    fn who_never_took_anybody_is_asked_but_not_waited_for() {
        let (door, converted) = (Instance::random(), Instance::random());
        let mut who = who();
        who.handle_word(door, "smtp", &types(&[""]), |_| true);
        who.handle_word(converted, "smtp", &types(&["SMTP"]), |_| true);
        who.handle_word(converted, "smtp", &types(&[""]), |_| true);
        let all = [suspect(door, None), suspect(converted, None)];
        assert_eq!(who.suspects(&job(3), &all, |_| true).len(), 2);
        let asked = who.suspects(&job(3), &all, |_| false);
        assert!(asked.contains_key(&converted) && !asked.contains_key(&door));
        // Nobody knows what this one was before.
        let stranger = [suspect(Instance::random(), None)];
        assert_eq!(who.suspects(&job(3), &stranger, |_| false).len(), 1);
    }

    #[test]
    fn what_an_instance_has_ever_said_counts_and_who_never_spoke_could_have_had_anything() {
        let (wide, narrow, silent) = (Instance::random(), Instance::random(), Instance::random());
        let other = types(&["SMTP:*@other.example"]);
        let mut who = who();
        who.handle_word(wide, "smtp", &types(&["SMTP"]), |_| true);
        who.handle_word(wide, "smtp", &other, |_| true);
        who.handle_word(narrow, "smtp", &other, |_| true);
        let job = job(3);
        let could = |who: &Who, it, knows| who.could_have(it, &lost(knows), &job);
        assert_eq!(could(&who, wide, Knows::Gone), [0]);
        assert_eq!(could(&who, narrow, Knows::Gone), Vec::<usize>::new());
        assert_eq!(could(&who, silent, Knows::Gone), [0]);
        assert!(who.takes_it(wide, "smtp", &job) && !who.takes_it(silent, "smtp", &job));
        // Struck off before: by what its transport takes now, if it is known at all.
        assert_eq!(could(&who, wide, Knows::Struck), [0]);
        assert_eq!(could(&who, silent, Knows::Struck), Vec::<usize>::new());
        let mut away = lost(Knows::Struck);
        away.transport = "not-in-the-order".to_owned();
        assert_eq!(who.could_have(silent, &away, &job), [0]);
        // A door.
        who.handle_word(narrow, "smtp", &types(&[""]), |_| true);
        assert_eq!(could(&who, silent, Knows::Gone), Vec::<usize>::new());
    }

    #[test]
    fn of_those_that_were_struck_off_only_who_could_have_had_it_is_suspected() {
        let (before, since, other) = (Instance::random(), Instance::random(), Instance::random());
        let mut who = who();
        who.handle_word(since, "smtp", &types(&["SMTP"]), |_| true);
        who.handle_word(other, "smtp", &types(&["SMTP:*@other.example"]), |_| true);
        let all = [
            suspect(before, Some(UnixMillis(NOW.0 - 1))),
            suspect(since, Some(NOW)),
            suspect(other, Some(NOW)),
        ];
        let mut job = job(3);
        job.unsure_since = NOW;
        let suspected = who.suspects(&job, &all, |_| true);
        assert_eq!(suspected.len(), 1);
        assert!(matches!(suspected[&since].knows, Knows::Struck));
    }

    #[test]
    fn whoever_has_a_result_is_not_in_doubt_because_somebody_else_is_lost() {
        let (gone, struck, alive) = (Instance::random(), Instance::random(), Instance::random());
        let mut who = who();
        for it in [gone, struck, alive] {
            who.handle_word(it, "smtp", &types(&["SMTP"]), |_| true);
        }
        let job = job_to(3, 2);
        let delivered = RecipientOutcome {
            recipient: RecipientIndex(1),
            outcome: Outcome::Delivered(Delivery::new(NOW, "mx.example", "250 ok")),
        };
        let result = AttemptResult {
            result: SubmitResult::Ok(vec![delivered]),
            end: None,
            statuses: Vec::new(),
        };
        let session = Incarnation::random();
        let instances = [
            (gone, lost(Knows::Gone)),
            (struck, lost(Knows::Struck)),
            (alive, lost(Knows::Done { result, session })),
        ];
        let lost = who.lost(&job, &instances.into());
        assert_eq!(lost, [(gone, vec![0]), (struck, vec![0])].into());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_forgotten_could_have_had_anything() {
        let mut who = who();
        let stays = Instance::random();
        let other = types(&["SMTP:*@other.example"]);
        for instance in std::iter::once(stays).chain((0..INSTANCES_MAX).map(|_| Instance::random()))
        {
            who.handle_word(instance, "smtp", &other, |it| it == stays);
        }
        assert_eq!(who.said.len(), 2);
        let job = job(3);
        assert_eq!(
            who.could_have(stays, &lost(Knows::Gone), &job),
            Vec::<usize>::new()
        );
        for n in 0..WORDS_MAX {
            let word = types(&[&format!("SMTP:*@{n}.example")]);
            who.handle_word(stays, "smtp", &word, |_| true);
        }
        assert_eq!(who.could_have(stays, &lost(Knows::Gone), &job), [0]);
    }
}
