//! One look: the store's books, the broker's count and what every spooler holds, gathered by the one that makes the audit.

use std::{collections::BTreeSet, time::Duration};

use actix::{Addr, Message};
use pombo_proto::{
    ids::Incarnation,
    ledger::{Account, Balance, DoorNumber},
    time::UnixMillis,
    topology::SpoolClass,
};

use super::{
    Desk, Ledger,
    audit::{Observation, SOUGHT_MAX},
};
use crate::{dispatcher::HoldsWhich, store};

/// One look.
pub(super) struct Round {
    pub(super) desk: Desk,
    pub(super) ledger: Addr<Ledger>,
    pub(super) me: Incarnation,
    pub(super) sought: Vec<DoorNumber>,
}

pub(super) enum Seen {
    /// All of it: this spooler makes the audit.
    Audited(Box<Observation>),
    /// Another one does.
    Books(Vec<Balance>),
}

impl Round {
    /// In the order that [`super::audit`] asks for.
    pub(super) async fn observe(self) -> Result<Seen, store::Error> {
        let (me, every) = (self.me, Duration::ZERO);
        let now = UnixMillis::now();
        let store = &self.desk.store;
        let members = store
            .call(move |store| {
                let mine = store.begin_chore(now, "audit", me, every)?;
                mine.then(|| store.members()).transpose()
            })
            .await?;
        let Some(members) = members else {
            let accounts = store.call(|store| store.ledger()).await?;
            return Ok(Seen::Books(accounts));
        };
        let ready = self.desk.link.ready().await;
        let spoolers = members.len().max(1) as u64;
        let others = members.into_iter().map(|member| member.incarnation);
        let held = self
            .who_holds(others.filter(|it| *it != me).collect())
            .await;
        let complete = ready.is_some() && held.is_some();
        let (accounts, holes) = store.call(read_books).await?;
        let prefetch = &self.desk.config.spooler.prefetch;
        let leases = SpoolClass::ALL.map(|class| u64::from(prefetch.of(class)));
        Ok(Seen::Audited(Box::new(Observation {
            accounts,
            holes,
            ready: ready.map_or(0, |ready| ready.iter().sum()),
            held: held.unwrap_or_default(),
            leases_max: spoolers * leases.iter().sum::<u64>(),
            complete,
        })))
    }

    /// Ours, and what the others say; `None` if one of them says nothing.
    async fn who_holds(&self, others: BTreeSet<Incarnation>) -> Option<BTreeSet<DoorNumber>> {
        let ours = self
            .desk
            .dispatcher
            .send(HoldsWhich(self.sought.clone()))
            .await;
        let mut held: BTreeSet<DoorNumber> = ours.ok()?.held.into_iter().collect();
        if others.is_empty() || self.sought.is_empty() {
            return Some(held);
        }
        let question = AskOthers {
            me: self.me,
            others,
            sought: self.sought.clone(),
        };
        let theirs = self.ledger.send(question).await.ok()?;
        held.extend(theirs?);
        Some(held)
    }
}

/// What do those hold of these numbers? `None` if one of them says nothing.
#[derive(Message)]
#[rtype(result = "Option<BTreeSet<DoorNumber>>")]
pub(super) struct AskOthers {
    pub(super) me: Incarnation,
    pub(super) others: BTreeSet<Incarnation>,
    pub(super) sought: Vec<DoorNumber>,
}

/// In one call, so that nothing is committed between the two.
fn read_books(
    store: &mut dyn store::Store,
) -> Result<(Vec<Balance>, Vec<DoorNumber>), store::Error> {
    let accounts = store.ledger()?;
    let mut holes = Vec::new();
    for balance in accounts.iter().filter(|it| it.holes > 0) {
        let Account::Door(door) = balance.account else {
            continue;
        };
        let room = SOUGHT_MAX - holes.len();
        let numbers = store.holes(door, room)?;
        holes.extend(
            numbers
                .into_iter()
                .map(|sequence| DoorNumber { door, sequence }),
        );
    }
    Ok((accounts, holes))
}
