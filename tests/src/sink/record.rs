//! What the sink saw: accepted transactions, unfinished transfers, attempts, connections, and the transcript.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;

use super::script::Stage;
use crate::mail;

/// One `RCPT TO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The address without its brackets.
    pub address: String,
    /// What followed it, as written.
    pub params: Vec<String>,
}

/// A message that was taken, with its envelope.
#[derive(Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Which connection it came on, counted from 1.
    pub connection: u64,
    /// What the client called itself.
    pub helo: String,
    /// Whether it said EHLO (or LHLO), not HELO.
    pub extended: bool,
    /// Whether it came through TLS.
    pub tls: bool,
    /// The user it came from, if there was an AUTH.
    pub user: Option<String>,
    /// The reverse-path without its brackets; empty for a report.
    pub from: String,
    /// What followed the reverse-path, as written.
    pub from_params: Vec<String>,
    /// Those recipients that were accepted.
    pub recipients: Vec<Recipient>,
    /// The exact bytes of the message: dots unstuffed, nothing else changed.
    pub data: Bytes,
    /// When it was taken.
    pub at: Instant,
}

impl Transaction {
    /// The first header field of this name, unfolded.
    pub fn header(&self, name: &str) -> Option<String> {
        mail::header(&self.data, name)
    }

    /// The test's id in it, or else its Message-ID.
    pub fn id(&self) -> Option<String> {
        self.header(mail::ID_HEADER)
            .or_else(|| self.header("Message-ID"))
    }

    /// The recipients' addresses.
    pub fn to(&self) -> Vec<&str> {
        self.recipients
            .iter()
            .map(|recipient| recipient.address.as_str())
            .collect()
    }

    /// The message as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A mail of 50 MiB in a failure's text helps nobody.
        f.debug_struct("Transaction")
            .field("connection", &self.connection)
            .field("tls", &self.tls)
            .field("user", &self.user)
            .field("from", &self.from)
            .field("from_params", &self.from_params)
            .field("recipients", &self.recipients)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// A transfer that ended before its final dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Which connection it was on.
    pub connection: u64,
    /// The reverse-path.
    pub from: String,
    /// The accepted recipients.
    pub to: Vec<String>,
    /// How much of the message had come.
    pub bytes: usize,
}

/// All that was seen so far; read through [`Sink::look`](super::Sink::look).
#[derive(Debug, Default)]
pub struct Seen {
    transactions: Vec<Arc<Transaction>>,
    unfinished: Vec<Unfinished>,
    by_recipient: HashMap<String, Vec<usize>>,
    copies: HashMap<(String, String), u32>,
    attempts: HashMap<String, Vec<Instant>>,
    refused: HashMap<Stage, u32>,
    connections: u64,
    open: u64,
    open_max: u64,
    per_connection: BTreeMap<u64, u32>,
    complaints: Vec<String>,
}

impl Seen {
    /// The messages taken, in order.
    pub fn transactions(&self) -> &[Arc<Transaction>] {
        &self.transactions
    }

    /// How many messages were taken.
    pub fn accepted(&self) -> usize {
        self.transactions.len()
    }

    /// How many recipients the messages taken had together.
    pub fn deliveries(&self) -> usize {
        self.copies.values().map(|&count| count as usize).sum()
    }

    /// Of how many different pairs of message and recipient a copy was taken.
    pub fn distinct_deliveries(&self) -> usize {
        self.copies.len()
    }

    /// The messages taken for one recipient.
    pub fn mail_for(&self, recipient: &str) -> impl Iterator<Item = &Arc<Transaction>> {
        let indexes = self
            .by_recipient
            .get(&recipient.to_ascii_lowercase())
            .map(Vec::as_slice)
            .unwrap_or_default();
        indexes.iter().map(|&index| &self.transactions[index])
    }

    /// How often the message with this id was taken for this recipient.
    pub fn copies(&self, id: &str, recipient: &str) -> u32 {
        self.copies
            .get(&(id.to_owned(), recipient.to_ascii_lowercase()))
            .copied()
            .unwrap_or(0)
    }

