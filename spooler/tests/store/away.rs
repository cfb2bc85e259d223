//! The server goes away, stands still, fills up, or loses an answer: said as such, in time, and usable once the cause is gone.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pombo_proto::control::QueueState;
use pombo_spooler::store::{
    Change, Claimed, Counts, Error, Postgres, RowData, Store, Write, Written, postgres::Options,
};
use pombo_tests::postgres::Postgres as Server;

use super::{Shared, options};
use crate::support::*;

/// Far longer than anything here takes, on a machine that compiles meanwhile.
const LIMIT: Duration = Duration::from_secs(60);

fn impatient(server: &Server) -> Options {
    Options {
        patience: Duration::from_secs(1),
        ..options(server, "pombo")
    }
}

/// Asks until it is answered: what went wrong before was that the store is away.
fn again<T>(mut ask: impl FnMut() -> Result<T, Error>) -> T {
    let limit = Instant::now() + LIMIT;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(Error::Unavailable(_)) if Instant::now() < limit => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_server_that_was_stopped_is_found_again() {
    let server = Server::start().unwrap();
    let mut store = Postgres::open(impatient(&server)).unwrap();
    let ids = Shared::new();
    let (before, meanwhile) = (ids.id(), ids.id());
    store.moved(before, waiting(NOW));
    server.stop().unwrap();
    let write = [Write::Move {
        id: meanwhile,
        row: waiting(NOW),
    }];
    for _ in 0..5 {
        let refused = store.commit(NOW, &write);
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
    server.start_again().unwrap();
    assert_eq!(again(|| store.commit(NOW, &write)), [Written::Won]);
    assert_eq!(store.row(before).data.state, QueueState::Waiting);
    assert_eq!(store.counts().unwrap().waiting, 2);
}

#[test]
fn a_server_that_is_not_there_at_the_start_is_unavailable() {
    let server = Server::start().unwrap();
    server.stop().unwrap();
    let refused = Postgres::open(impatient(&server));
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
}

#[test]
fn a_server_that_stands_still_is_given_up_in_time_and_what_it_was_asked_for_can_be_repeated() {
    let server = Server::start().unwrap();
    let mut store = Postgres::open(impatient(&server)).unwrap();
    let ids = Shared::new();
    let me = pombo_proto::ids::Incarnation::random();
    store.renew(me, "test", true, &[]).unwrap();
    let (leased, claimed) = (ids.id(), ids.id());
    store.moved(claimed, waiting(NOW));
    server.pause();
    let write = [record(leased, 0, me, finished())];
    let began = Instant::now();
    let refused = store.commit(NOW, &write);
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(store.claim(&everything(me, NOW)).is_err());
    // Two answers were waited for, and one connection.
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    server.resume();
    // Whether it did what it was asked for before it woke to a closed connection: the same writes win.
    assert_eq!(again(|| store.commit(NOW, &write)), [Written::Won]);
    let claims = again(|| store.claim(&everything(me, NOW)));
    let claims: Vec<_> = claims.iter().map(|claim| claim.id).collect();
    assert_eq!(claims, [claimed]);
}

/// Passes everything on, until it is told to lose the answer to a commit.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let wire = Self {
            port: listener.local_addr().unwrap().port(),
            cut: Arc::default(),
        };
        let cut = Arc::clone(&wire.cut);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    continue;
                };
                let cut = Arc::clone(&cut);
                std::thread::spawn(move || pass(client, server, &cut));
            }
        });
        wire
    }
}

