//! Builds the programs of `kcore-trace-ebpf` and puts their objects where the crate embeds them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};
use object::build::elf::{Builder, SectionData};

/// What to do when the linker of BPF objects is not there.
const REMEDY: &str = "run `cargo xtask setup`, which installs it and prints the PATH to use";

/// With conditional jumps by "less than", which Linux 4.14 and later know. Version 3 has 32-bit arithmetic
/// as well, which costs more moves than it saves.
const PROCESSOR: &str = "-Ctarget-cpu=v2";

fn main() -> Result<()> {
    let object = PathBuf::from(env::var("OUT_DIR")?).join("probes");
    if is_linted() {
        return Ok(fs::write(object, "")?);
    }
    println!("cargo:rerun-if-env-changed=PATH");
    if Command::new("bpf-linker")
        .arg("--version")
        .output()
        .is_err()
    {
        bail!("bpf-linker is not in PATH: {REMEDY}");
    }
    // SAFETY: a build script has one thread here. `core` is built from source for the BPF target,
    // which stable Rust does only when it is told that it may.
    unsafe {
        env::set_var("RUSTC_BOOTSTRAP", "1");
        env::set_var("CARGO_UNSTABLE_PROFILE_RUSTFLAGS", "true");
        env::set_var("CARGO_PROFILE_RELEASE_RUSTFLAGS", PROCESSOR);
        // Build scripts and macros run here. Something has to be set, or they get the same.
        env::set_var(
            "CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_RUSTFLAGS",
            "-Copt-level=0",
        );
    };
    let programs = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../kcore-trace-ebpf");
    let root_dir = programs
        .to_str()
        .context("the path of the workspace is not UTF-8")?;
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".into());
    let package = Package {
        name: "kcore-trace-ebpf",
        root_dir,
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain))?;
    strip(&object).with_context(|| format!("failed to strip `{}`", object.display()))
}

/// Whether nothing comes of this build that could run: clippy only asks that there is an object, and
/// cargo keeps what it builds for clippy apart from all else.
fn is_linted() -> bool {
    let wrapper = env::var_os("RUSTC_WORKSPACE_WRAPPER").map(PathBuf::from);
    wrapper.is_some_and(|path| path.file_stem().is_some_and(|name| name == "clippy-driver"))
}

/// Removes what is of no use at run time and nine tenths of an object: debug information, and the
/// types and lines of our own programs (those of the kernel are read from the kernel).
fn strip(path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    let mut object = Builder::read(bytes.as_slice())?;
    for section in &mut object.sections {
        let name = String::from_utf8_lossy(&section.name);
        let name = name.strip_prefix(".rel").unwrap_or(&name);
        section.delete = name.starts_with(".debug") || name.starts_with(".BTF");
    }
    object.delete_orphans();
    // LLVM keeps the names of sections among those of symbols; the writer wants a table for each.
    let names = object.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    object.write(&mut stripped)?;
    Ok(fs::write(path, stripped)?)
}
