//! From a domain to hosts: MX, literals, the map of domains, and which host is next.

use super::*;

/// Several hosts on one port: 127.0.0.x of one server each would need more addresses; one server counts connections instead.
fn by_mx(server: &Server, more: &str) -> String {
    format!("port = {}\n{more}", server.address.port())
}

const DELIVERED: &str = "delivered mx1.b.test: 250 2.0.0 queued";

#[tokio::test]
async fn mail_goes_to_the_mx_of_the_domain() {
    let server = Server::play([format!("{HELLO}{TAKEN}")]).await;
    let names = Names::default()
        .mx("b.test", &[(10, "mx1.b.test")])
        .host("mx1.b.test", &["127.0.0.1"]);
    let rig = Rig::with_names(&by_mx(&server, ""), names).await;
    assert_eq!(
        rig.send(Message::to_bob()).await,
        [format!("0 {DELIVERED}")]
    );
    server.finish().await;
}

#[tokio::test]
async fn a_domain_without_mx_is_its_own_host() {
    let server = Server::play([format!("{HELLO}{TAKEN}")]).await;
    let names = Names::default()
        .mx_error("b.test", dns::Error::NoRecords)
        .host("b.test", &["127.0.0.1"]);
    let rig = Rig::with_names(&by_mx(&server, ""), names).await;
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 delivered b.test: 250 2.0.0 queued"]
    );
    server.finish().await;
}

#[tokio::test]
async fn what_the_name_service_says_decides_whether_to_try_again() {
    let names = Names::default()
        .mx("null.test", &[(0, "")])
        .mx_error(
            "servfail.test",
            dns::Error::Temporary("SERVFAIL".to_owned()),
        )
        .mx_error("nothing.test", dns::Error::NoRecords)
        .host_error("nothing.test", dns::Error::NoRecords)
        .mx("dangling.test", &[(5, "nowhere.test")])
        .mx("half.test", &[(5, "nowhere.test"), (6, "flaky.test")])
        .host_error("flaky.test", dns::Error::Temporary("timeout".to_owned()));
    let rig = Rig::with_names("", names).await;
    let to = [
        "a@null.test",
        "a@servfail.test",
        "a@nothing.test",
        "a@dangling.test",
        "a@half.test",
        "a@unknown.test",
        "a",
    ];
    assert_begins(
        &rig.send(Message::new(&to, *b"x\r\n")).await,
        &[
            "0 failed 5.1.10 ",
            "1 deferred down 4.4.3 ",
            "2 failed 5.1.2 ",
            "3 failed 5.4.4 ",
            "4 deferred down 4.4.3 ",
            "5 failed 5.1.2 ",
            "6 failed 5.1.3 ",
        ],
    );
}

#[tokio::test]
async fn hosts_are_tried_by_preference_until_one_takes_the_connection() {
    // The first host refuses, the second is not there, the third hangs up in the transaction, the fourth takes it.
    let group = "C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\n";
    let server = Server::play([
        "S: 554 not me\nE".to_owned(),
        format!("{HELLO}{group}S: 250 ok\nS: 421 bye\nX"),
        format!("{HELLO}{TAKEN}"),
    ])
    .await;
    let names = Names::default()
        .mx(
            "b.test",
            &[
                (30, "third.test"),
                (10, "first.test"),
                (40, "mx1.b.test"),
                (20, "second.test"),
            ],
        )
        .host("first.test", &["127.0.0.1"])
        .host("second.test", &["127.0.0.7"])
        .host("third.test", &["127.0.0.1"])
        .host("mx1.b.test", &["127.0.0.1"]);
    let rig = Rig::with_names(&by_mx(&server, ""), names).await;
    assert_eq!(
        rig.send(Message::to_bob()).await,
        [format!("0 {DELIVERED}")]
    );
    server.finish().await;
}

