//! What a comparison promises: it finds what is different, nothing else, and says how sure it is.

use std::fs;
use std::path::Path;

use kcore_trace::compare::{
    Comparison, Finding, Format, LockRow, Refusal, Role, Sampling, Side, Verdict, render,
};
use kcore_trace::distribution::{Distribution, Exact};
use kcore_trace::model::{
    Cell, CellKey, End, Header, HoldCoverage, Interval, Level, Measured, Missing, OpCell, Trailer,
    WaitCoverage,
};
use kcore_trace::recording::RecordingWriter;
use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::words::{Context, Intent, Kind, Lock, Mode, Op};
use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::tool;
use crate::report::assert_golden;
use crate::sample::{self, Dice, exclusive, key};

/// How often an op takes a lock, how often it waits, and how long that and the holds take.
#[derive(Clone, Copy, Debug)]
struct Habit {
    key: CellKey,
    per_op: f64,
    contended: f64,
    wait_ns: f64,
    hold_ns: f64,
}

/// A kernel as this test knows it: what one run of a workload does.
#[derive(Clone, Debug)]
struct Kernel {
    header: Header,
    habits: Vec<Habit>,
    /// Operations of a run, and their typical latency.
    ops: Vec<(Op, u64, f64)>,
}

const fn habit(key: CellKey, per_op: f64, contended: f64, wait_ns: f64, hold_ns: f64) -> Habit {
    Habit {
        key,
        per_op,
        contended,
        wait_ns,
        hold_ns,
    }
}

/// One spinlock for all.
fn spinlock() -> Kernel {
    use Intent::{Read, Write};
    Kernel {
        header: sample::header(),
        habits: vec![
            habit(
                exclusive(Lock::VmapArea, Write, Op::Alloc),
                2.0,
                0.14,
                2_100.0,
                310.0,
            ),
            habit(
                exclusive(Lock::VmapArea, Write, Op::Free),
                1.0,
                0.11,
                2_400.0,
                280.0,
            ),
            habit(
                exclusive(Lock::VmapArea, Read, Op::Free),
                1.0,
                0.10,
                2_200.0,
                190.0,
            ),
            habit(
                exclusive(Lock::VmapArea, Read, Op::Vread),
                1.0,
                0.18,
                3_100.0,
                41_000.0,
            ),
            habit(
                exclusive(Lock::FreeVmapArea, Write, Op::Alloc),
                1.0,
                0.02,
                900.0,
                420.0,
            ),
            habit(
                exclusive(Lock::PurgeVmapArea, Write, Op::Free),
                1.0,
                0.003,
                300.0,
                90.0,
            ),
            habit(
                exclusive(Lock::VmapPurge, Write, Op::Purge),
                1.0,
                0.0,
                0.0,
                900_000.0,
            ),
            habit(
                key(Lock::Kclist, Mode::Shared, Read, Op::Vread),
                1.0,
                0.0,
                0.0,
                45_000.0,
            ),
        ],
        ops: vec![
            (Op::Alloc, 6_000, 3_100.0),
            (Op::Free, 6_000, 2_300.0),
            (Op::Vread, 1_200, 52_000.0),
            (Op::Purge, 12, 1_100_000.0),
        ],
    }
}

/// The same index behind an rwsem.
fn rwsem() -> Kernel {
    let mut kernel = spinlock();
    kernel.header.kernel.release = "6.1.0-rwsem".into();
    kernel.header.kernel.era = "rwsem".into();
    kernel.header.kinds.insert(Lock::VmapArea, Kind::Rwsem);
    for habit in &mut kernel.habits {
        if habit.key.lock == Lock::VmapArea && habit.key.intent == Intent::Read {
            habit.key.mode = Mode::Shared;
        }
    }
    kernel
}

/// A lock for each node, short waits gone, and a look at every node for a reader.
fn per_node() -> Kernel {
    let mut kernel = spinlock();
    kernel.header.kernel.release = "6.12.9-amd64".into();
    kernel.header.kernel.era = "per-node".into();
    let kinds = &mut kernel.header.kinds;
    for lock in [Lock::VmapArea, Lock::PurgeVmapArea] {
        kinds.remove(&lock);
    }
    for lock in [Lock::NodeBusy, Lock::NodeLazy, Lock::NodePool] {
        kinds.insert(lock, Kind::Spinlock);
    }
    for habit in &mut kernel.habits {
        match habit.key.lock {
            Lock::VmapArea => {
                habit.key.lock = Lock::NodeBusy;
                (habit.contended, habit.wait_ns) = (habit.contended / 12.0, habit.wait_ns * 1.4);
                if habit.key.op == Op::Vread {
                    (habit.per_op, habit.hold_ns) = (18.0, habit.hold_ns / 15.0);
                }
            }
            Lock::PurgeVmapArea => habit.key.lock = Lock::NodeLazy,
            _ => {}
        }
    }
    kernel.habits.push(habit(
        exclusive(Lock::NodePool, Intent::Write, Op::Alloc),
        0.8,
        0.001,
        300.0,
        80.0,
    ));
    kernel
}

/// A number around zero, as an eye would draw a bell: the sum of twelve dice.
fn normal(dice: &mut Dice) -> f64 {
    let die = |dice: &mut Dice| (dice.roll() % 1_000_000) as f64 / 1e6;
    (0..12).map(|_| die(dice)).sum::<f64>() - 6.0
}

/// Durations whose logarithms are normal around that of a typical one.
fn durations(dice: &mut Dice, count: u64, typical_ns: f64) -> Distribution {
    let mut buckets = Vec::new();
    let mut exact = Exact {
        min_ns: u64::MAX,
        ..Exact::default()
    };
    for _ in 0..count {
        let ns = (typical_ns * (0.6 * normal(dice)).exp()) as u64;
        buckets.push((bucket::index(ns), 1));
        exact.count += 1;
        exact.sum_ns += ns;
        exact.min_ns = exact.min_ns.min(ns);
        exact.max_ns = exact.max_ns.max(ns);
    }
    Distribution::from_buckets(exact, buckets)
}

