//! The plan of each kernel of the lab, from the facts that the lab took down there.
//!
//! A new kernel is two files: `plans/NAME.facts.json`, as `kcore-trace plan --save-facts` writes
//! it, and `golden/plan-NAME.txt`, written by a run with `UPDATE_GOLDEN=1` and then read by a person.

use std::fs;
use std::path::PathBuf;

use kcore_trace::kernel::{Era, Facts, FunctionFact, TEST_AND_SET};
use kcore_trace::model::{HoldCoverage, Level, WaitCoverage};
use kcore_trace::plan::{Hooks, Plan, PlanError, Request};
use kcore_trace_ebpf::words::{Kind, Lock};

use crate::report::assert_golden;

const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "7.3", "6.18-locked-down"];

fn facts(kernel: &str) -> Facts {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let text = fs::read_to_string(folder.join(format!("{kernel}.facts.json")));
    let text = text.expect("the facts are in the repository");
    serde_json::from_str(&text).expect("they are facts")
}

fn plan(kernel: &str, level: Level, hooks: Option<Hooks>) -> Result<Plan, PlanError> {
    let request = Request {
        level,
        hooks,
        ..Request::default()
    };
    Plan::choose(&facts(kernel), &request)
}

fn chosen(facts: &Facts, level: Level) -> Plan {
    let request = Request {
        level,
        ..Request::default()
    };
    Plan::choose(facts, &request).expect("something can be measured")
}

/// Gives a function other names, or takes it away.
fn rename(facts: &mut Facts, from: &str, to: &[&str]) {
    let fact = facts.functions.remove(from).expect("the kernel has it");
    for name in to {
        facts.functions.insert((*name).into(), fact);
    }
}

/// The programs on a function.
fn programs<'a>(plan: &'a Plan, target: &str) -> Vec<&'a str> {
    let hooks = plan.programs.iter().filter(|hook| hook.target == target);
    hooks.map(|hook| hook.program.as_str()).collect()
}

/// Why something is missing.
fn reason<'a>(plan: &'a Plan, hook: &str) -> Option<&'a str> {
    let mut missing = plan.coverage.missing.iter();
    let found = missing.find(|missing| missing.hook == hook)?;
    Some(&found.reason)
}

fn text(plan: &Plan, facts: &Facts) -> String {
    let mut text = Vec::new();
    plan.write_text(facts, &mut text)
        .expect("writing to memory succeeds");
    String::from_utf8(text).expect("a plan is text")
}

fn full(kernel: &str) -> Plan {
    plan(kernel, Level::Full, None).expect("every kernel of the lab can be measured")
}

#[test]
fn every_kernel_of_the_lab_has_the_plan_that_was_read() {
    for kernel in KERNELS {
        let name = format!("plan-{kernel}.txt");
        assert_golden(&name, &text(&full(kernel), &facts(kernel)));
    }
}

#[test]
fn the_era_decides_which_locks_there_are() {
    for (kernel, era) in [
        ("5.10", Era::Spinlock),
        ("6.1", Era::Spinlock),
        ("6.12", Era::PerNode),
        ("7.3", Era::PerNode),
    ] {
        let plan = full(kernel);
        assert_eq!(plan.era, era);
        assert_eq!(plan.lock(Lock::VmapArea).is_some(), era == Era::Spinlock);
        assert_eq!(plan.lock(Lock::NodeBusy).is_some(), era == Era::PerNode);
        assert_eq!(plan.hooks, Hooks::Fentry);
    }
}

#[test]
fn the_era_of_the_rwsem_series_is_told_by_the_lock_of_a_block() {
    let mut facts = facts("6.1");
    let mut block = facts.vmap_block.unwrap();
    block.kind = Kind::Mutex;
    facts.vmap_block = Some(block);
    assert_eq!(facts.era(), Era::Rwsem);
    let plan = Plan::choose(&facts, &Request::default()).unwrap();
    assert_eq!(plan.lock(Lock::VmapArea).unwrap().kind, Kind::Rwsem);
    assert_eq!(plan.lock(Lock::VmapBlock).unwrap().kind, Kind::Mutex);
    let vread = facts.functions.remove("vread").unwrap();
    facts.functions.insert("vread_iter".into(), vread);
    assert_eq!(facts.era(), Era::RwsemIter);
}

#[test]
fn spinlock_holds_are_missing_where_the_unlock_is_inlined() {
    let plan = full("5.10");
    assert_eq!(plan.coverage.holds, HoldCoverage::Partial);
    assert!(plan.without_holds().contains(&Lock::VmapArea));
    assert!(!plan.without_holds().contains(&Lock::VmapPurge));
    assert!(
        plan.coverage
            .missing
            .iter()
            .any(|missing| missing.hook == "_raw_spin_unlock")
    );
}

