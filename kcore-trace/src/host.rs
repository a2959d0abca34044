//! The machine and boot that numbers were measured on.
//!
//! Owns [`Host`], the fingerprint that a recording carries so that two recordings can be compared:
//! out of procfs, sysfs and CPUID come words and numbers that tell hardware and set-up apart.
//!
//! Invariant: reading never fails. What cannot be read is `None` or `"unknown"`, and nothing
//! private is kept: no host name, no serial number, no command line of the kernel.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::units;

/// The word for what could not be found out.
pub const UNKNOWN: &str = "unknown";

const MIB: u64 = 1 << 20;

/// Hardware and set-up of a machine; the kernel's release and build are named elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Model name of the first CPU.
    pub cpu_model: String,
    /// CPUs that run.
    pub cpus_online: Option<u32>,
    /// CPUs that could be plugged in; per-CPU memory is there for each.
    pub cpus_possible: Option<u32>,
    /// NUMA nodes that are online.
    pub nodes: Option<u32>,
    /// Memory that the kernel manages, rounded to a MiB. What the kernel keeps for itself is not
    /// in it, so two kernels on one machine differ by some MiB.
    pub memory_bytes: Option<u64>,
    /// `none`, `kvm`, `qemu-tcg`, `xen`, `hyper-v`, `vmware`, …, `other` for a hypervisor that is
    /// not known by name, or `unknown`.
    pub virtualisation: String,
    /// The clocksource in use, such as `tsc`.
    pub clocksource: String,
    /// CPU vulnerabilities and what is done about them, each `name: state`, in order of names.
    /// Those that the CPU does not have are left out, because an older kernel does not list them.
    pub mitigations: Option<Vec<String>>,
    /// Digest of the kernel's configuration: `gz:` and the CRC-32 of `/proc/config.gz` as it is,
    /// or `text:` and that of `/boot/config-<release>`. Digests of different forms say nothing
    /// about each other.
    pub config_digest: Option<String>,
    /// How spinlocks wait: `native`, `pv`, `test-and-set` or `unknown`.
    pub spinlocks: String,
}

impl Default for Host {
    fn default() -> Self {
        let unknown = || UNKNOWN.to_owned();
        Self {
            cpu_model: unknown(),
            cpus_online: None,
            cpus_possible: None,
            nodes: None,
            memory_bytes: None,
            virtualisation: unknown(),
            clocksource: unknown(),
            mitigations: None,
            config_digest: None,
            spinlocks: unknown(),
        }
    }
}

impl Host {
    /// CPUs, nodes, model and virtualisation, each as a phrase for a person.
    pub(crate) fn phrases(&self) -> Vec<String> {
        let number = |number: Option<u32>, noun| number.map(|n| units::counted(n.into(), noun));
        let parts = [
            number(self.cpus_online, "CPU"),
            number(self.nodes, "node"),
            Some(self.cpu_model.clone()),
            Some(format!("virtualisation {}", self.virtualisation)),
        ];
        parts.into_iter().flatten().collect()
    }

    /// Reads the machine that this runs on; `spinlocks` is left `unknown`, since it takes facts
    /// about the kernel to tell.
    #[must_use]
    pub fn read() -> Self {
        let cpuinfo = text("/proc/cpuinfo");
        let cpus = |which: &str| {
            text(format!("/sys/devices/system/cpu/{which}"))
                .as_deref()
                .and_then(count_in_list)
        };
        Self {
            cpu_model: cpuinfo
                .as_deref()
                .and_then(cpu_model)
                .or_else(device_tree_model)
                .unwrap_or_else(|| UNKNOWN.to_owned()),
            cpus_online: cpus("online"),
            cpus_possible: cpus("possible"),
            nodes: text("/sys/devices/system/node/online")
                .as_deref()
                .and_then(count_in_list),
            memory_bytes: text("/proc/meminfo").as_deref().and_then(memory_bytes),
            virtualisation: virtualisation(cpuinfo.as_deref().unwrap_or_default()),
            clocksource: text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .unwrap_or_else(|| UNKNOWN.to_owned()),
            mitigations: mitigations(),
            config_digest: config_digest(),
            spinlocks: UNKNOWN.to_owned(),
        }
    }
}

