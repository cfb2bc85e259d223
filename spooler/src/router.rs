//! Which transport takes a recipient.
//!
//! Transports stand in a configured order. UIDs are scanned in that order first, then address types and spaces in that
//! order, then the transports that take anything, in that order. The first match gets the first chance; a transport that
//! has left a recipient is passed over.
//!
//! A transport whose session is away is still in the order, by what it said last: its mail waits for it and does not
//! bounce. One that is configured and has never said anything might take anything, so nobody behind it gets a recipient
//! before it has spoken: [`Route::Unknown`].
//!
//! | space | takes |
//! |---|---|
//! | `SMTP`, `SMTP:*` | every address of the type |
//! | `SMTP:*@example.org` | every mailbox of the domain |
//! | `SMTP:*@*.example.org` | every mailbox of every domain below it, not of itself |
//! | `SMTP:ann@example.org` | one mailbox |
//!
//! Types and domains are compared without regard to case, local parts with it (RFC 5321 2.4).

use std::{borrow::Cow, collections::HashMap};

use pombo_proto::{
    message::{Recipient, SMTP},
    verbs::AddressTypes,
};

/// A place in the transport order.
type Rank = u16;

/// The transports and what they take. Compiled at each change, so that a look-up allocates nothing.
#[derive(Debug, Default)]
pub struct Router {
    transports: Vec<Entry>,
    /// How many of them stand in the configured order; the others follow by name.
    configured: usize,
    types: HashMap<Box<str>, Spaces>,
    /// Transports that take anything.
    anything: Vec<Rank>,
    /// Transports that have never said what they take.
    silent: Vec<Rank>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    types: Option<AddressTypes>,
    available: bool,
}

/// What is taken within one address type. Every list is in transport order.
#[derive(Debug, Default)]
struct Spaces {
    uids: HashMap<Box<str>, Vec<Rank>>,
    all: Vec<Rank>,
    domains: HashMap<Box<str>, Vec<Rank>>,
    below: HashMap<Box<str>, Vec<Rank>>,
    mailboxes: HashMap<Box<str>, Vec<Rank>>,
}

