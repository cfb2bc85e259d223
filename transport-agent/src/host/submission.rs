//! One submission on the transport's threads: the handle that the transport holds, and what becomes of what it returns.

use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use pombo_proto::{
    blob::{self, Blobs},
    frame::{decode_message, detached},
    ids::{MessageId, RecipientIndex, Reference},
    message::{Body, Envelope},
    outcome::{
        Diagnosis, EnhancedStatus, NdrReason, Outcome, RecipientOutcome, RecipientStatus,
        SubmitResult,
    },
    verbs::Submit,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    cancel::Cancel,
    right::{Go, Right, Since, VALID, boot_time},
    support::References,
    told::{Teller, Told},
};
use crate::provider::{Submission, SubmissionHandle, Transport};

/// A submission that panicked is tried again after this.
const AFTER_PANIC: Duration = Duration::from_secs(60);
/// More StatusRecips per recipient than this are dropped.
const STATUSES_PER_RECIPIENT: usize = 2;
/// A frame's head is at most 4 MiB; so many bytes of outcomes' texts fit in with room to spare.
const TEXTS_MAX: usize = 2 * 1024 * 1024;
/// StatusRecips go in frames of so many.
pub(super) const STATUSES_PER_FRAME: usize = 1_000;

/// What all submissions share.
#[derive(Clone)]
pub(super) struct Tools {
    pub teller: Teller,
    pub right: Arc<Right>,
    pub blobs: Option<Blobs>,
    pub references: Arc<References>,
    pub room: Room,
}

/// What large bodies may occupy in memory, over all submissions; who finds none waits. One that is larger than all of it goes
/// alone.
#[derive(Clone)]
pub(super) struct Room {
    units: Arc<Semaphore>,
    all: u32,
}

/// The semaphore counts in these.
const ROOM_UNIT: u64 = 64 * 1024;

impl Room {
    pub fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes / ROOM_UNIT).unwrap_or(u32::MAX);
        let all = all.clamp(1, Semaphore::MAX_PERMITS.try_into().unwrap_or(u32::MAX));
        Self {
            units: Arc::new(Semaphore::new(all as usize)),
            all,
        }
    }

    /// `None`: it is closed, which it never is.
    async fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
        let units = Arc::clone(&self.units);
        units.acquire_many_owned(wanted.min(self.all)).await.ok()
    }
}

/// A message that cannot be read, or recipients that are not in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// One submission.
pub(super) struct Sending {
    tools: Tools,
    envelope: Arc<Envelope>,
    considered: Vec<RecipientIndex>,
    begin_deferred: bool,
    inline: Bytes,
    cancel: Cancel,
    since: Since,
    /// Only where doubt is held.
    go: Option<Arc<Go>>,
    unreadable: AtomicBool,
    /// The transport was told that it may finish: from then on it may have been sent.
    finishing: AtomicBool,
    said: Mutex<Said>,
    /// Room for the body, once it was asked for; until the submission is over.
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

#[derive(Default)]
struct Said {
    assigned: bool,
    over: bool,
    statuses: usize,
}

impl Sending {
    /// Reads the message. What a transport must not see is taken out.
    pub fn new(
        tools: Tools,
        submit: Submit,
        encoded: Bytes,
        cancel: Cancel,
        go: Option<Arc<Go>>,
    ) -> Result<Arc<Self>, Unreadable> {
        let message = decode_message(encoded).map_err(|_| Unreadable)?;
        let mut envelope = message.envelope;
        let mut considered = submit.recipients;
        considered.sort_unstable();
        considered.dedup();
        let last = considered.last().ok_or(Unreadable)?;
        if envelope.id != submit.id || last.get() >= envelope.recipients.len() {
            return Err(Unreadable);
        }
        if envelope
            .properties
            .iter()
            .any(|property| !property.tag.is_transmittable())
        {
            Arc::make_mut(&mut envelope)
                .properties
                .retain(|property| property.tag.is_transmittable());
        }
        let since = tools.right.since();
        Ok(Arc::new(Self {
            tools,
            envelope,
            considered,
            begin_deferred: submit.begin_deferred,
            // Ten thousand recipients do not stay for the sake of a short body.
            inline: detached(message.inline, message.encoded.len()),
            cancel,
            since,
            go,
            unreadable: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            said: Mutex::default(),
            held: Mutex::default(),
        }))
    }

