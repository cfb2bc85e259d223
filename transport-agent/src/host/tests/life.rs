use std::time::Duration;

use pombo_proto::{
    link::Event,
    outcome::{Diagnosis, EnhancedStatus, NdrReason, SubmitResult},
    verbs::{
        Logon, LogonError, Refusal, SpoolerNotification, TransportNotification, TransportState,
        VERSIONS, Validation, Verb, VersionRange,
    },
};

use super::kit::*;
use crate::{
    host::{Drain, GetCounters},
    provider::Flow,
};

#[actix::test]
async fn a_hello_to_everyone_is_answered_and_others_are_not() {
    let mut world = World::new(Setup::default()).await;
    let spooler = Spooler::new(world.mine);
    let hello = spooler.hello();
    let mut direct = hello.clone();
    direct.to = world.mine;
    world.linked(Event::Packets(vec![direct, hello])).await;
    let mut answers = 0;
    while answers == 0 {
        if let Sent::Packet(packet) = world.sent().await {
            assert_eq!((packet.to, packet.first), (spooler.incarnation, 0));
            answers += 1;
        }
    }
}

#[actix::test]
async fn logon_with_flags_address_types_and_validation() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = Spooler::new(world.mine);
    let accepted = spooler.logon(&mut world).await.unwrap();
    assert_eq!((accepted.version, accepted.credit), (VERSIONS.max, 10));
    assert!(!accepted.poll && !accepted.idle && !accepted.hold_in_doubt);
    let Verb::AddressTypesReply(types) = spooler.ask(&mut world, Verb::AddressTypes).await else {
        panic!("an answer")
    };
    assert_eq!(types.types, Some(vec!["SMTP".to_owned()]));
    let validate = Verb::ValidateState {
        config_changed: false,
    };
    let said = spooler.ask(&mut world, validate.clone()).await;
    assert_eq!(said, Verb::ValidateReply(Validation::Ok));
    world.support().critical_section(true);
    let said = spooler.next(&mut world).await;
    assert_eq!(said, Verb::SpoolerNotify(SpoolerNotification::CritSec));
    let said = spooler.ask(&mut world, validate).await;
    assert_eq!(said, Verb::ValidateReply(Validation::Busy));
    let row = spooler.row(&mut world, |_| true).await;
    assert!(!row.outbound.enabled && !row.inbound.enabled);
    spooler.submit(&world, &message(1), 0).await;
    let mut said = spooler.next(&mut world).await;
    if matches!(said, Verb::SpoolerNotify(_)) {
        said = spooler.next(&mut world).await;
    }
    let refused = matches!(
        &said,
        Verb::SubmitReply {
            result: Err(Refusal::Closed),
            ..
        }
    );
    assert!(refused, "before BEGIN_OUTBOUND: {said:?}");
}

#[actix::test]
async fn versions_must_overlap() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = Spooler::new(world.mine);
    let logon = Logon {
        versions: VersionRange { min: 90, max: 99 },
        spooler: String::new(),
        no_connect: false,
        no_inbound: true,
        no_outbound: true,
        blobs: String::new(),
    };
    let refused = spooler.logon_with(&mut world, logon).await;
    assert_eq!(refused, Err(LogonError::Version(VERSIONS)));
}

#[actix::test]
async fn a_session_is_written_in_the_newest_common_version_and_its_opening_in_the_oldest() {
    for (theirs, agreed) in [(1, 1), (2, 2), (3, 2)] {
        let mut world = World::new(Setup {
            versions: VersionRange { min: 1, max: 2 },
            ..Setup::default()
        })
        .await;
        let mut spooler = Spooler::new(world.mine);
        let logon = Logon {
            versions: VersionRange {
                min: theirs.min(2),
                max: theirs,
            },
            spooler: String::new(),
            no_connect: false,
            no_inbound: true,
            no_outbound: true,
            blobs: String::new(),
        };
        let accepted = spooler.logon_with(&mut world, logon).await.unwrap();
        assert_eq!(accepted.version, agreed);
        assert_eq!(spooler.versions, [1], "the answer to the logon");
        assert!(matches!(
            spooler.ask(&mut world, Verb::AddressTypes).await,
            Verb::AddressTypesReply(_)
        ));
        let after = &spooler.versions[1..];
        assert!(
            !after.is_empty() && after.iter().all(|it| u16::from(*it) == agreed),
            "{:?}",
            spooler.versions
        );
    }
}

