//! A client that lost the 250 and sends the same again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use pombo_proto::{
    ids::MessageId,
    message::{Recipient, ReportReturn},
};
use tokio::sync::Semaphore;

use super::{
    super::{
        config::Config,
        repeats::{Fate, Repeats, Trail},
    },
    Rig, Save, config, queued, until,
};
use crate::provider::Received;

const MESSAGE: &[u8] = b"Subject: once\r\n\r\nplease\r\n";

/// Sends a message and goes away when the server has saved it, without having read the reply.
async fn lose_the_reply(rig: &mut Rig, content: &[u8]) -> MessageId {
    let mut client = rig.greeted().await;
    client.envelope().await;
    client.send([content, b".\r\n"].concat()).await;
    let Received::Saved { id, .. } = rig.finished().await else {
        panic!("not saved");
    };
    drop(client);
    rig.at_rest().await;
    id
}

#[tokio::test]
async fn the_same_message_again_gets_the_same_id_and_is_not_saved_again() {
    let mut rig = Rig::start(config()).await;
    let id = lose_the_reply(&mut rig, MESSAGE).await;
    let mut client = rig.greeted().await;
    assert_eq!(queued(&client.message(MESSAGE).await), id);
    assert_eq!(rig.finished().await, Received::Nothing);
    assert_eq!(rig.saved().len(), 1);
    // Now the client knows. What it sends from here on it means.
    assert_ne!(queued(&client.message(MESSAGE).await), id);
    assert_eq!(rig.saved().len(), 2);
}

#[tokio::test]
async fn another_content_sender_or_recipient_is_another_message() {
    let mut rig = Rig::start(config()).await;
    let id = lose_the_reply(&mut rig, MESSAGE).await;
    let mut client = rig.greeted().await;
    assert_ne!(
        queued(&client.message(b"Subject: once\r\n\r\nPlease\r\n").await),
        id
    );
    for (from, to) in [
        ("MAIL FROM:<eve@example.net>", "RCPT TO:<ann@example.org>"),
        ("MAIL FROM:<bob@example.net>", "RCPT TO:<eve@example.org>"),
        (
            "MAIL FROM:<bob@example.net>",
            "RCPT TO:<ann@example.org> NOTIFY=NEVER",
        ),
    ] {
        client.say(from, "250").await;
        client.say(to, "250").await;
        client.say("DATA", "354").await;
        client.send([MESSAGE, b".\r\n"].concat()).await;
        assert_ne!(queued(&client.reply().await), id);
    }
    assert_eq!(rig.saved().len(), 5);
}

#[tokio::test]
async fn a_client_that_read_the_reply_may_send_the_same_again() {
    let rig = Rig::start(config()).await;
    for _ in 0..3 {
        let mut client = rig.greeted().await;
        queued(&client.message(MESSAGE).await);
        client.say("QUIT", "221").await;
    }
    rig.at_rest().await;
    assert_eq!(rig.saved().len(), 3);
    assert_eq!(rig.listener.shared().unwrap().repeats.len(), 0);
}

#[tokio::test]
async fn healthy_connections_may_send_the_same_side_by_side() {
    let rig = Rig::start(config()).await;
    let (mut one, mut two) = (rig.greeted().await, rig.greeted().await);
    assert_ne!(
        queued(&one.message(MESSAGE).await),
        queued(&two.message(MESSAGE).await)
    );
    assert_eq!(rig.saved().len(), 2);
}

#[tokio::test]
async fn a_silent_client_is_in_doubt_until_it_speaks() {
    let rig = Rig::start(config()).await;
    let shared = rig.listener.shared().unwrap();
    let mut client = rig.greeted().await;
    queued(&client.message(MESSAGE).await);
    until("the doubt", || shared.repeats.len() == 1).await;
    // Its bytes are not kept for that.
    assert_eq!(shared.budget.used(), 0);
    client.say("NOOP", "250").await;
    assert_eq!(shared.repeats.len(), 0);
}

