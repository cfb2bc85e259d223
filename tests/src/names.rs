//! A name server that knows one zone by heart, for whoever looks up MX records and addresses.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use tokio::{net::UdpSocket, task::JoinHandle};

const A: u16 = 1;
const MX: u16 = 15;

/// One record (RFC 1035 section 3.2).
#[derive(Clone, Debug)]
pub struct Record {
    owner: String,
    kind: u16,
    data: Vec<u8>,
}

impl Record {
    /// Mail for `domain` goes to `host`; an empty one is the root, which takes none (RFC 7505).
    pub fn mx(domain: &str, preference: u16, host: &str) -> Self {
        Self {
            owner: domain.to_owned(),
            kind: MX,
            data: [&preference.to_be_bytes()[..], &name(host)].concat(),
        }
    }

    /// An IPv4 address.
    pub fn a(host: &str, address: Ipv4Addr) -> Self {
        Self {
            owner: host.to_owned(),
            kind: A,
            data: address.octets().to_vec(),
        }
    }
}

/// The server, on UDP. It ends when dropped.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl NameServer {
    /// Answers from these records; a name that none of them has does not exist.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start(zone: Vec<Record>) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let socket = socket.await.context("the name server listens")?;
        let address = socket.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let Some((question, answer)) = answer(&zone, &query[..length]) else {
                    continue;
                };
                heard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(question);
                // Who asked may be gone.
                let _ = socket.send_to(&answer, from).await;
            }
        });
        Ok(Self {
            address,
            asked,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked, as `MX example.org`; other types by their number.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> = labels
        .flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat())
        .collect();
    wire.push(0);
    wire
}

/// The question in words, and the answer (RFC 1035 section 4). `None`: no question.
fn answer(zone: &[Record], query: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut at = 12;
    let mut labels = Vec::new();
    while *query.get(at)? != 0 {
        let length = usize::from(query[at]);
        let label = query.get(at + 1..=at + length)?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += length + 1;
    }
    let kind = u16::from_be_bytes([*query.get(at + 1)?, *query.get(at + 2)?]);
    let question = query.get(12..at + 5)?;
    let asked = labels.join(".");
    let of_name = || zone.iter().filter(|record| record.owner == asked);
    let found: Vec<_> = of_name().filter(|record| record.kind == kind).collect();
    const NO_SUCH_NAME: u8 = 3;
    let code = if of_name().next().is_none() {
        NO_SUCH_NAME
    } else {
        0
    };
    let mut out = query[..2].to_vec();
    // Response, recursion desired and available.
    out.extend_from_slice(&[0x81, 0x80 | code, 0, 1, 0, found.len() as u8, 0, 0, 0, 0]);
    out.extend_from_slice(question);
    for record in found {
        // A pointer to the question's name, class IN, a minute.
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
        out.extend_from_slice(&(record.data.len() as u16).to_be_bytes());
        out.extend_from_slice(&record.data);
    }
    let words = match kind {
        A => format!("A {asked}"),
        MX => format!("MX {asked}"),
        other => format!("{other} {asked}"),
    };
    Some((words, out))
}