#[test]
fn the_segment_list_of_kcore_is_missing_where_it_is_a_percpu_rwsem() {
    assert!(full("6.12").lock(Lock::Kclist).is_some());
    let plan = full("7.3");
    assert!(plan.lock(Lock::Kclist).is_none());
    assert!(
        plan.coverage
            .missing
            .iter()
            .any(|missing| missing.hook == "kclist_lock")
    );
}

#[test]
fn level_contended_hooks_nothing_but_slow_paths() {
    for kernel in ["5.10", "6.1", "6.12", "7.3"] {
        for hooks in [Hooks::Fentry, Hooks::Kprobe] {
            let plan = plan(kernel, Level::Contended, Some(hooks)).unwrap();
            assert_eq!(plan.coverage.waits, WaitCoverage::SlowPath);
            assert_eq!(plan.coverage.holds, HoldCoverage::None);
            assert!(
                plan.programs
                    .iter()
                    .all(|hook| hook.target.contains("slowpath"))
            );
        }
    }
}

#[test]
fn a_slow_path_by_which_no_known_kernel_takes_our_locks_is_hooked_at_level_full_alone() {
    let killable = "__mutex_lock_killable_slowpath";
    let plan = plan("6.1", Level::Contended, None).unwrap();
    assert!(programs(&plan, killable).is_empty());
    assert!(plan.without_waits().is_empty());
    assert_eq!(programs(&full("6.1"), killable), ["mutexslowk_fe"]);
}

#[test]
fn a_kernel_that_refuses_fentry_and_kprobes_is_watched_by_tracepoint() {
    let plan = full("6.18-locked-down");
    assert_eq!(plan.hooks, Hooks::Tracepoint);
    assert_eq!(plan.coverage.waits, WaitCoverage::Tracepoint);
    let missing = |hook: &str| {
        plan.coverage
            .missing
            .iter()
            .any(|missing| missing.hook == hook)
    };
    assert!(missing("fentry") && missing("kprobe") && missing("holds"));
}

#[test]
fn by_tracepoint_spinlocks_that_show_no_wait_are_not_listed() {
    let mut facts = facts("6.18-locked-down");
    facts.spinlocks = TEST_AND_SET.into();
    let plan = chosen(&facts, Level::Full);
    assert!(reason(&plan, "all spinlock waits").is_some());
    assert!(plan.lock(Lock::VmapPurge).is_some());
    let mut kinds = plan.locks.iter().map(|planned| planned.kind);
    assert!(kinds.all(|kind| kind != Kind::Spinlock));
}

#[test]
fn hooks_that_were_asked_for_and_cannot_be_had_are_an_error() {
    let refused = plan("6.18-locked-down", Level::Full, Some(Hooks::Fentry));
    assert!(matches!(
        refused,
        Err(PlanError::Refused {
            hooks: Hooks::Fentry,
            ..
        })
    ));
    let refused = plan("5.10", Level::Full, Some(Hooks::Tracepoint));
    assert!(matches!(
        refused,
        Err(PlanError::Refused {
            hooks: Hooks::Tracepoint,
            ..
        })
    ));
}

#[test]
fn a_kernel_that_hides_what_is_needed_or_is_realtime_is_refused_with_a_remedy() {
    let mut hidden = facts("6.12");
    hidden.addresses_hidden = true;
    let error = Plan::choose(&hidden, &Request::default()).unwrap_err();
    assert!(error.to_string().contains("kptr_restrict"));
    let mut unreadable = facts("6.12");
    unreadable.memory_unreadable = true;
    let error = Plan::choose(&unreadable, &Request::default()).unwrap_err();
    assert!(error.to_string().contains("lockdown=integrity"));
    let mut realtime = facts("6.12");
    realtime.realtime = true;
    let error = Plan::choose(&realtime, &Request::default()).unwrap_err();
    assert!(error.to_string().contains("PREEMPT_RT"));
}

#[test]
fn a_kernel_without_btf_is_watched_by_kprobe() {
    let mut facts = facts("6.1");
    facts.btf = false;
    let plan = Plan::choose(&facts, &Request::default()).unwrap();
    assert_eq!(plan.hooks, Hooks::Kprobe);
    assert!(
        plan.coverage
            .missing
            .iter()
            .any(|missing| missing.reason.contains("BTF"))
    );
}

const NATIVE: &str = "native_queued_spin_lock_slowpath";
const PARAVIRT: &str = "__pv_queued_spin_lock_slowpath";
const ONLY: &str = "queued_spin_lock_slowpath";

