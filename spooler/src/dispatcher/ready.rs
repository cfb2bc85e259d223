//! Jobs that could go if there were credit and their destination had room: a lane per (transport, destination).
//!
//! A plain structure without clock or IO. Lanes take turns within a priority class; a lane that cannot move steps out of the
//! rotation until something that concerns it happens ([`Ready::wake_lane`], [`Ready::wake_transport`]).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use pombo_proto::{
    ids::{MessageId, RecipientIndex},
    message::Priority,
};

use crate::job::Job;

/// Which lane: a transport, and a destination within it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The transport's name.
    pub transport: Arc<str>,
    /// The destination (a domain, for SMTP).
    pub destination: Arc<str>,
}

/// A job with the recipients that its next attempt is about.
#[derive(Debug)]
pub struct ReadyJob {
    /// The job.
    pub job: Job,
    /// The recipients to consider.
    pub considered: Vec<RecipientIndex>,
    /// BEGIN_DEFERRED: the transport had kept it.
    pub begin_deferred: bool,
    /// Since when it has been ready.
    pub queued: Instant,
}

#[derive(Debug, Default)]
struct Lane {
    classes: [VecDeque<ReadyJob>; 3],
    in_rotation: [bool; 3],
}

/// All lanes.
#[derive(Debug, Default)]
pub struct Ready {
    lanes: HashMap<LaneKey, Lane>,
    rotation: [VecDeque<LaneKey>; 3],
    count: usize,
}

fn class_of(priority: Priority) -> usize {
    match priority {
        Priority::Urgent => 0,
        Priority::Normal => 1,
        Priority::Bulk => 2,
    }
}

impl Ready {
    /// How many jobs there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Queues a job.
    pub fn push(&mut self, key: LaneKey, ready: ReadyJob) {
        let class = class_of(ready.job.message.envelope.priority);
        let lane = self.lanes.entry(key.clone()).or_default();
        lane.classes[class].push_back(ready);
        self.count += 1;
        if !lane.in_rotation[class] {
            lane.in_rotation[class] = true;
            self.rotation[class].push_back(key);
        }
    }

    /// Whether a class has a lane in rotation.
    pub fn has(&self, priority: Priority) -> bool {
        !self.rotation[class_of(priority)].is_empty()
    }

    /// The next lane of a class, taken out of the rotation. Follow with [`Self::pop`] and [`Self::wake_lane`], or leave it out.
    pub fn next_lane(&mut self, priority: Priority) -> Option<LaneKey> {
        let class = class_of(priority);
        while let Some(key) = self.rotation[class].pop_front() {
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.in_rotation[class] = false;
                if !lane.classes[class].is_empty() {
                    return Some(key);
                }
            }
        }
        None
    }

    /// The oldest job of a lane and class.
    pub fn pop(&mut self, key: &LaneKey, priority: Priority) -> Option<ReadyJob> {
        let lane = self.lanes.get_mut(key)?;
        let ready = lane.classes[class_of(priority)].pop_front()?;
        self.count -= 1;
        if lane.classes.iter().all(VecDeque::is_empty) {
            self.lanes.remove(key);
        }
        Some(ready)
    }

    /// A destination may have room again.
    pub fn wake_lane(&mut self, key: &LaneKey) {
        let Some(lane) = self.lanes.get_mut(key) else {
            return;
        };
        for class in 0..3 {
            if !lane.in_rotation[class] && !lane.classes[class].is_empty() {
                lane.in_rotation[class] = true;
                self.rotation[class].push_back(key.clone());
            }
        }
    }

    /// A transport may have credit again.
    pub fn wake_transport(&mut self, transport: &str) {
        self.wake_matching(|key| &*key.transport == transport);
    }

    /// Time has passed: everything may be looked at again.
    pub fn wake_all(&mut self) {
        self.wake_matching(|_| true);
    }

    fn wake_matching(&mut self, matches: impl Fn(&LaneKey) -> bool) {
        for (key, lane) in self.lanes.iter_mut().filter(|(key, _)| matches(key)) {
            for class in 0..3 {
                if !lane.in_rotation[class] && !lane.classes[class].is_empty() {
                    lane.in_rotation[class] = true;
                    self.rotation[class].push_back(key.clone());
                }
            }
        }
    }

    /// The lanes that hold something.
    pub fn keys(&self) -> Vec<LaneKey> {
        self.lanes.keys().cloned().collect()
    }

    /// Takes the jobs of a lane that were queued at or before `until`.
    pub fn take_older(&mut self, key: &LaneKey, until: Instant) -> Vec<ReadyJob> {
        let Some(lane) = self.lanes.get_mut(key) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        for queue in &mut lane.classes {
            while queue.front().is_some_and(|ready| ready.queued <= until) {
                taken.extend(queue.pop_front());
            }
        }
        self.count -= taken.len();
        if lane.classes.iter().all(VecDeque::is_empty) {
            self.lanes.remove(key);
        }
        taken
    }

    /// Takes one message out, wherever it stands.
    pub fn take(&mut self, id: MessageId) -> Option<ReadyJob> {
        let mut found = None;
        for (key, lane) in &mut self.lanes {
            for queue in &mut lane.classes {
                if let Some(at) = queue.iter().position(|ready| ready.job.id() == id) {
                    found = Some((key.clone(), queue.remove(at)?));
                }
            }
        }
        let (key, ready) = found?;
        self.count -= 1;
        if let Some(lane) = self.lanes.get(&key)
            && lane.classes.iter().all(VecDeque::is_empty)
        {
            self.lanes.remove(&key);
        }
        Some(ready)
    }

    /// Takes everything.
    pub fn drain(&mut self) -> Vec<ReadyJob> {
        self.count = 0;
        self.rotation = Default::default();
        let lanes = std::mem::take(&mut self.lanes);
        lanes
            .into_values()
            .flat_map(|lane| lane.classes.into_iter().flatten())
            .collect()
    }
}
