//! The conversation with the spoolers.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use pombo_proto::{
    control::{Answer, Control, ControlError, Question},
    frame::{Frame, Packet, Payload},
    ids::{Correlation, Incarnation},
    link::{Audience, Event, Link},
    service::config::Broker,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::Error;

/// After the first spooler has said that it is there, the others have so long.
const OTHERS: Duration = Duration::from_millis(500);

/// One spooler that answers.
#[derive(Clone, Debug)]
pub struct Spooler {
    incarnation: Incarnation,
    /// Its name.
    pub name: String,
}

/// Connected to the broker, and knowing who is there.
pub struct Client {
    link: Link,
    events: mpsc::UnboundedReceiver<Event>,
    me: Incarnation,
    /// Who answered.
    pub spoolers: Vec<Spooler>,
    /// How many the store knows alive, if more than those answered.
    pub silent: u32,
    /// How long one answer may take.
    pub patience: Duration,
    correlation: u64,
    later: VecDeque<Received>,
}

type Received = (Incarnation, Correlation, Result<Answer, ControlError>);

impl Client {
    /// Connects, and asks who is there.
    pub async fn connect(broker: &Broker, patience: Duration) -> Result<Self, Error> {
        let (sender, mut events) = mpsc::unbounded_channel();
        let name = format!("pombo {}", std::process::id());
        let options = broker.options(Audience::Nobody, name);
        let options = options.map_err(|error| Error::Config(error.to_string()))?;
        let link = Link::start(options, move |event| {
            let _ = sender.send(event);
        });
        let deadline = Instant::now() + patience;
        let mut last = "no answer".to_owned();
        let me = loop {
            match timeout_at(deadline, events.recv()).await {
                Ok(Some(Event::Up(me))) => break me,
                Ok(Some(Event::Down(reason))) => last = reason,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    link.close().await;
                    return Err(Error::Unreachable(format!(
                        "the broker cannot be reached: {last}"
                    )));
                }
            }
        };
        let mut client = Self {
            link,
            events,
            me,
            spoolers: Vec::new(),
            silent: 0,
            patience,
            correlation: 0,
            later: VecDeque::new(),
        };
        client.who_is_there().await?;
        Ok(client)
    }

    async fn who_is_there(&mut self) -> Result<(), Error> {
        let correlation = self.correlate();
        let frame = question(correlation, Question::WhoIsThere, Bytes::new());
        let packet = Packet::single(self.me, Incarnation::EVERYONE, frame);
        self.link.announce(Audience::Spoolers, &packet);
        let mut deadline = Instant::now() + self.patience;
        let mut alive = 0;
        while let Some((from, answer)) = self.next_answer(correlation, deadline).await? {
            if self.spoolers.is_empty() {
                deadline = deadline.min(Instant::now() + OTHERS);
            }
            if let Ok(Answer::Here {
                spooler,
                alive: known,
            }) = answer
            {
                self.spoolers.push(Spooler {
                    incarnation: from,
                    name: spooler,
                });
                alive = alive.max(known);
            }
            if self.spoolers.len() >= alive as usize && alive > 0 {
                break;
            }
        }
        if self.spoolers.is_empty() {
            return Err(Error::Unreachable("no spooler answers".to_owned()));
        }
        self.silent = alive.saturating_sub(self.spoolers.len() as u32);
        if self.silent > 0 {
            eprintln!("pombo: {} more spooler(s) did not answer", self.silent);
        }
        Ok(())
    }

    fn correlate(&mut self) -> Correlation {
        self.correlation += 1;
        Correlation(self.correlation)
    }

    /// Asks one spooler; the next one if it is not there any more.
    pub async fn ask_one(&mut self, question: Question, tail: Bytes) -> Result<Answer, Error> {
        let Some(spooler) = self.spoolers.first().cloned() else {
            return Err(Error::Unreachable("no spooler answers".to_owned()));
        };
        let correlation = self.ask(&spooler, question, tail);
        let deadline = Instant::now() + self.patience;
        match self.next_answer(correlation, deadline).await? {
            Some((_, answer)) => Ok(answer?),
            None => Err(Error::Later(format!(
                "{} did not answer in time",
                spooler.name
            ))),
        }
    }

    /// Asks all; says who did not answer.
    pub async fn ask_all(&mut self, question: &Question) -> Result<Vec<Answer>, Error> {
        let all = self.spoolers.clone().into_iter();
        self.ask_each(all.map(|it| (it, question.clone())).collect())
            .await
    }

    /// Asks one spooler what the store says, and the others what only they know (`None`: nothing). If that one does not answer, the
    /// next one is asked. The store's answer comes first.
    pub async fn ask_store(
        &mut self,
        question: &Question,
        own: Option<&Question>,
    ) -> Result<Vec<Answer>, Error> {
        let mut spoolers: VecDeque<_> = self.spoolers.clone().into();
        let mut failed = Error::Unreachable("no spooler answers".to_owned());
        while let Some(first) = spoolers.pop_front() {
            let asked = first.incarnation;
            match self.ask_each(vec![(first, question.clone())]).await {
                Err(error @ Error::Later(_)) => failed = error,
                Err(error) => return Err(error),
                Ok(mut answers) => {
                    let Some(own) = own else {
                        return Ok(answers);
                    };
                    let others = self.spoolers.iter().filter(|it| it.incarnation != asked);
                    let others = others.map(|it| (it.clone(), own.clone())).collect();
                    match self.ask_each(others).await {
                        Ok(more) => answers.extend(more),
                        Err(error) => eprintln!("pombo: of what moves elsewhere: {error}"),
                    }
                    return Ok(answers);
                }
            }
        }
        Err(failed)
    }

    async fn ask_each(&mut self, asked: Vec<(Spooler, Question)>) -> Result<Vec<Answer>, Error> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let mut open: Vec<_> = asked
            .into_iter()
            .map(|(it, question)| (self.ask(&it, question, Bytes::new()), it.name))
            .collect();
        let deadline = Instant::now() + self.patience;
        let (mut answers, mut failed) = (Vec::new(), None);
        while !open.is_empty() {
            let Some((correlation, answer)) = self.any_answer(deadline).await? else {
                break;
            };
            let Some(at) = open.iter().position(|(asked, _)| *asked == correlation) else {
                continue;
            };
            open.swap_remove(at);
            match answer {
                Ok(answer) => answers.push(answer),
                Err(error) => failed = Some(error),
            }
        }
        for (_, name) in open {
            eprintln!("pombo: {name} did not answer in time");
        }
        match (answers.is_empty(), failed) {
            (true, Some(error)) => Err(error.into()),
            (true, None) => Err(Error::Later("no spooler answered in time".to_owned())),
            (false, _) => Ok(answers),
        }
    }

    fn ask(&mut self, spooler: &Spooler, asked: Question, tail: Bytes) -> Correlation {
        let correlation = self.correlate();
        let frame = question(correlation, asked, tail);
        self.link
            .send(&Packet::single(self.me, spooler.incarnation, frame));
        correlation
    }

    async fn next_answer(
        &mut self,
        wanted: Correlation,
        deadline: Instant,
    ) -> Result<Option<(Incarnation, Result<Answer, ControlError>)>, Error> {
        while let Some((from, correlation, answer)) = self.receive(deadline).await? {
            if correlation == wanted {
                return Ok(Some((from, answer)));
            }
        }
        Ok(None)
    }

    async fn any_answer(
        &mut self,
        deadline: Instant,
    ) -> Result<Option<(Correlation, Result<Answer, ControlError>)>, Error> {
        let received = self.receive(deadline).await?;
        Ok(received.map(|(_, correlation, answer)| (correlation, answer)))
    }

    async fn receive(&mut self, deadline: Instant) -> Result<Option<Received>, Error> {
        loop {
            if let Some(answer) = self.later.pop_front() {
                return Ok(Some(answer));
            }
            match timeout_at(deadline, self.events.recv()).await {
                Err(_) => return Ok(None),
                Ok(None) => return Err(Error::Later("the link has ended".to_owned())),
                Ok(Some(Event::Down(reason))) => {
                    return Err(Error::Later(format!("the broker was lost: {reason}")));
                }
                Ok(Some(Event::Packets(packets))) => {
                    // One packet, one answer: spoolers answer each question by itself.
                    for packet in packets {
                        let from = packet.from;
                        for frame in packet.frames {
                            if let Payload::Control(Control::Answer(answer)) = frame.payload {
                                self.later.push_back((from, frame.correlation, answer));
                            }
                        }
                    }
                }
                Ok(Some(_)) => {}
            }
        }
    }

    /// Ends the link.
    pub async fn close(&self) {
        self.link.close().await;
    }
}

fn question(correlation: Correlation, question: Question, tail: Bytes) -> Frame {
    Frame {
        correlation,
        payload: Payload::Control(Control::Question(question)),
        tail,
    }
}
