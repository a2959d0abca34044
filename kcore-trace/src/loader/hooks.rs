//! Attaching one program, and what a refusal means.
//!
//! In: a program of the object and what the plan attaches it to. Out: an attached program, or an error that
//! names the program; which program may take the place of a refused one; and the links that tell what kprobes
//! missed.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::Btf;
use aya::programs::{KProbe, Program, ProgramError};
use aya_obj::generated::bpf_prog_info;
use kcore_trace_ebpf::words::Op;

use super::LoadError;
use crate::kernel::Addresses;
use crate::plan::{Hooks, Plan, PlannedHook};
use crate::probes::{Attach, program};
use crate::syscall;

/// The kprobe that measures the same as a hook on an op.
pub(super) fn instead_of(hook: &PlannedHook) -> Option<PlannedHook> {
    Op::from_name(&hook.purpose)?;
    let attach = match hook.attach {
        Attach::Fentry => Attach::Kprobe,
        Attach::Fexit => Attach::Kretprobe,
        _ => return None,
    };
    let (stem, _) = hook.program.rsplit_once('_')?;
    Some(PlannedHook {
        attach,
        program: program(stem, attach),
        ..hook.clone()
    })
}

/// Whether a program is of the plan, or may take the place of one that is.
pub(super) fn may_be_attached(plan: &Plan, name: &str) -> bool {
    let mut hooks = plan.programs.iter();
    hooks.any(|hook| {
        hook.program == name || instead_of(hook).is_some_and(|other| other.program == name)
    })
}

/// What to do where these hooks cannot be attached.
pub(super) fn remedy(hooks: Hooks) -> &'static str {
    match hooks {
        Hooks::Fentry => "try --hooks kprobe",
        Hooks::Kprobe => "try --hooks fentry, or tracepoint",
        Hooks::Tracepoint => "try --hooks fentry, or kprobe",
    }
}

/// Loads a program and attaches it. Types are those that its target is among; nothing where the kernel has
/// none.
///
/// # Errors
///
/// The kernel refuses it, as a [`LoadError`] if it is the verifier that does.
pub(super) fn attach(
    program: &mut Program,
    hook: &PlannedHook,
    types: Option<&Btf>,
    addresses: &Addresses,
) -> Result<()> {
    let (name, target) = (&hook.program, &hook.target);
    let types = || types.context("the kernel has no BTF");
    let result = match program {
        Program::FEntry(program) => program
            .load(target, types()?)
            .and_then(|()| program.attach().map(drop)),
        Program::FExit(program) => program
            .load(target, types()?)
            .and_then(|()| program.attach().map(drop)),
        Program::BtfTracePoint(program) => program
            .load(target, types()?)
            .and_then(|()| program.attach().map(drop)),
        Program::KProbe(program) => attach_kprobe(program, target, addresses),
        _ => anyhow::bail!("program `{name}` is of a type that no plan names"),
    };
    result.map_err(|error| explain(name, error))
}

fn attach_kprobe(
    program: &mut KProbe,
    target: &str,
    addresses: &Addresses,
) -> Result<(), ProgramError> {
    program.load()?;
    let base = "_stext";
    match (addresses.by_address.get(target), addresses.bounds.get(base)) {
        (Some(address), Some(start)) => program.attach(base, address - start),
        _ => program.attach(target, 0),
    }
    .map(drop)
}

/// The links of programs, by the ids of these, that tell what their kprobes missed.
///
/// # Errors
///
/// Why it is not known of all of them, as a phrase for a person.
pub(super) fn kprobe_links(
    programs: &HashMap<u32, String>,
) -> Result<Vec<(String, OwnedFd)>, String> {
    let (mut found, mut failure) = (Vec::new(), None);
    if programs.is_empty() {
        return Ok(found);
    }
    for link in aya::programs::loaded_links() {
        let link = match link {
            Ok(link) => link,
            // Perhaps of others, and gone by now.
            Err(error) => {
                failure = Some(error.to_string());
                continue;
            }
        };
        let Some(name) = programs.get(&link.program_id()) else {
            continue;
        };
        let told = syscall::open_link(link.id())
            .and_then(|link| Ok((syscall::missed_kprobes(link.as_fd())?, link)));
        match told {
            Ok((Some(_), link)) => found.push((name.clone(), link)),
            Ok((None, _)) => return Err("this kernel does not count them (6.7 does)".into()),
            Err(error) => failure = Some(error.to_string()),
        }
    }
    if found.len() == programs.len() {
        return Ok(found);
    }
    let failure = failure.unwrap_or_else(|| "some have none".into());
    Err(format!("the kernel does not show their links ({failure})"))
}

/// Tells a refusal by the verifier from one of the attach point.
fn explain(name: &str, error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            match io_error.raw_os_error() {
                Some(libc::EACCES | libc::EINVAL | libc::E2BIG) if !log.trim().is_empty() => {
                    LoadError::Verifier {
                        program: name.to_owned(),
                        log,
                    }
                    .into()
                }
                _ => anyhow::Error::new(io_error).context(format!("failed to load `{name}`")),
            }
        }
        other => anyhow::Error::new(other).context(format!("failed to attach `{name}`")),
    }
}

pub(super) fn information(program: &Program) -> Option<bpf_prog_info> {
    syscall::program_info(program.fd().ok()?.as_fd()).ok()
}
