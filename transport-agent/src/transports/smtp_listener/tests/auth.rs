//! AUTH as transcripts: who gets in, who does not, and how often one may try.

use std::{io::Write, num::NonZeroU32, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use pombo_proto::scram::{self, Verifier};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::config::{Config, Error, Senders},
    Client, Rig, config, queued,
    tls::{Secured, secured},
};

fn users() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let verifier = Verifier::with_iterations("pencil", 4096).unwrap();
    writeln!(file, "ann:{verifier} ann@example.net").unwrap();
    file
}

fn with_users(file: &NamedTempFile, config: Config) -> Config {
    Config {
        users_file: Some(file.path().to_owned()),
        auth_failure_delay: Duration::from_millis(1),
        ..config
    }
}

/// In the clear, so that transcripts can be read.
async fn clear(file: &NamedTempFile) -> Rig {
    let config = Config {
        auth_without_tls: true,
        ..with_users(file, config())
    };
    Rig::start(config).await
}

fn plain(user: &str, password: &str) -> String {
    BASE64.encode(format!("\0{user}\0{password}"))
}

async fn within_tls(rig: &Rig, secured: &Secured) -> Client<impl AsyncRead + AsyncWrite + Unpin> {
    let mut client = rig.client().await;
    client.say("STARTTLS", "220").await;
    let mut client = secured.handshake(client.stream.into_inner()).await;
    client.say("EHLO client.example", "250").await;
    client
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A whole exchange; the last reply.
    async fn scram(&mut self, user: &str, password: &str) -> String {
        let client = scram::Client::new(user, password).unwrap();
        let first = BASE64.encode(client.first());
        self.send(format!("AUTH SCRAM-SHA-256 {first}\r\n")).await;
        let challenge = self.challenge().await;
        let (proof, expected) = client.answer(&challenge).unwrap();
        self.send(format!("{}\r\n", BASE64.encode(proof))).await;
        let reply = self.reply().await;
        let Some(signature) = reply.strip_prefix("334 ") else {
            return reply;
        };
        expected
            .check(&BASE64.decode(signature.trim()).unwrap())
            .unwrap();
        self.send("\r\n").await;
        self.reply().await
    }

    async fn challenge(&mut self) -> Vec<u8> {
        let reply = self.expect("334 ").await;
        BASE64.decode(reply[4..].trim()).unwrap()
    }
}

#[tokio::test]
async fn nobody_logs_in_where_nobody_may() {
    let rig = Rig::start(config()).await;
    let mut client = rig.client().await;
    let reply = client.say("EHLO client.example", "250").await;
    assert!(!reply.contains("AUTH"), "{reply}");
    client.say("AUTH PLAIN AGEAYg==", "502 5.5.1").await;
}

#[tokio::test]
async fn who_proves_the_password_may_relay() {
    let (file, secured) = (users(), secured());
    let rig = Rig::start(with_users(&file, secured.config.clone())).await;
    for mechanism in ["scram", "plain", "plain in two steps"] {
        let mut client = within_tls(&rig, &secured).await;
        client.say("MAIL FROM:<x@example.net>", "250").await;
        client
            .say("RCPT TO:<bob@elsewhere.example>", "550 5.7.1")
            .await;
        client.say("AUTH PLAIN AGEAYg==", "503").await;
        client.say("RSET", "250").await;
        match mechanism {
            "scram" => {
                let reply = client.scram("ann", "pencil").await;
                assert!(reply.starts_with("235 2.7.0"), "{reply}");
            }
            "plain" => {
                let initial = plain("ann", "pencil");
                client
                    .say(&format!("AUTH PLAIN {initial}"), "235 2.7.0")
                    .await;
            }
            _ => {
                client.say("auth plain", "334 ").await;
                client.say(&plain("ann", "pencil"), "235 2.7.0").await;
            }
        }
        client
            .say(&format!("AUTH PLAIN {}", plain("ann", "pencil")), "503")
            .await;
        client.say("MAIL FROM:<x@example.net> AUTH=<>", "250").await;
        client.say("RCPT TO:<bob@elsewhere.example>", "250").await;
        client.say("DATA", "354").await;
        client.send("x\r\n.\r\n").await;
        queued(&client.reply().await);
    }
    let body = String::from_utf8(rig.saved()[0].body.to_vec()).unwrap();
    assert!(body.contains(" with ESMTPSA id "), "{body}");
    assert!(!body.contains("pencil"));
}

#[tokio::test]
async fn without_tls_nothing_is_offered_and_a_password_is_never_taken() {
    let (file, secured) = (users(), secured());
    let rig = Rig::start(with_users(&file, secured.config.clone())).await;
    let mut client = rig.client().await;
    let reply = client.say("EHLO client.example", "250").await;
    assert!(!reply.contains("AUTH"), "{reply}");
    client.say("AUTH PLAIN AGEAYg==", "538 5.7.11").await;
    client.say("AUTH SCRAM-SHA-256", "538 5.7.11").await;
    let reply = within_tls(&rig, &secured).await.say("EHLO c", "250").await;
    assert!(
        reply.contains("\r\n250-AUTH SCRAM-SHA-256 PLAIN\r\n"),
        "{reply}"
    );

    let rig = clear(&file).await;
    let mut client = rig.client().await;
    client.say("AUTH SCRAM-SHA-256", "503 5.5.1").await;
    client.say("HELO c", "250").await;
    client.say("AUTH SCRAM-SHA-256", "503 5.5.1").await;
    let reply = client.say("EHLO client.example", "250").await;
    assert!(reply.contains("\r\n250-AUTH SCRAM-SHA-256\r\n"), "{reply}");
    client.say("AUTH PLAIN AGEAYg==", "538 5.7.11").await;
    let reply = client.scram("ann", "pencil").await;
    assert!(reply.starts_with("235"), "{reply}");
}

