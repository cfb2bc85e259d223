//! What the sink is told: how it presents itself, and rules for what it does when.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::Sink;
use crate::tls::Certificate;

/// A service extension that the sink offers unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extension {
    /// RFC 2920.
    Pipelining,
    /// RFC 6152.
    EightBitMime,
    /// RFC 1870.
    Size,
    /// RFC 6531.
    SmtpUtf8,
    /// RFC 3461.
    Dsn,
    /// RFC 2034; only announced: the texts of replies are the rules' business.
    EnhancedStatusCodes,
}

impl Extension {
    const ALL: [Self; 6] = [
        Self::Pipelining,
        Self::EightBitMime,
        Self::Size,
        Self::SmtpUtf8,
        Self::Dsn,
        Self::EnhancedStatusCodes,
    ];
}

/// Which protocol it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Esmtp,
    /// EHLO is an unknown command.
    HeloOnly,
    /// RFC 2033.
    Lmtp,
}

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) host: String,
    pub(super) protocol: Protocol,
    pub(super) extensions: BTreeSet<Extension>,
    pub(super) size_max: usize,
    pub(super) certificate: Option<Certificate>,
    pub(super) tls_required: bool,
    pub(super) login: Option<(String, String)>,
    pub(super) transcript_max: usize,
}

/// Builds a [`Sink`].
#[derive(Clone, Debug)]
pub struct Builder {
    options: Options,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            options: Options {
                host: "sink.example".into(),
                protocol: Protocol::Esmtp,
                extensions: Extension::ALL.into(),
                size_max: 100 << 20,
                certificate: None,
                tls_required: false,
                login: None,
                transcript_max: 200_000,
            },
        }
    }
}

impl Builder {
    /// The name in its greeting.
    pub fn host(mut self, name: &str) -> Self {
        name.clone_into(&mut self.options.host);
        self
    }

    /// Does not offer this extension, and refuses its parameters.
    pub fn without(mut self, extension: Extension) -> Self {
        self.options.extensions.remove(&extension);
        self
    }

    /// Knows HELO only.
    pub fn helo_only(mut self) -> Self {
        self.options.protocol = Protocol::HeloOnly;
        self
    }

    /// Speaks LMTP: LHLO, and a reply per recipient after the dot.
    pub fn lmtp(mut self) -> Self {
        self.options.protocol = Protocol::Lmtp;
        self
    }

    /// The largest message, in bytes: 552 beyond.
    pub fn size_max(mut self, bytes: usize) -> Self {
        self.options.size_max = bytes;
        self
    }

    /// Offers STARTTLS with this certificate.
    pub fn starttls(mut self, certificate: Certificate) -> Self {
        self.options.certificate = Some(certificate);
        self
    }

    /// Refuses mail before STARTTLS.
    pub fn tls_required(mut self) -> Self {
        self.options.tls_required = true;
        self
    }

    /// Refuses mail before AUTH (PLAIN or LOGIN) with this user and password.
    pub fn login_required(mut self, user: &str, password: &str) -> Self {
        self.options.login = Some((user.into(), password.into()));
        self
    }

    /// How many lines of the conversations are kept.
    pub fn transcript_max(mut self, lines: usize) -> Self {
        self.options.transcript_max = lines;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start(self) -> anyhow::Result<Sink> {
        Sink::start_with(self.options).await
    }
}

/// Where in a conversation a rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before the greeting.
    Connect,
    /// EHLO, HELO, LHLO.
    Ehlo,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Auth,
    /// MAIL FROM.
    Mail,
    /// RCPT TO, once per recipient.
    Rcpt,
    /// DATA, before 354.
    Data,
    /// In the middle of the message: after its first line.
    Content,
    /// After the final dot; in LMTP once per recipient.
    Dot,
}

/// What the rules may look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) sender: &'a str,
    /// One at RCPT, those accepted later.
    pub(super) recipients: &'a [String],
}

/// A rule begins with where it applies: `at(Stage::Rcpt)`.
pub fn at(stage: Stage) -> Rule {
    Rule {
        stage,
        sender: None,
        recipient: None,
        domain: None,
        first: None,
        first_of_each: None,
        every: None,
        plan: Plan::default(),
    }
}

/// What to do when. Of what it looks for, everything must fit; of what it does, everything is done: hold, wait, then the end.
#[derive(Clone, Debug)]
pub struct Rule {
    stage: Stage,
    sender: Option<String>,
    recipient: Option<String>,
    domain: Option<String>,
    first: Option<u32>,
    first_of_each: Option<u32>,
    every: Option<u32>,
    plan: Plan,
}

/// What a rule does.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) hold: Option<Gate>,
    pub(super) wait: Option<Duration>,
    pub(super) end: End,
}

#[derive(Clone, Debug, Default)]
pub(super) enum End {
    /// As if there were no rule.
    #[default]
    Usual,
    Reply(String),
    Drop,
    AcceptAndDrop,
}

impl Rule {
    /// Only for this sender.
    pub fn sender(mut self, address: &str) -> Self {
        self.sender = Some(address.into());
        self
    }

    /// Only for this recipient; after RCPT: if it is one of the message's.
    pub fn recipient(mut self, address: &str) -> Self {
        self.recipient = Some(address.into());
        self
    }

    /// Only for recipients of this domain; after RCPT: if one of the message's is.
    pub fn domain(mut self, domain: &str) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Only the first `n` times.
    pub fn first(mut self, n: u32) -> Self {
        self.first = Some(n);
        self
    }

    /// Only the first `n` times for each set of recipients (a greylist, at RCPT).
    pub fn first_of_each(mut self, n: u32) -> Self {
        self.first_of_each = Some(n);
        self
    }