    /// SubmitMessage, to its end; what it returned is told.
    pub async fn run(self: Arc<Self>, transport: Arc<dyn Transport>) {
        let submission = Arc::new(Submission::new(Handle(Arc::clone(&self))));
        let call = AssertUnwindSafe(transport.submit_message(submission)).catch_unwind();
        let id = self.envelope.id;
        let result = call.await.unwrap_or_else(|_| {
            tracing::error!(id = %id, "the transport panicked in SubmitMessage");
            metrics::counter!("pombo_agent_panics_total").increment(1);
            self.panicked()
        });
        let result = self.checked(result);
        if matches!(result, SubmitResult::Ok(_)) {
            // EndMessage needs one.
            self.assign(None);
        }
        self.said().over = true;
        *self.held() = None;
        let sent = matches!(result, SubmitResult::Ok(_) | SubmitResult::Cancelled(_));
        let unreadable = self.unreadable.load(Ordering::Acquire) && !sent;
        let told = Told::Returned(id, (!unreadable).then_some(result));
        self.tools.teller.tell(told);
    }

    /// What a panic leaves behind: nothing, or doubt about everybody of whom nothing else was said.
    fn panicked(&self) -> SubmitResult {
        let status = EnhancedStatus::new(4, 3, 0);
        let text = "the transport failed on this message";
        let diagnosis = Diagnosis::new(status, NdrReason::TransferFailed, text);
        if !self.finishing.load(Ordering::Acquire) {
            return SubmitResult::Wait(AFTER_PANIC, Some(diagnosis));
        }
        let in_doubt = |recipient: &RecipientIndex| RecipientOutcome {
            recipient: *recipient,
            outcome: Outcome::InDoubt(diagnosis.clone()),
        };
        SubmitResult::Ok(self.considered.iter().map(in_doubt).collect())
    }

    /// An outcome of each considered recipient and of no other, with texts that fit into a frame. Who is not named was left;
    /// it is said all the same, because whoever adopts this attempt knows by nothing else whom it was about.
    fn checked(&self, mut result: SubmitResult) -> SubmitResult {
        if let SubmitResult::Ok(outcomes) | SubmitResult::Cancelled(outcomes) = &mut result {
            let mut wanted: HashSet<_> = self.considered.iter().copied().collect();
            let before = outcomes.len();
            outcomes.retain(|outcome| wanted.remove(&outcome.recipient));
            if outcomes.len() != before {
                let id = self.envelope.id;
                let dropped = before - outcomes.len();
                tracing::warn!(id = %id, dropped, "outcomes of recipients that were not asked for");
            }
            let mut left: Vec<_> = wanted.into_iter().collect();
            left.sort_unstable();
            outcomes.extend(left.into_iter().map(|recipient| RecipientOutcome {
                recipient,
                outcome: Outcome::Left,
            }));
            shorten(outcomes);
        }
        result
    }

    fn assign(&self, reference: Option<Reference>) {
        let mut said = self.said();
        if said.assigned || said.over {
            return;
        }
        said.assigned = true;
        let usable = reference.filter(|reference| *reference >= Reference::FIRST);
        let reference = usable.unwrap_or_else(|| self.tools.references.next());
        tracing::Span::current().record("reference", reference.0);
        self.tools
            .teller
            .tell(Told::Reference(self.envelope.id, reference));
    }

    fn may_send(&self) -> bool {
        !self.cancel.is_cancelled() && self.tools.right.holds(self.since, boot_time())
    }

