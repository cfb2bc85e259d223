//! What replies, offers and failures become for recipients.

use pombo_proto::message::Notify;

use super::*;

/// One message over one connection that greets with `offered` and then plays `script`.
async fn with_offer(offered: &str, script: &str, config: &str, message: Message) -> Vec<String> {
    let server = Server::play([hello(offered) + script]).await;
    let rig = Rig::smarthost(&server, config).await;
    let lines = rig.send(message).await;
    rig.transport.shutdown().await;
    server.finish().await;
    lines
}

/// Lockstep transaction with this MAIL and RCPT line.
fn taken(mail: &str, rcpt: &str) -> String {
    format!(
        "C: {mail}\nS: 250 ok\nC: {rcpt}\nS: 250 ok\nC: DATA\nS: 354 go\nB\nS: 250 queued\nC: QUIT\nS: 221 bye"
    )
}

const BYE: &str = "C: QUIT\nS: 221 bye";

#[tokio::test]
async fn a_message_above_the_announced_size_is_not_sent() {
    let large = || Message::new(&["bob@b.test"], vec![b'x'; 1001]);
    let lines = with_offer("SIZE 1000", BYE, "", large()).await;
    assert_begins(&lines, &["0 failed 5.3.4 "]);
    let fits = taken("MAIL FROM:<ann@a.test> SIZE=1001", "RCPT TO:<bob@b.test>");
    assert_eq!(
        with_offer("SIZE 1001", &fits, "", large()).await,
        ["0 delivered 127.0.0.1: 250 queued"]
    );
    assert_eq!(
        with_offer("SIZE", &fits, "", large()).await,
        ["0 delivered 127.0.0.1: 250 queued"]
    );
}

#[tokio::test]
async fn eight_bit_content_needs_8bitmime() {
    let message = |content: &[u8]| {
        let mut message = Message::new(&["bob@b.test"], content);
        message.envelope.content.eight_bit = true;
        message
    };
    let (eight, seven) = (
        b"Subject: x\r\n\r\n\xc3\xa4\r\n",
        b"Subject: x\r\n\r\na\r\n",
    );
    let offered = taken(
        "MAIL FROM:<ann@a.test> BODY=8BITMIME",
        "RCPT TO:<bob@b.test>",
    );
    let plain = taken("MAIL FROM:<ann@a.test>", "RCPT TO:<bob@b.test>");
    let delivered = ["0 delivered 127.0.0.1: 250 queued"];
    assert_eq!(
        with_offer("8BITMIME", &offered, "", message(eight)).await,
        delivered
    );
    assert_begins(
        &with_offer("", BYE, "", message(eight)).await,
        &["0 failed 5.6.3 "],
    );
    assert_eq!(
        with_offer("", &plain, "send_8bit_anyway = true", message(eight)).await,
        delivered
    );
    // Declared, and not so.
    assert_eq!(with_offer("", &plain, "", message(seven)).await, delivered);
}

#[tokio::test]
async fn addresses_and_headers_outside_ascii_need_smtputf8() {
    let both = || {
        let mut message = Message::new(
            &["j\u{f6}rg@b.test", "bob@b\u{fc}cher.test"],
            *b"Subject: x\r\n\r\na\r\n",
        );
        message.envelope.content.smtputf8 = true;
        message
    };
    let all = "C: MAIL FROM:<ann@a.test> SMTPUTF8\nS: 250 ok\nC: RCPT TO:<j\u{f6}rg@b.test>\nS: 250 ok\n\
               C: RCPT TO:<bob@b\u{fc}cher.test>\nS: 250 ok\nC: DATA\nS: 354 go\nB\nS: 250 queued\nC: QUIT\nS: 221 bye";
    let delivered = "delivered 127.0.0.1: 250 queued";
    assert_eq!(
        with_offer("SMTPUTF8", all, "", both()).await,
        [format!("0 {delivered}"), format!("1 {delivered}")]
    );
    // Without: one cannot be said, the other can.
    let one = taken("MAIL FROM:<ann@a.test>", "RCPT TO:<bob@xn--bcher-kva.test>");
    assert_begins(
        &with_offer("", &one, "", both()).await,
        &["0 failed 5.6.7 ", &format!("1 {delivered}")],
    );
    let mut headers = Message::new(&["bob@b.test"], *b"Subject: \xc3\xa4\r\n\r\na\r\n");
    headers.envelope.content.smtputf8 = true;
    assert_begins(
        &with_offer("8BITMIME", BYE, "", headers).await,
        &["0 failed 5.6.7 "],
    );
}

