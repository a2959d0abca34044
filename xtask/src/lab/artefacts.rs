//! Files that come out of a guest.
//!
//! In: the bytes of the guest's second serial port. Out: named files. Pure. A
//! frame is the name's length as u16, the name, the data's length as u32 and
//! the data, little-endian. A guest that died leaves its last frame unfinished:
//! what is whole before it is still good.

/// A file that a guest wrote.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Artefact<'a> {
    /// A plain file name, whatever the guest sent.
    pub(crate) name: String,
    pub(crate) data: &'a [u8],
}

/// The whole frames of a stream, and whether something unfinished follows.
pub(crate) fn parse(mut stream: &[u8]) -> (Vec<Artefact<'_>>, bool) {
    let mut artefacts = Vec::new();
    while let Some((artefact, rest)) = frame(stream) {
        artefacts.push(artefact);
        stream = rest;
    }
    (artefacts, !stream.is_empty())
}

fn frame(stream: &[u8]) -> Option<(Artefact<'_>, &[u8])> {
    let (length, stream) = stream.split_first_chunk()?;
    let (name, stream) = stream.split_at_checked(u16::from_le_bytes(*length).into())?;
    let (length, stream) = stream.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (data, rest) = stream.split_at_checked(length)?;
    let harmless = |c: char| {
        if c.is_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name = String::from_utf8_lossy(name)
        .trim_start_matches('.')
        .chars()
        .map(harmless)
        .collect();
    Some((Artefact { name, data }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(name.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn frames_come_back_byte_by_byte() {
        let stream = [framed("a.kct", b"\x00\r\n\xff"), framed("b.txt", b"")].concat();
        let (artefacts, unfinished) = parse(&stream);
        assert!(!unfinished);
        assert_eq!(artefacts.len(), 2);
        assert_eq!(
            (artefacts[0].name.as_str(), artefacts[0].data),
            ("a.kct", &b"\x00\r\n\xff"[..])
        );
    }

    #[test]
    fn every_cut_of_a_stream_keeps_the_whole_frames() {
        let first = framed("a", b"12");
        let stream = [first.clone(), framed("b", b"3456")].concat();
        for cut in 0..stream.len() {
            let (artefacts, unfinished) = parse(&stream[..cut]);
            assert_eq!(artefacts.len(), usize::from(cut >= first.len()));
            assert_eq!(unfinished, cut != 0 && cut != first.len());
        }
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        let stream = framed("../../etc/x", b"");
        assert_eq!(parse(&stream).0[0].name, "_.._etc_x");
    }
}