/// Who gets the first chance at a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// This transport, whether it is available now or not.
    Transport(&'a str),
    /// No transport takes it: it is reported as non-delivered.
    Nobody,
    /// This transport might, and has not yet said what it takes: wait.
    Unknown(&'a str),
}

impl Router {
    /// Transports in the configured order. Others may join when they speak; they go behind these, by name, so that all
    /// spoolers have the same order.
    pub fn new<S: AsRef<str>>(order: impl IntoIterator<Item = S>) -> Self {
        let mut router = Self::default();
        for name in order {
            let known = |entry: &Entry| entry.name == name.as_ref();
            if !router.transports.iter().any(known) {
                router.transports.push(Entry::new(name.as_ref()));
            }
        }
        router.configured = router.transports.len();
        router.compile();
        router
    }

    /// A transport has said what it takes, by AddressTypes. Returns whether that is news.
    pub fn set_address_types(&mut self, transport: &str, types: &AddressTypes) -> bool {
        let entry = self.entry(transport);
        if entry.types.as_ref() == Some(types) {
            return false;
        }
        entry.types = Some(types.clone());
        self.compile();
        true
    }

    /// Whether a transport can be submitted to now. Routes do not depend on it: a recipient waits for its transport. But
    /// a message with recipients for several goes to an available one first.
    pub fn set_available(&mut self, transport: &str, available: bool) {
        self.entry(transport).available = available;
    }

    /// See [`Router::set_available`].
    pub fn is_available(&self, transport: &str) -> bool {
        self.transports
            .iter()
            .any(|entry| entry.name == transport && entry.available)
    }

    /// Whether it has said that it takes nobody: it only brings mail in. What was to wait for its word is for others.
    pub fn takes_nobody(&self, transport: &str) -> bool {
        let mut said = self
            .transports
            .iter()
            .filter(|entry| entry.name == transport)
            .filter_map(|entry| entry.types.as_ref());
        said.any(|said| {
            let spaces = said.types.as_ref();
            spaces.is_some_and(|spaces| spaces.iter().all(String::is_empty)) && said.uids.is_empty()
        })
    }

    /// The transports in order, with whether each has said what it takes.
    pub fn transports(&self) -> impl Iterator<Item = (&str, bool)> {
        self.transports
            .iter()
            .map(|entry| (entry.name.as_str(), entry.types.is_some()))
    }

    /// Who gets the first chance at a recipient, among those that are not in `passed`.
    pub fn route(&self, recipient: &Recipient, passed: &[String]) -> Route<'_> {
        self.route_among(recipient, |name| !passed.iter().any(|it| it == name))
    }

    /// The same among those that may.
    pub fn route_among(&self, recipient: &Recipient, may: impl Fn(&str) -> bool) -> Route<'_> {
        let first = |ranks: &[Rank]| {
            let mut ranks = ranks.iter().copied();
            ranks.find(|rank| may(self.name(*rank)))
        };
        let address = lowered(&recipient.address);
        let spaces = self.spaces(&recipient.address_type);
        let by_uid = spaces.and_then(|spaces| first(spaces.uids.get(&*address)?));
        let by_space = || spaces?.lookup(&address, first);
        let silent = first(&self.silent);
        match by_uid.or_else(by_space) {
            Some(rank) => match silent.filter(|silent| *silent < rank) {
                Some(silent) => Route::Unknown(self.name(silent)),
                None => Route::Transport(self.name(rank)),
            },
            // One that takes anything goes behind all others: also behind those that have not spoken.
            None => match (silent, first(&self.anything)) {
                (Some(silent), _) => Route::Unknown(self.name(silent)),
                (None, Some(rank)) => Route::Transport(self.name(rank)),
                (None, None) => Route::Nobody,
            },
        }
    }

    fn name(&self, rank: Rank) -> &str {
        &self.transports[usize::from(rank)].name
    }

    fn spaces(&self, address_type: &str) -> Option<&Spaces> {
        let found = self.types.get(address_type);
        // The door writes types in upper case; this is for those that do not.
        found.or_else(|| self.types.get(address_type.to_ascii_uppercase().as_str()))
    }

    fn entry(&mut self, transport: &str) -> &mut Entry {
        let at = match self.transports.iter().position(|e| e.name == transport) {
            Some(at) => at,
            None => {
                let late = &self.transports[self.configured..];
                let at = self.configured + late.partition_point(|e| e.name.as_str() < transport);
                self.transports.insert(at, Entry::new(transport));
                // Ranks behind it have moved.
                self.compile();
                at
            }
        };
        &mut self.transports[at]
    }

    fn compile(&mut self) {
        self.types.clear();
        self.anything.clear();
        self.silent.clear();
        for (at, entry) in self.transports.iter().enumerate() {
            let Ok(rank) = Rank::try_from(at) else {
                break;
            };
            let Some(types) = &entry.types else {
                // One that joined by itself and has not spoken yet holds nobody up.
                if at < self.configured {
                    self.silent.push(rank);
                }
                continue;
            };
            for uid in &types.uids {
                let (address_type, address) = uid.split_once(':').unwrap_or((SMTP, uid));
                let spaces = spaces_of(&mut self.types, address_type);
                push(
                    spaces.uids.entry(lowered(address).into()).or_default(),
                    rank,
                );
            }
            match &types.types {
                None => self.anything.push(rank),
                Some(spaces) => spaces
                    .iter()
                    .filter(|space| !space.is_empty())
                    .for_each(|space| add_space(&mut self.types, space, rank)),
            }
        }
    }
}

impl Entry {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            types: None,
            available: false,
        }
    }
}

