//! The tools that people would use instead, from Debian's packages.
//!
//! Out: a folder in the cache, named after the packages' versions, with the programs, each shared
//! library that they load, and the loader, so that they run on any machine and in a guest that has
//! nothing else. Nothing is installed, and no script of a package runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command,
    debian::{self, Apt},
    lab::initramfs::{self, Program},
    places::Places,
    steps::Step,
};

/// The packages, and the suite that they come from.
const PACKAGES: [&str; 2] = ["bpftrace", "libbpf-tools"];
const SUITE: &str = "trixie";

/// The programs by what we call them, and where the packages have them.
const PROGRAMS: [(&str, &str); 2] = [
    ("bpftrace", "usr/bin/bpftrace"),
    ("klockstat", "usr/sbin/klockstat-libbpf"),
];

/// What starts a program and finds its libraries (`ld.so`).
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Where a guest has the libraries: the loader looks there by itself.
const GUEST_LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// The peers on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    folder: PathBuf,
    /// Name and version of each package.
    pub(crate) versions: String,
}

/// Finds or fetches them.
pub(crate) fn provide(places: &Places, step: &Step) -> Result<(Peers, String)> {
    let apt = Apt::open(places)?;
    apt.update(step)?;
    let packages = apt.with_dependencies(&PACKAGES, SUITE)?;
    let named = packages
        .iter()
        .filter(|(name, _)| PACKAGES.contains(&name.as_str()));
    let versions: Vec<_> = named
        .map(|(name, version)| format!("{name}_{version}"))
        .collect();
    let name = Path::new("peers").join(versions.join("-"));
    let peers = Peers {
        folder: places.cache.join(&name),
        versions: versions.join(", ").replace('_', " "),
    };
    if peers.folder.is_dir() {
        return Ok((peers, "already there".to_owned()));
    }
    let scratch = places.scratch()?;
    let [unpacked, finished] = ["unpacked", "finished"].map(|name| scratch.path().join(name));
    fs::create_dir(&unpacked)?;
    for (package, version) in &packages {
        step.doing(&format!("downloading {package}"));
        let folder = scratch.path().join(package);
        fs::create_dir(&folder)?;
        let deb = apt.download(package, version, &folder, step)?;
        debian::unpack(
            &deb,
            &["./usr/bin/*", "./usr/sbin/*", "./usr/lib*", "./lib*"],
            &unpacked,
        )?;
    }
    gather(&unpacked, &finished)?;
    places.keep(&finished, &name)?;
    let said = peers.versions.clone();
    Ok((peers, said))
}

/// Copies the programs and all that they load out of unpacked packages.
fn gather(unpacked: &Path, into: &Path) -> Result<()> {
    let [programs, libraries] = ["bin", "lib"].map(|name| into.join(name));
    fs::create_dir_all(&programs)?;
    fs::create_dir_all(&libraries)?;
    let loader = find(unpacked, LOADER)?;
    fs::copy(&loader, libraries.join(LOADER))?;
    let places = [
        "usr/lib/x86_64-linux-gnu",
        "usr/lib",
        "lib/x86_64-linux-gnu",
    ];
    let places = places.map(|place| unpacked.join(place).display().to_string());
    for (name, path) in PROGRAMS {
        let program = unpacked.join(path);
        fs::copy(&program, programs.join(name))
            .with_context(|| format!("no package has {path}"))?;
        let mut list = Command::new(&loader);
        list.args(["--library-path", &places.join(":"), "--list"])
            .arg(&program);
        for (library, path) in loaded(&command::output(&mut list)?)? {
            fs::copy(path, libraries.join(library))?;
        }
    }
    Ok(())
}

/// The libraries in what the loader lists, and where they are.
fn loaded(list: &str) -> Result<Vec<(&str, &str)>> {
    let mut libraries = Vec::new();
    for line in list.lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        if rest.starts_with("not found") {
            bail!("the packages have no {name}");
        }
        let path = rest.split_once(" (").map_or(rest, |(path, _)| path);
        if !name.contains('/') {
            libraries.push((name, path));
        }
    }
    Ok(libraries)
}

/// The loader has moved between folders over the years.
fn find(unpacked: &Path, name: &str) -> Result<PathBuf> {
    let places = [
        "usr/lib64",
        "lib64",
        "usr/lib/x86_64-linux-gnu",
        "lib/x86_64-linux-gnu",
    ];
    let files = places.map(|place| unpacked.join(place).join(name));
    let found = files.into_iter().find(|file| file.is_file());
    found.with_context(|| format!("the packages have no {name}"))
}

impl Peers {
    /// A peer on this machine, whose own libraries may be older.
    pub(crate) fn command(&self, name: &str) -> Vec<String> {
        let libraries = self.folder.join("lib");
        let words = [
            libraries.join(LOADER).display().to_string(),
            "--library-path".to_owned(),
            libraries.display().to_string(),
            self.folder.join("bin").join(name).display().to_string(),
        ];
        words.into()
    }

    /// All of them as an archive that a guest's file system goes on with.
    pub(crate) fn archive(&self) -> Result<Vec<u8>> {
        let folders = ["bin", "lib", "lib64", GUEST_LIBRARIES].map(str::to_owned);
        let mut files: Vec<Program> = Vec::new();
        for (from, to) in [("bin", "bin"), ("lib", GUEST_LIBRARIES)] {
            for entry in fs::read_dir(self.folder.join(from))? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let to = if name == LOADER { "lib64" } else { to };
                files.push((format!("{to}/{name}"), fs::read(entry.path())?));
            }
        }
        files.sort();
        Ok(initramfs::with_programs(&folders, &files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_the_loader_lists() {
        let list = "\tlinux-vdso.so.1 (0x7fff)\n\tlibbpf.so.1 => /u/libbpf.so.1 (0x7f12)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /u/ld.so (0x7f)\n";
        assert_eq!(loaded(list).unwrap(), [("libbpf.so.1", "/u/libbpf.so.1")]);
        assert!(loaded("libz3.so.4 => not found").is_err());
    }
}
