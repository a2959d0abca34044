//! What runs on every kernel of a comparison.
//!
//! Owns the table; a new workload is a new row. Out: the script that a guest follows, as JSON in
//! its initramfs (`kcore-trace/tests/vm/script.rs` reads it).

use serde_json::{Value, json};

/// Work of an exact size.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    work: Work,
    /// Part of a quick run.
    pub(crate) quick: bool,
}

#[derive(Debug)]
enum Work {
    /// The kernel's own benchmark: mask of tests, threads, loops of each test.
    TestVmalloc { mask: u32, threads: u32, loops: u32 },
    /// `kcore-trace stress` with these arguments.
    Stress(&'static str),
}

const fn test_vmalloc(
    name: &'static str,
    about: &'static str,
    mask: u32,
    threads: u32,
    loops: u32,
) -> Workload {
    Workload {
        name,
        about,
        work: Work::TestVmalloc {
            mask,
            threads,
            loops,
        },
        quick: false,
    }
}

const fn stress(name: &'static str, about: &'static str, args: &'static str) -> Workload {
    Workload {
        name,
        about,
        work: Work::Stress(args),
        quick: false,
    }
}

impl Workload {
    const fn also_quick(mut self) -> Self {
        self.quick = true;
        self
    }

    /// CPUs of the guest that it runs in. With one, the guest's clock counts instructions, so that
    /// cycles are those of the code and not of the host; with several, CPUs compete.
    pub(crate) fn cpus(&self) -> u32 {
        match self.work {
            Work::TestVmalloc { threads, .. } => threads,
            Work::Stress(_) => 4,
        }
    }

    /// Whether it can run only where `test_vmalloc` was built: not on Debian's own kernels.
    pub(crate) fn needs_module(&self) -> bool {
        matches!(self.work, Work::TestVmalloc { .. })
    }
}

/// Fails on purpose, at an alignment that no address has.
const ALIGN_SHIFT: &str = "align_shift_alloc_test, which is meant to fail";
/// `pcpu_alloc_test` makes 35,000 objects however many loops there are, and takes as long as all
/// others together: it is run once, among all.
const PCPU: u32 = 128;
/// The mask of every test that 6.1 has.
const ALL: u32 = (1 << 10) - 1;

/// The tests of `lib/test_vmalloc.c` (6.1), each on its own as
/// `test_vmalloc.sh` does, and loads of `kcore-trace stress`. With one thread there are so many
/// loops that it matters little whether the last purge of lazily freed areas, which comes after
/// thousands of frees, falls into them.
pub(crate) static WORKLOADS: [Workload; 23] = [
    test_vmalloc("fix_size-1", "fix_size_alloc_test", 1, 1, 100_000).also_quick(),
    test_vmalloc("fix_size-4", "fix_size_alloc_test", 1, 4, 5_000).also_quick(),
    test_vmalloc("full_fit-1", "full_fit_alloc_test", 2, 1, 20_000),
    test_vmalloc("full_fit-4", "full_fit_alloc_test", 2, 4, 500),
    test_vmalloc("long_busy_list-1", "long_busy_list_alloc_test", 4, 1, 4_000),
    test_vmalloc("long_busy_list-4", "long_busy_list_alloc_test", 4, 4, 200),
    test_vmalloc("random_size-1", "random_size_alloc_test", 8, 1, 8_000),
    test_vmalloc("random_size-4", "random_size_alloc_test", 8, 4, 300),
    test_vmalloc("fix_align-1", "fix_align_alloc_test", 16, 1, 20_000),
    test_vmalloc("fix_align-4", "fix_align_alloc_test", 16, 4, 1_000),
    test_vmalloc(
        "random_size_align-1",
        "random_size_align_alloc_test",
        32,
        1,
        8_000,
    ),
    test_vmalloc(
        "random_size_align-4",
        "random_size_align_alloc_test",
        32,
        4,
        300,
    ),
    test_vmalloc("align_shift-1", ALIGN_SHIFT, 64, 1, 1),
    test_vmalloc("align_shift-4", ALIGN_SHIFT, 64, 4, 1),
    test_vmalloc(
        "kvfree_rcu_1_arg-1",
        "kvfree_rcu_1_arg_vmalloc_test",
        256,
        1,
        20_000,
    ),
    test_vmalloc(
        "kvfree_rcu_1_arg-4",
        "kvfree_rcu_1_arg_vmalloc_test",
        256,
        4,
        1_000,
    ),
    test_vmalloc(
        "kvfree_rcu_2_arg-1",
        "kvfree_rcu_2_arg_vmalloc_test",
        512,
        1,
        20_000,
    ),
    test_vmalloc(
        "kvfree_rcu_2_arg-4",
        "kvfree_rcu_2_arg_vmalloc_test",
        512,
        4,
        1_000,
    ),
    test_vmalloc(
        "all-1",
        "all of these tests, one after another",
        ALL,
        1,
        1_500,
    ),
    test_vmalloc(
        "all-4",
        "all but pcpu_alloc_test, one after another",
        ALL & !PCPU,
        4,
        100,
    ),
    stress(
        "kcore",
        "a reader of /proc/kcore against three allocators",
        "--kcore 1 --maps 3 --ops 1000",
    )
    .also_quick(),
    stress(
        "vmallocinfo",
        "a reader of /proc/vmallocinfo against three allocators",
        "--vmallocinfo 1 --maps 3 --ops 200",
    ),
    stress(
        "untouched",
        "a reader of /proc/kcore into memory that it never touched, against three allocators",
        "--kcore 1 --untouched --maps 3 --ops 1000",
    ),
];

/// The workload of this name.
pub(crate) fn named(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|workload| workload.name == name)
}

