//! `/healthz`, `/readyz` and `/metrics`.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process serves at all |
//! | `/readyz` | 200, or 503 with one JSON line per reason |
//! | `/metrics` | Prometheus' text format |
//!
//! Bounded: connections, a request's header (128 KiB, by actix), and how long a client may take over it or over our answer. So who
//! is rude here costs the process nothing that it needs elsewhere, and is gone after a while. There is no access control: the
//! answers hold no secret and no address, but belong on an inner network.

use std::{
    any::Any,
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_web::{App, HttpResponse, HttpServer, dev::ServerHandle, rt::net::TcpStream, web};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};

use super::config::Http;

/// Histograms keep every sample until they are folded, whether or not anybody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// For a handful of scrapers and probes.
const LIMITS: Limits = Limits {
    connections: 64,
    patience: Duration::from_secs(5),
};
/// Seconds: from the fastest thing that is timed to the slowest.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

/// What can go wrong at the start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not ours.
    #[error("http.listen = {address}: {source}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// There can be one recorder per process.
    #[error("metrics were set up before")]
    Again,
}

/// What a service needs to be ready: named conditions, each fulfilled or not for a reason. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    conditions: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

impl Health {
    /// The condition is fulfilled, or not and why. Nobody is ready before every condition was set to `Ok`.
    pub fn set(&self, name: &'static str, state: Result<(), String>) {
        let mut conditions = self.lock();
        conditions.insert(name, state.err());
    }

    /// The conditions that are not fulfilled, and why.
    pub fn reasons(&self) -> Vec<(&'static str, String)> {
        let unfulfilled = |(name, reason): (&&'static str, &Option<String>)| {
            reason.clone().map(|reason| (*name, reason))
        };
        self.lock().iter().filter_map(unfulfilled).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The process's metrics, as `metrics::counter!` and its like record them. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Becomes the process's recorder. Once, before anything is counted.
    ///
    /// # Errors
    /// It was done before.
    pub fn install() -> Result<Self, Error> {
        let this = Self::build();
        metrics::set_global_recorder(this.0).map_err(|_| Error::Again)?;
        Ok(this.1)
    }

    fn build() -> (metrics_exporter_prometheus::PrometheusRecorder, Self) {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS);
        let recorder = builder.unwrap_or_default().build_recorder();
        let handle = recorder.handle();
        (recorder, Self { handle })
    }

    /// As text.
    pub fn render(&self) -> String {
        self.handle.render()
    }
}

/// What clients may take.
#[derive(Clone, Copy)]
struct Limits {
    /// At a time. As many more wait at the kernel's, without a file descriptor of this process.
    connections: u16,
    /// Until a request's header is complete, until the next request, and until some of an answer is taken.
    patience: Duration,
}

/// The HTTP server of a service; stops with the System, or by [`Server::stop`].
pub struct Server {
    handle: Option<ServerHandle>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Listens as configured (or not at all), with one worker. Within an actix System.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start(http: &Http, health: Health, metrics: Metrics) -> Result<Self, Error> {
        Self::start_within(LIMITS, http, health, metrics)
    }

    fn start_within(
        limits: Limits,
        http: &Http,
        health: Health,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let upkeep = metrics.handle.clone();
        actix_web::rt::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        });
        let Some(address) = http.listen else {
            return Ok(Self {
                handle: None,
                addresses: Vec::new(),
            });
        };
        let server = HttpServer::new(move || {
            App::new()
                .app_data(web::Data::new(health.clone()))
                .app_data(web::Data::new(metrics.clone()))
                .route("/healthz", web::get().to(healthz))
                .route("/readyz", web::get().to(readyz))
                .route("/metrics", web::get().to(render))
        })
        .workers(1)
        .max_connections(usize::from(limits.connections))
        .backlog(u32::from(limits.connections))
        .client_request_timeout(limits.patience)
        .keep_alive(limits.patience)
        .on_connect(move |connection, _| give_up_after(limits.patience, connection))
        .disable_signals()
        .shutdown_timeout(1)
        .bind(address)
        .map_err(|source| Error::Bind { address, source })?;
        let addresses = server.addrs();
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        for address in &addresses {
            tracing::info!(%address, "http listens");
        }
        Ok(Self {
            handle: Some(handle),
            addresses,
        })
    }

    /// Where it listens; with port 0 configured, the one that the system chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers what was asked, then closes.
    pub async fn stop(&self) {
        if let Some(handle) = &self.handle {
            handle.stop(true).await;
        }
    }
}