/// One run: every typical value is a few percent off, as runs are.
fn run(kernel: &Kernel, seed: u64) -> Measured {
    let mut dice = Dice::new(seed);
    let mut measured = Measured::default();
    let off = |dice: &mut Dice| (0.03 * normal(dice)).exp();
    for &(op, count, latency_ns) in &kernel.ops {
        let count = (count as f64 * off(&mut dice)) as u64;
        let latency_ns = latency_ns * off(&mut dice);
        let latency = durations(&mut dice, count, latency_ns);
        measured.ops.insert(op, OpCell { count, latency });
    }
    for habit in &kernel.habits {
        let count = measured.ops[&habit.key.op].count;
        let acquisitions = (count as f64 * habit.per_op) as u64;
        let contended = (acquisitions as f64 * habit.contended * off(&mut dice)) as u64;
        let (wait_ns, hold_ns) = (
            habit.wait_ns * off(&mut dice),
            habit.hold_ns * off(&mut dice),
        );
        let cell = Cell {
            acquisitions,
            contended,
            releases: acquisitions,
            wait: durations(&mut dice, contended, wait_ns),
            hold: durations(&mut dice, acquisitions, hold_ns),
            ..Cell::default()
        };
        if matches!(habit.key.lock, Lock::NodeBusy | Lock::NodeLazy) {
            let nodes = sample::spread(&cell, &[3, 1, 1, 1, 1, 1, 1, 1]);
            measured.add(&Measured {
                nodes: [(habit.key.lock, nodes)].into(),
                ..Measured::default()
            });
        }
        measured.cells.insert(habit.key, cell);
    }
    measured
}

/// Writes a recording, less the bytes that are cut off at its end.
fn write(path: &Path, header: &Header, intervals: &[Interval], cut_bytes: u64) {
    write_ended(path, header, intervals, End::Command { code: 0 });
    let size = fs::metadata(path).expect("it was written").len();
    let file = fs::OpenOptions::new().write(true).open(path);
    let file = file.expect("it was written");
    file.set_len(size - cut_bytes).expect("it shrinks");
}

/// Writes a recording that ended for this reason.
fn write_ended(path: &Path, header: &Header, intervals: &[Interval], end: End) {
    let mut writer = RecordingWriter::create(path, false, header).expect("the file is new");
    for interval in intervals {
        writer.append(interval).expect("there is space");
    }
    let trailer = Trailer {
        end,
        duration_ns: intervals.last().map_or(0, |last| last.end_ns),
        command_ns: None,
        total: writer.total().clone(),
        reduced: writer.reduced().clone(),
    };
    writer.finish(&trailer).expect("there is space");
}

/// A folder with repeats of a kernel, each of one interval.
fn repeats(kernel: &Kernel, seeds: std::ops::Range<u64>) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for seed in seeds {
        let path = folder.path().join(format!("{seed:03}.kct"));
        let interval = sample::interval(0, run(kernel, seed));
        write(&path, &kernel.header, &[interval], 0);
    }
    folder
}

/// One recording of so many intervals.
fn long(kernel: &Kernel, seeds: std::ops::Range<u64>) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = seeds.start;
    let intervals: Vec<_> = seeds
        .map(|seed| sample::interval(seed - first, run(kernel, seed)))
        .collect();
    write(
        &folder.path().join("long.kct"),
        &kernel.header,
        &intervals,
        0,
    );
    folder
}

fn open(path: impl AsRef<Path>) -> Side {
    Side::open(path.as_ref(), None).expect("it opens")
}

fn sides(baseline: &TempDir, candidate: &TempDir) -> [Side; 2] {
    [baseline, candidate].map(open)
}

fn compare(baseline: &TempDir, candidate: &TempDir) -> Comparison {
    let [baseline, candidate] = sides(baseline, candidate);
    Comparison::new(&baseline, &candidate, false).expect("they can be compared")
}

fn anyway(baseline: &TempDir, candidate: &TempDir) -> Comparison {
    let [baseline, candidate] = sides(baseline, candidate);
    Comparison::new(&baseline, &candidate, true).expect("they have rows in common")
}

fn refusal(baseline: &TempDir, candidate: &TempDir) -> Refusal {
    let [baseline, candidate] = sides(baseline, candidate);
    Comparison::new(&baseline, &candidate, false).expect_err("they must not be compared")
}

fn rendered(comparison: &Comparison, format: Format, columns: Option<u16>) -> String {
    let mut bytes = Vec::new();
    render(comparison, format, columns, &mut bytes).expect("memory takes every write");
    String::from_utf8(bytes).expect("a comparison is text")
}

fn json(comparison: &Comparison) -> Value {
    let text = rendered(comparison, Format::Json, None);
    serde_json::from_str(&text).expect("the comparison is JSON")
}

fn row(comparison: &Comparison, role: Role, op: Op, intent: Intent) -> &LockRow {
    let mut rows = comparison.locks.iter();
    let is_it = |row: &&LockRow| (row.role, row.op, row.intent) == (role, op, intent);
    rows.find(is_it).expect("there is such a row")
}

/// What was found of one number of a row.
fn finding(row: &LockRow, metric: &str) -> Finding {
    let number = json_number(row, metric);
    serde_json::from_value::<String>(number["finding"].clone())
        .ok()
        .and_then(|name| finding_named(&name))
        .expect("a finding has a name")
}

fn finding_named(name: &str) -> Option<Finding> {
    use Finding::{Better, CannotTell, Fewer, More, NoDifference, Worse};
    let all = [Better, CannotTell, Fewer, More, NoDifference, Worse];
    all.into_iter()
        .find(|finding| serde_json::to_value(finding).is_ok_and(|value| value == name))
}

fn json_number(row: &LockRow, metric: &str) -> Value {
    let numbers = serde_json::to_value(&row.numbers).expect("numbers are JSON");
    let numbers = numbers.as_array().expect("a list");
    let mut found = numbers.iter().filter(|number| number["metric"] == metric);
    found.next().expect("there is such a number").clone()
}

/// The verdicts of all rows that are on both sides.
fn verdicts(comparison: &Comparison) -> Vec<Verdict> {
    let locks = comparison.locks.iter();
    let locks = locks
        .filter(|row| !row.on_one_side())
        .map(|row| row.verdict);
    let ops = comparison.ops.iter();
    let ops = ops.filter(|row| !row.on_one_side()).map(|row| row.verdict);
    locks.chain(ops).collect()
}

/// [`spinlock`] whose holds of one row are half as long again.
fn held_longer() -> Kernel {
    let mut kernel = spinlock();
    let slow = exclusive(Lock::VmapArea, Intent::Write, Op::Free);
    let habits = kernel.habits.iter_mut();
    for habit in habits.filter(|habit| habit.key == slow) {
        habit.hold_ns *= 1.5;
    }
    kernel
}

