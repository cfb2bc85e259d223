//! The process around the actor: configuration in, exit code out.

use std::{sync::Arc, time::Duration};

use actix::Actor;
use anyhow::Context as _;
use pombo_proto::{
    blob::Blobs,
    link::{Audience, Link},
    service::{
        http::{Health, Metrics, Server},
        shutdown::Shutdown,
    },
};
use tokio::{sync::oneshot, time::timeout};
use tracing::{error, info, warn};

use super::agent::{Agent, Drain, Drained, Linked, Parts, Settings, Stop};
use crate::config::Config;

/// The transport's Shutdown, and the link's end, may take so long.
const END_MAX: Duration = Duration::from_secs(10);

/// Runs an agent until it is asked to end. Within an actix System; `runtime` is the transport's.
///
/// # Errors
/// It cannot start, or its actor has failed.
pub async fn run(config: Config, runtime: tokio::runtime::Handle) -> anyhow::Result<()> {
    let transport = config.transport()?;
    let options = config
        .broker
        .options(
            Audience::Agents,
            format!("pombo-agent {}", config.transport.name),
        )
        .map_err(|bad| config.bad(bad.key, &bad))?;
    let metrics = Metrics::install()?;
    let health = Health::default();
    let server = Server::start(&config.http, health.clone(), metrics)?;
    let blobs = Blobs::directory(&config.blobs.path)
        .await
        .with_context(|| format!("blobs.path = {}", config.blobs.path.display()))?;
    let mut shutdown = Shutdown::listen().context("cannot listen to signals")?;
    let settings = settings(&config);
    info!(
        transport = settings.name,
        kind = config.transport.kind,
        host = settings.host,
        "pombo-agent starts"
    );

    let (done, mut drained) = oneshot::channel();
    let (tell_link, link) = std::sync::mpsc::sync_channel(1);
    let agent = Agent::create({
        let (transport, runtime) = (Arc::clone(&transport), runtime.clone());
        move |ctx| {
            let address = actix::AsyncContext::address(ctx);
            let link = Link::start(options, move |event| address.do_send(Linked(event)));
            let _ = tell_link.send(link.clone());
            let parts = Parts {
                settings,
                transport,
                wire: Arc::new(link),
                runtime,
                blobs: Some(blobs),
                health,
                done,
            };
            Agent::new(parts, ctx)
        }
    });
    let link = link.recv().context("the link did not start")?;

    let mut end: Option<Drained> = None;
    let mut asked = 0;
    let result = loop {
        tokio::select! {
            signal = shutdown.asked() => {
                asked += 1;
                info!(signal, "asked to end");
                if asked == 1 { agent.do_send(Drain) } else { agent.do_send(Stop) }
            }
            drained = &mut drained => {
                // Without a last word, the actor has panicked: the service manager starts us again.
                break drained.map(|drained| end = Some(drained)).context("the agent's actor has failed");
            }
        }
    };
    if let Some(Drained { kept }) = end
        && kept > 0
    {
        warn!(kept, "leaving with unsettled attempts");
    }
    let end = runtime.spawn(async move { transport.shutdown().await });
    match timeout(END_MAX, end).await {
        Ok(Ok(())) => {}
        Ok(Err(failed)) => error!(%failed, "the transport panicked in Shutdown"),
        Err(_) => warn!("the transport's Shutdown takes too long"),
    }
    if timeout(END_MAX, link.close()).await.is_err() {
        warn!("the link's end takes too long");
    }
    server.stop().await;
    info!("pombo-agent ends");
    result
}

fn settings(config: &Config) -> Settings {
    let host = config.agent.host.clone().unwrap_or_else(|| {
        let name = nix::unistd::gethostname().ok();
        name.and_then(|name| name.into_string().ok())
            .unwrap_or_else(|| "localhost".to_owned())
    });
    Settings {
        name: config.transport.name.clone(),
        host,
        right_to_send: config.agent.right_to_send,
        drain_limit: config.agent.drain_limit,
        message_max: config.agent.message_max,
        confirm_patience: config.agent.confirm_patience,
        notify_interval: config.agent.notify_interval,
        sessions_max: config.agent.sessions_max,
        inline_max: config.blobs.inline_max,
    }
}
