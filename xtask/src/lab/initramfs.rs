//! The guest's file system: a cpio archive in the kernel's "newc" format.
//!
//! In: the guest's binary and the modules of kernels. Out: the bytes of an
//! initramfs with `/init`, the mount points and a console, uncompressed.

use anyhow::Result;

use super::kernels::Kernel;

/// A file's type and permissions, as in `st_mode`.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The device numbers of /dev/console: without that file the kernel starts
/// init without stdin, stdout and stderr.
const CONSOLE: (u32, u32) = (5, 1);

/// A file beside the program: its path, without the first slash, and what is in it.
pub(crate) type Extra = (String, Vec<u8>);

/// A program or a library, as an [`Extra`].
pub(crate) type Program = (String, Vec<u8>);

/// An initramfs whose only program is `init`. A folder has to stand before what is in it.
fn with_init(init: &[u8], folders: &[String], extras: &[Extra]) -> Vec<u8> {
    let mut archive = Archive {
        bytes: Vec::with_capacity(init.len() + 4096),
        files: 0,
    };
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.add(folder, FOLDER, (0, 0), &[]);
    }
    for folder in folders {
        archive.add(folder, FOLDER, (0, 0), &[]);
    }
    for (path, data) in extras {
        archive.add(path, FILE, (0, 0), data);
    }
    archive.add("dev/console", CHARACTER_DEVICE, CONSOLE, &[]);
    archive.add("init", PROGRAM, (0, 0), init);
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    archive.bytes
}

/// The initramfs of every guest: the same for all kernels, with the modules of those that have
/// some.
pub(crate) fn with_modules(
    init: &[u8],
    kernels: &[Kernel],
    mut extras: Vec<Extra>,
) -> Result<Vec<u8>> {
    let mut folders = vec!["modules".to_owned()];
    for built in kernels.iter().filter_map(|kernel| kernel.built.as_ref()) {
        let (folder, modules) = built.files()?;
        folders.push(folder);
        extras.extend(modules);
    }
    Ok(with_init(init, &folders, &extras))
}

/// An archive of programs and libraries, to be put behind another one: the kernel unpacks one after
/// the other.
pub(crate) fn with_programs(folders: &[String], programs: &[Program]) -> Vec<u8> {
    let mut archive = Archive {
        bytes: Vec::new(),
        files: 0,
    };
    for folder in folders {
        archive.add(folder, FOLDER, (0, 0), &[]);
    }
    for (path, data) in programs {
        archive.add(path, PROGRAM, (0, 0), data);
    }
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    archive.bytes
}

struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    /// Appends a header of thirteen hexadecimal numbers, the name and the data,
    /// each of the latter padded to four bytes.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.files += 1;
        let size = u32::try_from(data.len()).expect("a guest binary has less than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let [inode, user, group, links, time] = [self.files, 0, 0, 1, 0];
        let (own_major, own_minor, checksum) = (0, 0, 0);
        let (major, minor) = device;
        self.bytes.extend_from_slice(b"070701");
        for number in [
            inode, mode, user, group, links, time, size, own_major, own_minor, major, minor,
            name_size, checksum,
        ] {
            self.bytes
                .extend_from_slice(format!("{number:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_length_and_order_of_newc() {
        let mut archive = Archive {
            bytes: Vec::new(),
            files: 0,
        };
        archive.add("init", PROGRAM, (0, 0), b"abcde");
        let text = String::from_utf8_lossy(&archive.bytes);
        assert_eq!(&text[..6], "070701");
        assert_eq!(&text[14..22], "000081ED", "mode");
        assert_eq!(&text[54..62], "00000005", "size");
        assert_eq!(&text[94..102], "00000005", "length of the name");
        assert_eq!(&text[110..], "init\0\0abcde\0\0\0");
    }

    #[test]
    fn archive_ends_with_the_trailer() {
        let archive = with_init(
            b"binary",
            &["modules".to_owned()],
            &[("modules/a".to_owned(), b"abc".to_vec())],
        );
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("modules/a\0") && text.contains("TRAILER!!!"));
    }
}
