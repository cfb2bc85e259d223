//! A private S3 server (moto, from PyPI, in a virtual environment that `tests/run` makes): buckets in memory, gone with the test.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{eventually, ports, process::Group};

/// Python imports for some seconds.
const START_MAX: Duration = Duration::from_secs(60);
const ASK_MAX: Duration = Duration::from_secs(10);

/// A server that runs. Killed when dropped.
#[derive(Debug)]
pub struct S3Server {
    _group: Group,
    address: SocketAddr,
}

impl S3Server {
    /// Starts one with this bucket.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn start(bucket: &str) -> anyhow::Result<Self> {
        let address = ports::free_address();
        let mut command = Command::new(program()?);
        command
            .args([
                "-H",
                &address.ip().to_string(),
                "-p",
                &address.port().to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let group = Group::spawn(&mut command)?;
        eventually(START_MAX, "the S3 server answers", || async {
            put_bucket(address, bucket).await
        })
        .await;
        Ok(Self {
            _group: group,
            address,
        })
    }

    /// As in `http://127.0.0.1:12345`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A `[blobs]` section's lines for a bucket and a prefix in it.
    pub fn lines(&self, bucket: &str, prefix: &str) -> String {
        format!(
            "url = \"s3://{bucket}/{prefix}\"\nendpoint = \"{}\"\naccess_key_id = {{ env = \"POMBO_TEST_S3\" }}\n\
             secret_access_key = {{ env = \"POMBO_TEST_S3\" }}\n",
            self.endpoint()
        )
    }
}

/// `moto_server` of the environment that `tests/run` makes beside the build, or what `POMBO_TESTS_S3` says.
fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("POMBO_TESTS_S3") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().context("a test knows its own path")?;
    // target/debug/deps/blobs-0123456789abcdef
    let found = test
        .ancestors()
        .skip(1)
        .take(4)
        .map(|dir| dir.join("s3-server/bin/moto_server"))
        .find(|path| path.is_file());
    found.context("there is no S3 server: run tests/run, which installs one into target/s3-server")
}

async fn put_bucket(address: SocketAddr, bucket: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("PUT /{bucket} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(ASK_MAX, stream.read_to_end(&mut answer)).await??;
    let text = String::from_utf8_lossy(&answer);
    ensure!(text.split(' ').nth(1) == Some("200"), "{text}");
    Ok(())
}
