//! What a report promises: the same text, JSON and CSV for the same recording.

use std::path::{Path, PathBuf};
use std::{env, fs};

use kcore_trace::model::{End, Header, HoldCoverage, Interval, Measured, Trailer};
use kcore_trace::recording::{Recording, RecordingWriter};
use kcore_trace::report::{By, Format, LockRow, Report, render};
use kcore_trace_ebpf::words::{Intent, Kind, Lock, Mode, Op};
use serde_json::Value;

use crate::sample::{self, SECOND_NS};

/// Set to anything, it makes the tests write what they would otherwise compare with.
const UPDATE: &str = "UPDATE_GOLDEN";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

pub(crate) fn assert_golden(name: &str, text: &str) {
    let path = golden(name);
    if env::var_os(UPDATE).is_some() {
        fs::write(&path, text).expect("the folder is writable");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{name} differs; if that is meant, set {UPDATE}=1\n--- expected\n{expected}\n--- found\n{text}"
    );
}

fn rendered(report: &Report, format: Format, columns: Option<u16>) -> String {
    let mut bytes = Vec::new();
    render(report, format, By::Op, columns, &mut bytes).expect("memory takes every write");
    String::from_utf8(bytes).expect("a report is text")
}

fn text(report: &Report) -> String {
    rendered(report, Format::Text, None)
}

fn json(report: &Report) -> Value {
    serde_json::from_str(&rendered(report, Format::Json, None)).expect("the report is JSON")
}

/// The report of a recording with a header and intervals, whose last bytes are cut off.
fn report(header: &Header, intervals: &[Interval], cut_bytes: usize) -> Report {
    Report::new(&recording(header, intervals, cut_bytes))
}

fn recording(header: &Header, intervals: &[Interval], cut_bytes: usize) -> Recording {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("test.kct");
    let mut writer = RecordingWriter::create(&path, false, header).expect("the file is new");
    for interval in intervals {
        writer.append(interval).expect("there is space");
    }
    let trailer = Trailer {
        end: if header.command.is_empty() {
            End::Duration
        } else {
            End::Command { code: 0 }
        },
        duration_ns: intervals.last().map_or(0, |last| last.end_ns) + 3_000_000,
        command_ns: None,
        total: writer.total().clone(),
        reduced: writer.reduced().clone(),
    };
    writer.finish(&trailer).expect("there is space");
    let mut bytes = fs::read(&path).expect("it was just written");
    bytes.truncate(bytes.len() - cut_bytes);
    fs::write(&path, bytes).expect("there is space");
    Recording::open(&path).expect("it has a header")
}

fn busy() -> Report {
    let intervals: Vec<_> = (0..3)
        .map(|n| sample::interval(n, sample::busy(n)))
        .collect();
    report(&sample::header(), &intervals, 0)
}

fn degraded() -> Report {
    report(
        &sample::degraded_header(),
        &[sample::interval(0, sample::degraded(1))],
        0,
    )
}

fn calm() -> Report {
    report(
        &sample::header(),
        &[sample::interval(0, sample::calm(1))],
        0,
    )
}

fn per_node() -> Report {
    report(
        &sample::per_node_header(),
        &[sample::interval(0, sample::per_node(1))],
        0,
    )
}

fn looked() -> Report {
    let intervals: Vec<_> = (0..3)
        .map(|n| sample::interval(n, sample::looked(n)))
        .collect();
    report(&sample::looking_header(), &intervals, 0)
}

fn by(report: &Report, by: By, format: Format) -> String {
    let mut bytes = Vec::new();
    render(report, format, by, None, &mut bytes).expect("memory takes every write");
    String::from_utf8(bytes).expect("a report is text")
}

fn by_node(report: &Report, format: Format) -> String {
    by(report, By::Node, format)
}

fn golden_recording() -> Report {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/v1.kct");
    Report::new(&Recording::open(&path).expect("the golden recording opens"))
}

