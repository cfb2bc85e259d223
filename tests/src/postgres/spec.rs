//! What stays the same over a server's starts: its programs, its files and its configuration, and how it is made and started.

use std::{
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::unistd::{User, geteuid};

use super::Builder;
use crate::{process::Group, reaper, scratch::Scratch, service};

/// Where Debian puts the programs, a directory for each version.
const LIBRARY: &str = "/usr/lib/postgresql";
/// Another `bin` directory, for other versions.
const BIN: &str = "POMBO_TESTS_POSTGRES_BIN";

/// Everything about a server that stays the same over its starts.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) bin: PathBuf,
    pub(super) port: u16,
    pub(super) password: String,
    /// As whom it runs, if not as ourselves.
    pub(super) owner: Option<User>,
    pub(super) small_disk: Option<u64>,
    pub(super) scratch: Scratch,
}

impl Spec {
    fn data(&self) -> PathBuf {
        self.scratch.join("server/data")
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.scratch.join("server/disk")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.scratch.join("server.log")
    }

    /// One of PostgreSQL's programs, as its own user, in a clean environment.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        self.as_owner(&mut command);
        command
    }

    fn as_owner(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.scratch.join("server"));
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
    }

    fn own(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(owner) = &self.owner {
            nix::unistd::chown(path, Some(owner.uid), Some(owner.gid))
                .with_context(|| format!("giving {} away", path.display()))?;
        }
        Ok(())
    }

    /// A file for the server alone.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.scratch.write(Path::new("server").join(name), text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        self.own(&path)?;
        Ok(path)
    }

    pub(super) fn make(&self, builder: &Builder) -> anyhow::Result<()> {
        self.scratch
            .write("password", format!("{}\n", self.password))?;
        std::fs::create_dir(self.scratch.join("server"))?;
        self.own(&self.scratch.join("server"))?;
        std::fs::create_dir(self.disk())?;
        self.own(&self.disk())?;
        let password = self.write("password", &self.password)?;
        let output = self
            .program("initdb")
            .args([
                "--no-sync",
                "-A",
                "scram-sha-256",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale",
                "C.UTF-8",
            ])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(self.data())
            .output()
            .context("starting initdb")?;
        ensure!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let access = builder.access.as_deref();
        let access = access.unwrap_or("host all all 127.0.0.1/32 scram-sha-256");
        self.write("data/pg_hba.conf", &format!("{access}\n"))?;
        self.write("data/postgresql.auto.conf", &self.configuration(builder)?)?;
        Ok(())
    }

    fn configuration(&self, builder: &Builder) -> anyhow::Result<String> {
        // Memory that no kill leaves behind: files of ours instead of the system's.
        let mut lines = vec![
            "listen_addresses = '127.0.0.1'".to_owned(),
            format!("port = {}", self.port),
            "unix_socket_directories = ''".to_owned(),
            "dynamic_shared_memory_type = mmap".to_owned(),
            "shared_buffers = 64MB".to_owned(),
            "max_connections = 100".to_owned(),
            "wal_level = minimal".to_owned(),
            "max_wal_senders = 0".to_owned(),
            "log_line_prefix = '%m [%p] '".to_owned(),
        ];
        if let Some(certificate) = &builder.certificate {
            self.write("tls.crt", &certificate.certificate_pem)?;
            self.write("tls.key", &certificate.key_pem)?;
            lines.push("ssl = on".to_owned());
            lines.push("ssl_cert_file = '../tls.crt'".to_owned());
            lines.push("ssl_key_file = '../tls.key'".to_owned());
        }
        if let Some(clients) = &builder.clients {
            self.write("clients.crt", clients)?;
            lines.push("ssl_ca_file = '../clients.crt'".to_owned());
        }
        lines.extend(builder.lines.iter().cloned());
        Ok(lines.join("\n") + "\n")
    }

    pub(super) fn spawn(&self) -> anyhow::Result<Group> {
        let mut command = match self.small_disk {
            Some(bytes) => self.on_small_disk(bytes),
            None => {
                let mut command = self.program("postgres");
                command.arg("-D").arg(self.data());
                command
            }
        };
        let log = service::append(&self.log())?;
        let group = Group::spawn(
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        reaper::watch_server(group.pid());
        Ok(group)
    }

    /// In a view of the file system that has one more disk, and ends with the server. As root that needs nothing more; any
    /// other user becomes root of a name space of its own for it, and itself again below that.
    fn on_small_disk(&self, bytes: u64) -> Command {
        let mut command = Command::new("unshare");
        self.as_owner(&mut command);
        let (outer, inner) = match &self.owner {
            Some(owner) => {
                command.uid(0).gid(0);
                let ids = format!("--reuid={} --regid={} --clear-groups", owner.uid, owner.gid);
                (vec!["--mount"], format!("setpriv {ids}"))
            }
            None => (
                vec!["--user", "--map-root-user", "--mount"],
                "unshare --user --map-user=1000 --map-group=1000".to_owned(),
            ),
        };
        let owner = self.owner.as_ref().map_or(String::new(), |owner| {
            format!(",uid={},gid={}", owner.uid, owner.gid)
        });
        let script = format!(
            "mount -t tmpfs -o size={bytes},mode=0700{owner} pombo-tests \"$1\" && {inner} mkdir \"$1/tables\" && exec {inner} \"$2\" -D \"$3\""
        );
        command
            .args(outer)
            .args(["sh", "-c", &script, "small-disk"])
            .arg(self.disk())
            .arg(self.bin.join("postgres"))
            .arg(self.data());
        command
    }
}

/// As whom a server is run: as ourselves, unless we are root.
pub(super) fn owner() -> anyhow::Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = User::from_name("postgres")?;
    let user = user.context("there is no user postgres; PostgreSQL's package makes one")?;
    Ok(Some(user))
}

/// Where the programs are.
pub(super) fn bin() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN) {
        return Ok(dir.into());
    }
    let installed = std::fs::read_dir(LIBRARY).with_context(|| {
        format!("PostgreSQL is not installed (no {LIBRARY}); tests/run installs it")
    })?;
    let mut found: Vec<_> = installed
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|dir| dir.join("postgres").is_file())
        .collect();
    found.sort();
    found
        .pop()
        .with_context(|| format!("no postgres in {LIBRARY}/*/bin"))
}
