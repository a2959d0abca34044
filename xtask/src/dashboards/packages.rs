//! Prometheus and promtool, from Debian's packages, in the user's cache.
//!
//! In: the archive that the machine's apt knows. Out: a folder with both programs, named after
//! their version. Nothing is installed. Native histograms are a feature of Prometheus since 2.40
//! that has to be switched on until 3.8; Debian 13 has 2.53.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian::{self, Apt},
    places::Places,
    setup,
    steps::{Step, Steps},
};

/// Debian has promtool in a package of its own since 13.
const PACKAGES: [&str; 2] = ["prometheus", "promtool"];

/// The two programs.
pub(super) struct Programs {
    folder: PathBuf,
}

impl Programs {
    pub(super) fn prometheus(&self) -> PathBuf {
        self.folder.join("usr/bin/prometheus")
    }

    pub(super) fn promtool(&self) -> PathBuf {
        self.folder.join("usr/bin/promtool")
    }
}

/// Finds the programs in the cache, or fetches them.
pub(super) fn provide(places: &Places) -> Result<Programs> {
    let _lock = setup::lock(places)?;
    Steps::new(1).run("Prometheus", |step| {
        if let Some(folder) = cached(&places.cache)? {
            return Ok(ready(folder));
        }
        let apt = Apt::open(places)?;
        apt.update(step)?;
        fetch(places, &apt, step).map(ready)
    })
}

fn ready(folder: PathBuf) -> (Programs, String) {
    let name = folder.file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    (Programs { folder }, name)
}

/// The newest that is in the cache.
fn cached(cache: &Path) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("prometheus-") {
            found.push(path.clone());
        }
    }
    Ok(found.into_iter().max())
}

fn fetch(places: &Places, apt: &Apt, step: &Step) -> Result<PathBuf> {
    let versions = apt.versions(PACKAGES[0])?;
    let version = versions
        .first()
        .context("the archive has no package prometheus")?;
    let scratch = places.scratch()?;
    let root = scratch.path().join("root");
    fs::create_dir(&root)?;
    for package in PACKAGES {
        if !apt.versions(package)?.contains(version) {
            bail!("the archive has no {package} {version}");
        }
        step.doing(&format!("fetching {package} {version}"));
        let into = scratch.path().join(package);
        fs::create_dir(&into)?;
        let deb = apt.download(package, version, &into, step)?;
        debian::unpack(&deb, &["./usr/bin/*"], &root)?;
    }
    places.keep(&root, Path::new(&format!("prometheus-{version}")))
}
