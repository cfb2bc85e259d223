//! Sessions as they are read: the sequence of commands, and what reaches the spooler.

use pombo_proto::message::{Notify, ReportReturn};

use super::{Rig, config, content, queued};
use crate::provider::{Identity, Received, Transport};

#[tokio::test]
async fn one_message_from_banner_to_quit() {
    let mut rig = Rig::start(config()).await;
    let mut client = rig.client().await;
    client
        .transcript(
            "C: EHLO client.example
             S: 250-mx.example.org
             C: MAIL FROM:<bob@example.net> SIZE=100 BODY=8BITMIME RET=FULL ENVID=E+2B1
             S: 250 2.1.0
             C: RCPT TO:<Ann@Example.ORG> NOTIFY=SUCCESS ORCPT=rfc822;ann+40example.com
             S: 250 2.1.5
             C: DATA
             S: 354",
        )
        .await;
    client.send("Subject: hi\r\n\r\n..dot\r\n.\r\n").await;
    let id = queued(&client.reply().await);
    client.say("QUIT", "221 2.0.0 mx.example.org").await;
    client.closed().await;

    assert_eq!(rig.finished().await, Received::Saved { id, more: false });
    let saved = rig.saved();
    let message = &saved[0];
    assert_eq!(message.sender, "bob@example.net");
    assert_eq!(message.recipients.len(), 1);
    let recipient = &message.recipients[0];
    assert_eq!(recipient.address, "Ann@example.org");
    let success = Notify {
        success: true,
        ..Notify::NEVER
    };
    assert_eq!(recipient.notify, success);
    assert_eq!(
        recipient.original_recipient.as_deref(),
        Some("rfc822;ann@example.com")
    );
    assert_eq!(message.identity, Identity::Issued);
    assert!(message.content.eight_bit && !message.content.smtputf8);
    assert_eq!(message.report_return, ReportReturn::Full);
    assert_eq!(message.envelope_id.as_deref(), Some("E+1"));
    assert_eq!(message.client, "127.0.0.1");
    assert_eq!(content(message), b"Subject: hi\r\n\r\n.dot\r\n");
    let head = String::from_utf8(message.body.to_vec()).unwrap();
    assert!(
        head.starts_with(
            "Received: from client.example ([127.0.0.1])\r\n\tby mx.example.org with ESMTP id "
        ),
        "{head}"
    );
    assert!(
        head.contains("\r\n\tfor <Ann@example.org>;\r\n\t"),
        "{head}"
    );
    rig.at_rest().await;
}

#[tokio::test]
async fn ehlo_names_what_is_offered() {
    let rig = Rig::start(config()).await;
    let mut client = rig.client().await;
    let reply = client
        .say("EHLO client.example", "250-mx.example.org\r\n")
        .await;
    for extension in [
        "PIPELINING",
        "SIZE 52428800",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        "DSN",
    ] {
        let listed = |line: &str| line.get(4..) == Some(extension);
        assert!(reply.lines().any(listed), "{extension} in {reply}");
    }
    assert!(!reply.contains("STARTTLS"));
    client
        .say("HELO client.example", "250 mx.example.org")
        .await;
}

#[tokio::test]
async fn helo_is_plain_smtp_and_the_null_sender_is_taken() {
    let rig = Rig::start(config()).await;
    let mut client = rig.client().await;
    client.say("HELO client.example", "250").await;
    client.say("MAIL FROM:<>", "250").await;
    client.say("RCPT TO:<ann@example.org>", "250").await;
    client.say("RCPT TO:<Postmaster>", "250").await;
    client.say("DATA", "354").await;
    client.send(".\r\n").await;
    queued(&client.reply().await);
    let saved = rig.saved();
    assert_eq!(saved[0].sender, "");
    assert_eq!(saved[0].recipients[1].address, "postmaster@example.org");
    let body = String::from_utf8(saved[0].body.to_vec()).unwrap();
    assert!(body.contains(" with SMTP id "), "{body}");
    assert!(!body.contains("for <"), "{body}");
    assert_eq!(content(&saved[0]), b"");
}

#[tokio::test]
async fn commands_out_of_sequence_are_refused() {
    let rig = Rig::start(config()).await;
    let mut client = rig.client().await;
    client
        .transcript(
            "C: MAIL FROM:<bob@example.net>
             S: 503 5.5.1
             C: RCPT TO:<ann@example.org>
             S: 503 5.5.1
             C: DATA
             S: 503 5.5.1
             C: EHLO client.example
             S: 250
             C: RCPT TO:<ann@example.org>
             S: 503 5.5.1
             C: MAIL FROM:<bob@example.net>
             S: 250
             C: MAIL FROM:<bob@example.net>
             S: 503 5.5.1
             C: DATA
             S: 554 5.5.1
             C: RSET
             S: 250 2.0.0
             C: DATA
             S: 503 5.5.1
             C: STARTTLS
             S: 502 5.5.1
             C: VRFY ann
             S: 252
             C: EXPN staff
             S: 502 5.5.1
             C: HELP
             S: 214
             C: NOOP
             S: 250
             C: WHAT
             S: 500 5.5.2",
        )
        .await;
    client.say("EHLO again.example", "250").await;
    client.message(b"x\r\n").await;
}

