//! Headers of frames to the client, RFC 6455 section 5.2; these are never masked nor in fragments.
//!
//! ```text
//! byte 0        0x80 last fragment | opcode (1 text, 9 ping)
//! byte 1        length up to 125, 126: two bytes follow, 127: eight bytes follow
//! then          the length, big endian
//! ```

/// A ping without content.
pub(super) const PING: [u8; 2] = [0x89, 0];

/// Most bytes of a header.
pub(super) const HEADER_BYTES_MAX: usize = 10;

const TEXT: u8 = 0x81;

/// Returns the header of a text frame.
pub(super) fn text_header(length: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES_MAX);
    push_text_header(&mut header, length);
    header
}

/// Appends the header of a text frame.
pub(super) fn push_text_header(out: &mut Vec<u8>, length: usize) {
    out.push(TEXT);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..=125), _) => out.push(length),
        (_, Ok(length)) => {
            out.push(126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tungstenite::protocol::frame::FrameHeader;

    use super::*;

    #[test]
    fn headers_are_those_that_others_read() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 33] {
            let header = text_header(length);
            assert!(header.len() <= HEADER_BYTES_MAX);
            let mut cursor = Cursor::new(&header);
            let (parsed, announced) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert_eq!(announced, length as u64);
            assert_eq!(cursor.position(), header.len() as u64);
            assert!(parsed.is_final && parsed.mask.is_none() && !parsed.rsv1);
        }
        assert_eq!(text_header(5), [0x81, 5]);
    }
}
