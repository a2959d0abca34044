//! Recordings in which the guard reduced the level: nothing is lost, and no sum is of two levels.

use std::fs;
use std::path::{Path, PathBuf};

use kcore_trace::compare::{Comparison, Side};
use kcore_trace::model::{End, Interval, Level, Measured, Reduced, Step, StepReason, Trailer};
use kcore_trace::recording::{Recording, RecordingWriter};
use kcore_trace::report::{By, Format, Report, render};
use tempfile::TempDir;

use crate::report::assert_golden;
use crate::sample::{self, SECOND_NS};

/// What happens to a recording, second by second.
enum Second {
    Full,
    Reduced,
    Step(Option<Level>, StepReason),
}

fn story(whole: u64, reduced: u64) -> Vec<Second> {
    use Second::{Full, Reduced};

    let dear = |share| StepReason::Overhead { share, limit: 0.01 };
    let many = |count, second: fn() -> Second| (0..count).map(move |_| second());
    let mut story: Vec<_> = many(whole, || Full).collect();
    story.push(Second::Step(Some(Level::Contended), dear(0.083)));
    story.extend(many(reduced, || Reduced));
    story.push(Second::Step(None, dear(0.02)));
    story.extend(many(3, || Reduced));
    let after_ns = 3 * SECOND_NS;
    let back = Second::Step(Some(Level::Full), StepReason::Retry { after_ns });
    story.push(back);
    story.extend(many(2, || Full));
    story
}

struct Written {
    _folder: TempDir,
    path: PathBuf,
    /// The intervals at the level of the header.
    full: Vec<Interval>,
    reduced: Reduced,
}

fn write(story: &[Second]) -> Written {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("test.kct");
    let header = sample::header();
    let mut writer = RecordingWriter::create(&path, false, &header).expect("the file is new");
    let (mut full, mut reduced) = (Vec::new(), Reduced::default());
    let mut index = 0;
    for second in story {
        let measured = match second {
            Second::Full => sample::busy(index),
            Second::Reduced => sample::busy(1000 + index),
            Second::Step(level, reason) => {
                let step = Step {
                    at_ns: index * SECOND_NS,
                    level: *level,
                    reason: reason.clone(),
                };
                writer.step(&step).expect("there is space");
                reduced.steps.push(step);
                continue;
            }
        };
        let interval = sample::interval(index, measured);
        index += 1;
        if matches!(second, Second::Full) {
            writer.append(&interval).expect("there is space");
            full.push(interval);
        } else {
            writer.append_reduced(&interval).expect("there is space");
            reduced.add(&interval);
        }
    }
    let trailer = Trailer {
        end: End::Duration,
        duration_ns: index * SECOND_NS,
        command_ns: None,
        total: writer.total().clone(),
        reduced: writer.reduced().clone(),
    };
    writer.finish(&trailer).expect("there is space");
    Written {
        _folder: folder,
        path,
        full,
        reduced,
    }
}

/// Takes the end away, as a kill does.
fn cut(path: &Path) {
    let bytes = fs::read(path).expect("it was written");
    fs::write(path, &bytes[..bytes.len() - 30]).expect("it shrinks");
}

fn open(path: &Path) -> Recording {
    Recording::open(path).expect("it opens")
}

#[test]
fn an_excerpt_says_at_which_level_it_was_measured() {
    // Full for 5 s, contended for 4 s, off for 3 s, and full again.
    let written = write(&story(5, 4));
    let recording = open(&written.path);
    let seconds = |from, to| recording.between(from * SECOND_NS, to * SECOND_NS).unwrap();
    let levels = |reduced: &Reduced| -> Vec<_> {
        let steps = reduced.steps.iter();
        steps
            .map(|step| (step.at_ns / SECOND_NS, step.level))
            .collect()
    };

    let whole = seconds(0, 5);
    assert!(whole.reduced.is_empty());
    assert_eq!(whole.total, sample::sum(&written.full[..5]));
    let lower = seconds(7, 10);
    assert_eq!(
        levels(&lower.reduced),
        [(5, Some(Level::Contended)), (9, None)]
    );
    assert_eq!(lower.total, Measured::default());
    assert_eq!(lower.reduced.duration_ns, 3 * SECOND_NS);
    assert_eq!(lower.reduced.off_ns, SECOND_NS);
    let again = seconds(11, 14);
    assert_eq!(levels(&again.reduced), [(9, None), (12, Some(Level::Full))]);
    assert_eq!(again.total, sample::sum(&written.full[5..]));
    assert!(seconds(12, 14).reduced.is_empty());

    let report = Report::of_excerpt(&recording, &again);
    assert_eq!(report.recording.duration_ns, 3 * SECOND_NS);
    assert_eq!(report.recording.measured_ns, 2 * SECOND_NS);
}

