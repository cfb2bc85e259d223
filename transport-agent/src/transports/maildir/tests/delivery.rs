use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use pombo_proto::{
    ids::{RecipientIndex, Reference},
    outcome::{Outcome, SubmitResult},
    verbs::{LogonError, Validation},
};

use super::{Fixture, made, names};
use crate::{
    provider::Transport,
    transports::maildir::fakes::{FakeSupport, Submitted, envelope},
};

const SETTINGS: &str = "addresses = ['SMTP:*@x.org']\npath = 'ROOT/{domain}/{local}'\ncreate = true\nseparator = '+'\n";
const CLOSED: &str = "addresses = ['SMTP:*@x.org']\npath = 'ROOT/{domain}/{local}'\n";
const BODY: &str = "Subject: hi\r\nTo: ann@x.org\r\n\r\nfirst\r\n\r\nlast\r\n";

fn message(recipients: &[&str]) -> Submitted {
    Submitted::new(envelope(recipients, BODY.len() as u64), BODY)
}

/// The outcomes of a submission, by recipient.
async fn submit(fixture: &Fixture, message: &Submitted) -> Vec<Outcome> {
    let SubmitResult::Ok(mut outcomes) = fixture.maildir.submit_message(message.handle()).await
    else {
        panic!("not submitted");
    };
    outcomes.sort_by_key(|one| one.recipient);
    let indices: Vec<_> = outcomes.iter().map(|one| one.recipient).collect();
    let everybody: Vec<_> = (0..).map(RecipientIndex).take(indices.len()).collect();
    assert_eq!(indices, everybody, "an outcome for each recipient, once");
    outcomes.into_iter().map(|one| one.outcome).collect()
}

/// The status code of a failure, or `delivered`.
fn code(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Delivered(_) => "delivered".to_owned(),
        Outcome::Failed(diagnosis) | Outcome::Deferred { diagnosis, .. } => {
            diagnosis.status.to_string()
        }
        Outcome::Left => "left".to_owned(),
        Outcome::Kept => "kept".to_owned(),
        Outcome::InDoubt(_) => "in doubt".to_owned(),
    }
}

async fn code_of(fixture: &Fixture, message: &Submitted) -> String {
    code(&submit(fixture, message).await[0])
}

/// All files with mail in a Maildir, wherever its reader has put them.
fn copies(fixture: &Fixture, mailbox: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for part in ["new", "cur", "tmp"] {
        let directory = fixture.path(mailbox).join(part);
        found.extend(
            names(&directory)
                .into_iter()
                .map(|name| directory.join(name)),
        );
    }
    found
}

#[tokio::test]
async fn a_delivered_message_is_the_submitted_one_behind_its_trace() {
    let fixture = Fixture::new(SETTINGS).await;
    assert!(
        fixture.reply.outbound
            && fixture.reply.idle
            && !fixture.reply.inbound
            && !fixture.reply.poll
    );
    let message = message(&["Ann+lists@x.org", "bob@x.org"]);
    let codes: Vec<_> = submit(&fixture, &message).await.iter().map(code).collect();
    assert_eq!(codes, ["delivered", "delivered"]);
    assert_ne!(message.reference(), Reference::UNASSIGNED_OUTBOUND);
    let found = copies(&fixture, "x.org/ann");
    assert_eq!(found.len(), 1);
    let text = fs::read_to_string(&found[0]).unwrap();
    assert_eq!(
        text,
        format!("Return-Path: <sender@example.net>\r\nDelivered-To: Ann+lists@x.org\r\n{BODY}")
    );
    assert_eq!(names(&fixture.path("x.org/bob/new")).len(), 1);
    assert!(names(&fixture.path("x.org/ann/tmp")).is_empty());
}

#[tokio::test]
async fn line_ends_can_be_lf() {
    let fixture = Fixture::new(&format!("{SETTINGS}line_ends = 'lf'")).await;
    submit(&fixture, &message(&["ann@x.org"])).await;
    let text = fs::read_to_string(&copies(&fixture, "x.org/ann")[0]).unwrap();
    assert!(text.ends_with(&BODY.replace("\r\n", "\n")) && !text.contains('\r'));
}

