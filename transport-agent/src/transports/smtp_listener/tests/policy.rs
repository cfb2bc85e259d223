//! Who may send to whom.

use std::{collections::BTreeMap, io::Write, net::IpAddr};

use super::super::{
    address,
    config::{Config, Error},
    policy::{self, Policy, Verdict},
};
use super::{Rig, config};
use crate::provider::Transport;
use pombo_proto::verbs::Validation;

fn verdict(config: &Config, client: &str, to: &str) -> Verdict {
    let policy = Policy::read(config, "mx.example.org").unwrap();
    let (path, _) = address::path(&format!("<{to}>")).unwrap();
    let client: IpAddr = client.parse().unwrap();
    policy.recipient(&path, policy.may_relay(client))
}

fn taken(address: &str) -> Verdict {
    Verdict::Accepted(address.to_owned())
}

#[test]
fn with_the_defaults_nobody_relays_not_even_the_loopback() {
    let config = Config::default();
    for client in ["127.0.0.1", "::1", "192.0.2.1"] {
        assert_eq!(
            verdict(&config, client, "ann@example.org"),
            Verdict::RelayDenied
        );
    }
    assert_eq!(
        verdict(&config, "192.0.2.1", "postmaster"),
        taken("postmaster@mx.example.org")
    );
}

#[test]
fn local_domains_are_exact_or_below() {
    let config = Config {
        local_domains: ["Example.org", "*.example.net", "[192.0.2.9]"]
            .map(str::to_owned)
            .to_vec(),
        ..Config::default()
    };
    for to in [
        "a@example.org",
        "a@x.example.net",
        "a@y.x.example.net",
        "a@[192.0.2.9]",
    ] {
        assert_eq!(verdict(&config, "192.0.2.1", to), taken(to));
    }
    for to in [
        "a@x.example.org",
        "a@example.net",
        "a@evilexample.net",
        "a@[192.0.2.8]",
        "\"a@example.org\"@b",
    ] {
        assert_eq!(
            verdict(&config, "192.0.2.1", to),
            Verdict::RelayDenied,
            "{to}"
        );
    }
    // The percent hack and source routes open nothing.
    assert_eq!(
        verdict(&config, "192.0.2.1", "@example.org:a@b.example"),
        Verdict::RelayDenied
    );
}

#[test]
fn relay_clients_may_send_anywhere() {
    let config = Config {
        relay_clients: ["192.0.2.0/28", "2001:db8::/32", "10.1.2.3", "127.0.0.1"]
            .map(str::to_owned)
            .to_vec(),
        ..Config::default()
    };
    for client in [
        "192.0.2.15",
        "2001:db8:ffff::1",
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "127.0.0.1",
    ] {
        assert_eq!(verdict(&config, client, "a@b"), taken("a@b"), "{client}");
    }
    for client in ["192.0.2.16", "2001:db9::1", "10.1.2.4", "::1", "127.0.0.2"] {
        assert_eq!(
            verdict(&config, client, "a@b"),
            Verdict::RelayDenied,
            "{client}"
        );
    }
    let everybody = Config {
        relay_clients: vec!["0.0.0.0/0".to_owned()],
        ..Config::default()
    };
    assert_eq!(verdict(&everybody, "203.0.113.7", "a@b"), taken("a@b"));
    assert_eq!(
        verdict(&everybody, "2001:db8::1", "a@b"),
        Verdict::RelayDenied
    );
}

#[test]
fn listed_recipients_are_the_only_ones() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        file,
        "# people\nBob\ncarl@example.net # by address\n\n\"d e\""
    )
    .unwrap();
    let config = Config {
        local_domains: ["example.org", "example.net", "example.com"]
            .map(str::to_owned)
            .to_vec(),
        local_recipients: BTreeMap::from([("example.org".to_owned(), vec!["ann".to_owned()])]),
        local_recipient_files: BTreeMap::from([("Example.net".to_owned(), file.path().to_owned())]),
        ..Config::default()
    };
    for to in [
        "Ann@example.org",
        "postmaster@example.org",
        "bob@example.net",
        "carl@example.net",
        "\"d e\"@example.net",
        "anybody@example.com",
    ] {
        assert_eq!(verdict(&config, "192.0.2.1", to), taken(to));
    }
    for to in ["bob@example.org", "ann@example.net"] {
        assert_eq!(verdict(&config, "192.0.2.1", to), Verdict::Unknown);
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let check = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.check().unwrap_err()
    };
    let domain = |entry: &str| Error::Policy(policy::Error::Domain(entry.to_owned()));
    let network = |entry: &str| Error::Policy(policy::Error::Network(entry.to_owned()));
    assert_eq!(
        check(|c| c.local_domains = vec!["*".to_owned()]),
        domain("*")
    );
    assert_eq!(
        check(|c| c.local_domains = vec!["*.".to_owned()]),
        domain("")
    );
    assert_eq!(
        check(|c| c.relay_clients = vec!["10.0.0.0/33".to_owned()]),
        network("10.0.0.0/33")
    );
    assert_eq!(
        check(|c| c.relay_clients = vec!["localhost".to_owned()]),
        network("localhost")
    );
    assert_eq!(check(|c| c.listen.clear()), Error::NoListener);
    assert_eq!(check(|c| c.tls_key = Some("key.pem".into())), Error::Tls);
    assert_eq!(
        check(|c| c.listen_tls = vec!["[::]:465".to_owned()]),
        Error::Tls
    );
    for change in [
        (|c| c.recipients_max = 10_001) as fn(&mut Config),
        |c| c.command_bytes_max = 100,
        |c| c.permit_timeout = std::time::Duration::ZERO,
        |c| c.connections_max = 0,
    ] {
        assert!(matches!(check(change), Error::Range { .. }));
    }
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let rig = Rig::start(Config {
        local_recipients: BTreeMap::from([("example.org".to_owned(), vec!["ann".to_owned()])]),
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    client
        .transcript(
            "C: MAIL FROM:<bob@example.net>
             S: 250
             C: RCPT TO:<nobody@example.org>
             S: 550 5.1.1
             C: RCPT TO:<carl@elsewhere.example>
             S: 550 5.7.1
             C: RCPT TO:<carl%elsewhere.example@example.org>
             S: 550 5.1.1
             C: RCPT TO:<@example.org:carl@elsewhere.example>
             S: 550 5.7.1
             C: RCPT TO:<bad address@example.org>
             S: 501 5.1.3
             C: DATA
             S: 554 5.5.1
             C: RCPT TO:<ann@example.org>
             S: 250
             C: DATA
             S: 354",
        )
        .await;
    client.say("x\r\n.", "250").await;
}

#[tokio::test]
async fn recipient_files_are_read_again_when_the_configuration_is() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rig = Rig::start(Config {
        local_recipient_files: BTreeMap::from([("example.org".to_owned(), file.path().to_owned())]),
        ..config()
    })
    .await;
    let try_ann = async |code: &str| {
        let mut client = rig.greeted().await;
        client.say("MAIL FROM:<>", "250").await;
        client.say("RCPT TO:<ann@example.org>", code).await;
    };
    try_ann("550 5.1.1").await;
    std::fs::write(file.path(), "ann\n").unwrap();
    assert_eq!(rig.listener.validate_state(true).await, Validation::Ok);
    try_ann("250").await;
    std::fs::remove_file(file.path()).unwrap();
    assert!(matches!(
        rig.listener.validate_state(true).await,
        Validation::Failing(_)
    ));
    try_ann("250").await;
}