/// Deals the recordings of a folder to two, at random.
fn split(folder: &TempDir, seed: u64) -> [TempDir; 2] {
    let mut dice = Dice::new(seed);
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    for last in (1..files.len()).rev() {
        files.swap(last, dice.roll() as usize % (last + 1));
    }
    let (first, second) = files.split_at(files.len() / 2);
    [first, second].map(|half| {
        let dealt = tempfile::tempdir().expect("a temporary folder");
        for file in half {
            let name = file.file_name().expect("a file has a name");
            fs::hard_link(file, dealt.path().join(name)).expect("one file system");
        }
        dealt
    })
}

#[test]
fn a_kernel_does_not_differ_from_itself_however_its_repeats_are_dealt() {
    for repeats_of_all in [repeats(&spinlock(), 0..12), repeats(&per_node(), 100..106)] {
        let mut all = Vec::new();
        for seed in 0..20 {
            let [first, second] = split(&repeats_of_all, seed);
            all.extend(verdicts(&compare(&first, &second)));
        }
        let same = all.iter().filter(|&&it| it == Verdict::NoDifference);
        let same = same.count();
        assert!(same * 100 >= all.len() * 95, "{same} of {}", all.len());
    }
}

#[test]
fn the_halves_of_one_recording_do_not_differ_either() {
    let mut all = Vec::new();
    for seed in 0..5 {
        let [first, second] = [0, 1].map(|half| {
            let start = (2 * seed + half) * 100;
            long(&spinlock(), start..start + 12)
        });
        all.extend(verdicts(&compare(&first, &second)));
    }
    let same = all.iter().filter(|&&it| it == Verdict::NoDifference);
    let same = same.count();
    assert!(same * 100 >= all.len() * 95, "{same} of {}", all.len());
}

#[test]
fn holds_half_as_long_again_are_found_in_their_row_and_in_no_other() {
    for seed in [0, 100, 200] {
        let baseline = repeats(&spinlock(), seed..seed + 5);
        let candidate = repeats(&held_longer(), seed + 50..seed + 55);
        let comparison = compare(&baseline, &candidate);
        let slow = row(&comparison, Role::BusyAreas, Op::Free, Intent::Write);
        assert_eq!(slow.verdict, Verdict::Worse);
        assert_eq!(finding(slow, "hold_p50_ns"), Finding::Worse);
        assert_eq!(finding(slow, "hold_mean_ns"), Finding::Worse);
        assert_eq!(finding(slow, "wait_per_op_ns"), Finding::NoDifference);
        let change = json_number(slow, "hold_p50_ns")["change"].clone();
        let [low, high] = ["low", "high"].map(|end| change[end].as_f64().expect("a number"));
        assert!(low < 0.5 && 0.5 < high, "{change}");
        assert_eq!(comparison.rows.worse, 1);
        assert!(comparison.is_regression());
        assert!(comparison.summary.contains("vmap_area_lock in free"));
        // What is worse stands first.
        assert_eq!(comparison.locks[0].verdict, Verdict::Worse);

        let back = compare(&candidate, &baseline);
        assert_eq!(back.verdict, Verdict::Better);
        assert!(!back.is_regression());
    }
}

#[test]
fn the_same_is_found_in_the_intervals_of_one_recording_each_and_that_is_said() {
    let baseline = long(&spinlock(), 0..10);
    let candidate = long(&held_longer(), 50..60);
    let comparison = compare(&baseline, &candidate);
    let slow = row(&comparison, Role::BusyAreas, Op::Free, Intent::Write);
    assert_eq!(slow.verdict, Verdict::Worse);
    assert_eq!(comparison.baseline.sampling, Sampling::Intervals);
    assert_eq!(comparison.baseline.samples, 10);
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(text.contains("each side is one recording: its samples are parts of one run"));
}

#[test]
fn one_sample_on_a_side_tells_nothing() {
    let baseline = repeats(&spinlock(), 0..5);
    let comparison = compare(&baseline, &repeats(&held_longer(), 50..51));
    assert_eq!(comparison.verdict, Verdict::CannotTell);
    assert!(
        verdicts(&comparison)
            .iter()
            .all(|&it| it == Verdict::CannotTell)
    );
    let slow = row(&comparison, Role::BusyAreas, Op::Free, Intent::Write);
    let number = json_number(slow, "hold_p50_ns");
    assert!(number["change"].is_null() && number["candidate"].is_number());
    assert_eq!(number["reason"], "candidate: there is only one sample");
    assert!(comparison.summary.contains("cannot be told"));
}

#[test]
fn no_wait_on_either_side_is_no_difference() {
    let comparison = compare(&repeats(&spinlock(), 0..3), &repeats(&spinlock(), 9..12));
    let calm = row(&comparison, Role::KcoreSegments, Op::Vread, Intent::Read);
    assert_eq!(finding(calm, "contended_share"), Finding::NoDifference);
    assert_eq!(finding(calm, "wait_per_op_ns"), Finding::NoDifference);
    assert_eq!(finding(calm, "wait_p50_ns"), Finding::CannotTell);
}

#[test]
fn waits_where_there_were_none_are_worse_and_finite() {
    let mut contended = spinlock();
    for habit in &mut contended.habits {
        if habit.key.lock == Lock::Kclist {
            (habit.contended, habit.wait_ns) = (0.2, 5_000.0);
        }
    }
    let comparison = compare(&repeats(&spinlock(), 0..5), &repeats(&contended, 9..14));
    let worse = row(&comparison, Role::KcoreSegments, Op::Vread, Intent::Read);
    assert_eq!(worse.verdict, Verdict::Worse);
    assert_eq!(finding(worse, "contended_share"), Finding::Worse);
    assert_eq!(finding(worse, "wait_per_op_ns"), Finding::Worse);
    for format in [Format::Text, Format::Markdown, Format::Json] {
        let text = rendered(&comparison, format, None);
        assert!(!text.contains("inf") && !text.contains("NaN"), "{text}");
    }
}

#[test]
fn the_interval_of_two_repeats_that_differ_widely_is_finite() {
    let noisy = |seed| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (repeat, factor) in [1.0, 10_000.0].into_iter().enumerate() {
            let mut kernel = spinlock();
            for habit in &mut kernel.habits {
                habit.hold_ns *= factor;
            }
            let path = folder.path().join(format!("{repeat}.kct"));
            let interval = sample::interval(0, run(&kernel, seed));
            write(&path, &kernel.header, &[interval], 0);
        }
        folder
    };
    let comparison = compare(&noisy(0), &noisy(9));
    let row = row(&comparison, Role::BusyAreas, Op::Alloc, Intent::Write);
    let number = json_number(row, "hold_p50_ns");
    let [low, high] = ["low", "high"].map(|end| number["change"][end].as_f64());
    assert!(low < Some(-0.99) && high > Some(1e6), "{number}");
}

