//! One connection to a server: from the TCP handshake to the point where a transaction can begin, and its way out.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use secrecy::SecretString;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tracing::debug;

use super::{
    config::{Config, Mechanism, TlsMode},
    reply::{Capabilities, Reply},
    route::{Endpoint, Kind},
    status::{ConnectionError, Stage},
    stream::Stream,
    tls::Tls,
};

/// How connections are made: the configuration, and what was read from files for it.
pub(super) struct Dialer {
    pub(super) config: Arc<Config>,
    pub(super) helo: String,
    pub(super) tls: Option<Tls>,
    pub(super) credentials: Option<Credentials>,
}

/// For the smart host.
pub(super) struct Credentials {
    pub(super) username: String,
    pub(super) password: SecretString,
    pub(super) mechanism: Mechanism,
}

/// One connection, greeted and ready.
pub(super) struct Connection {
    stream: Stream,
    input: BytesMut,
    /// Commands are put together here, so that a group of them is one write.
    pub(super) output: Vec<u8>,
    pub(super) offered: Capabilities,
    pub(super) host: Arc<str>,
    pub(super) address: SocketAddr,
    /// Transactions so far.
    pub(super) uses: u32,
    /// The server may still have a transaction open.
    pub(super) reset_needed: bool,
    /// No further use: it said 421, or something broke.
    pub(super) finished: bool,
    /// When it was last put away.
    pub(super) idle_since: Instant,
}

impl Dialer {
    /// Connects, says EHLO, encrypts and authenticates as configured.
    pub(super) async fn dial(
        &self,
        endpoint: &Endpoint,
        kind: Kind,
    ) -> Result<Connection, ConnectionError> {
        let result = match self.dial_with(endpoint, kind, self.tls.as_ref()).await {
            // Opportunistic TLS must not keep mail from a server whose TLS is broken.
            Err(ConnectionError::Tls(error)) if self.config.tls.mode == TlsMode::Opportunistic => {
                debug!(host = %endpoint.host, address = %endpoint.address, %error, "tls failed, going on without");
                self.dial_with(endpoint, kind, None).await
            }
            result => result,
        };
        match &result {
            Ok(connection) => {
                let encrypted = connection.stream.is_encrypted();
                metrics::counter!("pombo_smtp_connections_total", "result" => "opened")
                    .increment(1);
                debug!(host = %endpoint.host, address = %endpoint.address, encrypted, "connected");
            }
            Err(error) => {
                metrics::counter!("pombo_smtp_connections_total", "result" => "failed")
                    .increment(1);
                debug!(host = %endpoint.host, address = %endpoint.address, %error, "not connected");
            }
        }
        result
    }

    async fn dial_with(
        &self,
        endpoint: &Endpoint,
        kind: Kind,
        tls: Option<&Tls>,
    ) -> Result<Connection, ConnectionError> {
        let timeouts = &self.config.timeouts;
        let mut connection = Connection::new(self.connect(endpoint.address).await?, endpoint);
        let implicit = self.config.tls.mode == TlsMode::Implicit;
        if let Some(tls) = tls.filter(|_| implicit) {
            connection = connection.encrypt(tls, timeouts.tls).await?;
        }
        let greeting = connection.reply(Stage::Greeting, timeouts.greeting).await?;
        if !greeting.is_positive() {
            return Err(unwelcome(Stage::Greeting, greeting));
        }
        connection.hello(&self.helo, timeouts.hello).await?;
        if let Some(tls) = tls.filter(|_| !implicit) {
            connection = self.start_tls(connection, tls).await?;
        }
        if kind == Kind::Smarthost
            && let Some(credentials) = &self.credentials
        {
            connection.authenticate(credentials, timeouts.auth).await?;
        }
        Ok(connection)
    }

