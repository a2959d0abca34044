//! What is measured: one row a way of watching the same load.
//!
//! Owns the table; a new row is a new line in it. Every row is a boot of its own, so that all
//! start from the same state, and runs the same load in the same rounds.

use serde_json::{Value, json};

use super::scripts::{self, Hooks};

/// How often what watches is started in a boot, and the load is run in each of its runs, each time from
/// another state of the kernel.
pub(crate) const STARTS: u32 = 4;
pub(crate) const ROUNDS_OF_START: u32 = 12;
/// How often the load is run.
pub(crate) const ROUNDS: u32 = STARTS * ROUNDS_OF_START;

/// Loops of `fix_size_alloc_test` in a round; each is one vmalloc and one vfree. The kernel purges
/// lazily freed areas after 4096 of them, and loading the module did it before: each round has its
/// purge. All rounds together are 200,000 loops.
pub(crate) const LOOPS: u32 = 4200;

/// Ops of `kcore-trace stress` in a round, where the kernel has no test module.
pub(crate) const OPS: u32 = 2000;

/// A way of watching.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What users read.
    pub(crate) about: &'static str,
    /// The level that it belongs to, if it has one.
    pub(crate) level: Option<&'static str>,
    how: How,
}

#[derive(Debug)]
enum How {
    /// Nothing watches.
    Nothing,
    /// The tool records, with these arguments.
    Record(&'static [&'static str]),
    /// Empty programs are on the hooks of the level.
    Floor,
    /// The waits and holds of the same locks.
    Bpftrace(Hooks),
    /// One probe, which counts.
    BpftraceOne,
    Klockstat,
    FunctionGraph,
    /// Nothing but this kernel, which is the other one with more in it.
    Kernel(&'static str),
}

const fn row(
    name: &'static str,
    about: &'static str,
    level: Option<&'static str>,
    how: How,
) -> Row {
    Row {
        name,
        about,
        level,
        how,
    }
}

const CONTENDED: Option<&str> = Some("contended");
const FULL: Option<&str> = Some("full");

/// The name of the row that the others are differences to.
pub(crate) const BASE: &str = "none";
/// The name of its repetition.
pub(crate) const AGAIN: &str = "none-again";
/// The name of the row with one probe of bpftrace's.
pub(crate) const ONE_PROBE: &str = "bpftrace-one";

pub(crate) static ROWS: [Row; 16] = [
    row(BASE, "nothing watches", None, How::Nothing),
    row(AGAIN, "the same once more", None, How::Nothing),
    row(
        "floor-contended",
        "empty programs on the hooks of level contended",
        CONTENDED,
        How::Floor,
    ),
    row(
        "contended",
        "kcore-trace record",
        CONTENDED,
        How::Record(&[]),
    ),
    row(
        "floor-full",
        "empty programs on the hooks of level full",
        FULL,
        How::Floor,
    ),
    row("full", "kcore-trace record", FULL, How::Record(&[])),
    row(
        "full-no-inside",
        "the same, without what happens inside holds and who reads",
        FULL,
        How::Record(&["--no-inside"]),
    ),
    row(
        "full-audit",
        "the same, with the context of every acquisition",
        FULL,
        How::Record(&["--audit"]),
    ),
    row(
        "full-stacks",
        "the same, with the stacks of the longest waits",
        FULL,
        How::Record(&["--stacks"]),
    ),
    row(
        "full-unread",
        "the same, its counters not read meanwhile",
        FULL,
        How::Record(&["--interval", "1h"]),
    ),
    row(
        "bpftrace-kprobe",
        "waits and holds of the same locks, by kprobe and kretprobe",
        None,
        How::Bpftrace(Hooks::Kprobe),
    ),
    row(
        "bpftrace-fentry",
        "the same by fentry and fexit",
        None,
        How::Bpftrace(Hooks::Fentry),
    ),
    row(
        ONE_PROBE,
        "one fentry probe on alloc_vmap_area that counts",
        None,
        How::BpftraceOne,
    ),
    row(
        "klockstat",
        "every mutex and rwsem, and no spinlock",
        None,
        How::Klockstat,
    ),
    row(
        "function_graph",
        "the kernel's tracer on four functions of vmalloc and all below them",
        None,
        How::FunctionGraph,
    ),
    row(
        "lock_stat",
        "a kernel with CONFIG_LOCK_STAT",
        None,
        How::Kernel("spinlock-lockstat"),
    ),
];

