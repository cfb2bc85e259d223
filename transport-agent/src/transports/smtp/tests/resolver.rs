//! The real resolver against a name server that the test plays.

use std::net::SocketAddr;

use dns::{Error, Lookup, Mx};
use tokio::{net::UdpSocket, task::JoinHandle};

use super::*;
use crate::transports::smtp::dns::Resolver;

const A: u16 = 1;
const CNAME: u16 = 5;
const MX: u16 = 15;
const AAAA: u16 = 28;

/// A name server on UDP that knows one zone by heart.
struct NameServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                if let Some(answer) = answer(&query[..length]) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { address, task }
    }

    fn resolver(&self) -> Resolver {
        let text = format!(
            "[dns]\nnameservers = [\"{}\"]\ntimeout = \"1s\"\nattempts = 1",
            self.address
        );
        Resolver::new(&toml::from_str(&text).unwrap()).unwrap()
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

fn mx(preference: u16, host: &str) -> (u16, Vec<u8>) {
    (MX, [&preference.to_be_bytes()[..], &name(host)].concat())
}

/// Header, question, and what the zone says (RFC 1035 section 4). `None`: silence.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += length + 1;
    }
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let question = &query[12..at + 5];
    let (code, records): (u8, Vec<(u16, Vec<u8>)>) = match (labels.join(".").as_str(), kind) {
        ("b.test", MX) => (0, vec![mx(20, "Mx2.B.test"), mx(10, "mx1.b.test")]),
        ("null.test", MX) => (0, vec![mx(0, "")]),
        ("alias.test", MX) => (0, vec![(CNAME, name("b.test")), mx(10, "mx1.b.test")]),
        ("xn--bcher-kva.test", MX) => (0, vec![mx(1, "mx1.b.test")]),
        ("mx1.b.test", A) => (0, vec![(A, vec![192, 0, 2, 1]), (A, vec![192, 0, 2, 2])]),
        ("mx1.b.test", AAAA) => (
            0,
            vec![(AAAA, [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1]].concat())],
        ),
        ("four.test", A) => (0, vec![(A, vec![192, 0, 2, 4])]),
        ("half.test", A) => (2, vec![]),
        ("nomx.test" | "four.test" | "half.test", _) => (0, vec![]),
        ("servfail.test", _) => (2, vec![]),
        ("refused.test", _) => (5, vec![]),
        ("silent.test", _) => return None,
        _ => (3, vec![]),
    };
    let mut out = query[..2].to_vec();
    // Response, recursion desired and available.
    out.extend_from_slice(&[0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    out.extend_from_slice(question);
    for (kind, data) in records {
        // A pointer to the question's name; a CNAME's target is named in full.
        let owner = if labels[0] == "alias" && kind == MX {
            name("b.test")
        } else {
            vec![0xc0, 12]
        };
        out.extend_from_slice(&owner);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
        out.extend_from_slice(&(data.len() as u16).to_be_bytes());
        out.extend_from_slice(&data);
    }
    Some(out)
}

#[tokio::test]
async fn mx_records_are_found_and_failures_told_apart() {
    let server = NameServer::start().await;
    let resolver = server.resolver();
    let record = |preference, host: &str| Mx {
        preference,
        host: host.to_owned(),
    };
    let mut found = resolver.mx("b.test").await.unwrap();
    found.sort_by_key(|mx| mx.preference);
    assert_eq!(found, [record(10, "mx1.b.test"), record(20, "mx2.b.test")]);
    assert_eq!(resolver.mx("null.test").await, Ok(vec![record(0, "")]));
    assert_eq!(
        resolver.mx("alias.test").await,
        Ok(vec![record(10, "mx1.b.test")])
    );
    assert_eq!(
        resolver.mx("b\u{fc}cher.test").await,
        Ok(vec![record(1, "mx1.b.test")])
    );
    assert_eq!(resolver.mx("nomx.test").await, Err(Error::NoRecords));
    assert_eq!(resolver.mx("nowhere.test").await, Err(Error::NoSuchName));
    assert_eq!(resolver.mx("a..b").await, Err(Error::NoSuchName));
    assert_eq!(resolver.mx(&"x".repeat(64)).await, Err(Error::NoSuchName));
    for passing in ["servfail.test", "refused.test", "silent.test"] {
        let answer = resolver.mx(passing).await;
        assert!(
            matches!(answer, Err(Error::Temporary(_))),
            "{passing}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn addresses_come_in_the_order_that_is_preferred() {
    let server = NameServer::start().await;
    let resolver = server.resolver();
    let texts = async |host: &str, preference| {
        let found = resolver.addresses(host, preference).await;
        found.map(|found| {
            found
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    use AddressPreference::{Ipv4First, Ipv4Only, Ipv6First, Ipv6Only};
    let (four, six) = ("192.0.2.1 192.0.2.2", "2001:db8::1");
    assert_eq!(
        texts("mx1.b.test", Ipv4First).await,
        Ok(format!("{four} {six}"))
    );
    assert_eq!(
        texts("mx1.b.test", Ipv6First).await,
        Ok(format!("{six} {four}"))
    );
    assert_eq!(texts("mx1.b.test", Ipv4Only).await, Ok(four.to_owned()));
    assert_eq!(texts("mx1.b.test", Ipv6Only).await, Ok(six.to_owned()));
    assert_eq!(
        texts("four.test", Ipv4First).await,
        Ok("192.0.2.4".to_owned())
    );
    assert_eq!(texts("four.test", Ipv6Only).await, Err(Error::NoRecords));
    assert_eq!(
        texts("nowhere.test", Ipv4First).await,
        Err(Error::NoSuchName)
    );
    // One half says nothing is there, the other does not answer: not known.
    assert!(matches!(
        texts("half.test", Ipv4First).await,
        Err(Error::Temporary(_))
    ));
}

#[tokio::test]
async fn mail_finds_its_way_by_real_questions() {
    let names = NameServer::start().await;
    let config = format!(
        "[dns]\nnameservers = [\"{}\"]\ntimeout = \"1s\"\nattempts = 1",
        names.address
    );
    let transport = SmtpTransport::new(toml::from_str(&config).unwrap()).unwrap();
    let told = Arc::new(Told::default());
    transport
        .logon(Arc::clone(&told) as Arc<dyn Support>)
        .await
        .unwrap();
    let rig = Rig {
        transport: Arc::new(transport),
        told,
    };
    let to = [
        "a@null.test",
        "a@nowhere.test",
        "a@servfail.test",
        "a@silent.test",
        "a@nomx.test",
    ];
    assert_begins(
        &rig.send(Message::new(&to, *b"x\r\n")).await,
        &[
            "0 failed 5.1.10 ",
            "1 failed 5.1.2 ",
            "2 deferred down 4.4.3 ",
            "3 deferred down 4.4.3 ",
            "4 failed 5.1.2 ",
        ],
    );
}