#[test]
fn a_difference_of_less_than_a_bucket_is_none_however_sure_it_is() {
    let mut slower = spinlock();
    for habit in &mut slower.habits {
        habit.hold_ns *= 1.02;
    }
    // Without any difference between runs, every interval has next to no width.
    let steady = |kernel: &Kernel| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for repeat in 0..5 {
            let path = folder.path().join(format!("{repeat}.kct"));
            write(
                &path,
                &kernel.header,
                &[sample::interval(0, run(kernel, 7))],
                0,
            );
        }
        folder
    };
    let comparison = compare(&steady(&spinlock()), &steady(&slower));
    assert_eq!(comparison.verdict, Verdict::NoDifference);
}

#[test]
fn a_difference_of_less_than_the_shortest_hold_is_none() {
    let quick = |hold_ns| {
        let mut kernel = spinlock();
        for habit in &mut kernel.habits {
            habit.hold_ns = habit.hold_ns.max(20_000.0);
            if habit.key.lock == Lock::PurgeVmapArea {
                habit.hold_ns = hold_ns;
            }
        }
        kernel
    };
    let comparison = compare(
        &repeats(&quick(400.0), 0..5),
        &repeats(&quick(440.0), 9..14),
    );
    let own_cost = comparison.band.own_cost_ns.expect("holds are seen");
    assert!((20..400).contains(&own_cost), "{own_cost}");
    let quick = row(&comparison, Role::LazyAreas, Op::Free, Intent::Write);
    assert_eq!(finding(quick, "hold_p50_ns"), Finding::NoDifference);
    let band = json_number(quick, "hold_p50_ns")["band"].as_f64();
    assert_eq!(band, Some(own_cost as f64));
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(
        text.contains(&format!("{own_cost} ns for each wait and hold")),
        "{text}"
    );
}

#[test]
fn without_holds_the_cost_of_the_tool_is_unknown_and_that_is_said() {
    let mut blind = spinlock();
    blind.header.coverage.holds = HoldCoverage::None;
    let blind = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for seed in 0..3 {
            let mut measured = run(&blind, seed);
            for cell in measured.cells.values_mut() {
                (cell.hold, cell.releases) = (Distribution::default(), 0);
            }
            let path = folder.path().join(format!("{seed}.kct"));
            write(&path, &blind.header, &[sample::interval(0, measured)], 0);
        }
        folder
    };
    let comparison = compare(&blind(), &blind());
    assert_eq!(comparison.band.own_cost_ns, None);
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(
        text.contains("the cost of the tool is unknown: the shortest hold"),
        "{text}"
    );
    let some = row(&comparison, Role::BusyAreas, Op::Free, Intent::Write);
    assert_eq!(
        json_number(some, "hold_p50_ns")["reason"],
        "both sides: no hold can be seen in 3 of 3 samples"
    );
}

#[test]
fn waits_that_one_side_cannot_see_are_missing_there_and_never_zero() {
    let mut blind = spinlock();
    let spinlocks = [Lock::VmapArea, Lock::FreeVmapArea, Lock::PurgeVmapArea];
    blind.header.without_waits = spinlocks.into();
    for habit in &mut blind.habits {
        habit.contended = 0.0;
    }
    let comparison = anyway(&repeats(&spinlock(), 0..3), &repeats(&blind, 9..12));
    let unseen = row(&comparison, Role::BusyAreas, Op::Free, Intent::Write);
    for metric in [
        "contended_share",
        "wait_per_op_ns",
        "wait_p50_ns",
        "wait_mean_ns",
    ] {
        assert_eq!(finding(unseen, metric), Finding::CannotTell);
        let number = json_number(unseen, metric);
        assert!(number["baseline"].is_number() && number["candidate"].is_null());
        let reason = "candidate: no wait can be seen in 3 of 3 samples";
        assert_eq!(number["reason"], reason, "{metric}");
    }
    let side = unseen.candidate.as_ref().expect("it was taken");
    assert_eq!((side.contended, side.wait_sum_ns), (None, None));
    assert_ne!(finding(unseen, "hold_p50_ns"), Finding::CannotTell);
    let seen = row(&comparison, Role::Purging, Op::Purge, Intent::Write);
    assert_eq!(json_number(seen, "contended_share")["candidate"], 0.0);
}

#[test]
fn where_only_waits_are_seen_they_are_compared_and_nothing_else_has_a_column() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for seed in 0..3 {
        let path = folder.path().join(format!("{seed}.kct"));
        let interval = sample::interval(0, sample::degraded(seed));
        write(&path, &sample::degraded_header(), &[interval], 0);
    }
    let comparison = anyway(&folder, &folder);
    let some = row(&comparison, Role::BusyAreas, Op::Alloc, Intent::Write);
    assert_eq!(finding(some, "contended_share"), Finding::CannotTell);
    assert_eq!(finding(some, "wait_per_op_ns"), Finding::NoDifference);
    assert_eq!(finding(some, "wait_p50_ns"), Finding::NoDifference);
    let text = rendered(&comparison, Format::Text, Some(100));
    assert_golden("compare-degraded.txt", &text);
    assert!(
        !text.contains("hold p") && !text.contains("contended  ") && !text.contains("latency"),
        "{text}"
    );
}

#[test]
fn eras_are_matched_by_what_a_lock_guards() {
    let comparison = compare(&repeats(&spinlock(), 0..5), &repeats(&per_node(), 9..14));
    let busy = row(&comparison, Role::BusyAreas, Op::Alloc, Intent::Write);
    let [a, b] = [&busy.baseline, &busy.candidate].map(|side| side.as_ref().expect("on both"));
    assert_eq!(a.locks, [Lock::VmapArea]);
    assert_eq!(b.locks, [Lock::NodeBusy]);
    assert_eq!(busy.verdict, Verdict::Better);
    let lazy = row(&comparison, Role::LazyAreas, Op::Free, Intent::Write);
    assert_eq!(
        lazy.candidate.as_ref().expect("on both").locks,
        [Lock::NodeLazy]
    );
    let pool = row(&comparison, Role::ReadyAreas, Op::Alloc, Intent::Write);
    assert!(pool.on_one_side() && pool.baseline.is_none() && pool.numbers.is_empty());
    assert!(
        comparison
            .remarks
            .iter()
            .any(|remark| remark.contains("vmap_node.pool"))
    );
    assert_eq!(comparison.rows.on_one_side, 1);
}