/// The trimmed text of a file, if there is any.
fn text(path: impl AsRef<Path>) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // Strings of a device tree end with a NUL.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The value of the first line `key : value`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

/// The model name in `/proc/cpuinfo`, which not every architecture writes.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    ["model name", "cpu model", "cpu"]
        .into_iter()
        .find_map(|key| field(cpuinfo, key))
        .filter(|model| !model.is_empty())
        .map(|model| model.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The model of the board, the next best name on machines with a device tree.
fn device_tree_model() -> Option<String> {
    text("/proc/device-tree/model")
}

/// How many numbers a list such as `0-3,8` names.
fn count_in_list(list: &str) -> Option<u32> {
    list.trim().split(',').try_fold(0_u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// One more than the highest id of a list of CPUs such as `0-3,8-11`: what an array by id has room for.
pub(crate) fn cpu_ids(list: &str) -> Option<u32> {
    let highest = list.trim().rsplit([',', '-']).next()?;
    Some(highest.parse::<u32>().ok()? + 1)
}

/// `MemTotal` of `/proc/meminfo` in bytes, rounded to a MiB.
fn memory_bytes(meminfo: &str) -> Option<u64> {
    let kib: u64 = field(meminfo, "MemTotal")?
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    Some(kib.checked_mul(1024)?.checked_add(MIB / 2)? / MIB * MIB)
}

/// What runs this machine: CPUID knows best, then the firmware.
fn virtualisation(cpuinfo: &str) -> String {
    let firmware = hypervisor_of_firmware();
    let word = match hypervisor_of_cpu(cpuinfo) {
        Some(OTHER) => firmware.unwrap_or(OTHER),
        Some(NONE) => hidden_hypervisor(cpuinfo, firmware).unwrap_or(NONE),
        Some(word) => word,
        None => firmware.unwrap_or(UNKNOWN),
    };
    word.to_owned()
}

/// A QEMU that was told to hide behind CPUID, which is done to get native spinlocks in a guest.
///
/// Other names of firmware prove nothing here: clouds rent out bare machines under them too.
fn hidden_hypervisor(cpuinfo: &str, firmware: Option<&'static str>) -> Option<&'static str> {
    let emulated = cpu_model(cpuinfo).is_some_and(|model| model.contains("QEMU TCG"));
    if emulated {
        Some("qemu-tcg")
    } else {
        firmware.filter(|word| *word == "qemu")
    }
}

/// The word for a machine without a hypervisor.
const NONE: &str = "none";

/// The word for a hypervisor without a name here.
const OTHER: &str = "other";

/// What CPUID says: `none` on bare metal, and `None` where there is no CPUID.
#[cfg(target_arch = "x86_64")]
fn hypervisor_of_cpu(cpuinfo: &str) -> Option<&'static str> {
    use core::arch::x86_64::__cpuid;

    /// The leaf where hypervisors put their name; to be asked only with the flag set.
    const HYPERVISOR_LEAF: u32 = 0x4000_0000;

    // A Xen PV guest sees the bare CPUID, but the kernel sets the flag for it.
    if !has_hypervisor_flag(cpuinfo) && __cpuid(1).ecx & (1 << 31) == 0 {
        return Some(NONE);
    }
    let leaf = __cpuid(HYPERVISOR_LEAF);
    let mut signature = [0; 12];
    for (bytes, register) in signature
        .chunks_exact_mut(4)
        .zip([leaf.ebx, leaf.ecx, leaf.edx])
    {
        bytes.copy_from_slice(&register.to_le_bytes());
    }
    Some(hypervisor_of_signature(&signature))
}

#[cfg(not(target_arch = "x86_64"))]
fn hypervisor_of_cpu(_cpuinfo: &str) -> Option<&'static str> {
    None
}

#[cfg(any(target_arch = "x86_64", test))]
fn has_hypervisor_flag(cpuinfo: &str) -> bool {
    field(cpuinfo, "flags")
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

#[cfg(any(target_arch = "x86_64", test))]
fn hypervisor_of_signature(signature: &[u8; 12]) -> &'static str {
    match signature {
        b"KVMKVMKVM\0\0\0" => "kvm",
        b"TCGTCGTCGTCG" => "qemu-tcg",
        b"XenVMMXenVMM" => "xen",
        b"Microsoft Hv" => "hyper-v",
        b"VMwareVMware" => "vmware",
        b"VBoxVBoxVBox" => "virtualbox",
        b"bhyve bhyve " => "bhyve",
        b"ACRNACRNACRN" => "acrn",
        b"Jailhouse\0\0\0" => "jailhouse",
        b" lrpepyh  vr" | b"prl hyperv  " => "parallels",
        _ => OTHER,
    }
}

/// What the firmware's tables and the kernel's own hypervisor nodes say.
fn hypervisor_of_firmware() -> Option<&'static str> {
    if text("/sys/hypervisor/type").as_deref() == Some("xen") {
        return Some("xen");
    }
    let tables = [
        "/proc/device-tree/hypervisor/compatible",
        "/sys/class/dmi/id/sys_vendor",
        "/sys/class/dmi/id/product_name",
    ];
    tables
        .into_iter()
        .filter_map(text)
        .find_map(|name| hypervisor_of_name(&name))
}

/// The hypervisor behind a vendor, product or compatible name; names of real machines give none.
///
/// QEMU's own name does not tell whether it emulates or uses KVM.
fn hypervisor_of_name(name: &str) -> Option<&'static str> {
    const NAMES: [(&str, &str); 10] = [
        ("linux,kvm", "kvm"),
        ("KVM", "kvm"),
        ("Google Compute Engine", "kvm"),
        ("OpenStack", "kvm"),
        ("Xen", "xen"),
        ("xen,xen", "xen"),
        ("VMware", "vmware"),
        ("VirtualBox", "virtualbox"),
        ("innotek", "virtualbox"),
        ("QEMU", "qemu"),
    ];
    NAMES
        .into_iter()
        .find(|(part, _)| name.contains(part))
        .map(|(_, word)| word)
}

