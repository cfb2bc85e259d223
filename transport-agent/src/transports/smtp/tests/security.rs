//! TLS and authentication.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use std::{io::Write, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::NamedTempFile;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use super::*;

const DELIVERED: &str = "0 delivered 127.0.0.1: 250 2.0.0 queued";
const START: &str = "S: 220 mx\nC: EHLO client.test\nS: 250-mx\nS: 250-STARTTLS\nS: 250 PIPELINING\nC: STARTTLS\nS: 220 go\nT\n";
const AGAIN: &str = "C: EHLO client.test\nS: 250-mx\nS: 250-AUTH PLAIN LOGIN\nS: 250 PIPELINING\n";

/// A server's certificate for these names, and the file of the authority that signed it.
fn certificate(names: &[&str]) -> (TlsAcceptor, NamedTempFile) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let leaf = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(authority.pem().as_bytes()).unwrap();
    (TlsAcceptor::from(Arc::new(config)), file)
}

fn required(file: &NamedTempFile) -> String {
    format!(
        "[tls]\nmode = \"required\"\nca_file = \"{}\"\n",
        file.path().display()
    )
}

#[tokio::test]
async fn required_tls_verifies_and_then_sends() {
    let (tls, ca) = certificate(&["127.0.0.1"]);
    let server = Server::play_with(
        [format!("{START}{AGAIN}{TAKEN}{TAKEN}C: QUIT\nS: 221 bye")],
        Some(tls),
    )
    .await;
    let rig = Rig::smarthost(&server, &required(&ca)).await;
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    rig.transport.shutdown().await;
    server.finish().await;
}

#[tokio::test]
async fn required_tls_sends_nothing_to_a_server_that_is_not_who_it_should_be() {
    let (other_name, ca) = certificate(&["other.test"]);
    let server = Server::play_with([format!("{START}E")], Some(other_name.clone())).await;
    let rig = Rig::smarthost(&server, &required(&ca)).await;
    assert_begins(
        &rig.send(Message::to_bob()).await,
        &["0 deferred down 4.7.5 "],
    );
    server.finish().await;
    // The same certificate is right for who is asked for by that name.
    let server = Server::play_with([format!("{START}{AGAIN}{TAKEN}")], Some(other_name)).await;
    let rig = Rig::smarthost(
        &server,
        &format!("{}server_name = \"other.test\"", required(&ca)),
    )
    .await;
    assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
    server.finish().await;
    // Signed by somebody else.
    let (tls, _) = certificate(&["127.0.0.1"]);
    let server = Server::play_with([format!("{START}E")], Some(tls)).await;
    let rig = Rig::smarthost(&server, &required(&ca)).await;
    assert_begins(
        &rig.send(Message::to_bob()).await,
        &["0 deferred down 4.7.5 "],
    );
    server.finish().await;
}

#[tokio::test]
async fn required_tls_sends_nothing_where_it_is_not_offered_or_refused() {
    let (_, ca) = certificate(&["127.0.0.1"]);
    let refused = START.replace("S: 220 go\nT\n", "S: 454 4.7.0 not now\nE\n");
    for (script, expected) in [
        (format!("{HELLO}E"), "0 deferred down 4.7.4 "),
        (refused, "0 deferred down 4.7.0 454 4.7.0 not now"),
        // Words in the clear behind the go-ahead are not the server's.
        (
            START.replace("S: 220 go\nT\n", "S: 220 go\nS: 250 injected\nE\n"),
            "0 deferred down 4.7.5 ",
        ),
    ] {
        let server = Server::play([script]).await;
        let rig = Rig::smarthost(&server, &required(&ca)).await;
        assert_begins(&rig.send(Message::to_bob()).await, &[expected]);
        server.finish().await;
    }
}

