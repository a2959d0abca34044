//! What a file can do that no recorder wrote and whose checksums are right: say nonsense, and no more.

use std::fs;
use std::path::Path;

use kcore_trace::compare::{self, Comparison, Side};
use kcore_trace::model::{
    End, Interval, Level, Measured, Reduced, STEPS, Step, StepReason, Trailer,
};
use kcore_trace::recording::{Recording, RecordingError, RecordingWriter};
use kcore_trace::report::{By, Format, Report, render};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::recording::frame;
use crate::sample::{self, Dice};

/// Bytes before the first frame.
const PREAMBLE: usize = 10;
/// Kinds of frames.
const HEADER: u8 = 1;
const INTERVAL: u8 = 2;
const TRAILER: u8 = 4;
const STEP: u8 = 6;
const REDUCED_INTERVAL: u8 = 7;

/// A recording with the header of a recorder and these frames.
fn write(path: &Path, frames: &[Vec<u8>]) {
    let header = sample::auditing_header();
    drop(RecordingWriter::create(path, false, &header).expect("the file is new"));
    let header = fs::read(path).expect("it was just written");
    fs::write(path, [header, frames.concat()].concat()).expect("there is space");
}

fn packed<T: Serialize>(kind: u8, value: &T) -> Vec<u8> {
    frame(
        kind,
        &rmp_serde::to_vec_named(value).expect("it can be written"),
    )
}

/// The same value with numbers that are absurd, here and there.
fn absurd<T: Serialize + DeserializeOwned>(value: &T, dice: &mut Dice) -> T {
    let mut json = serde_json::to_value(value).expect("it can be JSON");
    distort(&mut json, dice);
    serde_json::from_value(json).expect("only numbers changed")
}

