//! The kernels that the tests boot.
//!
//! Owns the table of kernel lines; a new line is a new row. In: Debian's
//! package lists. Out: for each row one `vmlinuz` in the cache, the newest that
//! the archive still holds, in a folder named after package and version. If the
//! archive is out of reach a cached kernel of the line stands in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::build::Built;
use crate::{
    debian::{self, Apt},
    places::Places,
    steps::Step,
};

/// A kernel line and how Debian names the package with its image. The release
/// within the line is what stands between `prefix` and `suffix`.
#[derive(Debug)]
pub(crate) struct Line {
    /// The line's name for users, as in `6.1`.
    pub(crate) name: &'static str,
    prefix: &'static str,
    suffix: &'static str,
    /// Where the package keeps the image.
    image: &'static str,
}

/// Cloud images: small, with BTF, and with what QEMU emulates built in.
pub(crate) const LINES: [Line; 4] = [
    Line {
        name: "5.10",
        prefix: "linux-image-5.10.0-",
        suffix: "-cloud-amd64-unsigned",
        image: "./boot/vmlinuz-*",
    },
    Line {
        name: "6.1",
        prefix: "linux-image-6.1.0-",
        suffix: "-cloud-amd64-unsigned",
        image: "./boot/vmlinuz-*",
    },
    Line {
        name: "6.12",
        prefix: "linux-image-6.12.",
        suffix: "-cloud-amd64-unsigned",
        image: "./boot/vmlinuz-*",
    },
    Line {
        name: "7.3",
        prefix: "linux-binary-7.3.",
        suffix: "-cloud-amd64",
        image: "./usr/lib/modules/*/vmlinuz",
    },
];

/// How many releases of a line are tried: a package list can name packages that
/// the archive has already removed.
const CANDIDATES: usize = 8;

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// The line's name, or the variant's where the lab built it.
    pub(crate) line: &'static str,
    pub(crate) image: PathBuf,
    /// The lab's own build, with its modules.
    pub(crate) built: Option<Built>,
}

impl From<Built> for Kernel {
    fn from(built: Built) -> Self {
        Self {
            line: built.variant.name,
            image: built.image(),
            built: Some(built),
        }
    }
}

/// Finds or fetches one kernel of each line.
pub(crate) fn provide(places: &Places, step: &Step) -> Result<(Vec<Kernel>, String)> {
    let cached = LINES
        .iter()
        .map(|line| cached(places, line))
        .collect::<Option<Vec<_>>>();
    let lists = Apt::open(places).and_then(|apt| {
        if cached.is_none() || !apt.is_fresh() {
            apt.update(step)?;
            return Ok(Some(apt));
        }
        Ok(None)
    });
    let kernels = match (lists, cached) {
        (Ok(None), Some(kernels)) => return Ok((kernels, "already there".to_owned())),
        (Ok(None), None) => unreachable!("without cached kernels the lists are read"),
        (Ok(Some(apt)), _) => LINES
            .iter()
            .map(|line| fetch(places, &apt, line, step))
            .collect::<Result<_>>()?,
        (Err(error), Some(kernels)) => {
            step.note(&format!("using cached kernels: {error}"));
            kernels
        }
        (Err(error), None) => return Err(error),
    };
    Ok((kernels, "up to date".to_owned()))
}

/// The newest kernel of a line that the archive or else the cache holds.
fn fetch(places: &Places, apt: &Apt, line: &'static Line, step: &Step) -> Result<Kernel> {
    let mut trouble = None;
    for package in candidates(line, apt.package_names(line.prefix)?) {
        let Some(version) = apt.versions(&package)?.into_iter().next() else {
            continue;
        };
        let name = Path::new("kernels").join(format!("{package}_{version}"));
        let kernel = Kernel {
            line: line.name,
            image: places.cache.join(&name).join("vmlinuz"),
            built: None,
        };
        if kernel.image.is_file() {
            return Ok(kernel);
        }
        step.doing(&format!("downloading {package}"));
        match download(places, apt, line, (&package, &version), &name, step) {
            Ok(()) => return Ok(kernel),
            Err(error) => trouble = Some(error),
        }
    }
    let why = trouble.map_or_else(
        || "no suite has one".to_owned(),
        |error| format!("{error:#}"),
    );
    if let Some(kernel) = cached(places, line) {
        step.note(&format!("using a cached kernel {}: {why}", line.name));
        return Ok(kernel);
    }
    bail!(
        "no kernel {0}: {why}\nput one by hand at {1}/kernels/{2}0{3}_0/vmlinuz, or try again \
         with `cargo xtask setup`",
        line.name,
        places.cache.display(),
        line.prefix,
        line.suffix
    )
}