#[actix::test]
async fn begin_and_end_follow_the_first_and_the_last_session() {
    let mut world = World::new(Setup::default()).await;
    let mut first = world.spooler().await;
    assert_eq!(world.flow().await, (true, Flow::Begin));
    assert_eq!(world.flow().await, (false, Flow::Begin));
    let mut second = world.spooler().await;
    first
        .notify(&world, TransportNotification::EndInbound)
        .await;
    first.say(&world, Verb::TransportLogoff).await;
    second
        .notify(&world, TransportNotification::EndOutbound)
        .await;
    assert_eq!(world.flow().await, (false, Flow::End));
    second.say(&world, Verb::TransportLogoff).await;
    assert_eq!(world.flow().await, (true, Flow::End));
}

#[actix::test]
async fn an_agent_is_ready_while_it_has_a_session_and_one_that_only_receives_while_mail_may_come_in()
 {
    let reason = |world: &World| {
        let reasons = world.health.reasons();
        reasons.into_iter().find(|(it, _)| *it == "session")
    };
    let mut world = World::new(Setup::default()).await;
    assert!(reason(&world).is_some());
    let mut spooler = world.spooler().await;
    assert_eq!(reason(&world), None);
    assert_eq!(world.flow().await, (true, Flow::Begin));
    assert_eq!(world.flow().await, (false, Flow::Begin));
    let end = TransportNotification::EndInbound;
    spooler.notify(&world, end).await;
    assert_eq!(world.flow().await, (true, Flow::End));
    assert_eq!(reason(&world), None);
    spooler.say(&world, Verb::TransportLogoff).await;
    assert_eq!(world.flow().await, (false, Flow::End));
    assert!(reason(&world).is_some());

    let receives_only = Setup {
        sends: false,
        ..Setup::default()
    };
    let mut world = World::new(receives_only).await;
    let mut spooler = Spooler::new(world.mine);
    spooler.logon(&mut world).await.unwrap();
    let begin = TransportNotification::BeginInbound;
    spooler.notify(&world, begin).await;
    assert_eq!(reason(&world), None);
    spooler.notify(&world, end).await;
    let (_, why) = reason(&world).expect("it cannot take mail");
    assert!(why.contains("lets mail in"), "{why}");
    spooler.notify(&world, begin).await;
    assert_eq!(reason(&world), None);
    world.linked(Event::Down("cut off".to_owned())).await;
    assert!(reason(&world).is_some());
}

#[actix::test]
async fn a_gap_ends_the_session_and_another_epoch_opens_one() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    spooler.submit(&world, &message(1), 0).await;
    let (_, _answer) = world.submission().await;
    let lost = pombo_proto::frame::Frame::verb(pombo_proto::ids::Correlation(0), Verb::Idle);
    spooler.out.push(lost);
    // Whether or not pace or answers hold it back, as in the kit's flush.
    let now = std::time::Instant::now();
    let packet = [now, now + 10 * pombo_proto::outbound::PATIENCE]
        .into_iter()
        .find_map(|at| spooler.out.poll_packet(at));
    assert!(packet.is_some(), "nothing was lost");
    spooler.say(&world, Verb::Idle).await;
    spooler.ended(&mut world).await;
    // What still comes of the old one is told that it is over.
    spooler.say(&world, Verb::Idle).await;
    spooler.ended(&mut world).await;
    let mut again = spooler.reopened(2);
    assert_eq!(again.logon(&mut world).await.unwrap().credit, 9);
    again.row(&mut world, |row| row.unsettled.len() == 1).await;
    let counters = world.agent.send(GetCounters).await.unwrap();
    assert_eq!((counters.broken, counters.sessions), (1, 2));
}

