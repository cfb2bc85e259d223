//! The process: its command line, its configuration, its log; then [`service`] until the end.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use pombo_proto::verbs::{VERSIONS, VersionRange};

use crate::{config::Config, service};

/// Pombo's spooler: leases messages from RabbitMQ and sees to it that every recipient's copy is delivered.
#[derive(Parser)]
#[command(name = "pombo-spooler", version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(
        long,
        env = "POMBO_SPOOLER_CONFIG",
        default_value = "/etc/pombo/spooler.toml"
    )]
    config: PathBuf,
    /// Only check the configuration: exit code 0 if it is good, 78 if not.
    #[arg(long)]
    check: bool,
}

/// Runs the spooler: all of the program's `main`.
pub fn main() -> ExitCode {
    main_speaking(VERSIONS)
}

/// [`main`] for a program that speaks other versions of the protocol than this build does by itself: a neighbouring release, as far
/// as the others can tell.
pub fn main_speaking(versions: VersionRange) -> ExitCode {
    let arguments = Arguments::parse();
    pombo_proto::service::install_tls();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return refuse(&error.to_string()),
    };
    if arguments.check {
        println!("{}: good", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = pombo_proto::service::log::init(&config.log) {
        return refuse(&format!("log: {error}"));
    }
    match actix::System::new().block_on(service::run(config, versions)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// 78 is EX_CONFIG of sysexits.h: a service manager need not try again.
fn refuse(error: &str) -> ExitCode {
    eprintln!("pombo-spooler: {error}");
    ExitCode::from(78)
}
