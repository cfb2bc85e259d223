//! Every limit, and that the session stays usable where it should.

use std::{num::NonZeroU32, time::Duration};

use super::{super::config::Config, Rig, Save, config, content, queued};
use crate::provider::{Received, SaveError};

#[tokio::test]
async fn a_declared_size_over_the_limit_is_refused_at_mail() {
    let rig = Rig::start(Config {
        message_bytes_max: 1_000,
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    client
        .say("MAIL FROM:<b@example.net> SIZE=1001", "552 5.3.4")
        .await;
    client
        .say(
            "MAIL FROM:<b@example.net> SIZE=99999999999999999999",
            "552 5.3.4",
        )
        .await;
    client
        .say("MAIL FROM:<b@example.net> SIZE=1000", "250")
        .await;
}

#[tokio::test]
async fn a_message_at_the_limit_is_taken_and_one_over_it_is_not() {
    let mut rig = Rig::start(Config {
        message_bytes_max: 100_000,
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    let at = [vec![b'a'; 99_998], b"\r\n".to_vec()].concat();
    let over = [vec![b'a'; 99_999], b"\r\n".to_vec()].concat();
    assert!(client.message(&over).await.starts_with("552 5.3.4"));
    assert_eq!(rig.finished().await, Received::Nothing);
    let id = queued(&client.message(&at).await);
    assert_eq!(rig.finished().await, Received::Saved { id, more: false });
    assert!(rig.only_content() == at);
    client.say("QUIT", "221").await;
    rig.at_rest().await;
}

#[tokio::test]
async fn a_message_that_will_not_end_is_not_read_for_ever() {
    let rig = Rig::start(Config {
        message_bytes_max: 1_000,
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    client.envelope().await;
    let (mut read, mut write) = tokio::io::split(client.stream.into_inner());
    let writer = tokio::spawn(async move {
        let block = vec![b'a'; 1 << 20];
        let mut written = 0_usize;
        while tokio::io::AsyncWriteExt::write_all(&mut write, &block)
            .await
            .is_ok()
        {
            written += block.len();
        }
        written
    });
    let mut reply = [0; 9];
    tokio::io::AsyncReadExt::read_exact(&mut read, &mut reply)
        .await
        .unwrap();
    assert_eq!(&reply, b"552 5.3.4");
    // What it took, and what the sockets and our farewell swallowed.
    assert!(writer.await.unwrap() < 64 << 20);
    rig.at_rest().await;
}

#[tokio::test]
async fn recipients_beyond_the_limit_are_for_the_next_message() {
    let rig = Rig::start(Config {
        recipients_max: 2,
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    client.say("MAIL FROM:<b@example.net>", "250").await;
    client.say("RCPT TO:<a@example.org>", "250").await;
    client.say("RCPT TO:<b@example.org>", "250").await;
    client.say("RCPT TO:<c@example.org>", "452 4.5.3").await;
    client.say("DATA", "354").await;
    client.say("x\r\n.", "250").await;
    assert_eq!(rig.saved()[0].recipients.len(), 2);
}

#[tokio::test]
async fn long_command_lines_are_refused_and_the_session_stays_in_step() {
    let rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    for length in [2_049, 2_050, 5_000, 40_000, 500_000] {
        client
            .send(format!("NOOP {}\r\nRSET\r\n", "x".repeat(length - 5)))
            .await;
        client.expect("500 5.5.2 Line too long").await;
        client.expect("250 2.0.0 Ok").await;
    }
    client
        .say(&format!("NOOP {}", "x".repeat(2_043)), "250")
        .await;
    client.message(b"x\r\n").await;
}

#[tokio::test]
async fn lines_in_messages_can_be_limited() {
    let rig = Rig::start(Config {
        line_bytes_max: Some(998),
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    let line = |length| [vec![b'a'; length], b"\r\n".to_vec()].concat();
    assert!(client.message(&line(999)).await.starts_with("554 5.6.0"));
    queued(&client.message(&line(998)).await);
}

#[tokio::test]
async fn too_many_errors_end_the_session() {
    let rig = Rig::start(Config {
        errors_max: 3,
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    client.send("A\r\nB\r\nC\r\nD\r\nE\r\nF\r\n").await;
    for _ in 0..4 {
        client.expect("500 5.5.2").await;
    }
    client.expect("421 4.7.0 mx.example.org").await;
    client.closed().await;
}

#[tokio::test]
async fn messages_per_session_can_be_limited() {
    let rig = Rig::start(Config {
        messages_max: Some(2),
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    queued(&client.message(b"1\r\n").await);
    queued(&client.message(b"2\r\n").await);
    client.say("MAIL FROM:<>", "421 4.7.0").await;
    client.closed().await;
}

#[tokio::test]
async fn connections_beyond_the_limits_are_turned_away_and_places_come_back() {
    for config in [
        Config {
            connections_max: 2,
            ..config()
        },
        Config {
            connections_per_client_max: 2,
            ..config()
        },
    ] {
        let rig = Rig::start(config).await;
        let (mut one, _two) = (rig.client().await, rig.client().await);
        let mut three = rig.silent_client().await;
        three.expect("421 4.7.0 mx.example.org").await;
        three.closed().await;
        one.say("QUIT", "221").await;
        let shared = rig.listener.shared().unwrap();
        super::until("the place", || shared.door.inside() == 1).await;
        rig.client().await;
    }
}

#[tokio::test]
async fn rates_per_client_are_kept() {
    let rig = Rig::start(Config {
        messages_per_minute: NonZeroU32::new(2),
        connections_per_minute: NonZeroU32::new(2),
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    queued(&client.message(b"1\r\n").await);
    queued(&client.message(b"2\r\n").await);
    client.say("MAIL FROM:<>", "451 4.7.1").await;
    rig.client().await;
    rig.silent_client().await.expect("421 4.7.0").await;
}

#[tokio::test]
async fn recipients_and_errors_per_client_are_kept_over_its_sessions() {
    let rig = Rig::start(Config {
        recipients_per_minute: NonZeroU32::new(3),
        errors_per_minute: NonZeroU32::new(2),
        ..config()
    })
    .await;
    for (accepted, refused) in [(2, false), (1, true)] {
        let mut client = rig.greeted().await;
        client.say("MAIL FROM:<>", "250").await;
        for _ in 0..accepted {
            client.say("RCPT TO:<ann@example.org>", "250").await;
        }
        if refused {
            client.say("RCPT TO:<ann@example.org>", "451 4.7.1").await;
        }
        // Those that are there already get the message.
        client.say("DATA", "354").await;
        client.say("x\r\n.", "250").await;
    }
    rig.greeted().await.say("NONSENSE", "500").await;
    let mut client = rig.greeted().await;
    client.say("NONSENSE", "500").await;
    client.say("NONSENSE", "500").await;
    client.expect("421 4.7.0 mx.example.org").await;
    client.closed().await;
}

#[tokio::test]
async fn all_sessions_together_keep_within_the_memory() {
    let mut rig = Rig::start(Config {
        memory_bytes_max: 400_000,
        ..config()
    })
    .await;
    let (mut one, mut two) = (rig.greeted().await, rig.greeted().await);
    one.envelope().await;
    one.send(vec![b'a'; 200_000]).await;
    let shared = rig.listener.shared().unwrap();
    super::until("the first to take its part", || {
        shared.budget.used() >= 200_000
    })
    .await;
    let too_much = [vec![b'b'; 300_000], b"\r\n".to_vec()].concat();
    assert!(two.message(&too_much).await.starts_with("452 4.3.1"));
    assert_eq!(rig.finished().await, Received::Nothing);
    one.send("\r\n.\r\n").await;
    queued(&one.reply().await);
    one.say("RSET", "250").await;
    assert_eq!(content(&rig.saved()[0]).len(), 200_002);
    // The memory is free again.
    let large = [vec![b'b'; 150_000], b"\r\n".to_vec()].concat();
    queued(&two.message(&large).await);
    for mut client in [one, two] {
        client.say("QUIT", "221").await;
    }
    rig.at_rest().await;
}

#[tokio::test]
async fn a_message_in_a_circle_is_refused() {
    let rig = Rig::start(Config {
        hops_max: 5,
        ..config()
    })
    .await;
    let mut client = rig.greeted().await;
    let hops = |count: usize| [b"Received: x\r\n".repeat(count), b"\r\nbody\r\n".to_vec()].concat();
    assert!(client.message(&hops(6)).await.starts_with("554 5.4.6"));
    queued(&client.message(&hops(5)).await);
    assert_eq!(rig.saved().len(), 1);
}

#[tokio::test]
async fn a_silent_client_is_told_and_left() {
    let quick = Config {
        command_timeout: Duration::from_secs(1),
        data_timeout: Duration::from_secs(1),
        ..config()
    };
    let mut rig = Rig::start(quick.clone()).await;
    let mut client = rig.client().await;
    client.send("EHLO half a li").await;
    client.expect("421 4.4.2 mx.example.org").await;
    client.closed().await;
    let mut client = rig.greeted().await;
    client.envelope().await;
    client.send("half a mess").await;
    client.expect("421 4.4.2").await;
    client.closed().await;
    assert_eq!(rig.finished().await, Received::Nothing);
    rig.at_rest().await;

    // Dripping does not help.
    let slow = Config {
        transfer_timeout: Duration::from_millis(300),
        ..config()
    };
    let rig = Rig::start(slow).await;
    let mut client = rig.greeted().await;
    client.envelope().await;
    let (mut read, mut write) = tokio::io::split(client.stream.into_inner());
    let drip = tokio::spawn(async move {
        while tokio::io::AsyncWriteExt::write_all(&mut write, b"x")
            .await
            .is_ok()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut reply = [0; 9];
    tokio::io::AsyncReadExt::read_exact(&mut read, &mut reply)
        .await
        .unwrap();
    assert_eq!(&reply, b"421 4.4.2");
    drip.await.unwrap();
}

/// Its permit is there for somebody else, long before the transfer's time is over.
#[tokio::test]
async fn a_client_that_only_drips_loses_its_permit() {
    let config = Config {
        data_rate_min: 1_000,
        ..config()
    };
    let mut rig = Rig::start_looking_after(config, Duration::from_millis(100)).await;
    let mut client = rig.greeted().await;
    client.envelope().await;
    let (read, write) = tokio::io::split(client.stream.into_inner());
    let drips = tokio::spawn(drip(write, 10_000));
    assert_eq!(rig.finished().await, Received::Nothing);
    let mut client = super::Client::new(tokio::io::join(read, tokio::io::sink()));
    client
        .expect("421 4.4.2 mx.example.org Too slow, closing connection")
        .await;
    client.closed().await;
    drips.abort();
    rig.at_rest().await;
    assert_eq!(rig.saved().len(), 0);
}

#[tokio::test]
async fn a_client_that_was_fast_may_rest_and_without_a_rate_all_may() {
    for (data_rate_min, first) in [(1_000, 100_000), (0, 1)] {
        let config = Config {
            data_rate_min,
            ..config()
        };
        let mut rig = Rig::start_looking_after(config, Duration::from_millis(20)).await;
        let mut client = rig.greeted().await;
        client.envelope().await;
        client.send(vec![b'a'; first]).await;
        drip(&mut client.stream, 20).await;
        client.send("\r\n.\r\n").await;
        let id = queued(&client.reply().await);
        assert_eq!(rig.finished().await, Received::Saved { id, more: false });
    }
}

/// At less than a hundred bytes a second.
async fn drip(mut stream: impl tokio::io::AsyncWrite + Unpin, bytes: usize) {
    for _ in 0..bytes {
        let write = async {
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await?;
            tokio::io::AsyncWriteExt::flush(&mut stream).await
        };
        if write.await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_cannot_be_saved_gets_the_right_code() {
    let mut rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    for (error, code, received) in [
        (SaveError::Cancelled, "451 4.3.2", Received::Cancelled),
        (
            SaveError::Unconfirmed("x".to_owned()),
            "451 4.3.0",
            failed(SaveError::Unconfirmed("x".to_owned())),
        ),
        (
            SaveError::Blob("x".to_owned()),
            "452 4.3.1",
            failed(SaveError::Blob("x".to_owned())),
        ),
        (
            SaveError::TooLarge(9),
            "552 5.3.4",
            failed(SaveError::TooLarge(9)),
        ),
        (
            SaveError::Recipients(0),
            "554 5.5.1",
            failed(SaveError::Recipients(0)),
        ),
        (
            SaveError::Recipients(20_000),
            "554 5.5.3",
            failed(SaveError::Recipients(20_000)),
        ),
    ] {
        rig.save(Save::Fail(error));
        let reply = client.message(b"x\r\n").await;
        assert!(reply.starts_with(code), "{reply}");
        assert_eq!(rig.finished().await, received);
    }
    rig.save(Save::Ok);
    queued(&client.message(b"x\r\n").await);
}

fn failed(error: SaveError) -> Received {
    Received::Failed(error.to_string())
}
