//! The tables of what can be hooked, and of who takes the locks: data, one place each.
//!
//! [`OPS`] are the functions of each op, [`LOCK_FUNCTIONS`] those of the lock primitives,
//! [`BLOCK_SCOPES`] those that may take a `vmap_block.lock`, [`INSIDE`] those that tell what happens
//! inside holds and reads, [`AUDIT`] those whose calls are counted by context, [`SITES`] all functions
//! of `mm/vmalloc.c` and `fs/proc/kcore.c` that take a lock or are on the way to it. A function that a
//! kernel does not have is skipped; that is how one table serves all eras.
//!
//! Invariant: each row's programs exist in the object, and each program of the object is in a row.

use kcore_trace_ebpf::words::{Intent, Kind, Op};

/// How a program is attached.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    Fentry,
    Fexit,
    Kprobe,
    Kretprobe,
    /// A BTF tracepoint (`tp_btf`).
    Tracepoint,
}

impl Attach {
    /// The end of a program's name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Fentry => "fe",
            Self::Fexit => "fx",
            Self::Kprobe => "kp",
            Self::Kretprobe => "kr",
            Self::Tracepoint => "btf",
        }
    }

    /// The name as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// A function whose call is an op, or part of one.
pub struct OpFunction {
    pub op: Op,
    /// Names it has had; the first that exists is hooked.
    pub symbols: &'static [&'static str],
    /// A function that this one passes through, whose hook makes one here needless.
    pub unless: Option<&'static str>,
    /// Beginning of the names of its programs.
    pub stem: &'static str,
}

impl OpFunction {
    const fn unless(mut self, symbol: &'static str) -> Self {
        self.unless = Some(symbol);
        self
    }
}

const fn op(op: Op, symbols: &'static [&'static str], stem: &'static str) -> OpFunction {
    OpFunction {
        op,
        symbols,
        unless: None,
        stem,
    }
}

/// The functions of each op: the outermost on each path, since every hook costs. An op inside
/// another counts as the outer one.
pub const OPS: &[OpFunction] = &[
    op(Op::Alloc, &["alloc_vmap_area"], "alloc"),
    // Up to 6.1 all frees meet here, the deferred ones of interrupts too.
    op(Op::Free, &["__vunmap"], "uvunmap"),
    op(Op::Free, &["vfree"], "vfree").unless("__vunmap"),
    op(Op::Free, &["vunmap"], "vunmap").unless("__vunmap"),
    // Who else calls remove_vm_area.
    op(Op::Free, &["free_vm_area"], "freearea"),
    op(Op::Free, &["iounmap"], "iounmap"),
    op(Op::Find, &["find_vm_area"], "findvm"),
    op(Op::Find, &["find_vmap_area"], "findva"),
    op(Op::Vread, &["vread_iter", "vread"], "vread"),
    op(Op::Vmallocinfo, &["vmalloc_info_show"], "info"),
    op(Op::Purge, &["__purge_vmap_area_lazy"], "purge"),
    op(Op::Purge, &["drain_vmap_area_work"], "drain"),
    op(Op::Purge, &["purge_vmap_node"], "pnode"),
    op(Op::MapRam, &["vm_map_ram"], "mapram"),
    op(Op::UnmapRam, &["vm_unmap_ram"], "unmapram"),
    op(Op::UnmapAliases, &["vm_unmap_aliases"], "aliases"),
    op(Op::Pcpu, &["pcpu_get_vm_areas"], "pcpuget"),
    op(Op::Pcpu, &["pcpu_free_vm_areas"], "pcpufree"),
];

/// Up to 6.8 a read of /proc/vmallocinfo lasts from the call of the first to the return of the
/// second. Both names exist several times in a kernel, so they are hooked by address.
pub const SEQUENCE: [&str; 2] = ["s_start", "s_stop"];

/// Functions that may take a `vmap_block.lock`: alternatives, and the beginning of the names of
/// their programs.
pub const BLOCK_SCOPES: &[(&[&str], &str)] = &[
    (&["vm_map_ram"], "bs0"),
    (&["vm_unmap_ram"], "bs1"),
    (&["_vm_unmap_aliases", "_vm_unmap_aliases.part.0"], "bs2"),
    (
        &[
            "reclaim_and_purge_vmap_areas",
            "purge_fragmented_blocks_allcpus",
        ],
        "bs3",
    ),
    (&["vread_iter"], "bs4"),
];

