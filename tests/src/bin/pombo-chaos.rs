//! `pombo-chaos`: a whole Pombo under load, and everything that can go wrong. `tests/chaos` builds what it needs and runs it.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use pombo_tests::chaos::{self, FAULTS, Length, Options, report};

/// Tries faults on a whole Pombo under load, counts what is lost and what arrives twice, and prints a table. The exit code is 0 only
/// if every promise held.
#[derive(Debug, Parser)]
#[command(name = "tests/chaos")]
struct Arguments {
    /// A few faults, in about a minute: what every test run does.
    #[arg(long, conflicts_with = "long")]
    short: bool,
    /// Every fault as often as the table of faults says: with --lanes 4, some 25 minutes.
    #[arg(long)]
    long: bool,
    /// Only this fault; may be given several times.
    #[arg(long = "fault", value_name = "NAME")]
    faults: Vec<String>,
    /// Chooses victims and pauses; printed at the start.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Writes the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keeps the logs of whatever broke a promise in this directory.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Lists the faults.
    #[arg(long)]
    list: bool,
    /// Faults tried side by side.
    #[arg(long, value_name = "N")]
    lanes: Option<usize>,
    /// Messages a second, for each of them.
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Strikes of each fault instead of the length's number.
    #[arg(long, value_name = "N")]
    times: Option<u32>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for fault in FAULTS {
            println!("{:24} {}", fault.name, fault.about);
        }
        return ExitCode::SUCCESS;
    }
    let length = match (arguments.short, arguments.long) {
        (true, _) => Length::Short,
        (_, true) => Length::Long,
        _ => Length::Normal,
    };
    let mut options = Options::of_length(length);
    if !arguments.faults.is_empty() {
        options = match options.only(&arguments.faults, length) {
            Ok(options) => options,
            Err(name) => {
                eprintln!("tests/chaos: no fault is called {name}; --list shows all");
                return ExitCode::from(2);
            }
        };
    }
    if let Some(times) = arguments.times {
        options
            .faults
            .iter_mut()
            .for_each(|(_, wanted)| *wanted = times);
    }
    options.seed = arguments.seed.unwrap_or(options.seed);
    options.lanes = arguments.lanes.unwrap_or(options.lanes);
    options.rate = arguments.rate.unwrap_or(options.rate);
    options.logs.clone_from(&arguments.logs);
    eprintln!("seed {}", options.seed);

    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tests/chaos: {error}");
            return ExitCode::FAILURE;
        }
    };
    let verdicts = runtime.block_on(chaos::run(&options));
    println!("{}", report::table(&verdicts));
    if let Some(file) = &arguments.json
        && let Err(error) = report::write_json(file, &verdicts)
    {
        eprintln!("tests/chaos: {error:#}");
        return ExitCode::FAILURE;
    }
    if report::all_is_well(&verdicts) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
