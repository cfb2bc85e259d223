use super::*;

const USER: &str = "user";
const PASSWORD: &str = "pencil";
/// The exchange of RFC 7677 section 3.
const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const CHALLENGE: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const PROOF: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SIGNATURE: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

fn verifier() -> Verifier {
    let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    Verifier::derive(PASSWORD, salt, acceptable(4096).unwrap()).unwrap()
}

fn challenge() -> Challenge {
    let first = ClientFirst::parse(format!("n,,n=user,r={NONCE}").as_bytes()).unwrap();
    let (challenge, said) = first.challenge_with(&verifier(), SERVER_NONCE);
    assert_eq!(said, CHALLENGE);
    challenge
}

#[test]
fn the_exchange_of_the_standard() {
    let client = Client::with_nonce(USER, PASSWORD, NONCE.to_owned()).unwrap();
    assert_eq!(client.first(), format!("n,,n=user,r={NONCE}"));
    let (proof, expected) = client.answer(CHALLENGE.as_bytes()).unwrap();
    assert_eq!(proof, PROOF);
    assert_eq!(challenge().finish(PROOF.as_bytes()).unwrap(), SIGNATURE);
    expected.check(SIGNATURE.as_bytes()).unwrap();
    for lie in ["v=", "e=other-error", "v=AAAA", "", &SIGNATURE[..20]] {
        assert_eq!(expected.check(lie.as_bytes()), Err(Error::Server), "{lie}");
    }
}

#[test]
fn two_strangers_understand_each_other_and_a_wrong_password_fails() {
    for (user, password, said, result) in [
        ("ann", "s3cret", "s3cret", None),
        ("a,n=n", "p,=2C", "p,=2C", None),
        ("ann@example.org", "gr\u{fc}n", "gru\u{308}n", None),
        ("ann", "s3cret", "S3cret", Some(Error::Proof)),
    ] {
        let verifier = Verifier::with_iterations(password, 4096).unwrap();
        assert_eq!(verifier.accepts(said), result.is_none());
        let client = Client::new(user, said).unwrap();
        let first = ClientFirst::parse(client.first().as_bytes()).unwrap();
        assert_eq!(first.user(), user);
        assert_eq!(first.acting_as(), None);
        let (challenge, said) = first.challenge(&verifier).unwrap();
        let (proof, expected) = client.answer(said.as_bytes()).unwrap();
        let finished = challenge.finish(proof.as_bytes());
        assert_eq!(finished.as_ref().err(), result.as_ref());
        if let Ok(signature) = finished {
            expected.check(signature.as_bytes()).unwrap();
        }
    }
}

#[test]
fn a_verifier_is_written_and_read_and_shows_nothing() {
    let verifier = verifier();
    let text = verifier.to_string();
    assert!(text.starts_with("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"));
    let again: Verifier = text.parse().unwrap();
    assert!(again.accepts(PASSWORD) && !again.accepts("pencils") && !again.accepts(""));
    assert_eq!(again.to_string(), text);
    assert_eq!(format!("{verifier:?}"), "Verifier { .. }");
    for bad in [
        "",
        "pencil",
        &text[..text.len() - 3],
        &text.replace("4096", "1"),
        &text.replace("4096", "9999999"),
        &text.replace("4096", "+4096"),
        &text.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "AAAA"),
        &text.replace("SCRAM-SHA-256", "SCRAM-SHA-1"),
        &format!("{text}$x"),
    ] {
        let error = bad.parse::<Verifier>().unwrap_err();
        assert!(matches!(error, Error::Verifier | Error::Weak), "{bad}");
    }
    // Each has a salt of its own.
    let two = [(); 2].map(|()| {
        Verifier::with_iterations(PASSWORD, 4096)
            .unwrap()
            .to_string()
    });
    assert_ne!(two[0], two[1]);
}

#[test]
fn who_does_not_exist_has_the_same_salt_every_time() {
    let [one, two] = [(); 2].map(|()| Verifier::pretended(b"secret", "nobody"));
    assert_eq!(one.to_string(), two.to_string());
    let other = Verifier::pretended(b"secret", "somebody");
    assert_ne!(one.salt, other.salt);
    assert!(!one.accepts(PASSWORD));
}

