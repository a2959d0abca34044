//! Boots that need not be repeated: exactly the same has passed before in this checkout.
//!
//! In: all that a boot is made of, which is the emulator and its arguments, the kernel and the
//! initramfs with the guest's binary. Out: whether the last boot of that name was made of the same and
//! passed. Invariant: the mark of a boot is removed before it begins and set when it has passed, so that
//! what is left behind by any other end, or by a boot of other cases, is booted again.

use std::{
    fs,
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::qemu::{self, Machine};
use crate::{command, setup::QEMU};

/// Where the marks are, below the folder of the boots.
const FOLDER: &str = "passed";

/// What all boots of a run have in common.
pub(super) struct Common {
    folder: PathBuf,
    /// Of the emulator's version and of the initramfs. Another release of Rust may hash otherwise, and
    /// then everything is booted again.
    hasher: DefaultHasher,
}

/// The mark of one boot.
pub(super) struct Mark {
    file: PathBuf,
    /// Of everything that it is made of.
    digest: String,
}

impl Common {
    pub(super) fn new(folder: &Path, initramfs: &[u8]) -> Result<Self> {
        let folder = folder.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let mut hasher = DefaultHasher::new();
        let version = command::output(Command::new(QEMU).arg("--version"))?;
        part(&mut hasher, version.as_bytes());
        part(&mut hasher, initramfs);
        Ok(Self { folder, hasher })
    }

    /// The mark of the boot of this name.
    pub(super) fn mark(&self, name: &str, machine: &Machine<'_>) -> Result<Mark> {
        let mut hasher = self.hasher.clone();
        let kernel = machine.kernel;
        let image =
            fs::read(kernel).with_context(|| format!("failed to read {}", kernel.display()))?;
        part(&mut hasher, &image);
        for argument in qemu::arguments(machine, name) {
            part(&mut hasher, argument.as_bytes());
        }
        Ok(Mark {
            file: self.folder.join(name),
            digest: format!("{:016x}\n", hasher.finish()),
        })
    }
}

/// Adds something with its length, so that no two sequences of parts are the same bytes.
fn part(hasher: &mut DefaultHasher, bytes: &[u8]) {
    hasher.write_u64(bytes.len() as u64);
    hasher.write(bytes);
}

impl Mark {
    /// How long ago the same passed; nothing if it did not, or if something else was booted since.
    pub(super) fn age(&self) -> Option<Duration> {
        let digest = fs::read_to_string(&self.file).ok()?;
        let passed = fs::metadata(&self.file).ok()?.modified().ok()?;
        (digest == self.digest).then(|| passed.elapsed().unwrap_or_default())
    }

    pub(super) fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
                .with_context(|| format!("failed to remove {0}; `rm -f {0}`", self.file.display())),
            _ => Ok(()),
        }
    }

    /// Sets the mark, unless it is there: its age is that of the boot.
    pub(super) fn set(&self) -> Result<()> {
        if self.age().is_some() {
            return Ok(());
        }
        fs::write(&self.file, &self.digest)
            .with_context(|| format!("failed to write {}; `df .`", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine<'a>(kernel: &'a Path, words: &str) -> Machine<'a> {
        Machine {
            kernel,
            initramfs: Path::new("/initramfs"),
            cpus: 1,
            cpu: qemu::CPU,
            counts_instructions: false,
            words: words.to_owned(),
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn only_a_boot_of_the_same_things_has_passed() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinuz");
        fs::write(&kernel, "kernel").unwrap();
        let common = |initramfs: &[u8]| Common {
            folder: folder.path().to_owned(),
            hasher: {
                let mut hasher = DefaultHasher::new();
                part(&mut hasher, initramfs);
                hasher
            },
        };
        let mark =
            |initramfs: &[u8], words| common(initramfs).mark("6.1-up", &machine(&kernel, words));
        let first = mark(b"guest", "a").unwrap();
        assert_eq!(first.age(), None);
        first.set().unwrap();
        assert!(mark(b"guest", "a").unwrap().age().is_some());
        assert_eq!(mark(b"another", "a").unwrap().age(), None);
        assert_eq!(mark(b"guest", "b").unwrap().age(), None);
        fs::write(&kernel, "another").unwrap();
        assert_eq!(mark(b"guest", "a").unwrap().age(), None);
        first.remove().unwrap();
        first.remove().unwrap();
        assert_eq!(first.age(), None);
    }
}