/// What the kernel does about the vulnerabilities of the CPU.
fn mitigations() -> Option<Vec<String>> {
    let folder = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").ok()?;
    let states = folder.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((name, text(entry.path())?))
    });
    Some(mitigation_lines(states))
}

fn mitigation_lines(states: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let mut lines: Vec<_> = states
        .filter(|(_, state)| state != "Not affected")
        .map(|(name, state)| format!("{name}: {state}"))
        .collect();
    lines.sort();
    lines
}

/// The digest of the configuration, from the first place that has it.
///
/// The compressed file is not unpacked: the kernel build compresses without a name or a time
/// (`gzip -n`), so one configuration built by one toolchain gives one file.
fn config_digest() -> Option<String> {
    let compressed = || Some(digest("gz", &fs::read("/proc/config.gz").ok()?));
    let plain = || {
        let release = text("/proc/sys/kernel/osrelease")?;
        Some(digest(
            "text",
            &fs::read(format!("/boot/config-{release}")).ok()?,
        ))
    };
    compressed().or_else(plain)
}

fn digest(form: &str, bytes: &[u8]) -> String {
    format!("{form}:{:08x}", crc32fast::hash(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Example(R) CPU   @ 2.80GHz\nflags\t\t: fpu hypervisor lm\n\nprocessor\t: 1\nmodel name\t: Other\n";

    #[test]
    fn an_array_by_cpu_has_room_for_the_highest_id_also_where_ids_have_gaps() {
        assert_eq!(cpu_ids("0-3,8-11\n"), Some(12));
        assert_eq!(cpu_ids("0,64\n"), Some(65));
        assert_eq!(cpu_ids("0\n"), Some(1));
        assert_eq!(cpu_ids(""), None);
    }

    #[test]
    fn the_first_cpu_names_the_model_with_single_spaces() {
        assert_eq!(
            cpu_model(CPUINFO).as_deref(),
            Some("Example(R) CPU @ 2.80GHz")
        );
        assert_eq!(cpu_model("processor : 0\nBogoMIPS : 50.00\n"), None);
    }

    #[test]
    fn the_hypervisor_flag_is_a_whole_word() {
        assert!(has_hypervisor_flag(CPUINFO));
        assert!(!has_hypervisor_flag("flags : fpu nohypervisor\n"));
        assert!(!has_hypervisor_flag(""));
    }

    #[test]
    fn lists_are_counted_with_their_ranges() {
        assert_eq!(count_in_list("0"), Some(1));
        assert_eq!(count_in_list("0-3,8,10-11\n"), Some(7));
    }

    #[test]
    fn broken_lists_count_as_nothing_known() {
        for list in ["", "3-1", "a", "0-", "0-4294967295"] {
            assert_eq!(count_in_list(list), None, "{list}");
        }
    }

    #[test]
    fn memory_is_rounded_to_the_nearest_mib() {
        assert_eq!(
            memory_bytes("MemFree: 1 kB\nMemTotal:  1536 kB\n"),
            Some(2 * MIB)
        );
        assert_eq!(memory_bytes("MemTotal:       1535 kB\n"), Some(MIB));
        assert_eq!(memory_bytes("MemFree: 1 kB\n"), None);
        assert_eq!(memory_bytes("MemTotal: 18446744073709551615 kB\n"), None);
    }

    #[test]
    fn hypervisors_are_told_by_their_cpuid_signature() {
        assert_eq!(hypervisor_of_signature(b"KVMKVMKVM\0\0\0"), "kvm");
        assert_eq!(hypervisor_of_signature(b"TCGTCGTCGTCG"), "qemu-tcg");
        assert_eq!(hypervisor_of_signature(b"SomethingNew"), "other");
    }

    #[test]
    fn a_qemu_that_hides_is_told_by_its_cpu_model_or_firmware() {
        let tcg = "model name : QEMU TCG CPU version 2.5+\n";
        assert_eq!(hidden_hypervisor(tcg, Some("qemu")), Some("qemu-tcg"));
        assert_eq!(hidden_hypervisor(CPUINFO, Some("qemu")), Some("qemu"));
        assert_eq!(hidden_hypervisor(CPUINFO, Some("kvm")), None);
        assert_eq!(hidden_hypervisor(CPUINFO, None), None);
    }

    #[test]
    fn firmware_names_of_real_machines_are_no_hypervisor() {
        assert_eq!(hypervisor_of_name("QEMU"), Some("qemu"));
        assert_eq!(hypervisor_of_name("VMware, Inc."), Some("vmware"));
        assert_eq!(hypervisor_of_name("Dell Inc."), None);
    }

    #[test]
    fn mitigations_are_ordered_and_leave_out_what_the_cpu_does_not_have() {
        let states = [
            ("spectre_v2", "Mitigation: IBRS"),
            ("l1tf", "Not affected"),
            ("bhi", "Vulnerable"),
        ];
        let states = states.map(|(name, state)| (name.to_owned(), state.to_owned()));
        assert_eq!(
            mitigation_lines(states.into_iter()),
            ["bhi: Vulnerable", "spectre_v2: Mitigation: IBRS"]
        );
    }

    #[test]
    fn digests_of_different_forms_never_compare_equal() {
        assert_eq!(digest("gz", b"123456789"), "gz:cbf43926");
        assert_ne!(digest("gz", b"same"), digest("text", b"same"));
    }

    #[test]
    fn reading_never_fails_and_is_stable() {
        let host = Host::read();
        assert_eq!(host, Host::read());
        assert_eq!(host.spinlocks, UNKNOWN);
        assert!(
            !host.cpu_model.is_empty()
                && !host.virtualisation.is_empty()
                && !host.clocksource.is_empty()
        );
    }
}
