use pombo_proto::{
    frame::encode_message,
    ids::{RecipientIndex, Reference},
    message::Body,
    outcome::{EndMessageFlag, RecipientStatus, SubmitResult},
    properties::{PR_RESPONSIBILITY, PR_SUBJECT, PropValue, Property},
    verbs::{AdoptAnswer, Refusal, TransportNotification, Verb},
};

use super::kit::*;

#[actix::test]
async fn a_submission_in_the_order_of_the_seed() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let message = message(2);
    let (id, fence) = (message.envelope.id, pombo_proto::ids::Fence(0));
    spooler.submit(&world, &message, 0).await;
    let (submission, answer) = world.submission().await;
    assert_eq!(submission.recipients().count(), 2);
    assert_eq!(submission.body().await.unwrap(), message.inline);
    submission.assign_reference(Reference(77));
    submission.assign_reference(Reference(78));
    let status = match delivered(0).outcome {
        pombo_proto::outcome::Outcome::Delivered(it) => RecipientStatus::Delivered(it),
        _ => unreachable!(),
    };
    submission.status_recips(vec![
        (RecipientIndex(0), status.clone()),
        (RecipientIndex(9), status.clone()),
    ]);
    let reference = Reference(77);
    let said = spooler.next(&mut world).await;
    assert_eq!(
        said,
        Verb::Reference {
            id,
            fence,
            reference
        }
    );
    let recipients = vec![(RecipientIndex(0), status)];
    let said = spooler.next(&mut world).await;
    assert_eq!(
        said,
        Verb::StatusRecips {
            id,
            fence,
            recipients
        }
    );
    let stray = delivered(5);
    answer
        .send(SubmitResult::Ok(vec![delivered(0), delivered(1), stray]))
        .unwrap();
    let result = Ok(SubmitResult::Ok(vec![delivered(0), delivered(1)]));
    let said = spooler.next(&mut world).await;
    assert_eq!(said, Verb::SubmitReply { id, fence, result });
    let end = Verb::EndMessage {
        id,
        fence,
        reference,
    };
    spooler.say(&world, end).await;
    let Call::End(ended, answer) = world.call().await else {
        panic!("EndMessage was called")
    };
    assert_eq!((ended.id, ended.reference), (id, reference));
    assert_eq!(ended.suggested, EndMessageFlag::Sent);
    answer.send(EndMessageFlag::ResendLater).unwrap();
    let result = Ok(EndMessageFlag::ResendLater);
    let said = spooler.next(&mut world).await;
    assert_eq!(said, Verb::EndReply { id, fence, result });
    let row = spooler.row(&mut world, |row| row.in_flight == 1).await;
    assert_eq!(row.credit, 10);
    spooler
        .say(&world, Verb::Settled(vec![tenancy(id, 0)]))
        .await;
    spooler.row(&mut world, |row| row.in_flight == 0).await;
}

#[actix::test]
async fn a_short_body_does_not_keep_ten_thousand_recipients_and_a_long_one_is_not_copied() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let long = vec![b'x'; 32 * 1024];
    let size = long.len() as u64;
    let long = encode_message(envelope(1, Body::Inline { size }), &long);
    for (message, shared) in [(message(10_000), false), (long, true)] {
        spooler.submit(&world, &message, 0).await;
        let (submission, _answer) = world.submission().await;
        let body = submission.body().await.unwrap();
        assert_eq!(body, message.inline);
        let within = message.encoded.as_ptr_range().contains(&body.as_ptr());
        assert_eq!(within, shared);
    }
}

