//! What the outside world saw, put in order; and what the spoolers say of what came twice.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt as _;
use serde_json::Value;

use super::Stage;
use crate::{
    chaos::{
        load::Entry,
        verdict::{Arrived, Fate, Offer},
    },
    mail,
    sink::{Seen, Transaction},
};

/// Who ask at once.
const ASKERS: usize = 6;
/// How often they ask for one message.
const ASKED_MAX: usize = 3;

impl Stage {
    /// Whether something came for this recipient of a message: a copy, or a report that none will.
    pub(super) fn has(&self, entry: &Entry, recipient: &str) -> bool {
        self.world.look(|seen| {
            seen.copies(&entry.id, recipient) > 0 || is_reported(seen, entry, recipient)
        })
    }

    /// Everything that came, and for what came too often how often it was in doubt.
    pub(super) async fn arrived(&mut self, book: &[Entry]) -> Arrived {
        let ids = self.ids();
        let mails = self.world.look(|seen| seen.transactions().to_vec());
        let mut arrived = Arrived::default();
        let by_id: HashMap<&str, &Entry> = book.iter().map(|it| (it.id.as_str(), it)).collect();
        let mut reports = HashSet::new();
        for mail in &mails {
            if !mail.from.is_empty() {
                if let Some(entry) = mail.id().and_then(|id| by_id.get(id.as_str()).copied()) {
                    copy(&mut arrived, mail, entry, &ids);
                }
                continue;
            }
            // A copy of a report is no second report.
            if reports.insert(mail.id()) {
                for (recipient, id) in failed(mail) {
                    offer(&mut arrived, &recipient, &id).failed += 1;
                }
            }
        }
        self.explain(&mut arrived).await;
        arrived
    }

    /// The ids of messages by what the listeners call the transactions in which they took them.
    fn ids(&mut self) -> HashMap<String, String> {
        let mut ids = HashMap::new();
        for agent in self.pombo.agents() {
            let log = agent.log();
            ids.extend(log.lines().filter_map(taken));
        }
        ids
    }

    async fn explain(&self, arrived: &mut Arrived) {
        let offers = arrived.fates.values().flat_map(|fate| &fate.offers);
        let asked: HashSet<String> = offers
            .filter(|(_, offer)| offer.needs_a_trace())
            .map(|(id, _)| id.clone())
            .collect();
        let traces: Vec<(String, Value)> = futures_util::stream::iter(asked)
            .map(|id| async move {
                let trace = self.trace(&id).await;
                (id, trace)
            })
            .buffer_unordered(ASKERS)
            .collect()
            .await;
        for (id, trace) in &traces {
            for (recipient, doubts) in doubts(trace) {
                if let Some(fate) = arrived.fates.get_mut(recipient)
                    && let Some(offer) = fate.offers.get_mut(id)
                {
                    offer.doubts = doubts;
                }
            }
        }
    }

    /// What is known of a message; null if nobody has said it, and then nothing explains its copies.
    async fn trace(&self, id: &str) -> Value {
        for _ in 0..ASKED_MAX {
            let said = self.pombo.pombo(&["--json", "trace", id]).await;
            match serde_json::from_str(&said.stdout) {
                Ok(trace) => return trace,
                // On a busy machine nobody may have answered in time.
                Err(_) => eprintln!("pombo trace {id}: {}", said.stderr.trim_end()),
            }
        }
        Value::Null
    }
}

fn offer<'a>(arrived: &'a mut Arrived, recipient: &str, id: &str) -> &'a mut Offer {
    let fate = arrived.fates.entry(recipient.to_owned()).or_default();
    fate.offers.entry(id.to_owned()).or_default()
}

fn copy(arrived: &mut Arrived, mail: &Transaction, entry: &Entry, ids: &HashMap<String, String>) {
    let transaction = transaction(mail);
    // A listener that was killed in between has not written which id it is: then the transaction's name has to do.
    let id = ids.get(&transaction).unwrap_or(&transaction);
    let changed = mail::sha256(mail::without_trace(&mail.data)) != entry.sha256;
    for recipient in mail.to() {
        offer(arrived, recipient, id).copies += 1;
        let fate: Option<&mut Fate> = arrived.fates.get_mut(recipient);
        if let Some(fate) = fate.filter(|_| changed) {
            fate.changed += 1;
        }
    }
}

/// What the listener calls the transaction in which it took a message: it writes that in front.
fn transaction(mail: &Transaction) -> String {
    let received = mail.header("Received").unwrap_or_default();
    let mut words = received.split_whitespace().skip_while(|word| *word != "id");
    let id = words.nth(1).unwrap_or("an unknown transaction");
    id.trim_end_matches(';').to_owned()
}