/// At which ends a function is hooked; a probe at the return has no arguments, and so needs the entry
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Both,
    Entry,
    Exit,
}

impl Ends {
    /// The programs of a function that is hooked there, and by probes.
    pub const fn attaches(self) -> (&'static [Attach], &'static [Attach]) {
        use Attach::{Fentry, Fexit, Kprobe, Kretprobe};
        match self {
            Self::Both => (&[Fexit, Fentry], &[Kprobe, Kretprobe]),
            Self::Entry => (&[Fentry], &[Kprobe]),
            Self::Exit => (&[Fexit], &[Kprobe, Kretprobe]),
        }
    }
}

/// A function that tells what happens inside holds, or who reads.
pub struct InsideFunction {
    /// What it is hooked for, in the words of a plan.
    pub purpose: &'static str,
    /// Names it has had; the first that exists is hooked.
    pub symbols: &'static [&'static str],
    pub ends: Ends,
    /// How many arguments it must have: its result stands behind them.
    pub args: usize,
    /// Beginning of the names of its programs.
    pub stem: &'static str,
}

const fn inside(
    purpose: &'static str,
    symbols: &'static [&'static str],
    ends: Ends,
    args: usize,
    stem: &'static str,
) -> InsideFunction {
    InsideFunction {
        purpose,
        symbols,
        ends,
        args,
        stem,
    }
}

/// Purposes of [`INSIDE`] and [`SWITCH`].
pub mod purpose {
    /// Who reads, where to, and how.
    pub const READS: &str = "reads";
    /// Page faults, and time off the CPU.
    pub const INSIDE: &str = "inside holds";
    /// In which contexts functions are called: of [`super::AUDIT`].
    pub const AUDIT: &str = "audit";
}

/// The functions that copy out of vmalloc memory: the first without, the second with a buffer in
/// between.
pub const PASSES: &[&str] = &["vread_iter", "vread"];

/// `fs/proc/kcore.c`, `mm/vmalloc.c`, `mm/gup.c` and `mm/memory.c` of 5.10 to 7.3.
pub const INSIDE: &[InsideFunction] = &[
    inside(purpose::READS, &["read_kcore_iter"], Ends::Both, 2, "kiter"),
    inside(purpose::READS, &["read_kcore"], Ends::Both, 4, "kbuffer"),
    inside(purpose::READS, &["vread_iter"], Ends::Exit, 3, "pass"),
    inside(purpose::READS, &["vread"], Ends::Exit, 3, "bounce"),
    // What `fault_in_iov_iter_writeable` calls for each buffer; that one itself takes no hook on
    // Debian's 6.12.
    inside(
        purpose::READS,
        &["fault_in_safe_writeable"],
        Ends::Entry,
        2,
        "faultin",
    ),
    inside(
        purpose::READS,
        &["vmalloc_info_show"],
        Ends::Both,
        2,
        "vinfo",
    ),
    inside(
        purpose::INSIDE,
        &["handle_mm_fault"],
        Ends::Both,
        4,
        "fault",
    ),
];

/// Beginnings of the names of the programs on [`SEQUENCE`] that tell who reads /proc/vmallocinfo.
pub const READ_SEQUENCE: [&str; 2] = ["vstart", "vstop"];

/// The BTF tracepoint of a CPU that goes to another task, and the beginning of its program's name.
pub const SWITCH: (&str, &str) = ("sched_switch", "switch");

/// Functions whose calls the audit counts by context, in the order of their numbers, and the
/// beginnings of the names of their programs: what frees from an interrupt is put off
/// (`mm/vmalloc.c`, 5.10 to 7.3).
pub const AUDIT: &[(&str, &str)] = &[("vfree", "avfree"), ("vfree_atomic", "avfreea")];

/// A helper of programs, absent in a kernel without cgroups.
pub const CGROUP_HELPER: &str = "bpf_get_current_cgroup_id";

/// A helper that gives the task with its type, from 5.11 on (`kernel/trace/bpf_trace.c`).
pub const TASK_HELPER: &str = "bpf_get_current_task_btf";

/// A helper that gives an argument of a traced function, from 5.17 on (`kernel/trace/bpf_trace.c`); the
/// program calls it without the prefix that its name has for programs.
pub const ARGUMENT_HELPER: &str = "get_func_arg";

/// What a function of the lock primitives does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Takes the lock and returns with it.
    Acquire,
    /// Takes the lock, or returns without it.
    TryAcquire,
    Release,
    /// Is called only when the lock is taken.
    SlowPath,
}

