//! From events to shares: who held the lock whenever a task began to wait for it.
//!
//! In: the events of a load, in their order. Out: the four shares of the waits for the index.
//!
//! Invariant: a wait counts if its begin and end and the release of the lock were seen.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};

use super::Tells::{Call, Release, Slow, Slowed};
use super::text::{BUSY_ONLY, TAKERS, Text};
use super::{Event, Task};

/// Waits, and how long they took by the clock of the events.
#[derive(Clone, Copy, Default)]
pub(crate) struct Part {
    pub(crate) time: u64,
    pub(crate) waits: u64,
}

/// What readers waited for readers, readers for writers, writers for readers, writers for writers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shares([Part; 4]);

impl Shares {
    /// By their names in a report.
    pub(crate) fn by_name(&self) -> impl Iterator<Item = (&'static str, Part)> {
        let names = [
            "read_by_read",
            "read_by_write",
            "write_by_read",
            "write_by_write",
        ];
        names.into_iter().zip(self.0)
    }

    /// All time, and all waits.
    pub(crate) fn sum(&self) -> (u64, u64) {
        let parts = self.0.iter();
        parts.fold((0, 0), |(time, waits), part| {
            (time + part.time, waits + part.waits)
        })
    }
}

/// An acquisition from its call to its release.
struct Hold {
    task: Task,
    reads: bool,
    wait: Option<Wait>,
    released: u64,
}

#[derive(Clone, Copy)]
struct Wait {
    begin: u64,
    end: Option<u64>,
    /// Whether readers have the lock, by what stands in an rwsem; nothing if nobody has it, or it is
    /// none.
    readers: Option<bool>,
}

/// Shares the waits for the index out.
pub(super) fn fold(events: &[Event], text: &Text) -> Result<Shares> {
    let locks: BTreeSet<u64> = match text.index {
        Some(index) => [index].into(),
        None => {
            let calls = events.iter().filter(|event| event.tells == Call);
            let busy = calls.filter(|call| BUSY_ONLY.contains(&text.function(call.caller)));
            busy.map(|call| call.lock).collect()
        }
    };
    let mut shares = Shares::default();
    for lock in locks {
        let holds = holds(events, lock, text)?;
        for hold in &holds {
            let Some(Wait {
                begin,
                end: Some(end),
                readers,
            }) = hold.wait
            else {
                continue;
            };
            let known = || holder(&holds, hold.task, begin).map(|holder| holder.reads);
            let Some(by_reader) = readers.or_else(known) else {
                continue;
            };
            let part = &mut shares.0[usize::from(!hold.reads) * 2 + usize::from(!by_reader)];
            part.time += end - begin;
            part.waits += 1;
        }
    }
    Ok(shares)
}

/// All holds of a lock that were seen whole, in the order of their releases.
fn holds(events: &[Event], lock: u64, text: &Text) -> Result<Vec<Hold>> {
    let mut open: BTreeMap<Task, Hold> = BTreeMap::new();
    // The slow paths that a task is in, an interrupt's on top.
    let mut slow: BTreeMap<Task, Vec<u64>> = BTreeMap::new();
    let mut holds = Vec::new();
    for event in events {
        match event.tells {
            Call if event.lock == lock => {
                let function = text.function(event.caller);
                let taker = TAKERS.iter().find(|(name, _)| *name == function);
                let (_, reads) = taker.with_context(|| {
                    format!("{function} takes the index lock by {}", event.function)
                })?;
                open.insert(
                    event.task,
                    Hold {
                        task: event.task,
                        reads: *reads,
                        wait: None,
                        released: 0,
                    },
                );
            }
            Slow => {
                slow.entry(event.task).or_default().push(event.lock);
                if event.lock == lock
                    && let Some(hold) = open.get_mut(&event.task)
                {
                    hold.wait = Some(Wait {
                        begin: event.at,
                        end: None,
                        readers: readers(event),
                    });
                }
            }
            Slowed => {
                let of = slow.get_mut(&event.task).and_then(Vec::pop);
                if of == Some(lock)
                    && let Some(hold) = open.get_mut(&event.task)
                    && let Some(wait) = &mut hold.wait
                {
                    wait.end = Some(event.at);
                }
            }
            Release if event.lock == lock => {
                if let Some(mut hold) = open.remove(&event.task) {
                    hold.released = event.at;
                    holds.push(hold);
                }
            }
            Call | Release => (),
        }
    }
    Ok(holds)
}

/// Whether it is readers that an rwsem is held by, as it says itself (`kernel/locking/rwsem.c`, 5.3 to
/// 7.3): the lowest bit is a writer's, readers are counted from the ninth on, the one that has just
/// come among them.
fn readers(slow: &Event) -> Option<bool> {
    let came = match slow.function {
        "rwsem_down_read_slowpath" => 1,
        "rwsem_down_write_slowpath" => 0,
        _ => return None,
    };
    let readers = slow.word << 1 >> 9;
    match slow.word & 1 {
        0 if readers > came => Some(true),
        0 => None,
        _ => Some(false),
    }
}

/// Who had the lock when another task began to wait for it. Holds follow each other in the order of
/// their releases: who releases it next has it, or is the one that it is changing hands to; unless
/// that is the waiter, who waits for the last one to let go of it.
fn holder(holds: &[Hold], waiter: Task, at: u64) -> Option<&Hold> {
    let next = holds.partition_point(|hold| hold.released <= at);
    let heir = holds.get(next).filter(|heir| heir.task != waiter);
    heir.or_else(|| holds[..next].last())
}