#[test]
fn the_imbalance_between_nodes_is_shown_of_the_side_that_has_them() {
    let comparison = compare(&repeats(&spinlock(), 0..3), &repeats(&per_node(), 9..12));
    let mut rows = comparison.nodes.iter();
    let busy = rows.find(|row| row.lock == Lock::NodeBusy);
    let busy = busy.expect("it was taken");
    assert!(busy.baseline.is_none());
    let spread = busy.candidate.expect("it has nodes");
    let acquisitions = spread.acquisitions.expect("they are seen");
    assert_eq!((spread.nodes, acquisitions.busiest), (8, 0));
    assert!((2.3..2.5).contains(&acquisitions.max_over_mean));
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(text.contains("Nodes, the busiest of each lock"), "{text}");
    let markdown = rendered(&comparison, Format::Markdown, None);
    let line = "- nodes: vmap_node.busy: baseline not by node; candidate 8 nodes";
    assert!(markdown.contains(line), "{markdown}");
    let alike = compare(&repeats(&spinlock(), 0..3), &repeats(&rwsem(), 9..12));
    assert!(alike.nodes.is_empty());
    assert!(!rendered(&alike, Format::Text, None).contains("Nodes"));
}

#[test]
fn what_cannot_be_told_is_shown_with_both_values_and_the_reason() {
    let comparison = compare(&repeats(&spinlock(), 0..3), &repeats(&rwsem(), 9..12));
    let purge = row(&comparison, Role::Purging, Op::Purge, Intent::Write);
    let number = json_number(purge, "hold_p50_ns");
    assert_eq!(number["finding"], "cannot-tell");
    assert!(number["baseline"].is_number() && number["candidate"].is_number());
    let text = rendered(&comparison, Format::Text, Some(400));
    let line = text.lines().find(|line| line.contains("purge, write"));
    let line = line.expect("the row is shown");
    assert!(line.contains(" ? "), "{line}");
    let why =
        "hold p50 of vmap_purge_lock in purge, write: both sides: fewer than 20 holds in 3 of 3";
    assert!(text.contains(why), "{text}");
    let markdown = rendered(&comparison, Format::Markdown, None);
    assert!(!markdown.contains("inf"), "{markdown}");
}

#[test]
fn rare_events_that_are_alike_by_nature_are_no_certainty() {
    // Each run has a dozen waits of one length, in the candidate a fifth more of them: what chance
    // alone does to a dozen events.
    let alike = |waits: u64| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for repeat in 0..5 {
            let mut measured = run(&spinlock(), 7);
            let key = exclusive(Lock::VmapArea, Intent::Write, Op::Alloc);
            let cell = measured.cells.get_mut(&key).expect("it was taken");
            cell.contended = waits;
            cell.wait = durations(&mut Dice::new(3), waits, 2_100.0);
            let path = folder.path().join(format!("{repeat}.kct"));
            write(
                &path,
                &spinlock().header,
                &[sample::interval(0, measured)],
                0,
            );
        }
        folder
    };
    let comparison = compare(&alike(12), &alike(15));
    let calm = row(&comparison, Role::BusyAreas, Op::Alloc, Intent::Write);
    assert_eq!(calm.verdict, Verdict::NoDifference);
    // Ten times as many are no chance.
    let comparison = compare(&alike(12), &alike(120));
    let worse = row(&comparison, Role::BusyAreas, Op::Alloc, Intent::Write);
    assert_eq!(finding(worse, "wait_per_op_ns"), Finding::Worse);
}

#[test]
fn a_look_up_is_matched_by_its_intent_though_an_rwsem_shares_it() {
    let comparison = compare(&repeats(&spinlock(), 0..3), &repeats(&rwsem(), 9..12));
    let look_up = row(&comparison, Role::BusyAreas, Op::Vread, Intent::Read);
    let [a, b] = [&look_up.baseline, &look_up.candidate].map(|side| side.as_ref().expect("both"));
    assert_eq!(
        (a.kind, a.modes.as_slice()),
        (Some(Kind::Spinlock), &[Mode::Exclusive][..])
    );
    assert_eq!(
        (b.kind, b.modes.as_slice()),
        (Some(Kind::Rwsem), &[Mode::Shared][..])
    );
    assert_eq!(comparison.rows.on_one_side, 0);
}

#[test]
fn where_acquisitions_change_the_time_of_an_operation_decides() {
    let comparison = compare(&repeats(&spinlock(), 0..5), &repeats(&per_node(), 9..14));
    let reader = row(&comparison, Role::BusyAreas, Op::Vread, Intent::Read);
    assert_eq!(finding(reader, "acquisitions_per_op"), Finding::More);
    // Eighteen short holds instead of a long one: each is shorter, all together are not.
    assert_eq!(finding(reader, "hold_p50_ns"), Finding::Better);
    assert_eq!(json_number(reader, "hold_p50_ns")["overruled"], true);
    assert_eq!(finding(reader, "hold_per_op_ns"), Finding::Worse);
    assert_eq!(reader.verdict, Verdict::Worse);
    // Fewer waits, of which those that are left are longer.
    let writer = row(&comparison, Role::BusyAreas, Op::Alloc, Intent::Write);
    assert_eq!(finding(writer, "contended_share"), Finding::Better);
    assert_eq!(writer.verdict, Verdict::Better);
}

