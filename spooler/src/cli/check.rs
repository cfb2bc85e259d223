//! `pombo config check`: the same checks that a service makes at its start.

use std::{path::Path, process::Command};

use super::Error;
use crate::config::Config;

pub(super) fn check(file: &Path) -> Result<bool, Error> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Error::Config(format!("{}: {error}", file.display())))?;
    // An agent's file has one [transport], a spooler's has a list of them, and sections that no agent has.
    let has = |heading: &str| {
        text.lines()
            .any(|line| line.trim_start().starts_with(heading))
    };
    let spooler = [
        "[[transport]]",
        "[store]",
        "[spooler]",
        "[spooler.",
        "[schedule]",
    ];
    if has("[transport]") || !spooler.into_iter().any(has) {
        return check_agent(file);
    }
    Config::load(file).map_err(|error| Error::Config(error.to_string()))?;
    println!("{}: good", file.display());
    Ok(true)
}

/// Only the agent knows its transports' sections.
fn check_agent(file: &Path) -> Result<bool, Error> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|it| Some(it.parent()?.join("pombo-agent")));
    let agent = beside
        .filter(|it| it.exists())
        .unwrap_or_else(|| "pombo-agent".into());
    let status = Command::new(&agent)
        .arg("--check")
        .arg("--config")
        .arg(file)
        .status();
    match status {
        Ok(status) if status.success() => Ok(true),
        Ok(_) => Err(Error::Config(format!("{}: see above", file.display()))),
        Err(error) => Err(Error::Unreachable(format!("{}: {error}", agent.display()))),
    }
}