impl Spaces {
    /// The first in transport order among all spaces that match.
    fn lookup(&self, address: &str, first: impl Fn(&[Rank]) -> Option<Rank>) -> Option<Rank> {
        let mut best = first(&self.all);
        let mut consider = |ranks: Option<&Vec<Rank>>| {
            let rank = ranks.and_then(|ranks| first(ranks));
            best = match (best, rank) {
                (Some(best), Some(rank)) => Some(best.min(rank)),
                (best, rank) => best.or(rank),
            };
        };
        consider(self.mailboxes.get(address));
        if let Some((_, domain)) = address.rsplit_once('@') {
            consider(self.domains.get(domain));
            let mut rest = domain;
            while let (false, Some((_, parent))) = (self.below.is_empty(), rest.split_once('.')) {
                consider(self.below.get(parent));
                rest = parent;
            }
        }
        best
    }
}

fn spaces_of<'a>(types: &'a mut HashMap<Box<str>, Spaces>, address_type: &str) -> &'a mut Spaces {
    types
        .entry(address_type.to_ascii_uppercase().into())
        .or_default()
}

fn add_space(types: &mut HashMap<Box<str>, Spaces>, space: &str, rank: Rank) {
    let (address_type, pattern) = space.split_once(':').unwrap_or((space, "*"));
    let spaces = spaces_of(types, address_type);
    if pattern == "*" {
        return push(&mut spaces.all, rank);
    }
    let pattern = lowered(pattern);
    let (map, key) = match pattern.strip_prefix("*@") {
        Some(domain) => match domain.strip_prefix("*.") {
            Some(parent) => (&mut spaces.below, parent),
            None => (&mut spaces.domains, domain),
        },
        None => (&mut spaces.mailboxes, &*pattern),
    };
    push(map.entry(key.into()).or_default(), rank);
}

fn push(ranks: &mut Vec<Rank>, rank: Rank) {
    if ranks.last() != Some(&rank) {
        ranks.push(rank);
    }
}

/// An address with its domain in lower case. Borrowed where it is already, as every door writes it.
fn lowered(address: &str) -> Cow<'_, str> {
    let domain = address.rfind('@').map_or(address.len(), |at| at + 1);
    if address[domain..].bytes().any(|b| b.is_ascii_uppercase()) {
        let mut address = address.to_owned();
        address[domain..].make_ascii_lowercase();
        Cow::Owned(address)
    } else {
        Cow::Borrowed(address)
    }
}

