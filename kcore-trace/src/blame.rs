//! What readers and writers waited for each other.
//!
//! In: waits by waiter and holder. Out: for each lock the time that readers waited for readers,
//! readers for writers and so on, and what an rwsem could change about it. A wait is put down to one
//! holder whole, also the part of it that others in the queue had: what an rwsem could save is told
//! as exactly as that. Invariant: a holder that is not known is neither, and all parts of a lock
//! together are the time that was waited for it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use kcore_trace_ebpf::words::{Intent, Kind, Lock, Mode};
use serde::Serialize;

use crate::model::{Blame, CellKey, Header, Level, Measured, saturating_sum};
use crate::plan::Hooks;
use crate::{units, words};

/// The waits for one lock that was waited for, or that readers shared, by what waiter and holder would
/// be under an rwsem: `read_by_write` is what readers waited for writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BlameShares {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    #[serde(serialize_with = "words::optional")]
    pub kind: Option<Kind>,
    pub read_by_read: Part,
    pub read_by_write: Part,
    pub write_by_read: Part,
    pub write_by_write: Part,
    /// The holder is not known.
    pub unknown: Part,
    /// What an rwsem did save; null of a lock that is none, or where nobody looked.
    pub saved: Option<Saved>,
}

/// What readers did not wait for each other, since the lock is an rwsem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// Acquisitions by readers.
    pub acquisitions: u64,
    /// Those that shared the lock when they had it: with a spinlock each would have waited, but for
    /// the first of readers that were woken together, and but for readers that were just giving way to
    /// a writer. So that many waits it saved at most.
    pub joined: u64,
}

/// A part of the waits for a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    pub waits: u64,
    pub wait_sum_ns: u64,
}

/// What readers and writers waited for each other.
///
/// # Errors
///
/// Why holders are not known.
pub(crate) fn shares(
    header: &Header,
    measured: &Measured,
) -> Result<Vec<BlameShares>, &'static str> {
    if header.level != Level::Full || header.hooks != Hooks::Fentry.name() {
        return Err("holders are followed at level full by fentry only");
    }
    fold(&header.kinds, header.inside, measured)
        .ok_or("recorded by a version that did not ask for holders")
}

/// What an rwsem saved of the waits of readers.
fn saved(lock: Lock, measured: &Measured) -> Saved {
    let shared = |key: &CellKey| key.lock == lock && key.mode == Mode::Shared;
    let cells = measured.cells.iter().filter(|(key, _)| shared(key));
    let inside = measured.inside.iter().filter(|(key, _)| shared(key));
    Saved {
        acquisitions: saturating_sum(cells.map(|(_, cell)| cell.acquisitions)),
        joined: saturating_sum(inside.map(|(_, inside)| inside.joined)),
    }
}

fn fold(
    kinds: &BTreeMap<Lock, Kind>,
    inside: bool,
    measured: &Measured,
) -> Option<Vec<BlameShares>> {
    let waits = measured.cells.values().any(|cell| cell.contended > 0);
    if waits && measured.blame.is_empty() {
        return None;
    }
    let nobody_waited = |lock| {
        let saved = || saved(lock, measured);
        BlameShares {
            lock,
            kind: kinds.get(&lock).copied(),
            read_by_read: Part::default(),
            read_by_write: Part::default(),
            write_by_read: Part::default(),
            write_by_write: Part::default(),
            unknown: Part::default(),
            saved: (inside && is_shared_index(lock, kinds)).then(saved),
        }
    };
    let mut shares: BTreeMap<Lock, BlameShares> = BTreeMap::new();
    let index = nobody_waited(Lock::VmapArea);
    if index.saved.is_some_and(|saved| saved.joined > 0) {
        shares.insert(index.lock, index);
    }
    for (key, &Blame { waits, wait_sum_ns }) in &measured.blame {
        let of_lock = shares
            .entry(key.lock)
            .or_insert_with(|| nobody_waited(key.lock));
        let holder = key.holder.map(|holder| holder.intent);
        let part = match (key.waiter.intent, holder) {
            (Intent::Read, Some(Intent::Read)) => &mut of_lock.read_by_read,
            (Intent::Read, Some(Intent::Write)) => &mut of_lock.read_by_write,
            (Intent::Write, Some(Intent::Read)) => &mut of_lock.write_by_read,
            (Intent::Write, Some(Intent::Write)) => &mut of_lock.write_by_write,
            (Intent::Read | Intent::Write, None) => &mut of_lock.unknown,
        };
        part.waits = part.waits.saturating_add(waits);
        part.wait_sum_ns = part.wait_sum_ns.saturating_add(wait_sum_ns);
    }
    let mut shares: Vec<_> = shares.into_values().collect();
    shares.sort_by_key(|shares| (Reverse(shares.wait_sum_ns()), shares.lock));
    Some(shares)
}

