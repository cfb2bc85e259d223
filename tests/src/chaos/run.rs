//! Lanes that work through the faults. A lane has a broker of its own, because some faults take it away; the one that has a
//! cluster takes the faults that need one first.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use futures_util::{FutureExt as _, future::join_all};

use super::{
    faults::Fault,
    options::Options,
    stage::{self, Brokers, End, Stage},
    verdict::{self, Verdict},
};

/// A fault to be tried: its place in the table, what, how often.
type Job = (usize, &'static Fault, u32);

/// Tries everything, and gives a verdict for each fault, in the order asked for.
pub async fn run(options: &Options) -> Vec<Verdict> {
    let mut jobs: Vec<Job> = options
        .faults
        .iter()
        .enumerate()
        .map(|(place, (fault, times))| (place, *fault, *times))
        .collect();
    let mut verdicts: Vec<(usize, Verdict)> = Vec::new();
    if jobs.iter().any(|(_, fault, _)| fault.needs.small_disk) && !stage::can_mount() {
        jobs.retain(|&(place, fault, _)| {
            let tried = !fault.needs.small_disk;
            if !tried {
                let why = "a small disk cannot be mounted here (not root?)";
                verdicts.push((place, skipped(fault, why)));
            }
            tried
        });
    }
    // The longest first: who begins last should end soon.
    jobs.sort_by(|a, b| duration(b).total_cmp(&duration(a)));
    let (clustered, single): (VecDeque<Job>, VecDeque<Job>) = jobs
        .into_iter()
        .partition(|(_, fault, _)| fault.needs.cluster);
    let clustered = Mutex::new(clustered);
    let single = Mutex::new(single);
    let lanes = (0..options.lanes.max(1)).map(|lane| {
        let (clustered, single) = (&clustered, &single);
        async move {
            let mut done = Vec::new();
            if lane == 0 {
                done.extend(work(options, clustered, true).await);
            }
            done.extend(work(options, single, false).await);
            done
        }
    });
    verdicts.extend(join_all(lanes).await.into_iter().flatten());
    verdicts.sort_by_key(|(place, _)| *place);
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

fn duration((_, fault, times): &Job) -> f64 {
    fault.seconds_each * f64::from(*times)
}

/// Works until no job is left, with one broker (or cluster) for all.
async fn work(
    options: &Options,
    jobs: &Mutex<VecDeque<Job>>,
    cluster: bool,
) -> Vec<(usize, Verdict)> {
    let mut done = Vec::new();
    let mut brokers = None;
    loop {
        let job = jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        let Some((place, fault, times)) = job else {
            return done;
        };
        if brokers.is_none() {
            match Brokers::start(cluster).await {
                Ok(started) => brokers = Some(Arc::new(started)),
                Err(error) => {
                    done.push((place, broken(fault, &format!("no broker: {error:#}"))));
                    continue;
                }
            }
        }
        let Some(ours) = &brokers else { continue };
        let trial = AssertUnwindSafe(try_out(options, fault, times, Arc::clone(ours)));
        let verdict = match trial.catch_unwind().await {
            Ok(verdict) => verdict,
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic");
                broken(fault, text)
            }
        };
        say(options, fault, &verdict);
        let broke = !verdict.breaches.is_empty();
        done.push((place, verdict));
        // What one fault has broken is not the next one's; what a broken one left in the broker, nobody knows.
        if broke || !ours.are_sound().await {
            brokers = None;
        }
    }
}

/// One fault, from the first mail to the verdict.
async fn try_out(
    options: &Options,
    fault: &'static Fault,
    times: u32,
    brokers: Arc<Brokers>,
) -> Verdict {
    let start = Instant::now();
    if options.verbose {
        eprintln!("{}: begins, {times} times", fault.name);
    }
    // The same victims in every order of the faults.
    let seed = fault.name.bytes().fold(options.seed, |seed, byte| {
        seed.rotate_left(7) ^ u64::from(byte)
    });
    let mut stage = match Stage::set(brokers, fault.needs, options.rate, seed).await {
        Ok(stage) => stage,
        Err(error) => return broken(fault, &format!("the stage: {error:#}")),
    };
    let (struck, mut trouble) = strike(options, fault, times, &mut stage).await;
    if let Err(error) = stage.heal().await {
        trouble.push(format!("healing: {error:#}"));
    }
    let struck_in = start.elapsed();
    let end = stage.end().await;
    if options.verbose {
        eprintln!(
            "{}: struck for {:.0} s, settled after {:.0} s",
            fault.name,
            struck_in.as_secs_f64(),
            (start.elapsed() - struck_in).as_secs_f64()
        );
    }
    let mut verdict = verdict::judge(&end.book, &end.arrived, end.doubt, fault.promise);
    verdict.breaches.extend(trouble);
    if struck == 0 {
        let nothing = "it never struck: this says nothing";
        verdict.breaches.push(nothing.to_owned());
    }
    verdict.breaches.extend(bodies(fault, struck, &end));
    verdict.breaches.extend(end.left);
    if end.doubt > 0 && !fault.promise.lets_spoolers_doubt() {
        verdict.breaches.extend(end.given_up);
    }
    if let (Some(logs), false) = (&options.logs, verdict.breaches.is_empty())
        && let Err(error) = stage.keep_logs(&logs.join(fault.name))
    {
        verdict.breaches.push(format!("keeping logs: {error:#}"));
    }
    verdict.row.fault = fault.name.to_owned();
    verdict.row.times = struck;
    verdict.row.seconds = (start.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    verdict
}

/// How often it has struck, and what went wrong by then.
async fn strike(
    options: &Options,
    fault: &Fault,
    times: u32,
    stage: &mut Stage,
) -> (u32, Vec<String>) {
    let start = Instant::now();
    let mut struck = 0;
    while struck < times {
        match (fault.strike)(stage).await {
            Ok(count) => {
                struck += count.max(1);
                if options.verbose && struck.is_multiple_of(10) {
                    let seconds = start.elapsed().as_secs();
                    eprintln!("{}: {struck} times in {seconds} s", fault.name);
                }
            }
            Err(error) => return (struck, vec![format!("after {struck} times: {error:#}")]),
        }
        stage.turn += 1;
    }
    (struck, Vec::new())
}

/// Bodies that nobody explains.
fn bodies(fault: &Fault, struck: u32, end: &End) -> Vec<String> {
    let mut breaches = Vec::new();
    let explained = match fault.abandons {
        true => u64::from(struck),
        false => 0,
    };
    if end.abandoned > explained {
        let bodies = end.abandoned;
        breaches.push(format!(
            "{bodies} bodies without a message, {explained} explained"
        ));
    }
    if end.bodies > 0 {
        breaches.push(format!(
            "{} bodies that the sweep did not remove",
            end.bodies
        ));
    }
    breaches
}

fn broken(fault: &Fault, why: &str) -> Verdict {
    let mut verdict = Verdict {
        breaches: vec![why.to_owned()],
        ..Verdict::default()
    };
    fault.name.clone_into(&mut verdict.row.fault);
    verdict
}

fn skipped(fault: &Fault, why: &str) -> Verdict {
    let mut verdict = Verdict {
        skipped: Some(why.to_owned()),
        ..Verdict::default()
    };
    fault.name.clone_into(&mut verdict.row.fault);
    verdict
}

fn say(options: &Options, fault: &Fault, verdict: &Verdict) {
    if options.verbose {
        let row = &verdict.row;
        eprintln!(
            "{}: {} times, {} accepted, {} lost, {} duplicated, {} in doubt, {:.0} s{}",
            fault.name,
            row.times,
            row.accepted,
            row.lost,
            row.duplicated,
            row.in_doubt,
            row.seconds,
            if verdict.breaches.is_empty() {
                String::new()
            } else {
                format!("; BROKEN: {}", verdict.breaches.join("; "))
            }
        );
    }
}
