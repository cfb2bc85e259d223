//! Waiting for a condition, with a limit and a failure that says what was seen last.

use std::{fmt::Debug, future::Future, time::Duration};

use tokio::time::Instant;

/// Short enough not to be felt, long enough to leave two cores to those who are waited for.
const INTERVAL: Duration = Duration::from_millis(20);

/// What a condition may answer: `bool`, `Option<T>`, or `Result<T, E>` whose error says what is still missing.
pub trait Answer {
    /// What `eventually` gives back.
    type Found;

    /// `Ok` ends the waiting; the text of the last `Err` is shown when time is up.
    fn found(self) -> Result<Self::Found, String>;
}

impl Answer for bool {
    type Found = ();

    fn found(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Answer for Option<T> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "none".into())
    }
}

impl<T, E: Debug> Answer for Result<T, E> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.map_err(|e| format!("{e:?}"))
    }
}

/// Asks `condition` again and again until it holds, and gives back what it found.
///
/// ```no_run
/// # async fn test(log: impl AsyncFn() -> String) {
/// use std::time::Duration;
/// pombo_tests::eventually(Duration::from_secs(5), "the log names the drain", async || log().await.contains("draining")).await;
/// # }
/// ```
///
/// # Panics
/// When `limit` has passed; `what` and the last answer are in the message.
pub async fn eventually<A, F, Fut>(limit: Duration, what: &str, mut condition: F) -> A::Found
where
    A: Answer,
    F: FnMut() -> Fut,
    Fut: Future<Output = A>,
{
    let start = Instant::now();
    let mut asked = 0_u32;
    let mut last = String::from("the first answer did not come");
    loop {
        asked += 1;
        match tokio::time::timeout_at(start + limit, condition())
            .await
            .map(Answer::found)
        {
            Ok(Ok(found)) => return found,
            Ok(Err(answer)) => last = answer,
            Err(_) => panic!(
                "not within {limit:?}: {what} (asked {asked} times, the last time without an answer; before: {last})"
            ),
        }
        if start.elapsed() + INTERVAL > limit {
            panic!("not within {limit:?}: {what} (asked {asked} times, last answer: {last})");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