/// actix waits for ever for a client that does not read; the kernel need not.
fn give_up_after(patience: Duration, connection: &dyn Any) {
    if let Some(stream) = connection.downcast_ref::<TcpStream>() {
        let millis = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        // Without it only such a client's place is lost.
        let _ = setsockopt(stream, TcpUserTimeout, &millis);
    }
}

async fn healthz() -> HttpResponse {
    HttpResponse::Ok().body("ok\n")
}

async fn readyz(health: web::Data<Health>) -> HttpResponse {
    let reasons = health.reasons();
    if reasons.is_empty() {
        return HttpResponse::Ok().body("ok\n");
    }
    let line = |(condition, reason): &(&str, String)| {
        let value = serde_json::json!({ "condition": condition, "reason": reason });
        format!("{value}\n")
    };
    let body: String = reasons.iter().map(line).collect();
    HttpResponse::ServiceUnavailable()
        .content_type("application/jsonl")
        .body(body)
}

async fn render(metrics: web::Data<Metrics>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(metrics.render())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[actix_web::test]
    async fn readiness_says_what_is_missing_and_metrics_are_rendered() {
        let (recorder, metrics) = Metrics::build();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("pombo_test_total").increment(3);
            metrics::histogram!("pombo_test_seconds").record(0.2);
        });
        let health = Health::default();
        health.set("link", Err("not connected to the broker".to_owned()));
        let http = Http {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        };
        let server = Server::start(&http, health.clone(), metrics).unwrap();
        let address = server.addresses()[0];
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let away = get(address, "/readyz").await;
        assert!(away.starts_with("HTTP/1.1 503"), "{away}");
        let line = r#"{"condition":"link","reason":"not connected to the broker"}"#;
        assert!(away.contains(line), "{away}");
        health.set("link", Ok(()));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let text = get(address, "/metrics").await;
        assert!(text.contains("pombo_test_total 3"), "{text}");
        assert!(
            text.contains(r#"pombo_test_seconds_bucket{le="0.25"} 1"#),
            "{text}"
        );
        server.stop().await;
    }

    /// With one place, which whoever is tested takes.
    fn narrow(patience: Duration, health: &Health) -> Server {
        let http = Http {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        };
        let limits = Limits {
            connections: 1,
            patience,
        };
        Server::start_within(limits, &http, health.clone(), Metrics::build().1).unwrap()
    }

    #[actix_web::test]
    async fn who_comes_when_all_places_are_taken_waits_for_one() {
        let server = narrow(Duration::from_secs(600), &Health::default());
        let address = server.addresses()[0];
        let mut first = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut second = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        second.write_all(request).await.unwrap();
        let mut answer = [0; 1024];
        // Each answer is time for the second one's, if that had a place.
        for _ in 0..20 {
            first.write_all(request).await.unwrap();
            let length = first.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
        }
        let nothing = second.try_read(&mut answer).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        drop(first);
        let length = second.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
        drop(second);
        server.stop().await;
    }

    #[actix_web::test]
    async fn who_does_not_finish_a_request_or_take_an_answer_loses_the_place() {
        let health = Health::default();
        // More than the kernel keeps for both ends.
        health.set("link", Err("x".repeat(32 * 1024 * 1024)));
        // actix's clock ticks twice a second.
        let server = narrow(Duration::from_secs(1), &health);
        let address = server.addresses()[0];
        let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\nX: ")
            .await
            .unwrap();
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut deaf = socket.connect(address).await.unwrap();
        let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
        deaf.write_all(request).await.unwrap();
        deaf.readable().await.unwrap();
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        drop((slow, deaf));
        server.stop().await;
    }
}
