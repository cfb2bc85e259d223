//! The ledger with real processes: it closes under load and after kills, and it names what somebody has taken out of the broker.

mod relay;

use anyhow::Context as _;
use pombo_proto::{
    ids::MessageId,
    ledger::DoorNumber,
    message::Priority,
    topology::{SpoolClass, Topology},
};
use pombo_tests::{
    Broker, Installation, Sink, eventually, installation::Agent, load::Python, mail::Mail,
};
use relay::{LONG, SOON, relay, settles, started};
use serde_json::Value;

/// What `pombo ledger` says, and whether it closes.
async fn ledger(pombo: &Installation, patience: &str) -> (i32, Value) {
    let output = pombo
        .pombo(&["--json", "--patience", patience, "ledger"])
        .await;
    // Nothing if no spooler answered.
    let ledger = serde_json::from_str(&output.stdout);
    (output.code, ledger.unwrap_or_default())
}

/// A column, over all doors.
fn of_doors(ledger: &Value, column: &str) -> u64 {
    let accounts = ledger["accounts"].as_array().into_iter().flatten();
    let doors = accounts.filter(|row| row["account"].as_str().is_some_and(|it| it.len() == 8));
    doors.filter_map(|row| row[column].as_u64()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_closes_under_load_and_after_a_spooler_and_a_listener_were_killed() -> anyhow::Result<()>
{
    const MESSAGES: usize = 900;
    let world = Sink::start().await?;
    let mut pombo = started(relay(&world).spoolers(2)).await?;
    let python = Python::messages(MESSAGES)
        .to(&["bob{n}@example.net"])
        .sizes(&[(1, 600, 4 << 10)])
        .connections(1, 6)
        .patience(LONG);
    let door = pombo.door();
    let sending = tokio::spawn(async move { python.send(door).await });
    let seen = async |count: usize| {
        world
            .wait_for(LONG, &format!("{count} messages"), |seen| {
                seen.distinct_deliveries() >= count
            })
            .await;
    };

    seen(100).await;
    let (code, under_load) = ledger(&pombo, "20s").await;
    assert_eq!(code, 0, "{under_load:#}");
    assert!(of_doors(&under_load, "accepted") > 0, "{under_load:#}");

    pombo.spooler(0).kill9();
    seen(350).await;
    pombo.spooler(0).start_again()?;
    pombo.spooler(0).ready(LONG).await?;
    pombo.agent("door").kill9();
    pombo.agent("door").start_again()?;
    pombo.agent("door").ready(LONG).await?;

    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    settles(&pombo, &world, &sent, LONG).await;
    // The doors' last word is written down within seconds.
    let after = eventually(SOON, "a ledger in which all is delivered", || async {
        let (code, ledger) = ledger(&pombo, "5s").await;
        let all = of_doors(&ledger, "accepted") >= MESSAGES as u64;
        if code == 0 && all && of_doors(&ledger, "moving") == 0 {
            Ok(ledger)
        } else {
            Err(format!("{code} {ledger:#}"))
        }
    })
    .await;
    assert_eq!(
        of_doors(&after, "accepted"),
        of_doors(&after, "delivered"),
        "{after:#}"
    );
    assert_eq!(of_doors(&after, "waiting"), 0, "{after:#}");
    // The killed listener and the one that came after it.
    let doors = after["accounts"].as_array().context("accounts")?.iter();
    let lives = doors.filter(|row| row["name"] == "door").count();
    assert_eq!(lives, 2, "{after:#}");
    assert_eq!(after["missing_count"], 0, "{after:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_names_what_was_taken_out_of_the_broker_until_a_person_writes_it_off()
-> anyhow::Result<()> {
    let world = Sink::start().await?;
    // No agent yet, so nobody leases.
    let mut pombo = Installation::builder()
        .transport_order(&["out"])
        .spoolers(2)
        .spooler_line("ledger_patience = \"3s\"")
        .start()
        .await?;
    let mut ids = Vec::new();
    for n in 0..3 {
        let to = format!("bob{n}@example.net");
        ids.push(pombo.submit(&[], &[&to], &Mail::new()).await);
    }
    eventually(SOON, "a ledger in which three move", || async {
        let (code, ledger) = ledger(&pombo, "5s").await;
        let moving = of_doors(&ledger, "moving");
        if code == 0 && moving == 3 && ledger["ready"] == 3 {
            Ok(())
        } else {
            Err(format!("{code} {ledger:#}"))
        }
    })
    .await;

    let queue = Topology::new(pombo.prefix()).spool_queue(SpoolClass::Priority(Priority::Normal));
    let taken = Broker::shared()
        .await
        .take(&queue)
        .await?
        .context("a message")?;
    let id = taken.properties.message_id().clone().context("its id")?;
    let id: MessageId = id.as_str().parse().map_err(|_| anyhow::anyhow!("no id"))?;
    assert!(ids.contains(&id.to_string()));
    let number = DoorNumber::of(id).context("a number")?.to_string();
    eventually(SOON, "two of three are ready", || async {
        let (code, ledger) = ledger(&pombo, "5s").await;
        if code == 1 && ledger["moving"] == 3 && ledger["ready"] == 2 {
            Ok(())
        } else {
            Err(format!("{code} {ledger:#}"))
        }
    })
    .await;

    // Once somebody takes the others, it is known which one it is.
    pombo.add_agent(Agent::smtp("out").smarthost(world.address()))?;
    pombo.ready(LONG).await?;
    world
        .wait_for(LONG, "the other two", |seen| {
            seen.distinct_deliveries() == 2
        })
        .await;
    eventually(LONG, "its number", || async {
        let (code, ledger) = ledger(&pombo, "5s").await;
        let named = ledger["missing"] == serde_json::json!([number]);
        if code == 1 && named && ledger["missing_count"] == 1 && of_doors(&ledger, "delivered") == 2
        {
            Ok(())
        } else {
            Err(format!("{code} {ledger:#}"))
        }
    })
    .await;
    let missing = relay::sum_of_metric(pombo.spoolers(), "pombo_ledger_missing").await;
    assert_eq!(missing, 1.0);
    let logs: Vec<String> = pombo.spoolers().iter().map(|it| it.log()).collect();
    let alarms = logs
        .iter()
        .filter(|log| log.contains("the ledger does not close") && log.contains(&number));
    assert_eq!(alarms.count(), 1, "one spooler audits");

    // The one that audits dies; the other one finds the same.
    let auditor = usize::from(!logs[0].contains("the ledger does not close"));
    pombo.spooler(auditor).kill9();
    pombo
        .spooler(1 - auditor)
        .wait_for_log("the ledger does not close", LONG)
        .await;

    pombo
        .pombo(&["ledger", "--write-off", &number])
        .await
        .succeeds();
    eventually(SOON, "a ledger that closes", || async {
        let (code, ledger) = ledger(&pombo, "5s").await;
        if code == 0 && of_doors(&ledger, "accepted") == 2 {
            Ok(())
        } else {
            Err(format!("{code} {ledger:#}"))
        }
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_and_derived_ids_have_accounts_of_their_own() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    world.rule(
        pombo_tests::sink::at(pombo_tests::sink::Stage::Rcpt)
            .recipient("nobody@example.net")
            .reply("550 5.1.1 no such user"),
    );
    let pombo = started(relay(&world)).await?;
    let keyed = ["--key", "order-42"];
    for _ in 0..2 {
        pombo
            .submit(
                &keyed,
                &["bob@example.net", "nobody@example.net"],
                &Mail::new(),
            )
            .await;
    }
    eventually(LONG, "both accounts", || async {
        let (code, ledger) = ledger(&pombo, "5s").await;
        let account = |name: &str| {
            let rows = ledger["accounts"].as_array();
            rows.and_then(|rows| rows.iter().find(|row| row["account"] == name).cloned())
                .unwrap_or_default()
        };
        let (derived, reports) = (account("derived"), account("reports"));
        let one_failed = derived["accepted"] == 1
            && derived["failed"] == 1
            && derived["recipients"]["delivered"] == 1
            && derived["recipients"]["failed"] == 1;
        let told = reports["accepted"] == 1 && reports["delivered"] == 1;
        if code == 0 && one_failed && told {
            Ok(())
        } else {
            Err(format!("{code} {ledger:#}"))
        }
    })
    .await;
    Ok(())
}