#[tokio::test]
async fn reports_of_delivery_are_asked_for_where_dsn_is_offered() {
    let message = || {
        let mut message = Message::to_bob();
        message.envelope.recipients[0].notify = Notify {
            success: true,
            failure: true,
            delay: false,
        };
        message.envelope.recipients[0].original_recipient = Some("rfc822;robert@b.test".to_owned());
        message.envelope.envelope_id = Some("id 1".to_owned());
        message
    };
    let asked = taken(
        "MAIL FROM:<ann@a.test> RET=HDRS ENVID=id+201",
        "RCPT TO:<bob@b.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;robert@b.test",
    );
    assert_eq!(
        with_offer("DSN", &asked, "", message()).await,
        ["0 promised 127.0.0.1: 250 queued"]
    );
    let plain = taken("MAIL FROM:<ann@a.test>", "RCPT TO:<bob@b.test>");
    assert_eq!(
        with_offer("", &plain, "", message()).await,
        ["0 delivered 127.0.0.1: 250 queued"]
    );
}

#[tokio::test]
async fn a_server_without_ehlo_is_told_helo() {
    let greeting = "S: 220 mx\nC: EHLO other.test\nS: 502 what\nC: HELO other.test\nS: 250 mx\n";
    let server = Server::play([format!(
        "{greeting}{}",
        taken("MAIL FROM:<ann@a.test>", "RCPT TO:<bob@b.test>")
    )])
    .await;
    let rig = Rig::smarthost(&server, "helo = \"other.test\"").await;
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 delivered 127.0.0.1: 250 queued"]
    );
    rig.transport.shutdown().await;
    server.finish().await;
}

#[tokio::test]
async fn a_lost_answer_to_the_final_dot_leaves_doubt() {
    for (instead, why) in [
        ("X\n", "the connection"),
        ("E\n", "no answer in time"),
        ("S: what?\nE\n", "not an answer of SMTP"),
        ("S: 354 go on\nE\n", "an unexpected answer"),
    ] {
        let script = TAKEN.replace("S: 250 2.0.0 queued\n", instead);
        let server = Server::play([format!("{HELLO}{script}")]).await;
        let rig = Rig::smarthost(&server, "[timeouts]\ndata_end = \"1s\"").await;
        let lines = rig.send(Message::to_bob()).await;
        assert_begins(&lines, &["0 in doubt 4.4.2 "]);
        assert!(lines[0].contains("may have been received"), "{lines:?}");
        assert!(lines[0].contains(why), "{lines:?}");
        server.finish().await;
    }
}

#[tokio::test]
async fn a_temporary_answer_to_the_final_dot_defers() {
    for (said, expected) in [
        (
            "451 4.3.0 disk full",
            "0 deferred 4.3.0 451 4.3.0 disk full",
        ),
        ("421 4.3.2 bye", "0 deferred 4.3.2 421 4.3.2 bye"),
        ("552 too large", "0 failed 5.3.4 552 too large"),
    ] {
        let script = format!("{HELLO}{}", TAKEN.replace("250 2.0.0 queued", said));
        let server = Server::play([script]).await;
        assert_eq!(
            Rig::smarthost(&server, "")
                .await
                .send(Message::to_bob())
                .await,
            [expected]
        );
        server.finish().await;
    }
}

#[tokio::test]
async fn why_a_server_hung_up_in_the_content_is_heard() {
    let script = format!(
        "{HELLO}C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\nS: 552 5.3.4 too much\nP"
    );
    let server = Server::play([script]).await;
    let rig = Rig::smarthost(&server, "[timeouts]\ndata_block = \"200ms\"").await;
    let lines = rig.send(Message::to_bob()).await;
    // The answer came before the dot; it is the answer to it all the same.
    assert_eq!(lines, ["0 failed 5.3.4 552 5.3.4 too much"]);
    drop(rig);
    let _ = server;
}