#[tokio::test]
async fn ehlo_and_rset_end_the_transaction_and_give_the_permit_back() {
    let mut rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    for end in ["RSET", "EHLO client.example", "HELO client.example"] {
        client.say("MAIL FROM:<bob@example.net>", "250").await;
        client.say("RCPT TO:<ann@example.org>", "250").await;
        // The permit has come once the next command is answered, or it is still on its way and dropped.
        client.say(end, "250").await;
        client.say("DATA", "503").await;
    }
    client.message(b"x\r\n").await;
    while rig.finished().await == Received::Nothing {}
    client.say("QUIT", "221").await;
    rig.at_rest().await;
}

#[tokio::test]
async fn a_pipelined_group_is_answered_in_order() {
    let rig = Rig::start(config()).await;
    let mut client = rig.client().await;
    client
        .send("EHLO client.example\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<ann@example.org>\r\nRCPT TO:<x@other.example>\r\nDATA\r\n")
        .await;
    for start in ["250-mx", "250 2.1.0", "250 2.1.5", "550 5.7.1", "354"] {
        client.expect(start).await;
    }
    // The next message's envelope rides behind the dot.
    client
        .send("one\r\n.\r\nMAIL FROM:<b@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n")
        .await;
    for start in ["250 2.0.0 Ok: queued as", "250 2.1.0", "250 2.1.5", "354"] {
        client.expect(start).await;
    }
    client.send("two\r\n.\r\nQUIT\r\n").await;
    client.expect("250 2.0.0").await;
    client.expect("221").await;
    client.closed().await;
    let contents: Vec<_> = rig.saved().iter().map(content).collect();
    assert_eq!(contents, [b"one\r\n", b"two\r\n"]);
    rig.at_rest().await;
}

#[tokio::test]
async fn a_session_typed_byte_by_byte_is_understood() {
    let rig = Rig::start(config()).await;
    let mut client = rig.client().await;
    let session = "EHLO c\r\nMAIL FROM:<b@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n..x\r\n.\r\nQUIT\r\n";
    for byte in session.bytes() {
        client.send([byte]).await;
    }
    for start in ["250", "250", "250", "354", "250 2.0.0", "221"] {
        client.expect(start).await;
    }
    assert_eq!(rig.only_content(), b".x\r\n");
}

#[tokio::test]
async fn content_is_not_changed_in_any_byte() {
    let rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    let mut sent = b"Subject: x\r\n\r\nnul \0 and \xff\xfe\r\n".to_vec();
    sent.extend_from_slice(&vec![b'y'; 100_000]);
    sent.extend_from_slice(b"\r\n");
    queued(&client.message(&sent).await);
    assert_eq!(rig.only_content(), sent);
    assert!(rig.saved()[0].content.eight_bit);
}

#[tokio::test]
async fn a_large_message_arrives_whole() {
    let rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    let line = [&[b'z'; 70][..], b"\r\n"].concat();
    let sent = line.repeat(100_000);
    queued(&client.message(&sent).await);
    assert!(rig.only_content() == sent);
    client.say("QUIT", "221").await;
    rig.at_rest().await;
}

#[tokio::test]
async fn a_recipient_named_twice_gets_one_copy() {
    let rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    client.say("MAIL FROM:<b@example.net>", "250").await;
    for to in ["ann@example.org", "\"ann\"@EXAMPLE.org", "bob@example.org"] {
        client.say(&format!("RCPT TO:<{to}>"), "250").await;
    }
    client.say("DATA", "354").await;
    client.say("x\r\n.", "250").await;
    let saved = rig.saved();
    let to: Vec<_> = saved[0]
        .recipients
        .iter()
        .map(|r| r.address.as_str())
        .collect();
    assert_eq!(to, ["ann@example.org", "bob@example.org"]);
}

#[tokio::test]
async fn addresses_beyond_ascii_need_smtputf8() {
    let rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    client
        .say("MAIL FROM:<b\u{e4}@example.net>", "553 5.6.7")
        .await;
    client.say("MAIL FROM:<b@example.net>", "250").await;
    client
        .say("RCPT TO:<\u{e4}@example.org>", "553 5.6.7")
        .await;
    client.say("RSET", "250").await;
    client
        .say("MAIL FROM:<b\u{e4}@example.net> SMTPUTF8", "250")
        .await;
    client.say("RCPT TO:<\u{e4}@example.org>", "250").await;
    client.say("DATA", "354").await;
    client.say("x\r\n.", "250").await;
    let saved = rig.saved();
    assert!(saved[0].content.smtputf8);
    let body = String::from_utf8(saved[0].body.to_vec()).unwrap();
    assert!(body.contains(" with UTF8SMTP id "), "{body}");
}

#[tokio::test]
async fn it_takes_no_address_type() {
    let rig = Rig::start(config()).await;
    assert_eq!(
        rig.listener.address_types().types,
        Some(vec![String::new()])
    );
}
