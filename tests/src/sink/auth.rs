//! AUTH PLAIN and LOGIN, on the server's side.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// What is to be asked next, or who it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send `334` with this (already in base64).
    Ask(&'static str),
    /// User and password.
    Who(String, String),
    /// Not base64, or cancelled.
    Malformed,
    /// Another mechanism.
    Unknown,
}

/// One authentication exchange.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    login: bool,
    user: Option<String>,
}

impl Exchange {
    /// `AUTH` with what followed it.
    pub(super) fn start(&mut self, arguments: &str) -> Step {
        let mut words = arguments.split_whitespace();
        self.login = match words.next().map(str::to_ascii_uppercase).as_deref() {
            Some("PLAIN") => false,
            Some("LOGIN") => true,
            _ => return Step::Unknown,
        };
        match words.next() {
            Some(initial) => self.answer(initial),
            None if self.login => Step::Ask("VXNlcm5hbWU6"),
            None => Step::Ask(""),
        }
    }

    /// The client's next line.
    pub(super) fn answer(&mut self, line: &str) -> Step {
        let decoded = STANDARD.decode(line.trim());
        let Ok(Ok(text)) = decoded.map(String::from_utf8) else {
            return Step::Malformed;
        };
        if self.login {
            return match self.user.take() {
                None => {
                    self.user = Some(text);
                    Step::Ask("UGFzc3dvcmQ6")
                }
                Some(user) => Step::Who(user, text),
            };
        }
        let mut parts = text.split('\0').skip(1).map(str::to_owned);
        match (parts.next(), parts.next()) {
            (Some(user), Some(password)) => Step::Who(user, password),
            _ => Step::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_comes_in_one_line_or_two() {
        let me = STANDARD.encode("\0bob\0secret");
        let who = Step::Who("bob".into(), "secret".into());
        assert_eq!(Exchange::default().start(&format!("plain {me}")), who);
        let mut exchange = Exchange::default();
        assert_eq!(exchange.start("PLAIN"), Step::Ask(""));
        assert_eq!(exchange.answer(&me), who);
    }

    #[test]
    fn login_asks_twice_and_cancel_ends_it() {
        let mut exchange = Exchange::default();
        assert_eq!(exchange.start("LOGIN"), Step::Ask("VXNlcm5hbWU6"));
        assert_eq!(exchange.answer("Ym9i"), Step::Ask("UGFzc3dvcmQ6"));
        assert_eq!(
            exchange.answer("c2VjcmV0"),
            Step::Who("bob".into(), "secret".into())
        );
        assert_eq!(Exchange::default().answer("*"), Step::Malformed);
        assert_eq!(Exchange::default().start("CRAM-MD5"), Step::Unknown);
    }
}
