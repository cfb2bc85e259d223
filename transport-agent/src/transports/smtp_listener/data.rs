//! The content of a message as it comes after 354: finds its end, removes the stuffed dots, keeps within the limits.
//!
//! No IO and no clock. It is fed whatever arrived, in pieces of any size, and gives the same result as if all had come at
//! once (of several reasons to refuse it, any may be the first). **Only CRLF.CRLF ends a message** (RFC 5321 4.1.1.4); everything else that looks like an end to somebody else
//! (`\n.\n`, `\n.\r\n`, `\r\n.\n`, `\r.\r`, ...) is content, and content with a bare LF or CR is refused unless
//! the configuration says to keep it. So whoever sits in front of us cannot be made to smuggle a second message in.

use memchr::{memchr, memchr2};

/// What the reader holds to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Content of more bytes is refused.
    pub message_bytes: u64,
    /// A line of more bytes (without CRLF) is refused.
    pub line_bytes: Option<usize>,
    /// Refuse a LF without CR before it.
    pub refuse_bare_lf: bool,
    /// Refuse a CR without LF behind it.
    pub refuse_bare_cr: bool,
}

/// Why a message will not be taken although it is read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// More than [`Limits::message_bytes`].
    TooLarge,
    /// More than [`Limits::line_bytes`].
    LineTooLong,
    /// A LF without CR before it.
    BareLf,
    /// A CR without LF behind it.
    BareCr,
    /// All sessions together hold as much as they may.
    NoMemory,
    /// The spooler stopped this delivery.
    Cancelled,
}

/// Where in a line the reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// After CRLF, or at the very beginning: the CRLF of DATA counts.
    LineStart,
    /// After a dot at the start of a line, which is not kept whatever follows.
    Dot,
    /// After dot and CR, which is kept only if no LF follows.
    DotCr,
    InLine,
    /// After a CR in a line, which is kept already.
    Cr,
}

/// What [`DataReader::feed`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fed {
    /// Bytes taken; all of them unless the message ended.
    pub taken: usize,
    /// CRLF.CRLF was seen; what was not taken are commands.
    pub ended: bool,
}

/// Reads one message's content.
#[derive(Debug)]
pub(super) struct DataReader {
    limits: Limits,
    state: State,
    /// Bytes of `body` before the content: the trace field.
    head: usize,
    body: Vec<u8>,
    /// Bytes of content so far, kept or not.
    size: u64,
    /// Bytes of the current line so far.
    line: usize,
    eight_bit: bool,
    fault: Option<Fault>,
}

/// A message that was read to its end.
#[derive(Debug)]
pub(super) struct Content {
    /// What the reader was given to begin with, then the content.
    pub body: Vec<u8>,
    /// Whether a byte above 127 was among it.
    pub eight_bit: bool,
}

impl DataReader {
    /// A reader that appends content to `head`.
    pub fn new(head: Vec<u8>, limits: Limits) -> Self {
        Self {
            limits,
            state: State::LineStart,
            head: head.len(),
            body: head,
            size: 0,
            line: 0,
            eight_bit: false,
            fault: None,
        }
    }

    /// Bytes of content so far, whether kept or not.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Why it will be refused, if that is known already.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Bytes that the body occupies.
    pub fn capacity(&self) -> usize {
        self.body.capacity()
    }

    /// How large the body's memory should be before `more` bytes are fed; `None` if it is large enough. Doubles, so
    /// that a large message is copied few times.
    pub fn wants(&self, more: usize) -> Option<usize> {
        let needed = self.body.len() + more;
        let capacity = self.body.capacity();
        let allowed = usize::try_from(self.limits.message_bytes).unwrap_or(usize::MAX);
        let most = self.head.saturating_add(allowed);
        (self.fault.is_none() && needed > capacity)
            .then(|| needed.max(capacity.saturating_mul(2).min(most)))
    }

    /// Makes room, as asked by [`Self::wants`].
    pub fn reserve(&mut self, capacity: usize) {
        self.body
            .reserve_exact(capacity.saturating_sub(self.body.len()));
    }

    /// Gives the message up: it is read on to its end, but nothing is kept. The first reason stays.
    pub fn refuse(&mut self, fault: Fault) {
        if self.fault.is_none() {
            self.fault = Some(fault);
            self.body = Vec::new();
        }
    }

    /// Takes what arrived. Not to be called again after it ended.
    pub fn feed(&mut self, input: &[u8]) -> Fed {
        let mut at = 0;
        // From here to `at` is content that is not kept yet: runs over many lines are copied in one go.
        let mut run = 0;
        while let Some(&byte) = input.get(at) {
            match self.state {
                State::LineStart if byte == b'.' => {
                    self.keep(&input[run..at]);
                    at += 1;
                    run = at;
                    self.state = State::Dot;
                }
                State::LineStart => self.state = State::InLine,
                State::Dot if byte == b'\r' => {
                    at += 1;
                    run = at;
                    self.state = State::DotCr;
                }
                State::Dot => self.state = State::InLine,
                State::DotCr if byte == b'\n' => {
                    return Fed {
                        taken: at + 1,
                        ended: true,
                    };
                }
                State::DotCr => {
                    self.bare_cr();
                    self.keep(b"\r");
                    self.state = State::InLine;
                }
                State::Cr if byte == b'\n' => {
                    at += 1;
                    self.line = 0;
                    self.state = State::LineStart;
                }
                State::Cr => {
                    self.bare_cr();
                    self.state = State::InLine;
                }
                State::InLine => at = self.in_line(input, at),
            }
        }
        self.keep(&input[run..at]);
        Fed {
            taken: at,
            ended: false,
        }
    }

    /// The message has ended: what it is, or why it is refused.
    pub fn finish(self) -> Result<Content, Fault> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(Content {
                body: self.body,
                eight_bit: self.eight_bit,
            }),
        }
    }

    /// Goes to behind the next CR or LF.
    fn in_line(&mut self, input: &[u8], at: usize) -> usize {
        let rest = &input[at..];
        let found = memchr2(b'\r', b'\n', rest);
        self.line = self.line.saturating_add(found.unwrap_or(rest.len()));
        if self.limits.line_bytes.is_some_and(|max| self.line > max) {
            self.refuse(Fault::LineTooLong);
        }
        match found {
            None => input.len(),
            Some(found) => {
                if rest[found] == b'\r' {
                    self.state = State::Cr;
                } else if self.limits.refuse_bare_lf {
                    self.refuse(Fault::BareLf);
                }
                at + found + 1
            }
        }
    }

    fn bare_cr(&mut self) {
        if self.limits.refuse_bare_cr {
            self.refuse(Fault::BareCr);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        if self.size > self.limits.message_bytes {
            self.refuse(Fault::TooLarge);
        }
        if self.fault.is_none() {
            debug_assert!(self.body.len() >= self.head);
            self.eight_bit |= !bytes.is_ascii();
            self.body.extend_from_slice(bytes);
        }
    }
}

/// How many Received fields the header section has: each is a hop (RFC 5321 6.3).
pub(super) fn hops(content: &[u8]) -> usize {
    const NAME: &[u8] = b"received:";
    let mut rest = content;
    let mut hops = 0;
    while !rest.is_empty() && !rest.starts_with(b"\r\n") && !rest.starts_with(b"\n") {
        if rest
            .get(..NAME.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(NAME))
        {
            hops += 1;
        }
        match memchr(b'\n', rest) {
            Some(end) => rest = &rest[end + 1..],
            None => break,
        }
    }
    hops
}
