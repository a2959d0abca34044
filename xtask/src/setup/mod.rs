//! Putting on this machine what a build and the VM lab need.
//!
//! Owns the list of these things and their order. In: nothing but the machine.
//! Out: [`Tools`], the paths of what was found or fetched. Everything fetched
//! goes to the user's cache under a name that carries its version; the only
//! changes elsewhere are the toolchain's link to the source of `core` and the
//! machine's own packages of QEMU and of what compiles kernels. Doing it twice is cheap, and works offline.

mod bpf_linker;
mod core_source;
mod programs;

pub(crate) use programs::QEMU;

use std::{
    env,
    ffi::OsString,
    fs::File,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    beside::{Beside, THIS_PROGRAM},
    lab::{
        build::{
            self,
            variants::{self, Variant},
        },
        kernels::{self, Kernel},
    },
    places::{Places, wait_for_turn},
    privilege::Privilege,
    steps::{Step, Steps},
};

/// What a build needs.
pub(crate) struct Tools {
    /// The folder of bpf-linker, unless it is in PATH.
    linker_folder: Option<PathBuf>,
}

impl Tools {
    /// PATH for the builds: their eBPF part calls `bpf-linker`.
    pub(crate) fn path(&self) -> Result<OsString> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = self
            .linker_folder
            .iter()
            .cloned()
            .chain(env::split_paths(&path));
        env::join_paths(folders).context("the cache's path contains a colon; set XDG_CACHE_HOME")
    }
}

/// The command `cargo xtask setup`.
pub(crate) fn run(places: &Places) -> Result<ExitCode> {
    let (tools, _kernels) = for_tests(places)?;
    if let Some(folder) = &tools.linker_folder {
        println!(
            "For `cargo build` by hand:\n  export PATH=\"{}:$PATH\"",
            folder.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What a build of the tool needs.
pub(crate) fn for_build(places: &Places) -> Result<Tools> {
    let _lock = lock(places)?;
    build_steps(places, &mut Steps::new(3))
}

/// What all tests need: the build's tools, QEMU and the kernels.
pub(crate) fn for_tests(places: &Places) -> Result<(Tools, Vec<Kernel>)> {
    let _lock = lock(places)?;
    let variants = variants_of(&variants::TESTED);
    provide(places, &variants, &mut steps(&variants))
}

/// The set-up of the kernels that the tests boot, beside what else is done.
pub(crate) struct Kernels(Beside);

impl Kernels {
    /// Begins it, after all that may ask the user for a password: the build's tools, and the packages of this
    /// machine.
    pub(crate) fn begin(places: &Places) -> Result<(Tools, Self)> {
        Privilege::ask();
        let lock = lock(places)?;
        let mut steps = Steps::new(5);
        let tools = build_steps(places, &mut steps)?;
        steps.run("QEMU", programs::qemu)?;
        steps.run("what compiles kernels", programs::kernel_build)?;
        // The other one takes it.
        drop(lock);
        let kernels = Beside::start(Command::new(THIS_PROGRAM).arg("setup"))?;
        Ok((tools, Self(kernels)))
    }

    /// Waits for the kernels, and shows how they came.
    pub(crate) fn end(self, places: &Places) -> Result<Vec<Kernel>> {
        let ended = self.0.end(|text| eprint!("{text}"))?;
        if !ended.status.success() {
            bail!(
                "the set-up ended with {}; `cargo xtask setup`",
                ended.status
            );
        }
        let _lock = lock(places)?;
        let variants = variants_of(&variants::TESTED);
        let mut steps = steps(&variants).again();
        let (_tools, kernels) = provide(places, &variants, &mut steps)?;
        Ok(kernels)
    }
}

/// What a run of the lab needs: the same, and kernels of these names in this order.
pub(crate) fn for_lab(places: &Places, names: &[&str]) -> Result<(Tools, Vec<Kernel>)> {
    let _lock = lock(places)?;
    let variants = variants_of(names);
    let (tools, kernels) = provide(places, &variants, &mut steps(&variants))?;
    let named = |name: &&str| kernels.iter().find(|kernel| kernel.line == *name).cloned();
    let kernels = names.iter().filter_map(named).collect();
    Ok((tools, kernels))
}

/// The build's tools, QEMU, Debian's kernels, and these variants of the lab's.
fn provide(
    places: &Places,
    variants: &[&'static Variant],
    steps: &mut Steps,
) -> Result<(Tools, Vec<Kernel>)> {
    let tools = build_steps(places, steps)?;
    steps.run("QEMU", programs::qemu)?;
    let mut kernels = steps.run("guest kernels", |step| kernels::provide(places, step))?;
    let built = build::provide(places, variants, steps)?;
    kernels.extend(built.into_iter().map(Kernel::from));
    Ok((tools, kernels))
}

fn variants_of(names: &[&str]) -> Vec<&'static Variant> {
    let named = names.iter().filter_map(|name| variants::named(name));
    named.collect()
}

/// As many steps as [`provide`] takes.
fn steps(variants: &[&Variant]) -> Steps {
    Steps::new(5 + build::steps(variants.len()))
}

/// What compiling the lab's kernels needs.
pub(crate) fn kernel_build_programs(step: &Step) -> Result<()> {
    programs::kernel_build(step).map(|(installed, _)| installed)
}

fn build_steps(places: &Places, steps: &mut Steps) -> Result<Tools> {
    steps.run("C compiler", |_| programs::c_compiler())?;
    let toolchain = steps.run("source of `core`", |step| {
        core_source::provide(places, step)
    })?;
    let linker_folder = steps.run(&format!("bpf-linker {}", bpf_linker::VERSION), |step| {
        bpf_linker::provide(places, &toolchain, step)
    })?;
    Ok(Tools { linker_folder })
}

/// One set-up at a time: two would fetch and build the same things.
pub(crate) fn lock(places: &Places) -> Result<File> {
    wait_for_turn(&places.cache, "another set-up is running")
}
