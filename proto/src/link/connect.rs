//! One connection: its address, its TLS, and a way to cut it off.
//!
//! lapin has no way to give up a connection that does not answer: while the broker blocks it, nothing is written, not even
//! the wish to close, and a broker that is stopped never answers one. Its thread and its socket would stay. So the socket is
//! held here as well (duplicated, close-on-exec), and shut down when patience ends.

use std::{
    fmt, io,
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{AsyncRead, AsyncWrite};
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    tcp::RustlsConnector,
    uri::{AMQPScheme, AMQPUri, SASLMechanism},
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    Tls,
    error::{Error, within},
};

/// Name look-up, TCP and TLS. A host that swallows packets would take the kernel two minutes.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// All of it with the login.
const OPEN_MAX: Duration = Duration::from_secs(15);
/// How long a broker may take to say good-bye.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Where a broker is. Shown without user and password.
pub(super) struct Address {
    uri: AMQPUri,
}

impl Address {
    pub(super) fn parse(address: &SecretString, heartbeat: u16) -> Result<Self, Error> {
        let text = address.expose_secret();
        // The parser's own error may quote the whole address, password included.
        let mut uri: AMQPUri = text.parse().map_err(|_| Error::Address)?;
        if let Some(literal) = ipv6_literal(text) {
            literal.clone_into(&mut uri.authority.host);
        }
        if uri.vhost.is_empty() {
            // By the letter `amqp://host/` names the virtual host "", which nobody has and nobody means.
            "/".clone_into(&mut uri.vhost);
        }
        // 0 would turn heartbeats off, and a stalled broker would never be noticed.
        uri.query.heartbeat = Some(heartbeat.max(1));
        Ok(Self { uri })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri {
            scheme,
            authority,
            vhost,
            ..
        } = &self.uri;
        write!(
            f,
            "{scheme}://{}:{} vhost {vhost}",
            authority.host, authority.port
        )
    }
}

/// The parser takes any `[...]` host for the default host.
fn ipv6_literal(address: &str) -> Option<&str> {
    let (_, rest) = address.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?;
    Some(host.strip_prefix('[')?.split_once(']')?.0)
}

/// One open connection. Dropping it cuts it off.
pub(super) struct Wire {
    pub(super) connection: Arc<Connection>,
    _socket: Cut,
}

