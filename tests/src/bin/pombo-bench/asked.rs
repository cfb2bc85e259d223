//! Submission as `pombo submit` does it: the body is uploaded to a spooler, then it is asked to submit it. One client that holds
//! many such conversations at a time.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use pombo_proto::{
    control::{Answer, Control, Question, Submission},
    frame::{Frame, Packet, Payload},
    ids::{Correlation, Incarnation},
    link::{Audience, Event, Link, Options, Tls},
    topology::Topology,
};
use tokio::{sync::mpsc, time::timeout};
use uuid::Uuid;

/// Conversations at a time: as many as a door's confirm window.
const OPEN_MAX: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that knows its spooler.
pub struct Asker {
    link: Link,
    events: mpsc::UnboundedReceiver<Event>,
    me: Incarnation,
    spooler: Incarnation,
    correlation: u64,
}

impl Asker {
    /// Connects, and takes the first spooler that answers.
    ///
    /// # Errors
    /// Nobody does.
    pub async fn connect(url: &str, prefix: &str) -> anyhow::Result<Self> {
        let options = Options {
            addresses: vec![url.to_owned().into()],
            tls: Tls::default(),
            topology: Topology::new(prefix),
            audience: Audience::Nobody,
            name: "bench".to_owned(),
            heartbeat: 10,
            inbox_prefetch: 500,
            versions: pombo_proto::verbs::VERSIONS,
        };
        let (sender, mut events) = mpsc::unbounded_channel();
        let link = Link::start(options, move |event| {
            let _ = sender.send(event);
        });
        let me = loop {
            if let Event::Up(me) = next(&mut events).await? {
                break me;
            }
        };
        let mut asker = Self {
            link,
            events,
            me,
            spooler: Incarnation::EVERYONE,
            correlation: 0,
        };
        let hello = asker.frame(Question::WhoIsThere, Bytes::new()).1;
        let packet = Packet::single(me, Incarnation::EVERYONE, hello);
        asker.link.announce(Audience::Spoolers, &packet);
        while asker.spooler == Incarnation::EVERYONE {
            if let Event::Packets(packets) = next(&mut asker.events).await? {
                asker.spooler = packets.first().context("an empty packet")?.from;
            }
        }
        Ok(asker)
    }

    /// Submits so many messages with this body; returns when the last one is accepted.
    ///
    /// # Errors
    /// One is refused.
    pub async fn submit(&mut self, count: usize, body: &Bytes) -> anyhow::Result<()> {
        let mut open: HashMap<u64, Uuid> = HashMap::new();
        let (mut begun, mut accepted) = (0, 0);
        while accepted < count {
            while begun < count && open.len() < OPEN_MAX {
                let upload = Uuid::new_v4();
                let part = Question::Upload { upload, offset: 0 };
                let correlation = self.ask(part, body.clone());
                open.insert(correlation, upload);
                begun += 1;
            }
            match next(&mut self.events).await? {
                Event::Packets(packets) => {
                    for frame in packets.into_iter().flat_map(|packet| packet.frames) {
                        let Some(upload) = open.remove(&frame.correlation.0) else {
                            continue;
                        };
                        match frame.payload {
                            Payload::Control(Control::Answer(Ok(Answer::Accepted { .. }))) => {
                                accepted += 1;
                            }
                            Payload::Control(Control::Answer(Ok(_))) => {
                                let submission = submission();
                                let question = Question::Submit { upload, submission };
                                let correlation = self.ask(question, Bytes::new());
                                open.insert(correlation, upload);
                            }
                            other => bail!("the spooler answered {other:?}"),
                        }
                    }
                }
                Event::Down(why) => bail!("the broker was lost: {why}"),
                _ => {}
            }
        }
        Ok(())
    }

    fn ask(&mut self, question: Question, tail: Bytes) -> u64 {
        let (correlation, frame) = self.frame(question, tail);
        self.link
            .send(&Packet::single(self.me, self.spooler, frame));
        correlation
    }

    fn frame(&mut self, question: Question, tail: Bytes) -> (u64, Frame) {
        self.correlation += 1;
        let frame = Frame {
            correlation: Correlation(self.correlation),
            payload: Payload::Control(Control::Question(question)),
            tail,
        };
        (self.correlation, frame)
    }

    /// Ends the link.
    pub async fn close(&self) {
        self.link.close().await;
    }
}

fn submission() -> Submission {
    Submission {
        sender: "ann@source.example".to_owned(),
        recipients: vec!["bob@sink.example".to_owned()],
        client: "bench".to_owned(),
        ..Submission::default()
    }
}

async fn next(events: &mut mpsc::UnboundedReceiver<Event>) -> anyhow::Result<Event> {
    let event = timeout(PATIENCE, events.recv()).await;
    event
        .context("no answer from the spooler")?
        .context("the link has ended")
}