#[tokio::test]
async fn a_repeat_waits_for_the_first_that_is_still_being_saved() {
    let mut rig = Rig::start(config()).await;
    let gate = Arc::new(Semaphore::new(0));
    rig.save(Save::Hold(Arc::clone(&gate)));
    let mut first = rig.greeted().await;
    first.envelope().await;
    first.send([MESSAGE, b".\r\n"].concat()).await;
    drop(first);
    let shared = rig.listener.shared().unwrap();
    until("the first to be written down", || shared.repeats.len() == 1).await;
    let mut second = rig.greeted().await;
    second.envelope().await;
    second.send([MESSAGE, b".\r\n"].concat()).await;
    gate.add_permits(1);
    let id = queued(&second.reply().await);
    let mut ended = [rig.finished().await, rig.finished().await];
    ended.sort_by_key(|received| matches!(received, Received::Nothing));
    assert_eq!(
        ended,
        [Received::Saved { id, more: false }, Received::Nothing]
    );
    assert_eq!(rig.saved().len(), 1);
}

#[tokio::test]
async fn a_repeat_is_saved_itself_when_the_first_could_not_be() {
    let mut rig = Rig::start(config()).await;
    let gate = Arc::new(Semaphore::new(0));
    rig.save(Save::Hold(Arc::clone(&gate)));
    let mut first = rig.greeted().await;
    first.envelope().await;
    first.send([MESSAGE, b".\r\n"].concat()).await;
    drop(first);
    let shared = rig.listener.shared().unwrap();
    until("the first to be written down", || shared.repeats.len() == 1).await;
    rig.save(Save::Ok);
    let mut second = rig.greeted().await;
    second.envelope().await;
    second.send([MESSAGE, b".\r\n"].concat()).await;
    gate.close();
    assert!(matches!(rig.finished().await, Received::Failed(_)));
    let id = queued(&second.reply().await);
    assert_eq!(rig.finished().await, Received::Saved { id, more: false });
}

#[tokio::test]
async fn it_can_be_turned_off() {
    let mut rig = Rig::start(Config {
        repeat_window: Duration::ZERO,
        ..config()
    })
    .await;
    let id = lose_the_reply(&mut rig, MESSAGE).await;
    let mut client = rig.greeted().await;
    assert_ne!(queued(&client.message(MESSAGE).await), id);
}

fn trail(number: u32) -> Trail {
    Trail::new(
        "192.0.2.1".parse().unwrap(),
        "b@example.net",
        &[Recipient::smtp("ann@example.org")],
        ReportReturn::Headers,
        None,
        Bytes::from(number.to_be_bytes().repeat(100_000)),
    )
}

#[tokio::test]
async fn the_table_forgets_by_age_and_by_number() {
    let repeats = Repeats::new(Duration::from_secs(600), 3);
    let id = MessageId::derived("x", b"x");
    let start = Instant::now();
    let mut digests = Vec::new();
    for number in 0..5 {
        let trail = trail(number);
        let (digest, at) = (
            trail.digest().await,
            start + Duration::from_secs(number.into()),
        );
        repeats.insert(trail.outline(), digest, Fate::Saved(id), at);
        digests.push(digest);
    }
    assert_eq!(repeats.len(), 3);
    let known = |after: u64| {
        let now = start + Duration::from_secs(after);
        digests
            .iter()
            .filter(|digest| repeats.find(digest, now).is_some())
            .count()
    };
    assert_eq!(known(5), 3);
    assert_eq!(known(603), 1);
    assert_eq!(known(604), 0);
    assert!(!repeats.may_know(trail(4).outline()));
}

#[tokio::test]
async fn an_old_ticket_does_not_forget_a_newer_entry() {
    let repeats = Repeats::new(Duration::from_secs(600), 3);
    let (id, now, trail) = (MessageId::derived("x", b"x"), Instant::now(), trail(1));
    let digest = trail.digest().await;
    let old = repeats.insert(trail.outline(), digest, Fate::Saved(id), now);
    let new = repeats.insert(trail.outline(), digest, Fate::Saved(id), now);
    repeats.forget(old);
    assert_eq!(repeats.len(), 1);
    repeats.forget(new);
    assert_eq!(repeats.len(), 0);
    assert!(!repeats.may_know(trail.outline()));
}
