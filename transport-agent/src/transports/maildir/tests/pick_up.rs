use std::{
    collections::HashSet,
    fs::{self, File},
    io::Write,
    time::{Duration, SystemTime},
};

use pombo_proto::{
    ids::MessageId,
    verbs::{Flush, TransportState, Validation},
};

use super::{Fixture, names};
use crate::{
    provider::{Flow, Identity, Received, SaveError, Transport},
    transports::maildir::fakes::Receiver,
};

const MAIL: &str = "From: ann@x.org\r\nTo: bob@y.org\r\n\r\nhello\r\n";
const POLL: &str = "[pick_up]\nfolder = 'ROOT'\nmode = 'poll'\nsettle = '1h'\n";
const NOTIFY: &str = "[pick_up]\nfolder = 'ROOT'\nmode = 'notify'\nsettle = '1h'\n";
const MAILDIR: &str = "[pick_up]\nfolder = 'ROOT'\nstyle = 'maildir'\nmode = 'poll'\n";

async fn open(settings: &str) -> Fixture {
    let fixture = Fixture::new(settings).await;
    fixture.maildir.inbound(Flow::Begin).await;
    fixture
}

/// A complete file for a poller with a long `settle`: it has not been written for long.
fn put_old(fixture: &Fixture, name: &str, text: &str) {
    let path = fixture.path(name);
    fs::write(&path, text).unwrap();
    let old = SystemTime::now() - Duration::from_secs(7200);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(old)
        .unwrap();
}

async fn start(fixture: &Fixture, receiver: &Receiver) -> Received {
    fixture.maildir.start_message(receiver.handle()).await
}

