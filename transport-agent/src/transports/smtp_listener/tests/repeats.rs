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
        repeats::{Fate, Repeats, Trail, Windows},
    },
    Rig, Save, config, queued, until,
};
use crate::provider::{Identity, Received, SaveError};

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

/// Its client goes away while it is being saved, which takes long.
async fn goes_away_while_it_is_saved(rig: &Rig) {
    let mut first = rig.greeted().await;
    first.envelope().await;
    first.send([MESSAGE, b".\r\n"].concat()).await;
    drop(first);
    let shared = rig.listener.shared().unwrap();
    until("the first to be written down", || shared.repeats.len() == 1).await;
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
    goes_away_while_it_is_saved(&rig).await;
    let mut second = rig.greeted().await;
    second.envelope().await;
    second.send([MESSAGE, b".\r\n"].concat()).await;
    // It waits for the first one by then, and does not find it saved.
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.add_permits(1);
    let id = queued(&second.reply().await);
    let mut ended = [rig.finished().await, rig.finished().await];
    ended.sort_by_key(|received| matches!(received, Received::Nothing));
    assert_eq!(
        ended,
        [Received::Saved { id, more: false }, Received::Nothing]
    );
    assert_eq!(rig.saved().len(), 1);
    // Now its client knows. What it sends from here on it means.
    rig.save(Save::Ok);
    assert_ne!(queued(&second.message(MESSAGE).await), id);
    assert_eq!(rig.saved().len(), 2);
}

#[tokio::test]
async fn a_repeat_is_saved_itself_when_the_first_could_not_be() {
    let mut rig = Rig::start(config()).await;
    let gate = Arc::new(Semaphore::new(0));
    rig.save(Save::Hold(Arc::clone(&gate)));
    goes_away_while_it_is_saved(&rig).await;
    rig.save(Save::Ok);
    let mut second = rig.greeted().await;
    second.envelope().await;
    second.send([MESSAGE, b".\r\n"].concat()).await;
    gate.close();
    assert!(matches!(rig.finished().await, Received::Failed(_)));
    let id = queued(&second.reply().await);
    assert_eq!(rig.finished().await, Received::Saved { id, more: false });
}

/// Nobody knows whether the first one is there.
fn unclear(id: MessageId) -> SaveError {
    let why = "no confirm in time".to_owned();
    SaveError::Unclear { id, why }
}

async fn refused(rig: &Rig, content: &[u8]) {
    let mut client = rig.greeted().await;
    client.envelope().await;
    client.send([content, b".\r\n"].concat()).await;
    assert!(client.reply().await.starts_with("451 4.3.0"));
    client.say("QUIT", "221").await;
}

#[tokio::test]
async fn what_may_be_there_is_published_again_under_its_id_and_to_the_byte() {
    let rig = Rig::start(config()).await;
    let id = MessageId::derived("x", b"x");
    let tried = |n: usize| rig.tried()[n].clone();
    rig.save(Save::Fail(unclear(id)));
    refused(&rig, MESSAGE).await;
    refused(&rig, MESSAGE).await;
    assert_eq!(tried(0).identity, Identity::Issued);
    assert_eq!(tried(1).identity, Identity::Again(id));
    // What fails before it is published leaves the doubt as it was.
    rig.save(Save::Fail(SaveError::Cancelled));
    let mut client = rig.greeted().await;
    client.envelope().await;
    client.send([MESSAGE, b".\r\n"].concat()).await;
    assert!(client.reply().await.starts_with("451 4.3.2"));
    rig.save(Save::Ok);
    let mut client = rig.greeted().await;
    assert_eq!(queued(&client.message(MESSAGE).await), id);
    assert_eq!(tried(3).identity, Identity::Again(id));
    assert_eq!(tried(3).body, tried(0).body);
    assert_eq!(rig.listener.shared().unwrap().budget.used(), 0);
    // Now it is known.
    client.say("NOOP", "250").await;
    assert_ne!(queued(&client.message(MESSAGE).await), id);
}

#[tokio::test]
async fn a_repeat_learns_that_the_first_became_unclear_while_it_waited() {
    let mut rig = Rig::start(config()).await;
    let id = MessageId::derived("x", b"x");
    let gate = Arc::new(Semaphore::new(0));
    rig.save(Save::HoldAndFail(Arc::clone(&gate), unclear(id)));
    goes_away_while_it_is_saved(&rig).await;
    rig.save(Save::Ok);
    let mut second = rig.greeted().await;
    second.envelope().await;
    second.send([MESSAGE, b".\r\n"].concat()).await;
    gate.add_permits(1);
    assert_eq!(queued(&second.reply().await), id);
    assert!(matches!(rig.finished().await, Received::Failed(_)));
    assert_eq!(rig.tried()[1].identity, Identity::Again(id));
}

#[tokio::test]
async fn it_can_be_turned_off() {
    let mut rig = Rig::start(Config {
        repeat_window: Duration::ZERO,
        unclear_window: Duration::ZERO,
        ..config()
    })
    .await;
    let id = lose_the_reply(&mut rig, MESSAGE).await;
    let mut client = rig.greeted().await;
    assert_ne!(queued(&client.message(MESSAGE).await), id);
}

#[test]
fn windows_beyond_a_day_are_refused() {
    let day = Duration::from_secs(86_400);
    let (mut long, mut longer) = (config(), config());
    (long.repeat_window, long.unclear_window) = (day, day);
    assert_eq!(long.check(), Ok(()));
    longer.unclear_window = Duration::MAX;
    let refused = longer.check().unwrap_err().to_string();
    assert!(refused.contains("unclear_window"), "{refused}");
    long.repeat_window += Duration::from_secs(1);
    let refused = long.check().unwrap_err().to_string();
    assert!(refused.contains("repeat_window"), "{refused}");
}

const WINDOWS: Windows = Windows {
    unseen: Duration::from_secs(600),
    unclear: Duration::from_secs(3_600),
};

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
    let repeats = Repeats::new(WINDOWS, 3);
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
async fn what_is_unclear_is_remembered_longer_and_outlives_what_came_later() {
    let repeats = Repeats::new(WINDOWS, 2);
    let (id, start) = (MessageId::derived("x", b"x"), Instant::now());
    let mut digests = Vec::new();
    let fates = [
        Fate::Unclear(id, Bytes::new()),
        Fate::Saved(id),
        Fate::Saved(id),
    ];
    for (number, fate) in fates.into_iter().enumerate() {
        let trail = trail(number as u32);
        let digest = trail.digest().await;
        let at = start + Duration::from_secs(number as u64);
        repeats.insert(trail.outline(), digest, fate, at);
        digests.push(digest);
    }
    let known = |after: u64| {
        let now = start + Duration::from_secs(after);
        [0, 1, 2].map(|n: usize| repeats.find(&digests[n], now).is_some())
    };
    assert_eq!(known(3), [true, false, true]);
    assert_eq!(known(602), [true, false, false]);
    assert_eq!(known(3_600), [false; 3]);
}

#[tokio::test]
async fn an_old_ticket_does_not_forget_a_newer_entry() {
    let repeats = Repeats::new(WINDOWS, 3);
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
