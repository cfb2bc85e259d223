//! A TCP proxy that stands for a network: it can cut, swallow, delay and throttle what goes through it.
//!
//! ```no_run
//! # async fn test(broker: std::net::SocketAddr) -> anyhow::Result<()> {
//! use pombo_tests::proxy::{Proxy, Weather};
//!
//! let network = Proxy::start(broker).await?;
//! // ... a process that talks to `network.address()` ...
//! network.set(Weather::BlackHole); // a partition: connections stay, nothing arrives, new ones hang
//! network.set(Weather::Fine);      // what was held back arrives now, as TCP would have it
//! network.cut();                   // every connection is lost
//! # Ok(()) }
//! ```
//!
//! Bytes are never lost or reordered inside a connection, because TCP does not do that either: loss shows as stalls.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{Broker, ports};

/// Read at a time; also the grain of throttling.
const CHUNK: usize = 16 << 10;
/// What a narrow network takes ahead of time.
const QUEUED_MAX: Duration = Duration::from_millis(500);
/// Chunks on their way in one direction of one connection: what a network holds before it pushes back.
const ON_THE_WAY: usize = 256;

/// What the network is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weather {
    /// Everything passes at once.
    Fine,
    /// New connections are closed at once. Those that exist go on: see [`Proxy::cut`].
    Refusing,
    /// Nothing passes in either direction; new connections hang.
    BlackHole,
    /// What the server says does not arrive; what the client says does. A half-open connection.
    Deaf,
    /// Each way takes so long, and one chunk in a hundred takes `stall` more, as after a lost segment.
    Slow {
        /// One way.
        latency: Duration,
        /// A retransmission.
        stall: Duration,
    },
    /// So many bytes a second, each way of each connection.
    Narrow {
        /// Bytes per second.
        rate: u32,
    },
}

/// The proxy. It ends when dropped, and all its connections with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    cuts: watch::Sender<u64>,
    listening: Mutex<AbortHandle>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, and connects each client with `target`.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let address = ports::free_address();
        let listener = TcpListener::bind(address).await?;
        let (weather, cuts) = (watch::Sender::new(Weather::Fine), watch::Sender::new(0));
        let task = tokio::spawn(accept(
            listener,
            target,
            weather.subscribe(),
            cuts.subscribe(),
        ));
        Ok(Self {
            address,
            weather,
            cuts,
            listening: Mutex::new(task.abort_handle()),
        })
    }

    /// Before a broker; and the URL by which that is reached through it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn before(broker: &Broker) -> anyhow::Result<(Self, String)> {
        let address = SocketAddr::from(([127, 0, 0, 1], broker.port()));
        let proxy = Self::start(address).await?;
        let (direct, through) = (address.to_string(), proxy.address().to_string());
        let url = broker.url();
        anyhow::ensure!(url.contains(&direct), "{url} is not at {direct}");
        Ok((proxy, url.replace(&direct, &through)))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, the network is like this.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Ends every connection that exists.
    pub fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let listening = self.listening.lock();
        listening.unwrap_or_else(PoisonError::into_inner).abort();
    }
}

/// The connections live in this task's set.
async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    cuts: watch::Receiver<u64>,
) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((client, _)) if *weather.borrow() != Weather::Refusing => {
                connections.spawn(connection(client, target, weather.clone(), cuts.clone()));
            }
            Ok(_) => {}
            // Out of file descriptors: ends of connections give some back.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(
    client: TcpStream,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    mut cuts: watch::Receiver<u64>,
) {
    cuts.mark_unchanged();
    let both = async {
        let mut sky = weather.clone();
        // A client that connects into a black hole hears nothing, not even that the server is there.
        if sky
            .wait_for(|now| *now != Weather::BlackHole)
            .await
            .is_err()
        {
            return;
        }
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // Either end's loss is the other's: nobody here uses half-closed connections.
        tokio::select! {
            () = way(from_client, to_server, weather.clone(), Way::Up) => {}
            () = way(from_server, to_client, weather.clone(), Way::Down) => {}
        }
    };
    tokio::select! {
        // Before fair weather that comes right after it: what was held back is lost.
        biased;
        _ = cuts.changed() => {}
        () = both => {}
    }
}

#[derive(Clone, Copy)]
enum Way {
    /// From the client to the server.
    Up,
    Down,
}

impl Way {
    fn is_open(self, weather: Weather) -> bool {
        match weather {
            Weather::BlackHole => false,
            Weather::Deaf => matches!(self, Self::Up),
            _ => true,
        }
    }
}

/// Carries one direction until either end is gone.
async fn way(from: OwnedReadHalf, to: OwnedWriteHalf, weather: watch::Receiver<Weather>, way: Way) {
    let (put, taken) = mpsc::channel(ON_THE_WAY);
    // The reader's end must not throw away what is still on its way: the writer ends when it has all.
    tokio::join!(
        read(from, put, weather.clone()),
        deliver(to, taken, weather, way)
    );
}

