//! What the peers are told to do: the same waits and holds of the same locks.
//!
//! In: the kernel. Out: programs for bpftrace, and functions for the function graph tracer. They
//! measure what level `full` measures and no more: for each lock a histogram of the waits and one
//! of the holds, the shortest way that bpftrace has for it. Threads are told apart by their task:
//! `tid` needs a kernel with PID namespaces.

/// How bpftrace hooks functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hooks {
    Kprobe,
    Fentry,
}

/// What the locks of vmalloc are on a kernel.
#[derive(Clone, Copy)]
struct Locks {
    spinlocks: &'static str,
    /// A predicate, or nothing where there are none.
    rwsems: Option<&'static str>,
}

/// A predicate on ADDRESS.
const STATIC: &str = r#"ADDRESS == kaddr("vmap_area_lock") || ADDRESS == kaddr("free_vmap_area_lock") || ADDRESS == kaddr("purge_vmap_area_lock")"#;
const INDEX_APART: &str =
    r#"ADDRESS == kaddr("free_vmap_area_lock") || ADDRESS == kaddr("purge_vmap_area_lock")"#;
const INDEX: &str = r#"ADDRESS == kaddr("vmap_area_lock")"#;
const NODES: &str = r#"ADDRESS == kaddr("free_vmap_area_lock") || (ADDRESS >= *(uint64*)kaddr("vmap_nodes") && ADDRESS < *(uint64*)kaddr("vmap_nodes") + sizeof(struct vmap_node) * *(uint32*)kaddr("nr_vmap_nodes"))"#;

fn locks(kernel: &str) -> Locks {
    let (spinlocks, rwsems) = match kernel {
        "spinlock" => (STATIC, None),
        "rwsem" => (INDEX_APART, Some(INDEX)),
        _ => (NODES, None),
    };
    Locks { spinlocks, rwsems }
}

/// The program for bpftrace.
pub(crate) fn bpftrace(kernel: &str, hooks: Hooks, statistic: &str) -> String {
    let locks = locks(kernel);
    let mut script = pair(
        hooks,
        "_raw_spin_lock",
        "_raw_spin_unlock",
        locks.spinlocks,
        statistic,
    );
    if let Some(rwsems) = locks.rwsems {
        script += &pair(hooks, "down_read", "up_read", rwsems, statistic);
        script += &pair(hooks, "down_write", "up_write", rwsems, statistic);
    }
    script
}

fn pair(hooks: Hooks, acquire: &str, release: &str, locks: &str, statistic: &str) -> String {
    let (entry, exit, lock) = match hooks {
        Hooks::Kprobe => ("kprobe:", "kretprobe:", "arg0"),
        Hooks::Fentry if acquire.starts_with("_raw") => {
            ("fentry:vmlinux:", "fexit:vmlinux:", "(uint64)args.lock")
        }
        Hooks::Fentry => ("fentry:vmlinux:", "fexit:vmlinux:", "(uint64)args.sem"),
    };
    let wanted = locks.replace("ADDRESS", lock);
    format!(
        "{entry}{acquire} /{wanted}/ {{ @lock[curtask] = {lock}; @begin[curtask] = nsecs; }} \
         {exit}{acquire} /@begin[curtask]/ {{ $now = nsecs; @wait[@lock[curtask]] = {statistic}($now - \
         @begin[curtask]); @since[@lock[curtask]] = $now; delete(@begin[curtask]); delete(@lock[curtask]); }} \
         {entry}{release} /@since[{lock}]/ {{ @hold[{lock}] = {statistic}(nsecs - \
         @since[{lock}]); delete(@since[{lock}]); }} "
    )
}

/// One probe, for what it takes to begin.
pub(crate) const ONE_PROBE: &str = "fentry:vmlinux:alloc_vmap_area { @ = count(); }";

/// Waits of every lock that is contended, with eight frames of the stack that waited.
pub(crate) const CONTENTION: &str = "\
    tracepoint:lock:contention_begin { @begin[curtask] = nsecs; @stack[curtask] = kstack(8); } \
    tracepoint:lock:contention_end /@begin[curtask]/ { \
    @wait[@stack[curtask]] = hist(nsecs - @begin[curtask]); delete(@begin[curtask]); delete(@stack[curtask]); }";

/// The functions whose calls, with all below them, show the locks of vmalloc being taken.
pub(crate) const GRAPH: [&str; 4] = [
    "alloc_vmap_area",
    "find_vmap_area",
    "remove_vm_area",
    "vfree",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lock_of_a_kernel_is_in_its_script() {
        let script = bpftrace("rwsem", Hooks::Kprobe, "hist");
        assert!(
            script.contains("kretprobe:down_write /@begin[curtask]/"),
            "{script}"
        );
        assert!(script.contains(r#"kprobe:_raw_spin_lock /arg0 == kaddr("free_vmap_area_lock")"#));
        assert!(!script.contains("ADDRESS"));
        assert!(bpftrace("6.12", Hooks::Fentry, "hist").contains("fexit:vmlinux:_raw_spin_lock"));
    }
}
