//! Programs that come as packages of the machine's distribution: a C compiler
//! (Rust links with it) and QEMU.
//!
//! Owns the only change to the machine's own packages, the installation of
//! QEMU, which needs root.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{command, places, privilege::Privilege, steps::Step};

/// The emulator that the lab boots its kernels in.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

const PACKAGE: &str = "qemu-system-x86";

pub(super) fn c_compiler() -> Result<((), String)> {
    match places::in_path("cc") {
        Some(_) => Ok(((), "already there".to_owned())),
        None => bail!("there is no `cc` in PATH; `apt-get install gcc libc6-dev`"),
    }
}

pub(super) fn qemu(step: &Step) -> Result<((), String)> {
    if places::in_path(QEMU).is_some() {
        return Ok(((), "already there".to_owned()));
    }
    let by_hand = format!(
        "there is no `{QEMU}` in PATH; `sudo apt-get install {PACKAGE}` \
         (or your distribution's package with that program)"
    );
    if places::in_path("apt-get").is_none() {
        bail!(by_hand);
    }
    step.doing("installing the package");
    let installed = apt_get(step, &["install", "-y", "--no-install-recommends", PACKAGE])
        // Lists that are empty or old name no package that can be fetched.
        .or_else(|_| {
            apt_get(step, &["update"])?;
            apt_get(step, &["install", "-y", "--no-install-recommends", PACKAGE])
        });
    installed.context(by_hand)?;
    Ok(((), "installed".to_owned()))
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