    async fn connect(&self, address: SocketAddr) -> Result<TcpStream, ConnectionError> {
        let open = async {
            let (socket, source) = match address {
                SocketAddr::V4(_) => (
                    TcpSocket::new_v4()?,
                    self.config.source_ipv4.map(IpAddr::V4),
                ),
                SocketAddr::V6(_) => (
                    TcpSocket::new_v6()?,
                    self.config.source_ipv6.map(IpAddr::V6),
                ),
            };
            if let Some(source) = source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            // Whole groups of commands are written at once; waiting for more only costs time.
            socket.set_nodelay(true)?;
            user_timeout(&socket, self.config.timeouts.tcp_user);
            socket.connect(address).await
        };
        match timeout(self.config.timeouts.connect, open).await {
            Ok(connected) => connected.map_err(ConnectionError::Connect),
            Err(_) => Err(ConnectionError::Timeout(Stage::Connect)),
        }
    }

    async fn start_tls(
        &self,
        mut connection: Connection,
        tls: &Tls,
    ) -> Result<Connection, ConnectionError> {
        let required = self.config.tls.mode.verifies();
        if !connection.offered.starttls {
            return if required {
                Err(ConnectionError::TlsNotOffered)
            } else {
                Ok(connection)
            };
        }
        if !required && tls.name(&connection.host).is_none() {
            return Ok(connection);
        }
        let limit = self.config.timeouts.hello;
        let reply = connection
            .command(b"STARTTLS\r\n", Stage::StartTls, limit)
            .await?;
        if !reply.is_positive() {
            return if required || reply.code == 421 {
                Err(unwelcome(Stage::StartTls, reply))
            } else {
                Ok(connection)
            };
        }
        let mut connection = connection.encrypt(tls, self.config.timeouts.tls).await?;
        // What was said in the clear may have come from anybody (RFC 3207 section 4.2).
        connection.offered = Capabilities::default();
        connection.hello(&self.helo, limit).await?;
        Ok(connection)
    }
}

pub(super) fn unwelcome(stage: Stage, reply: Reply) -> ConnectionError {
    if reply.is_negative() {
        ConnectionError::Refused(stage, reply)
    } else {
        ConnectionError::Unexpected(stage, reply)
    }
}

#[cfg(target_os = "linux")]
fn user_timeout(socket: &TcpSocket, limit: Duration) {
    use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
    let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = setsockopt(socket, TcpUserTimeout, &limit) {
        debug!(%error, "no TCP_USER_TIMEOUT");
    }
}

#[cfg(not(target_os = "linux"))]
fn user_timeout(_socket: &TcpSocket, _limit: Duration) {}

impl Connection {
    fn new(tcp: TcpStream, endpoint: &Endpoint) -> Self {
        Self {
            stream: Stream::Plain(tcp),
            input: BytesMut::with_capacity(4096),
            output: Vec::with_capacity(512),
            offered: Capabilities::default(),
            host: Arc::clone(&endpoint.host),
            address: endpoint.address,
            uses: 0,
            reset_needed: false,
            finished: false,
            idle_since: Instant::now(),
        }
    }

    async fn encrypt(mut self, tls: &Tls, limit: Duration) -> Result<Self, ConnectionError> {
        if !self.input.is_empty() {
            return Err(ConnectionError::Injected);
        }
        let Some(name) = tls.name(&self.host) else {
            return Err(ConnectionError::NoTlsName);
        };
        let Stream::Plain(tcp) = self.stream else {
            return Ok(self);
        };
        let handshake = tls.connector().connect(name, tcp);
        let stream = match timeout(limit, handshake).await {
            Ok(result) => result.map_err(ConnectionError::Tls)?,
            Err(_) => return Err(ConnectionError::Tls(io::ErrorKind::TimedOut.into())),
        };
        self.stream = Stream::Tls(Box::new(stream));
        Ok(self)
    }

    /// EHLO, or HELO for a server that does not know it.
    async fn hello(&mut self, name: &str, limit: Duration) -> Result<(), ConnectionError> {
        let ehlo = format!("EHLO {name}\r\n");
        let reply = self.command(ehlo.as_bytes(), Stage::Hello, limit).await?;
        if reply.is_positive() {
            self.offered = Capabilities::parse(&reply);
            return Ok(());
        }
        if !reply.is_permanent() {
            return Err(unwelcome(Stage::Hello, reply));
        }
        let helo = format!("HELO {name}\r\n");
        let reply = self.command(helo.as_bytes(), Stage::Hello, limit).await?;
        if reply.is_positive() {
            Ok(())
        } else {
            Err(unwelcome(Stage::Hello, reply))
        }
    }

