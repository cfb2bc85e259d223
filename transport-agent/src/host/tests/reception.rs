use std::time::Duration;

use bytes::Bytes;
use pombo_proto::{
    frame::decode_message,
    ids::{Correlation, MessageId, Reference},
    link::PublishError,
    message::Body,
    verbs::{SpoolerNotification, StartResult, TransportNotification, Verb},
};

use super::kit::*;
use crate::provider::{Identity, Incoming, Received, SaveError};

const NEW_MAIL: Verb = Verb::SpoolerNotify(SpoolerNotification::NewMail);

fn incoming() -> Incoming {
    let to = vec!["bob@example.net".to_owned()];
    Incoming::new("ann@example.org", to, Bytes::from_static(b"hello\r\n"))
}

/// Asks for one message, without waiting for the answer.
async fn start(spooler: &mut Spooler, world: &World) -> Correlation {
    let correlation = spooler.out.correlate();
    let frame = pombo_proto::frame::Frame::verb(correlation, Verb::StartMessage);
    spooler.push(world, frame).await;
    correlation
}

#[actix::test]
async fn a_reception_in_the_order_of_the_seed() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    for _ in 0..100 {
        world.support().new_mail();
    }
    assert_eq!(spooler.next(&mut world).await, NEW_MAIL);
    let permit = start(&mut spooler, &world).await;
    let (reception, answer) = world.reception().await;
    reception.assign_reference(Reference(9));
    let mut said = spooler.answer(&mut world, permit).await;
    assert_eq!(
        said,
        Verb::StartReference {
            reference: Reference(9)
        }
    );
    let id = reception.save_changes(incoming()).await.unwrap();
    let again = reception.save_changes(incoming()).await;
    assert!(matches!(again, Err(SaveError::Unconfirmed(_))), "{again:?}");
    let published = world.wire.published.lock().unwrap().clone();
    assert_eq!((published.len(), published[0].id), (1, id));
    let message = decode_message(published[0].encoded.clone()).unwrap();
    assert_eq!(message.envelope.source.door, "scripted");
    assert_eq!(message.inline, &b"hello\r\n"[..]);
    answer.send(Received::Saved { id, more: true }).unwrap();
    said = spooler.answer(&mut world, permit).await;
    let result = StartResult::Saved {
        id,
        size: 7,
        more: true,
    };
    assert_eq!(said, Verb::StartReply(result));
    let row = spooler.row(&mut world, |row| row.confirmed == 1).await;
    assert_eq!(row.door, Some(id.issue().unwrap().door));
}

#[actix::test]
async fn nothing_after_all_and_failures_lose_nothing() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let fake = MessageId::derived("x", b"x");
    let failed = Received::Failed("no".to_owned());
    for (received, expected) in [
        (Received::Nothing, StartResult::Nothing),
        (failed, StartResult::Failed("no".to_owned())),
        (
            Received::Saved {
                id: fake,
                more: true,
            },
            StartResult::Nothing,
        ),
    ] {
        let permit = start(&mut spooler, &world).await;
        let (reception, answer) = world.reception().await;
        drop(reception);
        answer.send(received).unwrap();
        let said = spooler.answer(&mut world, permit).await;
        assert_eq!(said, Verb::StartReply(expected));
    }
    let permit = start(&mut spooler, &world).await;
    let (_, answer) = world.reception().await;
    drop(answer);
    let said = spooler.answer(&mut world, permit).await;
    assert_eq!(said, Verb::StartReply(StartResult::Nothing));
}

#[actix::test]
async fn a_cancelled_delivery_is_not_published() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let permit = start(&mut spooler, &world).await;
    let (reception, answer) = world.reception().await;
    reception.assign_reference(Reference(4));
    spooler.answer(&mut world, permit).await;
    let reference = Reference(4);
    let cancel = TransportNotification::CancelReception { reference };
    spooler.notify(&world, cancel).await;
    reception.cancelled().await;
    let refused = reception.save_changes(incoming()).await;
    assert_eq!(refused, Err(SaveError::Cancelled));
    answer.send(Received::Cancelled).unwrap();
    let said = spooler.answer(&mut world, permit).await;
    assert_eq!(said, Verb::StartReply(StartResult::Cancelled));
    assert!(world.wire.published.lock().unwrap().is_empty());
}

