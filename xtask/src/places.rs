//! Where things are: the workspace, cargo's target folder, the user's cache.
//!
//! Owns every path that more than one module needs. The cache is shared by all
//! checkouts of the user and keyed by version, so a folder in it, once it
//! carries its final name, is complete and never changes.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// A folder that is written by one process at a time; it is ours until the file is closed, by
/// whatever end. `occupied` says who is waited for.
pub(crate) fn wait_for_turn(folder: &Path, occupied: &str) -> Result<File> {
    let path = folder.join("lock");
    let lock = File::create(&path)
        .with_context(|| format!("failed to create {0}; `rm -f {0}`", path.display()))?;
    if lock.try_lock().is_err() {
        eprintln!("{occupied}, waiting for it …");
        lock.lock()?;
    }
    Ok(lock)
}

/// The folders that the chores work in.
pub(crate) struct Places {
    /// The workspace's root: every command that cargo or rustup answers runs here.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
    /// This project's folder in the user's cache.
    pub(crate) cache: PathBuf,
}

impl Places {
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask has no parent folder; run it from a whole checkout")?
            .to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => root.join(folder),
            None => root.join("target"),
        };
        let cache = user_cache(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
            .context("neither XDG_CACHE_HOME nor HOME is set; `export HOME=…`")?
            .join("kcore-trace");
        fs::create_dir_all(&cache)
            .with_context(|| format!("failed to create {0}; `mkdir -p {0}`", cache.display()))?;
        Ok(Self {
            root,
            target,
            cache,
        })
    }

    /// A folder that vanishes when dropped, on the same file system as the
    /// cache: what is made in it moves to its final name by one rename. Those
    /// of processes that were killed go first: a kernel's is gigabytes.
    pub(crate) fn scratch(&self) -> Result<Scratch> {
        remove_abandoned(&self.cache);
        Scratch::new(&self.cache).with_context(|| {
            let cache = self.cache.display();
            format!("failed to write to the cache; `ls -ld {cache}; df {cache}`")
        })
    }

    /// Moves a finished folder to its name in the cache.
    pub(crate) fn keep(&self, finished: &Path, name: &Path) -> Result<PathBuf> {
        let kept = self.cache.join(name);
        if let Some(parent) = kept.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::rename(finished, &kept) {
            // Another run was faster: its folder is as good as this one.
            Err(_) if kept.is_dir() => Ok(kept),
            moved => moved
                .map(|()| kept.clone())
                .with_context(|| format!("failed to create {0}; `rm -rf {0}`", kept.display())),
        }
    }
}

/// A folder of this process, as long as it is there.
pub(crate) struct Scratch {
    folder: TempDir,
    /// Locked until the process ends, however it does.
    _ours: File,
}

/// What the name of a [`Scratch`] begins with.
const SCRATCH: &str = ".part-";
/// The file in it that is locked, and its name until it is.
const OURS: &str = ".ours";
const UNLOCKED: &str = ".unlocked";

impl Scratch {
    fn new(cache: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(cache)?;
        let unlocked = folder.path().join(UNLOCKED);
        let ours = File::create(&unlocked)?;
        ours.lock()?;
        fs::rename(unlocked, folder.path().join(OURS))?;
        Ok(Self {
            folder,
            _ours: ours,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes what no process has any more. Whatever cannot be removed stays: nobody needs it.
fn remove_abandoned(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let is_scratch = entry.file_name().to_string_lossy().starts_with(SCRATCH);
        let lock = is_scratch.then(|| File::open(entry.path().join(OURS)));
        if let Some(Ok(lock)) = lock
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The cache folder of the XDG base directory rules: relative values are void.
fn user_cache(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    xdg.map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(home?).join(".cache")))
}

/// The full path of `program`, if PATH has it.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_had_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = wait_for_turn(folder.path(), "nobody").unwrap();
        let again = || File::create(folder.path().join("lock")).unwrap().try_lock();
        assert!(again().is_err());
        drop(first);
        assert!(again().is_ok());
    }

    #[test]
    fn a_scratch_folder_that_nobody_has_is_removed_and_others_stay() {
        let cache = tempfile::tempdir().unwrap();
        let live = Scratch::new(cache.path()).unwrap();
        let abandoned = Scratch::new(cache.path()).unwrap();
        let kept = cache.path().join("kernels");
        fs::create_dir(&kept).unwrap();
        // As when its process is killed: the lock is gone, the folder is there.
        let Scratch {
            folder,
            _ours: lock,
        } = abandoned;
        let abandoned = folder.keep();
        drop(lock);
        remove_abandoned(cache.path());
        assert!(!abandoned.exists());
        assert!(live.path().exists() && kept.exists());
    }

    #[test]
    fn relative_xdg_cache_home_is_ignored() {
        let found = user_cache(Some("cache".into()), Some("/home/u".into()));
        assert_eq!(found, Some(PathBuf::from("/home/u/.cache")));
    }

    #[test]
    fn xdg_cache_home_wins_over_home() {
        let found = user_cache(Some("/c".into()), Some("/home/u".into()));
        assert_eq!(found, Some(PathBuf::from("/c")));
    }
}