#[actix::test]
async fn a_cancel_reaches_the_transport_and_a_stale_one_does_not() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let message = message(1);
    let id = message.envelope.id;
    spooler.submit(&world, &message, 3).await;
    let (submission, answer) = world.submission().await;
    let cancel = |fence| TransportNotification::CancelMessage {
        message: tenancy(id, fence),
        reference: Reference(0),
        abort_deferred: false,
    };
    spooler.notify(&world, cancel(2)).await;
    assert!(!submission.is_cancelled() && submission.may_finish().await);
    spooler.notify(&world, cancel(3)).await;
    submission.cancelled().await;
    assert!(!submission.may_finish().await);
    answer.send(SubmitResult::Cancelled(Vec::new())).unwrap();
    let said = spooler.next(&mut world).await;
    let ok = matches!(
        &said,
        Verb::SubmitReply {
            result: Ok(SubmitResult::Cancelled(_)),
            ..
        }
    );
    assert!(ok, "{said:?}");
}

#[actix::test]
async fn a_panic_is_a_temporary_failure_of_that_message_alone() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let (first, second) = (message(1), message(1));
    spooler.submit(&world, &first, 0).await;
    spooler.submit(&world, &second, 0).await;
    let (one, answer_one) = world.submission().await;
    let (_, answer_two) = world.submission().await;
    let panicked = one.id();
    drop(answer_one);
    answer_two.send(SubmitResult::Busy).unwrap();
    for _ in 0..2 {
        let Verb::SubmitReply { id, result, .. } = spooler.next(&mut world).await else {
            panic!("a reply")
        };
        match result.unwrap() {
            SubmitResult::Wait(..) => assert_eq!(id, panicked),
            SubmitResult::Busy => assert_ne!(id, panicked),
            other => panic!("{other:?}"),
        }
    }
}

#[actix::test]
async fn a_panic_behind_the_point_of_no_return_leaves_doubt_unless_the_spooler_is_too_old() {
    use pombo_proto::outcome::Outcome;
    for (newest, doubts) in [(1, false), (2, true)] {
        let mut world = World::new(Setup::default()).await;
        let mut spooler = Spooler::new(world.mine);
        let logon = pombo_proto::verbs::Logon {
            versions: pombo_proto::verbs::VersionRange {
                min: 1,
                max: newest,
            },
            spooler: String::new(),
            no_connect: false,
            no_inbound: true,
            no_outbound: false,
            blobs: String::new(),
        };
        spooler.logon_with(&mut world, logon).await.unwrap();
        let begin = TransportNotification::BeginOutbound;
        spooler.notify(&world, begin).await;
        // Its row is answered: it has a right to send.
        spooler.row(&mut world, |row| row.outbound.enabled).await;
        let message = message(2);
        spooler.submit(&world, &message, 0).await;
        let (submission, answer) = world.submission().await;
        assert!(submission.may_finish().await);
        drop(answer);
        let Verb::Reference { .. } = spooler.next(&mut world).await else {
            panic!("EndMessage needs one")
        };
        let Verb::SubmitReply { result, .. } = spooler.next(&mut world).await else {
            panic!("a reply")
        };
        let Ok(SubmitResult::Ok(outcomes)) = result else {
            panic!("{result:?}")
        };
        assert_eq!(outcomes.len(), 2);
        for it in outcomes {
            let in_doubt = matches!(it.outcome, Outcome::InDoubt(_));
            let deferred = matches!(it.outcome, Outcome::Deferred { .. });
            assert_eq!((in_doubt, deferred), (doubts, !doubts));
        }
    }
}

