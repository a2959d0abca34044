//! The words of the domain: lock, kind, mode, intent, op.
//!
//! Owns their names as they stand in recordings, in JSON and on screen, and their numbers as they
//! stand in maps. A word is added at the end of its list, so that a number keeps its meaning.

/// Declares an enum that is a list of names: number ↔ variant ↔ name.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in recordings, in JSON and on screen.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The word with that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)+ _ => None }
            }

            /// The word with that number.
            pub fn from_index(index: usize) -> Option<Self> {
                Self::ALL.get(index).copied()
            }

            /// The number of the word, as it stands in maps.
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

words! {
    /// The role of a lock, not its address.
    Lock {
        /// The index of busy areas, up to 6.8 (`mm/vmalloc.c`).
        VmapArea = "vmap_area_lock",
        /// The tree of free address ranges, in every era.
        FreeVmapArea = "free_vmap_area_lock",
        /// Areas that were freed and not yet purged, up to 6.8.
        PurgeVmapArea = "purge_vmap_area_lock",
        /// The mutex that serialises purging, in every era.
        VmapPurge = "vmap_purge_lock",
        /// The lock in each `struct vmap_block` of vm_map_ram.
        VmapBlock = "vmap_block.lock",
        /// The busy tree of one node, from 6.9 on.
        NodeBusy = "vmap_node.busy",
        /// The lazily freed areas of one node, from 6.9 on.
        NodeLazy = "vmap_node.lazy",
        /// The pools of ready areas of one node, from 6.9 on.
        NodePool = "vmap_node.pool",
        /// The segment list of /proc/kcore, held for a whole read (`fs/proc/kcore.c`).
        Kclist = "kclist_lock",
    }
}

words! {
    /// What type a lock is in this kernel.
    Kind {
        Spinlock = "spinlock",
        Rwsem = "rwsem",
        Mutex = "mutex",
    }
}

words! {
    /// How the lock was taken.
    Mode {
        Exclusive = "exclusive",
        Shared = "shared",
    }
}

words! {
    /// What the site that took the lock would be under an rwsem, whatever it is today.
    Intent {
        Read = "read",
        Write = "write",
    }
}

words! {
    /// The outermost vmalloc operation that a task or an interrupt is in.
    Op {
        /// Outside every operation known here.
        Other = "other",
        /// `alloc_vmap_area` and its setup.
        Alloc = "alloc",
        /// vfree, vunmap and remove_vm_area, down to the lazy list.
        Free = "free",
        /// Look-ups of an area by address.
        Find = "find",
        /// Copying vmalloc memory out: `vread`, `vread_iter`.
        Vread = "vread",
        /// Reading /proc/vmallocinfo.
        Vmallocinfo = "vmallocinfo",
        /// Returning lazily freed areas to the free tree.
        Purge = "purge",
        MapRam = "map_ram",
        UnmapRam = "unmap_ram",
        UnmapAliases = "unmap_aliases",
        /// Areas of the per-CPU allocator.
        Pcpu = "pcpu",
    }
}

words! {
    /// A file through which vmalloc memory, or what there is of it, is read.
    Source {
        Kcore = "kcore",
        Vmallocinfo = "vmallocinfo",
    }
}

words! {
    /// Where a read of /proc/kcore copies to: the type of its iterator (`enum iter_type`,
    /// `include/linux/uio.h`).
    Destination {
        /// None of the others, or not to be told.
        Other = "other",
        /// One buffer of user memory: `read`.
        Ubuf = "ubuf",
        /// Several: `readv`.
        Iovec = "iovec",
        /// Kernel memory.
        Kvec = "kvec",
        /// Pages: `splice` and `sendfile`, from 6.5 on.
        Bvec = "bvec",
        /// A pipe: `splice` and `sendfile`, up to 6.4.
        Pipe = "pipe",
    }
}

words! {
    /// What forbids to sleep where a lock is taken: bits by number, none of them for a task that
    /// may.
    Context {
        /// Serving a softirq.
        Softirq = "softirq",
        Hardirq = "hardirq",
        Nmi = "nmi",
        /// In a task that has softirqs off.
        SoftirqsOff = "softirqs-off",
        /// By more than the vmap spinlocks that the task holds.
        PreemptionOff = "preemption-off",
        InterruptsOff = "interrupts-off",
        /// Inside a read section of RCU.
        Rcu = "rcu",
        /// Holding another vmap lock that is a spinlock.
        Spinlock = "spinlock",
    }
}

/// Numbers of the cells that count acquisitions: one per lock, mode, intent and op.
pub mod cell {
    use super::{Intent, Lock, Mode, Op};

