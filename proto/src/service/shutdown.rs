//! The way down: SIGTERM and SIGINT.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Hears the two signals that ask a service to end. The first one begins the drain; another one ends it at once.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
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
        })
    }

    /// Resolves at the next signal, with its name.
    pub async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_is_heard_and_does_not_kill() {
        let mut shutdown = Shutdown::listen().unwrap();
        let this = nix::unistd::getpid();
        nix::sys::signal::kill(this, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(shutdown.asked().await, "SIGTERM");
    }
}
