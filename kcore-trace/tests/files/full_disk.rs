//! A recording whose disk is full, simulated by a limit on the size of files. The limit holds for
//! the whole process, so the test runs itself again in one of its own.

use std::path::Path;
use std::{env, fs};

use kcore_trace::model::{End, Interval, Trailer};
use kcore_trace::recording::{Recording, RecordingError, RecordingWriter};

use crate::{own_process, sample};

/// Set for the process that may be limited.
const OWN_PROCESS: &str = "KCORE_TRACE_TEST_OWN_PROCESS";

fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is valid for the call, and ignoring a signal installs no handler.
    let result = unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &limit)
    };
    assert_eq!(result, 0, "a soft limit can always be set");
}

fn append_until_full(
    writer: &mut RecordingWriter,
    intervals: &[Interval],
) -> (usize, RecordingError) {
    for (written, interval) in intervals.iter().enumerate() {
        if let Err(error) = writer.append(interval) {
            return (written, error);
        }
    }
    panic!("the limit was never reached");
}

fn read(path: &Path) -> (Recording, Vec<Interval>) {
    let recording = Recording::open(path).expect("it stays readable");
    let intervals = recording
        .intervals()
        .map(|interval| interval.expect("it is whole"))
        .collect();
    (recording, intervals)
}

#[test]
fn a_full_disk_is_named_and_leaves_a_recording_that_is_readable_and_can_go_on() {
    own_process::passes("full_disk::under_a_limit", [(OWN_PROCESS, "1".into())]);
}

#[test]
#[ignore = "limits the size of files for its whole process; another test runs it"]
fn under_a_limit() {
    if env::var_os(OWN_PROCESS).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.kct");
    let intervals: Vec<_> = (0..20)
        .map(|n| sample::interval(n, sample::busy(n)))
        .collect();

    let mut writer = RecordingWriter::create(&path, false, &sample::header()).unwrap();
    limit_file_size(40_000);
    let (written, error) = append_until_full(&mut writer, &intervals);
    let size = fs::metadata(&path).unwrap().len();
    assert!(
        matches!(error, RecordingError::Full { offset, .. } if offset == size),
        "{error}"
    );
    assert!(
        written > 0 && size < 40_000,
        "a part of the record was taken back"
    );
    let (recording, whole) = read(&path);
    assert_eq!(whole, intervals[..written]);
    assert_eq!(recording.total, sample::sum(&whole));
    assert_eq!(recording.cut.unwrap().lost_bytes, 0);

    limit_file_size(libc::RLIM_INFINITY);
    writer.append(&intervals[written]).unwrap();
    let trailer = Trailer {
        end: End::Duration,
        duration_ns: 1,
        command_ns: None,
        total: writer.total().clone(),
        reduced: writer.reduced().clone(),
    };
    writer.finish(&trailer).unwrap();
    let (recording, whole) = read(&path);
    assert_eq!(whole, intervals[..=written]);
    assert!(recording.is_complete());
}