fn distort(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Number(number) if number.is_u64() => {
            let absurd = [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX];
            if let Some(absurd) = absurd.get(dice.roll() as usize % 8) {
                *value = (*absurd).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| distort(item, dice)),
        Value::Object(fields) => {
            // These are smaller numbers.
            let fields = fields.iter_mut();
            let large =
                fields.filter(|(name, _)| !["histogram", "pid", "tid"].contains(&name.as_str()));
            large.for_each(|(_, field)| distort(field, dice));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn measured(seed: u64) -> Measured {
    let mut measured = sample::per_node(seed);
    measured.add(&sample::audited(seed));
    measured
}

/// Reads all that there is, in every way.
fn read(path: &Path) -> Result<(), RecordingError> {
    let recording = Recording::open(path)?;
    recording.intervals().for_each(drop);
    for most in [1, 20] {
        recording.parts(most).ok();
    }
    show(&Report::new(&recording));
    if let Ok(excerpt) = recording.between(0, u64::MAX) {
        show(&Report::of_excerpt(&recording, &excerpt));
    }
    let side = || Side::open(path, None).ok();
    if let (Some(a), Some(b)) = (side(), side())
        && let Ok(comparison) = Comparison::new(&a, &b, true)
    {
        for format in [
            compare::Format::Text,
            compare::Format::Json,
            compare::Format::Markdown,
        ] {
            compare::render(&comparison, format, None, &mut Vec::new()).expect("memory has room");
        }
    }
    Ok(())
}

fn show(report: &Report) {
    for by in [By::Op, By::Lock, By::Node, By::Process, By::Site] {
        for format in [Format::Text, Format::Json, Format::Csv] {
            render(report, format, by, None, &mut Vec::new()).expect("memory has room");
        }
    }
}

#[test]
fn a_header_that_is_longer_than_any_command_is_damaged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("long.kct");
    write(&path, &[]);
    let bytes = fs::read(&path).expect("it was written");
    let mut header = sample::header();
    header.command = vec![String::new(); 9 << 20];
    let long = [&bytes[..PREAMBLE], &packed(HEADER, &header)].concat();
    fs::write(&path, long).expect("there is space");
    let error = Recording::open(&path).unwrap_err().to_string();
    assert!(error.ends_with("the header is damaged"), "{error}");
}

#[test]
fn an_interval_that_ends_before_it_begins_is_corrupt() {
    let interval = Interval {
        start_ns: 9,
        end_ns: 3,
        measured: Measured::default(),
    };
    let trailer = Trailer {
        end: End::Duration,
        duration_ns: 9,
        command_ns: None,
        total: Measured::default(),
        reduced: Reduced::default(),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let says = |error: RecordingError| error.to_string().ends_with("ends before it begins");
    for kind in [INTERVAL, REDUCED_INTERVAL] {
        let path = folder.path().join(format!("{kind}.kct"));
        write(&path, &[packed(kind, &interval)]);
        assert!(says(Recording::open(&path).unwrap_err()));
        fs::remove_file(&path).expect("it was written");
        write(&path, &[packed(kind, &interval), packed(TRAILER, &trailer)]);
        let recording = Recording::open(&path).unwrap();
        assert!(says(recording.between(0, u64::MAX).unwrap_err()));
    }
    let path = folder.path().join(format!("{INTERVAL}.kct"));
    let recording = Recording::open(&path).unwrap();
    assert!(says(recording.intervals().next().unwrap().unwrap_err()));
}

/// A change of the level that might be the guard's.
fn step(at_ns: u64) -> Step {
    Step {
        at_ns,
        level: Some(Level::Contended),
        reason: StepReason::Retry { after_ns: 1 },
    }
}

#[test]
fn a_sum_with_more_steps_than_there_may_be_is_corrupt() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let open = |count: usize| {
        let trailer = Trailer {
            end: End::Duration,
            duration_ns: 9,
            command_ns: None,
            total: Measured::default(),
            reduced: Reduced {
                steps: vec![step(1); count],
                ..Reduced::default()
            },
        };
        let path = folder.path().join(format!("{count}.kct"));
        write(&path, &[packed(TRAILER, &trailer)]);
        Recording::open(&path)
    };
    assert_eq!(open(STEPS).unwrap().reduced.steps.len(), STEPS);
    let error = open(STEPS + 1).unwrap_err().to_string();
    assert!(error.ends_with("more than 65536 in a list"), "{error}");
}

#[test]
fn of_steps_without_end_the_first_and_the_last_are_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("steps.kct");
    let last = STEPS as u64 + 9;
    let steps = (0..=last).map(|at_ns| packed(STEP, &step(at_ns)));
    let interval = packed(REDUCED_INTERVAL, &sample::interval(last, measured(1)));
    write(&path, &steps.chain([interval]).collect::<Vec<_>>());
    let recording = Recording::open(&path).unwrap();
    let excerpt = recording.between(0, u64::MAX).unwrap();
    let steps = &recording.reduced.steps;
    assert_eq!(steps.len(), STEPS);
    assert_eq!((steps[1].at_ns, steps[STEPS - 1].at_ns), (1, last));
    assert!(excerpt.reduced.steps.len() <= STEPS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_number_makes_a_reader_panic(seed in any::<u64>(), ended in any::<bool>()) {
        let mut dice = Dice::new(seed);
        let mut frames = Vec::new();
        for index in 0..6 {
            let mut interval = absurd(&sample::interval(index, measured(index)), &mut dice);
            if interval.end_ns < interval.start_ns {
                std::mem::swap(&mut interval.start_ns, &mut interval.end_ns);
            }
            let kind = if index % 3 == 2 { REDUCED_INTERVAL } else { INTERVAL };
            frames.push(packed(kind, &interval));
            let step = Step {
                at_ns: 1,
                level: (index % 2 == 0).then_some(Level::Contended),
                reason: StepReason::Retry { after_ns: 1 },
            };
            frames.push(packed(STEP, &absurd(&step, &mut dice)));
        }
        if ended {
            let trailer = Trailer {
                end: End::Command { code: 0 },
                duration_ns: 6,
                command_ns: Some(5),
                total: measured(1),
                reduced: Reduced {
                    duration_ns: 1,
                    off_ns: 1,
                    steps: Vec::new(),
                    total: measured(2),
                },
            };
            let end = trailer.end.clone();
            let trailer = Trailer { end, ..absurd(&Trailer { end: End::Duration, ..trailer }, &mut dice) };
            frames.push(packed(TRAILER, &trailer));
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("absurd.kct");
        write(&path, &frames);
        read(&path).expect("it makes no sense, and is whole");
    }
}
