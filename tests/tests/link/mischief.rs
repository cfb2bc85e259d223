//! What stands beside a link and in its way: a plain connection, and a proxy that cuts.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lapin::{
    BasicProperties, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeleteOptions},
    types::AMQPValue,
};
use pombo_tests::Broker;
use tokio::{net::TcpStream, task::JoinHandle};

use crate::peer::LIMIT;

/// A plain connection, for looking and for mischief.
pub struct Raw {
    _connection: lapin::Connection,
    pub channel: lapin::Channel,
}

impl Raw {
    pub async fn connect(broker: &Broker) -> Self {
        let url = format!("amqp://127.0.0.1:{}", broker.port());
        let connection = lapin::Connection::connect(&url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        let select = ConfirmSelectOptions::default();
        channel.confirm_select(select).await.unwrap();
        Self {
            _connection: connection,
            channel,
        }
    }

    pub async fn publish(&self, exchange: &str, key: &str, body: &[u8]) {
        let confirm = self
            .channel
            .basic_publish(
                exchange.into(),
                key.into(),
                BasicPublishOptions::default(),
                body,
                BasicProperties::default(),
            )
            .await
            .unwrap();
        assert!(confirm.await.unwrap().is_ack());
    }

    pub async fn take(&self, queue: &str) -> (String, Vec<u8>) {
        let start = Instant::now();
        loop {
            let got = self
                .channel
                .basic_get(queue.into(), BasicGetOptions { no_ack: true })
                .await
                .unwrap();
            if let Some(got) = got {
                let headers = got.properties.headers().clone().unwrap_or_default();
                let reason = match headers.inner().get("pombo-reason") {
                    Some(AMQPValue::LongString(reason)) => reason.to_string(),
                    other => panic!("no reason: {other:?}"),
                };
                return (reason, got.delivery.data);
            }
            assert!(start.elapsed() < LIMIT, "nothing in {queue}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn delete(&self, queue: &str) {
        let options = QueueDeleteOptions::default();
        self.channel
            .queue_delete(queue.into(), options)
            .await
            .unwrap();
    }
}

/// Stands between a link and its broker, and cuts.
pub struct Proxy {
    port: u16,
    streams: Arc<Mutex<Vec<JoinHandle<()>>>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(broker: &Broker) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = broker.port();
        let streams: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let pumps = Arc::clone(&streams);
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let pump = tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
                pumps.lock().unwrap().push(pump);
            }
        });
        Self {
            port,
            streams,
            accepting,
        }
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// Ends the n-th connection that was made through it.
    pub fn cut(&self, number: usize) {
        self.streams.lock().unwrap()[number].abort();
    }

    /// Ends all, and lets nobody in any more.
    pub fn die(&self) {
        self.accepting.abort();
        self.streams
            .lock()
            .unwrap()
            .iter()
            .for_each(JoinHandle::abort);
    }
}
