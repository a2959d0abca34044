//! What a context looks like to our hooks where a task may sleep.
//!
//! In: a session whose programs are attached. Out: the state that the audit's programs compare with.
//! A hook raises the preempt count and the depth of RCU read sections itself, by how much depends on
//! the kernel; so this task, which may sleep, takes a spinlock, and what its hook saw is what stands
//! for that. Invariant: nothing is counted before that is known.

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::Array;
use kcore_trace_ebpf::layout::{
    AUDIT_ROWS, AUDIT_STACKS, AuditRow, AuditState, AuditTable, STACK_FRAMES, audit,
};

use crate::kernel::{PerCpu, bpf};
use crate::loader::Session;
use crate::stress::maps;

/// The map that the state's section becomes.
const STATE: &str = ".bss.audit";
/// A hook can be skipped, when an interrupt is in the same program on that CPU.
const TRIES: usize = 10;

/// The table of a CPU, for the map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Table(AuditTable);

// SAFETY: a struct of integers without padding.
unsafe impl Pod for Table {}

/// The state, for the map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct State(AuditState);

// SAFETY: a struct of integers without padding.
unsafe impl Pod for State {}

/// Tells the programs where each CPU has its preempt count, where they cannot read it by its type;
/// before anything is attached.
///
/// # Errors
///
/// Those of reading kernel memory and of writing the map.
pub(crate) fn prepare(session: &mut Session, preempt_counts: PerCpu) -> Result<()> {
    let mut tables: Array<_, Table> = session.array_mut("AUDIT")?;
    for cpu in 0..tables.len() {
        let table = AuditTable {
            preempt_count_at: preempt_counts.of(cpu)?,
            busy: 0,
            used_stacks: 0,
            rows: [AuditRow::default(); AUDIT_ROWS],
            stacks: [[0; STACK_FRAMES]; AUDIT_STACKS],
        };
        let written = tables.set(cpu, Table(table), 0);
        written.context("failed to write where the preempt counts are")?;
    }
    Ok(())
}

/// What can be told, once it is known what our own hooks look like.
pub(crate) struct Told {
    /// Whether this kernel counts what has preemption off.
    pub(crate) preemption: bool,
    /// Whether the depth of RCU read sections can be read: every hook is in one.
    pub(crate) rcu: bool,
}

/// Learns what the context of a task that may sleep looks like, and has the programs begin.
///
/// # Errors
///
/// Nothing was seen of our own acquisitions, or the kernel refused to tell.
pub(crate) fn calibrate(session: &mut Session, at_entry: bool) -> Result<Told> {
    let witness = bpf::current_task().context("failed to ask for our own task")?;
    write(
        session,
        AuditState {
            witness,
            ..AuditState::default()
        },
    )?;
    let mut seen = 0;
    for _ in 0..TRIES {
        // Takes a spinlock of vmalloc, as this task.
        let map = maps::create().context("failed to make a map")?;
        drop(map);
        let map: Array<_, State> = session.array_mut(STATE)?;
        seen = map
            .get(&0, 0)
            .context("failed to read the state of the audit")?
            .0
            .seen;
        if seen != 0 {
            break;
        }
    }
    ensure!(seen != 0, "our own allocations passed no hook");
    let (preempt_count, rcu) = audit::seen(seen);
    let spinning = preempt_count & audit::PREEMPT;
    let counted = spinning != 0;
    // At its entry a spinlock has not raised the count yet.
    let own = u64::from(counted && !at_entry);
    let state = AuditState {
        ready: 1,
        witness: 0,
        seen,
        spinning,
        sleeping: spinning - own,
        rcu,
    };
    write(session, state)?;
    log::debug!("a task that may sleep looks like this to our hooks: {state:x?}");
    Ok(Told {
        preemption: counted,
        rcu: rcu > 0,
    })
}

fn write(session: &mut Session, state: AuditState) -> Result<()> {
    let mut map = session.array_mut(STATE)?;
    map.set(0, State(state), 0)
        .context("failed to write the state of the audit")
}
