//! A private apt: its own sources, lists and cache, below the user's cache.
//!
//! Owns every call of apt-get and apt-cache except the installation of QEMU.
//! Needs no root. The lists are refreshed at most once a day unless the sources
//! change.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::suites;
use crate::{
    command,
    places::{self, Places},
    steps::Step,
};

const FRESH_FOR: Duration = Duration::from_hours(24);

/// Where the package debian-archive-keyring puts its keys, newest name first.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// What a machine without a Debian archive can do instead.
const NOT_DEBIAN: &str = "this needs packages of Debian, and this machine's apt has no Debian \
    archive; on a Debian machine: `apt-get update && apt-get install debian-archive-keyring`";

/// The private apt.
pub(crate) struct Apt {
    root: PathBuf,
    sources: String,
}

impl Apt {
    /// Finds the machine's Debian archive; fetches nothing.
    pub(crate) fn open(places: &Places) -> Result<Self> {
        let keyring = KEYRINGS.into_iter().find(|file| Path::new(file).exists());
        let (Some(_), Some(keyring)) = (places::in_path("apt-get"), keyring) else {
            bail!(NOT_DEBIAN);
        };
        let mut indexes = Command::new("apt-get");
        indexes.args([
            "indextargets",
            "--format",
            suites::INDEX_FORMAT,
            "Created-By: Packages",
        ]);
        let indexes = command::output(&mut indexes)?;
        let sources = suites::sources_list(&indexes, keyring).context(NOT_DEBIAN)?;
        Ok(Self {
            root: places.cache.join("apt"),
            sources,
        })
    }

    fn stamp(&self) -> PathBuf {
        self.root.join("updated")
    }

    /// Whether the lists are those of the present sources and of today.
    pub(crate) fn is_fresh(&self) -> bool {
        let stamp = self.stamp();
        let age = fs::metadata(&stamp).and_then(|data| data.modified()).ok();
        age.and_then(|time| time.elapsed().ok())
            .is_some_and(|age| age < FRESH_FOR)
            && fs::read_to_string(stamp).is_ok_and(|sources| sources == self.sources)
    }

    /// Refreshes the lists unless they are fresh.
    pub(crate) fn update(&self, step: &Step) -> Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        step.doing("reading Debian's package lists");
        let lists = self.root.join("lists");
        for folder in [
            lists.join("partial"),
            self.root.join("cache/archives/partial"),
        ] {
            fs::create_dir_all(folder)?;
        }
        fs::write(self.root.join("sources.list"), &self.sources)?;
        fs::write(self.root.join("apt.conf"), self.configuration())?;
        // A suite that the archive does not have fails the whole update, though
        // all the others are there: what counts is what was fetched.
        let updated = step.watch(self.command("apt-get").args(["--error-on=any", "update"]));
        let absent = suites::absent(&file_names(&lists)?);
        if let Err(error) = updated {
            if absent.is_empty() || absent.len() == suites::COUNT {
                let retry = "try again with `cargo xtask setup`";
                return Err(error.context(format!("failed to refresh the package lists; {retry}")));
            }
            step.note(&format!(
                "no such suite in the archive: {}",
                absent.join(", ")
            ));
        }
        fs::write(self.stamp(), &self.sources)?;
        Ok(())
    }

    /// The names of all packages that begin with `prefix`.
    pub(crate) fn package_names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = command::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The versions of a package, newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let table = command::output(self.command("apt-cache").args(["madison", package]))?;
        let versions = table.lines().filter_map(|row| row.split('|').nth(1));
        Ok(versions.map(|version| version.trim().to_owned()).collect())
    }

    /// These packages of a suite and all that they need, each with its version.
    pub(crate) fn with_dependencies(
        &self,
        packages: &[&str],
        suite: &str,
    ) -> Result<Vec<(String, String)>> {
        let mut install = self.command("apt-get");
        install
            .args(["--simulate", "--no-install-recommends", "install"])
            .args(packages.iter().map(|package| format!("{package}/{suite}")));
        let plan = command::output(&mut install)?;
        Ok(plan.lines().filter_map(planned).collect())
    }

    /// Downloads a package into the folder `into`.
    pub(crate) fn download(
        &self,
        package: &str,
        version: &str,
        into: &Path,
        step: &Step,
    ) -> Result<PathBuf> {
        let mut download = self.command("apt-get");
        download
            .args(["download", &format!("{package}={version}")])
            .current_dir(into);
        step.watch(&mut download)?;
        let mut debs = file_names(into)?;
        debs.retain(|name| name.ends_with(".deb"));
        match debs.as_slice() {
            [deb] => Ok(into.join(deb)),
            _ => bail!(
                "apt-get downloaded {} files for {package}, not one",
                debs.len()
            ),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-q").arg("-c").arg(self.root.join("apt.conf"));
        command
    }

    /// What sets this apt apart from the machine's.
    fn configuration(&self) -> String {
        let root = self.root.display();
        format!(
            r##"Dir::Etc::SourceList "{root}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "{root}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{root}/cache";
// Container images switch this cache off; searching without it takes seconds.
Dir::Cache::pkgcache "pkgcache.bin";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "2";
// These belong to the machine's apt, and may need root.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"##
        )
    }
}

/// Name and version in a line of a simulated installation.
fn planned(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let (_, rest) = rest.split_once('(')?;
    let (version, _) = rest.split_once(' ')?;
    Some((name.to_owned(), version.to_owned()))
}

fn file_names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("failed to list {0}; `ls -ld {0}`", folder.display()))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_a_simulated_installation() {
        let line = "Inst libgcc-s1 (14.2.0-19 Debian:13.8/stable [amd64]) []";
        let package = ("libgcc-s1".to_owned(), "14.2.0-19".to_owned());
        assert_eq!(planned(line), Some(package));
        assert_eq!(
            planned("Conf libgcc-s1 (14.2.0-19 Debian:13.8/stable [amd64])"),
            None
        );
    }
}