#[test]
fn every_reason_not_to_compare_is_given_at_once() {
    let mut other = spinlock();
    other.header.host.cpu_model = "Other CPU @ 2.00GHz".into();
    other.header.host.cpus_online = Some(4);
    other.header.host.nodes = Some(2);
    other.header.host.memory_bytes = Some(8 << 30);
    other.header.host.virtualisation = "none".into();
    other.header.command = vec!["make".into()];
    other.header.level = Level::Contended;
    other.header.coverage.waits = WaitCoverage::SlowPath;
    other.header.without_waits = vec![Lock::VmapPurge];
    other.header.coverage.holds = HoldCoverage::None;
    other.header.hooks = "kprobe".into();
    other.header.contexts = vec![Context::Rcu];
    let [a, b] = [repeats(&spinlock(), 0..2), repeats(&other, 9..11)];
    let message = refusal(&a, &b).to_string();
    for reason in [
        "--anyway",
        "hardware: CPU model Example CPU @ 3.00GHz against Other CPU @ 2.00GHz",
        "hardware: CPUs 8 against 4",
        "hardware: NUMA nodes 1 against 2",
        "hardware: memory 16,384 MiB against 8,192 MiB",
        "hardware: virtualisation kvm against none",
        "workload: `kcore-trace stress --maps 4 --kcore 2` against `make`",
        "level: full against contended",
        "coverage: every acquisition against slow paths only, no waits of vmap_purge_lock",
        "coverage: every hold against no holds",
        "hooks: fentry against kprobe",
        "hooks: without --audit against with --audit",
    ] {
        assert!(message.contains(reason), "{reason} is missing in {message}");
    }
    let comparison = anyway(&a, &b);
    assert_eq!(comparison.warnings.len(), 11);
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(
        text.starts_with("WARNING     hardware: CPU model"),
        "{text}"
    );
    assert!(rendered(&comparison, Format::Markdown, None).contains("- WARNING: hooks:"));
}

#[test]
fn no_command_reaches_the_terminal_as_one_to_it() {
    let run_by = |words: [&str; 2]| {
        let mut kernel = spinlock();
        kernel.header.command = words.map(String::from).to_vec();
        kernel
    };
    let evil = ["printf", "\x1b[2J|\n"];
    let [a, b] = [repeats(&run_by(evil), 0..2), repeats(&run_by(evil), 9..11)];
    let comparison = compare(&a, &b);
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(text.contains(r"`printf '\u{1b}[2J|\n'`"), "{text}");
    let markdown = rendered(&comparison, Format::Markdown, None);
    assert!(
        markdown.contains(r"- command: `printf '\u{1b}[2J\|\n'`"),
        "{markdown}"
    );
    assert_eq!(json(&comparison)["baseline"]["command"][1], evil[1]);
    // The words count, not how they look side by side.
    let one_word = repeats(&run_by(["make", "a b"]), 0..2);
    let mut kernel = run_by(["make", "a"]);
    kernel.header.command.push("b".into());
    let message = refusal(&one_word, &repeats(&kernel, 9..11)).to_string();
    let reason = "workload: `make 'a b'` against `make a b`";
    assert!(message.contains(reason), "{message}");
}

#[test]
fn another_kernel_and_what_it_keeps_of_the_memory_are_no_reason() {
    let mut newer = spinlock();
    newer.header.kernel.release = "6.8.1".into();
    newer.header.host.memory_bytes = Some((16 << 30) - (90 << 20));
    newer.header.host.config_digest = Some("gz:00000000".into());
    compare(&repeats(&spinlock(), 0..2), &repeats(&newer, 9..11));
}

#[test]
fn what_differs_and_forbids_nothing_is_remarked() {
    let mut other = spinlock();
    other.header.kernel.version = "#46 SMP".into();
    other.header.host.spinlocks = "native".into();
    other.header.coverage.missing = vec![Missing {
        hook: "vmalloc_info_show".into(),
        reason: "there is no function of that name".into(),
    }];
    let comparison = compare(&repeats(&spinlock(), 0..2), &repeats(&other, 9..11));
    for remark in [
        "spinlocks: pv against native",
        "two builds of one release: #45",
        "not seen in the candidate only: vmalloc_info_show",
    ] {
        let mut remarks = comparison.remarks.iter();
        assert!(remarks.any(|it| it.starts_with(remark)), "{remark}");
    }
}

#[test]
fn repeats_have_to_be_of_one_kernel() {
    let mixed = repeats(&spinlock(), 0..2);
    let path = mixed.path().join("other.kct");
    write(
        &path,
        &per_node().header,
        &[sample::interval(0, run(&per_node(), 5))],
        0,
    );
    let message = refusal(&mixed, &repeats(&spinlock(), 9..11)).to_string();
    let reason = "repeats: of the baseline differ: kernel 6.8.0-45-generic against 6.12.9-amd64";
    assert!(message.contains(reason), "{message}");
}

#[test]
fn who_waited_for_whom_is_shown_of_the_side_that_knows() {
    let known = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for seed in 0..2 {
            let intervals = [sample::interval(0, sample::per_node(seed))];
            let path = folder.path().join(format!("{seed}.kct"));
            write(&path, &sample::per_node_header(), &intervals, 0);
        }
        folder
    };
    let comparison = compare(&repeats(&spinlock(), 0..2), &known());
    let row = comparison
        .blame
        .iter()
        .find(|row| row.role == Role::BusyAreas);
    let row = row.expect("the candidate knows");
    assert!(row.baseline.is_none());
    assert_eq!(row.candidate.unwrap().lock, Lock::NodeBusy);
    let text = rendered(&comparison, Format::Text, None);
    assert!(text.contains("Who waited for whom"), "{text}");
    let markdown = rendered(&comparison, Format::Markdown, None);
    assert!(
        markdown.contains("vmap_node.busy: readers for readers"),
        "{markdown}"
    );
    let neither = compare(&repeats(&spinlock(), 0..2), &repeats(&spinlock(), 5..7));
    assert!(neither.blame.is_empty());
}

#[test]
fn what_happened_inside_is_shown_of_the_side_that_looked() {
    let looked = tempfile::tempdir().expect("a temporary folder");
    for seed in 0..2 {
        let intervals = [sample::interval(0, sample::looked(seed))];
        let path = looked.path().join(format!("{seed}.kct"));
        write(&path, &sample::looking_header(), &intervals, 0);
    }
    let comparison = compare(&repeats(&spinlock(), 0..2), &looked);
    let inside = comparison.inside.as_ref().expect("the candidate looked");
    assert!(inside.reads.baseline.is_none());
    assert_eq!(inside.reads.candidate.unwrap().faults, 2 * 22);
    let text = rendered(&comparison, Format::Text, None);
    assert!(
        text.contains("Inside holds") && text.contains("Reads of /proc/kcore"),
        "{text}"
    );
    let neither = compare(&repeats(&spinlock(), 0..2), &repeats(&spinlock(), 5..7));
    assert!(neither.inside.is_none());
}

/// Repeats that lost something.
fn lossy(lose: impl Fn(&mut Measured)) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for seed in 0..2 {
        let mut measured = run(&spinlock(), seed);
        lose(&mut measured);
        let path = folder.path().join(format!("{seed}.kct"));
        write(
            &path,
            &spinlock().header,
            &[sample::interval(0, measured)],
            0,
        );
    }
    folder
}

