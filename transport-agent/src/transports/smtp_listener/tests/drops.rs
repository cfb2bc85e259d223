//! Clients that go away at every stage: nothing is saved that was not complete, and everything comes back.

use super::{Rig, config, queued};
use crate::provider::Received;

#[tokio::test]
async fn a_client_may_go_at_any_stage() {
    let stages = [
        "",
        "EH",
        "EHLO c\r\n",
        "EHLO c\r\nMAIL FROM:<b@example.net>\r\n",
        "EHLO c\r\nMAIL FROM:<b@example.net>\r\nRCPT TO:<ann@example.org>\r\n",
        "EHLO c\r\nMAIL FROM:<b@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n",
        "EHLO c\r\nMAIL FROM:<b@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nSubject: x\r\n",
        "EHLO c\r\nMAIL FROM:<b@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nx\r\n.",
        "EHLO c\r\nMAIL FROM:<b@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nx\r\n.\r",
    ];
    let rig = Rig::start(config()).await;
    for stage in stages {
        let mut client = rig.client().await;
        client.send(stage).await;
        drop(client);
        rig.at_rest().await;
    }
    assert_eq!(rig.saved().len(), 0);
    let mut client = rig.greeted().await;
    queued(&client.message(b"x\r\n").await);
}

#[tokio::test]
async fn going_away_within_data_finishes_the_reception_with_nothing() {
    let mut rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    client.envelope().await;
    client.send("half").await;
    drop(client);
    assert_eq!(rig.finished().await, Received::Nothing);
    rig.at_rest().await;
}

#[tokio::test]
async fn rubbish_from_the_network_leaves_the_listener_alive() {
    fastrand::seed(21);
    let rig = Rig::start(config()).await;
    let words: [&[u8]; 12] = [
        b"EHLO c\r\n",
        b"MAIL FROM:<b@example.net>\r\n",
        b"RCPT TO:<ann@example.org>\r\n",
        b"DATA\r\n",
        b".\r\n",
        b"\r\n.\r\n",
        b"RSET\r\n",
        b"\0\xff\r\n",
        b"NOOP\r\n",
        b"BDAT 5 LAST\r\nhello",
        b"\r",
        b"x",
    ];
    for _ in 0..200 {
        let mut client = rig.client().await;
        let mut said = Vec::new();
        for _ in 0..fastrand::usize(1..40) {
            said.extend_from_slice(words[fastrand::usize(..words.len())]);
        }
        // The session may be over before all is said.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, &said).await;
    }
    rig.at_rest().await;
    let mut client = rig.greeted().await;
    queued(&client.message(b"x\r\n").await);
}
