//! SMTP clients at a steady pace, each of which sends a message again until it is told 250, and the book of what they were told.
//!
//! A client behaves as a mail server does: after a 4xx, a lost connection or a door that is not there it waits a little and sends the
//! same message again, to the next door if there are several. It gives up only after the end, when nothing more is to be expected.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    client::{Reply, Session},
    mail::{self, Mail},
};

/// Enough to keep the pace while many wait for a reply.
const CLIENTS: usize = 24;
/// Between two offers of one message.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1_500));
/// After the end, a message that is still not accepted is offered for so long.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where recipients are. To agents these are two destinations, with a final dot each.
pub const DOMAINS: [&str; 2] = ["example.net", "two.example.net"];
/// One message in so many has a recipient in each domain, by chance.
const TWO_IN: u32 = 5;
/// Messages over one connection.
const PER_CONNECTION: u32 = 10;

/// What became of one message, as its client knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The test's id of it.
    pub id: String,
    /// The reverse-path: no other message has it, so a report names its message.
    pub sender: String,
    /// Nor has any other message these.
    pub recipients: Vec<String>,
    /// Of the bytes sent.
    pub sha256: String,
    /// It was told 250.
    pub accepted: bool,
    /// How often it was told 4xx.
    pub deferred: u32,
    /// How often the connection was lost in the middle.
    pub cut: u32,
    /// How often of those after the final dot: it may have been accepted.
    pub unanswered: u32,
    /// The 5xx that it was told.
    pub refused: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    Pause,
    End,
}

/// The clients. They end when it is dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    doors: Vec<SocketAddr>,
    between: Duration,
    wish: watch::Sender<Wish>,
    book: Mutex<Vec<Entry>>,
    busy: AtomicUsize,
    accepted: AtomicU64,
    deferred: AtomicU64,
    ended_at: Mutex<Option<Instant>>,
}

impl Load {
    /// Starts to offer `rate` messages a second to these doors.
    pub fn start(doors: &[SocketAddr], rate: u32, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            doors: doors.to_vec(),
            between: Duration::from_secs_f64(CLIENTS as f64 / f64::from(rate.max(1))),
            wish: watch::Sender::new(Wish::Run),
            book: Mutex::default(),
            busy: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
            ended_at: Mutex::new(None),
        });
        let clients = (0..CLIENTS).map(|number| {
            let random = fastrand::Rng::with_seed(seed.wrapping_add(number as u64));
            tokio::spawn(client(Arc::clone(&shared), random, number))
        });
        Self {
            clients: clients.collect(),
            shared,
        }
    }

    /// How many messages were told 250 so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How often 4xx was said so far.
    pub fn deferred(&self) -> u64 {
        self.shared.deferred.load(Ordering::Relaxed)
    }

    /// Nothing new is begun; returns when no message is being offered.
    pub async fn pause(&self) {
        self.shared.wish.send_replace(Wish::Pause);
        while self.shared.busy.load(Ordering::Acquire) > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn go_on(&self) {
        self.shared.wish.send_replace(Wish::Run);
    }

    /// Nothing new is begun; returns when each message is accepted or given up. Gives the book.
    pub async fn finish(mut self) -> Vec<Entry> {
        *lock(&self.shared.ended_at) = Some(Instant::now());
        self.shared.wish.send_replace(Wish::End);
        for client in std::mem::take(&mut self.clients) {
            // One that has panicked leaves its message unaccepted; the verdict is the others'.
            let _ = client.await;
        }
        std::mem::take(&mut lock(&self.shared.book))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for client in &self.clients {
            client.abort();
        }
    }
}

