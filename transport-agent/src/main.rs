//! `pombo-agent`: hosts one transport.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use pombo_agent::{config::Config, host};
use pombo_proto::service;

/// Hosts one transport, and offers it to every spooler that it meets on RabbitMQ.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; deploy/agent.sample.toml has every key.
    #[arg(long, value_name = "FILE", env = "POMBO_AGENT_CONFIG")]
    config: PathBuf,
    /// Check the configuration and exit: 0 if it is good, 78 if not.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match check(&arguments) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("pombo-agent: {error:#}");
            // EX_CONFIG of sysexits.h: a service manager need not try again.
            return ExitCode::from(78);
        }
    };
    if arguments.check {
        println!("{}: ok", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(arguments: &Arguments) -> anyhow::Result<Config> {
    let config = Config::load(&arguments.config)?;
    config.transport()?;
    config
        .broker
        .options(pombo_proto::link::Audience::Agents, "")
        .map_err(|bad| config.bad(bad.key, &bad))?;
    Ok(config)
}

fn serve(config: Config) -> anyhow::Result<()> {
    service::log::init(&config.log)?;
    service::install_tls();
    // Its own threads, so that no transport ever stalls the actor, and no actor a transport.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.agent.threads)
        .thread_name("transport")
        .enable_all()
        .build()
        .context("cannot start the transport's threads")?;
    let result = actix::System::new().block_on(host::run(config, runtime.handle().clone()));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
