//! Headers, extensions and contents of layer archives.
#![no_main]

use crisp::snapshot::apply::archive::Archive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A header's checksum is put right, or hardly any input would get past it.
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let mut source = &bytes[..];
    let mut archive = Archive::new(&mut source);
    while let Ok(Some(_)) = archive.next_entry() {
        while let Ok(data) = archive.data() {
            let count = data.len();
            if count == 0 {
                break;
            }
            archive.consume(count);
        }
    }
});
