//! The program around the service: arguments, logs, threads, exit code.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use pombo_proto::{
    service,
    verbs::{VERSIONS, VersionRange},
};

use super::registry::Kind;
use crate::config::Config;

/// Of sysexits.h: the configuration is bad. A service manager need not try again.
const EX_CONFIG: u8 = 78;

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

/// Runs an agent that can host these kinds of transports: all of a program's `main`. What a company's own transport needs
/// besides the transport itself:
///
/// ```no_run
/// # #[derive(serde::Deserialize)] struct Config {}
/// # struct Fax;
/// # impl Fax { fn new(_: Config) -> Result<Self, std::io::Error> { Ok(Self) } }
/// # #[async_trait::async_trait] impl pombo_agent::provider::Transport for Fax {
/// #   async fn logon(&self, _: std::sync::Arc<dyn pombo_agent::provider::Support>)
/// #     -> Result<pombo_agent::provider::LogonReply, pombo_proto::verbs::LogonError> { todo!() }
/// #   fn address_types(&self) -> pombo_proto::verbs::AddressTypes { todo!() }
/// #   async fn submit_message(&self, _: std::sync::Arc<pombo_agent::provider::Submission>)
/// #     -> pombo_proto::outcome::SubmitResult { todo!() }
/// # }
/// use pombo_agent::host::registry::{self, Kind};
///
/// const KINDS: &[Kind] = &[Kind { name: "fax", make: |source| registry::make(source, "fax", Fax::new) }];
///
/// fn main() -> std::process::ExitCode {
///     pombo_agent::host::main(KINDS)
/// }
/// ```
pub fn main(kinds: &'static [Kind]) -> ExitCode {
    main_speaking(kinds, VERSIONS)
}

/// [`main`] for a program that speaks other versions of the protocol than this build does by itself: a neighbouring release, as far
/// as the others can tell. For tests of rolling upgrades.
pub fn main_speaking(kinds: &'static [Kind], versions: VersionRange) -> ExitCode {
    let arguments = Arguments::parse();
    let config = match check(&arguments, kinds) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{}: {error:#}", program());
            return ExitCode::from(EX_CONFIG);
        }
    };
    if arguments.check {
        println!("{}: ok", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    match serve(config, versions) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(arguments: &Arguments, kinds: &'static [Kind]) -> anyhow::Result<Config> {
    let config = Config::load_of(&arguments.config, kinds)?;
    config.transport()?;
    config
        .broker
        .options(pombo_proto::link::Audience::Agents, "")
        .map_err(|bad| config.bad(bad.key, &bad))?;
    Ok(config)
}

fn serve(config: Config, versions: VersionRange) -> anyhow::Result<()> {
    service::log::init(&config.log)?;
    service::install_tls();
    // Its own threads, so that no transport ever stalls the actor, and no actor a transport.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.agent.threads)
        .thread_name("transport")
        .enable_all()
        .build()
        .context("cannot start the transport's threads")?;
    let result =
        actix::System::new().block_on(super::run(config, versions, runtime.handle().clone()));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// What it was called as.
fn program() -> String {
    let path = std::env::args_os().next().map(PathBuf::from);
    let name = path.as_deref().and_then(|path| path.file_name());
    name.map_or_else(
        || "pombo-agent".into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_help_names_the_exit_code() {
        let help = Arguments::command().render_help().to_string();
        let code = format!("0 if it is good, {EX_CONFIG} if not");
        assert!(help.contains(&code), "{help}");
    }
}