    /// What was taken more than once: id, recipient, how often.
    pub fn duplicates(&self) -> Vec<(&str, &str, u32)> {
        let twice = self.copies.iter().filter(|(_, count)| **count > 1);
        twice
            .map(|((id, recipient), &count)| (id.as_str(), recipient.as_str(), count))
            .collect()
    }

    /// When RCPT came for this recipient, whatever the answer was.
    pub fn attempts(&self, recipient: &str) -> &[Instant] {
        self.attempts
            .get(&recipient.to_ascii_lowercase())
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// How often a 4xx or 5xx was the answer at this stage.
    pub fn refused(&self, stage: Stage) -> u32 {
        self.refused.get(&stage).copied().unwrap_or(0)
    }

    /// Transfers that ended before their final dot.
    pub fn unfinished(&self) -> &[Unfinished] {
        &self.unfinished
    }

    /// How many connections there were.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> u64 {
        self.open
    }

    /// How many connections were open at the same time at most.
    pub fn open_connections_max(&self) -> u64 {
        self.open_max
    }

    /// How many messages came on each connection; those with none are not listed.
    pub fn transactions_per_connection(&self) -> &BTreeMap<u64, u32> {
        &self.per_connection
    }

    /// What clients did that the standards forbid.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// The counts in one line.
    pub fn summary(&self) -> String {
        format!(
            "{} messages for {} recipients ({} copies too many), {} unfinished, {} connections ({} open), refused {:?}, {} complaints",
            self.accepted(),
            self.deliveries(),
            self.deliveries() - self.distinct_deliveries(),
            self.unfinished.len(),
            self.connections,
            self.open,
            self.refused,
            self.complaints.len()
        )
    }
}

/// [`Seen`] with the means to add to it.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) seen: Seen,
    lines: VecDeque<String>,
    lines_max: usize,
}

impl Record {
    pub(super) fn new(lines_max: usize) -> Self {
        Self {
            seen: Seen::default(),
            lines: VecDeque::new(),
            lines_max,
        }
    }

    pub(super) fn connected(&mut self) -> u64 {
        let seen = &mut self.seen;
        seen.connections += 1;
        seen.open += 1;
        seen.open_max = seen.open_max.max(seen.open);
        seen.connections
    }

    pub(super) fn disconnected(&mut self) {
        self.seen.open -= 1;
    }

    pub(super) fn attempted(&mut self, recipient: &str) {
        self.seen
            .attempts
            .entry(recipient.to_ascii_lowercase())
            .or_default()
            .push(Instant::now());
    }

    pub(super) fn refused(&mut self, stage: Stage) {
        *self.seen.refused.entry(stage).or_default() += 1;
    }

    pub(super) fn unfinished(&mut self, transfer: Unfinished) {
        self.seen.unfinished.push(transfer);
    }

    pub(super) fn complain(&mut self, complaint: String) {
        self.seen.complaints.push(complaint);
    }

    pub(super) fn accepted(&mut self, transaction: Transaction) {
        let seen = &mut self.seen;
        let id = transaction.id().unwrap_or_default();
        for recipient in &transaction.recipients {
            let address = recipient.address.to_ascii_lowercase();
            *seen
                .copies
                .entry((id.clone(), address.clone()))
                .or_default() += 1;
            seen.by_recipient
                .entry(address)
                .or_default()
                .push(seen.transactions.len());
        }
        *seen
            .per_connection
            .entry(transaction.connection)
            .or_default() += 1;
        seen.transactions.push(Arc::new(transaction));
    }

    pub(super) fn say(&mut self, connection: u64, direction: char, line: &[u8]) {
        if self.lines.len() >= self.lines_max {
            self.lines.pop_front();
        }
        let text = String::from_utf8_lossy(line.trim_ascii_end());
        self.lines
            .push_back(format!("{connection}{direction} {text}"));
    }

    pub(super) fn transcript(&self, lines: usize) -> String {
        let skip = self.lines.len().saturating_sub(lines);
        self.lines
            .iter()
            .skip(skip)
            .map(|line| format!("{line}\n"))
            .collect()
    }
}
