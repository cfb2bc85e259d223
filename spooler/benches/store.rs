//! What the stores cost: finishes, claims and questions, with nothing waiting and with 100,000 rows waiting.
//!
//! `cargo bench -p pombo-spooler --bench store [sqlite | postgres] [DIRECTORY]`; both without a word; the directory decides
//! which disk is measured (of the private PostgreSQL: TMPDIR).

use std::time::{Duration, Instant};

use pombo_proto::{
    control::QueueState,
    ids::{DoorSequence, Fence, Incarnation, MessageId},
    message::Priority,
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::store::{
    ClaimRequest, Options, Postgres, RowData, Sqlite, Store, Tally, Write, postgres,
};

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
const DAY_MS: u64 = 86_400_000;
const GROUP: usize = 100;
const WAITING: usize = 100_000;
const CLAIMED: usize = 5_000;

struct Bench<S> {
    store: S,
    me: Incarnation,
    door: DoorSequence,
}

fn row(state: QueueState, message: usize, destination: &str) -> RowData {
    RowData {
        state,
        wake: None,
        due: (state == QueueState::Waiting).then_some(NOW),
        reason: "later".to_owned(),
        transport: Some("smtp".to_owned()),
        destination: Some(destination.to_owned()),
        priority: Priority::Normal,
        doubt: false,
        unsure_since: NOW,
        in_doubt: 0,
        deaths: 0,
        message: vec![b'm'; message].into(),
        progress: vec![b'p'; 300],
        tally: Tally::default(),
    }
}

fn rate(what: &str, n: usize, took: Duration) {
    println!(
        "{what:<64} {:>10.0}/s {:>9.1} us each",
        n as f64 / took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / n as f64
    );
}

impl<S: Store> Bench<S> {
    fn finish(&mut self, what: &str, n: usize, at: UnixMillis) {
        let finished = row(QueueState::Finished, 300, "example.org");
        let mut took = Duration::ZERO;
        for _ in 0..n / GROUP {
            let writes: Vec<Write> = (0..GROUP)
                .map(|_| {
                    let id = self.door.issue(at);
                    self.record(id, 0, &finished)
                })
                .collect();
            let began = Instant::now();
            self.store.commit(at, &writes).expect("a commit");
            took += began.elapsed();
        }
        rate(what, n, took);
    }

    fn fill(&mut self, what: &str, n: usize, destination: &str) {
        let waiting = row(QueueState::Waiting, 10_240, destination);
        let mut took = Duration::ZERO;
        for _ in 0..n / GROUP {
            let writes: Vec<Write> = (0..GROUP)
                .map(|_| Write::Move {
                    id: self.door.issue(NOW),
                    row: waiting.clone(),
                })
                .collect();
            let began = Instant::now();
            self.store.commit(NOW, &writes).expect("a commit");
            took += began.elapsed();
        }
        rate(what, n, took);
    }

    /// Claims, and waits again an hour later.
    fn claim(&mut self, what: &str, n: usize, limit: usize, excluded: &[&str]) {
        let request = ClaimRequest {
            holder: self.me,
            now: NOW,
            limit,
            asks: String::new(),
            bytes: usize::MAX,
            excluded: excluded
                .iter()
                .map(|destination| ("smtp".to_owned(), Some((*destination).to_owned())))
                .collect(),
        };
        let mut again = row(QueueState::Waiting, 10_240, "example.org");
        again.due = Some(NOW.after(Duration::from_secs(3_600)));
        let (mut claiming, mut recording, mut rows) = (Duration::ZERO, Duration::ZERO, 0);
        while rows < n {
            let began = Instant::now();
            let claims = self.store.claim(&request).expect("a claim");
            claiming += began.elapsed();
            assert!(!claims.is_empty());
            rows += claims.len();
            let writes: Vec<Write> = claims
                .iter()
                .map(|claim| self.record(claim.id, claim.fence.0, &again))
                .collect();
            let began = Instant::now();
            self.store.commit(NOW, &writes).expect("a commit");
            recording += began.elapsed();
        }
        rate(&format!("claim, {limit} at a time, {what}"), rows, claiming);
        rate(&format!("record as waiting again, {what}"), rows, recording);
    }

    fn ask(&mut self, what: &str) {
        const TIMES: usize = 1_000;
        let began = Instant::now();
        for _ in 0..TIMES {
            self.store.counts().expect("counts");
        }
        rate(&format!("counts, {what}"), TIMES, began.elapsed());
        let began = Instant::now();
        for _ in 0..TIMES {
            self.store.next_due().expect("the next due");
        }
        rate(&format!("next due, {what}"), TIMES, began.elapsed());
    }

    fn record(&self, id: MessageId, fence: u32, row: &RowData) -> Write {
        Write::Record {
            tenancy: Tenancy {
                id,
                fence: Fence(fence),
            },
            holder: self.me,
            row: row.clone(),
            reports: Vec::new(),
        }
    }
}

fn main() {
    let said: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let wanted = |name: &str| {
        let names = ["sqlite", "postgres"];
        let named = said.iter().any(|it| names.contains(&it.as_str()));
        !named || said.iter().any(|it| it == name)
    };
    let directory = said
        .iter()
        .find(|it| !["sqlite", "postgres"].contains(&it.as_str()));
    if wanted("sqlite") {
        let directory = match directory {
            Some(path) => tempfile::tempdir_in(path),
            None => tempfile::tempdir(),
        }
        .expect("a directory");
        println!("SQLite");
        let path = directory.path().join("store.db");
        measure(Sqlite::open(path, Options::default()).expect("a store"));
    }
    if wanted("postgres") {
        println!("PostgreSQL");
        let server = pombo_tests::Postgres::builder()
            .line("shared_buffers = 512MB")
            .line("max_wal_size = 4GB")
            .start()
            .expect("a server");
        let options = postgres::Options {
            password_file: Some(server.password_file()),
            patience: Duration::from_secs(60),
            ..postgres::Options::new(server.url())
        };
        measure(Postgres::open(options).expect("a store"));
    }
}

fn measure(mut store: impl Store) {
    let me = Incarnation::random();
    store.renew(me, "bench", true, &[]).expect("a member");
    let mut bench = Bench {
        store,
        me,
        door: DoorSequence::default(),
    };
    let yesterday = NOW.before(Duration::from_millis(DAY_MS));
    bench.finish("hot finish, grouped by 100, nothing waiting", 50_000, NOW);
    bench.fill(
        "move 10 KiB, grouped by 100, nothing waiting",
        CLAIMED,
        "example.org",
    );
    bench.claim("5,000 waiting", CLAIMED, 50, &[]);
    bench.ask("5,000 waiting");
    bench.fill(
        "move 10 KiB, grouped by 100, up to 100,000",
        WAITING,
        "example.org",
    );
    bench.finish("hot finish, grouped by 100, 100,000 waiting", 50_000, NOW);
    bench.claim("100,000 waiting", CLAIMED, 50, &[]);
    bench.claim("100,000 waiting", 500, 1, &[]);
    bench.ask("100,000 waiting");
    bench.fill(
        "move 10 KiB to another destination",
        CLAIMED,
        "other.example",
    );
    bench.claim(
        "95,000 due before them excluded",
        CLAIMED - 500,
        50,
        &["example.org"],
    );
    bench.finish("hot finish, yesterday's part", 200_000, yesterday);
    let began = Instant::now();
    let mut parts = 0;
    let mut longest = Duration::ZERO;
    loop {
        let step = Instant::now();
        let pruned = bench.store.prune(NOW.day()).expect("pruning");
        longest = longest.max(step.elapsed());
        parts += pruned.parts;
        if !pruned.more {
            break;
        }
    }
    assert_eq!(parts, 1);
    println!("the longest step of pruning: {longest:?}");
    rate("drop a part, by its rows", 200_000, began.elapsed());
}
