//! The server: durable or refused, encrypted or refused, ours or left alone.

use std::path::Path;

use pombo_proto::{
    control::{QueueFilter, QueueState},
    ids::Incarnation,
    time::UnixMillis,
};
use pombo_spooler::store::{
    Change, Error, Postgres, RowData, Store, Write, Written, postgres::Options,
};
use pombo_tests::{postgres::Postgres as Server, scratch::Scratch, tls::Certificate};

use super::{Shared, options};
use crate::support::*;

#[test]
fn a_server_that_may_forget_what_it_has_committed_is_refused() {
    for line in ["synchronous_commit = off", "fsync = off"] {
        let server = Server::builder().line(line).start().unwrap();
        let refused = Postgres::open(options(&server, "pombo"));
        let Err(Error::Unusable(text)) = refused else {
            panic!("{line}: {refused:?}");
        };
        let setting = line.split_whitespace().next().unwrap();
        assert!(text.contains(setting), "{text}");
        let tables = server.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'pombo'");
        assert_eq!(tables.unwrap(), "0");
    }
}

#[test]
fn a_setting_that_is_changed_later_does_not_reach_a_connection_that_stands() {
    let server = Server::start().unwrap();
    let mut store = Postgres::open(options(&server, "pombo")).unwrap();
    server
        .sql("ALTER SYSTEM SET synchronous_commit = off")
        .unwrap();
    server.sql("SELECT pg_reload_conf()").unwrap();
    store.moved(Shared::new().id(), waiting(NOW));
    // Whoever connects from now on is refused; the other goes on with what it was promised.
    eventually(|| {
        matches!(
            Postgres::open(options(&server, "pombo")),
            Err(Error::Unusable(_))
        )
    });
    assert_eq!(store.counts().unwrap().waiting, 1);
}

fn eventually(condition: impl Fn() -> bool) {
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < limit);
        std::thread::yield_now();
    }
}

/// Files of a certificate, and what believes it.
fn files(
    scratch: &Scratch,
    name: &str,
    certificate: &Certificate,
) -> (std::path::PathBuf, std::path::PathBuf) {
    certificate.write_to(&scratch.join(name)).unwrap()
}

