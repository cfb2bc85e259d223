//! Bodies that come in parts, before their submission.

use std::{collections::HashMap, time::Duration};

use bytes::{Bytes, BytesMut};
use pombo_proto::{
    control::ControlError,
    outcome::{Diagnosis, EnhancedStatus, NdrReason},
    time::UnixMillis,
};
use uuid::Uuid;

/// All uploads together; the memory budget of this door. A single body may use all of it.
const BYTES_MAX: usize = 160 * 1024 * 1024;
/// The bytes of very small ones are not what they cost.
const UPLOADS_MAX: usize = 1_024;
/// An upload that gets no part for so long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The uploads under way.
#[derive(Debug, Default)]
pub struct Uploads {
    parts: HashMap<Uuid, Upload>,
    bytes: usize,
}

#[derive(Debug)]
struct Upload {
    body: BytesMut,
    touched: UnixMillis,
}

impl Uploads {
    /// Adds a part; says how much there is.
    pub fn add(
        &mut self,
        upload: Uuid,
        offset: u64,
        part: &Bytes,
        limit: u64,
        now: UnixMillis,
    ) -> Result<u64, ControlError> {
        let have = self
            .parts
            .get(&upload)
            .map_or(0, |upload| upload.body.len());
        if offset != have as u64 {
            return Err(ControlError::Bad(format!(
                "the part does not begin at {have}"
            )));
        }
        let size = have as u64 + part.len() as u64;
        if size > limit {
            self.take(upload);
            let text = format!("the message is larger than {limit} bytes");
            let status = EnhancedStatus::new(5, 3, 4);
            let diagnosis = Diagnosis::new(status, NdrReason::TransferImpossible, text);
            return Err(ControlError::Refused(Box::new(diagnosis)));
        }
        let one_more = have == 0 && self.parts.len() >= UPLOADS_MAX;
        if one_more || self.bytes + part.len() > BYTES_MAX {
            return Err(ControlError::Later("too many uploads at a time".to_owned()));
        }
        self.bytes += part.len();
        let entry = self.parts.entry(upload).or_insert_with(|| Upload {
            body: BytesMut::new(),
            touched: now,
        });
        entry.body.extend_from_slice(part);
        entry.touched = now;
        Ok(size)
    }

    /// Takes a whole body.
    pub fn take(&mut self, upload: Uuid) -> Option<Bytes> {
        let upload = self.parts.remove(&upload)?;
        self.bytes -= upload.body.len();
        Some(upload.body.freeze())
    }

    /// Forgets what its sender has forgotten.
    pub fn forget(&mut self, now: UnixMillis) {
        self.parts
            .retain(|_, upload| now.since(upload.touched) < IDLE_MAX);
        self.bytes = self.parts.values().map(|upload| upload.body.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_must_follow_each_other_and_stay_below_the_limit() {
        let (mut uploads, id, now) = (Uploads::default(), Uuid::new_v4(), UnixMillis(0));
        let part = Bytes::from_static(b"12345");
        assert_eq!(uploads.add(id, 0, &part, 12, now), Ok(5));
        assert!(matches!(
            uploads.add(id, 4, &part, 12, now),
            Err(ControlError::Bad(_))
        ));
        assert_eq!(uploads.add(id, 5, &part, 12, now), Ok(10));
        assert!(matches!(
            uploads.add(id, 10, &part, 12, now),
            Err(ControlError::Refused(_))
        ));
        assert_eq!(uploads.take(id), None);
        assert_eq!(uploads.bytes, 0);
    }

    #[test]
    fn uploads_of_nothing_are_counted_too() {
        let (mut uploads, now) = (Uploads::default(), UnixMillis(0));
        let mut begin = || uploads.add(Uuid::new_v4(), 0, &Bytes::new(), 12, now);
        for _ in 0..UPLOADS_MAX {
            assert_eq!(begin(), Ok(0));
        }
        assert!(matches!(begin(), Err(ControlError::Later(_))));
    }

    #[test]
    fn an_abandoned_upload_is_forgotten() {
        let (mut uploads, id) = (Uploads::default(), Uuid::new_v4());
        uploads
            .add(id, 0, &Bytes::from_static(b"x"), 12, UnixMillis(0))
            .unwrap();
        uploads.forget(UnixMillis(61_000));
        assert_eq!((uploads.take(id), uploads.bytes), (None, 0));
    }
}