#[test]
fn the_slow_path_of_spinlocks_has_another_name_where_none_is_paravirtual() {
    let mut facts = facts("6.1");
    rename(&mut facts, NATIVE, &[ONLY]);
    rename(&mut facts, PARAVIRT, &[]);
    let plan = chosen(&facts, Level::Full);
    assert_eq!(programs(&plan, ONLY), ["spinslow_fe"]);
    assert!(plan.coverage.missing.is_empty() && plan.without_waits().is_empty());
    let plan = chosen(&facts, Level::Contended);
    assert_eq!(programs(&plan, ONLY), ["spinwait_fx", "spinwait_fe"]);
    assert!(plan.lock(Lock::VmapArea).is_some());
}

#[test]
fn the_paravirtual_slow_path_of_spinlocks_is_hooked_unless_it_never_runs() {
    let mut facts = facts("6.1");
    for (spinlocks, hooks) in [
        ("native", 0),
        ("pv", 1),
        ("test-and-set", 1),
        ("unknown", 1),
    ] {
        spinlocks.clone_into(&mut facts.spinlocks);
        let plan = chosen(&facts, Level::Full);
        assert_eq!(programs(&plan, PARAVIRT).len(), hooks, "{spinlocks}");
        assert_eq!(programs(&plan, NATIVE), ["spinslow_fe"]);
        assert!(plan.coverage.missing.is_empty() && plan.without_waits().is_empty());
    }
}

#[test]
fn how_many_arguments_a_slow_path_has_matters_where_its_result_is_read() {
    let mut facts = facts("6.1");
    let slow_path = "rwsem_down_read_slowpath";
    for (args, alone) in [
        (2, ["readwait2_fx", "readwait2_fe"].as_slice()),
        (3, &["readwait_fx", "readwait_fe"]),
        (4, &[]),
    ] {
        facts.functions.get_mut(slow_path).unwrap().args = Some(args);
        let contended = chosen(&facts, Level::Contended);
        assert_eq!(programs(&contended, slow_path), alone);
        let full = chosen(&facts, Level::Full);
        assert_eq!(programs(&full, slow_path), ["readslow_fe"]);
    }
}

#[test]
fn what_calls_the_chosen_slow_path_is_not_hooked_besides_it() {
    let mut facts = facts("6.1");
    rename(&mut facts, NATIVE, &[NATIVE, ONLY]);
    let plan = chosen(&facts, Level::Full);
    assert_eq!(programs(&plan, NATIVE), ["spinslow_fe"]);
    assert!(programs(&plan, ONLY).is_empty());
}

#[test]
fn locks_whose_slow_path_cannot_be_hooked_are_seen_without_their_waits() {
    let mut facts = facts("6.1");
    rename(&mut facts, NATIVE, &[]);
    let plan = chosen(&facts, Level::Full);
    let spinlocks = [Lock::VmapArea, Lock::FreeVmapArea, Lock::PurgeVmapArea];
    assert!(
        spinlocks
            .iter()
            .all(|lock| plan.without_waits().contains(lock))
    );
    assert!(!plan.without_waits().contains(&Lock::VmapPurge));
    assert!(plan.lock(Lock::VmapArea).is_some_and(|lock| lock.holds));
    let told = reason(&plan, NATIVE).unwrap();
    assert!(
        told.ends_with("so spinlock waits that pass it are not seen"),
        "{told}"
    );
    assert!(text(&plan, &facts).contains("vmap_area_lock         spinlock  holds  "));
}

#[test]
fn level_contended_lists_no_lock_that_it_cannot_see() {
    let mut facts = facts("6.1");
    rename(&mut facts, NATIVE, &[]);
    rename(&mut facts, PARAVIRT, &[]);
    let plan = chosen(&facts, Level::Contended);
    assert!(plan.lock(Lock::VmapArea).is_none());
    assert!(plan.lock(Lock::VmapPurge).is_some());
    assert!(reason(&plan, NATIVE).is_some());
    for (name, fact) in &mut facts.functions {
        if name.contains("slowpath") {
            *fact = FunctionFact::default();
        }
    }
    let request = Request {
        level: Level::Contended,
        ..Request::default()
    };
    let refused = Plan::choose(&facts, &request);
    assert!(matches!(refused, Err(PlanError::Nothing(_))));
}

#[test]
fn a_slow_path_whose_arguments_nobody_knows_is_hooked_once() {
    let mut facts = facts("6.1");
    facts.btf = false;
    for fact in facts.functions.values_mut() {
        fact.args = None;
    }
    let plan = chosen(&facts, Level::Full);
    assert_eq!(programs(&plan, "rwsem_down_read_slowpath").len(), 2);
}

