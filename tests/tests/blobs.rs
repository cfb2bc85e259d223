//! Large bodies: in a directory and in a bucket, as large as they may be, and what nobody needs any more.

mod relay;

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use pombo_proto::{
    blob::{Blobs, Error, Place, S3},
    control::QueueState,
    ids::{DoorSequence, Incarnation, MessageId},
    message::Priority,
    time::UnixMillis,
};
use pombo_spooler::{
    orphans::{Swept, sweep},
    store::{Change, Options, RowData, Sqlite, Store, StoreThread, Tally, Write},
};
use pombo_tests::{
    Broker, Installation, Sink,
    client::{self, Session},
    eventually,
    installation::Agent,
    mail::{self, Mail},
    proxy::{Proxy, Weather},
    s3::S3Server,
    scratch::Scratch,
    service::Service,
};
use relay::{LONG, SOON, bodies, nothing_is_left, started, sum_of_metric, takes_mail, with};

const MIB: usize = 1 << 20;

fn place(server: &S3Server, prefix: &str) -> Place {
    Place::S3(S3 {
        bucket: "mail".to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(server.endpoint()),
        region: None,
        credentials: Some(("test".into(), "test".into())),
        allow_http: true,
    })
}

fn id(n: u64) -> MessageId {
    MessageId::derived("test", &n.to_be_bytes())
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(bytes as u64);
    let mut noise = vec![0; bytes];
    random.fill(&mut noise);
    noise
}