fn id(received: &Received) -> MessageId {
    match received {
        Received::Saved { id, .. } => *id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_poller_finds_files_and_takes_each_once() {
    let fixture = open(POLL).await;
    assert!(fixture.reply.poll && fixture.reply.inbound && !fixture.reply.outbound);
    assert_eq!(
        fixture.maildir.address_types().types,
        Some(vec![String::new()])
    );
    assert_eq!(fixture.maildir.poll().await, 0);
    for name in [
        "a.eml",
        "b.eml",
        "c.txt",
        ".d.eml",
        "e.eml.tmp",
        "f.eml.part",
    ] {
        put_old(&fixture, name, MAIL);
    }
    assert_eq!(fixture.maildir.poll().await, 2);
    let receiver = Receiver::default();
    assert!(matches!(
        start(&fixture, &receiver).await,
        Received::Saved { more: true, .. }
    ));
    assert!(matches!(
        start(&fixture, &receiver).await,
        Received::Saved { more: false, .. }
    ));
    assert_eq!(start(&fixture, &receiver).await, Received::Nothing);
    let saved = receiver.saved();
    assert_eq!(saved.len(), 2);
    assert_eq!(
        (
            saved[0].sender.as_str(),
            saved[0].recipients[0].address.as_str()
        ),
        ("ann@x.org", "bob@y.org")
    );
    assert!(
        saved[0]
            .body
            .starts_with(b"Received: by agent.example.org ")
            && saved[0].body.ends_with(MAIL.as_bytes())
    );
    let left = names(fixture.directory.path());
    assert_eq!(
        left,
        [".d.eml", "c.txt", "e.eml.tmp", "f.eml.part", "failed"]
    );
}

#[tokio::test]
async fn nothing_is_taken_outside_of_begin_and_end() {
    let fixture = open(POLL).await;
    put_old(&fixture, "a.eml", MAIL);
    fixture.maildir.inbound(Flow::End).await;
    assert_eq!(fixture.maildir.poll().await, 0);
    assert_eq!(
        start(&fixture, &Receiver::default()).await,
        Received::Nothing
    );
    fixture.maildir.inbound(Flow::Begin).await;
    assert_eq!(fixture.maildir.poll().await, 1);
}

#[tokio::test]
async fn a_maildir_is_emptied_into_cur() {
    let fixture = open(&format!(
        "{MAILDIR}after = 'move'\nrecipients = ['all@x.org']"
    ))
    .await;
    fs::write(fixture.path("new/1.host"), "From: ann@x.org\n\nhello\n").unwrap();
    let receiver = Receiver::default();
    id(&start(&fixture, &receiver).await);
    assert_eq!(receiver.saved()[0].recipients[0].address, "all@x.org");
    assert!(
        receiver.saved()[0]
            .body
            .ends_with(b"From: ann@x.org\r\n\r\nhello\r\n")
    );
    assert_eq!(names(&fixture.path("cur")), ["1.host:2,S"]);
    assert!(names(&fixture.path("new")).is_empty());
}

#[tokio::test]
async fn files_are_announced_at_begin_and_when_they_come() {
    let fixture = Fixture::new(NOTIFY).await;
    put_old(&fixture, "early.eml", MAIL);
    fixture.maildir.inbound(Flow::Begin).await;
    fixture.support.more_news_than(0).await;
    let receiver = Receiver::default();
    id(&start(&fixture, &receiver).await);

    // Renamed into place.
    let before = fixture.support.news();
    fs::write(fixture.path("renamed.tmp"), MAIL).unwrap();
    fs::rename(fixture.path("renamed.tmp"), fixture.path("renamed.eml")).unwrap();
    fixture.support.more_news_than(before).await;
    id(&start(&fixture, &receiver).await);

    // Written in place: not taken before its writer closes it.
    let before = fixture.support.news();
    let mut file = File::create(fixture.path("slow.eml")).unwrap();
    file.write_all(&MAIL.as_bytes()[..20]).unwrap();
    assert_eq!(start(&fixture, &receiver).await, Received::Nothing);
    file.write_all(&MAIL.as_bytes()[20..]).unwrap();
    drop(file);
    fixture.support.more_news_than(before).await;
    id(&start(&fixture, &receiver).await);
    assert_eq!(receiver.saved().len(), 3);
    assert!(receiver.saved()[2].body.ends_with(MAIL.as_bytes()));
    fixture.maildir.shutdown().await;
}

#[tokio::test]
async fn a_link_into_a_maildir_is_announced() {
    let fixture = Fixture::new(&MAILDIR.replace("poll", "notify")).await;
    fs::write(fixture.path("new/1.host"), MAIL).unwrap();
    fixture.maildir.inbound(Flow::Begin).await;
    fixture.support.more_news_than(0).await;
    let receiver = Receiver::default();
    id(&start(&fixture, &receiver).await);
    // It is watched now, and the next regular look is far.
    let before = fixture.support.news();
    fs::write(fixture.path("staged"), MAIL).unwrap();
    fs::hard_link(fixture.path("staged"), fixture.path("new/2.host")).unwrap();
    fixture.support.more_news_than(before).await;
    id(&start(&fixture, &receiver).await);
    fixture.maildir.shutdown().await;
}

#[tokio::test]
async fn what_only_settles_is_taken_then() {
    let fixture = open(&NOTIFY.replace("1h", "50ms")).await;
    fs::write(fixture.path("outside"), MAIL).unwrap();
    // A link is no sign that the writer has finished.
    fs::hard_link(fixture.path("outside"), fixture.path("linked.eml")).unwrap();
    fixture.support.more_news_than(0).await;
    id(&start(&fixture, &Receiver::default()).await);
    fixture.maildir.shutdown().await;
}

#[tokio::test]
async fn a_folder_that_goes_and_comes_back_is_watched_again() {
    let fixture = open("[pick_up]\nfolder = 'ROOT'\nstyle = 'maildir'\n").await;
    put_old(&fixture, "new/1.host", MAIL);
    fixture.support.more_news_than(0).await;
    fs::rename(fixture.path("new"), fixture.path("away")).unwrap();
    fixture.support.status_is(TransportState::Failure).await;
    assert!(matches!(
        start(&fixture, &Receiver::default()).await,
        Received::Failed(_)
    ));
    let before = fixture.support.news();
    fs::create_dir(fixture.path("new")).unwrap();
    put_old(&fixture, "new/2.host", MAIL);
    fixture.support.more_news_than(before).await;
    fixture.support.status_is(TransportState::Available).await;
    id(&start(&fixture, &Receiver::default()).await);

    // Replaced between two looks.
    let before = fixture.support.news();
    fs::create_dir(fixture.path("next")).unwrap();
    put_old(&fixture, "next/3.host", MAIL);
    fs::rename(fixture.path("next"), fixture.path("new")).unwrap();
    fixture.support.more_news_than(before).await;
    fixture.maildir.shutdown().await;
}

#[tokio::test]
async fn a_file_stays_until_it_is_saved_and_keeps_its_id_over_a_restart() {
    let fixture = open(POLL).await;
    put_old(&fixture, "a.eml", MAIL);
    let receiver = Receiver::default();
    for error in [
        SaveError::Unconfirmed("no broker".to_owned()),
        SaveError::Blob("no disk".to_owned()),
    ] {
        receiver.refuse(error);
        assert!(matches!(
            start(&fixture, &receiver).await,
            Received::Failed(_)
        ));
    }
    receiver.refuse(SaveError::Cancelled);
    assert_eq!(start(&fixture, &receiver).await, Received::Cancelled);
    assert_eq!(names(fixture.directory.path()), ["a.eml", "failed"]);

    // A crash between SaveChanges and "done": the file is there again, by another name for its inode's sake.
    fs::hard_link(fixture.path("a.eml"), fixture.path("kept")).unwrap();
    receiver.refuse(None);
    let first = id(&start(&fixture, &receiver).await);
    fs::rename(fixture.path("kept"), fixture.path("a.eml")).unwrap();
    let fixture = fixture.restarted(POLL).await;
    fixture.maildir.inbound(Flow::Begin).await;
    assert_eq!(id(&start(&fixture, &receiver).await), first);
    assert!(matches!(
        &receiver.saved()[0].identity,
        Identity::Derived(_)
    ));

    // The same name and content in another file is another message.
    put_old(&fixture, "a.eml", MAIL);
    assert_ne!(id(&start(&fixture, &receiver).await), first);
}

#[tokio::test]
async fn a_cancelled_delivery_leaves_the_file() {
    let fixture = open(POLL).await;
    put_old(&fixture, "a.eml", MAIL);
    let receiver = Receiver::default();
    receiver.cancel();
    assert_eq!(start(&fixture, &receiver).await, Received::Cancelled);
    assert!(receiver.saved().is_empty());
    id(&start(&fixture, &Receiver::default()).await);
}

#[tokio::test]
async fn concurrent_receptions_take_different_files() {
    let fixture = open(POLL).await;
    for number in 0..60 {
        put_old(
            &fixture,
            &format!("{number}.eml"),
            &format!("{MAIL}{number}"),
        );
    }
    let receiver = Receiver::default();
    let starts = (0..70).map(|_| start(&fixture, &receiver));
    let received = futures_util::future::join_all(starts).await;
    let ids: HashSet<_> = received
        .iter()
        .filter(|one| **one != Received::Nothing)
        .map(id)
        .collect();
    assert_eq!((ids.len(), receiver.saved().len()), (60, 60));
    assert_eq!(names(fixture.directory.path()), ["failed"]);
}

#[tokio::test]
async fn what_cannot_be_sent_goes_to_failed_with_its_reason_and_stops_nobody() {
    let fixture = open(&format!("{POLL}size_max = 1000")).await;
    put_old(&fixture, "a.eml", "this is no message");
    put_old(&fixture, "b.eml", "From: ann@x.org\n\nto nobody\n");
    put_old(&fixture, "c.eml", &format!("{MAIL}{}", "x".repeat(1000)));
    put_old(&fixture, "d.eml", MAIL);
    let receiver = Receiver::default();
    assert!(matches!(
        start(&fixture, &receiver).await,
        Received::Saved { more: false, .. }
    ));
    assert_eq!(receiver.saved().len(), 1);
    let failed = names(&fixture.path("failed"));
    assert_eq!(
        failed,
        [
            "a.eml",
            "a.eml.reason",
            "b.eml",
            "b.eml.reason",
            "c.eml",
            "c.eml.reason"
        ]
    );
    let reason = |name: &str| fs::read_to_string(fixture.path("failed").join(name)).unwrap();
    assert!(reason("b.eml.reason").contains("no recipients"));
    assert!(reason("c.eml.reason").contains("1000 bytes"));
    assert_eq!(names(fixture.directory.path()), ["failed"]);
}

#[tokio::test]
async fn what_the_spool_never_takes_goes_to_failed() {
    let fixture = open(POLL).await;
    put_old(&fixture, "a.eml", MAIL);
    let receiver = Receiver::default();
    receiver.refuse(SaveError::TooLarge(5));
    assert_eq!(start(&fixture, &receiver).await, Received::Nothing);
    assert_eq!(names(&fixture.path("failed")), ["a.eml", "a.eml.reason"]);
}

#[tokio::test]
async fn links_are_not_followed() {
    let fixture = open(POLL).await;
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), MAIL).unwrap();
    std::os::unix::fs::symlink(outside.path(), fixture.path("a.eml")).unwrap();
    fs::create_dir(fixture.path("b.eml")).unwrap();
    assert_eq!(fixture.maildir.poll().await, 0);
    assert_eq!(
        start(&fixture, &Receiver::default()).await,
        Received::Nothing
    );
}

