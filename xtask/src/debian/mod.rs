//! Packages of other Debian suites than the machine's own.
//!
//! In: a package's name. Out: its unpacked files. The machine's own apt state
//! is read (where is a Debian archive?) and never written; apt verifies every
//! signature and checksum.

mod apt;
mod deb;
mod suites;

pub(crate) use apt::Apt;
pub(crate) use deb::unpack;