    /// Only every `n`th time.
    pub fn every(mut self, n: u32) -> Self {
        self.every = Some(n);
        self
    }

    /// Waits until the gate is opened.
    pub fn hold(mut self, gate: &Gate) -> Self {
        self.plan.hold = Some(gate.clone());
        self
    }

    /// Takes this long.
    pub fn wait(mut self, time: Duration) -> Self {
        self.plan.wait = Some(time);
        self
    }

    /// Answers so; several lines are written with `\n` between them, each without its code but the first:
    /// `"550 5.7.1 no\nbecause"`. A 2xx at the dot accepts, 4xx and 5xx refuse, 421 also closes the connection.
    pub fn reply(mut self, reply: &str) -> Self {
        self.plan.end = End::Reply(reply.into());
        self
    }

    /// Closes the connection without a word.
    pub fn drop_connection(mut self) -> Self {
        self.plan.end = End::Drop;
        self
    }

    /// At the dot: takes the message, and closes the connection without saying so. The client cannot know.
    pub fn accept_and_drop(mut self) -> Self {
        self.plan.end = End::AcceptAndDrop;
        self
    }
}

/// A rule with what it has already done.
#[derive(Debug)]
pub(super) struct Scripted {
    rule: Rule,
    /// How often it would have applied, but for `every`.
    met: u32,
    times: u32,
    times_of_each: HashMap<String, u32>,
}

impl Scripted {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            met: 0,
            times: 0,
            times_of_each: HashMap::new(),
        }
    }

    /// Its plan, if it applies; this time is counted then.
    pub(super) fn applies(&mut self, stage: Stage, facts: &Facts<'_>) -> Option<Plan> {
        let rule = &self.rule;
        let fits = rule.stage == stage
            && rule
                .sender
                .as_ref()
                .is_none_or(|sender| sender.eq_ignore_ascii_case(facts.sender))
            && rule.recipient.as_ref().is_none_or(|wanted| {
                facts
                    .recipients
                    .iter()
                    .any(|r| r.eq_ignore_ascii_case(wanted))
            })
            && rule.domain.as_ref().is_none_or(|wanted| {
                facts
                    .recipients
                    .iter()
                    .any(|r| domain_of(r).eq_ignore_ascii_case(wanted))
            });
        if !fits || rule.first.is_some_and(|n| self.times >= n) {
            return None;
        }
        if let Some(n) = rule.every {
            self.met += 1;
            if !self.met.is_multiple_of(n) {
                return None;
            }
        }
        if let Some(n) = rule.first_of_each {
            let times = self
                .times_of_each
                .entry(facts.recipients.join(" ").to_ascii_lowercase())
                .or_default();
            if *times >= n {
                return None;
            }
            *times += 1;
        }
        self.times += 1;
        Some(self.rule.plan.clone())
    }
}

fn domain_of(address: &str) -> &str {
    address.rsplit_once('@').map_or("", |(_, domain)| domain)
}

/// Holds conversations up until a test opens it.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
    waiting: Arc<watch::Sender<usize>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            open: Arc::new(watch::Sender::new(false)),
            waiting: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Gate {
    /// A closed gate.
    pub fn closed() -> Self {
        Self::default()
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until `n` conversations have arrived at the gate, since it was made.
    ///
    /// # Panics
    /// When `limit` has passed.
    pub async fn reached_by(&self, n: usize, limit: Duration) {
        let mut waiting = self.waiting.subscribe();
        let reached = tokio::time::timeout(limit, waiting.wait_for(|&count| count >= n))
            .await
            .is_ok();
        assert!(
            reached,
            "within {limit:?}, {} of {n} conversations reached the gate",
            *self.waiting.borrow()
        );
    }

    pub(super) async fn pass(&self) {
        self.waiting.send_modify(|count| *count += 1);
        // Both ends are in `self`: this cannot fail.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(recipients: &[String]) -> Facts<'_> {
        Facts {
            sender: "a@example.org",
            recipients,
        }
    }

    #[test]
    fn greylist_counts_each_recipient_by_itself() {
        let mut rule = Scripted::new(at(Stage::Rcpt).first_of_each(1).reply("451 later"));
        let (bob, eve) = (["bob@x".to_owned()], ["eve@x".to_owned()]);
        assert!(rule.applies(Stage::Rcpt, &facts(&bob)).is_some());
        assert!(rule.applies(Stage::Rcpt, &facts(&eve)).is_some());
        assert!(rule.applies(Stage::Rcpt, &facts(&bob)).is_none());
    }

    #[test]
    fn every_third_time_is_every_third_time_that_it_fits() {
        let mut rule = Scripted::new(at(Stage::Dot).domain("x").every(3).accept_and_drop());
        let (bob, eve) = (["bob@x".to_owned()], ["eve@y".to_owned()]);
        let mut applied = Vec::new();
        for number in 1..=9 {
            assert!(rule.applies(Stage::Dot, &facts(&eve)).is_none());
            if rule.applies(Stage::Dot, &facts(&bob)).is_some() {
                applied.push(number);
            }
        }
        assert_eq!(applied, [3, 6, 9]);
    }

    #[test]
    fn rule_needs_all_it_looks_for() {
        let mut rule = Scripted::new(
            at(Stage::Dot)
                .domain("X")
                .sender("a@example.org")
                .drop_connection(),
        );
        let both = ["bob@y".to_owned(), "eve@x".to_owned()];
        assert!(rule.applies(Stage::Dot, &facts(&both)).is_some());
        assert!(rule.applies(Stage::Dot, &facts(&both[..1])).is_none());
        assert!(rule.applies(Stage::Data, &facts(&both)).is_none());
    }
}
