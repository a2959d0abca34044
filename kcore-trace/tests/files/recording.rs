//! What the file format promises: it opens whatever happens to it, and never says what is not so.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::{env, fs};

use kcore_trace::model::{Cell, End, Header, Interval, Loss, Measured, Reduced, Trailer, WORST};
use kcore_trace::recording::{Cut, Recording, RecordingError, RecordingWriter, StagedRecording};
use kcore_trace_ebpf::words::{Intent, Lock, Op};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::own_process;
use crate::sample::{self, SECOND_NS};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/v1.kct");

/// What sudo says of who called it, here.
const SUDO: [(&str, u32); 2] = [("SUDO_UID", 4711), ("SUDO_GID", 4712)];

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("test.kct");
    (folder, path)
}

fn trailer(intervals: &[Interval]) -> Trailer {
    Trailer {
        end: End::Command { code: 0 },
        duration_ns: intervals.len() as u64 * SECOND_NS + 5,
        command_ns: Some(intervals.len() as u64 * SECOND_NS),
        total: sample::sum(intervals),
        reduced: Reduced::default(),
    }
}

fn write(path: &Path, header: &Header, intervals: &[Interval]) {
    let mut writer = RecordingWriter::create(path, false, header).expect("the file is new");
    for interval in intervals {
        writer.append(interval).expect("there is space");
    }
    writer.finish(&trailer(intervals)).expect("there is space");
}

/// Intervals with little in them, so that a file of many stays small.
fn small_intervals(count: u64) -> Vec<Interval> {
    (0..count)
        .map(|index| {
            let mut dice = sample::Dice::new(index);
            let key = sample::exclusive(Lock::NodeBusy, Intent::Write, Op::Alloc);
            let measured = Measured {
                cells: [(key, dice.cell([3, 1], 700, 200))].into(),
                loss: Loss {
                    map_full: 1,
                    in_flight_holds: index,
                    ..Loss::default()
                },
                ..Measured::default()
            };
            sample::interval(index, measured)
        })
        .collect()
}

fn golden_bytes() -> Vec<u8> {
    fs::read(GOLDEN).expect("the golden recording is there")
}

fn golden_intervals() -> Vec<Interval> {
    let mut full = sample::busy(0);
    full.loss.unmatched_releases = 2;
    let small = small_intervals(2).swap_remove(1);
    vec![sample::interval(0, full), small]
}

/// Intervals without a histogram, for tests that open a file thousands of times.
fn bare_intervals(count: u64) -> Vec<Interval> {
    let mut intervals = small_intervals(count);
    for interval in &mut intervals {
        for cell in interval.measured.cells.values_mut() {
            *cell = Cell {
                acquisitions: 3,
                try_failed: 1,
                ..Cell::default()
            };
        }
    }
    intervals
}

fn read_intervals(recording: &Recording) -> Vec<Interval> {
    recording
        .intervals()
        .map(|interval| interval.expect("a whole interval"))
        .collect()
}

fn open_bytes(bytes: &[u8]) -> Result<Recording, RecordingError> {
    let (_folder, path) = folder();
    fs::write(&path, bytes).expect("there is space");
    Recording::open(&path)
}

#[test]
fn what_was_written_is_read_back() {
    let (_folder, path) = folder();
    let intervals = small_intervals(5);
    write(&path, &sample::header(), &intervals);
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.header, sample::header());
    assert_eq!(recording.total, sample::sum(&intervals));
    assert_eq!(recording.duration_ns, 5 * SECOND_NS + 5);
    assert_eq!(recording.command_ns, Some(5 * SECOND_NS));
    assert_eq!(recording.end, Some(End::Command { code: 0 }));
    assert_eq!(recording.cut, None);
    assert!(recording.is_complete());
    assert_eq!(read_intervals(&recording), intervals);
}