/// What takes mutexes, and has another slow path, with CONFIG_DEBUG_LOCK_ALLOC
/// (`include/linux/mutex.h`).
pub const NESTED_MUTEX: &str = "mutex_lock_nested";

/// A function of the lock primitives (`kernel/locking/`).
pub struct LockFunction {
    pub kind: Kind,
    pub part: Part,
    /// Names that it has; the first that exists is hooked.
    pub symbols: &'static [&'static str],
    /// Beginning of the names of its programs.
    pub stem: &'static str,
    /// The same of those that see waits and nothing else of an acquisition, at level contended. A slow path
    /// that has none is hooked at level full alone: none of the locks is taken by it on any kernel that was
    /// read, 5.10 to 7.3 and the series of March 2023 (`mm/vmalloc.c`, `fs/proc/kcore.c`), and each hook makes
    /// a start at level contended longer by a twentieth.
    pub alone: Option<&'static str>,
    /// Whether measuring makes no sense without it.
    pub essential: bool,
    /// How many arguments it must have for [`Self::alone`], where that changed: its result stands behind them.
    pub args: Option<usize>,
}

impl LockFunction {
    /// The functions by which locks of a kind are taken for certain.
    pub fn acquires(kind: Kind) -> impl Iterator<Item = &'static Self> {
        Self::of(kind, Part::Acquire)
    }

    /// The slow paths without which waits of a kind are not seen.
    pub fn slow_paths(kind: Kind) -> impl Iterator<Item = &'static Self> {
        Self::of(kind, Part::SlowPath).filter(|function| function.essential)
    }

    fn of(kind: Kind, part: Part) -> impl Iterator<Item = &'static Self> {
        LOCK_FUNCTIONS
            .iter()
            .filter(move |function| (function.kind, function.part) == (kind, part))
    }

    const fn with_args(mut self, args: usize) -> Self {
        self.args = Some(args);
        self
    }

    const fn alone(mut self, stem: &'static str) -> Self {
        self.alone = Some(stem);
        self
    }
}

const fn lock(
    kind: Kind,
    part: Part,
    symbols: &'static [&'static str],
    stem: &'static str,
    essential: bool,
) -> LockFunction {
    LockFunction {
        kind,
        part,
        symbols,
        stem,
        alone: None,
        essential,
        args: None,
    }
}