#[tokio::test]
async fn a_repeat_is_no_second_copy_wherever_the_first_is_now() {
    for reader in ["leaves", "moves", "deletes"] {
        let mut fixture = Fixture::new(SETTINGS).await;
        let message = message(&["ann@x.org"]);
        assert_eq!(code_of(&fixture, &message).await, "delivered");
        let first = copies(&fixture, "x.org/ann").remove(0);
        let name = first.file_name().unwrap().to_str().unwrap().to_owned();
        match reader {
            "moves" => fs::rename(
                first,
                fixture.path("x.org/ann/cur").join(format!("{name}:2,S")),
            )
            .unwrap(),
            "deletes" => fs::remove_file(first).unwrap(),
            _ => {}
        }
        let before = copies(&fixture, "x.org/ann");
        assert_eq!(code_of(&fixture, &message).await, "delivered");
        fixture = fixture.restarted(SETTINGS).await;
        assert_eq!(code_of(&fixture, &message).await, "delivered");
        assert_eq!(
            copies(&fixture, "x.org/ann"),
            before,
            "the reader {reader} the first copy"
        );
    }
}

/// A delivery taken back to the moment between link and rename: the staged file, the link, and where the copy was.
async fn interrupted(fixture: &Fixture, message: &Submitted) -> [PathBuf; 3] {
    submit(fixture, message).await;
    let delivered = copies(fixture, "x.org/ann").remove(0);
    let name = delivered.file_name().unwrap().to_str().unwrap().to_owned();
    let week = names(&fixture.path("x.org/ann/pombo")).remove(0);
    let memory = fixture.path("x.org/ann/pombo").join(week).join(&name);
    assert_eq!(
        fs::read(&memory).unwrap(),
        b"",
        "settled: a deleted mail is gone"
    );
    let staged = fixture
        .path("x.org/ann/tmp")
        .join(format!("{name}.0123456789abcdef"));
    fs::rename(&delivered, &staged).unwrap();
    fs::remove_file(&memory).unwrap();
    fs::hard_link(&staged, &memory).unwrap();
    [staged, memory, delivered]
}

#[tokio::test]
async fn an_attempt_that_died_before_the_rename_is_finished_by_the_next() {
    let fixture = Fixture::new(SETTINGS).await;
    let message = message(&["ann@x.org"]);
    let [_, memory, delivered] = interrupted(&fixture, &message).await;
    assert_eq!(code_of(&fixture, &message).await, "delivered");
    assert_eq!(copies(&fixture, "x.org/ann"), [delivered.as_path()]);
    assert_eq!(fs::read(memory).unwrap(), b"");
}

#[tokio::test]
async fn an_attempt_that_died_before_the_link_is_made_anew() {
    let fixture = Fixture::new(SETTINGS).await;
    let message = message(&["ann@x.org"]);
    let [staged, memory, delivered] = interrupted(&fixture, &message).await;
    fs::remove_file(memory).unwrap();
    fs::write(&staged, "half a mess").unwrap();
    assert_eq!(code_of(&fixture, &message).await, "delivered");
    // And once more, with the rubbish still there.
    assert_eq!(code_of(&fixture, &message).await, "delivered");
    assert_eq!(copies(&fixture, "x.org/ann"), [delivered.clone(), staged]);
    assert!(fs::read_to_string(delivered).unwrap().ends_with(BODY));
}

#[tokio::test]
async fn an_attempt_that_died_after_the_rename_has_delivered() {
    for reader in ["leaves", "moves", "deletes"] {
        let fixture = Fixture::new(SETTINGS).await;
        let message = message(&["ann@x.org"]);
        let [staged, ..] = interrupted(&fixture, &message).await;
        let elsewhere = fixture.path("x.org/ann/filed");
        match reader {
            "leaves" => fs::rename(&staged, fixture.path("x.org/ann/cur/x:2,")).unwrap(),
            "moves" => fs::rename(&staged, elsewhere).unwrap(),
            _ => fs::remove_file(&staged).unwrap(),
        }
        let before = copies(&fixture, "x.org/ann");
        assert_eq!(code_of(&fixture, &message).await, "delivered");
        assert_eq!(
            copies(&fixture, "x.org/ann"),
            before,
            "the reader {reader} the first copy"
        );
    }
}

