//! Running other programs.
//!
//! Owns how a command is started, shown and judged: a command that cannot be
//! started or that fails is an error which repeats the command line, so that
//! the user can run it by hand.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, bail};

/// Lines of a failed command's output that its error repeats.
const TAIL_LINES: usize = 25;

/// The command as a user would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a command whose output belongs to the user.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    if !status.success() {
        bail!("{status}: `{}`", shown(command));
    }
    Ok(())
}

/// What a command prints to stdout; its stderr appears only in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}: `{}`\n{}",
            output.status,
            shown(command),
            stderr.trim_end()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that is not UTF-8", shown(command)))
}

/// Runs a command quietly: every line that it prints goes to `each_line`, and
/// the last ones to the error if it fails.
pub(crate) fn watch(command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    let stderr = child.stderr.take().expect("stderr was asked to be a pipe");
    let (sender, lines) = mpsc::channel();
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    thread::scope(|scope| {
        let err_sender = sender.clone();
        scope.spawn(move || forward(stdout, &sender));
        scope.spawn(move || forward(stderr, &err_sender));
        for line in lines {
            each_line(&line);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    });
    let status = child.wait()?;
    if !status.success() {
        let tail = tail.make_contiguous().join("\n");
        bail!("{status}: `{}`\n{tail}", shown(command));
    }
    Ok(())
}

fn forward(stream: impl std::io::Read, lines: &mpsc::Sender<String>) {
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if lines.send(line).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("qemu");
        command.args(["-append", "quiet panic=-1", "-smp", "4", "it's"]);
        assert_eq!(
            shown(&command),
            r"qemu -append 'quiet panic=-1' -smp 4 'it'\''s'"
        );
    }

    #[test]
    fn failed_command_repeats_its_last_lines() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let error = watch(&mut command, |_| ()).unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("one") && error.contains("two"), "{error}");
    }
}
