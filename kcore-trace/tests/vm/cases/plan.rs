//! What the plan says of each kernel.

use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::guest::{Guest, Outcome};
use crate::tool;

/// Kernels of the lab, by the beginning of their release, and their era.
const ERAS: [(&str, &str); 4] = [
    ("5.10.", "spinlock"),
    ("6.1.", "spinlock"),
    ("6.12.", "per-node"),
    ("7.3.", "per-node"),
];

fn strings<'a>(list: &'a Value, field: &'a str) -> impl Iterator<Item = &'a str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(move |item| item[field].as_str())
}

/// A file with the facts of this kernel: gathering them takes long under emulation.
fn facts() -> Result<String> {
    static FACTS: OnceLock<String> = OnceLock::new();
    if let Some(path) = FACTS.get() {
        return Ok(path.clone());
    }
    let path = tool::fresh("facts");
    let path = path.to_str().context("a path that is not UTF-8")?;
    let output = tool::run(&["plan", "--save-facts", path])?;
    ensure!(output.status.success(), "{}", tool::complaint(&output));
    Ok(FACTS.get_or_init(|| path.to_owned()).clone())
}

pub(crate) fn era(guest: &mut Guest) -> Result<Outcome> {
    let plan = tool::json(&["plan", "--format", "json"])?;
    let facts = facts()?;
    guest.artefact("facts.json", &std::fs::read(&facts)?)?;
    let locks: Vec<_> = strings(&plan["locks"], "lock").collect();
    let per_node = plan["era"] == "per-node";
    let release = guest.kernel_release();
    let known = ERAS.iter().find(|(start, _)| release.starts_with(start));
    // The lab's own builds all have the release of the kernel that they were made of.
    let known = guest.built_era().or(known.map(|(_, era)| *era));
    if let Some(era) = known {
        ensure!(plan["era"] == era, "era {} is not {era}", plan["era"]);
        ensure!(
            locks.contains(&"vmap_node.busy") == per_node,
            "locks: {locks:?}"
        );
        ensure!(
            locks.contains(&"vmap_area_lock") != per_node,
            "locks: {locks:?}"
        );
        ensure!(locks.contains(&"free_vmap_area_lock"), "locks: {locks:?}");
    }
    // A facts file is as good as the kernel it came from.
    let again = tool::json(&["plan", "--format", "json", "--facts", &facts])?;
    ensure!(again == plan, "the plan from the facts file is another one");
    Ok(Outcome::Passed)
}

pub(crate) fn reasons(_: &mut Guest) -> Result<Outcome> {
    let facts = facts()?;
    let plan = tool::json(&["plan", "--format", "json", "--facts", &facts])?;
    for missing in plan["coverage"]["missing"]
        .as_array()
        .context("no list of what is missing")?
    {
        ensure!(
            missing["reason"]
                .as_str()
                .is_some_and(|reason| reason.len() > 10),
            "{missing}"
        );
    }
    let text = tool::run(&["plan", "--facts", &facts])?;
    ensure!(
        text.status.success() && !text.stdout.is_empty(),
        "no plan as text"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn slow_paths_only(_: &mut Guest) -> Result<Outcome> {
    let facts = facts()?;
    for hooks in ["fentry", "kprobe"] {
        let plan = tool::json(&[
            "plan",
            "--level",
            "contended",
            "--hooks",
            hooks,
            "--facts",
            &facts,
            "--format",
            "json",
        ])?;
        let mut targets = strings(&plan["programs"], "target").peekable();
        ensure!(targets.peek().is_some(), "nothing is hooked");
        let other: Vec<_> = targets
            .filter(|target| !target.contains("slowpath"))
            .collect();
        ensure!(
            other.is_empty(),
            "an uncontended acquisition passes {other:?}"
        );
        let attaches: Vec<_> = strings(&plan["programs"], "attach").collect();
        let others = if hooks == "fentry" {
            "kprobe"
        } else {
            "fentry"
        };
        ensure!(
            !attaches.contains(&others),
            "--hooks {hooks} gave {attaches:?}"
        );
    }
    Ok(Outcome::Passed)
}
