//! The second peer: Exim, delivering each message at once. Debian does not install it beside Postfix, so its packages are fetched
//! and unpacked, and it runs from there, in a mount namespace in which the user it was built for exists.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use pombo_tests::{ports, process::Group, scratch::Scratch};
use tokio::time::{Instant, sleep};

/// What holds the program and the library that Debian's base does not have.
const PACKAGES: [&str; 3] = ["exim4-base", "exim4-daemon-light", "libidn12"];
const USER: &str = "Debian-exim";
/// No one else's, hopefully; in our own copy of the user list.
const USER_ID: u32 = 64_991;
const START_LIMIT: Duration = Duration::from_secs(20);

/// An Exim of our own. Killed when dropped.
#[derive(Debug)]
pub struct Exim {
    door: SocketAddr,
    // Before the directory that it writes into.
    group: Group,
    scratch: Scratch,
}

impl Exim {
    /// Starts one that relays everything to `next`; its packages are kept in `cache`.
    ///
    /// # Errors
    /// It cannot be fetched, we are not root, or it did not come up.
    pub async fn start(next: SocketAddr, cache: &Path) -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "Exim can be run privately by root only"
        );
        let root = unpacked(cache)?;
        let scratch = Scratch::new("exim")?;
        let door = ports::free_address();
        write(&scratch, &root, door, next)?;
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "sh", "-c"])
            .arg("mount --bind passwd /etc/passwd && mount --bind group /etc/group && exec \"$0\" -C \"$1\" -bdf")
            .arg(root.join("usr/sbin/exim4"))
            .arg(scratch.join("exim.conf"))
            .env("LD_LIBRARY_PATH", library(&root)?)
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(scratch.join("stderr"))?);
        let group = Group::spawn(&mut command)?;
        let mut exim = Self {
            door,
            group,
            scratch,
        };
        let end = Instant::now() + START_LIMIT;
        while tokio::net::TcpStream::connect(door).await.is_err() {
            let ended = exim.group.ended();
            if ended.is_some() || Instant::now() > end {
                let said = fs::read_to_string(exim.scratch.join("stderr")).unwrap_or_default();
                bail!("Exim does not listen: {said}");
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(exim)
    }

    /// Where it takes mail.
    pub fn door(&self) -> SocketAddr {
        self.door
    }

    /// The daemon.
    pub fn pid(&self) -> u32 {
        self.group.pid()
    }
}

/// The packages' files, fetched the first time.
fn unpacked(cache: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(cache)?;
    let cache = cache.canonicalize()?;
    let root = cache.join("root");
    if root.join("complete").exists() {
        return Ok(root);
    }
    let mut fetch = Command::new("apt-get");
    fetch.args(["-q", "download"]).args(PACKAGES);
    done(
        fetch.current_dir(&cache),
        "fetching Debian's packages of Exim",
    )?;
    for entry in fs::read_dir(&cache)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "deb") {
            let mut unpack = Command::new("dpkg");
            unpack.arg("-x").arg(&path).arg(&root);
            done(&mut unpack, "unpacking a package of Exim")?;
        }
    }
    // Set-uid, it would forget where its library is. It needs to be root only for local deliveries, of which there are none.
    let program = root.join("usr/sbin/exim4");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::write(root.join("complete"), "")?;
    Ok(root)
}

/// The architecture's directory below `usr/lib`.
fn library(root: &Path) -> anyhow::Result<PathBuf> {
    let found = fs::read_dir(root.join("usr/lib"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    found.context("the packages hold no library")
}

fn done(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| what.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {said}");
    Ok(())
}

fn write(scratch: &Scratch, root: &Path, door: SocketAddr, next: SocketAddr) -> anyhow::Result<()> {
    let dir = scratch.path();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(dir.join("spool"))?;
    std::os::unix::fs::chown(dir.join("spool"), Some(USER_ID), Some(USER_ID))?;
    let users = fs::read_to_string("/etc/passwd")?;
    scratch.write(
        "passwd",
        format!("{users}{USER}:x:{USER_ID}:{USER_ID}::/nonexistent:/usr/sbin/nologin\n"),
    )?;
    let groups = fs::read_to_string("/etc/group")?;
    scratch.write("group", format!("{groups}{USER}:x:{USER_ID}:\n"))?;
    let config = format!(
        "exim_path = {program}
exim_user = {USER}
exim_group = {USER}
never_users =
spool_directory = {dir}/spool
log_file_path = {dir}/spool/log-%slog
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
primary_hostname = exim.example
deliver_drop_privilege
smtp_accept_max = 0
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 500
host_lookup =
rfc1413_query_timeout = 0s
acl_smtp_rcpt = accept_all
keep_environment =
begin acl
accept_all:
  accept
begin routers
all:
  driver = manualroute
  route_list = * {host}
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = {next_port}
begin retry
* * F,1h,1m
",
        program = root.join("usr/sbin/exim4").display(),
        dir = dir.display(),
        port = door.port(),
        host = next.ip(),
        next_port = next.port(),
    );
    scratch.write("exim.conf", config)?;
    Ok(())
}