#[actix::test]
async fn a_returned_packet_ends_the_session() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let (peer, first) = (spooler.incarnation, None);
    world.linked(Event::Returned { peer, first }).await;
    spooler.ended(&mut world).await;
}

#[actix::test]
async fn too_many_sessions_are_refused() {
    let mut world = World::new(Setup::default()).await;
    for _ in 0..4 {
        Spooler::new(world.mine).logon(&mut world).await.unwrap();
    }
    let refused = Spooler::new(world.mine).logon(&mut world).await;
    assert!(matches!(refused, Err(LogonError::FailOneProvider(_))));
}

#[actix::test]
async fn a_critical_error_stops_submissions_until_ready() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let status = EnhancedStatus::new(4, 3, 0);
    let error = Diagnosis::new(status, NdrReason::TransferFailed, "out of order");
    world.support().critical_error(error.clone());
    let critical = Verb::SpoolerNotify(SpoolerNotification::CriticalError(error));
    assert_eq!(spooler.next(&mut world).await, critical);
    let row = spooler
        .row(&mut world, |row| row.state == TransportState::Failure)
        .await;
    assert_eq!(row.credit, 0);
    // Who comes later hears of it, too.
    let mut late = Spooler::new(world.mine);
    late.logon(&mut world).await.unwrap();
    assert_eq!(late.next(&mut world).await, critical);
    world.support().ready_to_send();
    let ready = Verb::SpoolerNotify(SpoolerNotification::ReadyToSend);
    assert_eq!(spooler.next(&mut world).await, ready);
    spooler.row(&mut world, |row| row.credit > 0).await;
    spooler.submit(&world, &message(1), 0).await;
    world.submission().await;
}

#[actix::test]
async fn sent_deferred_waits_for_a_session() {
    let mut world = World::new(Setup::default()).await;
    let id = message(1).envelope.id;
    world.support().sent_deferred(id, Vec::new());
    // Told from another thread: asked for until it is there.
    let mut spooler = Spooler::new(world.mine);
    spooler.logon(&mut world).await.unwrap();
    let expected = Verb::SpoolerNotify(SpoolerNotification::SentDeferred {
        id,
        statuses: Vec::new(),
    });
    assert_eq!(spooler.next(&mut world).await, expected);
}

#[actix::test]
async fn sent_deferred_waits_until_its_attempt_is_settled() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let message = message(1);
    let id = message.envelope.id;
    spooler.submit(&world, &message, 0).await;
    let (_, answer) = world.submission().await;
    world.support().sent_deferred(id, Vec::new());
    answer.send(SubmitResult::Busy).unwrap();
    // The attempt has returned and is not settled: nothing is said of it yet.
    let said = spooler.next(&mut world).await;
    assert!(matches!(said, Verb::SubmitReply { .. }), "{said:?}");
    let validate = Verb::ValidateState {
        config_changed: false,
    };
    let said = spooler.ask(&mut world, validate.clone()).await;
    assert_eq!(said, Verb::ValidateReply(Validation::Ok));
    let settled = Verb::Settled(vec![tenancy(id, 0)]);
    spooler.say(&world, settled).await;
    let expected = Verb::SpoolerNotify(SpoolerNotification::SentDeferred {
        id,
        statuses: Vec::new(),
    });
    assert_eq!(spooler.next(&mut world).await, expected);
}