#[test]
fn nodes_and_holders_are_read_back_and_add_up() {
    let (_folder, path) = folder();
    let intervals: Vec<_> = (0..200)
        .map(|index| sample::interval(index, sample::per_node(index % 3)))
        .collect();
    write(&path, &sample::per_node_header(), &intervals);
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.total, sample::sum(&intervals));
    assert_eq!(recording.total.nodes.len(), 2);
    assert_eq!(read_intervals(&recording), intervals);
    // Parts are differences of checkpoints.
    let mut parts = Measured::default();
    for part in recording.parts(1).unwrap() {
        parts.add(&part);
    }
    assert_eq!(parts.nodes, recording.total.nodes);
    assert!(!parts.blame.is_empty());
    assert_eq!(parts.blame, recording.total.blame);
}

#[test]
fn what_happened_inside_and_who_read_are_read_back_and_add_up() {
    let (_folder, path) = folder();
    let intervals: Vec<_> = (0..200)
        .map(|index| sample::interval(index, sample::looked(index % 3)))
        .collect();
    write(&path, &sample::looking_header(), &intervals);
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.header, sample::looking_header());
    assert_eq!(recording.total, sample::sum(&intervals));
    let mut parts = Measured::default();
    for part in recording.parts(1).unwrap() {
        parts.add(&part);
    }
    assert!(!parts.inside.is_empty());
    assert_eq!(parts.inside, recording.total.inside);
    assert_eq!(parts.copies, recording.total.copies);
    assert_eq!(parts.readers, recording.total.readers);
    assert_eq!(parts.worst, recording.total.worst);
    assert_eq!(parts.worst.len(), WORST);
}

#[test]
fn every_reason_to_end_is_read_back() {
    for end in [
        End::Duration,
        End::Signal("SIGINT".into()),
        End::Command { code: 137 },
        End::Failed("a map disappeared".into()),
    ] {
        let (_folder, path) = folder();
        let writer = RecordingWriter::create(&path, false, &sample::header()).unwrap();
        let total = Measured::default();
        let trailer = Trailer {
            end: end.clone(),
            duration_ns: 0,
            command_ns: None,
            total,
            reduced: Reduced::default(),
        };
        writer.finish(&trailer).unwrap();
        assert_eq!(Recording::open(&path).unwrap().end, Some(end));
    }
}

