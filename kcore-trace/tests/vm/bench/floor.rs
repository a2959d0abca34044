//! The least that a level can cost: an empty program on each hook of its plan.
//!
//! In: a level and a command. Out: the command's exit code. Says how many programs were attached,
//! as `kcore-trace record -v` does, so that the two can be compared.

use anyhow::{Result, bail, ensure};
use clap::ValueEnum as _;
use kcore_trace::kernel::{Addresses, Facts};
use kcore_trace::model::Level;
use kcore_trace::plan::{Plan, PlannedHook, Request};
use kcore_trace::probes::Attach;

use super::Wrapped;
use super::empty::{Attached, Empty};

pub(super) const NAME: &str = "--bench-floor";

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let level = wrapped.argument(0)?;
    let Ok(level) = Level::from_str(level, false) else {
        bail!("no level is called {level}");
    };
    let (facts, addresses) = Facts::gather()?;
    let request = Request {
        level,
        ..Request::default()
    };
    let plan = Plan::choose(&facts, &request)?;
    let empty = Empty::new(plan.programs.iter().map(|hook| hook.target.as_str()))?;
    let mut attached = Vec::new();
    for hook in &plan.programs {
        match attach(&empty, hook, &addresses) {
            Ok(link) => attached.push(link),
            Err(error) => eprintln!("{} on {}: {error:#}", hook.attach.name(), hook.target),
        }
    }
    ensure!(!attached.is_empty(), "the kernel refused every hook");
    eprintln!(
        "{} of {} empty programs attached",
        attached.len(),
        plan.programs.len()
    );
    wrapped.run()
}

/// Attaches as the loader does, which takes a kprobe where fentry is refused.
fn attach(empty: &Empty, hook: &PlannedHook, addresses: &Addresses) -> Result<Attached> {
    let target = hook.target.as_str();
    let address = addresses.by_address.get(target).copied();
    match hook.attach {
        Attach::Fentry => empty
            .fentry(target)
            .or_else(|_| empty.kprobe(target, address, false)),
        Attach::Fexit => empty
            .fexit(target)
            .or_else(|_| empty.kprobe(target, address, true)),
        Attach::Kprobe => empty.kprobe(target, address, false),
        Attach::Kretprobe => empty.kprobe(target, address, true),
        Attach::Tracepoint => empty.tracepoint(target),
    }
}