/// A transaction and its message's id, from the line in which a listener logs that it has taken it.
fn taken(line: &str) -> Option<(String, String)> {
    let value = |key: &str| {
        let (_, rest) = line.split_once(key)?;
        Some(rest.split_whitespace().next()?.trim_matches('"').to_owned())
    };
    line.contains("save_changes")
        .then(|| Some((value(" transaction=")?, value(" id=")?)))?
}

fn is_reported(seen: &Seen, entry: &Entry, recipient: &str) -> bool {
    let mut reports = seen.mail_for(&entry.sender);
    reports.any(|report| failed(report).iter().any(|(failed, _)| failed == recipient))
}

/// Whom a report says to have failed for good, and of which message.
fn failed(report: &Transaction) -> Vec<(String, String)> {
    let text = report.text();
    let (mut id, mut recipient, mut all) = ("", "", Vec::new());
    for line in text.lines() {
        match line.split_once(": ") {
            Some(("X-Pombo-Message", value)) => id = value,
            Some(("Final-Recipient", value)) => {
                recipient = value.split_once("; ").map_or("", |(_, address)| address);
            }
            Some(("Action", "failed")) => all.push((recipient.to_owned(), id.to_owned())),
            _ => {}
        }
    }
    all
}

/// How often each recipient may have been sent to without the spoolers' knowing.
fn doubts(trace: &Value) -> Vec<(&str, u32)> {
    let list = |key: &str| trace[key].as_array().map_or(&[][..], Vec::as_slice);
    let events = list("timeline").iter().filter(|event| {
        let detail = event["detail"].as_str().unwrap_or_default();
        // What is noted before every dot where doubt is held is none yet.
        event["what"] != "atthedot" && detail.contains("may have been sent")
    });
    // Events do not name recipients; each marks some of them.
    let most = events.count().max(1) as u32;
    let recipients = list("recipients").iter().filter_map(|it| {
        let (_, address) = it["address"].as_str()?.split_once(':')?;
        Some((address, if it["in_doubt"] == true { most } else { 0 }))
    });
    recipients.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Sink, client, mail::Mail};

    #[tokio::test]
    async fn a_copy_names_its_transaction_and_a_report_whom_it_is_about() {
        let sink = Sink::start().await.unwrap();
        let trace = "from c ([127.0.0.1])\r\n\tby h with ESMTP id 7f-1\r\n\tfor <r@x>;\r\n\tMon, 2 Nov 2026 10:00:00 +0000";
        let copy = Mail::new().on_top("Received", trace).bytes();
        let report = "Message-ID: <1@x>\r\n\r\nX-Pombo-Message: 0a1b\r\n\r\nFinal-Recipient: rfc822; r@x\r\nAction: delayed\r\n\
            \r\nFinal-Recipient: rfc822; s@x\r\nAction: failed\r\n";
        for (from, bytes) in [("s@x", copy), ("", report.as_bytes().to_vec())] {
            client::send(sink.address(), from, &["r@x"], &bytes)
                .await
                .unwrap();
        }
        let all = sink.look(|seen| seen.transactions().to_vec());
        assert_eq!(transaction(&all[0]), "7f-1");
        assert_eq!(failed(&all[0]), []);
        assert_eq!(failed(&all[1]), [("s@x".to_owned(), "0a1b".to_owned())]);
    }

    #[test]
    fn listeners_log_which_message_a_transaction_was() {
        let line = |what| {
            format!(
                "2026 INFO receive: {what} transport=\"smtp-listener\" id=0a1b transaction=\"7f-1\" size=3"
            )
        };
        let known = Some(("7f-1".to_owned(), "0a1b".to_owned()));
        assert_eq!(taken(&line("save_changes")), known);
        assert_eq!(taken(&line("not saved")), None);
        assert_eq!(taken("INFO save_changes size=3"), None);
    }

    #[test]
    fn doubt_is_who_is_marked_as_often_as_the_timeline_says() {
        let recipient = |address, in_doubt| json!({"address": address, "in_doubt": in_doubt});
        let event = |what, detail| json!({"what": what, "detail": detail});
        let trace = json!({
            "recipients": [recipient("SMTP:r@x", true), recipient("SMTP:s@x", false)],
            "timeline": [
                event("atthedot", "noted: it may have been sent from now on"),
                event("indoubt", "an agent of out was lost; 1 may have been sent to"),
                event("sessionlost", "out; it may have been sent"),
                event("attempt", "delivered"),
            ],
        });
        assert_eq!(doubts(&trace), [("r@x", 2), ("s@x", 0)]);
        let unknown = json!({"id": "0a1b", "unknown": "nobody holds it"});
        assert_eq!(doubts(&unknown), []);
    }
}