#[tokio::test]
async fn all_addresses_of_a_host_are_tried_up_to_the_limit() {
    let names = || {
        Names::default()
            .mx("b.test", &[(10, "mx1.b.test")])
            .host("mx1.b.test", &["127.0.0.8", "127.0.0.9", "127.0.0.1"])
    };
    let server = Server::play([format!("{HELLO}{TAKEN}")]).await;
    let rig = Rig::with_names(&by_mx(&server, ""), names()).await;
    assert_eq!(
        rig.send(Message::to_bob()).await,
        [format!("0 {DELIVERED}")]
    );
    let rig = Rig::with_names(&by_mx(&server, "[connections]\nattempts_max = 2"), names()).await;
    assert_begins(
        &rig.send(Message::to_bob()).await,
        &["0 deferred down 4.4.1 "],
    );
    server.finish().await;
}

#[tokio::test]
async fn a_domain_whose_hosts_all_refuse_for_good_fails() {
    let server = Server::play(["S: 521 5.3.2 no mail here\nE", "S: 554 never\nE"]).await;
    let names = Names::default()
        .mx("b.test", &[(10, "one.test"), (20, "two.test")])
        .host("one.test", &["127.0.0.1"])
        .host("two.test", &["127.0.0.1"]);
    let rig = Rig::with_names(&by_mx(&server, ""), names).await;
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 failed 5.3.2 554 never"]
    );
    server.finish().await;
}

#[tokio::test]
async fn an_address_that_was_not_reached_is_tried_last_until_a_flush() {
    use pombo_proto::verbs::Flush;
    let once = format!("{HELLO}{TAKEN}C: QUIT\nS: 221 bye");
    let server = Server::play([&*once, &once, "S: 421 not now\nE", &once]).await;
    let names = Names::default()
        .mx("b.test", &[(10, "dead.test"), (20, "mx1.b.test")])
        .mx(
            "c.test",
            &[(10, "dead.test"), (10, "dead.test"), (20, "mx1.b.test")],
        )
        .host("dead.test", &["127.0.0.7"])
        .host("mx1.b.test", &["127.0.0.1"]);
    let rig = Rig::with_names(&by_mx(&server, "[connections]\nuses_max = 1"), names).await;
    for _ in 0..2 {
        assert_eq!(
            rig.send(Message::to_bob()).await,
            [format!("0 {DELIVERED}")]
        );
    }
    // All known to be out of reach: tried all the same, and the last of them has the last word.
    assert_begins(
        &rig.send(Message::to_bob()).await,
        &["0 deferred down 4.4.1 "],
    );
    let everything = Flush {
        upload: true,
        download: false,
        force: true,
    };
    rig.transport.flush_queues(everything).await;
    assert_eq!(
        rig.send(Message::to_bob()).await,
        [format!("0 {DELIVERED}")]
    );
    server.finish().await;
}

#[tokio::test]
async fn mail_that_would_come_back_to_us_fails() {
    let server = Server::play([format!("{HELLO}{TAKEN}")]).await;
    let names = Names::default()
        .mx("ours.test", &[(10, "us.test"), (20, "mx1.b.test")])
        .mx("helo.test", &[(10, "client.test")])
        .mx("address.test", &[(10, "alias.test")])
        .mx_error("us.test", dns::Error::NoRecords)
        .mx(
            "b.test",
            &[
                (10, "mx1.b.test"),
                (20, "us.test"),
                (20, "never.test"),
                (30, "never.test"),
            ],
        )
        .host("mx1.b.test", &["127.0.0.1"])
        .host("alias.test", &["127.0.0.3", "127.0.0.9"]);
    let ours = "local_names = [\"US.test.\", \"127.0.0.9\"]";
    let rig = Rig::with_names(&by_mx(&server, ours), names).await;
    let to = [
        "a@ours.test",
        "a@helo.test",
        "a@address.test",
        "a@[127.0.0.9]",
        "a@us.test",
    ];
    let lines = rig.send(Message::new(&to, *b"x\r\n")).await;
    assert_begins(
        &lines,
        &[0, 1, 2, 3, 4].map(|n| ["0", "1", "2", "3", "4"][n]),
    );
    assert!(
        lines.iter().all(|line| line.contains(" failed 5.4.6 ")),
        "{lines:?}"
    );
    // As a backup MX we hand on to the better ones.
    assert_eq!(
        rig.send(Message::to_bob()).await,
        [format!("0 {DELIVERED}")]
    );
    server.finish().await;
}

