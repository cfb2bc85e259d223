//! Lines over a connection that may become TLS: what the sink and the client have in common.

use std::io;

use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::TcpStream,
};

/// Plain or TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

/// Few system calls for large messages.
const READ_BUFFER: usize = 64 << 10;

/// A buffered connection: what is `put` goes out with the next `flush`.
pub(crate) struct Wire {
    io: BufReader<Box<dyn Io>>,
    out: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(io: impl Io + 'static) -> Self {
        Self {
            io: BufReader::with_capacity(READ_BUFFER, Box::new(io)),
            out: Vec::new(),
        }
    }

    pub(crate) fn tcp(stream: TcpStream) -> Self {
        // Half a conversation is waiting for the other half: Nagle's algorithm would add 40 ms to each.
        let _ = stream.set_nodelay(true);
        Self::new(stream)
    }

    /// Appends the next line with its line feed to `line` and gives its length; 0 at the end of the connection. What comes
    /// before an end without a line feed is appended too, so look at the last byte.
    pub(crate) async fn read_line(&mut self, line: &mut Vec<u8>, max: usize) -> io::Result<usize> {
        let read = (&mut self.io)
            .take(max as u64)
            .read_until(b'\n', line)
            .await?;
        if read == max && line.last() != Some(&b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line of more than {max} bytes"),
            ));
        }
        Ok(read)
    }

    /// Whether the peer has sent more than was read.
    pub(crate) fn has_more(&self) -> bool {
        !self.io.buffer().is_empty()
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            let out = std::mem::take(&mut self.out);
            self.io.get_mut().write_all(&out).await?;
        }
        self.io.get_mut().flush().await
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.io.get_mut().shutdown().await
    }

    /// The connection itself, to put TLS around it. What was read ahead is lost, as it must be.
    pub(crate) fn into_inner(self) -> Box<dyn Io> {
        self.io.into_inner()
    }
}