#[tokio::test]
async fn a_destination_that_cannot_be_reached_is_down() {
    // Nobody listens there any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let rig = Rig::new(&format!("route = {{ smarthost = \"{gone}\" }}")).await;
    assert_begins(
        &rig.send(Message::to_bob()).await,
        &["0 deferred down 4.4.1 "],
    );
    for (script, expected) in [
        (
            "S: 421 4.3.2 too busy\nE",
            "0 deferred down 4.3.2 421 4.3.2 too busy",
        ),
        (
            "S: 554 5.7.1 go away\nE",
            "0 deferred down 4.7.1 554 5.7.1 go away",
        ),
        ("X", "0 deferred down 4.4.2 "),
        ("E", "0 deferred down 4.4.1 "),
        (
            "S: 220 mx\nC: *\nS: 451 not now\nE",
            "0 deferred down 4.0.0 451 not now",
        ),
        ("S: 250 mx\nC: *\nE", "0 deferred down 4.4.2 "),
        ("S: SSH-2.0-OpenSSH\nE", "0 deferred down 4.5.0 "),
    ] {
        let server = Server::play([script]).await;
        let rig = Rig::smarthost(&server, "[timeouts]\ngreeting = \"1s\"\nhello = \"1s\"").await;
        assert_begins(&rig.send(Message::to_bob()).await, &[expected]);
        server.finish().await;
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_is_not_waited_for_for_ever() {
    let group = "C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\n";
    let behind_the_dot = format!("{group}S: 250 ok\nS: 250 ok\nS: 354 go\nB\nE");
    for (silent, expected) in [
        (format!("{group}E"), "0 deferred 4.4.2 "),
        (format!("{group}S: 250 ok\nE"), "0 deferred 4.4.2 "),
        (
            format!("{group}S: 250 ok\nS: 250 ok\nE"),
            "0 deferred 4.4.2 ",
        ),
        (behind_the_dot, "0 in doubt 4.4.2 "),
    ] {
        let server = Server::play([format!("{HELLO}{silent}")]).await;
        let limits = "[timeouts]\nmail = \"100ms\"\nrcpt = \"100ms\"\ndata_start = \"100ms\"\ndata_end = \"100ms\"";
        let rig = Rig::smarthost(&server, limits).await;
        assert_begins(&rig.send(Message::to_bob()).await, &[expected]);
        server.finish().await;
    }
}

#[tokio::test]
async fn what_cannot_be_said_is_not_said() {
    let server = Server::play(Vec::<String>::new()).await;
    let rig = Rig::smarthost(&server, "").await;
    let mut message = Message::new(&["a@b.test\r\nDATA", "a b@c", "", "c@d.test"], *b"x\r\n");
    message.envelope.recipients[3].address_type = "FAX".to_owned();
    assert_begins(
        &rig.send(message).await,
        &[
            "0 failed 5.1.3 ",
            "1 failed 5.1.3 ",
            "2 failed 5.1.3 ",
            "3 left",
        ],
    );
    let mut message = Message::to_bob();
    message.envelope.sender = "a> SIZE=1\r\n@b".to_owned();
    assert_begins(&rig.send(message).await, &["0 failed 5.1.7 "]);
    server.finish().await;
}

#[tokio::test]
async fn only_the_recipients_to_consider_are_sent_to() {
    let server = Server::play([format!("{HELLO}{TAKEN}")]).await;
    let rig = Rig::smarthost(&server, "").await;
    let mut message = Message::new(&["x@b.test", "bob@b.test"], *b"x\r\n");
    message.considered = vec![RecipientIndex(1), RecipientIndex(9)];
    assert_eq!(
        rig.send(message).await,
        ["1 delivered 127.0.0.1: 250 2.0.0 queued"]
    );
    server.finish().await;
}

#[tokio::test]
async fn bare_newlines_are_kept_mended_or_refused() {
    let content = b"a\n.\nb\r\n";
    for (rule, expected) in [
        ("keep", &b"a\n..\nb\r\n.\r\n"[..]),
        ("crlf", b"a\r\n..\r\nb\r\n.\r\n"),
    ] {
        let server = Server::play([format!("{HELLO}{TAKEN}")]).await;
        let rig = Rig::smarthost(&server, &format!("bare_newlines = \"{rule}\"")).await;
        rig.send(Message::new(&["bob@b.test"], *content)).await;
        assert_eq!(server.finish().await, [expected]);
    }
    let server = Server::play(Vec::<String>::new()).await;
    let rig = Rig::smarthost(&server, "bare_newlines = \"refuse\"").await;
    let lines = rig.send(Message::new(&["bob@b.test"], *content)).await;
    assert_begins(&lines, &["0 failed 5.6.0 "]);
}

#[tokio::test]
async fn any_content_arrives_as_it_was() {
    fastrand::seed(11);
    let alphabet: [&[u8]; 5] = [b".", b"\r\n", b"\r\n.", b"words", b"\r\n..\r\n"];
    let contents: Vec<Vec<u8>> = (0..40)
        .map(|round| {
            let length = if round % 10 == 0 { 100_000 } else { 50 };
            let mut content: Vec<u8> = (0..fastrand::usize(..length))
                .flat_map(|_| alphabet[fastrand::usize(..5)].to_vec())
                .collect();
            content.extend_from_slice(b"\r\n");
            content
        })
        .collect();
    let server = Server::play([format!("{HELLO}{}", TAKEN.repeat(contents.len()))]).await;
    let rig = Rig::smarthost(&server, "").await;
    for content in &contents {
        let lines = rig
            .send(Message::new(&["bob@b.test"], content.clone()))
            .await;
        assert_eq!(lines, ["0 delivered 127.0.0.1: 250 2.0.0 queued"]);
    }
    for (sent, received) in contents.iter().zip(server.finish().await) {
        let mut lines: Vec<&[u8]> = received.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(lines.pop(), Some(&b".\r\n"[..]));
        let plain: Vec<u8> = lines
            .into_iter()
            .flat_map(|line| line.strip_prefix(b".").unwrap_or(line).to_vec())
            .collect();
        assert!(plain == *sent);
    }
}

#[tokio::test]
async fn a_sick_smarthost_shows_in_the_status_row() {
    let refused = "S: 421 no\nE";
    let well = format!("{HELLO}{TAKEN}");
    let server = Server::play([refused, refused, refused, refused, &well]).await;
    let rig = Rig::smarthost(&server, "").await;
    for _ in 0..4 {
        assert_eq!(
            rig.send(Message::to_bob()).await,
            ["0 deferred down 4.3.2 421 no"]
        );
    }
    assert_eq!(*rig.told.states.lock().unwrap(), [TransportState::Failure]);
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 delivered 127.0.0.1: 250 2.0.0 queued"]
    );
    assert_eq!(
        *rig.told.states.lock().unwrap(),
        [TransportState::Failure, TransportState::Available]
    );
    server.finish().await;
}

#[tokio::test]
async fn validation_asks_the_smarthost() {
    use pombo_proto::verbs::Validation;
    let server = Server::play([
        "S: 421 no\nE",
        &format!("{HELLO}{TAKEN}C: QUIT\nS: 221 bye"),
    ])
    .await;
    let rig = Rig::smarthost(&server, "").await;
    assert!(matches!(
        rig.transport.validate_state(false).await,
        Validation::Failing(_)
    ));
    assert_eq!(rig.transport.validate_state(true).await, Validation::Ok);
    // And the connection serves the next message.
    assert_eq!(
        rig.send(Message::to_bob()).await,
        ["0 delivered 127.0.0.1: 250 2.0.0 queued"]
    );
    rig.transport.shutdown().await;
    assert_eq!(
        rig.submit(&Arc::new(Message::to_bob())).await,
        SubmitResult::Busy
    );
    server.finish().await;
}
