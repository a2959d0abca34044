//! What the tool says where it cannot do what it is told, and that what it says is not lost.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::sample;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kcore-trace"));
    command.args(arguments);
    command
}

/// Runs the tool and gives its exit code, stdout and stderr.
pub(crate) fn tool(arguments: &[&str]) -> (i32, String, String) {
    let output = command(arguments).output().expect("the tool was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().expect("it ends by itself");
    (code, text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_cannot_be_is_refused_with_what_could_be() {
    let address = "it has to be an address and a port, such as 127.0.0.1:9464";
    for (arguments, remedy) in [
        (&["record", "-d", "0"][..], "it has to be longer than 0"),
        (&["record", "-i", "0"], "it has to be longer than 0"),
        (&["record", "-i", "2h"], "it has to be between 10ms and 1h"),
        (
            &["record", "--level", "none"],
            "possible values: contended, full",
        ),
        (&["record", "--listen", "9464"], address),
        (&["serve", "--listen", "localhost:9464"], address),
        (&["serve", "--listen", "127.0.0.1:99999"], address),
        (&["stress", "--ops", "0"], "it has to be 1 or more"),
        (&["stress", "--maps", "0"], "--threads has to be 1 or more"),
        (
            &["report", "/dev/null"],
            "name a file that `kcore-trace record` wrote",
        ),
        (
            &["report", "nowhere.kct"],
            "`kcore-trace record` writes one",
        ),
    ] {
        let (code, out, error) = tool(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(error.contains(remedy), "{arguments:?}: {error}");
    }
}

#[test]
fn what_every_command_takes_stands_behind_what_is_its_own() {
    for command in ["plan", "record", "serve", "report", "compare", "stress"] {
        let (code, help, _) = tool(&[command, "--help"]);
        let at = |option: &str| help.rfind(option).expect("the option is there");
        let own = help.rfind("\n      --").expect("it has options of its own");
        assert_eq!(code, 0);
        assert!(
            own < at("-v, --verbose") && at("-v, --verbose") < at("-h, --help"),
            "{help}"
        );
    }
}

#[test]
fn what_stdout_does_not_take_is_an_error_and_a_closed_pipe_is_none() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("test.kct");
    let facts = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plans/6.12.facts.json");
    let writer = kcore_trace::recording::RecordingWriter::create(&path, false, &sample::header());
    writer
        .expect("the file is new")
        .append(&sample::interval(0, sample::busy(0)))
        .expect("there is space");
    let path = path.to_str().expect("it is text");
    for arguments in [
        &["report", path][..],
        &["report", path, "--format", "json"],
        &["compare", path, path],
        &["plan", "--facts", facts],
        &["--help"],
    ] {
        let full = File::options().write(true).open("/dev/full");
        let full = full.expect("Linux has it");
        let output = command(arguments)
            .stdout(full)
            .stderr(Stdio::piped())
            .output();
        let output = output.expect("the tool was built");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = error.contains("failed to write to stdout: No space left on device");
        assert!(said || arguments == ["--help"], "{arguments:?}: {error}");
        let (reader, writer) = std::io::pipe().expect("there are pipes");
        drop(reader);
        let closed = command(arguments).stdout(writer).status();
        let code = closed.expect("the tool was built").code();
        assert_eq!(code, Some(0), "{arguments:?}");
    }
}
