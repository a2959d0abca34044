//! Running the tool as a user does, and reading what it says.
//!
//! In: arguments. Out: exit code and text, plans and reports as JSON. A recording that several
//! cases look at is made once: attaching is what takes long under emulation.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::load as load_module;
use crate::{guest, reference};

/// Where the tool of this binary can be run from.
pub(crate) const EXE: &str = "/proc/self/exe";

/// The tool with these arguments, not started.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(EXE);
    command.arg(guest::TOOL).args(args).stdin(Stdio::null());
    command
}

/// Runs the tool to its end.
pub(crate) fn run(args: &[&str]) -> Result<Output> {
    command(args)
        .output()
        .with_context(|| format!("failed to run the tool with {args:?}"))
}

/// Starts the tool, with its output caught.
pub(crate) fn start(args: &[&str]) -> Result<Child> {
    let mut command = command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
        .spawn()
        .with_context(|| format!("failed to start the tool with {args:?}"))
}

/// What the tool wrote to stderr.
pub(crate) fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Runs the tool and takes its stdout for JSON.
pub(crate) fn json(args: &[&str]) -> Result<Value> {
    let output = run(args)?;
    ensure!(output.status.success(), "{args:?}: {}", complaint(&output));
    serde_json::from_slice(&output.stdout).with_context(|| format!("{args:?}: no JSON"))
}

/// A file for a recording, which is not there yet.
pub(crate) fn fresh(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("{name}-{}.kct", std::process::id()));
    std::fs::remove_file(&path).ok();
    path
}

/// What a recording says.
pub(crate) fn report(path: &std::path::Path) -> Result<Report> {
    let path = path.to_str().context("a path that is not UTF-8")?;
    Ok(Report(json(&["report", path, "--format", "json"])?))
}

/// The load that all cases on counts share: map churn, reads of /proc/kcore and
/// /proc/vmallocinfo, each an exact number of times. The readers of /proc/vmallocinfo hold the
/// index lock long and start together, so that CPUs do wait for each other, three and more at a
/// time: the tracepoint misses the first waiter of a spinlock.
pub(crate) mod load {
    pub(crate) const MAP_PROCESSES: u64 = 4;
    pub(crate) const OPS: u64 = 100;
    pub(crate) const MAPS: u64 = MAP_PROCESSES * OPS;
    pub(crate) const VMALLOCINFOS: u64 = 4 * OPS;

    /// The arguments of the tool; a kernel may be built without /proc/kcore.
    pub(crate) fn args() -> Vec<&'static str> {
        let mut args = vec![
            "stress",
            "--maps",
            "4",
            "--vmallocinfo",
            "4",
            "--ops",
            "100",
        ];
        if std::path::Path::new("/proc/kcore").exists() {
            args.extend(["--kcore", "1"]);
        }
        args
    }
}

/// Records the shared load once for these flags; an error names what the tool complained of.
pub(crate) fn recorded(flags: &'static [&'static str]) -> Result<Report> {
    static DONE: Mutex<BTreeMap<&[&str], Result<Report, String>>> = Mutex::new(BTreeMap::new());
    let mut done = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let recorded = done
        .entry(flags)
        .or_insert_with(|| record(flags).map_err(|e| format!("{e:#}")));
    recorded.clone().map_err(anyhow::Error::msg)
}

fn record(flags: &[&str]) -> Result<Report> {
    recorded_load(flags, &load::args()[1..])
}

/// Records a load of `stress` with these flags.
pub(crate) fn recorded_load(flags: &[&str], load: &[&str]) -> Result<Report> {
    let command = [&[guest::TOOL, "stress"], load].concat();
    recorded_command(flags, &command)
}

/// The same, with the events of the reference on meanwhile.
pub(crate) fn recorded_watched(flags: &[&str], load: &[&str]) -> Result<Report> {
    let command = [&[reference::WATCHED, "stress"], load].concat();
    recorded_command(flags, &command)
}

