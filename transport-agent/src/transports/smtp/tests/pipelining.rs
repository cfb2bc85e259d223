//! MAIL, RCPT and DATA in one group, or one by one; every combination of answers.

use super::*;

const THREE: [&str; 3] = ["a@b.test", "b@b.test", "c@b.test"];
const GROUP: &str = "C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<a@b.test>\nC: RCPT TO:<b@b.test>\nC: RCPT TO:<c@b.test>\nC: DATA\n";

fn three() -> Message {
    Message::new(&THREE, *b"Subject: x\r\n\r\n.hello\r\n")
}

/// One connection that plays `script` after the greeting, a message for three, and what became of it.
async fn outcome(script: &str) -> (Vec<String>, Vec<Vec<u8>>) {
    let server = Server::play([format!("{HELLO}{GROUP}{script}")]).await;
    let rig = Rig::smarthost(&server, "").await;
    let lines = rig.send(three()).await;
    rig.transport.shutdown().await;
    (lines, server.finish().await)
}

#[tokio::test]
async fn all_accepted() {
    let script = "S: 250 ok\nS: 250 ok\nS: 251 ok\nS: 250 ok\nS: 354 go\nB\nS: 250-2.0.0 ok\nS: 250 2.0.0 queued\nC: QUIT\nS: 221 bye";
    let (lines, contents) = outcome(script).await;
    let expected = "delivered 127.0.0.1: 250 2.0.0 ok queued";
    assert_eq!(lines, [0, 1, 2].map(|n| format!("{n} {expected}")));
    assert_eq!(contents, [b"Subject: x\r\n\r\n..hello\r\n.\r\n"]);
}

#[tokio::test]
async fn some_refused_and_the_rest_delivered() {
    let (lines, contents) = outcome(
        "S: 250 ok\nS: 550 5.1.1 no such user\nS: 250 ok\nS: 450 4.2.1 later\nS: 354 go\nB\nS: 250 queued\nC: QUIT\nS: 221 bye",
    )
    .await;
    assert_eq!(
        lines,
        [
            "0 failed 5.1.1 550 5.1.1 no such user",
            "1 delivered 127.0.0.1: 250 queued",
            "2 deferred 4.2.1 450 4.2.1 later"
        ]
    );
    assert_eq!(contents.len(), 1);
}

#[tokio::test]
async fn all_refused_and_data_refused_the_connection_goes_on() {
    let refused = "S: 250 ok\nS: 550 no a\nS: 550 no b\nS: 450 no c\nS: 554 no valid recipients\n";
    let next = "C: RSET\nC: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\nS: 250 reset\nS: 250 ok\nS: 250 ok\nS: 354 go\nB\nS: 250 queued\n";
    let server = Server::play([format!("{HELLO}{GROUP}{refused}{next}")]).await;
    let rig = Rig::smarthost(&server, "").await;
    assert_eq!(
        rig.send(three()).await,
        [
            "0 failed 5.1.1 550 no a",
            "1 failed 5.1.1 550 no b",
            "2 deferred 4.2.1 450 no c"
        ]
    );
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 delivered 127.0.0.1: 250 queued"]
    );
    server.finish().await;
}

#[tokio::test]
async fn all_refused_and_data_accepted_sends_an_empty_message() {
    let (lines, contents) = outcome(
        "S: 250 ok\nS: 550 no\nS: 550 no\nS: 550 no\nS: 354 go\nC: .\nS: 554 nobody\nC: QUIT\nS: 221 bye",
    )
    .await;
    assert_eq!(lines, [0, 1, 2].map(|n| format!("{n} failed 5.1.1 550 no")));
    assert!(contents.is_empty());
}