#[test]
fn losses_forbid_a_comparison_unless_they_are_small_or_those_of_other_locks() {
    let whole = repeats(&spinlock(), 9..11);
    let much = lossy(|measured| measured.loss.map_full = 100);
    let message = refusal(&whole, &much).to_string();
    assert!(
        message.contains("losses: of the candidate are 0."),
        "{message}"
    );
    let ops = lossy(|measured| measured.loss.unfinished_ops = 50);
    assert!(
        refusal(&ops, &whole)
            .to_string()
            .contains("losses: of the baseline")
    );

    let few = lossy(|measured| measured.loss.unmatched_releases = 5);
    compare(&whole, &few);
    let of_others = lossy(|measured| measured.loss.recursion_misses = 1_000_000);
    let comparison = compare(&whole, &of_others);
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(
        text.contains("nothing → at most 2,000,000 runs of a program, for any lock"),
        "{text}"
    );
}

#[test]
fn a_command_or_a_measuring_that_failed_forbids_a_comparison() {
    let baseline = repeats(&spinlock(), 0..2);
    let ended = |end: End| {
        let folder = repeats(&spinlock(), 9..11);
        let path = folder.path().join("other.kct");
        let interval = sample::interval(0, run(&spinlock(), 12));
        write_ended(&path, &spinlock().header, &[interval], end);
        folder
    };
    let missing = ended(End::Command { code: 127 });
    let reason = "end: of 1 of 3 recordings of the candidate, the command exited with 127";
    let message = refusal(&baseline, &missing).to_string();
    assert!(message.contains(reason), "{message}");
    let comparison = anyway(&baseline, &missing);
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(text.contains(&format!("WARNING     {reason}")), "{text}");
    let markdown = rendered(&comparison, Format::Markdown, None);
    assert!(markdown.contains(&format!("- WARNING: {reason}")));
    assert_eq!(json(&comparison)["warnings"][0]["subject"], "end");

    let failed = ended(End::Failed("a map disappeared".into()));
    let message = refusal(&failed, &baseline).to_string();
    let reason = "of 1 of 3 recordings of the baseline, measuring failed: a map disappeared";
    assert!(message.contains(reason), "{message}");
    for end in [End::Duration, End::Signal("SIGINT".into())] {
        compare(&baseline, &ended(end));
    }
}

#[test]
fn a_command_that_always_exits_with_the_same_code_is_compared_and_that_is_remarked() {
    let failing = |seed: u64| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for repeat in 0..2 {
            let path = folder.path().join(format!("{repeat}.kct"));
            let interval = sample::interval(0, run(&spinlock(), seed + repeat));
            let end = End::Command { code: 1 };
            write_ended(&path, &spinlock().header, &[interval], end);
        }
        folder
    };
    let comparison = compare(&failing(0), &failing(9));
    let remark = "the command always exited with 1";
    let mut remarks = comparison.remarks.iter();
    assert!(remarks.any(|it| it.starts_with(remark)));
    let reason = "end: of 2 of 2 recordings of the candidate, the command exited with 1";
    let message = refusal(&repeats(&spinlock(), 0..2), &failing(9)).to_string();
    assert!(message.contains(reason), "{message}");
}

#[test]
fn recordings_with_nothing_in_common_are_refused() {
    let only = |keep: Op| {
        let mut kernel = spinlock();
        kernel.habits.retain(|habit| habit.key.op == keep);
        kernel.ops.retain(|&(op, ..)| op == keep);
        kernel
    };
    let [a, b] = [
        repeats(&only(Op::Free), 0..2),
        repeats(&only(Op::Purge), 9..11),
    ];
    assert!(matches!(refusal(&a, &b), Refusal::NothingInCommon));
}

#[test]
fn a_recording_that_is_cut_is_compared_up_to_what_is_whole() {
    let cut = tempfile::tempdir().expect("a temporary folder");
    let intervals: Vec<_> = (0..6)
        .map(|index| sample::interval(index, run(&spinlock(), index)))
        .collect();
    write(
        &cut.path().join("cut.kct"),
        &spinlock().header,
        &intervals,
        20_000,
    );
    let comparison = compare(&cut, &long(&spinlock(), 50..56));
    assert_eq!(comparison.baseline.truncated, 1);
    assert!((2..6).contains(&comparison.baseline.samples));
    let text = rendered(&comparison, Format::Text, Some(400));
    assert!(text.contains("the baseline has no end: compared up to the last whole interval"));
}

#[test]
fn very_many_intervals_become_few_samples() {
    let seconds = [0, 1, 2].map(sample::calm);
    let intervals: Vec<_> = (0..500)
        .map(|index| sample::interval(index, seconds[index as usize % 3].clone()))
        .collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(
        &folder.path().join("long.kct"),
        &sample::header(),
        &intervals,
        0,
    );
    let comparison = compare(&folder, &folder);
    assert_eq!(comparison.baseline.samples, 20);
    assert_eq!(comparison.verdict, Verdict::NoDifference);
}

#[test]
fn a_folder_without_recordings_is_an_error_that_names_it() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    fs::write(empty.path().join("notes.txt"), "").expect("there is space");
    fs::write(empty.path().join(".hidden.kct"), "").expect("there is space");
    let error = Side::open(empty.path(), None)
        .expect_err("there is no recording")
        .to_string();
    assert!(
        error.contains("holds no recording") && error.contains(".kct"),
        "{error}"
    );
}

#[test]
fn of_each_recording_only_the_time_that_was_asked_for_is_compared() {
    let [before, after] = [long(&spinlock(), 0..12), long(&held_longer(), 50..62)];
    let sides = |time: Option<std::ops::Range<u64>>| {
        [&before, &after].map(|folder| Side::open(folder.path(), time.clone()).expect("it opens"))
    };
    let [baseline, candidate] = sides(Some(3 * sample::SECOND_NS..9 * sample::SECOND_NS));
    let comparison = Comparison::new(&baseline, &candidate, false).expect("they can be compared");
    // Six intervals, alone in a recording.
    let alone = [long(&spinlock(), 3..9), long(&held_longer(), 53..59)];
    let alone = compare(&alone[0], &alone[1]);
    assert_eq!(comparison.baseline.samples, 6);
    assert_eq!(comparison.baseline.duration_ns, 6 * sample::SECOND_NS);
    let numbers = |comparison: &Comparison| {
        let json = json(comparison);
        ["locks", "ops", "verdict"].map(|table| json[table].clone())
    };
    assert_eq!(numbers(&comparison), numbers(&alone));
    let text = rendered(&comparison, Format::Text, Some(400));
    let note =
        "only the intervals of each recording that begin at 3.00 s or later and before 9.00 s";
    assert!(text.contains(note), "{text}");
}