#[actix::test]
async fn an_unknown_confirm_is_cleared_by_the_same_id_marked() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let unknown = || Err(PublishError::Unknown("gone".to_owned()));
    let away = Err(PublishError::NotConnected);
    let outcomes = [unknown(), away, Ok(())];
    world.wire.outcomes.lock().unwrap().extend(outcomes);
    start(&mut spooler, &world).await;
    let (reception, _answer) = world.reception().await;
    let id = reception.save_changes(incoming()).await.unwrap();
    let published = world.wire.published.lock().unwrap().clone();
    let marked: Vec<_> = published.iter().map(|it| (it.id, it.marked)).collect();
    assert_eq!(marked, [(id, false), (id, true), (id, true)]);
}

#[actix::test]
async fn what_was_certainly_not_accepted_is_void() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let outcomes = [
        Err(PublishError::NotConnected),
        Err(PublishError::Refused("full".to_owned())),
        Ok(()),
    ];
    world.wire.outcomes.lock().unwrap().extend(outcomes);
    for number in 0..3 {
        start(&mut spooler, &world).await;
        let (reception, _answer) = world.reception().await;
        let saved = reception.save_changes(incoming()).await;
        assert_eq!(saved.is_ok(), number == 2, "{saved:?}");
    }
    let row = spooler.row(&mut world, |row| row.confirmed == 3).await;
    assert_eq!(pombo_proto::door::runs(&row.voided), [(1, 2)]);
}

#[actix::test]
async fn patience_ends_and_says_that_it_is_unknown() {
    let setup = Setup {
        confirm_patience: Duration::from_millis(1),
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let mut spooler = world.spooler().await;
    let unknown = PublishError::Unknown("gone".to_owned());
    world.wire.outcomes.lock().unwrap().push_back(Err(unknown));
    start(&mut spooler, &world).await;
    let (reception, _answer) = world.reception().await;
    let error = reception.save_changes(incoming()).await.unwrap_err();
    assert!(error.to_string().contains("unknown"), "{error}");
    let row = spooler.row(&mut world, |row| row.confirmed == 1).await;
    assert!(row.voided.is_empty());
}

#[actix::test]
async fn limits_are_kept_before_anything_is_written() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let mut nobody = incoming();
    nobody.recipients.clear();
    let mut large = incoming();
    large.body = Bytes::from(vec![0; 1_000_000 + 4_097]);
    let mut no_blobs = incoming();
    no_blobs.body = Bytes::from(vec![0; 101]);
    for (message, expected) in [
        (nobody, SaveError::Recipients(0)),
        (large, SaveError::TooLarge(1_000_000)),
        (no_blobs, SaveError::Blob("there is none".to_owned())),
    ] {
        start(&mut spooler, &world).await;
        let (reception, _answer) = world.reception().await;
        assert_eq!(reception.save_changes(message).await, Err(expected));
    }
    assert!(world.wire.published.lock().unwrap().is_empty());
}

#[actix::test]
async fn a_source_with_an_identity_gives_the_same_id() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        start(&mut spooler, &world).await;
        let (reception, _answer) = world.reception().await;
        let mut message = incoming();
        message.identity = Identity::Derived(b"inode 7".to_vec());
        ids.push(reception.save_changes(message).await.unwrap());
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0], MessageId::derived("scripted", b"inode 7"));
}

