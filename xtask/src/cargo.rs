//! Calling cargo.
//!
//! Owns how the chores build this workspace: which cargo, with which PATH and
//! which settings. All checks of what runs on the host share one file of settings,
//! so no two of them rebuild each other's work; they say there why.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{command::shown, places::Places, setup::Tools};

/// The settings of every check, below the workspace's root.
const SETTINGS: &str = "xtask/checks.toml";

/// The test target that is the guest's only file.
const GUEST_TEST: &str = "vm";

/// Cargo in the workspace; the one that runs this program, if cargo does.
pub(crate) fn command(places: &Places) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&places.root);
    cargo
}

/// Cargo for a build, with bpf-linker in PATH and the target folder that the
/// chores look in, whatever the user's configuration says.
pub(crate) fn build(places: &Places, tools: &Tools) -> Result<Command> {
    let mut cargo = command(places);
    cargo
        .env("PATH", tools.path()?)
        .env("CARGO_TARGET_DIR", &places.target);
    Ok(cargo)
}

/// A subcommand of cargo for the whole workspace, as all checks call it.
pub(crate) fn check(places: &Places, tools: &Tools, subcommand: &str) -> Result<Command> {
    let mut cargo = build(places, tools)?;
    cargo.args([subcommand, "--config", SETTINGS, "--locked", "--workspace"]);
    // These would replace the flags of the settings.
    for variable in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTDOCFLAGS"] {
        cargo.env_remove(variable);
    }
    Ok(cargo)
}

/// Clippy for the programs that run in the kernel. To all other checks they are an empty binary: they are
/// compiled for another target, with `core` from source, which stable Rust does only when it is told that it
/// may, in a folder where nothing else is compiled that way. As in `kcore-trace/build.rs`, which builds them.
pub(crate) fn lint_programs(places: &Places, tools: &Tools) -> Result<Command> {
    let mut clippy = build(places, tools)?;
    clippy
        .args(["clippy", "--locked", "--package", "kcore-trace-ebpf"])
        .args(["--bin", "probes", "--target", "bpfel-unknown-none"])
        .args(["-Z", "build-std=core"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "--cfg=bpf_target_arch=\"x86_64\"",
        )
        .env("CARGO_TARGET_DIR", places.target.join("programs"));
    Ok(clippy)
}

/// Builds the static binary of the VM tests and says where it is.
pub(crate) fn guest_binary(places: &Places, tools: &Tools) -> Result<PathBuf> {
    built_guest(places, tools, &[])
}

/// The same as users get the tool, for measuring what it takes.
pub(crate) fn release_guest_binary(places: &Places, tools: &Tools) -> Result<PathBuf> {
    built_guest(places, tools, &["--release"])
}

fn built_guest(places: &Places, tools: &Tools, profile: &[&str]) -> Result<PathBuf> {
    let mut cargo = check(places, tools, "test")?;
    cargo.args(profile);
    cargo.args(["--no-run", "--test", GUEST_TEST]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to start `{}`", shown(&cargo)))?;
    if !output.status.success() {
        bail!("{}: `{}`", output.status, shown(&cargo));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    executable(&messages, GUEST_TEST)
        .with_context(|| format!("no executable came from `{}`; `cargo clean`", shown(&cargo)))
}

/// The executable of the test target `test` in cargo's JSON messages.
fn executable(messages: &str, test: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["target"]["name"] == test)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_that_of_the_named_target() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"kcore-trace"},"executable":"/t/kcore-trace"}
not json
{"reason":"compiler-artifact","target":{"name":"vm"},"executable":"/t/vm-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "vm"), Some(PathBuf::from("/t/vm-1")));
        assert_eq!(executable(messages, "other"), None);
    }
}
