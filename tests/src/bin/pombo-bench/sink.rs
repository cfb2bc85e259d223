//! The far end: an SMTP server that counts what arrives, and when, and does nothing else.
//!
//! It takes everything, as smtp-sink does; unlike that, it can be asked. That it is not what a run waits for is shown by the
//! case `direct`: the load straight into it, beside smtp-sink under the same load.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use memchr::{memchr, memmem};
use pombo_tests::ports;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The header field in which the latency load writes a message's number.
pub const NUMBER: &[u8] = b"X-Bench-Number: ";
/// It is looked for in so many first bytes of a message.
const HEAD: usize = 4096;
const END: &[u8] = b"\r\n.\r\n";
const BUFFER: usize = 64 << 10;

/// A sink that runs as long as the process.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    recipients: AtomicU64,
    /// So many recipients in all end the run; that moment is kept.
    wanted: AtomicU64,
    reached: Mutex<Option<Instant>>,
    /// The first arrival since then.
    first: Mutex<Option<Instant>>,
    /// When the message of each number came, if it is asked for.
    stamps: Mutex<Option<Vec<Option<Instant>>>>,
}

impl Sink {
    /// Starts to listen on a free port.
    ///
    /// # Errors
    /// It cannot.
    pub fn start() -> anyhow::Result<Self> {
        let seen = Arc::new(Seen::default());
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, ports::free_port()).into();
        let listener = std::net::TcpListener::bind(address).context("the sink's port")?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let counts = Arc::clone(&seen);
        std::thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let listener = match TcpListener::from_std(listener) {
                        Ok(listener) => listener,
                        Err(error) => return eprintln!("the sink does not listen: {error}"),
                    };
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => {
                                tokio::spawn(serve(stream, Arc::clone(&counts)));
                            }
                            // The connection is gone, or there are too many: the next one may do.
                            Err(error) => eprintln!("the sink: {error}"),
                        }
                    }
                });
            })?;
        Ok(Self { address, seen })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Recipients of all messages so far.
    pub fn recipients(&self) -> u64 {
        self.seen.recipients.load(Ordering::Acquire)
    }

    /// From now on: so many more recipients (whose messages may come together or apart) end the run.
    pub fn expect(&self, recipients: u64) {
        *lock(&self.seen.reached) = None;
        *lock(&self.seen.first) = None;
        let wanted = self.recipients() + recipients;
        self.seen.wanted.store(wanted, Ordering::Release);
    }

    /// The first arrival since [`Self::expect`].
    pub fn first(&self) -> Option<Instant> {
        *lock(&self.seen.first)
    }

    /// From now on arrivals are kept by their numbers, 0 to `count`.
    pub fn stamp(&self, count: usize) {
        *lock(&self.seen.stamps) = Some(vec![None; count]);
    }

    /// What was kept.
    pub fn stamps(&self) -> Vec<Option<Instant>> {
        lock(&self.seen.stamps).take().unwrap_or_default()
    }

    /// Waits for what was expected; when the last one came. An error if nothing comes for `patience`.
    ///
    /// # Errors
    /// With how many came.
    pub async fn reached(&self, patience: Duration) -> anyhow::Result<Instant> {
        let (mut last, mut moved) = (self.recipients(), Instant::now());
        loop {
            if let Some(at) = *lock(&self.seen.reached) {
                return Ok(at);
            }
            let now = self.recipients();
            if now != last {
                (last, moved) = (now, Instant::now());
            }
            if moved.elapsed() > patience {
                let wanted = self.seen.wanted.load(Ordering::Acquire);
                bail!(
                    "nothing has arrived for {patience:?}: {} are missing",
                    wanted - now
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Seen {
    fn arrived(&self, recipients: u64, number: Option<usize>) {
        lock(&self.first).get_or_insert_with(Instant::now);
        let before = self.recipients.fetch_add(recipients, Ordering::AcqRel);
        let wanted = self.wanted.load(Ordering::Acquire);
        if (before + 1..=before + recipients).contains(&wanted) {
            *lock(&self.reached) = Some(Instant::now());
        }
        if let Some(number) = number
            && let Some(stamps) = lock(&self.stamps).as_mut()
            && let Some(stamp) = stamps.get_mut(number)
        {
            stamp.get_or_insert_with(Instant::now);
        }
    }
}

/// One connection. A client that breaks off ends it; what was under way does not count.
async fn serve(mut stream: TcpStream, seen: Arc<Seen>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"220 sink.example ESMTP\r\n").await?;
    let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER);
    let mut session = Session::default();
    let mut replies = Vec::new();
    while stream.read_buf(&mut buffer).await? > 0 {
        let open = session.take(&mut buffer, &mut replies, &seen);
        if !replies.is_empty() {
            stream.write_all(&replies).await?;
            replies.clear();
        }
        if !open {
            break;
        }
        buffer.reserve(BUFFER / 2);
    }
    Ok(())
}

#[derive(Default)]
struct Session {
    recipients: u64,
    /// Between DATA and the final dot.
    data: Option<Content>,
}

#[derive(Default)]
struct Content {
    /// Its head has been looked at.
    begun: bool,
    number: Option<usize>,
}

impl Session {
    /// Takes what is complete out of the buffer. False after QUIT.
    fn take(&mut self, buffer: &mut Vec<u8>, replies: &mut Vec<u8>, seen: &Seen) -> bool {
        let mut at = 0;
        loop {
            if let Some(content) = &mut self.data {
                let piece = &buffer[at..];
                let end = memmem::find(piece, END);
                if !content.begun && (end.is_some() || piece.len() >= HEAD) {
                    content.look(&piece[..piece.len().min(HEAD)]);
                }
                let Some(end) = end else {
                    // The end may be cut: what could begin it stays. So does the head, until it is whole.
                    let kept = if content.begun { END.len() - 1 } else { HEAD };
                    buffer.drain(..at.max(buffer.len().saturating_sub(kept)));
                    return true;
                };
                at += end + END.len();
                seen.arrived(self.recipients, content.number);
                self.data = None;
                replies.extend_from_slice(b"250 2.0.0 Ok\r\n");
                continue;
            }
            let Some(end) = memchr(b'\n', &buffer[at..]) else {
                buffer.drain(..at);
                return true;
            };
            let line = &buffer[at..at + end];
            at += end + 1;
            let verb = line.get(..4).unwrap_or(line).to_ascii_uppercase();
            match verb.as_slice() {
                b"EHLO" | b"LHLO" => replies
                    .extend_from_slice(b"250-sink.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"),
                b"RCPT" => {
                    self.recipients += 1;
                    replies.extend_from_slice(b"250 2.1.5 Ok\r\n");
                }
                b"DATA" => {
                    replies.extend_from_slice(b"354 End data with <CR><LF>.<CR><LF>\r\n");
                    self.data = Some(Content::default());
                    // So that a message that is only a dot ends, too.
                    at -= 2;
                    if !buffer[at..].starts_with(b"\r\n") {
                        return false;
                    }
                }
                b"QUIT" => {
                    replies.extend_from_slice(b"221 2.0.0 Bye\r\n");
                    return false;
                }
                b"MAIL" | b"RSET" => {
                    self.recipients = 0;
                    replies.extend_from_slice(b"250 2.1.0 Ok\r\n");
                }
                _ => replies.extend_from_slice(b"250 2.0.0 Ok\r\n"),
            }
        }
    }
}

impl Content {
    fn look(&mut self, head: &[u8]) {
        self.begun = true;
        self.number = memmem::find(head, NUMBER).and_then(|at| {
            let rest = &head[at + NUMBER.len()..];
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
            digits.copied().fold(None, |number: Option<usize>, digit| {
                number
                    .unwrap_or(0)
                    .checked_mul(10)?
                    .checked_add(usize::from(digit - b'0'))
            })
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A conversation cut into pieces of every size.
    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let text = b"EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nDATA\r\nX-Bench-Number: 7\r\n\r\n..\r\n.\r\n\
            MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n.\r\nQUIT\r\n";
        for size in 1..text.len() {
            let seen = Seen::default();
            *lock(&seen.stamps) = Some(vec![None; 8]);
            let (mut session, mut buffer, mut replies) =
                (Session::default(), Vec::new(), Vec::new());
            let mut open = true;
            for piece in text.chunks(size) {
                assert!(open, "{size}");
                buffer.extend_from_slice(piece);
                open = session.take(&mut buffer, &mut replies, &seen);
            }
            assert!(!open, "{size}");
            assert!(lock(&seen.stamps).as_ref().unwrap()[7].is_some(), "{size}");
            assert_eq!(seen.recipients.into_inner(), 3, "{size}");
            let codes = String::from_utf8(replies).unwrap();
            assert_eq!(codes.matches("\r\n").count(), 13, "{size}: {codes}");
        }
    }
}