/// The first commit after `cut` reaches the server, and is carried out; nobody learns of it.
fn pass(client: TcpStream, server: TcpStream, cut: &AtomicBool) {
    let (mut from_server, mut to_client) =
        (server.try_clone().unwrap(), client.try_clone().unwrap());
    let deaf = Arc::new(AtomicBool::new(false));
    let is_deaf = Arc::clone(&deaf);
    let back = std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(n @ 1..) = from_server.read(&mut buffer) {
            if is_deaf.load(Ordering::SeqCst) {
                break;
            }
            if to_client.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let (mut from_client, mut to_server) = (client, server);
    let mut buffer = [0; 65_536];
    while let Ok(n @ 1..) = from_client.read(&mut buffer) {
        let bytes = &buffer[..n];
        if bytes.windows(7).any(|some| some == b"COMMIT\0") && cut.swap(false, Ordering::SeqCst) {
            deaf.store(true, Ordering::SeqCst);
        }
        if to_server.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to_server.shutdown(Shutdown::Write);
    let _ = back.join();
}

#[test]
fn a_claim_whose_commit_got_no_answer_is_not_lost_to_its_living_holder() {
    let shared = Shared::new();
    let (mut direct, other) = shared.joined();
    let url = shared.options().url;
    let port: SocketAddr = {
        let authority = url.split(['@', '/']).nth(3).unwrap();
        authority.parse().unwrap()
    };
    let wire = Wire::to(port.port());
    let mut store = Postgres::open(Options {
        url: url.replace(&format!(":{}/", port.port()), &format!(":{}/", wire.port)),
        ..shared.options()
    })
    .unwrap();
    let me = pombo_proto::ids::Incarnation::random();
    store.renew(me, "behind the wire", true, &[]).unwrap();
    let (plain, held, cancelled) = (shared.id(), shared.id(), shared.id());
    let due = pombo_proto::time::UnixMillis(NOW.0 - 5_000);
    for id in [plain, held, cancelled] {
        store.moved(id, waiting(due));
    }
    wire.cut.store(true, Ordering::SeqCst);
    let refused = store.claim(&everything(me, NOW));
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    // It did happen, and its holder lives: nobody else would ever find these.
    let claimed = Counts {
        claimed: 3,
        ..Counts::default()
    };
    let limit = Instant::now() + LIMIT;
    while direct.counts().unwrap() != claimed {
        assert!(Instant::now() < limit, "{:?}", direct.counts());
    }
    assert_eq!(direct.row(plain).holder, Some(me));
    assert!(direct.change(NOW, held, Change::Hold).unwrap());
    assert!(direct.change(NOW, cancelled, Change::Cancel).unwrap());

    let again: Vec<Claimed> = again(|| store.claim(&everything(me, NOW)));
    let mut seen: Vec<_> = again
        .iter()
        .map(|claim| (claim.id, claim.fence.0, claim.doubt))
        .collect();
    seen.sort();
    let mut expected = [(plain, 2, false), (cancelled, 2, false)];
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(direct.row(held).data.state, QueueState::Held);
    assert!(direct.claim_all(other).is_empty());
    shared.is_sound();
}

#[test]
fn a_commit_that_got_no_answer_is_repeated_and_wins() {
    let shared = Shared::new();
    let (mut direct, _) = shared.joined();
    let url = shared.options().url;
    let port: SocketAddr = url.split(['@', '/']).nth(3).unwrap().parse().unwrap();
    let wire = Wire::to(port.port());
    let mut store = Postgres::open(Options {
        url: url.replace(&format!(":{}/", port.port()), &format!(":{}/", wire.port)),
        ..shared.options()
    })
    .unwrap();
    let me = pombo_proto::ids::Incarnation::random();
    store.renew(me, "behind the wire", true, &[]).unwrap();
    let (id, report) = (shared.id(), shared.id());
    // The same twice makes two statements in a transaction, which ends in a commit of its own.
    let write = Write::Record {
        tenancy: tenancy(id, 0),
        holder: me,
        row: finished(),
        reports: vec![(report, waiting(NOW))],
    };
    let writes = [write.clone(), write];
    store.moved(shared.id(), waiting(NOW));
    wire.cut.store(true, Ordering::SeqCst);
    assert!(store.commit(NOW, &writes).is_err());
    assert_eq!(
        again(|| store.commit(NOW, &writes)),
        [Written::Won, Written::Won]
    );
    assert_eq!(direct.counts().unwrap().waiting, 2);
    shared.is_sound();
}

#[test]
fn a_process_that_stands_still_in_a_claim_keeps_nobody_waiting_for_long() {
    let shared = Shared::new();
    let (mut store, me) = shared.joined();
    let (mut other, they) = shared.joined();
    let (first, second) = (shared.id(), shared.id());
    store.moved(first, waiting(NOW));
    store.moved(second, waiting(NOW));
    // Another one holds a row, as one does between choosing and committing.
    let schema = shared.schema().to_owned();
    let id = first.0;
    let lock = Server::shared()
        .lock_rows(&format!(
            "SELECT 1 FROM {schema}.messages WHERE id = '{id}' FOR UPDATE"
        ))
        .unwrap();
    let claims = other.claim_all(they);
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].id, second);
    drop(lock);
    let limit = Instant::now() + LIMIT;
    let mut claims = Vec::new();
    while claims.is_empty() {
        assert!(Instant::now() < limit);
        claims = store.claim_all(me);
    }
    assert_eq!(claims[0].id, first);
}