    async fn may_finish(&self) -> bool {
        if !self.may_send() {
            return false;
        }
        let Some(go) = &self.go else {
            return true;
        };
        if !go.is_given(boot_time()) {
            go.ask(boot_time());
            let told = Told::AtTheDot(self.envelope.id);
            self.tools.teller.tell(told);
            tokio::select! {
                () = go.given() => {}
                () = self.cancel.cancelled() => return false,
                () = tokio::time::sleep(VALID) => return false,
            }
        }
        go.is_given(boot_time()) && self.may_send()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shorten(outcomes: &mut [RecipientOutcome]) {
    let most = TEXTS_MAX / outcomes.len().max(1) / 3;
    let cut = |text: &mut String| {
        if text.len() > most {
            text.truncate(text.floor_char_boundary(most));
        }
    };
    for outcome in outcomes {
        match &mut outcome.outcome {
            Outcome::Delivered(delivery) => {
                cut(&mut delivery.remote);
                cut(&mut delivery.reply);
            }
            Outcome::Failed(diagnosis)
            | Outcome::Deferred { diagnosis, .. }
            | Outcome::InDoubt(diagnosis) => {
                cut(&mut diagnosis.text);
                diagnosis.remote.iter_mut().for_each(cut);
                diagnosis.reply.iter_mut().for_each(cut);
            }
            Outcome::Left | Outcome::Kept => {}
        }
    }
}

/// Calls EndMessage; what it returned is told.
pub(super) async fn end(
    transport: Arc<dyn Transport>,
    ended: crate::provider::Ended,
    teller: Teller,
) {
    let (id, suggested) = (ended.id, ended.suggested);
    let call = AssertUnwindSafe(transport.end_message(ended)).catch_unwind();
    let flag = call.await.unwrap_or_else(|_| {
        tracing::error!(id = %id, "the transport panicked in EndMessage");
        metrics::counter!("pombo_agent_panics_total").increment(1);
        suggested
    });
    teller.tell(Told::Ended(id, flag));
}

struct Handle(Arc<Sending>);

#[async_trait]
impl SubmissionHandle for Handle {
    fn envelope(&self) -> &Envelope {
        &self.0.envelope
    }

    fn considered(&self) -> &[RecipientIndex] {
        &self.0.considered
    }

    fn begin_deferred(&self) -> bool {
        self.0.begin_deferred
    }

    async fn body(&self) -> std::io::Result<Bytes> {
        let Body::Blob { size } = self.0.envelope.body else {
            return Ok(self.0.inline.clone());
        };
        let Some(blobs) = &self.0.tools.blobs else {
            self.0.unreadable.store(true, Ordering::Release);
            return Err(std::io::Error::other("there is no blob store"));
        };
        let id: MessageId = self.0.envelope.id;
        let has_room = self.0.held().is_some();
        if !has_room {
            let room = self.0.tools.room.take(size).await;
            *self.0.held() = room;
        }
        match blobs.get(id, size).await {
            Ok(body) if body.len() as u64 == size => Ok(body),
            Err(error @ blob::Error::Unavailable(_)) => Err(std::io::Error::other(error)),
            Ok(_) | Err(_) => {
                self.0.unreadable.store(true, Ordering::Release);
                let error = blob::Error::Missing(id);
                Err(std::io::Error::new(std::io::ErrorKind::NotFound, error))
            }
        }
    }

    fn assign_reference(&self, reference: Reference) {
        self.0.assign(Some(reference));
    }

    fn status_recips(&self, mut statuses: Vec<(RecipientIndex, RecipientStatus)>) {
        let considered = &self.0.considered;
        statuses.retain(|(recipient, _)| considered.binary_search(recipient).is_ok());
        self.0.assign(None);
        let mut said = self.0.said();
        let room = considered.len() * STATUSES_PER_RECIPIENT - said.statuses;
        statuses.truncate(room);
        if said.over || statuses.is_empty() {
            return;
        }
        said.statuses += statuses.len();
        let told = Told::Statuses(self.0.envelope.id, statuses);
        self.0.tools.teller.tell(told);
    }

    fn is_cancelled(&self) -> bool {
        self.0.cancel.is_cancelled()
    }

    async fn cancelled(&self) {
        self.0.cancel.cancelled().await;
    }

    async fn may_finish(&self) -> bool {
        let it = &self.0;
        let may = it.may_finish().await;
        it.finishing.fetch_or(may, Ordering::AcqRel);
        may
    }
}

#[cfg(test)]
mod tests {
    use pombo_proto::outcome::Delivery;
    use pombo_proto::time::UnixMillis;

    use super::*;

    #[tokio::test]
    async fn large_bodies_share_the_room_and_the_largest_goes_alone() {
        let room = Room::new(10 * ROOM_UNIT);
        let half = room.take(5 * ROOM_UNIT).await.unwrap();
        let rest = room.take(5 * ROOM_UNIT - 1).await.unwrap();
        assert!(room.take(1).now_or_never().is_none());
        drop(rest);
        let small = room.take(1).now_or_never().flatten().unwrap();
        assert!(room.take(u64::MAX).now_or_never().is_none());
        drop((half, small));
        let all = room.take(u64::MAX).now_or_never().flatten().unwrap();
        assert!(room.take(1).now_or_never().is_none());
        drop(all);
    }

    #[test]
    fn ten_thousand_long_replies_fit_into_a_frame() {
        let text = "x".repeat(1_000);
        let mut outcomes: Vec<_> = (0..10_000)
            .map(|index| RecipientOutcome {
                recipient: RecipientIndex(index),
                outcome: Outcome::Delivered(Delivery::new(UnixMillis(1), &*text, &*text)),
            })
            .collect();
        shorten(&mut outcomes);
        let encoded = pombo_proto::frame::encode(&outcomes);
        assert!(encoded.len() < pombo_proto::frame::HEAD_BYTES_MAX);
        let mut one = outcomes[..1].to_vec();
        let Outcome::Delivered(delivery) = &mut one[0].outcome else {
            unreachable!()
        };
        delivery.reply = text.clone();
        shorten(&mut one);
        assert!(matches!(&one[0].outcome, Outcome::Delivered(it) if it.reply == text));
    }
}
