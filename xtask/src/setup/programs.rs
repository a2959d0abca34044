//! Programs that come as packages of the machine's distribution: a C compiler
//! (Rust links with it), QEMU, and what compiling kernels takes.
//!
//! Owns the only change to the machine's own packages, the installation of
//! these, which needs root.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{command, places, privilege::Privilege, steps::Step};

/// The emulator that the lab boots its kernels in.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

pub(super) fn c_compiler() -> Result<((), String)> {
    match places::in_path("cc") {
        Some(_) => Ok(((), "already there".to_owned())),
        None => bail!("there is no `cc` in PATH; `apt-get install gcc libc6-dev`"),
    }
}

pub(super) fn qemu(step: &Step) -> Result<((), String)> {
    install(step, &[(Sign::Program(QEMU), "qemu-system-x86")])
}

/// What compiling a kernel takes beside the C compiler.
pub(super) fn kernel_build(step: &Step) -> Result<((), String)> {
    install(
        step,
        &[
            (Sign::Program("make"), "make"),
            (Sign::Program("flex"), "flex"),
            (Sign::Program("bison"), "bison"),
            (Sign::Program("bc"), "bc"),
            (Sign::Program("perl"), "perl"),
            (Sign::Program("pahole"), "pahole"),
            (Sign::Program("xz"), "xz-utils"),
            (Sign::Header("libelf.h"), "libelf-dev"),
        ],
    )
}

/// What a package puts on the machine.
enum Sign {
    Program(&'static str),
    /// Below /usr/include.
    Header(&'static str),
}

impl Sign {
    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => places::in_path(name).is_some(),
            Self::Header(name) => Path::new("/usr/include").join(name).is_file(),
        }
    }
}

/// Installs the packages of which nothing is there yet.
fn install(step: &Step, wanted: &[(Sign, &'static str)]) -> Result<((), String)> {
    let missing = wanted.iter().filter(|(sign, _)| !sign.is_there());
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(((), "already there".to_owned()));
    }
    let names = packages.join(" ");
    let by_hand = format!(
        "this machine lacks {names}; `sudo apt-get install {names}` \
         (or your distribution's packages of the same kind)"
    );
    if places::in_path("apt-get").is_none() {
        bail!(by_hand);
    }
    step.doing(&format!("installing {names}"));
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    let installed = apt_get(step, &arguments)
        // Lists that are empty or old name no package that can be fetched.
        .or_else(|_| {
            apt_get(step, &["update"])?;
            apt_get(step, &arguments)
        });
    installed.context(by_hand)?;
    Ok(((), format!("installed {names}")))
}

fn apt_get(step: &Step, arguments: &[&str]) -> Result<()> {
    let privilege = Privilege::find();
    let mut install = privilege
        .command("env")
        .context("not root, and no sudo without a password")?;
    install
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"])
        .args(arguments);
    match privilege {
        Privilege::SudoAsks => step.suspended(|| command::run(&mut install)),
        _ => step.watch(&mut install),
    }
}

/// The first line that `program --version` prints.
pub(super) fn version_line(program: &mut Command) -> Result<String> {
    let text = command::output(program.arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