#[test]
fn a_time_is_that_of_every_repeat_and_one_without_an_interval_is_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, seconds) in [("a", 4), ("b", 2)] {
        let intervals: Vec<_> = (0..seconds)
            .map(|second| sample::interval(second, run(&spinlock(), second)))
            .collect();
        let path = folder.path().join(format!("{name}.kct"));
        write(&path, &spinlock().header, &intervals, 0);
    }
    let seconds = |from, to| Some(from * sample::SECOND_NS..to * sample::SECOND_NS);
    let side = Side::open(folder.path(), seconds(1, 2)).expect("both have one");
    let comparison = Comparison::new(&side, &side, false).expect("they can be compared");
    assert_eq!(comparison.baseline.sampling, Sampling::Repeats);
    assert_eq!(comparison.baseline.duration_ns, 2 * sample::SECOND_NS);
    let error = Side::open(folder.path(), seconds(2, 3)).expect_err("the other has none");
    let error = error.to_string();
    assert!(
        error.contains("b.kct` begins at 2.00 s or later"),
        "{error}"
    );
    let path = folder.path().display().to_string();
    for command in [&["report", "a.kct"][..], &["compare", &path, &path]] {
        let (code, out, error) = tool(&[command, &["--from", "2s", "--to", "1s"]].concat());
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(
            error.contains("--to has to be later than --from"),
            "{error}"
        );
    }
}

#[test]
fn a_recording_that_is_compared_with_itself_is_named_as_such() {
    let [one, other] = [repeats(&spinlock(), 0..3), repeats(&spinlock(), 9..12)];
    let said = |a, b| {
        let remarks = compare(a, b).remarks;
        remarks
            .iter()
            .any(|remark| remark.starts_with("both sides are the same"))
    };
    assert!(said(&one, &one) && !said(&one, &other));
}

#[test]
fn the_exit_code_tells_a_regression_from_none_and_from_an_error() {
    let [before, worse] = [repeats(&spinlock(), 0..5), repeats(&held_longer(), 50..55)];
    let [before, worse] = [&before, &worse].map(|folder| folder.path().display().to_string());
    assert_eq!(tool(&["compare", &before, &worse]).0, 1);
    assert_eq!(tool(&["compare", &worse, &before]).0, 0);
    assert_eq!(
        tool(&["compare", &before, &before, "--format", "json"]).0,
        0
    );
    let (code, out, error) = tool(&["compare", &before, "nowhere.kct"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(error.contains("`nowhere.kct` does not exist"), "{error}");
    let mut other = spinlock();
    other.header.hooks = "kprobe".into();
    let other = repeats(&other, 9..11);
    let other = other.path().display().to_string();
    let (code, _, error) = tool(&["compare", &before, &other]);
    assert_eq!(code, 2);
    assert!(
        error.contains("--anyway") && error.contains("hooks"),
        "{error}"
    );
    assert_eq!(tool(&["compare", &before, &other, "--anyway"]).0, 0);
}

#[test]
fn the_text_of_a_comparison_of_eras_fits_into_a_terminal() {
    let comparison = compare(&repeats(&spinlock(), 0..5), &repeats(&per_node(), 9..14));
    for columns in [80, 120] {
        let text = rendered(&comparison, Format::Text, Some(columns));
        assert_golden(&format!("compare-{columns}.txt"), &text);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(columns.into()), "{widest:?}");
    }
    assert_golden("compare.md", &rendered(&comparison, Format::Markdown, None));
}

#[test]
fn nothing_but_words_says_that_there_is_no_difference() {
    let comparison = compare(&repeats(&spinlock(), 0..3), &repeats(&rwsem(), 9..12));
    let text = rendered(&comparison, Format::Text, Some(100));
    assert_golden("compare-same.txt", &text);
    assert!(text.contains("No difference was found in 12 rows."));
    assert!(!text.contains("Differences"));
}

/// The fields that the schema promises; more may be added, none may go.
#[test]
fn the_json_has_the_promised_schema() {
    let comparison = compare(&repeats(&spinlock(), 0..3), &repeats(&per_node(), 9..12));
    let json = json(&comparison);
    let has = |value: &Value, names: &str| {
        for name in names.split_whitespace() {
            assert!(value.get(name).is_some(), "{name} is missing in {value}");
        }
    };
    assert_eq!(json["schema"], 1);
    has(
        &json,
        "baseline candidate method band warnings remarks verdict summary rows locks ops nodes",
    );
    has(
        &json["baseline"],
        "path recordings truncated samples sampling kernel host level hooks coverage command \
         duration_ns loss",
    );
    has(
        &json["baseline"]["loss"],
        "share ops_share recursion_misses map_full",
    );
    has(&json["method"], "name confidence correction");
    has(&json["band"], "bucket own_cost_ns reason");
    has(
        &json["rows"],
        "worse better no_difference cannot_tell on_one_side",
    );
    has(&json["nodes"][0], "lock role baseline candidate");
    has(
        &json["nodes"][0]["candidate"],
        "lock nodes acquisitions contended wait",
    );
    let lock = &json["locks"][0];
    has(lock, "role op intent verdict baseline candidate numbers");
    has(
        &lock["baseline"],
        "locks kind modes acquisitions contended wait_sum_ns hold_sum_ns",
    );
    has(
        &lock["numbers"][0],
        "metric baseline candidate change band finding overruled reason",
    );
    has(&lock["numbers"][0]["change"], "scale estimate low high");
    let metrics = |row: &Value| -> Vec<String> {
        let numbers = row["numbers"].as_array().expect("a list").iter();
        numbers
            .map(|number| number["metric"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(
        metrics(lock).join(" "),
        "acquisitions_per_op contended_share wait_per_op_ns wait_p50_ns wait_p90_ns wait_p99_ns \
         wait_p999_ns wait_mean_ns hold_per_op_ns hold_p50_ns hold_p90_ns hold_p99_ns hold_p999_ns \
         hold_mean_ns"
    );
    let op = &json["ops"][0];
    has(op, "op verdict baseline candidate numbers");
    has(&op["baseline"], "count latency_sum_ns");
    assert_eq!(
        metrics(op).join(" "),
        "latency_p50_ns latency_p90_ns latency_p99_ns latency_p999_ns latency_mean_ns"
    );
}
