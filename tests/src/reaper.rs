//! Ends what a test process leaves behind, also when that process is killed with -9.
//!
//! A small shell per test process is told every process group and directory that we make. It reads them from a pipe, and the
//! end of that pipe is the end of the test process, however it came: then it kills the groups and removes the directories.
//! (`PR_SET_PDEATHSIG` would need `unsafe`, does not reach grandchildren, and follows the thread, not the process.)

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError},
};

/// In a group of its own and deaf to the terminal, so that a Ctrl-C does not end it before its work is done.
const SCRIPT: &str = r#"
trap '' INT HUP TERM
groups=
servers=
while IFS=' ' read -r what value; do
  case $what in
    group) groups="$groups $value" ;;
    server) servers="$servers $value" ;;
    gone)  kept=; for g in $groups; do [ "$g" = "$value" ] || kept="$kept $g"; done; groups=$kept
           kept=; for g in $servers; do [ "$g" = "$value" ] || kept="$kept $g"; done; servers=$kept ;;
    dir)   set -- "$@" "$value" ;;
  esac
done
# Asked first: they have children in other groups, and memory of the system's to give back.
for g in $servers; do kill -CONT "$g" 2>/dev/null; kill -QUIT "$g" 2>/dev/null; done
for try in 1 2 3 4 5 6 7 8 9 10; do
  left=; for g in $servers; do kill -0 "$g" 2>/dev/null && left=1; done
  [ -n "$left" ] || break
  sleep 0.2
done
for g in $groups; do kill -9 "-$g" 2>/dev/null; done
for d; do
  # What was just killed may still be creating files.
  for try in 1 2 3 4 5; do rm -rf -- "$d" 2>/dev/null && break; sleep 0.2; done
done
"#;

static REAPER: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| Mutex::new(start()));

#[expect(clippy::zombie_processes, reason = "it outlives this process")]
fn start() -> ChildStdin {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", SCRIPT, "pombo-test-reaper"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("/bin/sh is there to clean up after the tests");
    shell.stdin.take().expect("its standard input is a pipe")
}

/// From now on this process group dies with the test process.
pub fn watch_group(pgid: u32) {
    tell("group", &pgid.to_string());
}

/// The same, of a leader that ends by itself, with all its children wherever they are, when it gets a SIGQUIT: it is asked
/// that first. To be said after the group.
pub fn watch_server(pid: u32) {
    tell("server", &pid.to_string());
}

/// The group has ended; its number may belong to someone else soon.
pub fn forget_group(pgid: u32) {
    tell("gone", &pgid.to_string());
}

/// From now on this directory is removed with the test process.
pub fn watch_dir(path: &Path) {
    tell("dir", &path.to_string_lossy());
}

fn tell(what: &str, value: &str) {
    write(
        &mut REAPER.lock().unwrap_or_else(PoisonError::into_inner),
        what,
        value,
    );
}

fn write(pipe: &mut ChildStdin, what: &str, value: &str) {
    // One write, so that a kill in the middle leaves no half line. A reaper that is gone cannot be told anything.
    let _ = pipe.write_all(format!("{what} {value}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, time::Duration};

    use super::*;
    use crate::eventually;

    #[tokio::test]
    async fn end_of_the_pipe_ends_groups_and_directories_but_not_what_was_forgotten() {
        let sleep = || {
            Command::new("sleep")
                .arg("1000")
                .process_group(0)
                .spawn()
                .unwrap()
        };
        let (mut watched, mut forgotten) = (sleep(), sleep());
        let dir = tempfile::tempdir().unwrap().keep();
        std::fs::write(dir.join("file"), "x").unwrap();

        let mut pipe = start();
        write(&mut pipe, "group", &forgotten.id().to_string());
        write(&mut pipe, "group", &watched.id().to_string());
        write(&mut pipe, "dir", &dir.to_string_lossy());
        write(&mut pipe, "gone", &forgotten.id().to_string());
        drop(pipe);

        assert_eq!(watched.wait().unwrap().signal(), Some(9));
        eventually(Duration::from_secs(10), "the directory is gone", || async {
            !dir.exists()
        })
        .await;
        assert_eq!(forgotten.try_wait().unwrap(), None);
        forgotten.kill().unwrap();
        forgotten.wait().unwrap();
    }
}
