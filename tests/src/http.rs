//! The smallest HTTP client that can read `/healthz`, `/readyz` and `/metrics`.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// A local service that needs longer is as good as dead.
const LIMIT: Duration = Duration::from_secs(5);
/// Far beyond any metrics page.
const BODY_MAX: u64 = 16 << 20;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpReply {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// `GET path`, HTTP/1.0, connection closed afterwards.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<HttpReply> {
    timeout(LIMIT, exchange(address, path))
        .await
        .with_context(|| format!("no answer from http://{address}{path} within {LIMIT:?}"))?
        .with_context(|| format!("GET http://{address}{path}"))
}

async fn exchange(address: SocketAddr, path: &str) -> anyhow::Result<HttpReply> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
        .await?;
    let mut raw = Vec::new();
    stream.take(BODY_MAX).read_to_end(&mut raw).await?;
    parse(&String::from_utf8_lossy(&raw))
}

fn parse(text: &str) -> anyhow::Result<HttpReply> {
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("no end of the headers")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1."), "not HTTP: {status:?}");
    let code = status
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("no status in {status:?}"))?;
    Ok(HttpReply {
        status: code,
        body: body.to_owned(),
    })
}

/// The sum over all label sets of one metric on a Prometheus page; `None` if it is not there.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.as_bytes().first()? {
            b' ' => rest,
            b'{' => &rest[rest.rfind('}')? + 1..],
            _ => return None,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_is_summed_over_its_labels_and_not_mixed_with_longer_names() {
        let page =
            "# TYPE sent counter\nsent{t=\"a\"} 2\nsent{t=\"b c\"} 3\nsent_total 9\nidle 0\n";
        assert_eq!(metric(page, "sent"), Some(5.0));
        assert_eq!(metric(page, "idle"), Some(0.0));
        assert_eq!(metric(page, "absent"), None);
    }

    #[test]
    fn reply_is_split_into_status_and_body() {
        let reply = parse("HTTP/1.1 503 Service Unavailable\r\nx: y\r\n\r\nno broker").unwrap();
        assert_eq!(
            reply,
            HttpReply {
                status: 503,
                body: "no broker".into()
            }
        );
        assert!(parse("220 smtp\r\n\r\n").is_err());
    }
}
