//! What is measured: one row a way of watching the same load.
//!
//! Owns the table; a new row is a new line in it. Every row is a boot of its own, so that all
//! start from the same state, and runs the same load once.

use serde_json::{Value, json};

/// How often the load is run in a boot, each time from another state of the kernel.
pub(crate) const ROUNDS: u32 = 48;

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
    /// Part of a quick run.
    pub(crate) quick: bool,
}

#[derive(Debug)]
enum How {
    /// Nothing watches.
    Nothing,
    /// The tool records, with these arguments.
    Record(&'static [&'static str]),
    /// The guest's own binary, as this wrapper.
    Wrapper(&'static str),
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
        quick: true,
    }
}

const CONTENDED: Option<&str> = Some("contended");
const FULL: Option<&str> = Some("full");

/// The name of the row that the others are differences to.
pub(crate) const BASE: &str = "none";
/// The name of its repetition.
pub(crate) const AGAIN: &str = "none-again";

pub(crate) static ROWS: [Row; 7] = [
    row(BASE, "nothing watches", None, How::Nothing),
    row(AGAIN, "the same once more", None, How::Nothing),
    row(
        "floor-contended",
        "empty programs on the hooks of level contended",
        CONTENDED,
        How::Wrapper("--bench-floor"),
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
        How::Wrapper("--bench-floor"),
    ),
    row("full", "kcore-trace record", FULL, How::Record(&[])),
    row(
        "full-unread",
        "the same, and its counters are not read meanwhile",
        FULL,
        How::Record(&["--interval", "1h"]),
    ),
];

impl Row {
    /// The row with empty programs on the same hooks.
    pub(crate) fn floor(&self) -> Option<String> {
        let level = self.level.filter(|_| matches!(self.how, How::Record(_)))?;
        Some(format!("floor-{level}"))
    }

    /// The step of a guest's script that measures it.
    pub(crate) fn step(&self, name: &str, has_module: bool) -> Value {
        let mut step = json!({ "name": name, "cpus": 1, "rounds": ROUNDS });
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
        match self.how {
            How::Nothing => (),
            How::Record(arguments) => {
                step["level"] = json!(self.level);
                step["record"] = json!(arguments);
            }
            How::Wrapper(wrapper) => {
                let level = self.level.unwrap_or_default();
                step["around"] = json!(["/proc/self/exe", wrapper, level, "--"]);
            }
        }
        step
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
            assert_eq!(
                ROWS.iter().filter(|other| other.name == row.name).count(),
                1
            );
        }
    }
}
