//! `pombo-bench`: how fast Pombo is, beside its peers and the broker's own limit, on this machine, in one run.
//!
//! ```text
//! load (smtp-source, 40 sessions) ─> contender: Pombo | Postfix | Exim ─> sink (counts, and stamps)
//! ```
//!
//! Contenders take turns; the first turn of each warms up and does not count. A run that loses or repeats a message is no
//! result but an error. Nothing here judges a figure: it prints what it saw, as medians and as ratios between them.

mod amqp;
mod asked;
mod bench;
mod cases;
mod exim;
mod flow;
mod load;
mod messages;
mod output;
mod paced;
mod plot;
mod postfix;
mod relay;
mod samples;
mod sink;
mod usage;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Parser;

use crate::{
    bench::{Amount, Bench},
    cases::{CASES, Case},
};

/// Where the docs have their copy, from the top of the repository.
const DOCS: &str = "deploy/performance";

/// How fast Pombo is, beside its peers and the broker's own limit.
#[derive(Debug, Parser)]
#[command(name = "tests/bench")]
struct Options {
    /// The main cases, with few messages
    #[arg(long)]
    quick: bool,
    /// Only this case; may be repeated
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// Only this contender; may be repeated
    #[arg(long, value_name = "NAME")]
    contender: Vec<String>,
    /// Runs that count, of each contender (default: 5, quick: 2)
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Writes the rows into this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes table and plot into deploy/performance/, too
    #[arg(long)]
    docs: bool,
    /// Names the cases, and ends
    #[arg(long)]
    list: bool,
    /// Where table, plot and rows are written
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tests/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if all cases went well.
async fn run(options: Options) -> anyhow::Result<bool> {
    if options.list {
        for case in CASES {
            let quick = if case.quick { "  (quick)" } else { "" };
            println!("{:12} {}{quick}", case.name, case.about);
        }
        return Ok(true);
    }
    let cases = chosen(&options)?;
    load::installed()?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("making {}", options.out.display()))?;
    let amount = Amount {
        quick: options.quick,
        runs: options.runs,
        contenders: options.contender.clone(),
        out: options.out.clone(),
    };
    eprintln!("starting RabbitMQ");
    let mut bench = Bench::start(amount).await?;
    let mut failed = Vec::new();
    for case in cases {
        bench.say(&format!("{}: {}", case.name, case.about));
        let interrupted = tokio::select! {
            done = case.run(&mut bench) => {
                if let Err(error) = done {
                    bench.say(&format!("{} FAILED: {error:#}", case.name));
                    failed.push(case.name);
                }
                false
            }
            _ = tokio::signal::ctrl_c() => true,
        };
        if interrupted {
            bail!("interrupted");
        }
        write(&options, &bench)?;
    }
    bench.stop_relays();
    println!("{}", output::markdown(&bench.samples.rows()));
    if !failed.is_empty() {
        println!("failed: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn chosen(options: &Options) -> anyhow::Result<Vec<&'static Case>> {
    if options.case.is_empty() {
        let wanted = |case: &&Case| case.quick || !options.quick;
        return Ok(CASES.iter().filter(wanted).collect());
    }
    let found = options.case.iter().map(|name| {
        let case = CASES.iter().find(|case| case.name == name);
        case.with_context(|| format!("there is no case {name}; --list names them"))
    });
    found.collect()
}

/// After each case, so that an end in the middle leaves what there is.
fn write(options: &Options, bench: &Bench) -> anyhow::Result<()> {
    let rows = bench.samples.rows();
    let json = serde_json::to_vec_pretty(&rows)?;
    let (table, plot) = (output::markdown(&rows), plot::svg(&rows));
    let mut files = vec![(options.out.join("rows.json"), json.clone())];
    files.extend(options.json.iter().map(|path| (path.clone(), json.clone())));
    let docs = options.docs.then(|| PathBuf::from(DOCS));
    for dir in [Some(options.out.clone()), docs].into_iter().flatten() {
        files.push((dir.join("table.md"), table.clone().into_bytes()));
        files.push((dir.join("plot.svg"), plot.clone().into_bytes()));
    }
    for (path, content) in files {
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