#[tokio::test]
async fn a_staged_file_that_others_cleared_away_loses_no_mail() {
    let fixture = Fixture::new(SETTINGS).await;
    let message = message(&["ann@x.org"]);
    let [staged, memory, delivered] = interrupted(&fixture, &message).await;
    fs::remove_file(&staged).unwrap();
    let old = SystemTime::now() - Duration::from_secs(40 * 3600);
    fs::File::open(&memory).unwrap().set_modified(old).unwrap();
    assert_eq!(code_of(&fixture, &message).await, "delivered");
    assert_eq!(copies(&fixture, "x.org/ann"), [delivered]);
}

#[tokio::test]
async fn two_holders_at_once_leave_one_copy() {
    let fixture = Fixture::new(SETTINGS).await;
    for _ in 0..50 {
        let message = message(&["ann@x.org"]);
        let (one, other) = tokio::join!(submit(&fixture, &message), submit(&fixture, &message));
        assert_eq!(
            (code(&one[0]), code(&other[0])),
            ("delivered".to_owned(), "delivered".to_owned())
        );
    }
    assert_eq!(names(&fixture.path("x.org/ann/new")).len(), 50);
    assert!(names(&fixture.path("x.org/ann/tmp")).is_empty());
}

#[tokio::test]
async fn who_has_no_mailbox_is_unknown_and_nothing_is_made() {
    let fixture = Fixture::new(CLOSED).await;
    fs::create_dir_all(fixture.path("x.org/ann")).unwrap();
    let outcomes = submit(&fixture, &message(&["ann@x.org", "eve@x.org"])).await;
    assert_eq!(
        [code(&outcomes[0]), code(&outcomes[1])],
        ["delivered", "5.1.1"]
    );
    assert!(!fixture.path("x.org/eve").exists());
}

#[tokio::test]
async fn a_root_that_is_away_makes_nobody_unknown() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("mail");
    for settings in [SETTINGS, CLOSED] {
        fs::create_dir_all(&root).unwrap();
        let maildir = made(&root, settings);
        maildir
            .logon(std::sync::Arc::new(FakeSupport::default()))
            .await
            .unwrap();
        assert_eq!(maildir.validate_state(false).await, Validation::Ok);
        fs::remove_dir_all(&root).unwrap();
        let SubmitResult::Ok(outcomes) = maildir
            .submit_message(message(&["ann@x.org"]).handle())
            .await
        else {
            panic!("not submitted");
        };
        assert!(matches!(
            &outcomes[0].outcome,
            Outcome::Deferred {
                destination_down: true,
                ..
            }
        ));
        assert!(!root.exists());
        assert!(matches!(
            maildir.validate_state(false).await,
            Validation::Failing(_)
        ));
        let logon = maildir
            .logon(std::sync::Arc::new(FakeSupport::default()))
            .await;
        // Logon alone makes it, where Maildirs are made: an agent that is started for the first time.
        if settings == SETTINGS {
            assert!(logon.is_ok() && root.is_dir());
        } else {
            assert!(matches!(logon, Err(LogonError::FailOneProvider(_))));
        }
    }
}

#[tokio::test]
async fn addresses_that_would_leave_their_place_fail() {
    let fixture = Fixture::new(SETTINGS).await;
    let bad = [
        "../../up@x.org",
        ".ssh@x.org",
        "a/b@x.org",
        "a\0@x.org",
        "ann+\r\nX: y@x.org",
        "nobody",
    ];
    let outcomes = submit(&fixture, &message(&bad)).await;
    assert!(
        outcomes.iter().all(|outcome| code(outcome) == "5.1.3"),
        "{outcomes:?}"
    );
    assert!(names(fixture.directory.path()).is_empty());
}

#[tokio::test]
async fn a_file_system_in_the_way_is_temporary_and_spoils_no_other_copy() {
    let fixture = Fixture::new(SETTINGS).await;
    fs::create_dir_all(fixture.path("x.org/ann/new")).unwrap();
    fs::write(fixture.path("x.org/ann/tmp"), "in the way").unwrap();
    fs::write(fixture.path("x.org/bob"), "in the way").unwrap();
    fs::create_dir_all(fixture.path("x.org/dora/tmp")).unwrap();
    fs::write(fixture.path("x.org/dora/new"), "in the way").unwrap();
    let outcomes = submit(
        &fixture,
        &message(&["ann@x.org", "bob@x.org", "carl@x.org", "dora@x.org"]),
    )
    .await;
    let codes: Vec<_> = outcomes.iter().map(code).collect();
    assert_eq!(codes, ["4.3.0", "4.3.0", "delivered", "4.3.0"]);
    // What stood in the way goes, and the next attempt succeeds with one copy.
    fs::remove_file(fixture.path("x.org/dora/new")).unwrap();
    fs::create_dir(fixture.path("x.org/dora/new")).unwrap();
}

