//! Names of control groups: from the id that a program sees to the path that a person knows.
//!
//! In: ids of cgroup v2, which are inode numbers of the folders in its file system
//! (`kernel/cgroup/cgroup.c`, `cgroup_id`). Out: the path below its mount point, also of a process
//! that is gone, as long as its group is not.
//!
//! Invariant: whatever is asked for, the folders are walked through at most once between two calls
//! of [`Cgroups::refresh`].

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Folders that a walk looks at; a machine with more has names for the first.
const MOST: usize = 20_000;

pub(crate) struct Cgroups {
    root: Option<PathBuf>,
    /// Nothing for what was looked for and is not there: a group is older than what it reads.
    names: HashMap<u64, Option<String>>,
    walked: bool,
}

impl Cgroups {
    /// Those of the first mount of a file system of type `cgroup2`.
    pub(crate) fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self::below(mount_point(&mounts))
    }

    fn below(root: Option<PathBuf>) -> Self {
        Self {
            root,
            names: HashMap::new(),
            walked: false,
        }
    }

    /// From here on a name that is not known may be looked for again.
    pub(crate) fn refresh(&mut self) {
        self.walked = false;
    }

    /// The path of a group; nothing if there is none with that id.
    pub(crate) fn name(&mut self, id: u64) -> Option<String> {
        if let Some(known) = self.names.get(&id) {
            return known.clone();
        }
        if self.walked {
            return None;
        }
        self.walk();
        self.names.entry(id).or_default().clone()
    }

    fn walk(&mut self) {
        self.walked = true;
        let Some(root) = &self.root else { return };
        let mut names = HashMap::new();
        if self.names.len() < 2 * MOST {
            names.extend(self.names.drain().filter(|(_, name)| name.is_none()));
        }
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop()
            && names.len() < MOST
        {
            // A group may go away at any moment.
            let Ok(metadata) = fs::symlink_metadata(&folder) else {
                continue;
            };
            names.insert(metadata.ino(), Some(shown(root, &folder)));
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.extend(below.map(|entry| entry.path()));
        }
        self.names = names;
    }
}

fn shown(root: &Path, folder: &Path) -> String {
    let below = folder.strip_prefix(root).unwrap_or(folder);
    format!("/{}", below.display())
}

/// The mount point of cgroup2 in `/proc/self/mounts`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    let mut lines = mounts.lines().map(|line| line.split(' '));
    lines.find_map(|mut fields| {
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| point.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_version_two_is_found_beside_others() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_group_is_named_by_its_path_and_a_new_one_after_a_refresh() {
        let root = tempfile::tempdir().unwrap();
        let service = root.path().join("system.slice/reader.service");
        fs::create_dir_all(&service).unwrap();
        let id = |folder: &Path| fs::metadata(folder).unwrap().ino();
        let mut cgroups = Cgroups::below(Some(root.path().into()));
        assert_eq!(cgroups.name(id(root.path())).as_deref(), Some("/"));
        let name = cgroups.name(id(&service));
        assert_eq!(name.as_deref(), Some("/system.slice/reader.service"));
        let later = root.path().join("user.slice");
        fs::create_dir(&later).unwrap();
        assert_eq!(cgroups.name(id(&later)), None);
        cgroups.refresh();
        assert_eq!(cgroups.name(id(&later)).as_deref(), Some("/user.slice"));
    }

    #[test]
    fn a_group_that_is_gone_is_looked_for_once() {
        let root = tempfile::tempdir().unwrap();
        let mut cgroups = Cgroups::below(Some(root.path().into()));
        for _ in 0..2 {
            cgroups.refresh();
            assert_eq!(cgroups.name(u64::MAX), None);
        }
        assert!(!cgroups.walked, "looked for again");
    }

    #[test]
    fn without_a_mount_no_group_has_a_name() {
        assert_eq!(Cgroups::below(None).name(1), None);
    }
}