impl Wire {
    pub(super) async fn open(address: &Address, tls: &Tls, name: String) -> Result<Self, Error> {
        let security = match address.uri.scheme {
            AMQPScheme::AMQP => None,
            AMQPScheme::AMQPS => Some(Security::load(tls).await?),
        };
        let mut uri = address.uri.clone();
        if tls.external {
            uri.query.auth_mechanism = Some(SASLMechanism::External);
        }
        let socket = Cut::default();
        let held = Held(socket.0.clone());
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime()?;
        let opening = Connection::connector(
            uri,
            runtime,
            async move |uri: AMQPUri, runtime| {
                let host = uri.authority.host;
                let connecting = async {
                    let target = runtime.to_socket_addrs((host.clone(), uri.authority.port));
                    let stream = AsyncTcpStream::connect(&runtime, target).await?;
                    if let AsyncTcpStream::Plain(tcp) = &stream {
                        held.hold(tcp.get_ref())?;
                    }
                    // The library's own way would go on in plain text if it were built without TLS; this one cannot.
                    match &security {
                        None => Ok(stream),
                        Some(security) => security.secure(stream, &host).await,
                    }
                };
                let connected = tokio::time::timeout(CONNECT_MAX, connecting).await;
                connected
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(lapin::Error::from)
            },
            properties,
        );
        let opening = async { opening.await.map_err(Error::while_opening) };
        let connection = within("connecting and logging in", OPEN_MAX, opening).await?;
        Ok(Self {
            connection: Arc::new(connection),
            _socket: socket,
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.status().connected()
    }

    /// Says good-bye, or does not when that would not be heard.
    pub(super) async fn close(self) {
        let status = self.connection.status();
        if status.connected() && !status.blocked() {
            let close = self.connection.close(200, "OK".into());
            let _ = tokio::time::timeout(CLOSE_MAX, close).await;
        }
    }
}

/// TLS, with its files read.
struct Security {
    connector: RustlsConnector,
    server_name: Option<String>,
}

impl Security {
    async fn load(tls: &Tls) -> Result<Self, Error> {
        let files = tls.clone();
        let config = tokio::task::spawn_blocking(move || files.config()).await;
        let config = config.map_err(|error| lapin::Error::from(io::Error::other(error)))??;
        Ok(Self {
            connector: RustlsConnector::from(config),
            server_name: tls.server_name.clone(),
        })
    }

    async fn secure<S>(
        &self,
        stream: AsyncTcpStream<S>,
        host: &str,
    ) -> io::Result<AsyncTcpStream<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let name = self.server_name.as_deref().unwrap_or(host);
        stream.into_rustls(&self.connector, name).await
    }
}

#[derive(Default)]
struct Socket {
    cut: bool,
    stream: Option<TcpStream>,
}

/// The owner's end: cuts when dropped.
#[derive(Default)]
struct Cut(Arc<Mutex<Socket>>);

impl Drop for Cut {
    fn drop(&mut self) {
        let mut socket = lock(&self.0);
        socket.cut = true;
        if let Some(stream) = socket.stream.take() {
            // Not connected any more: then it is cut already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The connecting end.
struct Held(Arc<Mutex<Socket>>);

impl Held {
    fn hold(&self, tcp: &impl AsFd) -> io::Result<()> {
        let duplicate = tcp.as_fd().try_clone_to_owned()?;
        let mut socket = lock(&self.0);
        if socket.cut {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.stream = Some(duplicate.into());
        Ok(())
    }
}

fn lock(socket: &Mutex<Socket>) -> MutexGuard<'_, Socket> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    fn parse(address: &str) -> Result<Address, Error> {
        Address::parse(&SecretString::from(address), 0)
    }

    #[test]
    fn an_address_is_shown_without_user_and_password() {
        let address = parse("amqp://ann:s3cret@mq.example.org:5673/mail").unwrap();
        assert_eq!(address.to_string(), "amqp://mq.example.org:5673 vhost mail");
    }

    #[test]
    fn a_bad_address_is_refused_without_being_quoted() {
        for bad in ["amqp:ann:s3cret@host", "http://ann:s3cret@host", "s3cret"] {
            let error = parse(bad).err().expect(bad).to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn defaults_are_safe() {
        let uri = parse("amqp://mq.example.org/?heartbeat=0").unwrap().uri;
        assert_eq!((uri.query.heartbeat, uri.vhost.as_str()), (Some(1), "/"));
        let uri = parse("amqps://ann:x@[2001:db8::1]:5671/%2f").unwrap().uri;
        assert_eq!(uri.authority.host, "2001:db8::1");
    }

    #[tokio::test]
    async fn an_amqps_address_never_speaks_in_plain_text() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = parse(&format!("amqps://ann:s3cret@127.0.0.1:{port}")).unwrap();
        let tls = Tls::default();
        let opening = Wire::open(&address, &tls, "test".to_owned());
        let heard = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut first = [0];
            stream.read_exact(&mut first).await.map(|_| first[0]).ok()
        };
        let (opened, first) = tokio::join!(opening, heard);
        assert!(opened.is_err());
        // 22 is a TLS handshake record. Without any root certificate on the machine nothing is sent at all.
        assert!(matches!(first, Some(22) | None), "{first:?}");
    }

    #[tokio::test]
    async fn a_connection_that_is_given_up_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = parse(&format!("amqp://127.0.0.1:{port}")).unwrap();
        let tls = Tls::default();
        let opening = Box::pin(Wire::open(&address, &tls, "test".to_owned()));
        let greeted = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut header = [0; 8];
            stream.read_exact(&mut header).await.unwrap();
            stream
        };
        // Nobody answers the header; whoever waits is dropped.
        let mut stream = tokio::select! {
            _ = opening => panic!("opened without an answer"),
            stream = greeted => stream,
        };
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
    }
}
