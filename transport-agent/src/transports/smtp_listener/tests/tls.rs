//! STARTTLS and implicit TLS.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

use super::{super::config::Config, Client, Rig, config, queued};

/// A listener with a certificate of its own, and a client's configuration that trusts it.
pub(super) struct Secured {
    pub(super) config: Config,
    connector: TlsConnector,
    _files: tempfile::TempDir,
}

pub(super) fn secured() -> Secured {
    let made = rcgen::generate_simple_self_signed(vec!["mx.example.org".to_owned()]).unwrap();
    let files = tempfile::tempdir().unwrap();
    let (certificate, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Secured {
        config: Config {
            listen_tls: vec!["127.0.0.1:0".to_owned()],
            tls_certificate: Some(certificate),
            tls_key: Some(key),
            ..config()
        },
        connector: TlsConnector::from(Arc::new(client)),
        _files: files,
    }
}

impl Secured {
    pub(super) async fn handshake(&self, stream: TcpStream) -> Client<TlsStream<TcpStream>> {
        let name = ServerName::try_from("mx.example.org").unwrap();
        Client::new(self.connector.connect(name, stream).await.unwrap())
    }
}

#[tokio::test]
async fn starttls_starts_a_new_session() {
    let secured = secured();
    let rig = Rig::start(secured.config.clone()).await;
    let mut client = rig.client().await;
    let reply = client.say("EHLO client.example", "250").await;
    assert!(reply.contains("250-STARTTLS\r\n"));
    client.say("MAIL FROM:<b@example.net>", "250").await;
    client.say("STARTTLS", "220 2.0.0").await;
    let mut client = secured.handshake(client.stream.into_inner()).await;
    // Nothing of before counts.
    client.say("RCPT TO:<ann@example.org>", "503").await;
    client.say("MAIL FROM:<b@example.net>", "503").await;
    let reply = client.say("EHLO client.example", "250").await;
    assert!(!reply.contains("STARTTLS"));
    client.say("STARTTLS", "503").await;
    queued(&client.message(b"secret\r\n").await);
    client.say("QUIT", "221").await;
    let body = String::from_utf8(rig.saved()[0].body.to_vec()).unwrap();
    assert!(body.contains(" with ESMTPS id "), "{body}");
    rig.at_rest().await;
}

#[tokio::test]
async fn what_was_said_before_the_handshake_is_not_heard_after_it() {
    let secured = secured();
    let rig = Rig::start(secured.config.clone()).await;
    let mut client = rig.client().await;
    client.say("EHLO client.example", "250").await;
    // In one packet, as a man in the middle would inject it.
    client
        .send("STARTTLS\r\nEHLO evil.example\r\nMAIL FROM:<evil@example.net>\r\n")
        .await;
    client.expect("220").await;
    let mut client = secured.handshake(client.stream.into_inner()).await;
    client.say("NOOP", "250 2.0.0 Ok").await;
    client
        .say("MAIL FROM:<b@example.net>", "503 5.5.1 EHLO")
        .await;
}

#[tokio::test]
async fn implicit_tls_speaks_smtp_behind_the_handshake() {
    let secured = secured();
    let rig = Rig::start(secured.config.clone()).await;
    let stream = TcpStream::connect(rig.listener.local_addresses()[1])
        .await
        .unwrap();
    let mut client = secured.handshake(stream).await;
    client.expect("220 mx.example.org").await;
    let reply = client.say("EHLO client.example", "250").await;
    assert!(!reply.contains("STARTTLS"));
    let large = b"0123456789abcdef0123456789abcdef\r\n".repeat(10_000);
    queued(&client.message(&large).await);
    assert!(rig.only_content() == large);
}

#[tokio::test]
async fn a_failed_handshake_ends_the_connection_alone() {
    let secured = secured();
    let rig = Rig::start(secured.config.clone()).await;
    let mut client = rig.client().await;
    client.say("STARTTLS", "220").await;
    client.send("this is no handshake\r\n").await;
    drop(client);
    rig.at_rest().await;
    queued(&rig.greeted().await.message(b"x\r\n").await);
}

#[tokio::test]
async fn a_missing_certificate_is_named() {
    let secured = secured();
    let config = Config {
        tls_certificate: Some("/nonexistent/cert.pem".into()),
        ..secured.config
    };
    let listener = super::SmtpListener::new(config).unwrap();
    let rig = Rig::start(super::config()).await;
    let support = Arc::new(super::FakeSupport(Arc::clone(&rig.fake)));
    let error = crate::provider::Transport::logon(&listener, support)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/cert.pem"),
        "{error}"
    );
}
