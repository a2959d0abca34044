//! The source of `core`, which no toolchain ships compiled for BPF.
//!
//! In: the workspace's toolchain. Out: the same toolchain with
//! `lib/rustlib/src/rust/library` in its sysroot, where cargo's build-std looks
//! for it. Debian's package comes before rustup's component, as a machine may
//! reach nothing but a package archive; its version must be the compiler's,
//! digit by digit.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::programs::version_line;
use crate::{
    command,
    debian::{self, Apt},
    places::Places,
    steps::Step,
};

/// The toolchain that builds this workspace.
pub(super) struct Toolchain {
    pub(super) sysroot: PathBuf,
    /// Its version, as in `1.95.0`.
    pub(super) version: String,
}

impl Toolchain {
    /// Asks rustc from within the workspace, where rustup obeys
    /// rust-toolchain.toml.
    fn find(places: &Places) -> Result<Self> {
        let rustc = || {
            let mut rustc = Command::new("rustc");
            rustc.current_dir(&places.root);
            rustc
        };
        let sysroot = command::output(rustc().args(["--print", "sysroot"]))?
            .trim()
            .into();
        let line = version_line(&mut rustc())?;
        let version = line.split(' ').nth(1).with_context(|| {
            format!("rustc calls itself `{line}`; `rustup toolchain install 1.95.0`")
        })?;
        Ok(Self {
            sysroot,
            version: version.to_owned(),
        })
    }

    fn source(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    fn has_core(&self) -> bool {
        self.source().join("library/core").is_dir()
    }
}

pub(super) fn provide(places: &Places, step: &Step) -> Result<(Toolchain, String)> {
    let toolchain = Toolchain::find(places)?;
    if toolchain.has_core() {
        return Ok((toolchain, "already there".to_owned()));
    }
    remove_dangling(&toolchain.source())?;
    let Err(debian_error) = from_debian(places, &toolchain, step) else {
        return Ok((toolchain, "taken from Debian's package".to_owned()));
    };
    step.note(&format!("no package of Debian: {debian_error}"));
    step.doing("asking rustup");
    let mut rustup = Command::new("rustup");
    rustup
        .args(["component", "add", "rust-src"])
        .current_dir(&places.root);
    step.watch(&mut rustup).context(
        "neither Debian's package nor rustup has the source of `core`; \
         `rustup component add rust-src`",
    )?;
    Ok((toolchain, "taken from rustup".to_owned()))
}

fn from_debian(places: &Places, toolchain: &Toolchain, step: &Step) -> Result<()> {
    let name = format!("rust-src-{}", toolchain.version);
    let kept = places.cache.join(&name);
    let kept = if kept.is_dir() {
        kept
    } else {
        fetch(places, toolchain, &name, step)?
    };
    let source = kept.join(format!("usr/src/rustc-{}", toolchain.version));
    link(&source, &toolchain.source())
}

fn fetch(places: &Places, toolchain: &Toolchain, name: &str, step: &Step) -> Result<PathBuf> {
    let apt = Apt::open(places)?;
    apt.update(step)?;
    let same = format!("{}+", toolchain.version);
    let version = apt
        .versions("rust-src")?
        .into_iter()
        .find(|version| version.starts_with(&same))
        .with_context(|| format!("no suite has rust-src {}", toolchain.version))?;
    step.doing("downloading rust-src");
    let scratch = places.scratch()?;
    let deb = apt.download("rust-src", &version, scratch.path(), step)?;
    step.doing("unpacking rust-src");
    let unpacked = scratch.path().join("unpacked");
    fs::create_dir(&unpacked)?;
    let library = format!("./usr/src/rustc-{}/library/*", toolchain.version);
    debian::unpack(&deb, &[&library], &unpacked)?;
    places.keep(&unpacked, Path::new(name))
}

/// Removes the link to a cache that was deleted: it would be in the way of its
/// successor, and of rustup.
fn remove_dangling(place: &Path) -> Result<()> {
    if place.is_symlink() && !place.exists() {
        fs::remove_file(place).with_context(|| {
            format!(
                "failed to remove a link to nowhere; `sudo rm {}`",
                place.display()
            )
        })?;
    }
    Ok(())
}

/// Links `source` into the sysroot, where nothing may be yet.
fn link(source: &Path, place: &Path) -> Result<()> {
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    symlink(source, place).with_context(|| {
        let (source, place) = (source.display(), place.display());
        format!("failed to complete the toolchain; `sudo ln -sfn {source} {place}`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangling_link_of_a_deleted_cache_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (source, place) = (folder.path().join("new"), folder.path().join("src/rust"));
        fs::create_dir(&source).unwrap();
        link(&folder.path().join("gone"), &place).unwrap();
        remove_dangling(&place).unwrap();
        link(&source, &place).unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), source);
    }

    #[test]
    fn existing_source_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("rust");
        fs::create_dir(&place).unwrap();
        remove_dangling(&place).unwrap();
        assert!(link(folder.path(), &place).is_err());
        assert!(place.is_dir() && !place.is_symlink());
    }
}