#[actix::test]
async fn another_spooler_adopts_what_the_first_left() {
    let mut world = World::new(Setup::default()).await;
    let mut first = world.spooler().await;
    let mut second = world.spooler().await;
    let message = message(1);
    let id = message.envelope.id;
    first.submit(&world, &message, 0).await;
    let (submission, answer) = world.submission().await;
    submission.assign_reference(Reference(5));
    first.say(&world, Verb::TransportLogoff).await;
    let adopt = |fence| Verb::Adopt(vec![tenancy(id, fence)]);
    let answered = |verb| match verb {
        Verb::AdoptReply(mut answers) => answers.remove(0).answer,
        other => panic!("{other:?}"),
    };
    let said = answered(second.ask(&mut world, adopt(1)).await);
    assert_eq!(said, AdoptAnswer::UnderWay);
    let row = second
        .row(&mut world, |row| !row.unsettled.is_empty())
        .await;
    assert_eq!(row.unsettled, [tenancy(id, 1)]);
    let result = SubmitResult::Ok(vec![delivered(0)]);
    answer.send(result.clone()).unwrap();
    let done = loop {
        match answered(second.ask(&mut world, adopt(1)).await) {
            AdoptAnswer::UnderWay => {}
            other => break other,
        }
    };
    let expected = AdoptAnswer::Done {
        reference: Reference(5),
        result,
        statuses: Vec::new(),
        ended: None,
    };
    assert_eq!(done, expected);
    let end = Verb::EndMessage {
        id,
        fence: pombo_proto::ids::Fence(1),
        reference: Reference(5),
    };
    second.say(&world, end).await;
    drop(world.call().await);
    let said = second.next(&mut world).await;
    let sent = matches!(
        &said,
        Verb::EndReply {
            result: Ok(EndMessageFlag::Sent),
            ..
        }
    );
    assert!(sent, "{said:?}");
    // The first holder's fence is refused from now on.
    let mut third = world.spooler().await;
    third.submit(&world, &message, 0).await;
    let said = third.next(&mut world).await;
    let refused = matches!(
        &said,
        Verb::SubmitReply {
            result: Err(Refusal::Fenced),
            ..
        }
    );
    assert!(refused, "{said:?}");
    second
        .say(&world, Verb::Settled(vec![tenancy(id, 1)]))
        .await;
    second.row(&mut world, |row| row.in_flight == 0).await;
}

