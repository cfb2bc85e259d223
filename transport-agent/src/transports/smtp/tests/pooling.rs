//! Connections that are used again, gone stale, or too many.

use super::*;

const DELIVERED: &str = "0 delivered 127.0.0.1: 250 2.0.0 queued";

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::play([format!("{HELLO}{TAKEN}{TAKEN}{TAKEN}C: QUIT\nS: 221 bye")]).await;
    let rig = Rig::smarthost(&server, "").await;
    for _ in 0..3 {
        assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    }
    assert_eq!(rig.transport.pool.idle(), 1);
    rig.transport.shutdown().await;
    assert_eq!(rig.transport.pool.idle(), 0);
    server.finish().await;
}

#[tokio::test]
async fn domains_with_the_same_hosts_share_connections() {
    let other = TAKEN.replace("bob@b.test", "dee@d.test");
    let server = Server::play([format!("{HELLO}{TAKEN}{other}")]).await;
    let names = Names::default()
        .mx("b.test", &[(10, "mx1.test"), (10, "mx2.test")])
        .mx("d.test", &[(10, "mx2.test"), (10, "mx1.test")])
        .host("mx1.test", &["127.0.0.1"])
        .host("mx2.test", &["127.0.0.1"]);
    let rig = Rig::with_names(&format!("port = {}", server.address.port()), names).await;
    assert!(rig.send(Message::to_bob()).await[0].starts_with("0 delivered"));
    assert!(rig.send(Message::new(&["dee@d.test"], *b"x\r\n")).await[0].starts_with("0 delivered"));
    server.finish().await;
}

#[tokio::test]
async fn a_stale_connection_is_replaced_before_anything_was_answered() {
    let group = "C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\n";
    for stale in [
        "X\n".to_owned(),
        format!("{group}X\n"),
        format!("{group}S: 421 4.4.2 idle too long\nX\n"),
    ] {
        let server =
            Server::play([format!("{HELLO}{TAKEN}{stale}"), format!("{HELLO}{TAKEN}")]).await;
        let rig = Rig::smarthost(&server, "").await;
        assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
        assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
        server.finish().await;
    }
}

#[tokio::test]
async fn a_goodbye_said_meanwhile_is_not_taken_for_an_answer() {
    let first = format!("{HELLO}{TAKEN}W\nS: 421 closing\nN\nP");
    let server = Server::play([first, format!("{HELLO}{TAKEN}")]).await;
    let rig = Rig::smarthost(&server, "").await;
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    server.go.notify_one();
    server.reached.notified().await;
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    server.finish().await;
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_is_not_tried_for_ever() {
    let group = "C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\n";
    let server = Server::play([format!("{HELLO}{group}X"), format!("{HELLO}{group}X")]).await;
    let rig = Rig::smarthost(&server, "").await;
    assert_begins(&rig.send(Message::to_bob()).await, &["0 deferred 4.4.2 "]);
    assert_begins(&rig.send(Message::to_bob()).await, &["0 deferred 4.4.2 "]);
    server.finish().await;
}

#[tokio::test]
async fn a_connection_is_given_up_after_its_uses() {
    let once = format!("{HELLO}{TAKEN}{TAKEN}C: QUIT\nS: 221 bye");
    let server = Server::play([&once, &once]).await;
    let rig = Rig::smarthost(&server, "[connections]\nuses_max = 2").await;
    for _ in 0..4 {
        assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    }
    server.finish().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let server = Server::play([format!("{HELLO}{TAKEN}C: QUIT\nS: 221 bye")]).await;
    let rig = Rig::smarthost(&server, "[connections]\nidle_timeout = \"100ms\"").await;
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    // Plays to its end only if somebody says QUIT.
    server.finish().await;
    assert_eq!(rig.transport.pool.idle(), 0);
}

#[tokio::test]
async fn idle_spares_young_connections() {
    let server = Server::play([format!("{HELLO}{TAKEN}{TAKEN}")]).await;
    let rig = Rig::smarthost(&server, "").await;
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    rig.transport.idle().await;
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    server.finish().await;
}

#[tokio::test]
async fn no_more_connections_to_a_destination_than_allowed() {
    // One connection takes all ten, although ten want to go at once.
    let server = Server::play([format!("{HELLO}{}", TAKEN.repeat(10))]).await;
    let rig = Rig::smarthost(&server, "[connections]\nper_destination = 1").await;
    let all = futures_util::future::join_all((0..10).map(|_| rig.send(Message::to_bob()))).await;
    assert!(all.iter().all(|lines| *lines == [DELIVERED]));
    server.finish().await;
}

#[tokio::test]
async fn who_gets_no_connection_in_time_is_deferred() {
    let server = Server::play([format!("{HELLO}N\nW\n{TAKEN}")]).await;
    let rig = Rig::smarthost(
        &server,
        "[connections]\nper_destination = 1\nwait = \"100ms\"",
    )
    .await;
    let (first, second) = tokio::join!(rig.send(Message::to_bob()), async {
        server.reached.notified().await;
        let lines = rig.send(Message::to_bob()).await;
        server.go.notify_one();
        lines
    });
    assert_eq!(first, [DELIVERED]);
    assert_begins(&second, &["0 deferred 4.4.5 "]);
    server.finish().await;
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_another_destination() {
    let one = Server::play([format!("{HELLO}{TAKEN}C: QUIT\nS: 221 bye")]).await;
    let two = Server::play([format!(
        "{HELLO}{}",
        TAKEN.replace("bob@b.test", "cy@c.test")
    )])
    .await;
    let config = format!(
        "[connections]\ntotal = 1\n[domains]\n\"b.test\" = \"{}\"\n\"c.test\" = \"{}\"",
        one.address, two.address
    );
    let rig = Rig::new(&config).await;
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    assert_eq!(
        rig.send(Message::new(&["cy@c.test"], *b"x\r\n")).await,
        [DELIVERED]
    );
    one.finish().await;
    two.finish().await;
}

#[tokio::test]
async fn one_place_serves_two_destinations_of_one_message() {
    let one = Server::play([format!("{HELLO}{TAKEN}C: QUIT\nS: 221 bye")]).await;
    let two = Server::play([format!(
        "{HELLO}{}C: QUIT\nS: 221 bye",
        TAKEN.replace("bob@b.test", "cy@c.test")
    )])
    .await;
    let config = format!(
        "[connections]\ntotal = 1\n[domains]\n\"b.test\" = \"{}\"\n\"c.test\" = \"{}\"",
        one.address, two.address
    );
    let rig = Rig::new(&config).await;
    let lines = rig
        .send(Message::new(&["bob@b.test", "cy@c.test"], *b"x\r\n"))
        .await;
    assert_eq!(
        lines,
        [0, 1].map(|n| format!("{n} delivered 127.0.0.1: 250 2.0.0 queued"))
    );
    rig.transport.shutdown().await;
    one.finish().await;
    two.finish().await;
}