/// The lock primitives, of every kind. Releases come first: what is attached earlier must not see
/// half of a pair, and a release without its acquisition is easily told.
pub const LOCK_FUNCTIONS: &[LockFunction] = &[
    lock(
        Kind::Spinlock,
        Part::Release,
        &["_raw_spin_unlock"],
        "spinunlock",
        false,
    ),
    lock(Kind::Rwsem, Part::Release, &["up_read"], "uread", false),
    lock(Kind::Rwsem, Part::Release, &["up_write"], "uwrite", false),
    lock(
        Kind::Rwsem,
        Part::Release,
        &["downgrade_write"],
        "downgrade",
        false,
    ),
    lock(
        Kind::Mutex,
        Part::Release,
        &["mutex_unlock"],
        "unmutex",
        false,
    ),
    lock(
        Kind::Spinlock,
        Part::Acquire,
        &["_raw_spin_lock"],
        "spinlock",
        true,
    ),
    lock(
        Kind::Spinlock,
        Part::TryAcquire,
        &["_raw_spin_trylock"],
        "spintry",
        false,
    ),
    lock(Kind::Rwsem, Part::Acquire, &["down_read"], "dread", true),
    lock(
        Kind::Rwsem,
        Part::TryAcquire,
        &["down_read_interruptible"],
        "dreadint",
        false,
    ),
    lock(
        Kind::Rwsem,
        Part::TryAcquire,
        &["down_read_killable"],
        "dreadkill",
        false,
    ),
    lock(
        Kind::Rwsem,
        Part::TryAcquire,
        &["down_read_trylock"],
        "dreadtry",
        false,
    ),
    lock(Kind::Rwsem, Part::Acquire, &["down_write"], "dwrite", true),
    lock(
        Kind::Rwsem,
        Part::TryAcquire,
        &["down_write_killable"],
        "dwritekill",
        false,
    ),
    lock(
        Kind::Rwsem,
        Part::TryAcquire,
        &["down_write_trylock"],
        "dwritetry",
        false,
    ),
    lock(Kind::Mutex, Part::Acquire, &["mutex_lock"], "mutex", true),
    lock(
        Kind::Mutex,
        Part::TryAcquire,
        &["mutex_lock_interruptible"],
        "mutexint",
        false,
    ),
    lock(
        Kind::Mutex,
        Part::TryAcquire,
        &["mutex_lock_killable"],
        "mutexkill",
        false,
    ),
    lock(
        Kind::Mutex,
        Part::TryAcquire,
        &["mutex_trylock"],
        "mutextry",
        false,
    ),
    lock(
        Kind::Spinlock,
        Part::SlowPath,
        // The first where the kernel can choose a paravirtual one, and there the second, if it is not
        // inlined, does nothing but call what was chosen (`kernel/locking/qspinlock.c`).
        &[
            "native_queued_spin_lock_slowpath",
            "queued_spin_lock_slowpath",
        ],
        "spinslow",
        true,
    )
    .alone("spinwait"),
    lock(
        Kind::Spinlock,
        Part::SlowPath,
        &["__pv_queued_spin_lock_slowpath"],
        "spinslowpv",
        false,
    )
    .alone("spinwaitpv"),
    // Up to 5.10 it has no count.
    lock(
        Kind::Rwsem,
        Part::SlowPath,
        &["rwsem_down_read_slowpath"],
        "readslow",
        true,
    )
    .alone("readwait2")
    .with_args(2),
    lock(
        Kind::Rwsem,
        Part::SlowPath,
        &["rwsem_down_read_slowpath"],
        "readslow",
        true,
    )
    .alone("readwait")
    .with_args(3),
    lock(
        Kind::Rwsem,
        Part::SlowPath,
        &["rwsem_down_write_slowpath"],
        "writeslow",
        true,
    )
    .alone("writewait"),
    lock(
        Kind::Mutex,
        Part::SlowPath,
        &["__mutex_lock_slowpath"],
        "mutexslow",
        true,
    )
    .alone("mutexwait"),
    lock(
        Kind::Mutex,
        Part::SlowPath,
        &["__mutex_lock_killable_slowpath"],
        "mutexslowk",
        false,
    ),
    lock(
        Kind::Mutex,
        Part::SlowPath,
        &["__mutex_lock_interruptible_slowpath"],
        "mutexslowi",
        false,
    ),
];

/// The BTF tracepoints of a wait, both of which it takes.
pub const CONTENTION: [&str; 2] = ["contention_end", "contention_begin"];

/// BTF tracepoints, and the beginning of the name of the program on each.
pub const TRACEPOINTS: &[(&str, &str)] = &[
    (CONTENTION[0], "end"),
    (CONTENTION[1], "begin"),
    ("alloc_vmap_area", "alloc"),
    ("free_vmap_area_noflush", "free"),
    ("purge_vmap_area_lazy", "purge"),
];

/// A function that takes a lock, or is on the way to it.
#[derive(Debug)]
pub struct Site {
    pub symbol: &'static str,
    /// The op that it belongs to, where none is known to be going on.
    pub op: Op,
    /// What an acquisition of the index lock in it would be under an rwsem: a look-up reads.
    pub intent: Intent,
    /// Whether it takes a `vmap_block.lock`, always exclusively.
    pub takes_block_lock: bool,
}

const fn site(symbol: &'static str, op: Op, intent: Intent) -> Site {
    Site {
        symbol,
        op,
        intent,
        takes_block_lock: false,
    }
}

const fn block_site(symbol: &'static str, op: Op, intent: Intent) -> Site {
    Site {
        symbol,
        op,
        intent,
        takes_block_lock: true,
    }
}

use Intent::{Read, Write};