#[tokio::test]
async fn sender_refused_decides_everybody() {
    let (lines, _) = outcome(
        "S: 550 5.7.1 not you\nS: 503 first MAIL\nS: 503 first MAIL\nS: 503 first MAIL\nS: 503 first RCPT\nC: QUIT\nS: 221 bye",
    )
    .await;
    assert_eq!(
        lines,
        [0, 1, 2].map(|n| format!("{n} failed 5.7.1 550 5.7.1 not you"))
    );
    let (lines, contents) = outcome(
        "S: 451 4.7.1 greylisted\nS: 250 odd\nS: 250 odd\nS: 250 odd\nS: 354 odd\nC: .\nS: 250 odd\nC: QUIT\nS: 221 bye",
    )
    .await;
    assert_eq!(
        lines,
        [0, 1, 2].map(|n| format!("{n} deferred 4.7.1 451 4.7.1 greylisted"))
    );
    assert!(contents.is_empty());
}

#[tokio::test]
async fn data_refused_decides_the_accepted() {
    let (lines, _) = outcome(
        "S: 250 ok\nS: 250 ok\nS: 550 no\nS: 250 ok\nS: 451 4.3.0 busy\nC: QUIT\nS: 221 bye",
    )
    .await;
    assert_eq!(
        lines,
        [
            "0 deferred 4.3.0 451 4.3.0 busy",
            "1 failed 5.1.1 550 no",
            "2 deferred 4.3.0 451 4.3.0 busy"
        ]
    );
}

#[tokio::test]
async fn content_refused_fails_the_accepted() {
    let (lines, _) =
        outcome("S: 250 ok\nS: 250 ok\nS: 450 later\nS: 250 ok\nS: 354 go\nB\nS: 554 5.7.1 spam\nC: QUIT\nS: 221 bye").await;
    assert_eq!(
        lines,
        [
            "0 failed 5.7.1 554 5.7.1 spam",
            "1 deferred 4.2.1 450 later",
            "2 failed 5.7.1 554 5.7.1 spam"
        ]
    );
}

#[tokio::test]
async fn a_server_that_hangs_up_in_the_group_keeps_what_it_decided() {
    let (lines, _) = outcome("S: 250 ok\nS: 550 no\nS: 250 ok\nS: 421 4.3.2 going down\nX").await;
    assert_eq!(
        lines,
        [
            "0 failed 5.1.1 550 no",
            "1 deferred 4.3.2 421 4.3.2 going down",
            "2 deferred 4.3.2 421 4.3.2 going down"
        ]
    );
}

#[tokio::test]
async fn nonsense_in_the_group_is_no_answer() {
    let (lines, _) = outcome("S: 250 ok\nS: 250 ok\nS: HTTP/1.1 400 Bad Request\nE").await;
    assert_begins(
        &lines,
        &[
            "0 deferred 4.5.0 ",
            "1 deferred 4.5.0 ",
            "2 deferred 4.5.0 ",
        ],
    );
}

#[tokio::test]
async fn one_by_one_where_pipelining_is_not_offered() {
    let server = Server::play([
        "S: 220 mx\nC: EHLO client.test\nS: 250 mx\n\
         C: MAIL FROM:<ann@a.test>\nS: 250 ok\nC: RCPT TO:<a@b.test>\nS: 550 no\nC: RCPT TO:<b@b.test>\nS: 250 ok\n\
         C: RCPT TO:<c@b.test>\nS: 250 ok\nC: DATA\nS: 354 go\nB\nS: 250 queued\n\
         C: MAIL FROM:<ann@a.test>\nS: 550 not again\n\
         C: MAIL FROM:<ann@a.test>\nS: 250 ok\nC: RCPT TO:<bob@b.test>\nS: 550 no\n\
         C: RSET\nS: 250 ok\nC: MAIL FROM:<ann@a.test>\nS: 250 ok\nC: RCPT TO:<bob@b.test>\nS: 250 ok\nC: DATA\nS: 354 go\nB\nS: 250 queued",
    ])
    .await;
    let rig = Rig::smarthost(&server, "").await;
    assert_eq!(
        rig.send(three()).await,
        [
            "0 failed 5.1.1 550 no",
            "1 delivered 127.0.0.1: 250 queued",
            "2 delivered 127.0.0.1: 250 queued"
        ]
    );
    // A transaction that was refused at MAIL never began.
    let again = rig.send(Message::to_bob()).await;
    assert_eq!(again, ["0 failed 5.7.1 550 not again"]);
    assert_eq!(rig.send(Message::to_bob()).await, ["0 failed 5.1.1 550 no"]);
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 delivered 127.0.0.1: 250 queued"]
    );
    server.finish().await;
}

