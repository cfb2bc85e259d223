//! `pombo`, the command line: asks the spoolers over AMQP.
//!
//! | exit | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | nothing found, nothing changed, too late, or the ledger does not close |
//! | 64 | used wrongly |
//! | 65 | the message was refused; the text says why |
//! | 69 | no broker or no spooler can be reached |
//! | 75 | not now: try again later (for `submit`: the message may or may not have been taken, use `--key`) |
//! | 78 | the configuration is wrong |
//!
//! 64 and above are those of sysexits.h, which callers of `sendmail` know.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use pombo_proto::{
    control::{Answer, CancelAnswer, ControlError, Question, QueueFilter, QueueState, Selection},
    ids::MessageId,
    service::config::Broker,
};
use serde::Deserialize;

mod check;
mod client;
mod ledger;
mod merge;
mod passwd;
mod show;
mod submit;

use client::Client;

/// Asks Pombo's spoolers.
#[derive(Parser)]
#[command(name = "pombo", version, about = "Submits messages to Pombo, and asks what became of them", after_help = EXITS)]
pub struct Arguments {
    /// A TOML file with a [broker] section.
    #[arg(long, global = true, env = "POMBO_CONFIG")]
    config: Option<PathBuf>,
    /// The broker's address, instead of a file. With a password only from the environment: a command line is seen by all.
    #[arg(long, global = true, env = "AMQP_URL", hide_env_values = true)]
    broker: Option<String>,
    /// The prefix of all names on the broker.
    #[arg(long, global = true, env = "POMBO_PREFIX")]
    prefix: Option<String>,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    /// How long to wait for the broker and for answers.
    #[arg(long, global = true, default_value = "15s", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(subcommand)]
    command: Command,
}

const EXITS: &str = "Exit codes: 0 done; 1 nothing found or changed, too late, or something is missing; 64 used wrongly; 65 refused; \
    69 unreachable; 75 try again later; 78 wrong configuration.";

#[derive(Subcommand)]
enum Command {
    /// Submit a message: from standard input or a file.
    Submit(submit::Arguments),
    /// All that is known of a message.
    Trace { id: MessageId },
    /// Where a message is, who holds it, what it waits for, since when, until when.
    Why { id: MessageId },
    /// What is moving and waiting.
    Queue(Filter),
    /// Cancel a message. Says "in time" only once that is recorded.
    Cancel { id: MessageId },
    /// Give up a held message, in doubt or not: its sender gets a report.
    Drop { id: MessageId },
    /// Make waiting messages due now.
    Retry(Which),
    /// Take waiting messages off the road.
    Hold(Which),
    /// Put held messages back on it. Those in doubt are sent again, and only where they are named or asked for by --in-doubt.
    Release(Which),
    /// The sessions with transport agents, and their status rows.
    Transports {
        /// Only this transport.
        transport: Option<String>,
        /// Ask each whether its external system is healthy (ValidateState); 1 unless all are.
        #[arg(long)]
        validate: bool,
    },
    /// Ask transports to send and fetch as fast as they can.
    Flush {
        /// Only this transport.
        transport: Option<String>,
        /// Only outbound.
        #[arg(long)]
        upload: bool,
        /// Only inbound.
        #[arg(long)]
        download: bool,
    },
    /// What was accepted, and what became of it. Exit code 1 if something is missing.
    Ledger(ledger::Arguments),
    /// Messages that were given up because they cannot be read or handled.
    #[command(subcommand)]
    Dead(Dead),
    /// Configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make a line of a listener's users file: the password is asked for, or read from standard input.
    Passwd(passwd::Arguments),
}

#[derive(Subcommand)]
enum Dead {
    /// Show them.
    List,
    /// Try them again.
    Requeue(Which),
    /// Give them up.
    Drop(Which),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a spooler's or an agent's file: says file, line and key of what is wrong.
    Check { file: PathBuf },
}

/// Which messages: an id, or a filter.
#[derive(Args)]
struct Which {
    /// One message.
    #[arg(required_unless_present_any = ["all", "transport", "destination", "sender", "recipient", "in_doubt"])]
    id: Option<MessageId>,
    /// All of them.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
}