async fn all(blobs: &Blobs) -> Vec<MessageId> {
    blobs
        .older_than(Duration::ZERO)
        .try_collect()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_bodies_as_a_directory_does() -> anyhow::Result<()> {
    let server = S3Server::start("mail").await?;
    let blobs = Blobs::open(&place(&server, "a")).await?;
    let same = Blobs::open(&place(&server, "a")).await?;
    let other = Blobs::open(&place(&server, "b")).await?;
    assert_eq!(blobs.identity(), same.identity());
    assert_ne!(blobs.identity(), other.identity());

    assert!(matches!(blobs.get(id(1), 10).await, Err(Error::Missing(_))));
    for size in [0, 1, 100_000, 20 * MIB] {
        let body = bytes::Bytes::from(noise(size));
        for _ in 0..2 {
            blobs.put(id(1), body.clone()).await?;
        }
        assert_eq!(same.get(id(1), size as u64).await?, body);
        if size > 0 {
            assert!(matches!(
                same.get(id(1), size as u64 - 1).await,
                Err(Error::TooLarge { .. })
            ));
            assert_eq!(same.get_head(id(1), 50).await?, body.slice(..size.min(50)));
        }
        assert!(matches!(
            other.get(id(1), 1 << 30).await,
            Err(Error::Missing(_))
        ));
    }
    let mut upload = blobs.begin(id(2), 1 << 30).await?;
    let part = bytes::Bytes::from(noise(3 * MIB));
    for _ in 0..4 {
        upload.part(part.clone()).await?;
    }
    assert!(matches!(
        blobs.get(id(2), 1 << 30).await,
        Err(Error::Missing(_))
    ));
    assert_eq!(upload.finish().await?, 12 * MIB as u64);
    assert_eq!(blobs.get(id(2), 1 << 30).await?, part.repeat(4));

    let mut found = all(&blobs).await;
    found.sort();
    let mut both = vec![id(1), id(2)];
    both.sort();
    assert_eq!(found, both);
    assert!(
        blobs
            .older_than(Duration::from_secs(3_600))
            .try_next()
            .await?
            .is_none()
    );
    for _ in 0..2 {
        blobs.delete(id(1)).await?;
    }
    assert_eq!(all(&blobs).await, [id(2)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_or_not_there_says_so() -> anyhow::Result<()> {
    let server = S3Server::start("mail").await?;
    let Place::S3(there) = place(&server, "") else {
        unreachable!()
    };
    let elsewhere = S3 {
        bucket: "nowhere".to_owned(),
        ..there
    };
    let refused = Blobs::open(&Place::S3(elsewhere)).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    let blobs = Blobs::open(&place(&server, "")).await?;
    drop(server);
    let refused = blobs.put(id(1), bytes::Bytes::from_static(b"x")).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    Ok(())
}

/// Of five bodies, three belong to messages: one that waits, one that is held, one that has finished.
async fn orphans_of(blobs: &Blobs) -> anyhow::Result<()> {
    let scratch = Scratch::new("orphans")?;
    let mut store = Sqlite::open(scratch.join("store.db"), Options::default())?;
    let (me, now) = (Incarnation::random(), UnixMillis::now());
    assert!(store.renew(me, "test", true, &[])?);
    let mut door = DoorSequence::default();
    let ids: Vec<MessageId> = (0..4).map(|_| door.issue(now)).chain([id(1)]).collect();
    let row = |state| RowData {
        state,
        due: (state == QueueState::Waiting).then_some(now),
        wake: None,
        reason: String::new(),
        transport: None,
        destination: None,
        priority: Priority::Normal,
        doubt: false,
        unsure_since: now,
        in_doubt: 0,
        deaths: 0,
        message: bytes::Bytes::from_static(b"message"),
        progress: Vec::new(),
        tally: Tally::default(),
    };
    let states = [
        QueueState::Waiting,
        QueueState::Waiting,
        QueueState::Finished,
    ];
    let writes: Vec<Write> = ids
        .iter()
        .zip(states)
        .map(|(id, state)| Write::Move {
            id: *id,
            row: row(state),
        })
        .collect();
    store.commit(now, &writes)?;
    assert!(store.change(now, ids[1], Change::Hold)?);
    for id in &ids {
        blobs.put(*id, bytes::Bytes::from_static(b"body")).await?;
    }
    let store = StoreThread::spawn(store)?;
    let chore = move |s: &mut dyn Store| s.begin_chore(now, "orphans", me, Duration::ZERO);
    assert!(store.call(chore).await?);

    // Nothing is old enough.
    let young = sweep(&store, blobs, Duration::from_secs(3_600), me).await?;
    assert_eq!(young, Swept::default());
    let stranger = sweep(&store, blobs, Duration::ZERO, Incarnation::random()).await;
    assert!(matches!(
        stranger,
        Err(pombo_spooler::orphans::Error::NotOurs)
    ));
    assert_eq!(all(blobs).await.len(), 5);
    // What a second ago was written is old enough for an age of none, whatever the server's clock resolves.
    let swept = eventually(SOON, "a sweep that finds three", || async {
        let swept = sweep(&store, blobs, Duration::ZERO, me)
            .await
            .map_err(|e| e.to_string())?;
        if swept.removed > 0 {
            Ok(swept)
        } else {
            Err(format!("{swept:?}"))
        }
    })
    .await;
    assert_eq!((swept.removed, swept.needed), (3, 2), "{swept:?}");
    let mut left = all(blobs).await;
    left.sort();
    let mut needed = ids[..2].to_vec();
    needed.sort();
    assert_eq!(left, needed);
    store.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_a_message_are_removed_from_a_directory() -> anyhow::Result<()> {
    let scratch = Scratch::new("bodies")?;
    orphans_of(&Blobs::directory(&scratch.join("blobs")).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_a_message_are_removed_from_a_bucket() -> anyhow::Result<()> {
    let server = S3Server::start("mail").await?;
    orphans_of(&Blobs::open(&place(&server, "in/here")).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_share_a_bucket_and_whoever_means_another_one_gets_no_session() -> anyhow::Result<()>
{
    let server = S3Server::start("mail").await?;
    let world = Sink::start().await?;
    let mut pombo = started(
        with(&world, |door| door, |out| out)
            .blobs(&server.lines("mail", "here"))
            .environment("POMBO_TEST_S3", "test"),
    )
    .await?;
    let blobs = Blobs::open(&place(&server, "here")).await?;
    for (n, size) in [40_000, MIB, 20 * MIB].into_iter().enumerate() {
        let to = format!("bob{n}@example.net");
        let message = Mail::new().size(size).bytes();
        client::send(pombo.door(), "ann@example.org", &[&to], &message).await?;
        let arrived = world.mail_for(&to, LONG).await;
        mail::is_intact(&arrived.data, &message).map_err(anyhow::Error::msg)?;
    }
    // The submit door, too.
    let large = Mail::new().size(2 * MIB);
    pombo.submit(&[], &["bob9@example.net"], &large).await;
    let arrived = world.mail_for("bob9@example.net", LONG).await;
    mail::is_intact(&arrived.data, &large.bytes()).map_err(anyhow::Error::msg)?;
    eventually(SOON, "an empty bucket", || async {
        let left = all(&blobs).await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;

    // An agent of another installation, by its bucket.
    let config = std::fs::read_to_string(pombo.agent("out").config())?;
    let config = config.replace("s3://mail/here", "s3://mail/there");
    std::fs::write(pombo.agent("out").config(), config)?;
    pombo.agent("out").kill9();
    pombo.agent("out").start_again()?;
    pombo
        .spooler(0)
        .wait_for_log("another blob store", LONG)
        .await;
    Ok(())
}

/// What the process has had in memory at most, in bytes.
fn peak(service: &Service) -> anyhow::Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .context("VmHWM")?;
    Ok(kib.parse::<usize>()? * 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_150_mib_goes_through_and_each_process_holds_it_once() -> anyhow::Result<()> {
    const SIZE: usize = 150 * MIB;
    // Code, broker buffers and everything else: less than half of a second copy.
    const BESIDES: usize = 64 * MIB;
    let world = Sink::builder().size_max(200 * MIB).start().await?;
    let large = |door: Agent| {
        door.line("message_bytes_max = 157286400")
            .host_line("message_max = \"150MiB\"")
    };
    let mut pombo = started(with(&world, large, |out| out)).await?;
    let message = Mail::new().size(SIZE - 64).bytes();
    client::send(
        pombo.door(),
        "ann@example.org",
        &["bob@example.net"],
        &message,
    )
    .await?;
    let arrived = world.mail_for("bob@example.net", LONG).await;
    mail::is_intact(&arrived.data, &message).map_err(anyhow::Error::msg)?;
    nothing_is_left(&pombo, LONG).await;

    let [door, out] = ["door", "out"].map(|name| peak(pombo.agent(name)));
    let (door, out, spooler) = (door?, out?, peak(pombo.spooler(0))?);
    println!(
        "peak memory in MiB: listener {}, smtp {}, spooler {}",
        door / MIB,
        out / MIB,
        spooler / MIB
    );
    assert!(
        door < SIZE + BESIDES,
        "the listener held {} MiB",
        door / MIB
    );
    assert!(
        out < SIZE + BESIDES,
        "the smtp client held {} MiB",
        out / MIB
    );
    assert!(spooler < BESIDES, "the spooler held {} MiB", spooler / MIB);

    let more = Mail::new().size(SIZE + MIB).bytes();
    let refused = client::send(pombo.door(), "ann@example.org", &["bob@example.net"], &more).await;
    assert!(refused.is_err(), "{refused:?}");
    Ok(())
}

/// The body is written, the publish is on its way into a network that swallows it, the process dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_killed_between_body_and_message_leaves_a_body_that_is_counted_and_removed()
-> anyhow::Result<()> {
    let broker = Broker::shared().await;
    let (network, through) = Proxy::before(broker).await?;
    let world = Sink::start().await?;
    let mut pombo = started(
        with(&world, |door| door, |out| out)
            .broker(broker)
            .route("door", &[through])
            .blobs_lines("orphans_after = \"10s\"\norphans_may_be_young = true"),
    )
    .await?;
    let message = Mail::new().size(MIB).bytes();
    let mut client = Session::hello(pombo.door()).await;
    client
        .envelope("ann@example.org", &["bob@example.net"])
        .await;
    let stuffed = client::stuffed(&message);
    let (rest, dot) = stuffed.split_at(stuffed.len() - 3);
    client.raw(rest).await;
    network.set(Weather::BlackHole);
    client.raw(dot).await;
    eventually(SOON, "the body", || async {
        let written = bodies(&pombo.blobs());
        match &written[..] {
            [one] if !one.contains('#') => Ok(()),
            _ => Err(written),
        }
    })
    .await;
    pombo.agent("door").kill9();
    network.cut();
    network.set(Weather::Fine);

    let counted = pombo.pombo(&["--json", "ledger", "--bodies"]).await.json();
    assert_eq!(
        (&counted["bodies"], &counted["without_row"]),
        (&1.into(), &1.into()),
        "{counted}"
    );

    // Its client was told nothing, and sends again. The bodies of messages that are delivered go with them.
    pombo.agent("door").start_again()?;
    takes_mail(&pombo).await;
    client::send(
        pombo.door(),
        "ann@example.org",
        &["bob@example.net"],
        &message,
    )
    .await?;
    let arrived = world.mail_for("bob@example.net", LONG).await;
    mail::is_intact(&arrived.data, &message).map_err(anyhow::Error::msg)?;
    nothing_is_left(&pombo, LONG).await;
    pombo
        .spooler(0)
        .wait_for_log("a body without a message is removed", SOON)
        .await;
    let removed = sum_of_metric(pombo.spoolers(), "pombo_blobs_orphans_removed_total").await;
    assert_eq!(removed, 1.0);
    let counted = pombo.pombo(&["--json", "ledger", "--bodies"]).await.json();
    assert_eq!(counted["bodies"], 0, "{counted}");
    // What was never accepted is missing in no book.
    pombo.pombo(&["ledger"]).await.succeeds();
    Ok(())
}

/// The message is there, its confirm is not heard, the client is told "later" and sends again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_confirmed_and_comes_again_arrives_once_and_leaves_no_body()
-> anyhow::Result<()> {
    let broker = Broker::shared().await;
    let (network, through) = Proxy::before(broker).await?;
    let world = Sink::start().await?;
    let hasty = |door: Agent| door.host_line("confirm_patience = \"2s\"");
    let mut pombo = started(
        with(&world, hasty, |out| out)
            .broker(broker)
            .route("door", &[through]),
    )
    .await?;
    for (to, size) in [("bob@example.net", 2_000), ("eve@example.net", MIB)] {
        let message = Mail::new().size(size).bytes();
        let mut client = Session::hello(pombo.door()).await;
        client.envelope("ann@example.org", &[to]).await;
        let stuffed = client::stuffed(&message);
        let (rest, dot) = stuffed.split_at(stuffed.len() - 3);
        client.raw(rest).await;
        network.set(Weather::Deaf);
        client.raw(dot).await;
        let reply = client.reply().await;
        assert_eq!(reply.code, 451, "{}", reply.text());
        let arrived = world.mail_for(to, LONG).await;
        mail::is_intact(&arrived.data, &message).map_err(anyhow::Error::msg)?;
        network.cut();
        network.set(Weather::Fine);

        eventually(LONG, "the listener takes it", || {
            let (door, message) = (pombo.door(), &message);
            async move { client::send(door, "ann@example.org", &[to], message).await }
        })
        .await;
        nothing_is_left(&pombo, LONG).await;
        let copies = world.look(|seen| {
            let all = seen.transactions().iter();
            all.filter(|it| it.id() == arrived.id()).count()
        });
        assert_eq!(copies, 1);
    }
    let unclear = pombo
        .agent("door")
        .metric("pombo_agent_saves_unclear_total")
        .await?;
    // Once each, and once more for each repeat that was slow itself.
    assert!(unclear >= 2.0, "{unclear}");
    pombo.pombo(&["ledger"]).await.succeeds();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_spooler_removes_bodies_that_are_older_than_any_message() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let pombo = Installation::builder()
        .agent(Agent::smtp("out").smarthost(world.address()))
        .start()
        .await?;
    let blobs = Blobs::directory(&pombo.blobs()).await?;
    for n in [1, 2] {
        blobs.put(id(n), bytes::Bytes::from_static(b"body")).await?;
    }
    let old = SystemTime::now() - Duration::from_secs(33 * 86_400);
    let path = bodies(&pombo.blobs())
        .into_iter()
        .find(|path| path.contains(&id(1).to_string()));
    let file = std::fs::File::options()
        .write(true)
        .open(path.context("the body")?)?;
    file.set_modified(old)?;
    eventually(LONG, "only the young one", || async {
        let left = bodies(&pombo.blobs());
        if left.len() == 1 { Ok(()) } else { Err(left) }
    })
    .await;
    assert_eq!(blobs.get(id(2), 10).await?, "body");
    Ok(())
}