#[tokio::test]
async fn pipelining_can_be_switched_off() {
    let script = format!(
        "{HELLO}C: MAIL FROM:<ann@a.test>\nN\nW\nS: 250 ok\nC: RCPT TO:<bob@b.test>\nS: 250 ok\nC: DATA\nS: 354 go\nB\nS: 250 queued"
    );
    let server = Server::play([script]).await;
    let rig = Rig::smarthost(&server, "pipelining = false").await;
    server.go.notify_one();
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 delivered 127.0.0.1: 250 queued"]
    );
    server.finish().await;
}

#[tokio::test]
async fn recipients_beyond_what_the_server_takes_go_in_further_transactions() {
    let second = "C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<c@b.test>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\nB\nS: 250 two\nC: QUIT\nS: 221 bye";
    let first =
        "S: 250 ok\nS: 250 ok\nS: 250 ok\nS: 452 4.5.3 too many\nS: 354 go\nB\nS: 250 one\n";
    let (lines, contents) = outcome(&format!("{first}{second}")).await;
    assert_eq!(
        lines,
        [
            "0 delivered 127.0.0.1: 250 one",
            "1 delivered 127.0.0.1: 250 one",
            "2 delivered 127.0.0.1: 250 two"
        ]
    );
    assert_eq!(contents.len(), 2);
    // A full mailbox is not that, and a server that takes nobody is not asked for ever.
    let (lines, _) = outcome("S: 250 ok\nS: 452 too many\nS: 250 ok\nS: 452 4.2.2 full\nS: 354 go\nB\nS: 250 one\nC: QUIT\nS: 221 x").await;
    assert_eq!(
        lines,
        [
            "0 deferred 4.5.3 452 too many",
            "1 delivered 127.0.0.1: 250 one",
            "2 deferred 4.2.2 452 4.2.2 full"
        ]
    );
}

#[tokio::test]
async fn the_configured_number_of_recipients_splits_too() {
    let one = |who: &str, said: &str| {
        format!(
            "C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<{who}@b.test>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\nB\nS: 250 {said}\n"
        )
    };
    let server = Server::play([format!(
        "{HELLO}{}{}{}",
        one("a", "1"),
        one("b", "2"),
        one("c", "3")
    )])
    .await;
    let rig = Rig::smarthost(&server, "recipients_per_transaction = 1").await;
    let lines = rig.send(three()).await;
    assert_eq!(
        lines,
        [(0, 1), (1, 2), (2, 3)].map(|(n, said)| format!("{n} delivered 127.0.0.1: 250 {said}"))
    );
    server.finish().await;
}

#[tokio::test]
async fn a_large_group_is_divided_so_that_neither_side_blocks() {
    let addresses: Vec<String> = (0..250).map(|n| format!("user{n}@b.test")).collect();
    let recipients: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut script = format!("{HELLO}C: MAIL FROM:<ann@a.test>\n");
    for group in addresses.chunks(100) {
        group
            .iter()
            .for_each(|address| script += &format!("C: RCPT TO:<{address}>\n"));
        if group.len() < 100 {
            script += "C: DATA\n";
        }
        if group[0].starts_with("user0") {
            script += "S: 250 ok\n";
        }
        group.iter().for_each(|_| script += "S: 250 ok\n");
    }
    let server = Server::play([script + "S: 354 go\nB\nS: 250 queued"]).await;
    let rig = Rig::smarthost(&server, "recipients_per_transaction = 1000").await;
    let lines = rig.send(Message::new(&recipients, *b"x\r\n")).await;
    assert_eq!(lines.len(), 250);
    assert!(
        lines
            .iter()
            .all(|line| line.ends_with("delivered 127.0.0.1: 250 queued"))
    );
    server.finish().await;
}
