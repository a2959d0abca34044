//! Tests that need a process of their own: what they are about would be that of all others.

use std::env;
use std::process::Command;

/// Runs an ignored test in a process with these variables.
pub(crate) fn passes<'a>(test: &str, variables: impl IntoIterator<Item = (&'a str, String)>) {
    let output = Command::new(env::current_exe().expect("its own path"))
        .envs(variables)
        .args(["--ignored", "--exact", test])
        .output()
        .expect("it can be started again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