#[test]
fn an_excerpt_names_the_time_and_is_the_report_of_its_intervals() {
    let intervals: Vec<_> = (0..20)
        .map(|n| sample::interval(n, sample::busy(n)))
        .collect();
    let recording = recording(&sample::header(), &intervals, 0);
    let from_to = |from: u64, to: u64| recording.between(from * SECOND_NS, to * SECOND_NS);
    let excerpt = Report::of_excerpt(&recording, &from_to(12, 15).expect("it has intervals"));
    assert_golden("excerpt.txt", &text(&excerpt));
    let json = json(&excerpt);
    let span = &json["recording"]["excerpt"];
    assert_eq!(span["start_ns"], 12 * SECOND_NS);
    assert_eq!(span["end_ns"], 15 * SECOND_NS);
    assert_eq!(json["recording"]["duration_ns"], 3 * SECOND_NS);
    let alone = report(&sample::header(), &intervals[12..15], 0);
    let numbers = |report: &Report| {
        let json = self::json(report);
        ["ops", "locks", "lock_totals", "loss"].map(|table| json[table].clone())
    };
    assert_eq!(numbers(&excerpt), numbers(&alone));
}

#[test]
fn the_golden_recording_has_the_same_report_forever() {
    let report = golden_recording();
    assert_golden("v1.txt", &text(&report));
    assert_golden("v1.json", &rendered(&report, Format::Json, None));
    assert_golden("v1.csv", &rendered(&report, Format::Csv, None));
}

#[test]
fn waits_stand_beside_holds_if_the_terminal_is_wide_and_above_them_if_not() {
    assert_golden("busy-wide.txt", &rendered(&busy(), Format::Text, Some(140)));
    let narrow = rendered(&busy(), Format::Text, Some(100));
    assert_golden("busy-narrow.txt", &narrow);
    let tables = narrow.lines().skip_while(|line| !line.starts_with("Locks"));
    assert!(tables.clone().all(|line| line.chars().count() <= 100));
}

#[test]
fn on_a_narrow_terminal_no_table_is_shown_twice_and_bars_are_shorter() {
    let lock_tables = |report: &Report| {
        let text = rendered(report, Format::Text, Some(50));
        text.lines()
            .filter(|line| line.starts_with("lock, op"))
            .count()
    };
    assert_eq!(lock_tables(&busy()), 2);
    assert_eq!([&degraded(), &calm()].map(lock_tables), [1, 1]);
    for columns in [40, 60, 80] {
        let text = rendered(&busy(), Format::Text, Some(columns));
        let bars = text
            .lines()
            .skip_while(|line| !line.starts_with("Waits for"));
        let widest = bars.skip(1).map(|line| line.chars().count()).max();
        assert!(widest <= Some(columns.into()), "{text}");
    }
}