/// Records the load that a module is, with these flags.
pub(crate) fn recorded_module(
    flags: &[&str],
    module: &str,
    parameters: &[String],
) -> Result<Report> {
    let mut command = vec![load_module::MODULE, module];
    command.extend(parameters.iter().map(String::as_str));
    recorded_command(flags, &command)
}

/// Records this binary with other arguments.
fn recorded_command(flags: &[&str], command: &[&str]) -> Result<Report> {
    let path = fresh("load");
    let file = path.to_str().context("a path that is not UTF-8")?;
    let mut args = vec!["record", "-o", file];
    args.extend(flags);
    args.extend(["--", EXE]);
    args.extend(command);
    let output = run(&args)?;
    // For whoever reads the console of a failed boot.
    println!("{}", complaint(&output));
    ensure!(output.status.success(), "{}", complaint(&output));
    let mut views = vec![vec!["report", file]];
    if flags.contains(&"--audit") {
        views.push(vec!["report", file, "--audit"]);
    }
    for view in views {
        println!("{}", String::from_utf8_lossy(&run(&view)?.stdout));
    }
    let report = report(&path);
    std::fs::remove_file(&path)?;
    report
}

/// A report, as its JSON.
#[derive(Clone, Debug)]
pub(crate) struct Report(pub(crate) Value);

impl Report {
    pub(crate) fn era(&self) -> &str {
        self.0["recording"]["kernel"]["era"]
            .as_str()
            .unwrap_or_default()
    }

    /// The count of an op, zero if it did not occur.
    pub(crate) fn op(&self, op: &str) -> u64 {
        let row = self.rows("ops").find(|row| row["op"] == op);
        row.and_then(|row| row["count"].as_u64()).unwrap_or(0)
    }

    pub(crate) fn loss(&self, what: &str) -> u64 {
        self.0["loss"][what].as_u64().unwrap_or(u64::MAX)
    }

    /// Sum of a number over the rows of a lock; of one op and intent, if they are given.
    pub(crate) fn sum(
        &self,
        lock: &str,
        op: Option<&str>,
        intent: Option<&str>,
        what: &str,
    ) -> u64 {
        let rows = self.locks(lock).filter(|row| {
            op.is_none_or(|op| row["op"] == op)
                && intent.is_none_or(|intent| row["intent"] == intent)
        });
        rows.filter_map(|row| row[what].as_u64()).sum()
    }

    pub(crate) fn acquisitions(&self, lock: &str, op: &str, intent: &str) -> u64 {
        self.sum(lock, Some(op), Some(intent), "acquisitions")
    }

    /// The rows of a lock.
    pub(crate) fn locks<'a>(&'a self, lock: &'a str) -> impl Iterator<Item = &'a Value> {
        self.rows("locks").filter(move |row| row["lock"] == lock)
    }

    pub(crate) fn rows(&self, what: &str) -> impl Iterator<Item = &Value> {
        self.rows_of(&[what])
    }

    /// The rows of a table, by the names on the way to it.
    pub(crate) fn rows_of<'a>(&'a self, way: &[&str]) -> impl Iterator<Item = &'a Value> + use<'a> {
        let table = way.iter().fold(&self.0, |value, name| &value[name]);
        table.as_array().into_iter().flatten()
    }

    /// The lock of the index of busy areas in this era.
    pub(crate) fn index_lock(&self) -> &'static str {
        if self.era() == "per-node" {
            "vmap_node.busy"
        } else {
            "vmap_area_lock"
        }
    }

    /// The lock of the areas that wait to be purged, if this kernel has one.
    pub(crate) fn lazy_lock(&self) -> Option<&'static str> {
        let has = |lock: &str| self.locks(lock).next().is_some();
        if self.era() == "per-node" {
            Some("vmap_node.lazy")
        } else {
            has("purge_vmap_area_lock").then_some("purge_vmap_area_lock")
        }
    }
}
