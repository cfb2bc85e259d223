//! A terminal that closes ends what was started in it, by a drain.

mod relay;

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use pombo_tests::{
    Installation, eventually,
    installation::Agent,
    scratch::Scratch,
    service::{Service, binary},
};

use relay::{LONG, SOON};

/// Plays a terminal: a new session on a pseudo-terminal of its own, which is gone when this process is.
const TERMINAL: &str = "#!/usr/bin/env python3
import pty, sys
sys.exit(pty.spawn([PROGRAM] + sys.argv[1:]))
";

/// Starts a program in a terminal, with the configuration of a service that has ended.
fn in_a_terminal(scratch: &Scratch, program: &str, of: &Service) -> anyhow::Result<Service> {
    let path = format!("{:?}", binary(program));
    let terminal = TERMINAL.replace("PROGRAM", &path);
    let terminal: PathBuf = scratch.write(format!("terminal-of-{program}"), &terminal)?;
    std::fs::set_permissions(&terminal, std::fs::Permissions::from_mode(0o755))?;
    let log = scratch.join(format!("{program}.log"));
    Service::start(program, &terminal, of.config(), of.http(), &log)
}

/// How many rows a table of the store has.
fn rows(store: &Path, table: &str) -> u32 {
    let store = rusqlite::Connection::open(store).expect("the store");
    let count = store.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
        row.get(0)
    });
    count.expect("a count")
}

/// The process in the terminal.
fn child_of(terminal: &Service) -> nix::unistd::Pid {
    let pid = terminal.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("what runs in the terminal");
    let child = children.trim().parse().expect("one child");
    nix::unistd::Pid::from_raw(child)
}

async fn empty(store: &Path, table: &str) {
    eventually(SOON, &format!("nobody is left in {table}"), || async {
        match rows(store, table) {
            0 => Ok(()),
            some => Err(some),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_closes_drains_what_runs_in_it() -> anyhow::Result<()> {
    let scratch = Scratch::new("terminal")?;
    let mut pombo = Installation::builder()
        .agent(Agent::maildir("local", &["example.org"]))
        .start()
        .await?;
    let store = pombo.store();

    // A spooler: it leaves the store, which it would not if it had been killed.
    assert_eq!(pombo.spooler(0).terminate_and_wait(SOON).await?, 0);
    empty(&store, "members").await;
    let mut terminal = in_a_terminal(&scratch, "pombo-spooler", pombo.spooler(0))?;
    terminal.ready(LONG).await?;
    assert_eq!(rows(&store, "members"), 1);
    terminal.kill9();
    empty(&store, "members").await;
    // It has left, and may still be about to end.
    let http = pombo.spooler(0).http();
    eventually(SOON, "its port is free", || async {
        std::net::TcpListener::bind(http).map(drop)
    })
    .await;

    // An agent: it logs off, which strikes it off.
    pombo.spooler(0).start_again()?;
    pombo.spooler(0).ready(LONG).await?;
    // Without a session there would be nobody to log off from.
    pombo.has_sessions(1, SOON).await;
    let agent = pombo.agent("local");
    assert_eq!(agent.terminate_and_wait(SOON).await?, 0);
    empty(&store, "instances").await;
    let mut terminal = in_a_terminal(&scratch, "pombo-agent", agent)?;
    terminal.ready(LONG).await?;
    pombo.has_sessions(1, SOON).await;
    assert_eq!(rows(&store, "instances"), 1);
    // As long as the terminal is there, the same signal means something else.
    nix::sys::signal::kill(child_of(&terminal), nix::sys::signal::Signal::SIGHUP)?;
    terminal.wait_for_log("read again", SOON).await;
    terminal.kill9();
    empty(&store, "instances").await;
    Ok(())
}