#[tokio::test]
async fn address_literals_are_addresses() {
    let script = TAKEN.replace("bob@b.test", "bob@[127.0.0.1]");
    let server = Server::play([format!("{HELLO}{script}")]).await;
    let rig = Rig::new(&by_mx(&server, "local_names = [\"::1\"]")).await;
    let to = ["bob@[127.0.0.1]", "a@[IPv6:::1]", "a@[1.2.3]", "a@[X400:y]"];
    assert_begins(
        &rig.send(Message::new(&to, *b"x\r\n")).await,
        &[
            "0 delivered 127.0.0.1: ",
            "1 failed 5.4.6 ",
            "2 failed 5.1.3 ",
            "3 failed 5.1.3 ",
        ],
    );
    server.finish().await;
}

#[tokio::test]
async fn the_map_of_domains_comes_first_and_the_longest_match_wins() {
    let to = |address: &str| format!("{HELLO}{}", TAKEN.replace("bob@b.test", address));
    let exact = Server::play([to("a@b.test")]).await;
    let wild = Server::play([to("a@x.y.b.test")]).await;
    let deep = Server::play([to("a@z.deep.b.test")]).await;
    let rest = Server::play([to("a@elsewhere.test")]).await;
    let mx = Server::play([to("a@mx.test")]).await;
    let config = format!(
        "route = {{ smarthost = \"unused.test\" }}\nport = {}\n[domains]\n\"B.test\" = \"{}\"\n\"*.b.test\" = \"{}\"\n\"*.deep.b.test\" = \"{}\"\n\"*\" = \"{}\"\n\"mx.test\" = \"mx\"",
        mx.address.port(),
        exact.address,
        wild.address,
        deep.address,
        rest.address
    );
    let names = Names::default()
        .mx("mx.test", &[(1, "host.test")])
        .host("host.test", &["127.0.0.1"]);
    let rig = Rig::with_names(&config, names).await;
    let message = Message::new(
        &[
            "a@b.test",
            "a@x.y.b.test",
            "a@z.deep.b.test",
            "a@elsewhere.test",
            "a@mx.test",
        ],
        *b"x\r\n",
    );
    let lines = rig.send(message).await;
    assert!(
        lines.iter().all(|line| line.contains("delivered")),
        "{lines:?}"
    );
    for server in [exact, wild, deep, rest, mx] {
        server.finish().await;
    }
}

#[tokio::test]
async fn several_smarthosts_are_tried_in_order_and_their_names_may_fail_for_now() {
    let server = Server::play([format!("{HELLO}{TAKEN}")]).await;
    let config = format!(
        "route = {{ smarthost = \"nowhere.test, {}\" }}",
        server.address
    );
    let rig = Rig::new(&config).await;
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 delivered 127.0.0.1: 250 2.0.0 queued"]
    );
    server.finish().await;
    // A wrong name in the configuration is no reason to return everybody's mail.
    let rig = Rig::new("route = { smarthost = \"nowhere.test\" }").await;
    assert_begins(
        &rig.send(Message::to_bob()).await,
        &["0 deferred down 4.4.4 "],
    );
}

#[tokio::test]
async fn recipients_of_one_domain_share_a_transaction_and_domains_do_not_mix() {
    let one = TAKEN.replace(
        "C: RCPT TO:<bob@b.test>\nC: DATA\nS: 250 2.1.0 ok\n",
        "C: RCPT TO:<bob@b.test>\nC: RCPT TO:<cy@B.TEST>\nC: DATA\nS: 250 2.1.0 ok\nS: 250 ok\n",
    );
    let other = TAKEN.replace("bob@b.test", "dee@d.test");
    let server = Server::play([format!("N\n{HELLO}{one}"), format!("N\n{HELLO}{other}")]).await;
    let names = Names::default()
        .mx("b.test", &[(10, "mx1.b.test")])
        .mx("d.test", &[(10, "mx1.b.test")])
        .host("mx1.b.test", &["127.0.0.1"]);
    let rig = Rig::with_names(&by_mx(&server, ""), names).await;
    let lines = rig
        .send(Message::new(
            &["bob@b.test", "dee@d.test", "cy@B.TEST"],
            *b"x\r\n",
        ))
        .await;
    assert_eq!(lines, [0, 1, 2].map(|n| format!("{n} {DELIVERED}")));
    server.finish().await;
}
