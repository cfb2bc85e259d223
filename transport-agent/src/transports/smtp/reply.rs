//! A server's replies, and what it offers.
//!
//! Read here rather than by `smtp-proto`, whose reply parser keeps each number of an enhanced status in a byte (5.7.509
//! becomes 5.7.255) and gives up on replies above 4 KiB, which ends the connection.

use pombo_proto::{outcome::EnhancedStatus, scram};

/// A whole reply is at most this long; RFC 5321 4.5.3.1.5 allows 512 bytes a line, and EHLO has a few dozen.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Of a reply's text this much is kept.
const TEXT_BYTES_MAX: usize = 8 * 1024;

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// 200..=599.
    pub(super) code: u16,
    /// RFC 2034, if the text begins with one.
    pub(super) status: Option<EnhancedStatus>,
    /// The text of all lines without codes, separated by LF. Enhanced status included. No other control characters.
    pub(super) text: String,
}

/// Not a reply of SMTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a line that does not begin with a reply code")]
    Code,
    #[error("an endless reply")]
    TooLong,
}

impl Reply {
    /// The first reply in `buffer` and its length; `None` while it is not complete.
    pub(super) fn parse(buffer: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let mut text = Vec::new();
        let mut at = 0;
        loop {
            let Some(length) = memchr::memchr(b'\n', &buffer[at..]) else {
                return if buffer.len() > REPLY_BYTES_MAX {
                    Err(Malformed::TooLong)
                } else {
                    Ok(None)
                };
            };
            let line = &buffer[at..at + length];
            let first = at == 0;
            at += length + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let (code, last, rest) = split(line).ok_or(Malformed::Code)?;
            if !first && text.len() < TEXT_BYTES_MAX {
                text.push(b'\n');
            }
            text.extend(rest.iter().take(TEXT_BYTES_MAX.saturating_sub(text.len())));
            if last {
                let text = printable(&text);
                let reply = Self {
                    code,
                    status: enhanced(&text),
                    text,
                };
                return Ok(Some((reply, at)));
            }
            if at > REPLY_BYTES_MAX {
                return Err(Malformed::TooLong);
            }
        }
    }

    /// 2xx.
    pub(super) fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 5xx.
    pub(super) fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// 4xx or 5xx.
    pub(super) fn is_negative(&self) -> bool {
        matches!(self.code / 100, 4 | 5)
    }

    /// The server's own words on one line, code first; an enhanced status that every line repeats is said once.
    pub(super) fn words(&self) -> String {
        let mut words = self.code.to_string();
        let status = self.status.map(|status| status.to_string());
        for (number, line) in self.text.lines().enumerate() {
            let repeated = status.as_deref().filter(|_| number > 0);
            let line = repeated
                .and_then(|status| line.strip_prefix(status))
                .unwrap_or(line)
                .trim();
            if !line.is_empty() {
                words.push(' ');
                words.push_str(line);
            }
        }
        words
    }
}

/// Code, whether it is the last line, and the text.
fn split(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let digits = line.get(..3)?;
    if !digits.iter().all(u8::is_ascii_digit) || !(b'2'..=b'5').contains(&digits[0]) {
        return None;
    }
    let code = digits
        .iter()
        .fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match line.get(3) {
        None => Some((code, true, &[])),
        Some(b' ') => Some((code, true, &line[4..])),
        Some(b'-') => Some((code, false, &line[4..])),
        Some(_) => None,
    }
}

/// As text that can stand in a log and a report.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    if text.chars().any(|c| c.is_control() && c != '\n') {
        text = text
            .chars()
            .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
            .collect();
    }
    text
}

/// RFC 2034: the enhanced status at the beginning of a text.
fn enhanced(text: &str) -> Option<EnhancedStatus> {
    let word = text.split([' ', '\n']).next()?;
    let mut numbers = word.split('.');
    let mut next = |digits_max: usize| {
        let number = numbers.next()?;
        let sound = (1..=digits_max).contains(&number.len())
            && number.bytes().all(|byte| byte.is_ascii_digit());
        sound.then(|| number.parse::<u16>().ok()).flatten()
    };
    let (class, subject, detail) = (next(1)?, next(3)?, next(3)?);
    let complete = numbers.next().is_none() && matches!(class, 2 | 4 | 5);
    complete.then(|| EnhancedStatus::new(class as u8, subject, detail))
}

/// What a server offers in its answer to EHLO, as far as we care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) pipelining: bool,
    pub(super) starttls: bool,
    pub(super) eight_bit_mime: bool,
    pub(super) smtputf8: bool,
    pub(super) dsn: bool,
    /// RFC 1870: whether SIZE may be given.
    pub(super) size: bool,
    /// RFC 1870: the most it takes; `None` if it does not say.
    pub(super) size_max: Option<u64>,
    pub(super) auth_plain: bool,
    pub(super) auth_login: bool,
    pub(super) auth_scram: bool,
}