async fn read(
    mut from: OwnedReadHalf,
    put: mpsc::Sender<(Instant, Vec<u8>)>,
    weather: watch::Receiver<Weather>,
) {
    let (mut before, mut narrow) = (Instant::now(), Instant::now());
    loop {
        let mut chunk = vec![0; CHUNK];
        let read = tokio::select! {
            read = from.read(&mut chunk) => read,
            // Nobody takes it any more.
            () = put.closed() => return,
        };
        match read {
            Ok(read @ 1..) => chunk.truncate(read),
            _ => return,
        }
        let now = Instant::now();
        let today = *weather.borrow();
        let due = match today {
            // Latency delays, it does not narrow: the next chunk may be right behind this one.
            Weather::Slow { latency, stall } => {
                let lost = fastrand::u8(0..100) == 0;
                now + latency + if lost { stall } else { Duration::ZERO }
            }
            Weather::Narrow { rate } => {
                let time = Duration::from_secs_f64(chunk.len() as f64 / f64::from(rate.max(1)));
                narrow = narrow.max(now) + time;
                // What does not fit stays with the sender.
                sleep_until(narrow.checked_sub(QUEUED_MAX).unwrap_or(now)).await;
                narrow
            }
            _ => now,
        };
        // Never before an earlier chunk: the order stands.
        before = before.max(due);
        if put.send((before, chunk)).await.is_err() {
            return;
        }
    }
}

async fn deliver(
    mut to: OwnedWriteHalf,
    mut taken: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut weather: watch::Receiver<Weather>,
    way: Way,
) {
    while let Some((due, chunk)) = taken.recv().await {
        sleep_until(due).await;
        if weather.wait_for(|now| way.is_open(*now)).await.is_err() {
            return;
        }
        if to.write_all(&chunk).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn pair() -> (Proxy, TcpListener) {
        let listener = TcpListener::bind(ports::free_address()).await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        (proxy, listener)
    }

    async fn read(stream: &mut TcpStream) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        let read = tokio::time::timeout(LIMIT, stream.read(&mut bytes)).await;
        bytes.truncate(read.unwrap().unwrap_or(0));
        bytes
    }

    #[tokio::test]
    async fn what_a_black_hole_holds_back_arrives_when_it_is_gone() {
        let (proxy, listener) = pair().await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"before").await.unwrap();
        assert_eq!(read(&mut server).await, b"before");

        proxy.set(Weather::BlackHole);
        client.write_all(b"after").await.unwrap();
        let mut hanging = TcpStream::connect(proxy.address()).await.unwrap();
        hanging.write_all(b"new").await.unwrap();
        let nothing = tokio::time::timeout(Duration::from_millis(200), server.readable()).await;
        assert!(nothing.is_err(), "something came through a black hole");

        proxy.set(Weather::Fine);
        assert_eq!(read(&mut server).await, b"after");
        let (mut second, _) = listener.accept().await.unwrap();
        assert_eq!(read(&mut second).await, b"new");
    }

    #[tokio::test]
    async fn a_deaf_client_is_still_heard() {
        let (proxy, listener) = pair().await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        proxy.set(Weather::Deaf);
        server.write_all(b"down").await.unwrap();
        client.write_all(b"up").await.unwrap();
        assert_eq!(read(&mut server).await, b"up");
        let nothing = tokio::time::timeout(Duration::from_millis(200), client.readable()).await;
        assert!(nothing.is_err(), "a deaf client heard something");
        proxy.set(Weather::Fine);
        assert_eq!(read(&mut client).await, b"down");
    }

    #[tokio::test]
    async fn a_cut_ends_both_sides_and_a_refusing_network_lets_nobody_in() {
        let (proxy, listener) = pair().await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut server).await, b"x");
        proxy.set(Weather::Refusing);
        proxy.cut();
        assert_eq!(read(&mut client).await, b"");
        assert_eq!(read(&mut server).await, b"");
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(read(&mut refused).await, b"");
        proxy.set(Weather::Fine);
        let mut again = TcpStream::connect(proxy.address()).await.unwrap();
        again.write_all(b"y").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        assert_eq!(read(&mut server).await, b"y");
    }

    #[tokio::test]
    async fn latency_delays_and_keeps_the_order() {
        let (proxy, listener) = pair().await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let latency = Duration::from_millis(150);
        proxy.set(Weather::Slow {
            latency,
            stall: Duration::ZERO,
        });
        let start = Instant::now();
        client.write_all(b"1").await.unwrap();
        assert_eq!(read(&mut server).await, b"1");
        assert!(start.elapsed() >= latency, "{:?}", start.elapsed());
        for n in 0..20_u8 {
            client.write_all(&[n]).await.unwrap();
        }
        let mut all = Vec::new();
        while all.len() < 20 {
            all.extend(read(&mut server).await);
        }
        assert_eq!(all, (0..20).collect::<Vec<u8>>());
    }
}