    /// How many cells there are.
    pub const COUNT: usize = Lock::COUNT * PER_LOCK;
    /// Cells of one lock.
    pub const PER_LOCK: usize = Mode::COUNT * PER_MODE;
    /// Cells of one lock and mode.
    pub const PER_MODE: usize = Intent::COUNT * Op::COUNT;

    /// The number of a cell.
    #[inline(always)]
    pub const fn index(lock: Lock, mode: Mode, intent: Intent, op: Op) -> usize {
        ((lock.index() * Mode::COUNT + mode.index()) * Intent::COUNT + intent.index()) * Op::COUNT
            + op.index()
    }

    /// What an op does with a lock that it takes, where that does not depend on the site
    /// (`mm/vmalloc.c`, 5.10 to 7.3).
    pub const fn intent(lock: Lock, mode: Mode, op: Op) -> Option<Intent> {
        if let Mode::Shared = mode {
            return Some(Intent::Read);
        }
        match op {
            Op::Find | Op::Vread | Op::Vmallocinfo => Some(Intent::Read),
            Op::Alloc | Op::Purge | Op::UnmapAliases | Op::Pcpu => Some(Intent::Write),
            // They look an area up before they change something.
            Op::Free | Op::MapRam | Op::UnmapRam => match lock {
                Lock::VmapArea | Lock::NodeBusy => None,
                _ => Some(Intent::Write),
            },
            Op::Other => None,
        }
    }

    /// No cell: of a lock that may be none of ours.
    pub const UNKNOWN: u32 = u32::MAX;

    /// Entries of [`BY_OP`] for each lock and mode, one per op and some that nothing has.
    pub const OPS: usize = 16;
    /// The entry of [`BY_OP`] where the op alone does not tell the cell.
    pub const BY_SITE: u16 = u16::MAX;

    /// The cells of acquisitions in an op: an index is `lock * Mode::COUNT + mode`, times [`OPS`], plus
    /// the op.
    pub const BY_OP: [u16; 512] = {
        let mut cells = [BY_SITE; 512];
        let mut number = 0;
        while number < Lock::COUNT * Mode::COUNT * Op::COUNT {
            let of_mode = number / Op::COUNT;
            let lock = Lock::ALL[of_mode / Mode::COUNT];
            let mode = Mode::ALL[of_mode % Mode::COUNT];
            let op = Op::ALL[number % Op::COUNT];
            if let Some(intent) = intent(lock, mode, op) {
                cells[of_mode * OPS + op.index()] = index(lock, mode, intent, op) as u16;
            }
            number += 1;
        }
        cells
    };

    /// The words of a cell, or nothing for a number out of range.
    pub fn words(index: usize) -> Option<(Lock, Mode, Intent, Op)> {
        Some((
            Lock::from_index(index / PER_LOCK)?,
            Mode::from_index(index / PER_MODE % Mode::COUNT)?,
            Intent::from_index(index / Op::COUNT % Intent::COUNT)?,
            Op::from_index(index % Op::COUNT)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back_to_the_word() {
        for (index, &lock) in Lock::ALL.iter().enumerate() {
            assert_eq!(Lock::from_name(lock.name()), Some(lock));
            assert_eq!(Lock::from_index(index), Some(lock));
        }
        assert_eq!(Op::from_name("nothing"), None);
        assert_eq!(Op::from_index(Op::COUNT), None);
    }

    #[test]
    fn an_op_tells_the_cell_but_for_look_ups_of_what_will_change() {
        for &lock in Lock::ALL {
            for &mode in Mode::ALL {
                for &op in Op::ALL {
                    let of_mode = lock.index() * Mode::COUNT + mode.index();
                    let by_op = cell::BY_OP[of_mode * cell::OPS + op.index()];
                    match cell::intent(lock, mode, op) {
                        Some(intent) => {
                            let words = cell::words(by_op.into());
                            assert_eq!(words, Some((lock, mode, intent, op)));
                        }
                        None => {
                            assert_eq!(by_op, cell::BY_SITE);
                            assert_eq!(mode, Mode::Exclusive, "who shares a lock reads");
                        }
                    }
                }
            }
        }
        let in_free = |lock| cell::intent(lock, Mode::Exclusive, Op::Free);
        assert_eq!(in_free(Lock::VmapArea), None);
        assert_eq!(in_free(Lock::FreeVmapArea), Some(Intent::Write));
    }

    #[test]
    fn every_cell_number_leads_back_to_its_words() {
        for index in 0..cell::COUNT {
            let (lock, mode, intent, op) = cell::words(index).unwrap();
            assert_eq!(cell::index(lock, mode, intent, op), index);
        }
        assert_eq!(cell::words(cell::COUNT), None);
    }
}