#[test]
fn what_is_said_of_the_measurement_is_no_wider_than_the_terminal() {
    let head = |columns| {
        let text = rendered(&degraded(), Format::Text, columns);
        let lines = text.lines().take_while(|line| !line.is_empty());
        lines.map(String::from).collect::<Vec<_>>()
    };
    let words = |head: &[String]| {
        head.join(" ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    for columns in [40, 80] {
        let narrow = head(Some(columns));
        let widest = narrow.iter().map(|line| line.chars().count()).max();
        assert!(widest <= Some(columns.into()), "{narrow:?}");
        assert_eq!(words(&narrow), words(&head(None)));
    }
}

#[test]
fn what_was_not_measured_has_no_column_and_what_was_lost_is_said() {
    let text = text(&degraded());
    assert_golden("degraded.txt", &text);
    assert!(!text.contains("hold\n") && !text.contains("acquired"));
}

#[test]
fn what_was_not_measured_is_null_and_never_zero() {
    let json = json(&degraded());
    for lock in json["locks"].as_array().unwrap() {
        assert!(lock["acquisitions"].is_null() && lock["hold"].is_null());
        assert!(lock["releases"].is_null());
    }
    for op in json["ops"].as_array().unwrap() {
        assert!(op["latency"].is_null() && op["count"].as_u64() > Some(0));
    }
    assert_eq!(json["loss"]["in_flight_at_end"], 1);
}

#[test]
fn a_lock_whose_holds_are_not_seen_has_none_while_others_have() {
    let mut header = sample::header();
    header.coverage.holds = HoldCoverage::Partial;
    header.without_holds = vec![Lock::Kclist];
    let report = report(&header, &[sample::interval(0, sample::busy(0))], 0);
    let json = json(&report);
    for lock in json["locks"].as_array().unwrap() {
        assert_eq!(lock["hold"].is_null(), lock["lock"] == "kclist_lock");
    }
    assert!(text(&report).contains("every hold but those of kclist_lock"));
}

/// A recorder that had no hook on the slow path of spinlocks.
fn without_spinlock_waits(header: Header) -> Header {
    let spinlocks = header
        .kinds
        .iter()
        .filter(|(_, kind)| **kind == Kind::Spinlock);
    Header {
        without_waits: spinlocks.map(|(lock, _)| *lock).collect(),
        ..header
    }
}

/// Of the waits for other locks there are none.
fn unseen_waits() -> Report {
    let header = without_spinlock_waits(sample::looking_header());
    let measured = Measured {
        inside: sample::looked(1).inside,
        readers: sample::looked(1).readers,
        ..sample::calm(1)
    };
    report(&header, &[sample::interval(0, measured)], 0)
}

#[test]
fn a_lock_whose_waits_are_not_seen_has_none_while_others_have() {
    let report = unseen_waits();
    for lock in json(&report)["locks"].as_array().unwrap() {
        let unseen = lock["kind"] == "spinlock";
        for number in ["contended", "wait", "aborted", "aborted_wait_ns"] {
            assert_eq!(lock[number].is_null(), unseen, "{number} of {lock}");
        }
        assert!(lock["acquisitions"].as_u64() > Some(0) && !lock["hold"].is_null());
    }
    let csv = rendered(&report, Format::Csv, None);
    assert!(csv.contains("\nlock,vmap_area_lock,spinlock,exclusive,read,vread,,310,,310,,,0,,"));
    assert!(csv.contains("\nlock,kclist_lock,rwsem,shared,read,vread,,310,0,310,0,0,0,0,0,"));
    let text = text(&report);
    assert_golden("unseen-waits.txt", &text);
    assert!(text.contains("but no waits of vmap_area_lock, free_vmap_area_lock, "));
    assert!(!text.contains("Nobody waited"), "{text}");
}

#[test]
fn where_no_wait_is_seen_there_is_no_column_of_waits() {
    let mut header = sample::per_node_header();
    header.without_waits = header.kinds.keys().copied().collect();
    let mut measured = sample::per_node(1);
    measured.blame.clear();
    let report = report(&header, &[sample::interval(0, measured)], 0);
    let [locks, nodes] = [text(&report), by_node(&report, Format::Text)];
    let mut heads = locks.lines().filter(|line| line.starts_with("lock, op"));
    assert!(heads.all(|head| !head.contains("contended")), "{locks}");
    assert!(
        !nodes.contains("wait total") && !nodes.contains("time waited"),
        "{nodes}"
    );
    let csv = by_node(&report, Format::Csv);
    assert!(csv.contains("vmap_node.lazy,2,0,,\n"), "{csv}");
    let json = json(&report);
    assert!(json["nodes"][0]["contended"].is_null() && json["nodes"][0]["wait_sum_ns"].is_null());
    assert!(json["spreads"][0]["wait"].is_null());
}

#[test]
fn what_readers_waited_is_not_known_where_some_waits_are_not_seen() {
    let report = unseen_waits();
    let json = json(&report);
    for number in ["waits", "wait_ns", "inflicted_waits", "inflicted_ns"] {
        assert!(json["readers"][0][number].is_null(), "{number}");
    }
    assert!(json["readers"][0]["hold_ns"].as_u64() > Some(0));
    let csv = by(&report, By::Process, Format::Csv);
    assert!(csv.contains(",133000000,,,330,127000000,,\n"), "{csv}");
}

#[test]
fn a_wait_that_did_not_happen_has_a_count_and_a_sum_of_zero_and_nulls() {
    let json = json(&calm());
    let wait = &json["locks"][0]["wait"];
    assert_eq!((&wait["count"], &wait["sum_ns"]), (&0.into(), &0.into()));
    for number in ["min_ns", "max_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns"] {
        assert!(wait.as_object().unwrap().contains_key(number) && wait[number].is_null());
    }
}

#[test]
fn a_recording_in_which_nobody_waited_says_so() {
    let text = text(&calm());
    assert_golden("calm.txt", &text);
    assert!(text.contains("Nobody waited"));
}

#[test]
fn a_recording_that_is_cut_says_so_first() {
    let intervals: Vec<_> = (0..2)
        .map(|n| sample::interval(n, sample::busy(n)))
        .collect();
    let cut = text(&report(&sample::header(), &intervals, 3000));
    assert_golden("cut.txt", &cut);
    assert!(cut.starts_with("INCOMPLETE"));
}

#[test]
fn a_recording_of_nothing_is_a_report_of_nothing() {
    let text = text(&report(&sample::header(), &[], 0));
    assert!(text.contains("No vmap lock was taken."), "{text}");
}

#[test]
fn a_cell_of_zeros_is_left_out() {
    let mut measured = sample::busy(0);
    let before = measured.cells.len();
    let key = sample::key(Lock::VmapBlock, Mode::Exclusive, Intent::Write, Op::MapRam);
    measured.cells.insert(key, Default::default());
    measured.ops.insert(Op::MapRam, Default::default());
    let report = report(&sample::header(), &[sample::interval(0, measured)], 0);
    assert_eq!(report.locks.len(), before);
    assert!(report.ops.iter().all(|row| row.op != Op::MapRam));
}

#[test]
fn waits_in_vain_are_told_under_the_table() {
    let mut measured = sample::busy(0);
    let cell = measured.cells.values_mut().next().unwrap();
    (cell.aborted, cell.aborted_wait_ns, cell.try_failed) = (2, 41_000_000, 1);
    let text = text(&report(
        &sample::header(),
        &[sample::interval(0, measured)],
        0,
    ));
    assert!(
        text.contains("2 waits of 41.0 ms in all ended without the lock"),
        "{text}"
    );
    assert!(text.contains("1 trylock did not get the lock"), "{text}");
}

#[test]
fn the_rows_of_a_lock_add_up_to_its_total() {
    let report = busy();
    for total in &report.lock_totals {
        let rows: Vec<_> = report
            .locks
            .iter()
            .filter(|row| row.lock == total.lock)
            .collect();
        let sum = |number: fn(&&LockRow) -> Option<u64>| rows.iter().map(number).sum();
        let contended: Option<u64> = sum(|row| row.counts.contended);
        let waited: Option<u64> = sum(|row| row.wait.map(|wait| wait.sum_ns));
        assert_eq!(total.counts.contended, contended);
        assert_eq!(total.wait.map(|wait| wait.sum_ns), waited);
        assert_eq!(
            total
                .wait_octaves
                .iter()
                .map(|octave| octave.count)
                .sum::<u64>(),
            total.wait.unwrap().count
        );
    }
    assert!(
        report
            .lock_totals
            .is_sorted_by_key(|total| std::cmp::Reverse(total.wait.unwrap().sum_ns))
    );
}

#[test]
fn by_lock_there_is_a_line_for_each_lock() {
    let report = busy();
    assert_golden("busy-by-lock.txt", &by(&report, By::Lock, Format::Text));
    let csv = by(&report, By::Lock, Format::Csv);
    let locks: Vec<_> = csv
        .lines()
        .filter(|line| line.starts_with("lock,"))
        .collect();
    assert_eq!(locks.len(), report.lock_totals.len(), "{csv}");
    for (line, total) in locks.iter().zip(&report.lock_totals) {
        let begin = format!("lock,{},", total.lock);
        assert!(line.starts_with(&begin), "{csv}");
    }
}

#[test]
fn every_row_of_the_csv_has_every_column() {
    for report in [busy(), degraded()] {
        let text = rendered(&report, Format::Csv, None);
        let mut table = csv::Reader::from_reader(text.as_bytes());
        let rows: Vec<_> = table
            .records()
            .map(|row| row.expect("all rows are equally long"))
            .collect();
        assert_eq!(rows.len(), report.locks.len() + report.ops.len());
    }
}

#[test]
fn a_line_under_the_locks_says_how_uneven_the_nodes_are() {
    let text = text(&per_node());
    let line = "vmap_node.busy: 4 nodes, 25.0 % each if even: node 0 has 62.5 % of acquisitions";
    assert!(text.contains(line), "{text}");
    assert!(!self::text(&busy()).contains("nodes, "));
}

#[test]
fn a_table_under_the_locks_says_who_waited_for_whom() {
    assert_golden("per-node.txt", &text(&per_node()));
    let json = json(&per_node());
    let shares = &json["blame"]["shares"][0];
    assert_eq!(shares["lock"], "vmap_node.busy");
    assert!(shares["read_by_read"]["wait_sum_ns"].as_u64() > Some(0));
    let rows = json["blame"]["rows"].as_array().unwrap();
    assert_eq!(rows[0]["holder"]["op"], "vread");
}

#[test]
fn by_node_every_node_has_a_line_also_one_that_was_not_used() {
    let report = per_node();
    assert_golden("by-node.txt", &by_node(&report, Format::Text));
    let csv = by_node(&report, Format::Csv);
    assert_eq!(csv.lines().count(), 1 + 2 * 4, "{csv}");
    assert!(csv.contains("vmap_node.lazy,2,0,0,0\n"), "{csv}");
    let none = by_node(&busy(), Format::Text);
    assert!(none.contains("No lock of a node was seen"), "{none}");
}

#[test]
fn the_nodes_of_a_lock_add_up_to_its_total() {
    let report = per_node();
    for total in &report.lock_totals {
        let rows = report.nodes.iter().filter(|row| row.lock == total.lock);
        let rows: Vec<_> = rows.collect();
        if rows.is_empty() {
            assert!(!total.lock.name().starts_with("vmap_node"));
            continue;
        }
        let acquisitions: Option<u64> = rows.iter().map(|row| row.acquisitions).sum();
        assert_eq!(acquisitions, total.counts.acquisitions);
        let wait_ns: Option<u64> = rows.iter().map(|row| row.wait_sum_ns).sum();
        assert_eq!(wait_ns, total.wait.map(|wait| wait.sum_ns));
    }
}

#[test]
fn what_nodes_have_of_unseen_acquisitions_is_null() {
    let mut header = sample::per_node_header();
    header.coverage = sample::degraded_header().coverage;
    let mut measured = sample::per_node(1);
    for nodes in measured.nodes.values_mut() {
        nodes.acquisitions.fill(0);
    }
    let report = report(&header, &[sample::interval(0, measured)], 0);
    let json = json(&report);
    for node in json["nodes"].as_array().unwrap() {
        assert!(node["acquisitions"].is_null() && node["contended"].is_number());
    }
    let text = text(&report);
    assert!(text.contains("of contended acquisitions"), "{text}");
}

/// The fields that the schema promises; more may be added, none may go.
#[test]
fn the_json_has_the_promised_schema() {
    let json = json(&golden_recording());
    let has = |value: &Value, names: &str| {
        for name in names.split_whitespace() {
            assert!(value.get(name).is_some(), "{name} is missing in {value}");
        }
    };
    assert_eq!(json["schema"], 1);
    has(&json, "schema recording coverage loss ops locks");
    has(
        &json["recording"],
        "tool_version kernel host level command started_at duration_ns",
    );
    has(&json["recording"]["kernel"], "release version era");
    has(&json["coverage"], "waits holds missing");
    has(
        &json["loss"],
        "recursion_misses map_full unmatched_releases in_flight_at_end",
    );
    has(&json["ops"][0], "op count latency");
    has(
        &json["locks"][0],
        "lock kind mode intent op acquisitions contended wait hold",
    );
    let json = self::json(&per_node());
    has(
        &json["nodes"][0],
        "lock node acquisitions contended wait_sum_ns",
    );
    has(
        &json["spreads"][0],
        "lock nodes acquisitions contended wait",
    );
    has(
        &json["spreads"][0]["wait"],
        "busiest share max_over_mean used",
    );
    for dist in [
        &json["locks"][0]["wait"],
        &json["locks"][0]["hold"],
        &json["ops"][0]["latency"],
    ] {
        has(
            dist,
            "count sum_ns min_ns max_ns p50_ns p90_ns p99_ns p999_ns",
        );
    }
}

#[test]
fn what_happened_inside_and_who_read_stand_below_the_locks() {
    let report = looked();
    assert_golden("inside.txt", &text(&report));
    assert_golden("readers.txt", &by(&report, By::Process, Format::Text));
    assert_golden("readers.csv", &by(&report, By::Process, Format::Csv));
    let json = json(&report);
    let [purge, reads] = [0, 1].map(|index| &json["inside"]["holds"][index]);
    assert_eq!(purge["lock"], "vmap_purge_lock");
    assert_eq!(purge["preemptions"], 3 * 2);
    assert_eq!(reads["faults"], 3 * 22);
    assert_eq!(json["inside"]["copies"][0]["destination"], "ubuf");
    assert_eq!(json["inside"]["pass"], "vread_iter");
    let reader = &json["readers"][0];
    assert_eq!(reader["process"]["comm"], "crash");
    assert_eq!(reader["inflicted_ns"], Value::Null);
    assert_eq!(json["readers"][1]["process"], Value::Null);
    // Of three intervals.
    let worst = json["worst"].as_array().unwrap();
    assert_eq!(worst.len(), 9);
    assert_eq!(worst[0]["holder"]["task"]["comm"], "crash");
    assert_eq!(worst[0]["waiter"]["op"], "alloc");
}

#[test]
fn no_name_reaches_the_terminal_as_a_command_to_it() {
    let evil = "\x1b[2J\nx";
    let mut header = sample::auditing_header();
    header.command = vec!["sh".into(), "-c".into(), evil.into()];
    header.kernel.version = evil.into();
    header.hooks = evil.into();
    let mut measured = sample::audited(0);
    for wait in &mut measured.worst {
        wait.waiter.comm = Some(evil.into());
        wait.stack.push(evil.into());
    }
    let readers = std::mem::take(&mut measured.readers).into_iter();
    for (mut key, reader) in readers {
        if let Some(process) = &mut key.process {
            (process.comm, process.cgroup) = (evil.into(), Some(evil.into()));
        }
        measured.readers.insert(key, reader);
    }
    let audit = std::mem::take(&mut measured.audit).into_iter();
    for (mut key, audit) in audit {
        key.site = key.site.map(|site| site + evil);
        measured.audit.insert(key, audit);
    }
    let report = report(&header, &[sample::interval(0, measured)], 0);
    for view in [By::Op, By::Lock, By::Node, By::Process, By::Site] {
        let text = by(&report, view, Format::Text);
        let seen = |c: char| c == '\n' || !c.is_control();
        assert!(text.chars().all(seen), "{text}");
        assert!(text.contains(r"command     sh -c '\u{1b}[2J\nx'"), "{text}");
    }
    let text = by(&report, By::Op, Format::Text);
    assert!(text.contains(r"alloc, write, \u{1b}[2J\nx [77]"), "{text}");
    let text = by(&report, By::Process, Format::Text);
    assert!(text.contains(r"\u{1b}[2J\nx [4711]"), "{text}");
    // Programs get what it was.
    assert_eq!(json(&report)["worst"][0]["waiter"]["task"]["comm"], evil);
}

#[test]
fn an_audit_says_of_each_lock_whether_it_could_sleep() {
    let intervals: Vec<_> = (0..3)
        .map(|n| sample::interval(n, sample::audited(n)))
        .collect();
    let report = report(&sample::auditing_header(), &intervals, 0);
    let audit = by(&report, By::Site, Format::Text);
    assert_golden("audit.txt", &audit);
    assert_golden("audit.csv", &by(&report, By::Site, Format::Csv));
    let json = json(&report);
    let verdicts = json["audit"]["verdicts"].as_array().unwrap();
    let legal = |lock: &str| {
        let verdict = verdicts.iter().find(|row| row["lock"] == lock).unwrap();
        (
            verdict["legal_as_mutex"].as_bool().unwrap(),
            verdict["legal_as_rwsem"].as_bool().unwrap(),
            verdict["atomic"].as_u64().unwrap(),
        )
    };
    assert_eq!(legal("vmap_block.lock"), (false, false, 3000));
    // A trylock in a softirq forbids nothing to an rwsem.
    assert_eq!(legal("vmap_area_lock"), (false, false, 300));
    assert_eq!(legal("free_vmap_area_lock"), (true, true, 0));
    // Under a vmap spinlock, which may become one that sleeps as well.
    assert_eq!(legal("purge_vmap_area_lock"), (true, true, 0));
    assert!(audit.contains("vmap_block.lock would be legal as a mutex or rwsem: no"));
    // Stacks were kept too.
    assert_golden("stacks.txt", &text(&report));
    assert_eq!(json["worst"][0]["stack"][1], "alloc_vmap_area+0x7aa");
}

#[test]
fn where_nobody_looked_there_is_null_and_the_reason() {
    let report = busy();
    let json = json(&report);
    assert_eq!(json["inside"], Value::Null);
    assert_eq!(json["readers"], Value::Null);
    assert_eq!(json["worst"], Value::Null);
    assert_eq!(json["audit"], Value::Null);
    let text = by(&report, By::Process, Format::Text);
    assert!(text.contains("--no-inside"), "{text}");
    let text = by(&report, By::Site, Format::Text);
    assert!(text.contains("record with --audit"), "{text}");
}
