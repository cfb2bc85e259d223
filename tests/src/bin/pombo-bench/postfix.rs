//! The peer: Debian's Postfix, as fast as its settings make it, run privately from a directory of its own.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use pombo_tests::{ports, reaper, scratch::Scratch};
use tokio::time::{Instant, sleep};

const PROGRAM: &str = "/usr/sbin/postfix";
const START_LIMIT: Duration = Duration::from_secs(30);

/// The best of what was tried: no DNS, no look-up of clients' names, processes that live long, no scache between deliveries, and
/// no brake on reception while the queue grows. Durability is Postfix's own: it syncs each queue file before the 250.
const TUNING: &str = "\
in_flow_delay = 1
max_use = 10000
smtpd_peername_lookup = no
smtp_connection_cache_on_demand = no
disable_dns_lookups = yes
smtp_host_lookup = native
smtp_destination_concurrency_limit = 20
";

const SERVICES: &str = "\
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
local     unix  -       n       n       -       -       local
virtual   unix  -       n       n       -       -       virtual
lmtp      unix  -       -       n       -       -       lmtp
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
";

/// A Postfix of our own. Stopped when dropped.
#[derive(Debug)]
pub struct Postfix {
    door: SocketAddr,
    master: u32,
    scratch: Scratch,
}

impl Postfix {
    /// Starts one that relays everything to `next`.
    ///
    /// # Errors
    /// It is not installed, we are not root (Postfix must be started by root), or it did not come up.
    pub async fn start(next: SocketAddr) -> anyhow::Result<Self> {
        ensure!(Path::new(PROGRAM).exists(), "Postfix is not installed");
        ensure!(
            nix::unistd::geteuid().is_root(),
            "Postfix can be started by root only"
        );
        let scratch = Scratch::new("postfix")?;
        let door = ports::free_address();
        write(&scratch, door, next)?;
        let config = scratch.join("config");
        let output = command(&config, "start").output()?;
        let (out, error) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(output.status.success(), "postfix start: {out}{error}");
        let pid = std::fs::read_to_string(scratch.join("queue/pid/master.pid"))
            .context("Postfix's master has written no pid")?;
        let master: u32 = pid.trim().parse().context("the pid of Postfix's master")?;
        // It leads a session of its own, with all that it starts.
        reaper::watch_group(master);
        let postfix = Self {
            door,
            master,
            scratch,
        };
        let end = Instant::now() + START_LIMIT;
        while tokio::net::TcpStream::connect(door).await.is_err() {
            if Instant::now() > end {
                bail!("Postfix does not listen on {door} after {START_LIMIT:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(postfix)
    }

    /// Where it takes mail.
    pub fn door(&self) -> SocketAddr {
        self.door
    }

    /// The process that starts all others.
    pub fn master(&self) -> u32 {
        self.master
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let _ = command(&self.scratch.join("config"), "stop").output();
        let pid = i32::try_from(self.master).map(nix::unistd::Pid::from_raw);
        if let Ok(pid) = pid {
            let _ = nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGKILL);
        }
        reaper::forget_group(self.master);
    }
}

fn command(config: &Path, verb: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("-c").arg(config).arg(verb);
    command.stdin(Stdio::null());
    command
}

fn write(scratch: &Scratch, door: SocketAddr, next: SocketAddr) -> anyhow::Result<()> {
    let dir = scratch.path();
    // Its processes run as another user, and come through here.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    for name in ["config", "queue", "data"] {
        std::fs::create_dir_all(dir.join(name))?;
    }
    let owner = nix::unistd::User::from_name("postfix")?.context("there is no user postfix")?;
    nix::unistd::chown(&dir.join("data"), Some(owner.uid), Some(owner.gid))?;
    let dir = dir.display();
    let main = format!(
        "compatibility_level = 3.6
queue_directory = {dir}/queue
data_directory = {dir}/data
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.example
mydestination =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relayhost = [{}]:{}
{TUNING}",
        next.ip(),
        next.port()
    );
    scratch.write("config/main.cf", main)?;
    let smtpd = format!("{door} inet n - n - - smtpd\n{SERVICES}");
    scratch.write("config/master.cf", smtpd)?;
    Ok(())
}