/// What a recipient's copy is sent to within its transport, as far as the spooler tells destinations apart: the domain
/// for Internet mail, nothing for others.
pub fn destination(recipient: &Recipient) -> &str {
    if recipient.address_type == SMTP {
        recipient.domain()
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(types: &[&str]) -> AddressTypes {
        AddressTypes {
            types: Some(types.iter().map(|text| (*text).to_owned()).collect()),
            uids: Vec::new(),
        }
    }

    fn by_uid(uid: &str) -> AddressTypes {
        AddressTypes {
            types: Some(vec![String::new()]),
            uids: vec![uid.to_owned()],
        }
    }

    const ANYTHING: AddressTypes = AddressTypes {
        types: None,
        uids: Vec::new(),
    };

    fn router(transports: &[(&str, AddressTypes)]) -> Router {
        let mut router = Router::new(transports.iter().map(|(name, _)| *name));
        for (name, types) in transports {
            router.set_address_types(name, types);
        }
        router
    }

    fn route<'a>(router: &'a Router, address: &str, passed: &[&str]) -> Route<'a> {
        let passed: Vec<String> = passed.iter().map(|name| (*name).to_owned()).collect();
        router.route(&Recipient::smtp(address), &passed)
    }

    #[test]
    fn the_first_in_the_order_that_matches_gets_the_first_chance() {
        let router = router(&[
            ("maildir", takes(&["SMTP:*@example.org"])),
            ("lists", takes(&["SMTP:*@*.example.org"])),
            ("ann", takes(&["SMTP:ann@example.org"])),
            ("smtp", takes(&["SMTP"])),
        ]);
        for (address, transport) in [
            ("ann@example.org", "maildir"),
            ("ann@EXAMPLE.ORG", "maildir"),
            ("ann@a.example.org", "lists"),
            ("ann@b.a.example.org", "lists"),
            ("ann@notexample.org", "smtp"),
            ("postmaster", "smtp"),
            ("\"a@b\"@example.org", "maildir"),
        ] {
            assert_eq!(
                route(&router, address, &[]),
                Route::Transport(transport),
                "{address}"
            );
        }
        let passed = &["maildir", "lists"];
        assert_eq!(
            route(&router, "ann@example.org", passed),
            Route::Transport("ann")
        );
        assert_eq!(
            route(&router, "Ann@example.org", passed),
            Route::Transport("smtp")
        );
        assert_eq!(
            route(&router, "ann@example.org", &["maildir", "ann", "smtp"]),
            Route::Nobody
        );
    }

    #[test]
    fn uids_go_before_all_types() {
        let router = router(&[
            ("smtp", takes(&["SMTP"])),
            ("vip", by_uid("SMTP:ann@Example.org")),
        ]);
        assert_eq!(
            route(&router, "ann@example.org", &[]),
            Route::Transport("vip")
        );
        assert_eq!(
            route(&router, "bob@example.org", &[]),
            Route::Transport("smtp")
        );
    }

    #[test]
    fn one_that_takes_anything_goes_last_and_one_empty_string_takes_nothing() {
        let router = router(&[
            ("nothing", takes(&[""])),
            ("anything", ANYTHING),
            ("smtp", takes(&["smtp:*"])),
        ]);
        assert_eq!(route(&router, "a@b.example", &[]), Route::Transport("smtp"));
        let fax = Recipient {
            address_type: "FAX".to_owned(),
            ..Recipient::smtp("+1")
        };
        assert_eq!(router.route(&fax, &[]), Route::Transport("anything"));
        assert_eq!(router.route(&fax, &["anything".to_owned()]), Route::Nobody);
    }

    #[test]
    fn a_configured_transport_that_never_spoke_is_waited_for() {
        let mut router = Router::new(["maildir", "smtp", "late"]);
        assert_eq!(
            route(&router, "a@example.org", &[]),
            Route::Unknown("maildir")
        );
        router.set_address_types("smtp", &takes(&["SMTP"]));
        assert_eq!(
            route(&router, "a@example.org", &[]),
            Route::Unknown("maildir")
        );
        assert_eq!(
            route(&router, "a@example.org", &["maildir"]),
            Route::Transport("smtp")
        );
        router.set_address_types("maildir", &takes(&["SMTP:*@example.org"]));
        assert_eq!(
            route(&router, "a@example.net", &[]),
            Route::Transport("smtp")
        );
        assert_eq!(
            route(&router, "a@example.net", &["smtp"]),
            Route::Unknown("late")
        );
    }

    #[test]
    fn availability_changes_no_route() {
        let mut router = router(&[("a", takes(&["SMTP"])), ("b", takes(&["SMTP"]))]);
        router.set_available("b", true);
        assert!(router.is_available("b") && !router.is_available("a"));
        assert_eq!(route(&router, "a@example.org", &[]), Route::Transport("a"));
    }

    #[test]
    fn who_takes_nobody_has_said_so() {
        let router = router(&[
            ("door", takes(&[""])),
            ("smtp", takes(&["SMTP"])),
            ("any", AddressTypes::default()),
        ]);
        let nobody = ["door", "smtp", "any", "unheard"].map(|it| router.takes_nobody(it));
        assert_eq!(nobody, [true, false, false, false]);
    }

    #[test]
    fn one_that_nobody_configured_goes_behind_and_holds_nobody_up() {
        let mut router = router(&[("smtp", takes(&["SMTP:*@example.org"]))]);
        router.set_available("zz", true);
        assert_eq!(route(&router, "a@example.net", &[]), Route::Nobody);
        router.set_address_types("zz", &takes(&["SMTP"]));
        router.set_address_types("aa", &takes(&["SMTP"]));
        assert!(!router.set_address_types("aa", &takes(&["SMTP"])));
        assert!(router.is_available("zz"));
        let order: Vec<&str> = router.transports().map(|(name, _)| name).collect();
        assert_eq!(order, ["smtp", "aa", "zz"]);
        assert_eq!(
            route(&router, "a@example.org", &[]),
            Route::Transport("smtp")
        );
        assert_eq!(route(&router, "a@example.net", &[]), Route::Transport("aa"));
    }

    /// The compiled look-up says what a plain scan of the rules says.
    #[test]
    fn a_plain_scan_gives_the_same_answer() {
        let domains = [
            "example.org",
            "a.example.org",
            "b.a.example.org",
            "example.net",
        ];
        let spaces = [
            "SMTP",
            "SMTP:*@example.org",
            "SMTP:*@*.example.org",
            "SMTP:*@*.a.example.org",
            "SMTP:ann@example.org",
            "FAX",
            "",
        ];
        for seed in 0..5_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let names = ["t0", "t1", "t2", "t3"];
            let mut model: Vec<(&str, Option<AddressTypes>)> = Vec::new();
            let mut router = Router::new(names);
            for name in names {
                let types = (random.u8(0..8) > 0).then(|| AddressTypes {
                    types: (random.u8(0..6) > 0).then(|| {
                        (0..random.usize(0..3))
                            .map(|_| (*random.choice(&spaces).unwrap()).to_owned())
                            .collect()
                    }),
                    uids: (0..random.usize(0..2))
                        .map(|_| format!("SMTP:ann@{}", random.choice(&domains).unwrap()))
                        .collect(),
                });
                if let Some(types) = &types {
                    router.set_address_types(name, types);
                }
                model.push((name, types));
            }
            for _ in 0..20 {
                let local = random.choice(["ann", "bob"]).unwrap();
                let address = format!("{local}@{}", random.choice(&domains).unwrap());
                let passed: Vec<String> = names
                    .iter()
                    .filter(|_| random.u8(0..4) == 0)
                    .map(|name| (*name).to_owned())
                    .collect();
                let recipient = Recipient::smtp(address);
                assert_eq!(
                    router.route(&recipient, &passed),
                    scan(&model, &recipient, &passed),
                    "seed {seed}: {recipient:?}, passed {passed:?}, {model:?}"
                );
            }
        }
    }

    fn scan<'a>(
        model: &[(&'a str, Option<AddressTypes>)],
        recipient: &Recipient,
        passed: &[String],
    ) -> Route<'a> {
        let left = || {
            model
                .iter()
                .filter(|(name, _)| !passed.iter().any(|p| p == name))
        };
        let full = format!("SMTP:{}", recipient.address);
        let uid = |types: &AddressTypes| types.uids.contains(&full);
        let domain = recipient.domain();
        let space = |types: &AddressTypes| {
            types.types.iter().flatten().any(|space| {
                let below = space.strip_prefix("SMTP:*@*.");
                space == "SMTP"
                    || *space == full
                    || *space == format!("SMTP:*@{domain}")
                    || below.is_some_and(|parent| domain.ends_with(&format!(".{parent}")))
            })
        };
        let anything = |types: &AddressTypes| types.types.is_none();
        let matching = |rule: &dyn Fn(&AddressTypes) -> bool| {
            left().any(|(_, types)| types.as_ref().is_some_and(rule))
        };
        let rule: &dyn Fn(&AddressTypes) -> bool = if matching(&uid) { &uid } else { &space };
        if matching(rule) {
            for (name, types) in left() {
                match types {
                    None => return Route::Unknown(name),
                    Some(types) if rule(types) => return Route::Transport(name),
                    Some(_) => {}
                }
            }
        }
        if let Some((name, _)) = left().find(|(_, types)| types.is_none()) {
            return Route::Unknown(name);
        }
        left()
            .find(|(_, types)| types.as_ref().is_some_and(anything))
            .map_or(Route::Nobody, |(name, _)| Route::Transport(name))
    }
}
