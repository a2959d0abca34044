//! The contract between the programs in the kernel and userspace.
//!
//! Owns every number, name and layout that both sides must agree on: the words of the domain
//! ([`words`]), the histogram buckets ([`bucket`]) and the shape of the maps ([`layout`]).
//! Compiled for the BPF target and for the host from the same text, without dependencies.
//!
//! Invariant: nothing here is spelt a second time anywhere else; a map value is made of integers
//! only, with its size asserted beside its definition.

#![cfg_attr(target_arch = "bpf", no_std)]

pub mod bucket;
pub mod layout;
pub mod words;