#[test]
fn a_recording_is_readable_only_by_its_owner() {
    let (_folder, path) = folder();
    write(&path, &sample::header(), &[]);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    RecordingWriter::create(&path, true, &sample::header()).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_recording_of_root_belongs_to_whoever_called_sudo() {
    let variables = SUDO.map(|(name, id)| (name, id.to_string()));
    own_process::passes("recording::under_sudo", variables);
}

#[test]
#[ignore = "is about the environment of its process; another test runs it"]
fn under_sudo() {
    if env::var_os(SUDO[0].0).is_none_or(|user| user != "4711") {
        return;
    }
    let (folder, path) = folder();
    let own = fs::metadata(&folder).unwrap();
    let expected = match own.uid() {
        0 => (SUDO[0].1, SUDO[1].1),
        user => (user, own.gid()),
    };
    for force in [false, true] {
        RecordingWriter::create(&path, force, &sample::header()).unwrap();
        let recording = fs::metadata(&path).unwrap();
        assert_eq!((recording.uid(), recording.gid()), expected);
        assert_eq!(recording.mode() & 0o777, 0o600);
    }
}

#[test]
fn a_recording_can_be_read_while_it_grows() {
    let (_folder, path) = folder();
    let mut writer = RecordingWriter::create(&path, false, &sample::header()).unwrap();
    let intervals = bare_intervals(150);
    for (done, interval) in intervals.iter().enumerate() {
        let recording = Recording::open(&path).unwrap();
        assert_eq!(recording.total, sample::sum(&intervals[..done]));
        assert_eq!(recording.duration_ns, done as u64 * SECOND_NS);
        assert_eq!(recording.cut.unwrap().lost_bytes, 0);
        writer.append(interval).unwrap();
    }
    assert_eq!(writer.total(), &sample::sum(&intervals));
    assert_eq!(read_intervals(&Recording::open(&path).unwrap()), intervals);
}

#[test]
fn an_existing_recording_is_not_replaced_unless_that_is_asked_for() {
    let (_folder, path) = folder();
    write(&path, &sample::header(), &small_intervals(1));
    let before = fs::read(&path).unwrap();
    let error = RecordingWriter::create(&path, false, &sample::header()).unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn force_replaces_a_recording_and_leaves_nothing_beside_it() {
    let (folder, path) = folder();
    write(&path, &sample::header(), &small_intervals(3));
    let writer = RecordingWriter::create(&path, true, &sample::header()).unwrap();
    writer.finish(&trailer(&[])).unwrap();
    assert_eq!(read_intervals(&Recording::open(&path).unwrap()), []);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn force_replaces_what_a_link_leads_to_and_keeps_the_link() {
    let (folder, path) = folder();
    let link = folder.path().join("link.kct");
    fs::write(&path, "old").unwrap();
    symlink(&path, &link).unwrap();
    RecordingWriter::create(&link, true, &sample::header()).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(Recording::open(&path).unwrap().header, sample::header());
}

#[test]
fn what_would_be_replaced_stays_until_the_new_recording_takes_its_place() {
    let (folder, path) = folder();
    let link = folder.path().join("link.kct");
    fs::write(&path, "old").unwrap();
    symlink(&path, &link).unwrap();
    let stage = || StagedRecording::create(&link, true, &sample::header()).unwrap();
    stage().discard();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read(&link).unwrap(), b"old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    let staged = stage();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    staged.place().unwrap();
    assert_eq!(Recording::open(&link).unwrap().header, sample::header());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_new_recording_that_is_discarded_is_gone() {
    let (folder, path) = folder();
    let staged = StagedRecording::create(&path, false, &sample::header()).unwrap();
    staged.discard();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn where_no_recording_can_be_is_known_before_there_is_one() {
    let (folder, path) = folder();
    let refused = |path: &Path, force| StagedRecording::check(path, force).unwrap_err().to_string();
    StagedRecording::check(&path, false).unwrap();
    fs::write(&path, b"old").unwrap();
    StagedRecording::check(&path, true).unwrap();
    assert!(refused(&path, false).ends_with("--force replaces it, -o names another"));
    // Which --force would not help.
    for path in [Path::new("/dev/full"), folder.path()] {
        for force in [false, true] {
            assert!(refused(path, force).ends_with("so no recording can be kept there"));
        }
    }
    let missing = folder.path().join("a/b");
    let remedy = format!("`mkdir -p {}` makes it", missing.display());
    for force in [false, true] {
        let path = missing.join("x.kct");
        assert!(refused(&path, force).ends_with(&remedy));
        let error = RecordingWriter::create(&path, force, &sample::header()).unwrap_err();
        assert!(error.to_string().ends_with(&remedy), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn nothing_but_a_regular_file_is_written_to() {
    let (folder, _) = folder();
    for path in [Path::new("-"), Path::new("/dev/null"), folder.path()] {
        let error = RecordingWriter::create(path, true, &sample::header()).unwrap_err();
        assert!(matches!(error, RecordingError::NotAFile { .. }), "{error}");
    }
}

#[test]
fn a_recording_cut_at_any_byte_opens_with_all_that_is_whole_or_says_what_is_missing() {
    let (_folder, path) = folder();
    let intervals = bare_intervals(3);
    write(&path, &sample::header(), &intervals);
    let bytes = fs::read(&path).unwrap();
    let mut most = 0;
    for size in 0..bytes.len() {
        fs::write(&path, &bytes[..size]).unwrap();
        match Recording::open(&path) {
            Ok(recording) => {
                let read = read_intervals(&recording);
                assert!(read.len() >= most, "a longer file never holds less");
                most = read.len();
                assert_eq!(read, intervals[..most]);
                assert_eq!(recording.total, sample::sum(&read));
                let lost = recording.cut.map(|cut| cut.offset + cut.lost_bytes);
                assert!(recording.is_complete() || lost == Some(size as u64));
            }
            Err(RecordingError::Empty { .. }) => assert_eq!(size, 0),
            Err(RecordingError::NoHeader { offset, .. }) => assert_eq!(offset, size as u64),
            Err(error) => panic!("at {size}: {error}"),
        }
    }
    assert_eq!(most, 3);
}

#[test]
fn a_cut_recording_is_added_up_from_its_last_checkpoint() {
    let (_folder, path) = folder();
    let intervals = small_intervals(130);
    write(&path, &sample::header(), &intervals);
    let bytes = fs::read(&path).unwrap();
    let recording = open_bytes(&bytes[..bytes.len() - 200]).unwrap();
    assert_eq!(recording.total, sample::sum(&intervals));
    assert_eq!(recording.duration_ns, 130 * SECOND_NS);
    assert!(!recording.is_complete());
    assert_eq!(
        recording.total.loss.in_flight_holds, 129,
        "the last state stands"
    );
}

#[test]
fn the_parts_of_a_recording_add_up_to_its_total_however_many_intervals_it_has() {
    for count in [0, 1, 7, 64, 700] {
        let (_folder, path) = folder();
        let intervals = small_intervals(count);
        write(&path, &sample::header(), &intervals);
        let recording = Recording::open(&path).unwrap();
        let parts = recording.parts(5).unwrap();
        assert_eq!(parts.len() as u64, count.clamp(1, 5), "{count} intervals");
        let mut total = Measured::default();
        for part in &parts {
            total.add(part);
        }
        assert_eq!(total, recording.total, "{count} intervals");
        // Every interval lost one sample, so losses tell how many are in a part; each end of a part
        // is at most half of what is between two checkpoints away from where it should be.
        let lengths = parts.iter().map(|part| part.loss.map_full);
        let (shortest, longest) = (lengths.clone().min().unwrap(), lengths.max().unwrap());
        assert!(longest - shortest <= 128, "{shortest} to {longest}");
    }
}

#[test]
fn parts_of_a_recording_that_is_damaged_inside_are_an_error() {
    let (_folder, path) = folder();
    write(&path, &sample::header(), &small_intervals(1_000));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 2_000].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let error = Recording::open(&path).unwrap().parts(5).unwrap_err();
    assert!(matches!(error, RecordingError::Corrupt { .. }), "{error}");
}

#[test]
fn an_excerpt_has_the_intervals_that_begin_in_it() {
    let (_folder, path) = folder();
    let intervals = small_intervals(200);
    write(&path, &sample::header(), &intervals);
    let recording = Recording::open(&path).unwrap();
    let half_ns = SECOND_NS / 2;
    for (from_ns, to_ns, first, last) in [
        (0, u64::MAX, 0, 199),
        (0, 1, 0, 0),
        (SECOND_NS, 5 * SECOND_NS, 1, 4),
        (SECOND_NS + 1, 5 * SECOND_NS + 1, 2, 5),
        (70 * SECOND_NS - half_ns, 199 * SECOND_NS, 70, 198),
        (199 * SECOND_NS, u64::MAX, 199, 199),
    ] {
        let excerpt = recording.between(from_ns, to_ns).unwrap();
        assert_eq!(excerpt.total, sample::sum(&intervals[first..=last]));
        assert_eq!(excerpt.start_ns, intervals[first].start_ns);
        assert_eq!(excerpt.end_ns, intervals[last].end_ns);
        assert!(excerpt.reduced.is_empty());
    }
}

#[test]
fn adjacent_excerpts_add_up_to_what_is_recorded_even_if_its_end_is_missing() {
    let (_folder, path) = folder();
    write(&path, &sample::header(), &small_intervals(150));
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 200);
    let recording = open_bytes(&bytes).unwrap();
    assert!(!recording.is_complete());
    let mut total = Measured::default();
    let times = [
        0,
        3,
        1_000_000_007,
        42 * SECOND_NS,
        149 * SECOND_NS,
        u64::MAX,
    ];
    for (from_ns, to_ns) in times.iter().zip(&times[1..]) {
        if let Ok(excerpt) = recording.between(*from_ns, *to_ns) {
            total.add(&excerpt.total);
        }
    }
    assert_eq!(total, recording.total);
}

#[test]
fn an_excerpt_without_an_interval_is_an_error_that_says_how_long_the_recording_is() {
    let (_folder, path) = folder();
    write(&path, &sample::header(), &small_intervals(5));
    let recording = Recording::open(&path).unwrap();
    for (from_ns, to_ns) in [
        (1, 2),
        (5 * SECOND_NS, u64::MAX),
        (3 * SECOND_NS, SECOND_NS),
    ] {
        let error = recording.between(from_ns, to_ns).unwrap_err().to_string();
        assert!(
            error.starts_with("no interval of recording") && error.ends_with("measured 5.00 s"),
            "{error}"
        );
    }
}

#[test]
fn a_damaged_footer_costs_nothing() {
    let (_folder, path) = folder();
    let intervals = small_intervals(300);
    write(&path, &sample::header(), &intervals);
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cut = whole[..whole.len() - 10].to_vec();
    let longer = [&whole[..], b"appended"].concat();
    for bytes in [flipped, cut, longer] {
        let recording = open_bytes(&bytes).unwrap();
        assert!(recording.is_complete());
        assert_eq!(recording.total, sample::sum(&intervals));
        assert_eq!(read_intervals(&recording), intervals);
        let excerpt = recording.between(299 * SECOND_NS, u64::MAX).unwrap();
        assert_eq!(excerpt.total, sample::sum(&intervals[299..]));
        for most in [2, 20] {
            let mut total = Measured::default();
            for part in recording.parts(most).unwrap() {
                total.add(&part);
            }
            assert_eq!(total, recording.total);
        }
    }
}

#[test]
fn a_torn_end_is_named_with_its_place_and_size() {
    let (_folder, path) = folder();
    let mut writer = RecordingWriter::create(&path, false, &sample::header()).unwrap();
    writer.append(&small_intervals(1)[0]).unwrap();
    drop(writer);
    let mut bytes = fs::read(&path).unwrap();
    let whole = bytes.len() as u64;
    bytes.extend([2, 200, 0, 0, 0, 1, 2, 3, 4, 5]);
    let cut = Cut {
        offset: whole,
        lost_bytes: 10,
    };
    assert_eq!(open_bytes(&bytes).unwrap().cut, Some(cut));
}

#[test]
fn a_tail_of_zeros_after_a_power_failure_is_a_cut() {
    let (_folder, path) = folder();
    let mut writer = RecordingWriter::create(&path, false, &sample::header()).unwrap();
    let intervals = small_intervals(2);
    intervals
        .iter()
        .for_each(|interval| writer.append(interval).unwrap());
    drop(writer);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend([0; 4096]);
    let recording = open_bytes(&bytes).unwrap();
    assert_eq!(recording.total, sample::sum(&intervals));
    assert_eq!(recording.cut.unwrap().lost_bytes, 4096);
}

#[test]
fn what_is_no_recording_is_refused_in_one_line_that_names_it() {
    let (_folder, path) = folder();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = Recording::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("test.kct") && !error.contains('\n'),
            "{error}"
        );
        error
    };
    assert!(refused(b"").contains("empty"));
    assert!(refused(b"\x7fELF is something else").contains("not a recording"));
    assert!(refused(b"\x89kct\n\x1a\n\x01\0 in text mode").contains("not a recording"));
    assert!(refused(b"\x89kct\r\n\x1a\n\x02\0").contains("newer kcore-trace"));
    assert!(refused(b"\x89kct\r\n\x1a\n\0\0").contains("byte 8"));
    assert!(refused(b"\x89kct\r\n\x1a\n\x01\0").contains("inside its header"));
    assert!(refused(b"\x89kct").contains("byte 4"));
}

#[test]
fn a_file_that_is_not_there_is_said_to_be_not_there() {
    let (folder, path) = folder();
    let error = Recording::open(&path).unwrap_err();
    assert!(matches!(error, RecordingError::NotFound { .. }), "{error}");
    let error = Recording::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("name a file that `kcore-trace record` wrote"),
        "{error}"
    );
}

#[test]
fn frames_and_fields_of_a_later_tool_are_skipped() {
    let (_folder, path) = folder();
    let mut writer = RecordingWriter::create(&path, false, &sample::header()).unwrap();
    let intervals = small_intervals(1);
    writer.append(&intervals[0]).unwrap();
    drop(writer);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(frame(200, b"nobody knows this"));
    let later = serde_json::json!({
        "start_ns": SECOND_NS, "end_ns": 2 * SECOND_NS, "mood": "good",
        "measured": { "loss": { "map_full": 7, "mood": 1 }, "mood": [1, 2] },
    });
    bytes.extend(frame(2, &rmp_serde::to_vec_named(&later).unwrap()));
    let recording = open_bytes(&bytes).unwrap();
    assert_eq!(recording.total.loss.map_full, 8);
    assert_eq!(recording.duration_ns, 2 * SECOND_NS);
    assert_eq!(recording.cut.unwrap().lost_bytes, 0);
}

#[test]
fn a_record_that_is_whole_and_makes_no_sense_is_corrupt_at_its_place() {
    let (_folder, path) = folder();
    drop(RecordingWriter::create(&path, false, &sample::header()).unwrap());
    let mut bytes = fs::read(&path).unwrap();
    let place = bytes.len() as u64;
    bytes.extend(frame(2, b"\xc1"));
    let error = open_bytes(&bytes).unwrap_err();
    assert!(
        matches!(error, RecordingError::Corrupt { offset, .. } if offset == place),
        "{error}"
    );
}

/// A frame as the specification has it.
pub(crate) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_le_bytes();
    let crc = crc32fast::hash(&[&[kind], &length[..], payload].concat());
    [&[kind], &length[..], &crc.to_le_bytes(), payload].concat()
}

#[test]
fn the_recording_of_version_1_opens_forever() {
    let recording = Recording::open(Path::new(GOLDEN)).unwrap();
    let intervals = golden_intervals();
    assert_eq!(recording.header, sample::header());
    assert_eq!(recording.total, sample::sum(&intervals));
    assert_eq!(recording.end, Some(End::Command { code: 0 }));
    assert_eq!(read_intervals(&recording), intervals);
}

/// The file was written when version 1 was new. Were it written again by a later tool, it would
/// prove nothing.
#[test]
#[ignore = "writes the golden recording, which is done once for each version of the format"]
fn write_the_recording_of_version_1() {
    write(Path::new(GOLDEN), &sample::header(), &golden_intervals());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn a_flipped_bit_is_never_believed(place in any::<prop::sample::Index>(), bit in 0u32..8) {
        let mut bytes = golden_bytes();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let intervals = golden_intervals();
        if let Ok(recording) = open_bytes(&bytes) {
            let read: Vec<_> = recording.intervals().take_while(Result::is_ok).flatten().collect();
            prop_assert_eq!(&read[..], &intervals[..read.len()]);
            if recording.is_complete() {
                prop_assert_eq!(&recording.total, &sample::sum(&intervals));
            } else {
                prop_assert!(recording.cut.is_some());
                prop_assert_eq!(&recording.total, &sample::sum(&read));
            }
            prop_assert_eq!(&recording.header, &sample::header());
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(tail in prop::collection::vec(any::<u8>(), 0..200), place in any::<prop::sample::Index>()) {
        let mut bytes = golden_bytes();
        bytes.truncate(place.index(bytes.len()));
        bytes.extend(tail);
        if let Ok(recording) = open_bytes(&bytes) {
            recording.intervals().for_each(drop);
        }
    }

    #[test]
    fn no_payload_makes_the_reader_panic(kind in 1u8..6, payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_folder, path) = folder();
        drop(RecordingWriter::create(&path, false, &sample::header()).expect("the file is new"));
        let mut bytes = fs::read(&path).expect("it was just written");
        bytes.extend(frame(kind, &payload));
        if let Ok(recording) = open_bytes(&bytes) {
            recording.intervals().for_each(drop);
        }
    }
}
