//! `pombo ledger`: does what was accepted all lie somewhere?
//!
//! Under load some messages are seen nowhere for a moment, on their way from one party to the next. So what does not fit is looked
//! at again, until it fits or patience ends; and the audit, which one spooler makes all the time, names what is missing.

use std::time::Duration;

use pombo_proto::{
    control::{Answer, Audited, BodiesView, LedgerView, Question},
    ledger::{Balance, DoorNumber},
};
use serde::Serialize;
use tokio::time::Instant;

use super::{Error, client::Client, show};

/// Between two looks.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// `pombo ledger`
#[derive(clap::Args)]
pub struct Arguments {
    /// Accept that these are lost: a number as this command names it, door:sequence. They count as void from then on.
    #[arg(long, value_name = "NUMBER", num_args = 1..)]
    write_off: Vec<DoorNumber>,
    /// Count the large bodies in the blob store, and those that no unfinished message in the store has.
    #[arg(long, conflicts_with = "write_off")]
    bodies: bool,
}

/// The spoolers' answers together.
#[derive(Serialize)]
struct Ledger {
    closes: bool,
    /// What moves by the books, and what the broker and the spoolers have.
    moving: u64,
    ready: Option<u64>,
    leased: u64,
    missing: Vec<String>,
    missing_count: u64,
    sought: Vec<String>,
    unsound: Vec<String>,
    accounts: Vec<Row>,
}

/// One account, as `--json` prints it.
#[derive(Serialize)]
struct Row {
    account: String,
    name: String,
    accepted: u64,
    delivered: u64,
    failed: u64,
    expired: u64,
    cancelled: u64,
    waiting: u64,
    moving: u64,
    recipients: pombo_proto::ledger::Outcomes,
    confirmed: u64,
    voided: u64,
}

impl From<&Balance> for Row {
    fn from(it: &Balance) -> Self {
        Self {
            account: it.account.to_string(),
            name: it.name.clone(),
            accepted: it.accepted(),
            delivered: it.messages.delivered,
            failed: it.messages.failed,
            expired: it.messages.expired,
            cancelled: it.messages.cancelled,
            waiting: it.waiting(),
            moving: it.moving(),
            recipients: it.recipients,
            confirmed: it.confirmed,
            voided: it.voided,
        }
    }
}

pub(super) async fn ledger(
    client: &mut Client,
    arguments: Arguments,
    json: bool,
) -> Result<bool, Error> {
    if !arguments.write_off.is_empty() {
        let question = Question::WriteOff(arguments.write_off);
        return match client.ask_one(question, bytes::Bytes::new()).await? {
            Answer::Changed { count } => show::changed(count, "messages written off", json),
            other => Err(super::unexpected(&other)),
        };
    }
    if arguments.bodies {
        return match client
            .ask_one(Question::Bodies, bytes::Bytes::new())
            .await?
        {
            Answer::Bodies(view) => {
                if !show::as_json(&view, json) {
                    print_bodies(&view);
                }
                Ok(true)
            }
            other => Err(super::unexpected(&other)),
        };
    }
    let deadline = Instant::now() + client.patience;
    let ledger = loop {
        let answers = client.ask_all(&Question::Ledger).await?;
        let ledger = Ledger::of(answers)?;
        let hopeless = ledger.missing_count > 0 || !ledger.unsound.is_empty();
        if ledger.closes || hopeless || Instant::now() + AGAIN_AFTER >= deadline {
            break ledger;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    };
    if !show::as_json(&ledger, json) {
        ledger.print();
    }
    Ok(ledger.closes)
}

fn print_bodies(view: &BodiesView) {
    println!(
        "{} bodies in the blob store; {} without a row that has not finished (on their way, or left behind); of these {} older \
         than any message, to be removed",
        view.bodies, view.without_row, view.orphans
    );
}

impl Ledger {
    fn of(answers: Vec<Answer>) -> Result<Self, Error> {
        let views = answers.into_iter().filter_map(|answer| match answer {
            Answer::Ledger(view) => Some(*view),
            _ => None,
        });
        let mut views: Vec<LedgerView> = views.collect();
        let leased = views.iter().map(|view| view.leased).sum();
        // What the auditor says counts; the accounts are the same everywhere.
        views.sort_by_key(|view| view.audit.is_none());
        let Some(view) = views.into_iter().next() else {
            return Err(Error::Later("no spooler shows its ledger".to_owned()));
        };
        let audit: Audited = view.audit.unwrap_or_default();
        let moving = view.accounts.iter().map(Balance::moving).sum();
        let unsound = view.accounts.iter().filter(|it| !it.is_sound());
        let unsound: Vec<String> = unsound.map(|it| it.account.to_string()).collect();
        let names = |all: &[DoorNumber]| all.iter().map(ToString::to_string).collect();
        let fits = view.ready.is_some_and(|ready| moving <= ready + leased);
        Ok(Self {
            closes: fits && audit.missing_count == 0 && unsound.is_empty(),
            moving,
            ready: view.ready,
            leased,
            missing: names(&audit.missing),
            missing_count: audit.missing_count,
            sought: names(&audit.sought),
            unsound,
            accounts: view.accounts.iter().map(Row::from).collect(),
        })
    }

    fn print(&self) {
        let mut table = show::table(&[
            "account",
            "door",
            "accepted",
            "delivered",
            "failed",
            "expired",
            "cancelled",
            "waiting",
            "moving",
            "recipients delivered, failed, expired, cancelled",
        ]);
        for row in &self.accounts {
            let recipients = row.recipients.as_array().map(|count| count.to_string());
            let numbers = [
                row.accepted,
                row.delivered,
                row.failed,
                row.expired,
                row.cancelled,
                row.waiting,
                row.moving,
            ];
            let words = [row.account.clone(), row.name.clone()];
            let numbers = numbers.map(|count| count.to_string());
            table.add_row(
                words
                    .into_iter()
                    .chain(numbers)
                    .chain([recipients.join(", ")]),
            );
        }
        println!("{table}");
        let ready = self.ready.map_or("unknown".to_owned(), |it| it.to_string());
        println!(
            "{} moving; in the broker: {ready} ready, {} leased",
            self.moving, self.leased
        );
        if self.closes {
            println!("the ledger closes");
            return;
        }
        if self.ready.is_none() {
            println!("the broker does not say what it holds");
        }
        for account in &self.unsound {
            println!("the books of {account} contradict themselves");
        }
        if self.missing_count > 0 {
            println!(
                "{} missing: accepted, not in the store, and nobody has it:",
                self.missing_count
            );
            self.missing
                .iter()
                .for_each(|number| println!("  {number}"));
        } else if !self.sought.is_empty() {
            println!("sought, not yet called missing:");
            self.sought.iter().for_each(|number| println!("  {number}"));
        }
        println!("the ledger does not close");
    }
}
