//! A listener that dies. Between the broker's confirm and its 250 is SMTP's own doubt: the client sends again, and nobody
//! remembers the first time.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::chaos::stage::{DOORS, Stage};

pub(super) fn kill(stage: &mut Stage) -> BoxFuture<'_, anyhow::Result<u32>> {
    async move {
        stage.kill9(DOORS[0]).await;
        stage.service(DOORS[0]).start_again()?;
        // Killed again only when it was at work.
        stage.flows(Duration::from_secs(60)).await?;
        stage.pass(Duration::from_secs(1)).await;
        Ok(1)
    }
    .boxed()
}