#[actix::test]
async fn the_turn_to_poll_is_handed_on() {
    let setup = Setup {
        poll: true,
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    world.linked(Event::PollTurn(true)).await;
    let mut first = world.spooler().await;
    let mut second = world.spooler().await;
    let polled = |verb| match verb {
        Verb::PollReply { incoming } => incoming,
        other => panic!("{other:?}"),
    };
    assert_eq!(polled(first.ask(&mut world, Verb::Poll).await), 7);
    assert_eq!(polled(second.ask(&mut world, Verb::Poll).await), 0);
    let row = second.row(&mut world, |_| true).await;
    assert!(!row.poll);
    first
        .notify(&world, TransportNotification::EndInbound)
        .await;
    second.row(&mut world, |row| row.poll).await;
    assert_eq!(polled(second.ask(&mut world, Verb::Poll).await), 7);
    world.linked(Event::PollTurn(false)).await;
    second.row(&mut world, |row| !row.poll).await;
}

#[actix::test]
async fn a_drain_waits_for_settled_and_then_logs_off() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = world.spooler().await;
    let message = message(1);
    spooler.submit(&world, &message, 0).await;
    let (_, answer) = world.submission().await;
    world.agent.send(Drain).await.unwrap();
    let row = spooler
        .row(&mut world, |row| row.state == TransportState::Offline)
        .await;
    assert!(!row.outbound.enabled && row.credit == 0);
    let refused = Spooler::new(world.mine).logon(&mut world).await;
    assert_eq!(refused, Err(LogonError::Draining));
    spooler.submit(&world, &super::kit::message(1), 0).await;
    let said = spooler.next(&mut world).await;
    let closed = matches!(
        &said,
        Verb::SubmitReply {
            result: Err(Refusal::Closed),
            ..
        }
    );
    assert!(closed, "{said:?}");
    answer.send(SubmitResult::Busy).unwrap();
    let said = spooler.next(&mut world).await;
    assert!(matches!(said, Verb::SubmitReply { result: Ok(_), .. }));
    assert!(world.done.try_recv().is_err());
    let settled = vec![tenancy(message.envelope.id, 0)];
    spooler.say(&world, Verb::Settled(settled)).await;
    assert_eq!(spooler.next(&mut world).await, Verb::LoggedOff { kept: 0 });
    assert_eq!((&mut world.done).await.unwrap().kept, 0);
}

#[actix::test]
async fn a_drain_ends_at_its_limit_and_says_what_is_kept() {
    let setup = Setup {
        drain_limit: Duration::from_millis(1),
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let mut spooler = world.spooler().await;
    spooler.submit(&world, &message(1), 0).await;
    let (_, _answer) = world.submission().await;
    world.agent.send(Drain).await.unwrap();
    while spooler.next(&mut world).await != (Verb::LoggedOff { kept: 1 }) {}
    assert_eq!((&mut world.done).await.unwrap().kept, 1);
}

#[actix::test]
async fn no_connect_keeps_both_directions_closed_whatever_is_said_later() {
    let mut world = World::new(Setup::default()).await;
    let mut spooler = Spooler::new(world.mine);
    let logon = Logon {
        versions: VERSIONS,
        spooler: "spooler".to_owned(),
        no_connect: true,
        no_inbound: true,
        no_outbound: true,
        blobs: String::new(),
    };
    spooler.logon_with(&mut world, logon).await.unwrap();
    let begin = [
        TransportNotification::BeginInbound,
        TransportNotification::BeginOutbound,
        TransportNotification::BeginOutboundFlush,
    ];
    for begin in begin {
        spooler.notify(&world, begin).await;
    }
    let offline = spooler
        .row(&mut world, |row| row.state == TransportState::Offline)
        .await;
    assert!(!offline.inbound.enabled && !offline.outbound.enabled);
    let validate = Verb::ValidateState {
        config_changed: false,
    };
    let said = spooler.ask(&mut world, validate).await;
    assert!(matches!(said, Verb::ValidateReply(Validation::Failing(_))));
    spooler.submit(&world, &message(1), 0).await;
    let said = spooler.next(&mut world).await;
    let closed = Err(Refusal::Closed);
    assert!(matches!(said, Verb::SubmitReply { result, .. } if result == closed));

    // Another spooler's wish is its own; it hears of a critical section that began before it came.
    world.support().critical_section(true);
    let critical = Verb::SpoolerNotify(SpoolerNotification::CritSec);
    assert_eq!(spooler.next(&mut world).await, critical);
    let mut late = world.spooler().await;
    assert_eq!(late.next(&mut world).await, critical);
    let row = late.row(&mut world, |row| row.outbound.enabled).await;
    assert_eq!(row.state, TransportState::Available);
}