/// This binary in a guest.
const INIT: &str = "/init";

impl Row {
    /// Whether it is part of a quick run: what this tree itself is measured by.
    pub(crate) fn is_quick(&self) -> bool {
        matches!(self.how, How::Nothing | How::Record(_) | How::Floor)
    }

    /// The row with empty programs on the same hooks.
    pub(crate) fn floor(&self) -> Option<String> {
        let level = self.level.filter(|_| matches!(self.how, How::Record(_)))?;
        Some(format!("floor-{level}"))
    }

    /// Whether it needs what Debian's packages have.
    pub(crate) fn needs_peers(&self) -> bool {
        matches!(
            self.how,
            How::Bpftrace(_) | How::BpftraceOne | How::Klockstat
        )
    }

    /// The kernel that is booted for this row on that kernel; nothing, where the row is not for it.
    pub(crate) fn kernel(&self, kernel: &'static str) -> Option<&'static str> {
        let How::Kernel(other) = self.how else {
            return Some(kernel);
        };
        let what_is_more = other.strip_prefix(kernel)?;
        what_is_more.starts_with('-').then_some(other)
    }

    /// The step of a guest's script that measures it.
    pub(crate) fn step(&self, name: &str, kernel: &str, has_module: bool) -> Value {
        let mut step = json!({ "name": name, "cpus": 1, "bench": true,
            "rounds": { "starts": STARTS, "each": ROUNDS_OF_START } });
        if has_module {
            step["module"] = json!("test_vmalloc");
            step["parameters"] = json!([
                "run_test_mask=1",
                "nr_threads=1",
                format!("test_loop_count={LOOPS}"),
                "sequential_test_order=1",
            ]);
        } else {
            step["stress"] = json!(["--maps", "1", "--ops", OPS.to_string()]);
        }
        if let How::Record(arguments) = self.how {
            step["level"] = json!(self.level);
            step["record"] = json!(arguments);
        }
        if let Some(around) = self.around(kernel) {
            step["around"] = json!(around);
            step["as_one_word"] = json!(matches!(self.how, How::Bpftrace(_) | How::BpftraceOne));
        }
        step
    }

    /// What is run around the load.
    fn around(&self, kernel: &str) -> Option<Vec<String>> {
        let level = self.level.unwrap_or_default();
        let bpftrace = |script: &str| vec!["/bin/bpftrace".into(), "-e".into(), script.into()];
        let mut words: Vec<String> = match self.how {
            How::Nothing | How::Kernel(_) | How::Record(_) => return None,
            How::Floor => vec![INIT.into(), "--bench-floor".into(), level.into()],
            How::Bpftrace(hooks) => bpftrace(&scripts::bpftrace(kernel, hooks, "hist")),
            How::BpftraceOne => bpftrace(scripts::ONE_PROBE),
            How::Klockstat => vec![
                INIT.into(),
                "--bench-beside".into(),
                "/bin/klockstat".into(),
            ],
            How::FunctionGraph => {
                let mut words = vec![INIT.to_owned(), "--bench-graph".to_owned()];
                words.extend(scripts::GRAPH.map(str::to_owned));
                words
            }
        };
        let takes_one_word = matches!(self.how, How::Bpftrace(_) | How::BpftraceOne);
        words.push(if takes_one_word { "-c" } else { "--" }.into());
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_tool_has_its_floor() {
        for row in &ROWS {
            if let Some(floor) = row.floor() {
                assert!(ROWS.iter().any(|row| row.name == floor), "{floor}");
            }
        }
    }

    #[test]
    fn names_are_unique() {
        for row in &ROWS {
            let same = ROWS.iter().filter(|other| other.name == row.name);
            assert_eq!(same.count(), 1, "{}", row.name);
        }
    }

    #[test]
    fn a_row_of_another_kernel_is_for_the_one_that_it_was_made_from() {
        let row = ROWS.iter().find(|row| row.name == "lock_stat").unwrap();
        assert_eq!(row.kernel("spinlock"), Some("spinlock-lockstat"));
        assert_eq!(row.kernel("rwsem"), None);
    }

    #[test]
    fn the_load_is_what_stands_behind_the_words_around_it() {
        for row in &ROWS {
            let step = row.step("s", "spinlock", true);
            if let Some(last) = step["around"].as_array().and_then(|words| words.last()) {
                let one_word = step["as_one_word"] == true;
                assert_eq!(last, if one_word { "-c" } else { "--" }, "{}", row.name);
            }
        }
    }
}
