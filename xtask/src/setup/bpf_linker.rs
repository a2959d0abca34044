//! bpf-linker, the linker of rustc's BPF target.
//!
//! In: the toolchain. Out: the folder with `bpf-linker` in it, or none if PATH
//! has one that is new enough. It is linked to the LLVM library inside the Rust
//! toolchain, so it reads exactly the bitcode that this rustc writes and no
//! LLVM has to be installed; its name in the cache carries both versions.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{core_source::Toolchain, programs::version_line};
use crate::{
    cargo,
    places::{self, Places},
    steps::Step,
};

pub(super) const VERSION: &str = "0.13.0";

/// The first version, as major and minor, that links what this rustc writes.
const OLDEST: (u32, u32) = (0, 13);

/// The LLVM that the toolchain ships and the linker's feature of that name.
const LLVM: &str = "22";

pub(super) fn provide(
    places: &Places,
    toolchain: &Toolchain,
    step: &Step,
) -> Result<(Option<PathBuf>, String)> {
    let there = || "already there".to_owned();
    if places::in_path("bpf-linker").is_some() && is_new_enough() {
        return Ok((None, there()));
    }
    let name = format!("bpf-linker-{VERSION}-rust-{}", toolchain.version);
    let kept = places.cache.join(&name);
    if kept.join("bin/bpf-linker").is_file() {
        return Ok((Some(kept.join("bin")), there()));
    }
    step.doing("building it, which takes a minute or two");
    let built = build(places, toolchain, &name, step)?;
    Ok((Some(built.join("bin")), "built".to_owned()))
}

fn is_new_enough() -> bool {
    let line = version_line(&mut Command::new("bpf-linker"));
    line.ok()
        .and_then(|line| major_minor(&line))
        .is_some_and(|version| version >= OLDEST)
}

/// Reads `bpf-linker 0.13.0`.
fn major_minor(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split(' ').nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn build(places: &Places, toolchain: &Toolchain, name: &str, step: &Step) -> Result<PathBuf> {
    let scratch = places.scratch()?;
    let [llvm, out, target] = ["llvm", "out", "target"].map(|name| scratch.path().join(name));
    // The linker's build looks for `libLLVM.so` below a prefix; the toolchain's
    // library has a longer name.
    fs::create_dir_all(llvm.join("lib"))?;
    symlink(toolchain_llvm(toolchain)?, llvm.join("lib/libLLVM.so"))?;
    let libraries = toolchain.sysroot.join("lib");
    let mut install = cargo::command(places);
    install
        .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
        // Optimised it takes twice as long to build and no less to run: it is LLVM that does the work.
        .arg("--debug")
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{LLVM}"),
        ])
        .arg("--root")
        .arg(&out)
        .env("CARGO_TARGET_DIR", &target)
        .env("LLVM_PREFIX", &llvm)
        .env(
            "RUSTFLAGS",
            format!("-C link-arg=-Wl,-rpath,{}", libraries.display()),
        );
    step.watch(&mut install)
        .context("failed to build bpf-linker; once that is mended, `cargo xtask setup`")?;
    places.keep(&out, Path::new(name))
}

fn toolchain_llvm(toolchain: &Toolchain) -> Result<PathBuf> {
    let folder = toolchain.sysroot.join("lib");
    let prefix = format!("libLLVM.so.{LLVM}.");
    let entries = fs::read_dir(&folder)
        .with_context(|| format!("failed to list {}; `rustup show`", folder.display()))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| {
            format!(
                "the toolchain has no {prefix}* in {}, so it is not rustup's; install \
                 bpf-linker yourself: `cargo install bpf-linker --version {VERSION} --locked`",
                folder.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_line_is_compared_by_major_and_minor() {
        assert!(major_minor("bpf-linker 0.13.0") >= Some(OLDEST));
        assert!(major_minor("bpf-linker 1.0.2") >= Some(OLDEST));
        assert!(major_minor("bpf-linker 0.9.15") < Some(OLDEST));
        assert_eq!(major_minor("bpf-linker"), None);
    }
}