#[tokio::test]
async fn what_cannot_be_removed_is_shown_and_not_taken_again() {
    let fixture = open(&format!("{POLL}after = 'move'")).await;
    put_old(&fixture, "a.eml", MAIL);
    fs::remove_dir(fixture.path("done")).unwrap();
    fs::write(fixture.path("done"), "in the way").unwrap();
    let receiver = Receiver::default();
    assert!(matches!(
        start(&fixture, &receiver).await,
        Received::Saved { more: false, .. }
    ));
    assert_eq!(start(&fixture, &receiver).await, Received::Nothing);
    assert_eq!(fixture.maildir.poll().await, 0);
    let (state, shown) = fixture.support.last_status().unwrap();
    assert_eq!(state, TransportState::Failure);
    assert!(shown.unwrap().contains("1 files cannot be removed"));
    assert!(matches!(
        fixture.maildir.validate_state(false).await,
        Validation::Failing(_)
    ));
    assert!(fixture.path("a.eml").exists());
}

#[tokio::test]
async fn a_flush_announces_what_is_there() {
    let fixture = open(POLL).await;
    put_old(&fixture, "a.eml", MAIL);
    let flush = Flush {
        upload: false,
        download: true,
        force: false,
    };
    fixture.maildir.flush_queues(flush).await;
    fixture.support.more_news_than(0).await;
}