async fn client(shared: Arc<Shared>, mut random: fastrand::Rng, number: usize) {
    let mut wish = shared.wish.subscribe();
    let mut line = Line {
        door: number % shared.doors.len(),
        session: None,
        left: 0,
    };
    loop {
        let pause = shared.between.mul_f64(0.5 + random.f64());
        tokio::select! {
            () = sleep(pause) => {}
            _ = wish.wait_for(|wish| *wish == Wish::End) => return,
        }
        if wish.wait_for(|wish| *wish != Wish::Pause).await.is_err() {
            return;
        }
        shared.busy.fetch_add(1, Ordering::AcqRel);
        // Between the look and the count somebody may have asked for silence.
        if *wish.borrow() == Wish::Run {
            deliver(&shared, &mut line, &mut random).await;
        }
        shared.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Offers one message until it is accepted, refused, or given up.
async fn deliver(shared: &Shared, line: &mut Line, random: &mut fastrand::Rng) {
    let size = match random.u8(0..20) {
        0 => random.usize(40 << 10..60 << 10),
        _ => random.usize(600..4 << 10),
    };
    let mail = Mail::new().size(size);
    let sender = format!("s{}@chaos.example", mail.id());
    let count = match random.u32(..TWO_IN) {
        0 => 2,
        _ => 1,
    };
    let recipients: Vec<_> = DOMAINS[..count]
        .iter()
        .map(|domain| format!("r{}@{domain}", mail.id()))
        .collect();
    let bytes = mail.bytes();
    let index = {
        let mut book = lock(&shared.book);
        book.push(Entry {
            id: mail.id().to_owned(),
            sender: sender.clone(),
            recipients: recipients.clone(),
            sha256: mail::sha256(&bytes),
            ..Entry::default()
        });
        book.len() - 1
    };
    let mut again = AGAIN.0;
    loop {
        let told = line
            .offer(&shared.doors, &sender, &recipients, &bytes)
            .await;
        let done = shared.note(index, &told);
        let ended = *lock(&shared.ended_at);
        if done || ended.is_some_and(|at| at.elapsed() > PATIENCE) {
            return;
        }
        line.next_door(shared.doors.len());
        sleep(again.mul_f64(0.5 + random.f64())).await;
        again = (again * 2).min(AGAIN.1);
    }
}

impl Shared {
    /// Writes down what a client was told; whether that was the last word.
    fn note(&self, index: usize, told: &Told) -> bool {
        let mut book = lock(&self.book);
        let entry = &mut book[index];
        match told {
            Told::Accepted => {
                entry.accepted = true;
                self.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Told::Later => {
                entry.deferred += 1;
                self.deferred.fetch_add(1, Ordering::Relaxed);
            }
            Told::Never(reply) => entry.refused = Some(reply.to_string()),
            Told::Cut { after_the_dot } => {
                entry.cut += 1;
                entry.unanswered += u32::from(*after_the_dot);
            }
            Told::Nothing => {}
        }
        matches!(told, Told::Accepted | Told::Never(_))
    }
}

/// How one offer ended.
enum Told {
    Accepted,
    /// 4xx.
    Later,
    /// 5xx.
    Never(Reply),
    /// The connection was lost after MAIL.
    Cut {
        after_the_dot: bool,
    },
    /// Nobody was there, or an idle connection was closed: no transaction had begun.
    Nothing,
}

/// A client's connection, if there is one.
struct Line {
    door: usize,
    session: Option<Session>,
    left: u32,
}

impl Line {
    fn next_door(&mut self, doors: usize) {
        if self.session.is_none() {
            self.door = (self.door + 1) % doors;
        }
    }

    async fn offer(
        &mut self,
        doors: &[SocketAddr],
        from: &str,
        to: &[String],
        mail: &[u8],
    ) -> Told {
        if self.session.is_none() {
            match connect(doors[self.door]).await {
                Ok(session) => self.session = Some(session),
                Err(told) => return told,
            }
            self.left = PER_CONNECTION;
        }
        let Some(mut session) = self.session.take() else {
            return Told::Nothing;
        };
        let told = transaction(&mut session, from, to, mail).await;
        self.left -= 1;
        match &told {
            Told::Accepted if self.left > 0 => self.session = Some(session),
            Told::Accepted => drop(session.try_command("QUIT").await),
            // Whatever was said, the next offer starts afresh.
            _ => {}
        }
        told
    }
}

async fn connect(door: SocketAddr) -> Result<Session, Told> {
    let (mut session, greeting) = Session::try_connect(door)
        .await
        .map_err(|_| Told::Nothing)?;
    for reply in [
        Ok(greeting),
        session.try_command("EHLO client.example").await,
    ] {
        match reply {
            Ok(reply) if reply.is_ok() => {}
            Ok(reply) => return Err(not_ok(reply)),
            Err(_) => return Err(Told::Nothing),
        }
    }
    Ok(session)
}

async fn transaction(session: &mut Session, from: &str, to: &[String], mail: &[u8]) -> Told {
    let mut begun = false;
    let recipients = to.iter().map(|to| (format!("RCPT TO:<{to}>"), 250));
    let lines = std::iter::once((format!("MAIL FROM:<{from}>"), 250))
        .chain(recipients)
        .chain(std::iter::once(("DATA".to_owned(), 354)));
    for (line, code) in lines {
        match session.try_command(&line).await {
            Ok(reply) if reply.code == code => begun = true,
            Ok(reply) => return not_ok(reply),
            Err(_) if !begun => return Told::Nothing,
            Err(_) => {
                return Told::Cut {
                    after_the_dot: false,
                };
            }
        }
    }
    match session.try_message(mail).await {
        Ok(reply) if reply.is_ok() => Told::Accepted,
        Ok(reply) => not_ok(reply),
        Err(_) => Told::Cut {
            after_the_dot: true,
        },
    }
}

fn not_ok(reply: Reply) -> Told {
    if reply.code >= 500 {
        Told::Never(reply)
    } else {
        Told::Later
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{Sink, Stage, at};

    #[tokio::test]
    async fn a_message_is_offered_until_it_is_accepted_and_the_book_says_how_it_went() {
        let sink = Sink::start().await.unwrap();
        sink.rule(at(Stage::Dot).first(3).reply("451 4.3.0 later"));
        let load = Load::start(&[sink.address()], 200, 1);
        sink.wait_for(Duration::from_secs(20), "forty mails", |seen| {
            seen.accepted() >= 40
        })
        .await;
        load.pause().await;
        let (accepted, seen) = (load.accepted(), sink.look(|seen| seen.accepted() as u64));
        assert_eq!(accepted, seen);
        let book = load.finish().await;
        assert_eq!(book.iter().filter(|it| it.accepted).count() as u64, seen);
        assert_eq!(book.iter().map(|it| it.deferred).sum::<u32>(), 3);
        assert!(book.iter().all(|it| it.accepted && it.cut == 0), "{book:?}");
        let recipients: usize = book.iter().map(|it| it.recipients.len()).sum();
        assert_eq!(recipients, sink.look(|seen| seen.distinct_deliveries()));
        assert!(recipients > book.len(), "nobody sent to two");
    }

    #[tokio::test]
    async fn a_dot_without_an_answer_is_written_down_and_the_next_door_is_tried() {
        let (broken, sound) = (Sink::start().await.unwrap(), Sink::start().await.unwrap());
        broken.rule(at(Stage::Dot).accept_and_drop());
        let load = Load::start(&[broken.address(), sound.address()], 100, 2);
        sound
            .wait_for(Duration::from_secs(20), "ten mails", |seen| {
                seen.accepted() >= 10
            })
            .await;
        let book = load.finish().await;
        assert!(book.iter().all(|it| it.accepted), "{book:?}");
        let unanswered = book.iter().filter(|it| it.unanswered > 0).count();
        assert!(unanswered > 0);
        assert_eq!(unanswered, broken.look(|seen| seen.accepted()));
    }
}
