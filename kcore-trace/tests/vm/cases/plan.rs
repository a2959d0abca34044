//! What the plan says of each kernel.

use std::collections::HashSet;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use kcore_trace::kernel::btf::{self, Btf};
use kcore_trace::kernel::symbols::{self, Symbols};
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
    let path = tool::fresh("facts")?;
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

/// Symbols of all sorts, listed in both ways that there are, and the kernel's types.
pub(crate) fn symbols(guest: &mut Guest) -> Result<Outcome> {
    /// Beside them every so-maniest of the kernel, by its plain name.
    const NAMES: [&str; 7] = [
        "_stext",
        "_end",
        "__per_cpu_offset",
        "alloc_vmap_area",
        "vfree",
        "s_start",
        "no_such_symbol",
    ];
    const EVERY: usize = 97;
    let text = std::fs::read_to_string(symbols::PATH)?;
    let core = text.lines().take_while(|line| !line.ends_with(']'));
    let names = core
        .step_by(EVERY)
        .filter_map(|line| line.split(' ').nth(2));
    let plain = names.filter_map(|name| name.split('.').next());
    let wanted: HashSet<&str> = plain.chain(NAMES).filter(|name| name.len() < 100).collect();
    ensure!(wanted.len() > 300, "only {} names", wanted.len());
    let by_text = Symbols::parse(text.as_bytes(), &wanted)?;
    let file = std::fs::read(btf::PATH)?;
    let types = Btf::parse(&file, &symbols::TYPES.into())?;
    let has_iterator = !guest.kernel_release().starts_with("5.10.");
    let by_program = match Symbols::by_program(&types, &wanted) {
        Ok(symbols) => symbols,
        Err(error) if has_iterator => return Err(error),
        Err(_) => return Ok(Outcome::Passed),
    };
    ensure!(has_iterator, "5.10 has no iterator over its symbols");
    // A program was loaded for one of them: the kernel has looked into its types.
    ensure!(
        btf::from_memory()? == file,
        "the types in memory are not those of the file"
    );
    let anchor = by_text.address("vfree", None);
    ensure!(anchor.is_some(), "vfree has no address");
    for name in wanted {
        let told = |symbols: &Symbols| {
            let ranges = symbols.ranges(name, anchor);
            (symbols.count(name), symbols.address(name, anchor), ranges)
        };
        let (text, program) = (told(&by_text), told(&by_program));
        ensure!(text == program, "{name}: {text:x?} is not {program:x?}");
    }
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
