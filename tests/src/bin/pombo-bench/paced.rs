//! A load that sends at a given rate and keeps the time of each message: smtp-source can do neither.
//!
//! The schedule is open: a message whose turn has come is sent as soon as a connection is free, however late the ones before it
//! are, and its time counts from there. So a contender that stalls is not spared the messages that would have come meanwhile.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pombo_tests::mail::Mail;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
};

use crate::sink::NUMBER;

/// Enough that a free one is there at half of full load.
const CONNECTIONS: usize = 40;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages.
    pub count: usize,
    /// A second.
    pub rate: f64,
    /// Bytes of each.
    pub size: usize,
}

/// The times of one message.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// When its turn came.
    pub due: Instant,
    /// When the 250 to its content was there.
    pub accepted: Instant,
}

/// Sends them, numbered from 0 for the sink; the times by number.
///
/// # Errors
/// The server refused one, or broke off.
pub async fn send(server: SocketAddr, pace: Pace) -> anyhow::Result<Vec<Times>> {
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now() + Duration::from_millis(100);
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS.min(pace.count) {
        connections.spawn(session(server, pace, Arc::clone(&next), start));
    }
    let mut times = vec![None; pace.count];
    while let Some(ended) = connections.join_next().await {
        for (number, one) in ended?? {
            times[number] = Some(one);
        }
    }
    let all: Option<Vec<Times>> = times.into_iter().collect();
    all.context("a message was not sent")
}

async fn session(
    server: SocketAddr,
    pace: Pace,
    next: Arc<AtomicUsize>,
    start: Instant,
) -> anyhow::Result<Vec<(usize, Times)>> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    replies(&mut stream, b"2").await?;
    stream.write_all(b"EHLO source.example\r\n").await?;
    replies(&mut stream, b"2").await?;
    let mut sent = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= pace.count {
            break;
        }
        let due = start + Duration::from_secs_f64(number as f64 / pace.rate);
        tokio::time::sleep_until(due.into()).await;
        stream
            .write_all(b"MAIL FROM:<ann@source.example>\r\nRCPT TO:<bob@sink.example>\r\nDATA\r\n")
            .await?;
        let content = content(number, pace.size);
        replies(&mut stream, b"223").await?;
        stream.write_all(&content).await?;
        replies(&mut stream, b"2").await?;
        let accepted = Instant::now();
        sent.push((number, Times { due, accepted }));
    }
    stream.write_all(b"QUIT\r\n").await?;
    Ok(sent)
}

fn content(number: usize, size: usize) -> Vec<u8> {
    let name = String::from_utf8_lossy(NUMBER);
    let name = name.trim_end_matches([':', ' ']);
    let mail = Mail::with_id("bench").on_top(name, &number.to_string());
    let mut bytes = mail.size(size).bytes();
    bytes.extend_from_slice(b".\r\n");
    bytes
}

/// Takes a reply for each of these first digits.
async fn replies(stream: &mut BufReader<TcpStream>, wanted: &[u8]) -> anyhow::Result<()> {
    let mut line = Vec::new();
    for &digit in wanted {
        loop {
            line.clear();
            stream.read_until(b'\n', &mut line).await?;
            let text = String::from_utf8_lossy(&line);
            ensure!(line.first() == Some(&digit), "the server said {text:?}");
            if line.get(3) != Some(&b'-') {
                break;
            }
        }
    }
    Ok(())
}
