//! Permits, cancels, BEGIN and END, start and shutdown.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use pombo_proto::verbs::LogonError;
use tokio::sync::Semaphore;

use super::{
    super::{Config, SmtpListener},
    FakeSupport, PATIENCE, Rig, Save, config, queued,
};
use crate::provider::{Flow, Received, Transport};

#[tokio::test]
async fn the_permit_is_asked_for_at_the_first_recipient_and_once() {
    let rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    let asked = || {
        (
            rig.fake.asked.load(Ordering::SeqCst),
            rig.fake.new_mails.load(Ordering::SeqCst),
        )
    };
    client.say("MAIL FROM:<b@example.net>", "250").await;
    client.say("RCPT TO:<x@elsewhere.example>", "550").await;
    assert_eq!(asked(), (0, 0));
    client.say("RCPT TO:<ann@example.org>", "250").await;
    client.say("RCPT TO:<bob@example.org>", "250").await;
    assert_eq!(asked(), (1, 1));
    client.say("DATA", "354").await;
    client.say("x\r\n.", "250").await;
    assert_eq!(asked(), (1, 1));
    let receptions = rig.fake.receptions.lock().unwrap();
    assert!(receptions[0].reference.lock().unwrap().is_some());
}

#[tokio::test]
async fn without_a_permit_nothing_is_read() {
    let mut rig = Rig::start(Config {
        permit_timeout: Duration::from_millis(100),
        ..config()
    })
    .await;
    rig.fake.permits.forget_permits(100_000);
    let mut client = rig.greeted().await;
    client.say("MAIL FROM:<b@example.net>", "250").await;
    client.say("RCPT TO:<ann@example.org>", "250").await;
    client.say("DATA", "451 4.3.2").await;
    // The envelope stands: the client may try again.
    rig.fake.permits.add_permits(1);
    client.say("DATA", "354").await;
    client.send("x\r\n.\r\n").await;
    let id = queued(&client.reply().await);
    assert_eq!(rig.finished().await, Received::Saved { id, more: false });
}

#[tokio::test]
async fn a_client_waits_for_its_permit() {
    let rig = Rig::start(config()).await;
    rig.fake.permits.forget_permits(100_000);
    let mut client = rig.greeted().await;
    client
        .send("MAIL FROM:<b@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n")
        .await;
    // What is decided is said while it waits.
    client.expect("250 2.1.0").await;
    client.expect("250 2.1.5").await;
    rig.fake.permits.add_permits(1);
    client.expect("354").await;
    client.say("x\r\n.", "250").await;
}

#[tokio::test]
async fn a_cancel_during_the_transfer_keeps_the_connection() {
    let mut rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    client.envelope().await;
    client.send("the first half\r\n").await;
    rig.fake.cancel.send_replace(true);
    // The spooler is told at once, the client when it has said all.
    assert_eq!(rig.finished().await, Received::Cancelled);
    client.send("the second half\r\n.\r\n").await;
    client.expect("451 4.3.2").await;
    rig.fake.cancel.send_replace(false);
    queued(&client.message(b"x\r\n").await);
    client.say("QUIT", "221").await;
    rig.at_rest().await;
    assert_eq!(rig.saved().len(), 1);
}

#[tokio::test]
async fn mail_is_taken_between_begin_and_end_only() {
    let rig = Rig::closed(config()).await;
    let mut client = rig.greeted().await;
    client.say("MAIL FROM:<b@example.net>", "451 4.3.2").await;
    rig.listener.inbound(Flow::Begin).await;
    client.envelope().await;
    rig.listener.inbound(Flow::End).await;
    // What is in process completes.
    client.send("x\r\n.\r\n").await;
    queued(&client.reply().await);
    client.say("MAIL FROM:<b@example.net>", "451 4.3.2").await;
    rig.listener.inbound(Flow::Begin).await;
    client.say("MAIL FROM:<b@example.net>", "250").await;
}

#[tokio::test]
async fn shutdown_says_goodbye_to_idle_sessions_and_completes_the_others() {
    let mut rig = Rig::start(config()).await;
    let gate = Arc::new(Semaphore::new(0));
    rig.save(Save::Hold(Arc::clone(&gate)));
    let (mut idle, mut busy) = (rig.greeted().await, rig.greeted().await);
    let address = rig.address();
    busy.envelope().await;
    busy.send("x\r\n.\r\n").await;
    let shutdown = rig.listener.shutdown();
    let session = async {
        idle.expect("421 4.3.2 mx.example.org").await;
        idle.closed().await;
        gate.add_permits(1);
        queued(&busy.reply().await);
        busy.expect("421 4.3.2").await;
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(shutdown, session) })
        .await
        .unwrap();
    assert!(matches!(rig.finished().await, Received::Saved { .. }));
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert!(rig.listener.local_addresses().is_empty());
}

#[tokio::test]
async fn shutdown_cuts_off_what_will_not_end() {
    let rig = Rig::start(Config {
        shutdown_timeout: Duration::from_millis(50),
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    client.envelope().await;
    rig.listener.shutdown().await;
    client.closed().await;
    rig.each_finished_once();
}

#[test]
fn the_service_waits_for_as_long_as_is_configured() {
    let of = |seconds| {
        let config = Config {
            shutdown_timeout: Duration::from_secs(seconds),
            ..config()
        };
        SmtpListener::new(config).unwrap().shutdown_max()
    };
    for seconds in [0, 10, 120] {
        assert!(of(seconds) > Duration::from_secs(seconds));
        assert!(of(seconds) < Duration::from_secs(seconds + 10));
    }
    let for_ever = Config {
        shutdown_timeout: Duration::MAX,
        ..config()
    };
    assert!(SmtpListener::new(for_ever).is_err());
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let rig = Rig::start(config()).await;
    let address = rig.address().to_string();
    let second = SmtpListener::new(Config {
        listen: vec![address.clone()],
        ..config()
    })
    .unwrap();
    let support = Arc::new(FakeSupport(Arc::clone(&rig.fake)));
    match second.logon(support).await {
        Err(LogonError::Unconfigured(text)) => assert!(text.contains(&address), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(second.local_addresses().is_empty());
}

#[tokio::test]
async fn a_second_logon_changes_nothing() {
    let rig = Rig::start(config()).await;
    let before = rig.listener.local_addresses();
    let support = Arc::new(FakeSupport(Arc::clone(&rig.fake)));
    let reply = rig.listener.logon(support).await.unwrap();
    assert!(reply.inbound && !reply.outbound && !reply.poll);
    assert_eq!(rig.listener.local_addresses(), before);
}
