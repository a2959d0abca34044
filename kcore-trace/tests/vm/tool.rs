//! Running the tool as a user does, and reading what it says.
//!
//! In: arguments. Out: exit code and text, plans and reports as JSON. What several cases look at is
//! recorded once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::load as load_module;
use crate::{guest, reference, session, stuck};

/// Where the tool of this binary can be run from.
pub(crate) const EXE: &str = "/proc/self/exe";

/// The tool with these arguments, not started.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(EXE);
    command.arg(guest::TOOL).args(args).stdin(Stdio::null());
    command
}

/// What a recorder is told.
pub(crate) type Flags = &'static [&'static str];

/// Runs the tool to its end.
pub(crate) fn run(args: &[&str]) -> Result<Output> {
    end_session_before(args)?;
    command(args)
        .output()
        .with_context(|| format!("failed to run the tool with {args:?}"))
}

/// Starts the tool, with its output caught.
pub(crate) fn start(args: &[&str]) -> Result<Child> {
    end_session_before(args)?;
    let mut command = command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
        .spawn()
        .with_context(|| format!("failed to start the tool with {args:?}"))
}

/// A recorder of a case's own is the only one.
fn end_session_before(args: &[&str]) -> Result<()> {
    if args.first() == Some(&"record") {
        session::end()?;
    }
    Ok(())
}

/// Sends a signal.
pub(crate) fn signal(child: &Child, number: i32) {
    // SAFETY: the child has not been waited for, so that the id is still its own.
    unsafe { libc::kill(child.id() as i32, number) };
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

/// The folder of what cases leave behind.
static FILES: Mutex<Option<TempDir>> = Mutex::new(None);

/// A folder for files, which [`remove_files`] removes.
pub(crate) fn files() -> Result<PathBuf> {
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = match files.take() {
        Some(folder) => folder,
        None => tempfile::tempdir().context("failed to create a folder for files")?,
    };
    Ok(files.insert(folder).path().to_owned())
}

/// Leaves this machine as it was.
pub(crate) fn remove_files() -> Result<()> {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner).take();
    let removed = files.map(TempDir::close).transpose();
    removed
        .map(drop)
        .context("failed to remove the files of the cases")
}

/// A file for a recording, which is not there yet.
pub(crate) fn fresh(name: &str) -> Result<PathBuf> {
    let path = files()?.join(format!("{name}.kct"));
    std::fs::remove_file(&path).ok();
    Ok(path)
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
    pub(crate) const OPS: u64 = 20;
    pub(crate) const MAPS: u64 = MAP_PROCESSES * OPS;
    pub(crate) const VMALLOCINFOS: u64 = 4 * OPS;

    /// The arguments of `stress`; a kernel may be built without /proc/kcore.
    pub(crate) fn arguments() -> Vec<&'static str> {
        let mut args = vec!["--maps", "4", "--vmallocinfo", "4", "--ops", "20"];
        if std::path::Path::new("/proc/kcore").exists() {
            args.extend(["--kcore", "1"]);
        }
        args
    }
}

/// Records the shared load once for these flags; an error names what the tool complained of.
pub(crate) fn recorded(flags: Flags) -> Result<Report> {
    static DONE: Mutex<BTreeMap<&[&str], Result<Report, String>>> = Mutex::new(BTreeMap::new());
    let mut done = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let recorded = done.entry(flags).or_insert_with(|| {
        recorded_load(flags, &load::arguments()).map_err(|error| format!("{error:#}"))
    });
    recorded.clone().map_err(anyhow::Error::msg)
}

/// Records a load of `stress` with these flags.
pub(crate) fn recorded_load(flags: Flags, load: &[&str]) -> Result<Report> {
    session::record(flags, &[&[guest::TOOL, "stress"], load].concat())
}

/// The same, with the events of the reference on meanwhile.
pub(crate) fn recorded_watched(flags: Flags, load: &[&str]) -> Result<Report> {
    session::record(flags, &[&[reference::WATCHED, "stress"], load].concat())
}

/// Records reads of /proc/kcore that are all in the kernel at the same time, with these flags.
pub(crate) fn recorded_stuck(flags: Flags, readers: &str) -> Result<Report> {
    session::record(flags, &[stuck::READERS, readers])
}

/// Records the load that a module is, with these flags.
pub(crate) fn recorded_module(flags: Flags, module: &str, parameters: &[String]) -> Result<Report> {
    let mut load = vec![load_module::MODULE, module];
    load.extend(parameters.iter().map(String::as_str));
    session::record(flags, &load)
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
