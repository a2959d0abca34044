//! A second look at who waits for whom: the kernel's own probe events, folded when all is over.
//!
//! In: events of the calls of lock functions from `mm/vmalloc.c`, of their slow paths and of the
//! releases, with the lock, the task and the caller. Out: what readers and writers waited for each
//! other for the lock of the index. It shares nothing with the tool but the kernel: no BPF, no
//! table, no counting while it happens.
//!
//! Invariant: an event that the buffer lost is an error, and a hold that was not seen whole is none.

mod fold;
mod text;

use std::ffi::OsString;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::{guest, tool};

pub(crate) use fold::{Part, Shares};
use text::Text;

/// The first argument that makes this binary run the tool with the events on.
pub(crate) const WATCHED: &str = "--watched";

const TRACING: &str = "/sys/kernel/tracing";
const GROUP: &str = "reference";
/// Enough for all events of a load on one CPU; an overrun is an error.
const BUFFER_KB: u64 = 4 * 1024;

/// What a probe tells of a lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tells {
    /// A function that takes it was called.
    Call,
    /// The task has to wait.
    Slow,
    /// It waited no longer.
    Slowed,
    /// It releases it.
    Release,
}

use Tells::{Call, Release, Slow, Slowed};

/// The functions of `kernel/locking/`.
const PROBES: [(Tells, &str); 12] = [
    (Call, "_raw_spin_lock"),
    (Slow, "native_queued_spin_lock_slowpath"),
    (Slowed, "native_queued_spin_lock_slowpath"),
    (Release, "_raw_spin_unlock"),
    (Call, "down_read"),
    (Slow, "rwsem_down_read_slowpath"),
    (Slowed, "rwsem_down_read_slowpath"),
    (Release, "up_read"),
    (Call, "down_write"),
    (Slow, "rwsem_down_write_slowpath"),
    (Slowed, "rwsem_down_write_slowpath"),
    (Release, "up_write"),
];

fn write(path: &str, text: &str) -> Result<()> {
    let path = format!("{TRACING}/{path}");
    fs::write(&path, text).with_context(|| format!("failed to write {text} to {path}"))
}

/// Appends to a file that would be emptied otherwise.
fn append(path: &str, text: &str) -> Result<()> {
    use std::io::Write as _;
    let path = format!("{TRACING}/{path}");
    let mut file = fs::OpenOptions::new().append(true).open(&path)?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("failed to append {text} to {path}"))
}

/// The probe events, while a load is being recorded.
pub(crate) struct Reference {
    text: Text,
}

impl Reference {
    /// Whether this kernel calls a function to release a spinlock.
    pub(crate) fn sees_releases() -> Result<bool> {
        let functions = fs::read_to_string("/proc/kallsyms")?;
        Ok(functions
            .lines()
            .any(|line| line.ends_with(" _raw_spin_unlock")))
    }

    /// Nothing on a kernel where it could not tell who holds a spinlock.
    pub(crate) fn where_it_sees_releases() -> Result<Option<Self>> {
        Self::sees_releases()?.then(Self::new).transpose()
    }

    /// Sets the events up; they are on only while [`main`] runs.
    pub(crate) fn new() -> Result<Self> {
        let reference = Self {
            text: Text::read()?,
        };
        write("tracing_on", "0")?;
        write("trace", "")?;
        write("trace_clock", "x86-tsc")?;
        write("buffer_size_kb", &BUFFER_KB.to_string())?;
        for (number, (tells, function)) in PROBES.iter().enumerate() {
            let name = name(number);
            let probe = match tells {
                Slowed => format!("r64:{GROUP}/{name} {function}"),
                Slow => {
                    format!("p:{GROUP}/{name} {function} lock=%di:x64 word=+0(%di):x64")
                }
                Call | Release => {
                    format!("p:{GROUP}/{name} {function} lock=%di:x64 caller=$stack0:x64")
                }
            };
            append("kprobe_events", &probe)?;
            if matches!(tells, Call | Release) {
                write(
                    &format!("events/{GROUP}/{name}/filter"),
                    &reference.text.filter(),
                )?;
            }
            write(&format!("events/{GROUP}/{name}/enable"), "1")?;
        }
        Ok(reference)
    }

    /// What was seen since [`Self::new`], or since this was asked for before.
    pub(crate) fn shares(&self) -> Result<Shares> {
        for cpu in fs::read_dir(format!("{TRACING}/per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            let lost = |name: &str| {
                let line = stats.lines().find_map(|line| line.strip_prefix(name));
                line.is_none_or(|count| count.trim() != "0")
            };
            ensure!(
                !lost("overrun:") && !lost("dropped events:"),
                "lost events: {stats}"
            );
        }
        let trace = fs::read_to_string(format!("{TRACING}/trace"))?;
        let events: Vec<Event> = trace.lines().filter_map(Event::parse).collect();
        println!("the reference saw {} events", events.len());
        write("trace", "")?;
        fold::fold(&events, &self.text)
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let enable = format!("events/{GROUP}/enable");
        let back = [
            (enable.as_str(), "0"),
            ("kprobe_events", ""),
            ("buffer_size_kb", "64"),
            ("trace_clock", "local"),
            ("tracing_on", "1"),
        ];
        for (path, text) in back {
            if let Err(error) = write(path, text) {
                println!("{error:#}");
            }
        }
    }
}

fn name(number: usize) -> String {
    format!("e{number}")
}

/// Runs the tool with those arguments, and the events on meanwhile.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let ran = write("tracing_on", "1").and_then(|()| {
        let status = Command::new(tool::EXE)
            .arg(guest::TOOL)
            .args(arguments)
            .status()?;
        write("tracing_on", "0")?;
        ensure!(status.success(), "the load ended with {status}");
        Ok(())
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A task, or one of the idle tasks, which share a number.
type Task = (u32, u32);

struct Event {
    tells: Tells,
    function: &'static str,
    task: Task,
    at: u64,
    lock: u64,
    caller: u64,
    /// What stands in the lock.
    word: u64,
}

impl Event {
    /// `COMM-PID [CPU] FLAGS TIME: NAME: (PLACE) lock=… caller=…`
    fn parse(line: &str) -> Option<Self> {
        let (task, rest) = line.split_once(" [")?;
        let pid = task.rsplit('-').next()?.trim().parse().ok()?;
        let mut words = rest.split_ascii_whitespace();
        let cpu: u32 = words.next()?.strip_suffix(']')?.parse().ok()?;
        let at = words.nth(1)?.strip_suffix(':')?.parse().ok()?;
        let number = words.next()?.strip_prefix('e')?.strip_suffix(':')?;
        let &(tells, function) = PROBES.get(number.parse::<usize>().ok()?)?;
        let mut event = Self {
            tells,
            function,
            task: (pid, if pid == 0 { cpu } else { 0 }),
            at,
            lock: 0,
            caller: 0,
            word: 0,
        };
        for word in words {
            let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
            if let Some(lock) = word.strip_prefix("lock=") {
                event.lock = hex(lock)?;
            } else if let Some(caller) = word.strip_prefix("caller=") {
                event.caller = hex(caller)?;
            } else if let Some(word) = word.strip_prefix("word=") {
                event.word = hex(word)?;
            }
        }
        Some(event)
    }
}