fn said(refused: Result<Postgres, Error>) -> String {
    match refused {
        Err(Error::Unavailable(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_is_believed_by_its_certificate_and_its_name_alone() {
    let scratch = Scratch::new("tls").unwrap();
    let (right, other, elsewhere) = (
        Certificate::for_localhost().unwrap(),
        Certificate::for_localhost().unwrap(),
        Certificate::for_names(&["db.example"]).unwrap(),
    );
    let server = Server::builder()
        .certificate(&right)
        .access("hostssl all all 127.0.0.1/32 scram-sha-256")
        .start()
        .unwrap();
    let with = |certificate: &Certificate, name: &str| Options {
        ca_file: Some(files(&scratch, name, certificate).0),
        ..options(&server, "pombo")
    };
    let mut store = Postgres::open(with(&right, "right")).unwrap();
    store.moved(Shared::new().id(), waiting(NOW));
    let encrypted = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
                     WHERE s.ssl AND a.application_name = 'pombo-spooler'";
    assert_eq!(server.sql(encrypted).unwrap(), "1");
    let text = said(Postgres::open(with(&other, "other")));
    assert!(text.contains("certificate"), "{text}");
    // Plain text is what the server refuses here, by its rule of access.
    said(Postgres::open(options(&server, "pombo")));

    let server = Server::builder().certificate(&elsewhere).start().unwrap();
    let wrong_name = Options {
        ca_file: Some(files(&scratch, "elsewhere", &elsewhere).0),
        ..options(&server, "pombo")
    };
    let text = said(Postgres::open(wrong_name));
    assert!(text.contains("certificate"), "{text}");
}

#[test]
fn a_server_without_tls_is_not_spoken_to_where_tls_is_wanted() {
    let scratch = Scratch::new("tls").unwrap();
    let certificate = Certificate::for_localhost().unwrap();
    let shared = Shared::new();
    let wanted = Options {
        ca_file: Some(files(&scratch, "ca", &certificate).0),
        ..shared.options()
    };
    let text = said(Postgres::open(wanted));
    assert!(text.to_lowercase().contains("tls"), "{text}");
}

#[test]
fn a_client_certificate_opens_the_door_and_its_absence_does_not() {
    let scratch = Scratch::new("tls").unwrap();
    let (theirs, ours) = (
        Certificate::for_localhost().unwrap(),
        Certificate::for_names(&["pombo"]).unwrap(),
    );
    let server = Server::builder()
        .certificate(&theirs)
        .clients(&ours.certificate_pem)
        .access("hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca")
        .start()
        .unwrap();
    let (certificate, key) = files(&scratch, "ours", &ours);
    let without = Options {
        ca_file: Some(files(&scratch, "theirs", &theirs).0),
        ..options(&server, "pombo")
    };
    said(Postgres::open(without.clone()));
    let with = |certificate: &Path, key: &Path| Options {
        certificate: Some(certificate.to_owned()),
        key: Some(key.to_owned()),
        ..without.clone()
    };
    let mut store = Postgres::open(with(&certificate, &key)).unwrap();
    store.moved(Shared::new().id(), waiting(NOW));
    let (_, other_key) = files(&scratch, "other", &theirs);
    let (wrong, text) = with(&certificate, &other_key).check().unwrap_err();
    assert_eq!(wrong, "key", "{text}");
}

#[test]
fn a_wrong_password_is_said_and_not_shown_and_the_right_one_needs_no_restart() {
    let scratch = Scratch::new("password").unwrap();
    let file = scratch.write("password", "open-sesame\n").unwrap();
    let shared = Shared::new();
    let wrong = Options {
        password_file: Some(file.clone()),
        ..shared.options()
    };
    let text = said(Postgres::open(wrong.clone()));
    assert!(
        text.contains("28P01") && !text.contains("open-sesame"),
        "{text}"
    );
    assert!(!format!("{wrong:?}").contains("open-sesame"));
    let right = std::fs::read(shared.options().password_file.unwrap()).unwrap();
    std::fs::write(file, right).unwrap();
    Postgres::open(wrong).unwrap();
}

#[test]
fn a_foreign_schema_is_refused_and_left_as_it_is() {
    let shared = Shared::new();
    let schema = shared.schema();
    shared.sql(&format!(
        "CREATE SCHEMA {schema}; CREATE TABLE {schema}.theirs (x int)"
    ));
    assert!(matches!(shared.try_open(), Err(Error::Unusable(_))));
    shared.sql(&format!("CREATE TABLE {schema}.meta (x int)"));
    assert!(matches!(shared.try_open(), Err(Error::Unusable(_))));
    let tables = format!("SELECT count(*) FROM pg_tables WHERE schemaname = '{schema}'");
    assert_eq!(shared.sql(&tables), "2");
}

#[test]
fn a_newer_version_is_refused() {
    let shared = Shared::new();
    drop(shared.open());
    shared.sql("UPDATE meta SET version = 999");
    assert!(matches!(shared.try_open(), Err(Error::Unusable(_))));
}

#[test]
fn processes_that_start_at_once_make_one_store() {
    for _ in 0..3 {
        let shared = Shared::new();
        let ids: Vec<_> = (0..4).map(|_| shared.id()).collect();
        let racers: Vec<_> = ids
            .iter()
            .map(|&id| {
                let options = shared.options();
                std::thread::spawn(move || {
                    let mut store = Postgres::open(options).unwrap();
                    store.moved(id, waiting(NOW));
                })
            })
            .collect();
        for racer in racers {
            racer.join().unwrap();
        }
        assert_eq!(shared.open().counts().unwrap().waiting, 4);
    }
}

#[test]
fn what_was_committed_is_there_after_a_crash_of_the_server() {
    let server = Server::start().unwrap();
    let mut store = Postgres::open(options(&server, "pombo")).unwrap();
    let id = Shared::new().id();
    store.moved(id, waiting(NOW));
    server.kill9();
    server.start_again().unwrap();
    let mut store = Postgres::open(options(&server, "pombo")).unwrap();
    assert_eq!(store.row(id).data.state, QueueState::Waiting);
}

#[test]
fn what_a_text_cannot_hold_does_not_keep_the_others_of_its_commit_from_being_written() {
    let shared = Shared::new();
    let mut store = shared.open();
    let id = shared.id();
    let row = RowData {
        reason: "450 \0 later".to_owned(),
        destination: Some("a\0b".to_owned()),
        ..waiting(NOW)
    };
    store.moved(id, row);
    assert_eq!(store.row(id).data.reason, "450 \u{fffd} later");
}

/// The plans are ours, whatever the statistics say of tables that were empty when they were made.
#[test]
fn no_question_walks_through_a_table() {
    let server = Server::start().unwrap();
    let ids = Shared::new();
    let me = Incarnation::random();
    // A session tells of its scans when it ends, at the latest.
    let ended = |store: Postgres| {
        drop(store);
        eventually(|| {
            let sessions =
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pombo-spooler'";
            server.sql(sessions).unwrap() == "0"
        });
        let scans = "SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_user_tables WHERE relname LIKE 'messages%'";
        server.sql(scans).unwrap()
    };
    let mut store = Postgres::open(options(&server, "pombo")).unwrap();
    store.renew(me, "test", true, &[]).unwrap();
    for day in 0..3 {
        let at = UnixMillis(NOW.0 - day * DAY);
        let writes: Vec<_> = (0..300)
            .map(|_| Write::Move {
                id: ids.id_at(at),
                row: waiting(NOW),
            })
            .collect();
        store.commit(NOW, &writes).unwrap();
    }
    let before = ended(store);
    server.sql("ANALYZE").unwrap();

    let mut store = Postgres::open(options(&server, "pombo")).unwrap();
    let claims = store.claim_all(me);
    assert_eq!(claims.len(), 900);
    let claimed: Vec<_> = claims
        .iter()
        .map(|claim| tenancy(claim.id, claim.fence.0))
        .collect();
    assert_eq!(store.recorded(&claimed).unwrap(), []);
    let mut writes: Vec<_> = claims
        .iter()
        .map(|claim| record(claim.id, claim.fence.0, me, finished()))
        .collect();
    writes.truncate(800);
    let notes: Vec<_> = claimed[800..]
        .iter()
        .map(|&tenancy| Write::Note {
            tenancy,
            holder: me,
            note: b"at the dot".to_vec(),
        })
        .collect();
    assert_eq!(store.commit(NOW, &notes).unwrap(), [Written::Won; 100]);
    for some in writes.chunks(100) {
        store.commit(NOW, some).unwrap();
    }
    assert!(store.end_member(NOW, me, None).unwrap());
    assert_eq!(store.next_due().unwrap(), Some(NOW));
    assert_eq!(all_of(&mut store, QueueFilter::default()).len(), 100);
    let in_doubt = QueueFilter {
        in_doubt: true,
        ..QueueFilter::default()
    };
    assert!(all_of(&mut store, in_doubt).is_empty());
    for state in [
        QueueState::Waiting,
        QueueState::Moving,
        QueueState::Held,
        QueueState::Dead,
        QueueState::Finished,
    ] {
        let filter = QueueFilter {
            state: Some(state),
            ..QueueFilter::default()
        };
        all_of(&mut store, filter);
    }
    assert_eq!(store.counts().unwrap().waiting, 100);
    assert!(store.change(NOW, claims[899].id, Change::Hold).unwrap());
    store.row(claims[0].id);
    // Days that stay for what finished late.
    let kept = store.prune(NOW.day()).unwrap();
    assert_eq!((kept.parts, kept.more), (0, false));
    assert_eq!(ended(store), before);
    let scans = "SELECT sum(idx_scan) > 0 FROM pg_stat_user_indexes WHERE indexrelname LIKE 'messages_%_changed_idx%'";
    assert_eq!(server.sql(scans).unwrap(), "t");
    // And what is held or dead is found by the index of what does not wait.
    let scans = "SELECT sum(idx_scan) >= 3 FROM pg_stat_user_indexes WHERE indexrelname LIKE 'messages%state_since_id_idx'";
    assert_eq!(server.sql(scans).unwrap(), "t");
}
