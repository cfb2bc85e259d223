//! The trace field that the listener puts in front (RFC 5321 4.4).
//!
//! Its `id` is the listener's own name for the transaction, as in its log, because the message's id is issued only when
//! the message is complete, this field included. `for` is given only if there is one recipient, so that nobody
//! learns of another.

use std::{fmt::Write as _, net::IpAddr, time::SystemTime};

/// What it says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace<'a> {
    /// The client's name for itself.
    pub helo: &'a str,
    /// The client's address.
    pub client: IpAddr,
    /// Us.
    pub host: &'a str,
    /// How it came.
    pub with: With,
    /// The transaction.
    pub id: &'a str,
    /// The only recipient.
    pub only_recipient: Option<&'a str>,
    /// When.
    pub at: SystemTime,
}

/// The protocol of a session (RFC 3848, RFC 6531).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct With {
    /// EHLO, not HELO.
    pub extended: bool,
    /// Over TLS.
    pub tls: bool,
    /// With SMTPUTF8.
    pub utf8: bool,
    /// The client has proved who it is.
    pub authenticated: bool,
}

impl With {
    fn name(self) -> &'static str {
        match (self.extended, self.utf8, self.tls, self.authenticated) {
            (false, ..) => "SMTP",
            (true, false, false, false) => "ESMTP",
            (true, false, true, false) => "ESMTPS",
            (true, false, false, true) => "ESMTPA",
            (true, false, true, true) => "ESMTPSA",
            (true, true, false, false) => "UTF8SMTP",
            (true, true, true, false) => "UTF8SMTPS",
            (true, true, false, true) => "UTF8SMTPA",
            (true, true, true, true) => "UTF8SMTPSA",
        }
    }
}

impl Trace<'_> {
    /// The whole field with its line ends.
    pub fn field(&self) -> String {
        let mut field = String::with_capacity(256);
        let literal = match self.client.to_canonical() {
            IpAddr::V4(address) => format!("[{address}]"),
            IpAddr::V6(address) => format!("[IPv6:{address}]"),
        };
        let _ = write!(
            field,
            "Received: from {} ({literal})\r\n\tby {} with {} id {}",
            self.helo,
            self.host,
            self.with.name(),
            self.id
        );
        if let Some(recipient) = self.only_recipient {
            let _ = write!(field, "\r\n\tfor <{recipient}>");
        }
        field.push_str(";\r\n\t");
        write_date(&mut field, self.at);
        field.push_str("\r\n");
        field
    }
}

/// An RFC 5322 date in UTC.
fn write_date(text: &mut String, at: SystemTime) {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil-from-days: eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    let _ = write!(
        text,
        "{}, {day} {} {year:04} {:02}:{:02}:{:02} +0000",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        time / 3600,
        time / 60 % 60,
        time % 60
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn date(seconds: u64) -> String {
        let mut text = String::new();
        write_date(
            &mut text,
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        );
        text
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "Thu, 1 Jan 1970 00:00:00 +0000");
        assert_eq!(date(951_782_400), "Tue, 29 Feb 2000 00:00:00 +0000");
        assert_eq!(date(1_709_251_199), "Thu, 29 Feb 2024 23:59:59 +0000");
        assert_eq!(date(1_767_225_599), "Wed, 31 Dec 2025 23:59:59 +0000");
        assert_eq!(date(4_107_542_400), "Mon, 1 Mar 2100 00:00:00 +0000");
    }

    #[test]
    fn the_field_is_folded_and_names_protocol_and_client() {
        let trace = Trace {
            helo: "client.example",
            client: "2001:db8::1".parse().unwrap(),
            host: "mx.example.org",
            with: With {
                extended: true,
                tls: true,
                utf8: false,
                authenticated: false,
            },
            id: "7f-1",
            only_recipient: Some("ann@example.org"),
            at: SystemTime::UNIX_EPOCH,
        };
        assert_eq!(
            trace.field(),
            "Received: from client.example ([IPv6:2001:db8::1])\r\n\tby mx.example.org with ESMTPS id 7f-1\r\n\t\
             for <ann@example.org>;\r\n\tThu, 1 Jan 1970 00:00:00 +0000\r\n"
        );
    }
}