/// A filter on the queue.
#[derive(Args, Default)]
struct Filter {
    /// Of this transport.
    #[arg(long)]
    transport: Option<String>,
    /// To this destination (a domain, for SMTP).
    #[arg(long)]
    destination: Option<String>,
    /// From this sender.
    #[arg(long)]
    sender: Option<String>,
    /// To this recipient.
    #[arg(long)]
    recipient: Option<String>,
    /// In this state: moving, waiting, held, dead, finished.
    #[arg(long, value_parser = show::parse_state)]
    state: Option<QueueState>,
    /// Only those that may have been sent to somebody without our knowing.
    #[arg(long)]
    in_doubt: bool,
    /// At most so many.
    #[arg(long, default_value_t = 0)]
    limit: u32,
}

impl From<Filter> for QueueFilter {
    fn from(filter: Filter) -> Self {
        Self {
            transport: filter.transport,
            destination: filter.destination,
            sender: filter.sender,
            recipient: filter.recipient,
            state: filter.state,
            in_doubt: filter.in_doubt,
            limit: filter.limit,
        }
    }
}

impl From<Which> for Selection {
    fn from(which: Which) -> Self {
        which
            .id
            .map_or_else(|| Self::Matching(which.filter.into()), Self::One)
    }
}

/// Why a command failed; each has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 64
    #[error("{0}")]
    Usage(String),
    /// 65
    #[error("refused: {0}")]
    Refused(String),
    /// 69
    #[error("{0}")]
    Unreachable(String),
    /// 75
    #[error("{0}")]
    Later(String),
    /// 78
    #[error("{0}")]
    Config(String),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Refused(_) => 65,
            Self::Unreachable(_) => 69,
            Self::Later(_) => 75,
            Self::Config(_) => 78,
        }
    }
}

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused(diagnosis) => {
                Self::Refused(format!("{} {}", diagnosis.status, diagnosis.text))
            }
            ControlError::Later(text) => Self::Later(format!("try again later: {text}")),
            ControlError::Bad(text) => Self::Usage(text),
        }
    }
}

/// Runs `pombo`. Called as `sendmail`, it is `pombo submit`.
pub fn main() -> ExitCode {
    if std::env::args().any(|argument| has_password(&argument)) {
        eprintln!(
            "pombo: a password on the command line is seen by everybody on this machine: put it into AMQP_URL, or into a file with --config"
        );
        return ExitCode::from(64);
    }
    let arguments =
        match Arguments::try_parse_from(as_submit_if_sendmail(std::env::args_os().collect())) {
            Ok(arguments) => arguments,
            Err(error) => {
                let code = if error.use_stderr() { 64 } else { 0 };
                let _ = error.print();
                return ExitCode::from(code);
            }
        };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime
        .map_err(|error| Error::Later(error.to_string()))
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pombo: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Whether an argument is a broker's address with a password.
fn has_password(argument: &str) -> bool {
    let address = ["amqp://", "amqps://"]
        .iter()
        .find_map(|scheme| Some(argument.split_once(scheme)?.1));
    let authority = address.and_then(|address| address.split(['/', '?']).next());
    authority
        .and_then(|authority| authority.rsplit_once('@'))
        .is_some_and(|(user, _)| user.contains(':'))
}

fn as_submit_if_sendmail(mut all: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let name = all.first().map(PathBuf::from);
    if name.is_some_and(|name| name.file_name().is_some_and(|name| name == "sendmail")) {
        all.insert(1, "submit".into());
    }
    all
}

/// A file for `pombo` itself needs nothing but the broker; a service's file will do too.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    broker: Broker,
}

fn broker(arguments: &Arguments) -> Result<Broker, Error> {
    let mut broker = match &arguments.config {
        Some(path) => {
            let file = pombo_proto::service::config::load::<File>(path);
            file.map_err(|error| Error::Config(error.to_string()))?
                .broker
        }
        None => Broker::default(),
    };
    if let Some(address) = &arguments.broker {
        broker.addresses = vec![address.clone()];
    }
    if let Some(prefix) = &arguments.prefix {
        broker.prefix.clone_from(prefix);
    }
    Ok(broker)
}

async fn run(arguments: Arguments) -> Result<bool, Error> {
    if let Command::Config(ConfigCommand::Check { file }) = &arguments.command {
        return check::check(file);
    }
    if let Command::Passwd(arguments) = &arguments.command {
        return passwd::passwd(arguments);
    }
    let broker = broker(&arguments)?;
    let mut client = Client::connect(&broker, arguments.patience).await?;
    let done = command(&mut client, arguments.command, arguments.json).await;
    client.close().await;
    done
}

