use metrics_exporter_prometheus::PrometheusBuilder;
use pombo_proto::{
    blob::Place,
    frame::encode_message,
    ids::{DoorSequence, Incarnation, RecipientIndex},
    ladder::submission::AttemptResult,
    message::Envelope,
    outcome::{Delivery, EndMessageFlag, Outcome, RecipientOutcome, SubmitResult},
    tenure::Tenure,
    topology::SpoolClass,
};

use super::*;
use crate::{
    note::{Asks, Note},
    store,
    verdict::samples,
};

/// A first attempt by one of two who were given the same delivery, and what was heard of it.
fn heard(outcome: Outcome, envelope: &Envelope, incarnation: Incarnation) -> Conclude {
    let message = encode_message(envelope.clone(), b"");
    let tag = LeaseTag {
        incarnation,
        class: SpoolClass::ALL[1],
        delivery: 1,
    };
    let job = Job {
        tenure: Tenure::leased(envelope.id, false, false, tag, Ordinal(1)).unwrap(),
        message,
        progress: Progress::fresh(1),
        cancelled: false,
        dropped: false,
        doubt: false,
        unsure_since: samples::SUBMITTED,
        deaths: 0,
        note: Note::default(),
        asks: Asks::default(),
        since: std::time::Instant::now(),
    };
    let outcome = RecipientOutcome {
        recipient: RecipientIndex(0),
        outcome,
    };
    let result = AttemptResult {
        result: SubmitResult::Ok(vec![outcome]),
        end: Some(EndMessageFlag::Sent),
        statuses: Vec::new(),
    };
    Conclude {
        job,
        happened: Happened::Attempt {
            transport: "out".to_owned(),
            considered: vec![RecipientIndex(0)],
            result,
            interrupted: false,
            hold: false,
        },
        doubt: false,
        sessions: Vec::new(),
        spent: None,
        took: Duration::from_millis(1),
    }
}

#[actix::test]
async fn of_two_who_heard_what_became_of_a_message_one_counts_it_and_after_its_commit() {
    let metrics = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&metrics);
    let counted = |name: &str| {
        let text = metrics.handle().render();
        let mut lines = text.lines();
        let line = lines.find(|it| it.starts_with(name));
        line.map(|it| it.rsplit(' ').next().unwrap_or_default().to_owned())
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spooler.toml");
    let dir = folder.path().display();
    let text = format!(
        "[store]\npath = \"{dir}/store\"\n[blobs]\npath = \"{dir}/blobs\"\n[[transport]]\nname = \"out\"\n"
    );
    std::fs::write(&path, text).unwrap();
    let config = Arc::new(Config::load(&path).unwrap());
    let file = folder.path().join("store");
    let sqlite = store::Sqlite::open(file, store::Options::default()).unwrap();
    let store = StoreThread::spawn(sqlite).unwrap();
    let blobs = Place::Directory(folder.path().join("blobs"));
    let blobs = Blobs::open(&blobs).await.unwrap();
    let recorder = Recorder::new(config, store, blobs, Health::default()).start();

    let delivered = Outcome::Delivered(Delivery::new(UnixMillis(1), "mx.example", "250 ok"));
    let in_doubt = Outcome::InDoubt(samples::diagnosis());
    let counters = [
        (delivered, "pombo_outcomes_total{"),
        (in_doubt, "pombo_in_doubt_total{"),
    ];
    for (outcome, name) in counters {
        let mut envelope = samples::envelope(1);
        envelope.id = DoorSequence::default().issue(UnixMillis::now());
        assert_eq!(counted(name), None);
        for _ in 0..2 {
            let conclude = heard(outcome.clone(), &envelope, Incarnation::random());
            recorder.send(conclude).await.unwrap();
            while recorder.send(PendingCommits).await.unwrap() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(counted(name).as_deref(), Some("1"));
        }
    }
}
