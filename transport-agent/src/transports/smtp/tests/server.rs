//! A server that plays transcripts: one script per connection, in the order of connections.
//!
//! ```text
//! S: 220 mx           says this
//! C: QUIT             must be told this (C: * is anything)
//! B                   takes the content up to the final dot, and keeps it
//! P                   takes whatever comes until the client hangs up, and keeps it: no final dot may be in it
//! E                   the client must hang up, without another word
//! T                   negotiates TLS
//! N                   tells the test that it has come this far
//! W                   waits for the test
//! X                   hangs up
//! ```

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// No step of a test takes this long.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// What `N` tells.
    pub(super) reached: Arc<Notify>,
    /// What `W` waits for.
    pub(super) go: Arc<Notify>,
    contents: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Plays these scripts.
    pub(super) async fn play<S: AsRef<str>>(scripts: impl IntoIterator<Item = S>) -> Self {
        Self::play_with(scripts, None).await
    }

    pub(super) async fn play_with<S: AsRef<str>>(
        scripts: impl IntoIterator<Item = S>,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scripts: Vec<String> = scripts.into_iter().map(|s| s.as_ref().to_owned()).collect();
        let contents = Arc::new(Mutex::new(Vec::new()));
        let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let shared = (Arc::clone(&reached), Arc::clone(&go), Arc::clone(&contents));
        let task = tokio::spawn(async move {
            let mut players = Vec::new();
            for script in scripts {
                let (tcp, _) = listener.accept().await.unwrap();
                let (reached, go, contents) = shared.clone();
                let tls = tls.clone();
                players.push(tokio::spawn(async move {
                    let wire: Box<dyn Wire> = Box::new(tcp);
                    let stage = Stage {
                        wire: BufReader::new(wire),
                        reached,
                        go,
                        contents,
                        tls,
                    };
                    stage.act(&script).await;
                }));
            }
            for player in players {
                player.await.unwrap();
            }
        });
        Self {
            address,
            reached,
            go,
            contents,
            task,
        }
    }

    /// All scripts were played to their end; the contents received, in order.
    pub(super) async fn finish(self) -> Vec<Vec<u8>> {
        timeout(LIMIT, self.task)
            .await
            .expect("a script was not played")
            .expect("a script went wrong");
        std::mem::take(&mut *self.contents.lock().unwrap())
    }
}

struct Stage {
    wire: BufReader<Box<dyn Wire>>,
    reached: Arc<Notify>,
    go: Arc<Notify>,
    contents: Arc<Mutex<Vec<Vec<u8>>>>,
    tls: Option<TlsAcceptor>,
}

impl Stage {
    async fn act(mut self, script: &str) {
        let lines: Vec<&str> = script
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let mut said = Vec::new();
        for (number, line) in lines.iter().enumerate() {
            if let Some(words) = line.strip_prefix("S: ") {
                said.extend_from_slice(words.as_bytes());
                said.extend_from_slice(b"\r\n");
                if lines
                    .get(number + 1)
                    .is_some_and(|next| next.starts_with("S: "))
                {
                    continue;
                }
                // A client that has hung up is noticed by the next line.
                let _ = self.wire.write_all(&said).await;
                let _ = self.wire.flush().await;
                said.clear();
                continue;
            }
            match (line.strip_prefix("C: "), *line) {
                (Some(expected), _) => {
                    let told = self.line().await;
                    assert!(
                        expected == "*" || told == expected,
                        "line {number}: told {told:?}, expected {expected:?}"
                    );
                }
                (_, "B") => self.content().await,
                (_, "P") => {
                    let rest = self.rest().await;
                    assert!(!rest.windows(5).any(|w| w == b"\r\n.\r\n"), "a final dot");
                    self.contents.lock().unwrap().push(rest);
                }
                (_, "E") => assert_eq!(
                    String::from_utf8_lossy(&self.rest().await),
                    "",
                    "line {number}"
                ),
                (_, "T") => {
                    let acceptor = self.tls.clone().expect("a server with TLS");
                    assert!(self.wire.buffer().is_empty());
                    match acceptor.accept(self.wire.into_inner()).await {
                        Ok(tls) => self.wire = BufReader::new(Box::new(tls)),
                        // The client did not like the certificate.
                        Err(_) => {
                            return assert_eq!(lines.get(number + 1), Some(&"E"), "TLS failed");
                        }
                    }
                }
                (_, "N") => self.reached.notify_one(),
                (_, "W") => self.go.notified().await,
                (_, "X") => return,
                (_, other) => panic!("no such direction: {other}"),
            }
        }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(LIMIT, self.wire.read_line(&mut line))
            .await
            .expect("the client is silent")
            .unwrap();
        line.trim_end_matches(['\r', '\n']).to_owned()
    }

    async fn content(&mut self) {
        let mut content = Vec::new();
        loop {
            let start = content.len();
            let read = self.wire.read_until(b'\n', &mut content);
            let read = timeout(LIMIT, read)
                .await
                .expect("the client is silent")
                .unwrap();
            assert!(read > 0, "the client hung up in the content");
            if &content[start..] == b".\r\n" && (start == 0 || content[..start].ends_with(b"\r\n"))
            {
                break;
            }
        }
        self.contents.lock().unwrap().push(content);
    }

    async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // An abrupt end is an end.
        let _ = timeout(LIMIT, self.wire.read_to_end(&mut rest))
            .await
            .expect("the client does not hang up");
        rest
    }
}
