//! One boot of one kernel in QEMU.
//!
//! In: a machine. Out: its console log and the bytes of its second serial port,
//! both as files, and how it ended. A guest never outlives its time-out.
//!
//! Software emulation throughout: /dev/kvm can exist and yet hang or abort, and
//! the tests count events and never measure durations.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{command::shown, setup::QEMU};

const POLL: Duration = Duration::from_millis(50);

/// What QEMU emulates.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) cpus: u32,
    /// What each of them is: [`CPU`] with more behind it, if need be.
    pub(crate) cpu: &'static str,
    /// Whether the guest's clock counts executed instructions, one a nanosecond: what the host
    /// does meanwhile then changes nothing.
    pub(crate) counts_instructions: bool,
    /// Words for the kernel's command line beside those of every boot.
    pub(crate) words: String,
    pub(crate) timeout: Duration,
}

/// All that QEMU can emulate. A kernel that sees a hypervisor takes the test-and-set spinlock, which
/// fires no contention event; bare metal gets the queued one.
pub(crate) const CPU: &str = "max,-hypervisor";

/// The files of a boot, all in one folder.
pub(crate) struct Files<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) console: &'a str,
    pub(crate) artefacts: &'a str,
}

/// How a boot ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// QEMU left by itself: the guest powered off, or panicked and would have
    /// rebooted.
    Left,
    Failed(String),
    TimedOut,
}

/// What the console says when the kernel was about to start the guest's program while a worker of
/// its own had not yet closed that file after unpacking it (ETXTBSY): the guest never began.
const NEVER_BEGAN: &str = "Failed to execute /init (error -26)";
/// Boots that may fail that way, one after the other.
const ATTEMPTS: usize = 3;

/// Boots a machine, again if its program was never started.
pub(crate) fn boot(machine: &Machine<'_>, files: &Files<'_>) -> Result<Ending> {
    for _ in 1..ATTEMPTS {
        let ending = boot_once(machine, files)?;
        if !never_began(&fs::read(files.folder.join(files.console))?) {
            return Ok(ending);
        }
    }
    boot_once(machine, files)
}

fn never_began(console: &[u8]) -> bool {
    String::from_utf8_lossy(console).contains(NEVER_BEGAN)
}

fn boot_once(machine: &Machine<'_>, files: &Files<'_>) -> Result<Ending> {
    let mut qemu = Command::new(QEMU);
    qemu.args(arguments(machine, files.artefacts))
        .current_dir(files.folder);
    let path = files.folder.join(files.console);
    let console = File::create(&path)
        .with_context(|| format!("failed to create {}; `df .`", path.display()))?;
    let mut child = qemu
        .stdin(Stdio::null())
        .stderr(console.try_clone()?)
        .stdout(console)
        .spawn()
        .with_context(|| format!("failed to start `{}`; `cargo xtask setup`", shown(&qemu)))?;
    let deadline = Instant::now() + machine.timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            let failed = !status.success();
            return Ok(if failed {
                Ending::Failed(status.to_string())
            } else {
                Ending::Left
            });
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(Ending::TimedOut);
        }
        thread::sleep(POLL);
    }
}

/// What the emulator is started with; the file for artefacts is in the folder of the boot.
pub(super) fn arguments(machine: &Machine<'_>, artefacts: &str) -> Vec<String> {
    let Machine {
        kernel,
        initramfs,
        cpus,
        cpu,
        counts_instructions,
        words,
        timeout: _,
    } = machine;
    let mut arguments: Vec<String> = [
        // All CPUs in one thread: with one each, a CPU may run a stale translation of code that
        // another has just patched, which the guest's kernel takes for a stray breakpoint.
        "-accel",
        "tcg,thread=single",
        "-cpu",
        cpu,
        "-m",
        "1024",
        "-display",
        "none",
        "-monitor",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
    ]
    .map(str::to_owned)
    .to_vec();
    if *counts_instructions {
        arguments.extend(["-icount", "shift=0,sleep=off"].map(str::to_owned));
    }
    arguments.extend(["-serial".to_owned(), format!("file:{artefacts}")]);
    arguments.extend(["-smp".to_owned(), cpus.to_string()]);
    arguments.extend(["-kernel".to_owned(), kernel.display().to_string()]);
    arguments.extend(["-initrd".to_owned(), initramfs.display().to_string()]);
    // Emulated CPUs have no invariant TSC. Unless told that it is reliable the
    // kernel takes the HPET, and each reading of the clock a device access.
    // A busy host emulates fewer ticks than the kernel waits for when it checks its timer, and it panics.
    let always = "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable clocksource=tsc";
    arguments.extend(["-append".to_owned(), format!("{always} {words}")]);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_whose_program_was_never_started_is_told_from_one_that_died() {
        assert!(never_began(
            b"[    5.3] Failed to execute /init (error -26)\n[    5.4] Kernel panic - not syncing"
        ));
        assert!(!never_began(b"[    5.4] Kernel panic - not syncing: x"));
    }

    #[test]
    fn console_is_the_first_serial_port_and_artefacts_the_second() {
        let machine = Machine {
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            cpus: 4,
            cpu: CPU,
            counts_instructions: false,
            words: "kcore_trace.config=smp4".to_owned(),
            timeout: Duration::from_secs(1),
        };
        let line = arguments(&machine, "a.bin").join(" ");
        assert!(
            line.contains("-serial stdio -serial file:a.bin -smp 4"),
            "{line}"
        );
        assert!(
            line.ends_with("clocksource=tsc kcore_trace.config=smp4"),
            "{line}"
        );
    }
}
