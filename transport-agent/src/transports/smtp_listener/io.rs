//! One connection's bytes: a fixed read buffer, lines out of it, and replies that gather until the client must be heard
//! again, so that a pipelined group costs one read and one write.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use memchr::memchr;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};

/// Bytes that are read at a time: three messages of 10 KiB with their commands.
pub(super) const READ_BYTES: usize = 32 * 1024;
/// Replies are written at the latest when there are so many bytes of them.
const WRITE_BYTES: usize = 16 * 1024;
/// How long and how far a client may go on talking after our last word, so that it can read it before the reset.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 1024 * 1024);

/// What is at the front of the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line; its bytes without CRLF were copied out.
    Complete,
    /// A line that ends in LF alone, or has one inside. Dropped.
    BareLf,
    /// A line that is too long. Dropped, once its end has come.
    TooLong,
    /// Not yet a line.
    Incomplete,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Io<S> {
    stream: S,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Where to go on looking for the end of the line; at least `start`.
    scanned: usize,
    /// Whether the rest of a line that was too long is being dropped.
    dropping: bool,
    out: Vec<u8>,
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            scanned: 0,
            dropping: false,
            out: Vec::with_capacity(512),
            ended: false,
        }
    }

    /// The stream itself; what was read and not used is dropped, as STARTTLS demands (CVE-2011-0411).
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// What was read and not used yet.
    pub fn input(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// So many bytes of the input are used.
    pub fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        self.scanned = self.scanned.max(self.start);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.scanned = 0;
        }
    }

    /// Takes a line of at most `max` bytes into `line`.
    pub fn next_line(&mut self, max: usize, line: &mut Vec<u8>) -> Line {
        let Some(found) = memchr(b'\n', &self.buffer[self.scanned..self.end]) else {
            self.scanned = self.end;
            if self.dropping || self.end - self.start > max {
                self.dropping = true;
                self.consume(self.end - self.start);
            }
            return Line::Incomplete;
        };
        let newline = self.scanned + found;
        let text = &self.buffer[self.start..newline];
        let dropped = std::mem::take(&mut self.dropping);
        let result = if dropped || text.len() > max + 1 {
            Line::TooLong
        } else if let Some(text) = text.strip_suffix(b"\r") {
            line.clear();
            line.extend_from_slice(text);
            Line::Complete
        } else {
            Line::BareLf
        };
        self.consume(newline + 1 - self.start);
        result
    }

    /// Adds a reply, without its line end, to what will be written.
    pub fn say(&mut self, reply: &str) {
        self.out.extend_from_slice(reply.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    /// Whether so much has gathered that it should be written before more is done.
    pub fn is_full(&self) -> bool {
        self.out.len() >= WRITE_BYTES
    }

    /// Whether there is anything to write.
    pub fn has_replies(&self) -> bool {
        !self.out.is_empty()
    }

    /// Writes all replies. A client that does not read them has `patience`.
    pub async fn flush(&mut self, patience: Duration) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let write = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        timeout(patience, write).await??;
        self.out.clear();
        Ok(())
    }

    /// Reads once. 0: the client has closed its side.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|context| self.poll_fill(context)).await
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.scanned -= self.start;
            self.start = 0;
        }
        let mut free = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut free))?;
        let read = free.filled().len();
        self.end += read;
        self.ended = read == 0;
        Poll::Ready(Ok(read))
    }

    /// Resolves when the client is gone. What it says meanwhile is kept for later; when the buffer is full, nothing more
    /// can be learned and it never resolves.
    pub async fn loss(&mut self) {
        loop {
            if self.end - self.start == self.buffer.len() {
                std::future::pending::<()>().await;
            }
            match self.fill().await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Writes what is left, closes our side, and with `linger` reads on for a moment, because a socket closed over unread input
    /// resets the connection and may take our last reply with it.
    pub async fn close(mut self, patience: Duration, linger: bool) {
        let closing = async {
            self.flush(patience).await?;
            self.stream.shutdown().await?;
            let mut left = if linger && !self.ended { LINGER.1 } else { 0 };
            while left > 0 {
                match self.stream.read(&mut self.buffer).await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            io::Result::Ok(())
        };
        // The connection ends either way.
        let _ = timeout(patience.min(LINGER.0), closing).await;
    }
}
