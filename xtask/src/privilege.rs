//! Doing one thing as root.
//!
//! Owns the decision how: directly if the user is root, else through sudo. Sudo
//! may ask for a password only if somebody sits at the terminal. Nothing is
//! ever built as root on the way: callers elevate single finished programs.

use std::{
    ffi::OsStr,
    io::IsTerminal as _,
    process::{Command, Stdio},
};

use crate::places;

/// How this process can become root.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    /// Sudo without a password.
    Sudo,
    /// Sudo that asks somebody.
    SudoAsks,
    None,
}

impl Privilege {
    pub(crate) fn find() -> Self {
        if nix::unistd::geteuid().is_root() {
            Self::Root
        } else if places::in_path("sudo").is_none() {
            Self::None
        } else if sudo_works_silently() {
            Self::Sudo
        } else if std::io::stdin().is_terminal() {
            Self::SudoAsks
        } else {
            Self::None
        }
    }

    /// The same where nobody is to be asked.
    pub(crate) fn silent() -> Self {
        match Self::find() {
            Self::SudoAsks => Self::None,
            privilege => privilege,
        }
    }

    /// Asks for the password now if there is one, so that sudo works silently for a while. Who has none goes on
    /// without.
    pub(crate) fn ask() {
        if Self::find() == Self::SudoAsks {
            // Sudo says itself what is wrong.
            _ = Command::new("sudo").arg("-v").status();
        }
    }

    /// A command that runs `program` as root, if there is a way.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Option<Command> {
        let mut command = match self {
            Self::Root => return Some(Command::new(program)),
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.arg("-n");
                sudo
            }
            Self::SudoAsks => Command::new("sudo"),
            Self::None => return None,
        };
        command.arg("--").arg(program);
        Some(command)
    }

    /// What the user has to type before a command that needs root.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Root => "",
            Self::Sudo | Self::SudoAsks | Self::None => "sudo ",
        }
    }
}

fn sudo_works_silently() -> bool {
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sudo.status().is_ok_and(|status| status.success())
}
