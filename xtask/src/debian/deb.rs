//! Unpacking parts of a Debian package.
//!
//! In: a `.deb` and the patterns of the wanted paths. Out: these files below a
//! folder. Nothing of the package is executed, and no other file is written.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::command::shown;

/// Unpacks the files of `deb` that match one of `patterns` (tar's wildcards,
/// beginning with `./`) into the folder `into`.
pub(crate) fn unpack(deb: &Path, patterns: &[&str], into: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb");
    archive
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped());
    let mut archive_child = archive.spawn().with_context(|| {
        format!(
            "failed to start `{}`; `apt-get install dpkg`",
            shown(&archive)
        )
    })?;
    let stream = archive_child
        .stdout
        .take()
        .expect("stdout was asked to be a pipe");

    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "--wildcards", "-C"])
        .arg(into)
        .args(patterns);
    // A pattern without a match makes tar fail at the end; which of the
    // patterns had to match is for the caller to say.
    let tar_output = tar
        .stdin(stream)
        .output()
        .with_context(|| format!("failed to start `{}`; `apt-get install tar`", shown(&tar)))?;
    if !archive_child.wait()?.success() {
        let complaint = String::from_utf8_lossy(&tar_output.stderr);
        bail!(
            "failed to unpack {0}: {1}; `rm {0}`",
            deb.display(),
            complaint.trim()
        );
    }
    Ok(())
}
