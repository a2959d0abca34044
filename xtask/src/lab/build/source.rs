//! The base source: Debian's linux-source-6.1, unpacked in the cache.
//!
//! In: Debian's package lists. Out: a tree with what a kernel for x86-64 needs, in a folder named
//! after the version; the two files that variants change are there a second time, as they came.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::transform::Sources;
use crate::{
    debian::{self, Apt},
    places::Places,
    steps::Step,
};

pub(super) const PACKAGE: &str = "linux-source-6.1";

/// Where sources are, below the cache.
pub(super) const FOLDER: &str = "sources";

/// Rebuilds for an older suite have an older compiler's version in mind.
const REBUILD: &str = "~deb11u";

/// What no kernel of the lab is made of: two thirds of the files. Kconfig reads files below most
/// of these, so only sources are left out.
const LEFT_OUT: [&str; 8] = [
    "Documentation/*/*",
    "arch/[!xu]*/*.[chS]",
    "arch/*.dts*",
    "drivers/gpu/*.[ch]",
    "drivers/net/ethernet/*.[ch]",
    "drivers/net/wireless/*.[ch]",
    "drivers/media/*.[ch]",
    "sound/*.[ch]",
];

/// Unpacked source.
pub(super) struct Tree {
    pub(super) version: String,
    pub(super) folder: PathBuf,
}

const VMALLOC: &str = "mm/vmalloc.c";
const KCORE: &str = "fs/proc/kcore.c";

impl Tree {
    /// Finds or fetches the newest version.
    pub(super) fn provide(places: &Places, step: &Step) -> Result<Self> {
        let newest = Apt::open(places).and_then(|apt| {
            apt.update(step)?;
            let versions = apt.versions(PACKAGE)?;
            let version = versions.into_iter().find(|v| !v.contains(REBUILD));
            let version = version.with_context(|| format!("no suite has {PACKAGE}"))?;
            Ok((apt, version))
        });
        match newest {
            Ok((apt, version)) => {
                let name = Path::new(FOLDER).join(format!("{PACKAGE}_{version}"));
                let folder = places.cache.join(&name);
                if !folder.is_dir() {
                    fetch(places, &apt, &version, &name, step)?;
                }
                Ok(Self { version, folder })
            }
            Err(error) => {
                let cached = Self::cached(places).ok_or_else(|| {
                    error.context(format!("the lab builds its kernels from {PACKAGE}"))
                })?;
                step.note(&format!("using the cached source {}", cached.version));
                Ok(cached)
            }
        }
    }

    /// Some version in the cache.
    fn cached(places: &Places) -> Option<Self> {
        let mut names: Vec<String> = fs::read_dir(places.cache.join(FOLDER))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(PACKAGE))
            .collect();
        names.sort();
        let name = names.pop()?;
        Some(Self {
            version: name.split_once('_')?.1.to_owned(),
            folder: places.cache.join(FOLDER).join(&name),
        })
    }

    /// The files that variants change, as Debian ships them.
    pub(super) fn pristine(&self) -> Result<Sources> {
        Ok(Sources {
            vmalloc: self.read(&pristine(VMALLOC))?,
            kcore: self.read(&pristine(KCORE))?,
        })
    }

    /// Makes these the files that are compiled; what is there already stays untouched, so that it
    /// is not compiled again.
    pub(super) fn put(&self, sources: &Sources) -> Result<()> {
        for (name, text) in [(VMALLOC, &sources.vmalloc), (KCORE, &sources.kcore)] {
            if self.read(name)? != *text {
                fs::write(self.folder.join(name), text)
                    .with_context(|| format!("failed to write {name}; `df {}`", self.shown()))?;
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.folder.join(name)).with_context(|| {
            format!(
                "{name} is not in the cached source; `rm -rf {}`",
                self.shown()
            )
        })
    }

    fn shown(&self) -> impl std::fmt::Display {
        self.folder.display()
    }
}

fn pristine(name: &str) -> String {
    format!("{name}.pristine")
}

fn fetch(places: &Places, apt: &Apt, version: &str, name: &Path, step: &Step) -> Result<()> {
    let scratch = places.scratch()?;
    step.doing(&format!("downloading {PACKAGE} {version}"));
    let deb = apt.download(PACKAGE, version, scratch.path(), step)?;
    step.doing(&format!("unpacking {PACKAGE} {version}"));
    let archive = format!("./usr/src/{PACKAGE}.tar.xz");
    debian::unpack(&deb, &[&archive], scratch.path())?;
    let mut tar = Command::new("tar");
    tar.current_dir(scratch.path()).args(["-xJf", &archive]);
    for pattern in LEFT_OUT {
        tar.arg(format!("--exclude={PACKAGE}/{pattern}"));
    }
    step.watch(&mut tar).with_context(|| {
        format!(
            "failed to unpack the source; `df {}`",
            places.cache.display()
        )
    })?;
    let tree = scratch.path().join(PACKAGE);
    for file in [VMALLOC, KCORE] {
        fs::copy(tree.join(file), tree.join(pristine(file)))
            .with_context(|| format!("{PACKAGE} {version} has no {file}"))?;
    }
    places.keep(&tree, name)?;
    Ok(())
}
