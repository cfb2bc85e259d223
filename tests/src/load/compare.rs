//! What was sent against what arrived: by id and recipient, byte for byte.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use super::Sent;
use crate::{mail, sink::Transaction};

/// How many of each kind a failure lists.
const LISTED: usize = 5;

/// What became of a load. Each entry names id and recipient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Copies that arrived once and unchanged.
    pub intact: usize,
    /// Accepted, and not arrived.
    pub missing: Vec<(String, String)>,
    /// Arrived more than once.
    pub repeated: Vec<(String, String)>,
    /// Arrived with other bytes than were sent.
    pub changed: Vec<(String, String)>,
    /// Arrived, and never accepted from the sender.
    pub unexpected: Vec<(String, String)>,
}

impl Arrival {
    /// Claims that each accepted message arrived once for each recipient, byte for byte, and nothing else did.
    ///
    /// # Panics
    /// If anything else happened.
    pub fn is_complete_and_intact(&self) {
        let faults = [
            &self.missing,
            &self.repeated,
            &self.changed,
            &self.unexpected,
        ];
        assert!(faults.iter().all(|fault| fault.is_empty()), "{self}");
    }

    /// Claims that nothing is lost or changed; copies too many are forgiven.
    ///
    /// # Panics
    /// If anything is missing or changed.
    pub fn lost_nothing(&self) {
        assert!(self.missing.is_empty() && self.changed.is_empty(), "{self}");
    }
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} intact", self.intact)?;
        let faults = [
            ("missing", &self.missing),
            ("repeated", &self.repeated),
            ("changed", &self.changed),
            ("unexpected", &self.unexpected),
        ];
        for (name, fault) in faults {
            if !fault.is_empty() {
                write!(f, ", {} {name} (", fault.len())?;
                for (number, (id, recipient)) in fault.iter().take(LISTED).enumerate() {
                    write!(
                        f,
                        "{}{id} for {recipient}",
                        if number == 0 { "" } else { ", " }
                    )?;
                }
                f.write_str(if fault.len() > LISTED { ", ...)" } else { ")" })?;
            }
        }
        Ok(())
    }
}

/// Compares. What arrived without an id counts as unexpected.
pub fn arrived_in(sent: &Sent, arrived: &[Arc<Transaction>]) -> Arrival {
    let mut arrival = Arrival::default();
    let mut expected: HashMap<(String, String), &str> = HashMap::new();
    let mut doubtful = HashSet::new();
    for message in &sent.messages {
        for recipient in &message.to {
            let key = (message.id.clone(), recipient.to_ascii_lowercase());
            if message.accepted() {
                expected.insert(key, &message.sha256);
            } else if message.code == 0 {
                // No reply to the final dot: it may have been taken all the same.
                doubtful.insert(key);
            }
        }
    }
    let mut seen = HashSet::new();
    for transaction in arrived {
        let original = mail::without_trace(&transaction.data);
        let sha256 = mail::sha256(original);
        let id = mail::header(original, mail::ID_HEADER).unwrap_or_default();
        for recipient in &transaction.recipients {
            let key = (id.clone(), recipient.address.to_ascii_lowercase());
            if doubtful.contains(&key) {
                continue;
            }
            match expected.get(&key) {
                None => arrival.unexpected.push(key),
                Some(_) if seen.contains(&key) => arrival.repeated.push(key),
                Some(&wanted) if wanted != sha256 => {
                    seen.insert(key.clone());
                    arrival.changed.push(key);
                }
                Some(_) => {
                    seen.insert(key);
                    arrival.intact += 1;
                }
            }
        }
    }
    arrival.missing = expected
        .into_keys()
        .filter(|key| !seen.contains(key))
        .collect();
    arrival
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{load::SentMessage, mail::Mail, sink::Recipient};

    fn sent(id: &str, code: u16) -> SentMessage {
        let bytes = Mail::with_id(id).bytes();
        let sha256 = mail::sha256(&bytes);
        SentMessage {
            id: id.into(),
            from: "a@x".into(),
            to: vec!["b@x".into()],
            size: bytes.len(),
            sha256,
            code,
            tries: 1,
        }
    }

    fn taken(data: Vec<u8>) -> Arc<Transaction> {
        let data = [b"Received: from a by b\r\n".to_vec(), data].concat();
        Arc::new(Transaction {
            connection: 1,
            helo: "x".into(),
            extended: true,
            tls: false,
            user: None,
            from: "a@x".into(),
            from_params: vec![],
            recipients: vec![Recipient {
                address: "B@x".into(),
                params: vec![],
            }],
            data: data.into(),
            at: Instant::now(),
        })
    }

    #[test]
    fn each_fault_is_told_from_the_others() {
        let load = Sent {
            messages: vec![
                sent("1", 250),
                sent("2", 250),
                sent("3", 250),
                sent("4", 250),
                sent("5", 550),
                sent("6", 0),
            ],
        };
        let changed = [Mail::with_id("3").bytes(), b"more\r\n".to_vec()].concat();
        let whole = |id: &str| taken(Mail::with_id(id).bytes());
        let arrival = arrived_in(
            &load,
            &[
                whole("1"),
                whole("2"),
                whole("2"),
                taken(changed),
                whole("5"),
                whole("6"),
            ],
        );
        let pair = |id: &str| vec![(id.to_owned(), "b@x".to_owned())];
        let wanted = Arrival {
            intact: 2,
            missing: pair("4"),
            repeated: pair("2"),
            changed: pair("3"),
            unexpected: pair("5"),
        };
        assert_eq!(arrival, wanted);
    }
}