#[actix::test]
async fn what_is_sent_when_the_link_goes_down_is_kept() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let message = message(1);
    spooler.submit(&world, &message, 0).await;
    let (_, answer) = world.submission().await;
    world
        .linked(pombo_proto::link::Event::Down("gone".to_owned()))
        .await;
    answer.send(SubmitResult::Ok(vec![delivered(0)])).unwrap();
    world.up().await;
    let mut spooler = world.spooler().await;
    let adopt = Verb::Adopt(vec![tenancy(message.envelope.id, 1)]);
    loop {
        let Verb::AdoptReply(answers) = spooler.ask(&mut world, adopt.clone()).await else {
            panic!("an answer")
        };
        match &answers[0].answer {
            AdoptAnswer::UnderWay => {}
            AdoptAnswer::Done { reference, .. } => {
                assert!(*reference >= Reference::FIRST, "assigned by the host");
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[actix::test]
async fn credit_runs_out_and_comes_back() {
    let setup = Setup {
        capacity: 1,
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let mut spooler = world.spooler().await;
    let (first, second) = (message(1), message(1));
    spooler.submit(&world, &first, 0).await;
    spooler.submit(&world, &second, 0).await;
    let said = spooler.next(&mut world).await;
    let refused = matches!(
        &said,
        Verb::SubmitReply {
            result: Err(Refusal::Closed),
            ..
        }
    );
    assert!(refused, "{said:?}");
    let (_, answer) = world.submission().await;
    answer.send(SubmitResult::Busy).unwrap();
    spooler.next(&mut world).await;
    let settled = vec![tenancy(first.envelope.id, 0)];
    spooler.say(&world, Verb::Settled(settled)).await;
    spooler.submit(&world, &second, 0).await;
    world.submission().await;
}

#[actix::test]
async fn what_cannot_be_read_is_refused() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let good = message(1);
    let mut cut = good.clone();
    cut.encoded = cut.encoded.slice(..cut.encoded.len() - 1);
    let mut none = message(1);
    std::sync::Arc::make_mut(&mut none.envelope)
        .recipients
        .clear();
    let away = encode_message(envelope(1, Body::Blob { size: 10 }), &[]);
    for bad in [&cut, &none, &away] {
        spooler.submit(&world, bad, 0).await;
        if bad.envelope.id == away.envelope.id {
            let (submission, answer) = world.submission().await;
            assert!(submission.body().await.is_err());
            answer.send(SubmitResult::Busy).unwrap();
        }
        let said = spooler.next(&mut world).await;
        let refused = matches!(
            &said,
            Verb::SubmitReply {
                result: Err(Refusal::Unreadable),
                ..
            }
        );
        assert!(refused, "{said:?}");
    }
    spooler.row(&mut world, |row| row.in_flight == 0).await;
}

#[actix::test]
async fn only_transmittable_properties_are_seen() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let property = |tag| Property {
        tag,
        value: PropValue::Boolean(true),
    };
    let mut envelope = envelope(1, Body::Inline { size: 0 });
    envelope.properties = vec![property(PR_RESPONSIBILITY), property(PR_SUBJECT)];
    spooler
        .submit(&world, &encode_message(envelope, &[]), 0)
        .await;
    let (submission, _answer) = world.submission().await;
    assert_eq!(submission.envelope().properties, [property(PR_SUBJECT)]);
}

#[actix::test]
async fn a_large_body_comes_from_the_blob_store() {
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
    let refused = spooler.logon(&mut world).await.unwrap_err();
    let other = pombo_proto::verbs::LogonError::Blobs(blobs.identity().to_owned());
    assert_eq!(refused, other);
    let mut spooler = Spooler::new(world.mine);
    let logon = pombo_proto::verbs::Logon {
        versions: pombo_proto::verbs::VERSIONS,
        spooler: String::new(),
        no_connect: false,
        no_inbound: true,
        no_outbound: false,
        blobs: blobs.identity().to_owned(),
    };
    spooler.logon_with(&mut world, logon).await.unwrap();
    let body = bytes::Bytes::from(vec![b'x'; 5_000]);
    let message = encode_message(envelope(1, Body::Blob { size: 5_000 }), &[]);
    blobs.put(message.envelope.id, body.clone()).await.unwrap();
    spooler.submit(&world, &message, 0).await;
    let (submission, _answer) = world.submission().await;
    assert_eq!(submission.body().await.unwrap(), body);
}

#[actix::test]
async fn without_answered_rows_nothing_is_finished() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = Spooler::new(world.mine);
    spooler.answers = false;
    spooler.logon(&mut world).await.unwrap();
    spooler
        .notify(&world, TransportNotification::BeginOutbound)
        .await;
    spooler.submit(&world, &message(1), 0).await;
    let (submission, _answer) = world.submission().await;
    assert!(!submission.may_finish().await);
    let row = spooler.row(&mut world, |row| row.outbound.enabled).await;
    spooler
        .say(&world, Verb::StatusAnswer { row: row.row })
        .await;
    assert!(submission.may_finish().await);
}

#[actix::test]
async fn where_doubt_is_held_the_dot_waits_for_a_go() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    spooler.say(&world, Verb::AskAtTheDot).await;
    let message = message(1);
    let asked = tenancy(message.envelope.id, 3);
    spooler.submit(&world, &message, 3).await;
    let (submission, _answer) = world.submission().await;
    let dot = submission.clone();
    let waiting = tokio::spawn(async move { dot.may_finish().await });
    assert_eq!(spooler.next(&mut world).await, Verb::AtTheDot(asked));
    // Of another fence: not the one that was asked for.
    let stale = tenancy(message.envelope.id, 2);
    spooler.say(&world, Verb::Go(stale)).await;
    spooler.row(&mut world, |row| row.in_flight == 1).await;
    assert!(!waiting.is_finished());
    spooler.say(&world, Verb::Go(asked)).await;
    assert!(waiting.await.unwrap());
    // The next dot of the same submission, at once: the go is still good.
    assert!(submission.may_finish().await);
}

#[actix::test]
async fn what_somebody_has_adopted_gets_no_go() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    spooler.say(&world, Verb::AskAtTheDot).await;
    let message = message(1);
    let id = message.envelope.id;
    spooler.submit(&world, &message, 3).await;
    let (submission, _answer) = world.submission().await;
    let adopt = Verb::Adopt(vec![tenancy(id, 4)]);
    spooler.ask(&mut world, adopt).await;
    assert!(!submission.may_finish().await);
    assert!(submission.is_cancelled());
}