/// `mm/vmalloc.c` and `fs/proc/kcore.c` of 5.10 to 7.3. What the compiler inlines into another
/// function (on Debian: `setup_vmalloc_vm`, `vb_alloc`, `vb_free`, `find_vmap_area` into
/// `vm_unmap_ram`, …) is found under that one, whose row says what it then does.
pub const SITES: &[Site] = &[
    site("alloc_vmap_area", Op::Alloc, Write),
    site("setup_vmalloc_vm", Op::Alloc, Write),
    site("__get_vm_area_node", Op::Alloc, Write),
    site("free_vmap_area", Op::Alloc, Write),
    site("free_vmap_area_noflush", Op::Free, Write),
    site("free_unmap_vmap_area", Op::Free, Write),
    site("find_unlink_vmap_area", Op::Free, Write),
    site("remove_vm_area", Op::Free, Write),
    site("__remove_vm_area", Op::Free, Write),
    // Looks the area up before it is removed.
    site("__vunmap", Op::Free, Read),
    site("__vfree", Op::Free, Read),
    site("vfree", Op::Free, Write),
    site("vunmap", Op::Free, Write),
    site("free_work", Op::Free, Write),
    site("delayed_vfree_work", Op::Free, Write),
    site("free_vm_area", Op::Free, Write),
    site("find_vmap_area", Op::Find, Read),
    site("find_vm_area", Op::Find, Read),
    site("remap_vmalloc_range_partial", Op::Find, Read),
    site("vmalloc_dump_obj", Op::Find, Read),
    site("vread", Op::Vread, Read),
    block_site("vread_iter", Op::Vread, Read),
    block_site("vmap_ram_vread_iter", Op::Vread, Read),
    site("find_vmap_area_exceed_addr", Op::Vread, Read),
    site("find_vmap_area_exceed_addr_lock", Op::Vread, Read),
    site("read_kcore", Op::Vread, Read),
    site("read_kcore_iter", Op::Vread, Read),
    site("s_start", Op::Vmallocinfo, Read),
    site("s_next", Op::Vmallocinfo, Read),
    site("s_show", Op::Vmallocinfo, Read),
    site("s_stop", Op::Vmallocinfo, Read),
    site("vmalloc_info_show", Op::Vmallocinfo, Read),
    site("show_purge_info", Op::Vmallocinfo, Read),
    site("__purge_vmap_area_lazy", Op::Purge, Write),
    site("try_purge_vmap_area_lazy", Op::Purge, Write),
    site("purge_vmap_area_lazy", Op::Purge, Write),
    block_site("reclaim_and_purge_vmap_areas", Op::Purge, Write),
    site("drain_vmap_area_work", Op::Purge, Write),
    site("purge_vmap_node", Op::Purge, Write),
    site("decay_va_pool_node", Op::Purge, Write),
    site("reclaim_list_global", Op::Purge, Write),
    site("vmap_node_shrink_scan", Op::Purge, Write),
    block_site("purge_fragmented_block", Op::Purge, Write),
    block_site("purge_fragmented_blocks", Op::Purge, Write),
    block_site("purge_fragmented_blocks_allcpus", Op::Purge, Write),
    // Takes the free tree's lock again after a break in purging.
    site("__cond_resched_lock", Op::Purge, Write),
    site("free_vmap_block", Op::UnmapRam, Write),
    block_site("new_vmap_block", Op::MapRam, Write),
    block_site("vb_alloc", Op::MapRam, Write),
    block_site("vm_map_ram", Op::MapRam, Write),
    block_site("vb_free", Op::UnmapRam, Write),
    // Its own acquisition of the index lock is an inlined look-up.
    block_site("vm_unmap_ram", Op::UnmapRam, Read),
    block_site("_vm_unmap_aliases", Op::UnmapAliases, Write),
    block_site("vm_unmap_aliases", Op::UnmapAliases, Write),
    site("pcpu_get_vm_areas", Op::Pcpu, Write),
    site("pcpu_free_vm_areas", Op::Pcpu, Write),
    site("vrealloc_node_align_noprof", Op::Other, Write),
    site("vrealloc_noprof", Op::Other, Write),
    site("kclist_add", Op::Other, Write),
    site("kcore_update_ram", Op::Other, Write),
    site("open_kcore", Op::Other, Read),
];

/// What the slow paths of a mutex share, where it is not inlined into them (`kernel/locking/mutex.c`, 5.10 to
/// 7.3).
const MUTEX_PARTS: [&str; 2] = ["__mutex_lock", "__mutex_lock_common"];

/// The functions by which spinlocks and mutexes are taken, slow paths among them: whoever calls one takes
/// the lock itself.
pub fn taken_by() -> impl Iterator<Item = &'static str> {
    let takes = |function: &&LockFunction| {
        function.kind != Kind::Rwsem && matches!(function.part, Part::Acquire | Part::SlowPath)
    };
    let functions = LOCK_FUNCTIONS.iter().filter(takes);
    let symbols = functions.flat_map(|function| function.symbols.iter().copied());
    symbols.chain(MUTEX_PARTS)
}

/// Tracepoints whose presence is a fact for people only.
pub const RELEASE_TRACEPOINT: &str = "contended_release";

/// The name of the program with that beginning and attach type.
pub fn program(stem: &str, attach: Attach) -> String {
    format!("{stem}_{}", attach.suffix())
}
