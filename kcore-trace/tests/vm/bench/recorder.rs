//! What recording takes for itself, seen from outside.
//!
//! In: a level, a number of seconds, perhaps the word `crowd` for a machine with many CPUs that all
//! count, and a load. Out, on stdout and as JSON: the recorder's CPU time over so many
//! intervals of a second, the memory that it has, and the memory of its maps in the kernel, all from
//! /proc. Invariant: no number comes from the recorder itself.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::Wrapped;
use super::crowd::{self, Crowd, Written};

pub(super) const NAME: &str = "--bench-recorder";

const RECORDING: &str = "/tmp/recorder.kct";
const POLL: Duration = Duration::from_millis(10);

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let level = wrapped.argument(0)?;
    let seconds: u64 = wrapped.argument(1)?.parse()?;
    let crowded = wrapped.argument(2).is_ok_and(|word| word == "crowd");
    if crowded {
        crowd::announce()?;
    }
    let mut record = Command::new("/proc/self/exe")
        .args(["kcore-trace", "record", "--force", "-o", RECORDING])
        .args(["-i", "1s", "--level", level, "--"])
        .args(&wrapped.command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start the recorder")?;
    let pid = record.id();
    // The load is started when all is attached; half a second later the recorder is between ticks.
    let children = format!("/proc/{pid}/task/{pid}/children");
    while fs::read_to_string(&children).is_ok_and(|children| children.trim().is_empty()) {
        thread::sleep(POLL);
    }
    thread::sleep(Duration::from_millis(500));
    let maps = maps(pid)?;
    let ids: Vec<u32> = maps.keys().copied().collect();
    let mut crowd = crowded.then(|| Crowd::of(&ids)).transpose()?;
    let mut written = Written::default();
    if let Some(crowd) = &mut crowd {
        // What is seen for the first time takes longer, and histograms are handed out.
        for _ in 0..2 {
            crowd.turn()?;
            thread::sleep(Duration::from_secs(2));
        }
    }
    let before = cpu_ns(pid)?;
    let mut next = Instant::now();
    for _ in 0..seconds {
        if let Some(crowd) = &mut crowd {
            written = crowd.turn()?;
        }
        next += Duration::from_secs(1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let cpu_ns = cpu_ns(pid)? - before;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let maps = maps.into_values();
    let said = json!({
        "intervals": seconds,
        "cpu_ns": cpu_ns,
        "resident_kib": number(&status, "VmRSS:"),
        "resident_peak_kib": number(&status, "VmHWM:"),
        "maps": maps.len(),
        "maps_bytes": maps.sum::<u64>(),
        "series": written.series,
        "octaves": written.octaves,
        "possible_cpus": possible_cpus()?,
    });
    println!("{said}");
    // SAFETY: the recorder has not been waited for, so that the id is still its own.
    unsafe { libc::kill(pid as i32, libc::SIGTERM) };
    record.wait()?;
    fs::remove_file(RECORDING).ok();
    Ok(0)
}

/// Time on a CPU of all its threads.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the recorder is gone")? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: the kernel has no CONFIG_SCHED_INFO", path.display()))?;
        let on_cpu = text
            .split(' ')
            .next()
            .and_then(|word| word.parse::<u64>().ok());
        sum += on_cpu.context("an empty schedstat")?;
    }
    Ok(sum)
}

/// Bytes that the kernel has for each of its maps; one that several descriptors stand for is one.
fn maps(pid: u32) -> Result<BTreeMap<u32, u64>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        if let (Some(id), Some(bytes)) = (number(&text, "map_id:"), number(&text, "memlock:"))
            && number(&text, "map_type:").is_some()
        {
            maps.insert(id as u32, bytes);
        }
    }
    ensure!(!maps.is_empty(), "the recorder has no maps");
    Ok(maps)
}

/// The number behind a name in a file of /proc.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn possible_cpus() -> Result<u64> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit('-').next().unwrap_or_default();
    Ok(last.parse::<u64>().context("no range of CPUs")? + 1)
}