#[tokio::test]
async fn opportunistic_tls_takes_any_certificate_or_goes_without() {
    let (tls, _) = certificate(&["whoever.test"]);
    let server = Server::play_with([format!("{START}{AGAIN}{TAKEN}")], Some(tls)).await;
    assert_eq!(
        Rig::smarthost(&server, "")
            .await
            .send(Message::to_bob())
            .await,
        [DELIVERED]
    );
    server.finish().await;

    let refused = START.replace("S: 220 go\nT\n", "S: 454 not now\n");
    let server = Server::play([format!("{refused}{TAKEN}")]).await;
    assert_eq!(
        Rig::smarthost(&server, "")
            .await
            .send(Message::to_bob())
            .await,
        [DELIVERED]
    );
    server.finish().await;

    // A handshake that breaks: again, in the clear.
    let broken = START.replace("T\n", "X\n");
    let clear = START.replace("C: STARTTLS\nS: 220 go\nT\n", "");
    let server = Server::play([broken, format!("{clear}{TAKEN}")]).await;
    assert_eq!(
        Rig::smarthost(&server, "")
            .await
            .send(Message::to_bob())
            .await,
        [DELIVERED]
    );
    server.finish().await;

    let clear = START.replace("C: STARTTLS\nS: 220 go\nT\n", "");
    let server = Server::play([format!("{clear}{TAKEN}")]).await;
    assert_eq!(
        Rig::smarthost(&server, "[tls]\nmode = \"off\"")
            .await
            .send(Message::to_bob())
            .await,
        [DELIVERED]
    );
    server.finish().await;
}

#[tokio::test]
async fn implicit_tls_encrypts_from_the_first_byte() {
    let (tls, ca) = certificate(&["127.0.0.1"]);
    let server = Server::play_with([format!("T\n{HELLO}{TAKEN}")], Some(tls)).await;
    let config = required(&ca).replace("required", "implicit");
    assert_eq!(
        Rig::smarthost(&server, &config)
            .await
            .send(Message::to_bob())
            .await,
        [DELIVERED]
    );
    server.finish().await;
}

#[tokio::test]
async fn large_contents_go_through_tls() {
    let (tls, ca) = certificate(&["127.0.0.1"]);
    let server = Server::play_with([format!("{START}{AGAIN}{TAKEN}")], Some(tls)).await;
    let rig = Rig::smarthost(&server, &required(&ca)).await;
    let content = b".line of text\r\n".repeat(200_000);
    assert_eq!(
        rig.send(Message::new(&["bob@b.test"], content.clone()))
            .await,
        [DELIVERED]
    );
    let received = server.finish().await.remove(0);
    assert_eq!(received.len(), content.len() + 200_000 + b".\r\n".len());
}

/// A password file, and the configuration that uses it.
fn auth(password: &str, more: &str) -> (NamedTempFile, String) {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "{password}").unwrap();
    let text = format!(
        "[auth]\nusername = \"pombo\"\npassword_file = \"{}\"\n{more}\n",
        file.path().display()
    );
    (file, text)
}

#[tokio::test]
async fn the_password_goes_over_verified_tls_in_either_way() {
    // base64 of NUL pombo NUL secret, of pombo, and of secret.
    let plain = "C: AUTH PLAIN AHBvbWJvAHNlY3JldA==\nS: 235 ok\n";
    let login = "C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: cG9tYm8=\nS: 334 UGFzc3dvcmQ6\nC: c2VjcmV0\nS: 235 ok\n";
    let only_login = AGAIN.replace("AUTH PLAIN LOGIN", "AUTH LOGIN");
    for (offer, exchange, mechanism) in [
        (AGAIN, plain, "auto"),
        (AGAIN, login, "login"),
        (&*only_login, login, "auto"),
    ] {
        let (tls, ca) = certificate(&["127.0.0.1"]);
        let server =
            Server::play_with([format!("{START}{offer}{exchange}{TAKEN}")], Some(tls)).await;
        let (_file, auth) = auth("secret", &format!("mechanism = \"{mechanism}\""));
        let rig = Rig::smarthost(&server, &format!("{}{auth}", required(&ca))).await;
        assert_eq!(rig.send(Message::to_bob()).await, [DELIVERED]);
        server.finish().await;
    }
}

