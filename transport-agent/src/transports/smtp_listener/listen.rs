//! Listening sockets, and the sessions that come in through them.

use std::{io::Write, net::SocketAddr, sync::Arc, sync::atomic::Ordering, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, error, warn};

use super::{
    Shared,
    limits::{ClientKey, Place},
    session::{Peer, Session},
};

/// Rest after an accept that failed: out of file descriptors, usually.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often quiet clients are forgotten.
const TIDY: Duration = Duration::from_secs(60);
/// A TLS handshake takes a few round trips.
const HANDSHAKE_MAX: Duration = Duration::from_secs(60);

/// Takes connections until the listener stops; then waits for the sessions under way, within the limit.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, tls: bool) {
    let mut stop = shared.stop.subscribe();
    let mut sessions = JoinSet::new();
    let mut tidy = interval(TIDY);
    tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow_and_update() {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    if let Some((peer, place)) = admit(&shared, &stream, from) {
                        sessions.spawn(connection(Arc::clone(&shared), stream, peer, place, tls));
                    } else {
                        turn_away(&shared, stream, tls);
                    }
                }
                Err(error) => {
                    warn!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = sessions.join_next(), if !sessions.is_empty() => note(ended),
            _ = tidy.tick() => {
                shared.connections.tidy();
                shared.messages.tidy();
                shared.recipients.tidy();
                shared.errors.tidy();
                shared.failures.tidy();
            }
            changed = stop.changed() => if changed.is_err() { break },
        }
    }
    drop(listener);
    let all = async {
        while let Some(ended) = sessions.join_next().await {
            note(ended);
        }
    };
    if timeout(shared.config.shutdown_timeout, all).await.is_err() {
        warn!(sessions = sessions.len(), "sessions cut off at shutdown");
        sessions.shutdown().await;
    }
}

fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(panic) = ended {
        error!(error = %panic, "a session failed");
    }
}

fn admit(shared: &Arc<Shared>, stream: &TcpStream, from: SocketAddr) -> Option<(Peer, Place)> {
    let ip = from.ip().to_canonical();
    let key = ClientKey::of(ip);
    if !shared.connections.admits(key) {
        return None;
    }
    let place = shared.door.enter(key)?;
    // Replies are gathered by ourselves.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "no TCP_NODELAY");
    }
    let id = shared.sessions.fetch_add(1, Ordering::Relaxed);
    let peer = Peer {
        ip,
        key,
        id,
        errors: 0,
        auth_failures: 0,
        messages: 0,
    };
    Some((peer, place))
}

/// One write into an empty socket buffer, which never waits.
fn turn_away(shared: &Shared, stream: TcpStream, tls: bool) {
    debug!("too many connections");
    if !tls && let Ok(mut stream) = stream.into_std() {
        let reply = format!("421 4.7.0 {} Too many connections\r\n", shared.host);
        // The client is turned away whether it can be told or not.
        let _ = stream.write(reply.as_bytes());
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, peer: Peer, place: Place, tls: bool) {
    debug!(session = peer.id, client = %peer.ip, "connected");
    if tls {
        secured(shared, stream, peer, true).await;
    } else if let Some((stream, peer)) = Session::new(Arc::clone(&shared), stream, peer, false)
        .run(true)
        .await
    {
        // A new session: everything said in the clear is forgotten (RFC 3207 4.2).
        secured(shared, stream, peer, false).await;
    }
    drop(place);
}

async fn secured(shared: Arc<Shared>, stream: TcpStream, peer: Peer, banner: bool) {
    let Some(acceptor) = shared.files().tls else {
        return;
    };
    let patience = shared.config.command_timeout.min(HANDSHAKE_MAX);
    match timeout(patience, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            Session::new(shared, stream, peer, true).run(banner).await;
        }
        Ok(Err(error)) => debug!(session = peer.id, %error, "TLS handshake failed"),
        Err(_) => debug!(session = peer.id, "TLS handshake timed out"),
    }
}