#[actix::test]
async fn a_large_body_goes_to_the_blob_store_first() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = pombo_proto::blob::Blobs::directory(directory.path())
        .await
        .unwrap();
    let setup = Setup {
        blobs: Some(blobs.clone()),
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let mut spooler = Spooler::new(world.mine);
    let logon = pombo_proto::verbs::Logon {
        versions: pombo_proto::verbs::VERSIONS,
        spooler: String::new(),
        no_connect: false,
        no_inbound: false,
        no_outbound: true,
        blobs: blobs.identity().to_owned(),
    };
    spooler.logon_with(&mut world, logon).await.unwrap();
    let refused = Err(PublishError::Refused("full".to_owned()));
    world.wire.outcomes.lock().unwrap().push_back(refused);
    for kept in [false, true] {
        start(&mut spooler, &world).await;
        let (reception, _answer) = world.reception().await;
        let mut message = incoming();
        message.body = Bytes::from(vec![b'y'; 5_000]);
        let saved = reception.save_changes(message).await;
        assert_eq!(saved.is_ok(), kept);
        let published = world
            .wire
            .published
            .lock()
            .unwrap()
            .last()
            .cloned()
            .unwrap();
        let message = decode_message(published.encoded).unwrap();
        assert_eq!(message.envelope.body, Body::Blob { size: 5_000 });
        let body = blobs.get(published.id, 10_000).await;
        assert_eq!(body.is_ok(), kept, "{body:?}");
    }
}

#[actix::test]
async fn news_that_a_session_took_to_its_grave_are_told_to_another() {
    let mut world = World::new(Setup::default()).await;
    let mut first = world.spooler().await;
    let mut second = world.spooler().await;
    world.support().new_mail();
    assert_eq!(first.next(&mut world).await, NEW_MAIL);
    first.say(&world, Verb::TransportLogoff).await;
    assert_eq!(second.next(&mut world).await, NEW_MAIL);
}

#[actix::test]
async fn mail_before_any_session_is_announced_to_the_first() {
    let mut world = World::new(Setup::default()).await;
    world.support().new_mail();
    let mut spooler = Spooler::new(world.mine);
    spooler.logon(&mut world).await.unwrap();
    spooler
        .notify(&world, TransportNotification::BeginInbound)
        .await;
    assert_eq!(spooler.next(&mut world).await, NEW_MAIL);
}

#[actix::test]
async fn permits_stand_ready_go_back_and_are_given_back_at_the_end() {
    let setup = Setup {
        takes_permits: true,
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let mut spooler = world.spooler().await;
    assert_eq!(spooler.next(&mut world).await, NEW_MAIL);
    let first = start(&mut spooler, &world).await;
    let second = start(&mut spooler, &world).await;
    // Unused, it stands ready again.
    for _ in 0..5 {
        let reception = world.support().permit(LONG).await.unwrap();
        reception.finished(Received::Nothing);
    }
    let reception = world.support().permit(LONG).await.unwrap();
    let id = reception.save_changes(incoming()).await.unwrap();
    reception.finished(Received::Saved { id, more: false });
    let mut replies = Vec::new();
    while replies.is_empty() {
        let (correlation, verb) = spooler.next_with(&mut world).await;
        if let Verb::StartReply(result) = verb {
            replies.push((correlation, result));
        }
    }
    let more = StartResult::Saved {
        id,
        size: 7,
        more: true,
    };
    assert_eq!(replies[0].1, more, "the window stands");
    let other = if replies[0].0 == first { second } else { first };
    spooler
        .notify(&world, TransportNotification::EndInbound)
        .await;
    let said = spooler.answer(&mut world, other).await;
    assert_eq!(said, Verb::StartReply(StartResult::Nothing));
}

#[actix::test]
async fn a_door_waits_for_a_permit_and_gives_up() {
    let setup = Setup {
        takes_permits: true,
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let none = world.support().permit(Duration::from_millis(1)).await;
    assert!(none.is_none());
    let mut spooler = world.spooler().await;
    let waiting = tokio::spawn(world.support().permit(LONG));
    assert_eq!(spooler.next(&mut world).await, NEW_MAIL);
    start(&mut spooler, &world).await;
    let reception = waiting.await.unwrap().unwrap();
    spooler.say(&world, Verb::TransportLogoff).await;
    reception.cancelled().await;
    let refused = reception.save_changes(incoming()).await;
    assert_eq!(refused, Err(SaveError::Cancelled));
}
