//! Free ports on the loopback interface.
//!
//! A port that the kernel picks by itself may be taken by an *outgoing* connection between our look and the service's bind;
//! with thousands of SMTP connections that does happen. So ports come from below the range the kernel uses for those, start at a
//! random place (other test processes look too) and are given out once per process.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{LazyLock, Mutex, PoisonError},
};

static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// Below are well-known services.
const FIRST: u16 = 10_000;

/// A port of 127.0.0.1 that nobody listens on and that this process has not been given before.
pub fn free_port() -> u16 {
    let end = ephemeral_ports_start().clamp(FIRST + 2_000, 32_768);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..10_000 {
        let port = fastrand::u16(FIRST..end);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
    panic!("no free port between {FIRST} and {end}");
}

/// A free port as an address.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

fn ephemeral_ports_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}