/// A server that knows SCRAM-SHA-256, and what it says instead of its signature if it lies.
async fn scram_server(
    password: &str,
    lie: Option<&'static str>,
) -> (std::net::SocketAddr, tokio::task::JoinHandle<String>) {
    use pombo_proto::scram::{ClientFirst, Verifier};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let verifier = Verifier::with_iterations(password, 4096).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let (mut heard, mut challenge) = (String::new(), None);
        write.write_all(b"220 mx\r\n").await.unwrap();
        while let Ok(Some(line)) = lines.next_line().await {
            heard.push_str(&line);
            heard.push('\n');
            let decoded = BASE64
                .decode(line.rsplit(' ').next().unwrap())
                .unwrap_or_default();
            let reply = if line.starts_with("EHLO") {
                "250-mx\r\n250 AUTH PLAIN LOGIN SCRAM-SHA-256".to_owned()
            } else if line.starts_with("AUTH SCRAM-SHA-256 ") {
                let first = ClientFirst::parse(&decoded).unwrap();
                assert_eq!(first.user(), "pombo");
                let (asked, said) = first.challenge(&verifier).unwrap();
                challenge = Some(asked);
                format!("334 {}", BASE64.encode(said))
            } else if let Some(asked) = challenge.take() {
                match (asked.finish(&decoded), lie) {
                    (Ok(signature), None) => format!("334 {}", BASE64.encode(signature)),
                    (_, Some(lie)) => lie.to_owned(),
                    (Err(_), None) => "535 5.7.8 wrong".to_owned(),
                }
            } else if line.is_empty() {
                "235 2.7.0 welcome".to_owned()
            } else if line == "DATA" {
                write.write_all(b"354 go\r\n").await.unwrap();
                while lines.next_line().await.unwrap().unwrap() != "." {}
                "250 2.0.0 queued".to_owned()
            } else {
                "250 2.0.0 ok".to_owned()
            };
            if write
                .write_all(format!("{reply}\r\n").as_bytes())
                .await
                .is_err()
            {
                break;
            }
        }
        heard
    });
    (address, task)
}

#[tokio::test]
async fn scram_is_preferred_and_proves_both_sides() {
    for (password, lie, mechanism, expected) in [
        ("secret", None, "auto", "0 relayed"),
        ("secret", None, "scram-sha-256", "0 relayed"),
        (
            "other",
            None,
            "auto",
            "0 deferred down 4.7.8 535 5.7.8 wrong",
        ),
        // Servers that do not know the password say that all is well.
        (
            "other",
            Some("235 2.7.0 welcome"),
            "auto",
            "0 deferred down 4.7.8",
        ),
        (
            "other",
            Some("334 dj1BQUFB"),
            "auto",
            "0 deferred down 4.7.8",
        ),
    ] {
        let (address, server) = scram_server(password, lie).await;
        let more = format!(
            "mechanism = \"{mechanism}\"\nallow_plaintext_auth = {}",
            mechanism == "auto"
        );
        let (_file, auth) = auth("secret", &more);
        let config = format!("route = {{ smarthost = \"{address}\" }}\n{auth}");
        let lines = Rig::new(&config).await.send(Message::to_bob()).await;
        let expected = if expected == "0 relayed" {
            DELIVERED
        } else {
            expected
        };
        assert_begins(&lines, &[expected]);
        let heard = server.await.unwrap();
        assert_eq!(
            heard.contains("MAIL FROM"),
            expected == DELIVERED,
            "{heard}"
        );
        assert!(!heard.contains("secret") && !heard.contains(&BASE64.encode("secret")));
    }
}

#[tokio::test]
async fn refused_authentication_defers_and_shows_no_password() {
    let offer = HELLO.replace("PIPELINING", "AUTH PLAIN");
    for (script, expected) in [
        (
            format!("{offer}C: *\nS: 535 5.7.8 wrong\nE"),
            "0 deferred down 4.7.8 535 5.7.8 wrong",
        ),
        (format!("{HELLO}E"), "0 deferred down 4.7.4 "),
    ] {
        let server = Server::play([script]).await;
        let (_file, auth) = auth("secret", "allow_plaintext_auth = true");
        let rig = Rig::smarthost(&server, &auth).await;
        let lines = rig.send(Message::to_bob()).await;
        assert_begins(&lines, &[expected]);
        assert!(
            !lines[0].contains("secret") && !lines[0].contains("c2Vj"),
            "{lines:?}"
        );
        server.finish().await;
    }
}

#[tokio::test]
async fn only_the_smarthost_gets_the_password() {
    let offer = HELLO
        .replace("PIPELINING", "AUTH PLAIN\nS: 250 PIPELINING")
        .replace("S: 250 AUTH", "S: 250-AUTH");
    let mapped = Server::play([format!("{offer}{TAKEN}")]).await;
    let (_file, auth) = auth("secret", "allow_plaintext_auth = true");
    let config = format!(
        "route = {{ smarthost = \"unused.test\" }}\n{auth}[domains]\n\"b.test\" = \"{}\"",
        mapped.address
    );
    assert_eq!(
        Rig::new(&config).await.send(Message::to_bob()).await,
        [DELIVERED]
    );
    mapped.finish().await;
}
