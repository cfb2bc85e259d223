//! Mail as a person sends it, and what a person asks about it.

use std::time::Duration;

use pombo_tests::{Installation, eventually, mail::Mail};
use serde_json::Value;

/// L + D + margin, and time to notice.
pub const GONE: Duration = Duration::from_secs(90);

pub async fn submit(pombo: &Installation, to: &str) -> String {
    let args = ["--json", "submit", "-i", "-f", "alice@example.org", to];
    let output = pombo.pombo_with(&args, &Mail::new().bytes()).await;
    output.json()["id"].as_str().expect("an id").to_owned()
}

pub async fn ask(pombo: &Installation, args: &[&str]) -> Value {
    let all: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
    let output = pombo.pombo(&all).await;
    serde_json::from_str(&output.stdout).unwrap_or(Value::Null)
}

pub async fn is_in_state(pombo: &Installation, id: &str, state: &str, limit: Duration) -> Value {
    eventually(limit, &format!("{id} is {state}"), || async {
        let why = ask(pombo, &["why", id]).await;
        if why["state"] == state {
            Ok(why)
        } else {
            Err(why)
        }
    })
    .await
}
