//! One program that reads kernel words for the facts: the values of `vmap_nodes` and its like.
//!
//! In: `ADDRESSES`. Out: `WORDS`. It is run once by a test run and attached to nothing, so that
//! kernel memory is read without /proc/kcore.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::helpers::bpf_probe_read_kernel;
    use aya_ebpf::macros::map;
    use aya_ebpf::maps::Array;

    #[map]
    static ADDRESSES: Array<u64> = Array::with_max_entries(8, 0);
    #[map]
    static WORDS: Array<u64> = Array::with_max_entries(8, 0);

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "raw_tp/peek")]
    extern "C" fn peek(_ctx: *mut u64) -> i32 {
        for index in 0..8 {
            let (Some(address), Some(word)) = (ADDRESSES.get(index), WORDS.get_ptr_mut(index))
            else {
                return 0;
            };
            if *address == 0 {
                continue;
            }
            // SAFETY: the helper checks the address, and `word` is a value of the map.
            unsafe {
                if let Ok(value) = bpf_probe_read_kernel(*address as *const u64) {
                    *word = value;
                }
            }
        }
        0
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