/// What a guest does: each workload first as it is, where that tells something, then recorded.
pub(crate) fn script(workloads: &[&Workload], level: &str) -> Value {
    let steps = workloads.iter().flat_map(|workload| {
        let bare = workload
            .needs_module()
            .then(|| step(workload, &untraced(workload.name), None));
        bare.into_iter()
            .chain([step(workload, workload.name, Some(level))])
    });
    Value::Array(steps.collect())
}

/// The name of the step of a workload that is not recorded.
pub(crate) fn untraced(name: &str) -> String {
    format!("{name}.untraced")
}

fn step(workload: &Workload, name: &str, level: Option<&str>) -> Value {
    match workload.work {
        Work::TestVmalloc {
            mask,
            threads,
            loops,
        } => json!({
            "name": name,
            "cpus": workload.cpus(),
            "level": level,
            "module": "test_vmalloc",
            "parameters": [
                format!("run_test_mask={mask}"),
                format!("nr_threads={threads}"),
                format!("test_loop_count={loops}"),
                "sequential_test_order=1",
            ],
        }),
        Work::Stress(args) => json!({
            "name": name,
            "cpus": workload.cpus(),
            "level": level,
            "stress": args.split(' ').collect::<Vec<_>>(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_can_be_folders() {
        for workload in &WORKLOADS {
            assert!(std::ptr::eq(named(workload.name).unwrap(), workload));
            assert!(
                workload
                    .name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
            );
        }
    }

    #[test]
    fn all_tests_are_those_that_are_run_on_their_own() {
        for (name, threads) in [("all-1", 1), ("all-4", 4)] {
            let masks = |wanted: fn(&str, &str) -> bool| {
                let masks = WORKLOADS
                    .iter()
                    .filter_map(move |workload| match workload.work {
                        Work::TestVmalloc {
                            mask, threads: own, ..
                        } => (own == threads && wanted(workload.name, name)).then_some(mask),
                        Work::Stress(_) => None,
                    });
                masks.fold(0, |all, mask| all | mask)
            };
            let alone = masks(|own, all| own != all);
            assert_eq!(masks(|own, all| own == all) & !PCPU, alone);
        }
    }

    #[test]
    fn a_benchmark_is_run_bare_before_it_is_recorded() {
        let steps = script(
            &[named("fix_size-1").unwrap(), named("kcore").unwrap()],
            "full",
        );
        let names: Vec<_> = (0..3)
            .map(|index| steps[index]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["fix_size-1.untraced", "fix_size-1", "kcore"]);
        assert!(steps[0]["level"].is_null() && steps[1]["level"] == "full");
        assert_eq!(steps[2]["stress"][0], "--kcore");
    }
}
