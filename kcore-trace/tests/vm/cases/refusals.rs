//! Bad input: a clear error, exit code 2, and nothing lost.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result, ensure};

use super::endings;
use crate::guest::{Guest, Outcome};
use crate::tool;

pub(crate) fn no_capability(_: &mut Guest) -> Result<Outcome> {
    const NOBODY: u32 = 65534;
    let path = tool::fresh("nobody")?;
    let args = [
        "record",
        "-d",
        "1s",
        "-o",
        path.to_str().context("not UTF-8")?,
    ];
    let output = tool::command(&args).uid(NOBODY).gid(NOBODY).output()?;
    let complaint = tool::complaint(&output);
    ensure!(
        output.status.code() == Some(2),
        "exit {}: {complaint}",
        output.status
    );
    ensure!(
        complaint.contains("CAP_BPF") && complaint.contains("sudo"),
        "{complaint}"
    );
    ensure!(!path.exists(), "a recording was left behind");
    Ok(Outcome::Passed)
}

pub(crate) fn no_command(_: &mut Guest) -> Result<Outcome> {
    let path = tool::fresh("no-command")?;
    let output = tool::run(&[
        "record",
        "-o",
        path.to_str().context("not UTF-8")?,
        "--",
        "no-such-command",
    ])?;
    let complaint = tool::complaint(&output);
    ensure!(
        output.status.code() == Some(2),
        "exit {}: {complaint}",
        output.status
    );
    ensure!(complaint.contains("`no-such-command`"), "{complaint}");
    ensure!(!path.exists(), "a recording was left behind");
    Ok(Outcome::Passed)
}

pub(crate) fn no_interpreter(_: &mut Guest) -> Result<Outcome> {
    if !endings::has_tracepoints()? {
        return endings::no_tracepoints();
    }
    let (path, script) = (tool::fresh("kept")?, tool::fresh("script")?);
    std::fs::write(&path, "precious")?;
    std::fs::write(&script, "#!/no/such/interpreter\n")?;
    std::fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let [path_text, script_text] = [&path, &script].map(|path| path.to_string_lossy());
    let args = ["record", "--force", "-o", &path_text];
    let output = tool::run(&[args.as_slice(), &endings::QUICK, &["--", &script_text]].concat())?;
    let complaint = tool::complaint(&output);
    ensure!(
        output.status.code() == Some(2),
        "exit {}: {complaint}",
        output.status
    );
    ensure!(complaint.contains(&*script_text), "{complaint}");
    ensure!(std::fs::read(&path)? == b"precious", "the file was changed");
    Ok(Outcome::Passed)
}

pub(crate) fn no_force(_: &mut Guest) -> Result<Outcome> {
    let path = tool::fresh("there")?;
    std::fs::write(&path, "precious")?;
    let output = tool::run(&[
        "record",
        "-d",
        "1s",
        "-o",
        path.to_str().context("not UTF-8")?,
    ])?;
    let complaint = tool::complaint(&output);
    ensure!(
        output.status.code() == Some(2),
        "exit {}: {complaint}",
        output.status
    );
    ensure!(complaint.contains("--force"), "{complaint}");
    ensure!(std::fs::read(&path)? == b"precious", "the file was changed");
    Ok(Outcome::Passed)
}