#[tokio::test]
async fn a_copy_whose_rename_failed_is_delivered_by_the_next_attempt() {
    let fixture = Fixture::new(SETTINGS).await;
    fs::create_dir_all(fixture.path("x.org/ann/tmp")).unwrap();
    fs::write(fixture.path("x.org/ann/new"), "in the way").unwrap();
    let message = message(&["ann@x.org"]);
    assert_eq!(code_of(&fixture, &message).await, "4.3.0");
    fs::remove_file(fixture.path("x.org/ann/new")).unwrap();
    assert_eq!(
        code_of(&fixture, &message).await,
        "4.3.0",
        "new is missing, which proves nothing"
    );
    fs::create_dir(fixture.path("x.org/ann/new")).unwrap();
    assert_eq!(code_of(&fixture, &message).await, "delivered");
    assert_eq!(copies(&fixture, "x.org/ann").len(), 1);
}

#[tokio::test]
async fn mail_that_goes_round_fails() {
    let fixture = Fixture::new(SETTINGS).await;
    let body = format!("Delivered-To: Ann@X.org\r\n{BODY}");
    let message = Submitted::new(
        envelope(&["ann@x.org", "bob@x.org"], body.len() as u64),
        body,
    );
    let outcomes = submit(&fixture, &message).await;
    assert_eq!(
        [code(&outcomes[0]), code(&outcomes[1])],
        ["5.4.6", "delivered"]
    );
}

#[tokio::test]
async fn without_the_right_to_finish_nothing_is_left_behind() {
    let fixture = Fixture::new(SETTINGS).await;
    let message = message(&["ann@x.org"]);
    message.forbid();
    assert_eq!(code_of(&fixture, &message).await, "4.3.0");
    message.cancel();
    let cancelled = fixture.maildir.submit_message(message.handle()).await;
    assert_eq!(cancelled, SubmitResult::Cancelled(Vec::new()));
    assert!(names(&fixture.path("x.org/ann/new")).is_empty());
    assert!(!fixture.path("x.org/ann/pombo").exists());
}

#[tokio::test]
async fn many_recipients_of_many_mailboxes_get_one_copy_each() {
    let fixture = Fixture::new(SETTINGS).await;
    let addresses: Vec<String> = (0..300)
        .map(|number| format!("u{}+{number}@x.org", number % 7))
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let outcomes = submit(&fixture, &message(&addresses)).await;
    assert!(outcomes.iter().all(|outcome| code(outcome) == "delivered"));
    let files: usize = (0..7)
        .map(|user| copies(&fixture, &format!("x.org/u{user}")).len())
        .sum();
    assert_eq!(files, 300);
}

/// Not a test of anything: prints deliveries per second, with every sync.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_deliveries() {
    for (mailboxes, together) in [(1, 1), (1, 16), (200, 1), (200, 16), (200, 64)] {
        let fixture = Fixture::new(&format!("{SETTINGS}concurrency = {together}")).await;
        let body = bytes::Bytes::from(format!("{BODY}{}", "x".repeat(10 * 1024)));
        let count = 4_000;
        let begun = std::time::Instant::now();
        let mut running = tokio::task::JoinSet::new();
        for number in 0..count {
            if running.len() >= together {
                running.join_next().await;
            }
            let address = format!("u{}@x.org", number % mailboxes);
            let message = Submitted::new(envelope(&[&address], 0), body.clone());
            let maildir = fixture.maildir.clone();
            running.spawn(async move { maildir.submit_message(message.handle()).await });
        }
        running.join_all().await;
        let rate = f64::from(count) / begun.elapsed().as_secs_f64();
        println!("{mailboxes} mailboxes, {together} at a time: {rate:.0} deliveries/s");
    }
}
