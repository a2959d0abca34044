//! Builds the programs of `kcore-trace-ebpf` and puts their object where the crate embeds it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

/// What to do when the linker of BPF objects is not there.
const REMEDY: &str = "run `cargo xtask setup`, which installs it and prints the PATH to use";

const TARGET: &str = "bpfel-unknown-none";

const FLAGS: [&str; 3] = [
    // How aya's crates are told whose registers a probe sees.
    "--cfg=bpf_target_arch=\"x86_64\"",
    // With conditional jumps by "less than", which Linux 4.14 and later know. Version 3 has 32-bit
    // arithmetic as well, which costs more moves than it saves.
    "-Ctarget-cpu=v2",
    // The types of the kernel are read from the kernel, and nobody asks for those of our programs, which
    // would be nine tenths of the object.
    "-Cdebuginfo=0",
];

fn main() -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let object = out.join("probes");
    if is_linted() {
        return Ok(fs::write(object, "")?);
    }
    let crates = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    for input in ["kcore-trace-ebpf", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", crates.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");
    if Command::new("bpf-linker")
        .arg("--version")
        .output()
        .is_err()
    {
        bail!("bpf-linker is not in PATH: {REMEDY}");
    }
    // A folder of its own: that of who runs this is locked.
    let folder = out.join("programs");
    build(&crates.join("kcore-trace-ebpf"), &folder)?;
    let built = folder.join(TARGET).join("release/probes");
    fs::copy(&built, object).with_context(|| format!("no `{}` was built", built.display()))?;
    Ok(())
}

/// Whether nothing comes of this build that could run: clippy only asks that there is an object, and
/// cargo keeps what it builds for clippy apart from all else.
fn is_linted() -> bool {
    let wrapper = env::var_os("RUSTC_WORKSPACE_WRAPPER").map(PathBuf::from);
    wrapper.is_some_and(|path| path.file_stem().is_some_and(|name| name == "clippy-driver"))
}

/// Runs cargo for the BPF target, and passes on what the compiler has to say.
fn build(programs: &Path, folder: &Path) -> Result<()> {
    let mut cargo = Command::new(env::var_os("CARGO").context("CARGO is not set")?);
    cargo
        .current_dir(programs)
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--bin", "probes", "--target", TARGET, "--target-dir"])
        .arg(folder)
        // `core` is built from source for this target, which stable Rust does only when it is told that it
        // may.
        .args(["-Z", "build-std=core"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_BUILD_BUILD_DIR", folder)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        // Who runs this has set it for the crates of the host.
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let output = cargo.output().context("failed to start cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("the programs cannot be built: {}\n{said}", output.status);
    }
    for line in said.lines() {
        println!("cargo::warning={line}");
    }
    Ok(())
}
