//! What a process may do, asked before anything is tried.
//!
//! In: /proc/self/status. Out: the capability that is missing, by its name.

use std::fs;

use super::LoadError;

/// Capabilities by their number (`include/uapi/linux/capability.h`).
const CAPABILITIES: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_SYSLOG", 34)];
const CAP_SYS_ADMIN: u32 = 21;

/// Names the capability that is missing before anything is tried.
pub fn check_capabilities() -> Result<(), LoadError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective_capabilities(&status).and_then(missing_capability) {
        Some(missing) => Err(LoadError::Permission {
            missing: missing.to_owned(),
        }),
        None => Ok(()),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// CAP_SYS_ADMIN includes the other two of BPF, as before 5.8; kallsyms asks for CAP_SYSLOG.
fn missing_capability(effective: u64) -> Option<&'static str> {
    let has = |number: u32| effective >> number & 1 != 0;
    let missing = CAPABILITIES
        .iter()
        .find(|(name, number)| !has(*number) && (*name == "CAP_SYSLOG" || !has(CAP_SYS_ADMIN)));
    missing.map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_capability_is_named() {
        let caps = |numbers: &[u32]| numbers.iter().fold(0u64, |mask, number| mask | 1 << number);
        assert_eq!(missing_capability(0), Some("CAP_BPF"));
        assert_eq!(missing_capability(caps(&[39])), Some("CAP_PERFMON"));
        assert_eq!(missing_capability(caps(&[39, 38])), Some("CAP_SYSLOG"));
        assert_eq!(missing_capability(caps(&[21, 34])), None);
        assert_eq!(
            missing_capability(effective_capabilities("CapEff:\t000001ffffffffff").unwrap()),
            None
        );
    }
}
