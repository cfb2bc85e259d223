//! From `354` to the final dot: the exact bytes, and nothing but `CRLF . CRLF` as the end.

use std::io;

use crate::wire::Wire;

/// A line longer than this is no mail.
const LINE_MAX: usize = 64 << 20;

/// How a message's transfer ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// With its final dot.
    Complete(Vec<u8>),
    /// Complete, but larger than allowed; the content is gone.
    TooLarge(usize),
    /// The connection ended first, after so many bytes.
    CutOff(usize),
}

/// Takes the dots away while lines come in.
#[derive(Debug)]
pub(super) struct Unstuffing {
    data: Vec<u8>,
    size_max: usize,
    /// What came, kept or not.
    size: usize,
    /// Only after CRLF (or at the start) does a dot mean anything.
    after_crlf: bool,
}

impl Unstuffing {
    pub(super) fn new(size_max: usize) -> Self {
        Self {
            data: Vec::new(),
            size_max,
            size: 0,
            after_crlf: true,
        }
    }

    /// Reads one line. `Some` ends the transfer.
    pub(super) async fn read_line(
        &mut self,
        wire: &mut Wire,
        line: &mut Vec<u8>,
    ) -> io::Result<Option<Transfer>> {
        line.clear();
        let read = match wire.read_line(line, LINE_MAX).await {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(e),
            // Reset, or TLS without its goodbye: cut off.
            Err(_) => 0,
        };
        Ok(if read == 0 || line.last() != Some(&b'\n') {
            Some(Transfer::CutOff(self.size + read))
        } else {
            self.take(line)
        })
    }

    fn take(&mut self, line: &[u8]) -> Option<Transfer> {
        if self.after_crlf && line == b".\r\n" {
            return Some(if self.size > self.size_max {
                Transfer::TooLarge(self.size)
            } else {
                Transfer::Complete(std::mem::take(&mut self.data))
            });
        }
        let content = if self.after_crlf && line.first() == Some(&b'.') {
            &line[1..]
        } else {
            line
        };
        self.size += content.len();
        if self.size <= self.size_max {
            self.data.extend_from_slice(content);
        } else {
            self.data = Vec::new();
        }
        self.after_crlf = line.ends_with(b"\r\n");
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn transfer(sent: &[u8]) -> Transfer {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        tokio::io::AsyncWriteExt::write_all(&mut theirs, sent)
            .await
            .unwrap();
        drop(theirs);
        let (mut wire, mut line, mut unstuffing) =
            (Wire::new(ours), Vec::new(), Unstuffing::new(100));
        loop {
            if let Some(end) = unstuffing.read_line(&mut wire, &mut line).await.unwrap() {
                return end;
            }
        }
    }

    #[tokio::test]
    async fn dots_are_unstuffed_and_nothing_else_is_changed() {
        assert_eq!(
            transfer(b"a\r\n..b\r\n...\r\nc\nd\0\r\n.\r\n").await,
            Transfer::Complete(b"a\r\n.b\r\n..\r\nc\nd\0\r\n".to_vec())
        );
        assert_eq!(transfer(b".\r\n").await, Transfer::Complete(Vec::new()));
    }

    #[tokio::test]
    async fn only_crlf_dot_crlf_ends_a_message() {
        let variants: [&[u8]; 5] = [
            b"a\n.\r\nb\r\n",
            b"a\n.\nb\r\n",
            b"a\r\n.\nb\r\n",
            b"a\r.\r\nb\r\n",
            b"a\r\n.\rb\r\n",
        ];
        for variant in variants {
            assert!(
                matches!(transfer(variant).await, Transfer::CutOff(_)),
                "{:?}",
                String::from_utf8_lossy(variant)
            );
        }
    }

    #[tokio::test]
    async fn too_large_a_message_is_read_to_its_end() {
        assert_eq!(
            transfer(&[b"x".repeat(200), b"\r\n.\r\n".to_vec()].concat()).await,
            Transfer::TooLarge(202)
        );
    }
}