async fn command(client: &mut Client, command: Command, json: bool) -> Result<bool, Error> {
    match command {
        Command::Submit(arguments) => submit::submit(client, arguments, json).await,
        Command::Trace { id } => {
            let answers = client.ask_all(&Question::Trace(id)).await?;
            let found = merge::trace(answers);
            match found {
                Some(trace) => show::trace(&trace, json),
                None => show::unknown(client, id, json).await,
            }
        }
        Command::Why { id } => {
            let answers = client.ask_all(&Question::Why(id)).await?;
            match merge::why(answers) {
                Some(why) => show::why(&why, json),
                None => show::unknown(client, id, json).await,
            }
        }
        Command::Queue(filter) => {
            let filter = QueueFilter::from(filter);
            let own = moving(&filter).map(Question::Queue);
            let answers = client
                .ask_store(&Question::Queue(filter), own.as_ref())
                .await?;
            show::queue(&merge::queue(answers), json)
        }
        Command::Cancel { id } => cancel(client, id, json).await,
        Command::Drop { id } => {
            let question = Question::DeadDrop(Selection::One(id));
            changed(client, question, "given up", json).await
        }
        Command::Retry(which) => {
            changed(client, Question::Retry(which.into()), "due now", json).await
        }
        Command::Hold(which) => changed(client, Question::Hold(which.into()), "held", json).await,
        Command::Release(which) => {
            changed(client, Question::Release(which.into()), "released", json).await
        }
        Command::Transports {
            transport,
            validate: false,
        } => {
            let answers = client.ask_all(&Question::Transports).await?;
            let mut rows = merge::transports(answers);
            rows.retain(|row| transport.as_ref().is_none_or(|it| *it == row.transport));
            show::transports(&rows, json)
        }
        Command::Transports {
            transport,
            validate: true,
        } => {
            let answers = client.ask_all(&Question::Validate { transport }).await?;
            show::validated(&merge::validated(answers), json)
        }
        Command::Flush {
            transport,
            upload,
            download,
        } => {
            let both = !upload && !download;
            let (upload, download) = (upload || both, download || both);
            let question = Question::Flush {
                transport,
                upload,
                download,
            };
            let answers = client.ask_all(&question).await?;
            show::changed(merge::changed(answers), "sessions asked to flush", json)
        }
        Command::Ledger(arguments) => ledger::ledger(client, arguments, json).await,
        Command::Dead(Dead::List) => {
            let answers = client.ask_store(&Question::Dead, None).await?;
            show::queue(&merge::queue(answers), json)
        }
        Command::Dead(Dead::Requeue(which)) => {
            changed(
                client,
                Question::DeadRequeue(which.into()),
                "made due",
                json,
            )
            .await
        }
        Command::Dead(Dead::Drop(which)) => {
            changed(client, Question::DeadDrop(which.into()), "given up", json).await
        }
        Command::Config(_) | Command::Passwd(_) => Ok(true),
    }
}

/// What is asked of the spoolers that are not asked for what waits: what moves, which the store finds among anything. `None`: what
/// moves is not asked for, or only the store knows.
fn moving(filter: &QueueFilter) -> Option<QueueFilter> {
    let wanted = matches!(filter.state, None | Some(QueueState::Moving)) && !filter.in_doubt;
    wanted.then(|| QueueFilter {
        state: Some(QueueState::Moving),
        ..filter.clone()
    })
}

/// The store is one: asking one spooler changes it for all.
async fn changed(
    client: &mut Client,
    question: Question,
    what: &str,
    json: bool,
) -> Result<bool, Error> {
    match client.ask_one(question, bytes::Bytes::new()).await? {
        Answer::Changed { count } => show::changed(count, &format!("messages {what}"), json),
        other => Err(unexpected(&other)),
    }
}

async fn cancel(client: &mut Client, id: MessageId, json: bool) -> Result<bool, Error> {
    let answers = client.ask_all(&Question::Cancel(id)).await?;
    let answer = merge::cancel(answers);
    show::cancelled(&answer, json);
    Ok(matches!(
        answer,
        CancelAnswer::InTime | CancelAnswer::Partly { .. }
    ))
}

fn unexpected(answer: &Answer) -> Error {
    Error::Later(format!("an answer that was not asked for: {answer:?}"))
}
