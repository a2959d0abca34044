//! A plan as text for a person: what will be seen, through which hooks, and what will not.
//!
//! In: a [`Plan`] and the facts it was made from. Out: lines, written to any writer.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::kernel::Facts;
use crate::plan::{FoundBy, Plan, PlannedHook};

impl Plan {
    /// Writes the plan.
    pub fn write_text(&self, facts: &Facts, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "kernel     {} ({})", facts.release, self.era.name())?;
        writeln!(out, "spinlocks  {}", facts.spinlocks)?;
        if let Some(lockdown) = &facts.lockdown {
            writeln!(out, "lockdown   {lockdown}")?;
        }
        writeln!(
            out,
            "level      {}, by {}",
            self.level.name(),
            self.hooks.name()
        )?;
        self.write_locks(out)?;
        self.write_hooks(out)?;
        self.write_missing(out)
    }

    fn write_locks(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\nlocks that will be seen")?;
        for planned in &self.locks {
            let found_by = match planned.found_by {
                FoundBy::Symbol => "by its symbol",
                FoundBy::Node => "by its place in the array of nodes",
                FoundBy::CallSite => "by the function that takes it",
            };
            let what = match (planned.waits, planned.holds) {
                (true, true) => "waits and holds",
                (true, false) => "waits",
                (false, true) => "holds",
                (false, false) => "acquisitions",
            };
            let (lock, kind) = (planned.lock, planned.kind);
            writeln!(out, "  {lock:<22} {kind:<9} {what:<16} {found_by}")?;
        }
        Ok(())
    }

    fn write_hooks(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\nhooks ({} programs)", self.programs.len())?;
        for (purpose, hooks) in by_purpose(&self.programs) {
            let hooks: Vec<_> = hooks.into_iter().collect();
            let mut lines = wrap(&hooks, 78).into_iter();
            writeln!(out, "  {purpose:<22} {}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(out, "  {:<22} {line}", "")?;
            }
        }
        Ok(())
    }

    fn write_missing(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.coverage.missing.is_empty() {
            return writeln!(out, "\nnothing is missing");
        }
        writeln!(out, "\nmissing")?;
        let hooks = self.coverage.missing.iter().map(|missing| &missing.hook);
        let width = hooks.map(String::len).max().unwrap_or(0);
        for missing in &self.coverage.missing {
            writeln!(out, "  {:<width$}  {}", missing.hook, missing.reason)?;
        }
        Ok(())
    }
}

/// The hooks of each purpose, one entry per function: `fentry+fexit vfree`.
fn by_purpose(programs: &[PlannedHook]) -> Vec<(&str, Vec<String>)> {
    let mut order = Vec::new();
    let mut targets: BTreeMap<&str, Vec<(&str, Vec<&str>)>> = BTreeMap::new();
    for hook in programs {
        if !order.contains(&hook.purpose.as_str()) {
            order.push(&hook.purpose);
        }
        let of_purpose = targets.entry(&hook.purpose).or_default();
        match of_purpose
            .iter_mut()
            .find(|(target, _)| *target == hook.target)
        {
            Some((_, attaches)) => attaches.insert(0, hook.attach.name()),
            None => of_purpose.push((&hook.target, vec![hook.attach.name()])),
        }
    }
    let text = |(target, attaches): &(&str, Vec<&str>)| format!("{} {target}", attaches.join("+"));
    order
        .into_iter()
        .map(|purpose| (purpose, targets[purpose].iter().map(text).collect()))
        .collect()
}

fn wrap(items: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut() {
            Some(line) if line.len() + item.len() + 2 <= width => {
                line.push_str(", ");
                line.push_str(item);
            }
            _ => lines.push(item.clone()),
        }
    }
    lines
}
