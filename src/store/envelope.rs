//! The wrapping of every stored body: `schema: u16 LE, crc32: u32 LE over schema and body, body`.
//!
//! The engine has checksums of its own, but they end where its pages do; this one is checked by
//! whoever decodes, so a record that changed on the way is never taken for what was written.

/// Bytes before the body.
pub(super) const HEADER: usize = 6;

/// Wraps a body.
pub(super) fn seal(schema: u16, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&schema.to_le_bytes());
    out.extend_from_slice(&checksum(schema, body).to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// Unwraps a body: its schema and its bytes, or what is wrong.
pub(super) fn open(bytes: &[u8]) -> Result<(u16, &[u8]), &'static str> {
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err("shorter than its header");
    };
    let schema = u16::from_le_bytes([header[0], header[1]]);
    let crc = u32::from_le_bytes([header[2], header[3], header[4], header[5]]);
    if crc == checksum(schema, body) {
        Ok((schema, body))
    } else {
        Err("checksum mismatch")
    }
}

fn checksum(schema: u16, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&schema.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let sealed = seal(7, b"{\"a\":1}");
        assert_eq!(open(&sealed), Ok((7, b"{\"a\":1}".as_slice())));
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&bad).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(open(&sealed[..len]).is_err(), "length {len}");
        }
    }
}