#[test]
fn sums_of_two_levels_are_kept_apart() {
    // Longer than it is from one checkpoint to the next.
    let written = write(&story(50, 90));
    let whole = open(&written.path);
    assert!(whole.is_complete());
    assert_eq!(whole.total, sample::sum(&written.full));
    assert_eq!(whole.reduced, written.reduced);
    assert_eq!(whole.reduced.duration_ns, 93 * SECOND_NS);
    assert_eq!(whole.reduced.off_ns, 3 * SECOND_NS);
    assert_eq!(whole.measured_ns(), 52 * SECOND_NS);
    let intervals: Vec<_> = whole.intervals().map(|one| one.expect("whole")).collect();
    assert_eq!(intervals, written.full);
}

#[test]
fn a_cut_recording_says_the_same_of_levels() {
    for reduced in [2, 90] {
        let written = write(&story(50, reduced));
        cut(&written.path);
        let recording = open(&written.path);
        assert!(!recording.is_complete());
        assert_eq!(recording.total, sample::sum(&written.full));
        assert_eq!(recording.reduced, written.reduced);
    }
}

#[test]
fn parts_are_of_one_level() {
    for (whole, reduced) in [(4, 6), (600, 600)] {
        let written = write(&story(whole, reduced));
        let parts = open(&written.path).parts(5).expect("it has parts");
        let mut sum = Measured::default();
        for part in &parts {
            assert_ne!(*part, Measured::default());
            sum.add(part);
        }
        assert_eq!(sum, sample::sum(&written.full));
    }
}

fn rendered(report: &Report, format: Format) -> String {
    let mut bytes = Vec::new();
    render(report, format, By::Op, None, &mut bytes).expect("memory takes every write");
    String::from_utf8(bytes).expect("a report is text")
}

#[test]
fn a_report_tells_when_and_why_the_level_changed() {
    let report = Report::new(&open(&write(&story(4, 6)).path));
    assert_golden("reduced.txt", &rendered(&report, Format::Text));
}

#[test]
fn json_has_the_waits_of_the_reduced_time() {
    let written = write(&story(4, 6));
    let report = Report::new(&open(&written.path));
    let json: serde_json::Value =
        serde_json::from_str(&rendered(&report, Format::Json)).expect("it is JSON");
    let reduced = &json["reduced"];
    assert_eq!(reduced["duration_ns"], 9 * SECOND_NS);
    assert_eq!(reduced["steps"].as_array().map(Vec::len), Some(3));
    let contended = written
        .reduced
        .total
        .cells
        .values()
        .map(|cell| cell.contended);
    let shown = reduced["locks"].as_array().expect("it is a list");
    let shown = shown.iter().filter_map(|lock| lock["contended"].as_u64());
    assert_eq!(shown.sum::<u64>(), contended.sum::<u64>());
    assert_eq!(json["recording"]["measured_ns"], 6 * SECOND_NS);
}

#[test]
fn a_recording_at_one_level_has_none_of_it() {
    let path = write(&[Second::Full, Second::Full]);
    let report = Report::new(&open(&path.path));
    assert!(report.reduced.is_none());
    assert_eq!(report.recording.measured_ns, report.recording.duration_ns);
}

#[test]
fn what_the_guard_left_out_is_not_compared() {
    let reduced = write(&story(4, 6));
    let whole = write(&[Second::Full, Second::Full, Second::Full, Second::Full]);
    let open = |written: &Written| Side::open(&written.path, None).expect("it opens");
    let refusal = Comparison::new(&open(&whole), &open(&reduced), false).expect_err("no");
    let text = refusal.to_string();
    assert!(
        text.contains("the guard reduced the level of the candidate for 9.00 s of 15.0 s"),
        "{text}"
    );
    Comparison::new(&open(&whole), &open(&reduced), true).expect("they have rows in common");
}