impl Capabilities {
    /// From a positive answer to EHLO.
    pub(super) fn parse(reply: &Reply) -> Self {
        let mut offered = Self::default();
        for line in reply.text.lines().skip(1) {
            // "AUTH=PLAIN" is an old form of "AUTH PLAIN".
            let mut words = line.split([' ', '=']).filter(|word| !word.is_empty());
            let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
            match keyword.as_str() {
                "PIPELINING" => offered.pipelining = true,
                "STARTTLS" => offered.starttls = true,
                "8BITMIME" => offered.eight_bit_mime = true,
                "SMTPUTF8" => offered.smtputf8 = true,
                "DSN" => offered.dsn = true,
                "SIZE" => {
                    offered.size = true;
                    let limit = words.next().and_then(|word| word.parse().ok());
                    offered.size_max = limit.filter(|limit| *limit > 0);
                }
                "AUTH" => {
                    for mechanism in words {
                        offered.auth_plain |= mechanism.eq_ignore_ascii_case("PLAIN");
                        offered.auth_login |= mechanism.eq_ignore_ascii_case("LOGIN");
                        offered.auth_scram |= mechanism.eq_ignore_ascii_case(scram::NAME);
                    }
                }
                _ => {}
            }
        }
        offered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Reply {
        let (reply, used) = Reply::parse(bytes).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        reply
    }

    #[test]
    fn a_reply_has_a_code_a_status_and_words() {
        let reply = whole(b"550 5.7.509 Access denied\r\n");
        assert_eq!(reply.code, 550);
        assert_eq!(reply.status, Some(EnhancedStatus::new(5, 7, 509)));
        assert_eq!(reply.words(), "550 5.7.509 Access denied");
        assert_eq!(whole(b"250\r\n").words(), "250");
        assert_eq!(whole(b"250 ok\n").words(), "250 ok");
        assert_eq!(whole(b"250 2.0 ok\r\n").status, None);
        assert_eq!(
            whole(b"250 2.0.0\r\n").status,
            Some(EnhancedStatus::new(2, 0, 0))
        );
        assert_eq!(whole(b"250 192.0.2.1 hello\r\n").status, None);
    }

    #[test]
    fn lines_are_joined_and_a_repeated_status_is_said_once() {
        let reply =
            whole(b"550-5.1.1 No such user.\r\n550-5.1.1 Try again\r\n550 5.1.1 elsewhere\r\n");
        assert_eq!(reply.words(), "550 5.1.1 No such user. Try again elsewhere");
    }

    #[test]
    fn a_reply_is_found_only_when_it_is_complete() {
        let bytes = b"250-one\r\n250 two\r\n354 go\r\n";
        let first = b"250-one\r\n250 two\r\n".len();
        for end in 0..first {
            assert_eq!(Reply::parse(&bytes[..end]), Ok(None), "{end}");
        }
        assert_eq!(Reply::parse(bytes).unwrap().unwrap().1, first);
    }

    #[test]
    fn what_is_no_reply_is_refused_and_what_is_endless_is_bounded() {
        for bytes in [
            &b"hello\r\n"[..],
            b"25\r\n",
            b"\r\n",
            b"150 x\r\n",
            b"600 x\r\n",
            b"250x\r\n",
        ] {
            assert_eq!(Reply::parse(bytes), Err(Malformed::Code), "{bytes:?}");
        }
        assert_eq!(Reply::parse(&vec![b'2'; 70_000]), Err(Malformed::TooLong));
        assert_eq!(
            Reply::parse(&b"250-x\r\n".repeat(10_000)),
            Err(Malformed::TooLong)
        );
        let long = [b"250 ", &[b'x'; 20_000][..], b"\r\n"].concat();
        assert_eq!(whole(&long).text.len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn control_characters_and_foreign_bytes_do_not_reach_a_log() {
        assert_eq!(
            whole(b"550 a\x1b[31mb\xffc\0\r\n").text,
            "a [31mb\u{fffd}c "
        );
    }

    #[test]
    fn hostile_bytes_do_not_panic() {
        fastrand::seed(3);
        let alphabet = b"2505-4. \r\n\xffx";
        for _ in 0..50_000 {
            let bytes: Vec<u8> = (0..fastrand::usize(..40))
                .map(|_| alphabet[fastrand::usize(..alphabet.len())])
                .collect();
            if let Ok(Some((reply, used))) = Reply::parse(&bytes) {
                assert!(used <= bytes.len());
                reply.words();
                Capabilities::parse(&reply);
            }
        }
    }

    #[test]
    fn capabilities_are_found_in_any_case_and_order() {
        let reply = whole(
            b"250-mx greets you\r\n250-size 1000\r\n250-PIPELINING\r\n250-AUTH=LOGIN\r\n250-AUTH CRAM-MD5 plain\r\n250-X\r\n250 DSN\r\n",
        );
        let offered = Capabilities::parse(&reply);
        assert_eq!(
            offered,
            Capabilities {
                pipelining: true,
                dsn: true,
                size: true,
                size_max: Some(1000),
                auth_plain: true,
                auth_login: true,
                auth_scram: false,
                ..Capabilities::default()
            }
        );
        let nothing = Capabilities::parse(&whole(b"250-PIPELINING\r\n250-SIZE 0\r\n250 SIZE\r\n"));
        assert_eq!((nothing.pipelining, nothing.size_max), (false, None));
    }
}