fn download(
    places: &Places,
    apt: &Apt,
    line: &Line,
    (package, version): (&str, &str),
    name: &Path,
    step: &Step,
) -> Result<()> {
    let scratch = places.scratch()?;
    let [unpacked, kernel] = ["unpacked", "kernel"].map(|name| scratch.path().join(name));
    fs::create_dir(&unpacked)?;
    fs::create_dir(&kernel)?;
    let deb = apt.download(package, version, scratch.path(), step)?;
    debian::unpack(&deb, &[line.image], &unpacked)?;
    let image = only_file(&unpacked)
        .with_context(|| format!("{package} must hold exactly one {}", line.image))?;
    fs::rename(image, kernel.join("vmlinuz"))?;
    places.keep(&kernel, name)?;
    Ok(())
}

/// The only file below a folder.
fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let list = if entry.file_type()?.is_dir() {
                &mut folders
            } else {
                &mut files
            };
            list.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(files) {
        Ok([file]) => Ok(file),
        Err(files) => bail!("it has {}", files.len()),
    }
}

/// The newest kernel of a line in the cache.
fn cached(places: &Places, line: &'static Line) -> Option<Kernel> {
    let folder = places.cache.join("kernels");
    let names = fs::read_dir(&folder).ok()?;
    let image = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some((release(line, name.split_once('_')?.0)?, name)))
        .map(|(release, name)| (release, folder.join(name).join("vmlinuz")))
        .filter(|(_, image)| image.is_file())
        .max()?;
    Some(Kernel {
        line: line.name,
        image: image.1,
        built: None,
    })
}

/// The packages of a line to try, newest first.
fn candidates(line: &Line, packages: Vec<String>) -> Vec<String> {
    let mut releases: Vec<_> = packages
        .into_iter()
        .filter_map(|package| Some((release(line, &package)?, package)))
        .collect();
    releases.sort();
    releases
        .into_iter()
        .rev()
        .map(|(_, package)| package)
        .take(CANDIDATES)
        .collect()
}

/// The numbers of a package's release, to sort by; `None` if it is not of the
/// line. `deb12` and `deb13` sort as the suites do: the newer has more patches.
fn release(line: &Line, package: &str) -> Option<Vec<u32>> {
    let between = package
        .strip_prefix(line.prefix)?
        .strip_suffix(line.suffix)?;
    // Rebuilds for older suites are called 0.deb11.52 and the like.
    if between.starts_with("0.deb") || !between.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let numbers = between
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty());
    numbers.map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str) -> &'static Line {
        LINES.iter().find(|line| line.name == name).unwrap()
    }

    fn newest(name: &str, packages: &[&str]) -> Option<String> {
        let packages = packages
            .iter()
            .map(|package| (*package).to_owned())
            .collect();
        candidates(line(name), packages).into_iter().next()
    }

    #[test]
    fn newest_release_is_found_by_number() {
        let packages = [
            "linux-image-6.12.96+deb13-cloud-amd64-unsigned",
            "linux-image-6.12.115+deb13-cloud-amd64-unsigned",
            "linux-image-6.12.115+deb13.1-cloud-amd64-unsigned",
            "linux-image-6.12.115+deb12-cloud-amd64-unsigned",
        ];
        assert_eq!(newest("6.12", &packages).as_deref(), Some(packages[2]));
    }

    #[test]
    fn debug_and_meta_packages_and_rebuilds_are_not_kernels() {
        let packages = [
            "linux-image-6.1.0-50-cloud-amd64-dbg",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-rt-amd64-unsigned",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64-unsigned",
        ];
        assert_eq!(newest("6.1", &packages), None);
        assert_eq!(
            newest("7.3", &["linux-binary-7.3.4+deb13-rt-cloud-amd64-dbg"]),
            None
        );
    }
}
