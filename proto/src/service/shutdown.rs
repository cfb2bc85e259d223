//! The way down: SIGTERM and SIGINT, and SIGHUP from a terminal that closes.
//!
//! SIGHUP has two meanings. To a service without a terminal it is a person's "read your files again"; to one that was started by
//! hand, the end of its terminal. What has nothing to read again takes either as the way down.

use std::fs::File;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To end: by this signal.
    End(&'static str),
    /// To read again what lies in files of its own.
    ReadAgain,
}

/// Hears the signals that ask a service to end. The first one begins the drain; another one ends it at once.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Whether it was started from a terminal.
    by_hand: bool,
}

impl Shutdown {
    /// From now on the signals no longer kill the process. Within a tokio runtime.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            by_hand: has_terminal(),
        })
    }

    /// Resolves at the next signal, with its name. For who has nothing to read again.
    pub async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// Resolves at the next signal, with what it means.
    pub async fn asked_or_read_again(&mut self) -> Asked {
        match self.asked().await {
            // The system takes the terminal away from the process before it sends the signal.
            "SIGHUP" if !self.by_hand || has_terminal() => Asked::ReadAgain,
            signal => Asked::End(signal),
        }
    }
}

/// Whether this process has a controlling terminal now.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal::{self, SIGHUP, SIGINT, SIGTERM};

    use super::*;

    fn send(signal: Signal) {
        nix::sys::signal::kill(nix::unistd::getpid(), signal).unwrap();
    }

    /// One test: signals are the whole process's.
    #[tokio::test]
    async fn signals_are_heard_and_do_not_kill() {
        let mut shutdown = Shutdown::listen().unwrap();
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            send(signal);
            assert_eq!(shutdown.asked().await, signal.as_str());
        }
        send(SIGINT);
        let asked = shutdown.asked_or_read_again().await;
        assert_eq!(asked, Asked::End("SIGINT"));
        // Never had a terminal: a person's wish.
        shutdown.by_hand = false;
        send(SIGHUP);
        assert_eq!(shutdown.asked_or_read_again().await, Asked::ReadAgain);
        // Had one: it counts whether that is still there.
        shutdown.by_hand = true;
        send(SIGHUP);
        let expected = match has_terminal() {
            true => Asked::ReadAgain,
            false => Asked::End("SIGHUP"),
        };
        assert_eq!(shutdown.asked_or_read_again().await, expected);
    }
}