const PURGE: &str = "__purge_vmap_area_lazy";
const PURGE_CLONE: &str = "__purge_vmap_area_lazy.isra.0";

#[test]
fn an_op_that_the_compiler_renamed_is_hooked_by_kprobe() {
    let mut facts = facts("6.1");
    rename(&mut facts, PURGE, &[]);
    rename(&mut facts, "alloc_vmap_area", &[]);
    let clone = FunctionFact {
        symbols: 1,
        args: None,
    };
    for name in [PURGE_CLONE, "alloc_vmap_area.constprop.0"] {
        facts.functions.insert(name.into(), clone);
    }
    let plan = chosen(&facts, Level::Full);
    assert_eq!(plan.hooks, Hooks::Fentry);
    assert_eq!(programs(&plan, PURGE_CLONE), ["purge_kp", "purge_kr"]);
    assert_eq!(programs(&plan, "alloc_vmap_area.constprop.0").len(), 2);
    facts.refusals.kprobe = Some("this kernel has no kprobe events".into());
    let plan = chosen(&facts, Level::Full);
    assert!(reason(&plan, PURGE_CLONE).is_some_and(|reason| reason.contains("BTF")));
}

#[test]
fn an_op_without_a_hook_is_missing() {
    let mut facts = facts("6.12");
    rename(&mut facts, "alloc_vmap_area", &[]);
    rename(&mut facts, "vmalloc_info_show", &[]);
    rename(&mut facts, "s_stop", &[]);
    facts.functions.get_mut("vm_map_ram").unwrap().symbols = 2;
    let plan = chosen(&facts, Level::Full);
    let absent = "alloc_vmap_area: this kernel has no such function, or it is inlined everywhere";
    assert_eq!(reason(&plan, "alloc"), Some(absent));
    let several = "vm_map_ram: 2 functions have that name";
    assert_eq!(reason(&plan, "map_ram"), Some(several));
    assert!(reason(&plan, "vmallocinfo").is_some());
    // Another function of it is hooked.
    assert_eq!(reason(&plan, "purge"), None);
}

#[test]
fn mutexes_that_are_taken_by_another_function_are_not_seen() {
    let mut facts = facts("6.1");
    rename(&mut facts, "mutex_lock", &["mutex_lock_nested"]);
    for how in ["", "killable_", "interruptible_"] {
        rename(&mut facts, &format!("__mutex_lock_{how}slowpath"), &[]);
    }
    let full = chosen(&facts, Level::Full);
    let contended = chosen(&facts, Level::Contended);
    for (plan, function) in [(&full, "mutex_lock"), (&contended, "__mutex_lock_slowpath")] {
        assert!(plan.lock(Lock::VmapPurge).is_none());
        assert!(plan.lock(Lock::VmapArea).is_some());
        assert!(
            reason(plan, function)
                .unwrap()
                .contains("CONFIG_DEBUG_LOCK_ALLOC")
        );
    }
    assert!(programs(&full, "mutex_unlock").is_empty());
}

#[test]
fn a_lost_slow_path_takes_the_waits_and_its_other_end_with_it() {
    let facts = Facts {
        spinlocks: "unknown".into(),
        ..facts("6.1")
    };
    let lose = |level| {
        let mut plan = chosen(&facts, level);
        let mut hooks = plan.programs.iter();
        let index = hooks.position(|hook| hook.target == NATIVE).unwrap();
        assert!(!plan.relies_on(&plan.programs[index]));
        plan.lose(index, "the kernel refused it".into());
        assert_eq!(reason(&plan, NATIVE), Some("the kernel refused it"));
        assert!(programs(&plan, NATIVE).is_empty());
        plan
    };
    let full = lose(Level::Full);
    assert!(full.without_waits().contains(&Lock::VmapArea));
    // The paravirtual one still shows some.
    let mut contended = lose(Level::Contended);
    assert!(contended.without_waits().contains(&Lock::VmapArea));
    while !contended.programs.is_empty() {
        contended.lose(0, "the kernel refused it".into());
    }
    assert!(contended.locks.is_empty());
}

#[test]
fn half_of_a_pair_is_not_measured() {
    let plan = full("6.1");
    let relied = |target: &str| {
        let mut hooks = plan.programs.iter();
        plan.relies_on(hooks.find(|hook| hook.target == target).unwrap())
    };
    assert!(
        ["_raw_spin_lock", "_raw_spin_unlock", "mutex_unlock"]
            .iter()
            .all(|it| relied(it))
    );
    assert!(!relied("_raw_spin_trylock") && !relied("vm_map_ram"));
}
