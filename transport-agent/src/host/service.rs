//! The process around the actor: configuration in, exit code out.

use std::{sync::Arc, time::Duration};

use actix::Actor;
use anyhow::Context as _;
use pombo_proto::{
    blob::Blobs,
    link::{Audience, Link},
    service::{
        http::{Health, Metrics, Server},
        shutdown::{Asked, Shutdown},
    },
    verbs::{Validation, VersionRange},
};
use tokio::{sync::oneshot, time::timeout};
use tracing::{error, info, warn};

use super::agent::{Agent, Drain, Drained, Linked, Parts, Settings, Stop};
use crate::{config::Config, provider::Transport};

/// The link's end may take so long. What the transport's Shutdown may take, it says itself.
const END_MAX: Duration = Duration::from_secs(10);

/// Runs an agent until it is asked to end. Within an actix System; `runtime` is the transport's. It speaks these versions of the
/// protocol: those of this build, unless a test plays a neighbour.
///
/// # Errors
/// It cannot start, or its actor has failed.
pub async fn run(
    config: Config,
    versions: VersionRange,
    runtime: tokio::runtime::Handle,
) -> anyhow::Result<()> {
    let transport = config.transport()?;
    let mut options = config
        .broker
        .options(
            Audience::Agents,
            format!("pombo-agent {}", config.transport.name),
        )
        .map_err(|bad| config.bad(bad.key, &bad))?;
    options.versions = versions;
    let metrics = Metrics::install()?;
    let health = Health::default();
    let server = Server::start(&config.http, health.clone(), metrics)?;
    let place = config.blobs.place();
    let place = place.map_err(|bad| config.bad(bad.key, &bad))?;
    let blobs = Blobs::open(&place).await.context("[blobs]")?;
    let mut shutdown = Shutdown::listen().context("cannot listen to signals")?;
    let settings = settings(&config, versions);
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
            what = shutdown.asked_or_read_again() => match what {
                Asked::End(signal) => {
                    asked += 1;
                    info!(signal, "asked to end");
                    if asked == 1 { agent.do_send(Drain) } else { agent.do_send(Stop) }
                }
                Asked::ReadAgain => {
                    info!("SIGHUP: reading again what the transport's configuration refers to");
                    runtime.spawn(read_again(Arc::clone(&transport)));
                }
            },
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
    end_transport(transport, &runtime, asked_again(&mut shutdown)).await;
    if timeout(END_MAX, link.close()).await.is_err() {
        warn!("the link's end takes too long");
    }
    server.stop().await;
    info!("pombo-agent ends");
    result
}

/// Shutdown. One that hangs is left behind; so is one that takes its time, if somebody is tired of waiting.
async fn end_transport(
    transport: Arc<dyn Transport>,
    runtime: &tokio::runtime::Handle,
    impatient: impl Future<Output = ()>,
) {
    let patience = transport.shutdown_max();
    let end = runtime.spawn(async move { transport.shutdown().await });
    tokio::select! {
        biased;
        ended = timeout(patience, end) => match ended {
            Ok(Ok(())) => {}
            Ok(Err(failed)) => error!(%failed, "the transport panicked in Shutdown"),
            Err(_) => warn!(?patience, "the transport's Shutdown takes too long"),
        },
        () = impatient => warn!("asked again to end: not waiting for the transport's Shutdown"),
    }
}

async fn asked_again(shutdown: &mut Shutdown) {
    while !matches!(shutdown.asked_or_read_again().await, Asked::End(_)) {}
}

/// Certificates, users, passwords: whatever lies in files of their own. What cannot be read leaves everything as it was.
async fn read_again(transport: Arc<dyn Transport>) {
    match transport.validate_state(true).await {
        Validation::Ok => info!("read again"),
        Validation::Busy => warn!("busy: nothing was read again"),
        Validation::Failing(error) => warn!(%error, "not read again"),
    }
}

fn settings(config: &Config, versions: VersionRange) -> Settings {
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
        bodies_max: config.agent.bodies_max,
        inline_max: config.blobs.inline_max,
        versions,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicBool, Ordering},
    };

    use async_trait::async_trait;
    use pombo_proto::{
        outcome::SubmitResult,
        verbs::{AddressTypes, LogonError},
    };

    use super::*;
    use crate::provider::{LogonReply, Submission, Support};

    /// Ends when the gate is opened, which may be never.
    struct Ending {
        max: Duration,
        gate: tokio::sync::Semaphore,
        ended: AtomicBool,
    }

    #[async_trait]
    impl Transport for Ending {
        async fn logon(&self, _: Arc<dyn Support>) -> Result<LogonReply, LogonError> {
            Err(LogonError::Unconfigured(String::new()))
        }

        fn address_types(&self) -> AddressTypes {
            AddressTypes {
                types: None,
                uids: Vec::new(),
            }
        }

        async fn submit_message(&self, _: Arc<Submission>) -> SubmitResult {
            SubmitResult::NotMe
        }

        async fn shutdown(&self) {
            if self.gate.acquire().await.is_ok() {
                self.ended.store(true, Ordering::SeqCst);
            }
        }

        fn shutdown_max(&self) -> Duration {
            self.max
        }
    }

    fn ending(max: Duration) -> Arc<Ending> {
        Arc::new(Ending {
            max,
            gate: tokio::sync::Semaphore::new(0),
            ended: AtomicBool::new(false),
        })
    }

    #[tokio::test]
    async fn shutdown_has_the_time_that_the_transport_asks_for_and_no_more() {
        let runtime = tokio::runtime::Handle::current();
        let hung = ending(Duration::from_millis(50));
        let end = end_transport(hung.clone(), &runtime, pending());
        timeout(Duration::from_secs(5), end)
            .await
            .expect("its time is over");
        assert!(!hung.ended.load(Ordering::SeqCst));

        // Longer than the other one's patience is no reason.
        let slow = ending(Duration::from_secs(3_600));
        let end = end_transport(slow.clone(), &runtime, pending());
        let meanwhile = async {
            end_transport(hung, &runtime, pending()).await;
            slow.gate.add_permits(1);
        };
        tokio::join!(end, meanwhile);
        assert!(slow.ended.load(Ordering::SeqCst));

        let asked_for_an_hour = ending(Duration::from_secs(3_600));
        end_transport(asked_for_an_hour.clone(), &runtime, async {}).await;
        assert!(!asked_for_an_hour.ended.load(Ordering::SeqCst));
    }
}