#[test]
fn first_messages_that_are_none_are_refused() {
    for (message, error) in [
        ("", Error::Malformed),
        ("n", Error::Malformed),
        ("n,", Error::Malformed),
        ("n,,", Error::Malformed),
        ("n,,n=user", Error::Malformed),
        ("n,,r=x,n=user", Error::Malformed),
        ("n,,m=x,n=user,r=x", Error::Malformed),
        ("x,,n=user,r=x", Error::Malformed),
        ("p=tls-exporter,,n=user,r=x", Error::ChannelBinding),
        ("n,b=x,n=user,r=x", Error::Malformed),
        ("n,,n=us=er,r=x", Error::Malformed),
        ("n,,n=us=2c,r=x", Error::Malformed),
        ("n,,n=,r=x", Error::Credential),
        ("n,,n=a\u{7},r=x", Error::Credential),
        ("n,,n=user,r=", Error::Nonce),
        ("n,,n=user,r=a b", Error::Nonce),
    ] {
        let refused = ClientFirst::parse(message.as_bytes()).unwrap_err();
        assert_eq!(refused, error, "{message:?}");
    }
    let long = format!("n,,n={},r=x", "u".repeat(MESSAGE_BYTES_MAX));
    assert_eq!(
        ClientFirst::parse(long.as_bytes()).unwrap_err(),
        Error::Malformed
    );
    assert!(ClientFirst::parse(b"n,,n=\xff,r=x").is_err());
    let other = ClientFirst::parse(b"y,a=boss,n=us=3Der,r=x,z=1").unwrap();
    assert_eq!((other.user(), other.acting_as()), ("us=er", Some("boss")));
    let same = ClientFirst::parse(b"n,a=user,n=user,r=x").unwrap();
    assert_eq!(same.acting_as(), None);
}

#[test]
fn proofs_that_do_not_fit_are_refused() {
    let long = "A".repeat(MESSAGE_BYTES_MAX);
    for (message, error) in [
        ("", Error::Malformed),
        (PROOF.split(",p=").next().unwrap(), Error::Malformed),
        (&PROOF.replace("c=biws", "c=eSws"), Error::ChannelBinding),
        (&PROOF.replace("r=r", "r=s"), Error::Nonce),
        (&PROOF.replace("p=d", "p=e"), Error::Proof),
        (&PROOF.replace("p=dH", "p="), Error::Malformed),
        (&PROOF.replace(",p=", ",m=x,p="), Error::Malformed),
        (&PROOF.replace(",p=", ",x=y,p="), Error::Proof),
        (&long, Error::Malformed),
    ] {
        let refused = challenge().finish(message.as_bytes()).unwrap_err();
        assert_eq!(refused, error, "{message:?}");
    }
}

#[test]
fn a_client_does_not_work_for_a_server_that_asks_too_much_or_too_little() {
    let answer = |challenge: &str| {
        let client = Client::with_nonce(USER, PASSWORD, NONCE.to_owned()).unwrap();
        client.answer(challenge.as_bytes()).err()
    };
    assert_eq!(answer(CHALLENGE), None);
    for (challenge, error) in [
        ("", Error::Malformed),
        ("e=unknown-user", Error::Malformed),
        (&CHALLENGE.replace("i=4096", "i=1"), Error::Weak),
        (&CHALLENGE.replace("i=4096", "i=4000000000"), Error::Weak),
        (&CHALLENGE.replace("i=4096", "i=-1"), Error::Malformed),
        (
            &CHALLENGE.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "AAAA"),
            Error::Weak,
        ),
        (&CHALLENGE.replace("r=r", "r=s"), Error::Nonce),
        (&CHALLENGE.replace(SERVER_NONCE, ""), Error::Nonce),
    ] {
        assert_eq!(answer(challenge), Some(error), "{challenge:?}");
    }
}