/// Whether it is the index, and an rwsem.
fn is_shared_index(lock: Lock, kinds: &BTreeMap<Lock, Kind>) -> bool {
    lock == Lock::VmapArea && kinds.get(&lock) == Some(&Kind::Rwsem)
}

impl BlameShares {
    pub(crate) fn parts(&self) -> [(&'static str, Part); 5] {
        [
            ("readers for readers", self.read_by_read),
            ("readers for writers", self.read_by_write),
            ("writers for readers", self.write_by_read),
            ("writers for writers", self.write_by_write),
            ("for somebody unknown", self.unknown),
        ]
    }

    pub(crate) fn wait_sum_ns(&self) -> u64 {
        saturating_sum(self.parts().map(|(_, part)| part.wait_sum_ns))
    }

    /// Who waited for whom, in a sentence.
    pub(crate) fn sentence(&self) -> String {
        if self.parts().iter().all(|(_, part)| part.waits == 0) {
            return format!("{}: nobody waited", self.lock);
        }
        let all = self.wait_sum_ns();
        let parts = self.parts();
        let happened = parts.iter().filter(|(_, part)| part.waits > 0);
        let parts = happened.map(|(who, part)| {
            let share = units::share(part.wait_sum_ns, all);
            format!("{who} {share}")
        });
        let parts: Vec<_> = parts.collect();
        format!("{}: {} of the time waited", self.lock, parts.join(", "))
    }

    /// What an rwsem could save, or what is left where it is one; of the locks that readers take.
    pub(crate) fn verdict(&self) -> Option<String> {
        let share = units::share(self.read_by_read.wait_sum_ns, self.wait_sum_ns());
        let lock = self.lock;
        match (lock, self.kind?) {
            (Lock::VmapArea | Lock::NodeBusy, Kind::Spinlock) => Some(format!(
                "An rwsem could save at most {share} of the time waited for {lock}: what readers \
                 waited for readers."
            )),
            (Lock::VmapArea, Kind::Rwsem) => {
                let saved = self.saved.map_or(String::new(), |saved| {
                    let Saved {
                        acquisitions,
                        joined,
                    } = saved;
                    format!(
                        "it saved readers at most {}, {} of their acquisitions: those shared it with \
                         other readers. ",
                        units::counted(joined, "wait"),
                        units::share(joined, acquisitions)
                    )
                });
                Some(format!(
                    "{lock} is an rwsem: {saved}Readers still waited for readers {share} of the \
                     time, behind a writer in the queue."
                ))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kcore_trace_ebpf::words::Op;

    use super::*;
    use crate::model::{BlameKey, Cell, Inside, Purpose};

    const LOOKS: Purpose = Purpose {
        intent: Intent::Read,
        op: Op::Vread,
    };
    const ADDS: Purpose = Purpose {
        intent: Intent::Write,
        op: Op::Alloc,
    };

    fn kinds(kind: Kind) -> BTreeMap<Lock, Kind> {
        [(Lock::VmapArea, kind)].into()
    }

    /// Milliseconds that were waited in all, by waiter and holder.
    fn measured(waits: &[(Purpose, Option<Purpose>, u64)]) -> Measured {
        let blame = waits.iter().map(|&(waiter, holder, ms)| {
            let key = BlameKey {
                lock: Lock::VmapArea,
                waiter,
                holder,
            };
            let wait_sum_ns = ms * 1_000_000;
            (
                key,
                Blame {
                    waits: 2,
                    wait_sum_ns,
                },
            )
        });
        Measured {
            blame: blame.collect(),
            ..Measured::default()
        }
    }

    fn contended() -> BTreeMap<CellKey, Cell> {
        let key = CellKey {
            lock: Lock::VmapArea,
            mode: Mode::Exclusive,
            intent: Intent::Write,
            op: Op::Alloc,
        };
        let cell = Cell {
            contended: 1,
            ..Cell::default()
        };
        [(key, cell)].into()
    }

    #[test]
    fn what_an_rwsem_could_save_is_what_readers_waited_for_readers() {
        let waits = [
            (LOOKS, Some(LOOKS), 10),
            (LOOKS, Some(ADDS), 20),
            (ADDS, Some(LOOKS), 30),
            (ADDS, Some(ADDS), 40),
        ];
        let shares = fold(&kinds(Kind::Spinlock), false, &measured(&waits)).unwrap();
        assert_eq!(
            shares[0].sentence(),
            "vmap_area_lock: readers for readers 10.0 %, readers for writers 20.0 %, writers for \
             readers 30.0 %, writers for writers 40.0 % of the time waited"
        );
        assert_eq!(
            shares[0].verdict().unwrap(),
            "An rwsem could save at most 10.0 % of the time waited for vmap_area_lock: what \
             readers waited for readers."
        );
    }

    #[test]
    fn an_rwsem_is_not_told_what_an_rwsem_could_save() {
        let waits = [(LOOKS, Some(ADDS), 3), (ADDS, None, 1)];
        let shares = fold(&kinds(Kind::Rwsem), false, &measured(&waits)).unwrap();
        assert_eq!(shares[0].unknown.wait_sum_ns, 1_000_000);
        assert_eq!(shares[0].saved, None);
        let verdict = shares[0].verdict().unwrap();
        assert!(!verdict.contains("could save"), "{verdict}");
    }

    #[test]
    fn an_rwsem_is_told_what_it_saved() {
        let reader = CellKey {
            lock: Lock::VmapArea,
            mode: Mode::Shared,
            intent: Intent::Read,
            op: Op::Vread,
        };
        let cell = Cell {
            acquisitions: 400,
            ..Cell::default()
        };
        let inside = Inside {
            joined: 100,
            ..Inside::default()
        };
        let measured = Measured {
            cells: [(reader, cell)].into(),
            inside: [(reader, inside)].into(),
            ..measured(&[(ADDS, Some(LOOKS), 3)])
        };
        let shares = fold(&kinds(Kind::Rwsem), true, &measured).unwrap();
        assert_eq!(
            shares[0].verdict().unwrap(),
            "vmap_area_lock is an rwsem: it saved readers at most 100 waits, 25.0 % of their \
             acquisitions: those shared it with other readers. Readers still waited for readers 0 % of the \
             time, behind a writer in the queue."
        );
        let shares = fold(&kinds(Kind::Spinlock), true, &measured).unwrap();
        assert_eq!(shares[0].saved, None);
    }

    #[test]
    fn a_holder_that_nothing_was_asked_about_is_not_nobody() {
        let kinds = kinds(Kind::Spinlock);
        let older = Measured {
            cells: contended(),
            ..Measured::default()
        };
        assert!(fold(&kinds, false, &older).is_none());
        let calm = Measured::default();
        assert!(fold(&kinds, false, &calm).unwrap().is_empty());
    }
}