#[test]
fn a_locked_table_says_so_and_goes_on_when_the_lock_is_gone() {
    let shared = Shared::new();
    let mut store = shared.open_impatient();
    let id = shared.id();
    store.moved(shared.id(), waiting(NOW));
    let lock = shared.lock();
    let write = [Write::Move {
        id,
        row: waiting(NOW),
    }];
    let refused = store.commit(NOW, &write);
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    drop(lock);
    assert_eq!(again(|| store.commit(NOW, &write)), [Written::Won]);
}

#[test]
fn a_full_disk_says_so_writes_nothing_and_room_is_enough_to_go_on() {
    let server = Server::builder().small_disk(48 << 20).start().unwrap();
    let mut store = Postgres::open(options(&server, "pombo")).unwrap();
    let ids = Shared::new();
    let me = pombo_proto::ids::Incarnation::random();
    store.renew(me, "test", true, &[]).unwrap();
    let large = || RowData {
        message: message("ann@example.org", "bob@example.net", &[b'x'; 30_000]).encoded,
        ..waiting(NOW)
    };
    store.moved(ids.id(), large());
    server.fill_disk().unwrap();
    let mut kept = 1;
    let error = loop {
        match store.commit(
            NOW,
            &[Write::Move {
                id: ids.id(),
                row: large(),
            }],
        ) {
            Ok(answers) => {
                assert_eq!(answers, [Written::Won]);
                kept += 1;
            }
            Err(error) => break error,
        }
        assert!(kept < 10_000);
    };
    assert!(
        matches!(&error, Error::Unavailable(text) if text.contains("53100")),
        "{error}"
    );
    assert_eq!(store.counts().unwrap().waiting, kept);
    server.free_disk().unwrap();
    store.moved(ids.id(), large());
    assert_eq!(store.claim_all(me).len() as u64, kept + 1);
}

#[test]
fn a_part_that_somebody_reads_is_dropped_another_time_and_nobody_waits_for_it() {
    let shared = Shared::new();
    let (mut store, me) = shared.joined();
    let old = shared.id_at(pombo_proto::time::UnixMillis(NOW.0 - 9 * DAY));
    store.one(record(old, 0, me, finished()));
    let schema = shared.schema().to_owned();
    let reader = Server::shared()
        .lock_rows(&format!("SELECT count(*) FROM {schema}.messages"))
        .unwrap();
    assert_eq!(store.prune(NOW.day() + 1).unwrap().parts, 0);
    store.moved(shared.id(), waiting(NOW));
    drop(reader);
    let limit = Instant::now() + LIMIT;
    while store.prune(NOW.day() + 1).unwrap().parts == 0 {
        assert!(Instant::now() < limit);
    }
    assert!(store.get(old).unwrap().is_none());
}