    /// Says one thing and waits for the answer, whatever it is.
    pub(super) async fn command(
        &mut self,
        line: &[u8],
        stage: Stage,
        limit: Duration,
    ) -> Result<Reply, ConnectionError> {
        self.write(line, stage, limit).await?;
        self.reply(stage, limit).await
    }

    /// Writes all of it.
    pub(super) async fn write(
        &mut self,
        bytes: &[u8],
        stage: Stage,
        limit: Duration,
    ) -> Result<(), ConnectionError> {
        let mut written = 0;
        timeout(limit, self.write_on([bytes, &[]], &mut written))
            .await
            .map_err(|_| ConnectionError::Timeout(stage))?
            .map_err(|error| ConnectionError::Lost(stage, error))
    }

    /// Writes what is collected in `output`.
    pub(super) async fn write_output(
        &mut self,
        stage: Stage,
        limit: Duration,
    ) -> Result<(), ConnectionError> {
        let output = std::mem::take(&mut self.output);
        let result = self.write(&output, stage, limit).await;
        self.output = output;
        self.output.clear();
        result
    }

    /// Writes two pieces as one, from `written` on. May be dropped and called again: `written` says how far it came, and
    /// until it returns, the end of the second piece has not left this process.
    pub(super) async fn write_on(
        &mut self,
        parts: [&[u8]; 2],
        written: &mut usize,
    ) -> io::Result<()> {
        let [first, second] = parts;
        while *written < first.len() + second.len() {
            let done = (*written).min(first.len());
            let slices = [
                IoSlice::new(&first[done..]),
                IoSlice::new(&second[*written - done..]),
            ];
            let slices = if done == first.len() {
                &slices[1..]
            } else {
                &slices[..]
            };
            match self.stream.write_vectored(slices).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => *written += n,
            }
        }
        self.stream.flush().await
    }

    /// The next reply.
    pub(super) async fn reply(
        &mut self,
        stage: Stage,
        limit: Duration,
    ) -> Result<Reply, ConnectionError> {
        let read = async {
            loop {
                match Reply::parse(&self.input) {
                    Ok(Some((reply, used))) => {
                        self.input.advance(used);
                        return Ok(reply);
                    }
                    Ok(None) => {}
                    Err(error) => return Err(ConnectionError::Malformed(stage, error)),
                }
                self.input.reserve(1024);
                match self.stream.read_buf(&mut self.input).await {
                    Ok(0) => return Err(ConnectionError::Closed(stage)),
                    Ok(_) => {}
                    Err(error) => return Err(ConnectionError::Lost(stage, error)),
                }
            }
        };
        timeout(limit, read)
            .await
            .unwrap_or(Err(ConnectionError::Timeout(stage)))
    }

    /// Whether the server has neither said anything nor hung up since the last reply. Costs no system call while nothing
    /// has come in.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        self.input.is_empty() && self.stream.tcp().peek(&mut byte).now_or_never().is_none()
    }

    /// Says goodbye properly (RFC 5321 4.1.1.10), for a bounded time.
    pub(super) async fn quit(mut self, limit: Duration) {
        let _ = timeout(limit, async {
            if self.write(b"QUIT\r\n", Stage::Quit, limit).await.is_ok() {
                let _ = self.reply(Stage::Quit, limit).await;
            }
            let _ = self.stream.shutdown().await;
        })
        .await;
    }

    /// For our own words in a diagnosis.
    pub(super) fn place(&self) -> String {
        place(&self.host, self.address)
    }
}

/// `mx.example.org [192.0.2.1]:25`
pub(super) fn place(host: &str, address: SocketAddr) -> String {
    format!("{host} [{}]:{}", address.ip(), address.port())
}