#[tokio::test]
async fn an_exchange_that_goes_wrong_has_its_code_and_the_session_goes_on() {
    let file = users();
    let rig = clear(&file).await;
    let mut client = rig.greeted().await;
    // base64 of `n,,n=ann,r=x`, of `p=tls-exporter,,n=ann,r=x`, and of `c=biws,r=x,p=`.
    client
        .transcript(
            "C: AUTH
             S: 501 5.5.4
             C: AUTH CRAM-MD5
             S: 504 5.5.4
             C: AUTH SCRAM-SHA-256 %%%
             S: 501 5.5.2
             C: AUTH SCRAM-SHA-256
             S: 334
             C: *
             S: 501 5.7.0
             C: AUTH SCRAM-SHA-256 =
             S: 501 5.5.2
             C: AUTH SCRAM-SHA-256 cD10bHMtZXhwb3J0ZXIsLG49YW5uLHI9eA==
             S: 501 5.5.2
             C: AUTH SCRAM-SHA-256 biwsbj1hbm4scj14
             S: 334
             C: not base64
             S: 501 5.5.2
             C: AUTH SCRAM-SHA-256 biwsbj1hbm4scj14
             S: 334
             C: Yz1iaXdzLHI9eCxwPQ==
             S: 501 5.5.2
             C: NOOP
             S: 250",
        )
        .await;
    client
        .say("AUTH SCRAM-SHA-256 biwsbj1hbm4scj14", "334")
        .await;
    client.say(&"A".repeat(5_000), "500 5.5.6").await;
    // None of it counts as a wrong password.
    let reply = client.scram("ann", "pencil").await;
    assert!(reply.starts_with("235"), "{reply}");
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_get_the_same_answer_and_few_chances() {
    let file = users();
    let rig = clear(&file).await;
    let mut client = rig.greeted().await;
    let mut replies = Vec::new();
    for (user, password) in [("ann", "pen"), ("nobody", "pencil"), ("ann", "Pencil")] {
        replies.push(client.scram(user, password).await);
    }
    assert!(replies[0].starts_with("535 5.7.8"), "{replies:?}");
    assert!(
        replies.iter().all(|reply| *reply == replies[0]),
        "{replies:?}"
    );
    client.expect("421 4.7.0 mx.example.org").await;
    client.closed().await;
}

#[tokio::test]
async fn a_client_that_fails_too_often_has_to_wait_whatever_its_sessions() {
    let file = users();
    let rig = Rig::start(Config {
        auth_without_tls: true,
        auth_failures_per_minute: NonZeroU32::new(2),
        ..with_users(&file, config())
    })
    .await;
    for _ in 0..2 {
        let reply = rig.greeted().await.scram("ann", "wrong").await;
        assert!(reply.starts_with("535 5.7.8"), "{reply}");
    }
    let mut client = rig.greeted().await;
    client
        .say("AUTH SCRAM-SHA-256 biwsbj1hbm4scj14", "454 4.7.0")
        .await;
    // Mail for local people is taken all the same.
    queued(&client.message(b"x\r\n").await);
}

#[tokio::test]
async fn a_submission_port_asks_who_it_is_and_as_whom_it_sends() {
    let file = users();
    let rig = Rig::start(Config {
        auth_without_tls: true,
        auth_required: true,
        auth_senders: Senders::Own,
        ..with_users(&file, config())
    })
    .await;
    let mut client = rig.greeted().await;
    client.say("MAIL FROM:<ann@example.net>", "530 5.7.0").await;
    client.scram("ann", "pencil").await;
    client.say("MAIL FROM:<bob@example.net>", "553 5.7.1").await;
    client.say("MAIL FROM:<>", "250").await;
    client.say("RSET", "250").await;
    client.say("MAIL FROM:<Ann@EXAMPLE.net>", "250").await;
}

#[tokio::test]
async fn users_are_read_again_when_the_configuration_is() {
    let file = users();
    let rig = clear(&file).await;
    let reply = rig.greeted().await.scram("bob", "brush").await;
    assert!(reply.starts_with("535"), "{reply}");
    let verifier = Verifier::with_iterations("brush", 4096).unwrap();
    std::fs::write(file.path(), format!("bob:{verifier}\n")).unwrap();
    crate::provider::Transport::validate_state(&rig.listener, true).await;
    let reply = rig.greeted().await.scram("bob", "brush").await;
    assert!(reply.starts_with("235"), "{reply}");
}

#[test]
fn a_port_where_nobody_could_log_in_is_refused() {
    let check = |change: fn(&mut Config)| {
        let mut config = config();
        change(&mut config);
        config.check()
    };
    assert_eq!(check(|c| c.auth_required = true), Err(Error::Auth));
    let no_tls = |c: &mut Config| {
        c.auth_required = true;
        c.users_file = Some("users".into());
    };
    assert_eq!(check(no_tls), Err(Error::Auth));
}
