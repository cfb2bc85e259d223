//! Messages of an installation that runs: submitted as people do or published as doors do, and what became of them.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use pombo_proto::{
    frame::encode_message,
    ids::{DoorSequence, MessageId},
    message::{Body, Content, Envelope, MessageClass, Priority, Recipient, ReportReturn, Source},
    time::UnixMillis,
    topology::Topology,
};
use serde_json::Value;

use super::Installation;
use crate::{Broker, eventually, mail::Mail};

impl Installation {
    /// `pombo submit` with these options; the id.
    ///
    /// # Panics
    /// It is not accepted.
    pub async fn submit(&self, options: &[&str], to: &[&str], mail: &Mail) -> String {
        let mut args = vec!["submit", "-i", "-f", "alice@home.example"];
        args.extend(options);
        args.extend(to);
        let printed = self.pombo_with(&args, &mail.bytes()).await.succeeds();
        printed.trim().to_owned()
    }

    /// Waits until so many sessions are open, over all spoolers and agents.
    ///
    /// # Panics
    /// There are not within `limit`.
    pub async fn has_sessions(&self, count: usize, limit: Duration) {
        eventually(limit, &format!("{count} sessions"), || async {
            let output = self.pombo(&["--json", "transports"]).await;
            let rows: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
            if rows.as_array().is_some_and(|rows| rows.len() == count) {
                Ok(())
            } else {
                Err(rows.to_string())
            }
        })
        .await;
    }

    /// What `pombo trace` knows; `null` if that is nothing.
    pub async fn trace(&self, id: &str) -> Value {
        let output = self.pombo(&["--json", "trace", id]).await;
        serde_json::from_str(&output.stdout).unwrap_or_default()
    }

    /// Waits until `pombo trace` shows this state.
    ///
    /// # Panics
    /// It does not within `limit`.
    pub async fn in_state(&self, id: &str, state: &str, limit: Duration) -> Value {
        self.trace_that(id, limit, state, |trace| trace["state"] == state)
            .await
    }

    /// Waits until `pombo trace` shows what is wanted.
    ///
    /// # Panics
    /// It does not within `limit`.
    pub async fn trace_that(
        &self,
        id: &str,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        eventually(limit, &format!("{id}: {what}"), || async {
            let trace = self.trace(id).await;
            if wanted(&trace) {
                Ok(trace)
            } else {
                Err(trace.to_string())
            }
        })
        .await
    }

    /// Publishes as a door does, without a process for each message. On the shared broker only.
    ///
    /// # Errors
    /// The broker does not take it.
    pub async fn publish(
        &self,
        to: &[&str],
        change: impl FnOnce(&mut Envelope),
    ) -> anyhow::Result<String> {
        self.publish_with(to, change, FieldTable::default()).await
    }

    /// The same, put into a trace of the publisher's own.
    ///
    /// # Errors
    /// The broker does not take it.
    pub async fn publish_traced(&self, to: &[&str], traceparent: &str) -> anyhow::Result<String> {
        let mut headers = FieldTable::default();
        let value = AMQPValue::LongString(traceparent.into());
        headers.insert("traceparent".into(), value);
        self.publish_with(to, |_| {}, headers).await
    }

    async fn publish_with(
        &self,
        to: &[&str],
        change: impl FnOnce(&mut Envelope),
        headers: FieldTable,
    ) -> anyhow::Result<String> {
        let body = Mail::new().bytes();
        let id = DoorSequence::default().issue(UnixMillis::now());
        let mut envelope = envelope(id, to, body.len());
        change(&mut envelope);
        let priority = envelope.priority;
        let message = encode_message(envelope, &body);
        let properties = lapin::BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(id.to_string().into())
            .with_headers(headers);
        let exchange = Topology::new(self.prefix()).spool_exchange();
        let broker = Broker::shared().await;
        broker
            .publish(&exchange, priority.name(), properties, &message.encoded)
            .await?;
        Ok(id.to_string())
    }
}

fn envelope(id: MessageId, to: &[&str], size: usize) -> Envelope {
    Envelope {
        id,
        class: MessageClass::Note,
        sender: "alice@home.example".to_owned(),
        recipients: to.iter().map(|&address| Recipient::smtp(address)).collect(),
        priority: Priority::Normal,
        submitted_at: UnixMillis::now(),
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source {
            door: "test".to_owned(),
            ..Source::default()
        },
        body: Body::Inline { size: size as u64 },
        properties: Vec::new(),
    }
}
