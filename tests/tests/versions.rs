//! A rolling upgrade: processes of two neighbouring protocol versions work side by side.

use std::time::Duration;

use pombo_proto::verbs::VERSIONS;
use pombo_tests::{Installation, eventually, installation::Agent, mail::Mail};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_the_next_version_sends_and_receives_for_todays_spooler() -> anyhow::Result<()>
{
    let mut pombo = Installation::builder()
        .agent(
            Agent::neighbour("next")
                .line("addresses = [\"SMTP:*@next.example\"]")
                .delivers(),
        )
        .agent(Agent::scripted("today").line("addresses = [\"SMTP:*@today.example\"]"))
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;

    // Out through both, in one message.
    let to = ["ok+1@next.example", "ok+2@today.example"];
    let id = pombo.submit(&[], &to, &Mail::new()).await;
    pombo.in_state(&id, "finished", SOON).await;
    for agent in ["next", "today"] {
        pombo
            .journal(agent)
            .wait_for(SOON, "submit", 1, |_| true)
            .await;
    }

    // In through the newer one, and out through the older.
    let mail = Mail::new();
    pombo.incoming(
        "next",
        "ok",
        "carol@next.example",
        &["ok+in@today.example"],
        &mail.bytes(),
    );
    pombo
        .journal("today")
        .wait_for(SOON, "submit", 2, |_| true)
        .await;

    // They agreed on what both speak, and nobody wrote what the other cannot read.
    for agent in ["next", "today"] {
        let opened = pombo
            .agent(agent)
            .wait_for_log("session opened", SOON)
            .await;
        let agreed = format!("version={} ", VERSIONS.max);
        assert!(opened.contains(&agreed), "{opened}");
    }
    for service in pombo.spoolers() {
        assert_eq!(service.metric("pombo_link_unreadable_total").await?, 0.0);
    }
    for service in pombo.agents() {
        assert_eq!(service.metric("pombo_link_unreadable_total").await?, 0.0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_flows_while_an_agent_is_replaced_by_its_next_version() -> anyhow::Result<()> {
    let mut pombo = Installation::builder()
        .spoolers(2)
        .agent(Agent::scripted("old").transport("own"))
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;
    let before = pombo.submit(&[], &["ok+1@a.example"], &Mail::new()).await;
    pombo.in_state(&before, "finished", SOON).await;

    pombo.add_agent(Agent::neighbour("new").transport("own"))?;
    pombo.agent("new").ready(SOON).await?;
    pombo.has_sessions(4, SOON).await;
    assert_eq!(pombo.agent("old").terminate_and_wait(SOON).await?, 0);
    let mut ids = Vec::new();
    for n in 0..5 {
        let to = format!("ok+{n}@b.example");
        ids.push(pombo.submit(&[], &[&to], &Mail::new()).await);
    }
    for id in &ids {
        pombo.in_state(id, "finished", SOON).await;
    }
    eventually(SOON, "all went through the newer agent", || async {
        let sent = pombo.journal("new").all("submit").len();
        if sent == ids.len() { Ok(()) } else { Err(sent) }
    })
    .await;
    Ok(())
}

/// Some mail of each kind: what goes at once, and what comes back to the store and is claimed by anybody.
async fn send(pombo: &Installation, ids: &mut Vec<(String, &str)>) {
    for to in ["ok@a.example", "ok@b.example", "later-1@c.example"] {
        ids.push((pombo.submit(&[], &[to], &Mail::new()).await, to));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_flows_while_spoolers_and_agents_are_replaced_one_by_one() -> anyhow::Result<()> {
    let mut pombo = Installation::builder()
        .spoolers(2)
        .agent(Agent::scripted("old").transport("own"))
        .spooler_lines("[schedule]\nfirst = \"1s\"\nmax = \"2s\"\n")
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;
    let mut ids = Vec::new();
    send(&pombo, &mut ids).await;

    // Over one store with today's.
    let newer = pombo.add_neighbour_spooler()?;
    pombo.spooler(newer).ready(SOON).await?;
    pombo.has_sessions(3, SOON).await;
    send(&pombo, &mut ids).await;
    assert_eq!(pombo.spooler(0).terminate_and_wait(SOON).await?, 0);
    send(&pombo, &mut ids).await;

    pombo.add_agent(Agent::neighbour("new").transport("own"))?;
    pombo.agent("new").ready(SOON).await?;
    pombo.has_sessions(4, SOON).await;
    send(&pombo, &mut ids).await;
    assert_eq!(pombo.agent("old").terminate_and_wait(SOON).await?, 0);
    assert_eq!(pombo.spooler(1).terminate_and_wait(SOON).await?, 0);
    pombo.has_sessions(1, SOON).await;
    send(&pombo, &mut ids).await;

    for (id, _) in &ids {
        pombo.in_state(id, "finished", SOON).await;
    }
    let journals = [pombo.journal("old"), pombo.journal("new")];
    for (id, to) in &ids {
        let submits = journals.iter().map(|journal| {
            let all = journal.about(id);
            all.iter().filter(|it| it.what() == "submit").count()
        });
        // Each agent defers the other kind once.
        let wanted = if to.starts_with("ok") { 1..=1 } else { 2..=3 };
        assert!(wanted.contains(&submits.sum::<usize>()), "{id} to {to}");
    }
    // The two newer ones speak the newer version, and each with an older one what that speaks.
    for version in [VERSIONS.max, VERSIONS.max + 1] {
        let (opened, agreed) = (pombo.agent("new").log(), format!("version={version} "));
        let mut opened = opened.lines().filter(|it| it.contains("session opened"));
        assert!(opened.any(|it| it.contains(&agreed)), "{agreed}");
    }
    let unreadable = "pombo_link_unreadable_total";
    assert_eq!(pombo.spooler(newer).metric(unreadable).await?, 0.0);
    assert_eq!(pombo.agent("new").metric(unreadable).await?, 0.0);
    Ok(())
}
