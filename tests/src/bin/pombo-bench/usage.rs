//! What processes use: CPU and the peak of their memory, read from `/proc`.

use std::{collections::HashMap, fs, time::Duration};

/// `utime` and its like are counted in these, on every Linux: 100 a second.
const TICK: Duration = Duration::from_millis(10);

/// A process of a contender, with all that it has started.
#[derive(Clone, Debug)]
pub struct Part {
    /// As it is called in the table.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// Counts for the sum of the contender's own processes. (The broker's does not: it is reported by itself.)
    pub own: bool,
}

impl Part {
    /// A process of the contender's own.
    pub fn own(name: &str, pid: u32) -> Self {
        Self {
            name: name.to_owned(),
            pid,
            own: true,
        }
    }

    /// One that is reported by itself.
    pub fn other(name: &str, pid: u32) -> Self {
        Self {
            own: false,
            ..Self::own(name, pid)
        }
    }
}

/// One line of `/proc/PID/stat`: its parent, and its time with that of the children it has waited for.
#[derive(Clone, Copy)]
struct Stat {
    parent: u32,
    ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, brackets too; it ends with the last one.
    let rest = text.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        parent: number(1)? as u32,
        // utime, stime, cutime, cstime
        ticks: number(11)? + number(12)? + number(13)? + number(14)?,
    })
}

/// CPU time of each part since its start, its children's included, dead ones too.
pub fn cpu(parts: &[Part]) -> Vec<Duration> {
    let all: HashMap<u32, Stat> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let belongs = |mut pid: u32, root: u32| {
        while pid != root {
            match all.get(&pid) {
                Some(stat) if stat.parent > 1 => pid = stat.parent,
                _ => return false,
            }
        }
        true
    };
    let ticks = |root: u32| -> u64 {
        let tree = all.iter().filter(|(pid, _)| belongs(**pid, root));
        tree.map(|(_, stat)| stat.ticks).sum()
    };
    parts
        .iter()
        .map(|part| TICK * u32::try_from(ticks(part.pid)).unwrap_or(u32::MAX))
        .collect()
}

/// The largest size that the process had since [`reset_peak`], in MiB.
pub fn peak_mib(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

/// From now on the peak counts anew.
pub fn reset_peak(pid: u32) {
    // 5: the peak is set back to what is resident now (proc(5)). A process that is gone has no peak.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Waits until the parts have nothing left to do, as far as their CPU tells. At most `limit`.
pub async fn quiet(parts: &[Part], limit: Duration) {
    const LOOK: Duration = Duration::from_millis(200);
    let total = || cpu(parts).iter().sum::<Duration>();
    let end = tokio::time::Instant::now() + limit;
    let mut before = total();
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(LOOK).await;
        let now = total();
        // Pings, timers and the broker's housekeeping go on.
        if now - before <= TICK * 2 {
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_this_process_is_seen() {
        let me = [Part::own("me", std::process::id())];
        let before = cpu(&me)[0];
        let start = std::time::Instant::now();
        let mut x = 1_u64;
        while cpu(&me)[0] < before + TICK * 3 {
            x = std::hint::black_box(x.wrapping_mul(3));
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        assert!(peak_mib(me[0].pid).unwrap() > 1.0);
    }
}
