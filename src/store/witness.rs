//! The witness: a small file beside the database with the last acknowledged generation.
//!
//! The engine opens a cut database without a word, and a shorter log is consistent in itself, canary
//! and all. Only something outside can know that more was there. The witness is overwritten in place
//! after every commit and before its acknowledgement (a write into the page cache, about 2 us) and is
//! made durable with durable commits, so what it says is never more than what was promised:
//! within one boot `generation` must be reached, after a reboot `durable`.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::error::Fault;

const MAGIC: &[u8; 8] = b"crispwit";
const LEN: usize = 8 + 16 + 8 + 8 + 4;
const NAME: &str = "witness";

/// What the witness says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Testimony {
    /// Boot in which `generation` was acknowledged.
    pub boot: [u8; 16],
    /// Last acknowledged generation.
    pub generation: u64,
    /// Last generation acknowledged as durable.
    pub durable: u64,
}

impl Testimony {
    /// The generation the database must have reached, seen from the boot `now`.
    pub(super) fn required(&self, now: [u8; 16]) -> u64 {
        if self.boot == now {
            self.generation
        } else {
            self.durable
        }
    }

    fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..8].copy_from_slice(MAGIC);
        out[8..24].copy_from_slice(&self.boot);
        out[24..32].copy_from_slice(&self.generation.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable.to_le_bytes());
        let crc = crc32fast::hash(&out[..40]);
        out[40..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let crc = u32::from_le_bytes(bytes[40..].try_into().ok()?);
        if &bytes[..8] != MAGIC || crc != crc32fast::hash(&bytes[..40]) {
            return None;
        }
        Some(Self {
            boot: bytes[8..24].try_into().ok()?,
            generation: u64::from_le_bytes(bytes[24..32].try_into().ok()?),
            durable: u64::from_le_bytes(bytes[32..40].try_into().ok()?),
        })
    }
}

/// What lies beside a database.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No witness: no write was ever acknowledged here.
    Nothing,
    /// A torn or altered one: something was acknowledged, how much is unknown.
    Unreadable,
    /// A whole one.
    Whole(Testimony),
}

/// Reads the witness of the database in `dir`.
pub(super) fn read(dir: &Path) -> Found {
    let mut bytes = Vec::with_capacity(LEN);
    match File::open(dir.join(NAME)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Found::Nothing,
        Err(_) => Found::Unreadable,
        Ok(file) => match file.take(LEN as u64 + 1).read_to_end(&mut bytes) {
            Ok(_) => Testimony::decode(&bytes).map_or(Found::Unreadable, Found::Whole),
            Err(_) => Found::Unreadable,
        },
    }
}

/// The witness of an open database.
pub(super) struct Witness {
    file: File,
    path: PathBuf,
    said: Testimony,
}

impl Witness {
    /// Opens or makes the witness of the database in `dir`, which is known to be good, and has it
    /// say so: all of `generation` is there, and durable as far as `durable`.
    pub(super) fn attach(dir: &Path, generation: u64, durable: u64) -> Result<Self, Fault> {
        let path = dir.join(NAME);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| Fault::File {
                call: "open",
                path: path.clone(),
                source,
            })?;
        let said = Testimony {
            boot: boot_id(),
            generation,
            durable,
        };
        let witness = Self { file, path, said };
        witness
            .file
            .set_len(LEN as u64)
            .map_err(|e| witness.fault("truncate", e))?;
        witness.write()?;
        Ok(witness)
    }

    /// Says that `generation` is about to be acknowledged.
    pub(super) fn say(&mut self, generation: u64, durable: bool) -> Result<(), Fault> {
        self.said.generation = generation;
        if durable {
            self.said.durable = generation;
        }
        self.write()
    }

    /// Makes what was said survive a power cut.
    pub(super) fn sync(&self) -> Result<(), Fault> {
        self.file.sync_all().map_err(|e| self.fault("fsync", e))
    }

    fn write(&self) -> Result<(), Fault> {
        let bytes = self.said.encode();
        self.file
            .write_all_at(&bytes, 0)
            .map_err(|e| self.fault("write", e))
    }

    fn fault(&self, call: &'static str, source: std::io::Error) -> Fault {
        Fault::File {
            call,
            path: self.path.clone(),
            source,
        }
    }
}

/// Identity of this boot; all zeros where the kernel does not tell, which makes every start count as
/// the same boot and so asks for more rather than less.
pub(super) fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text
        .bytes()
        .filter_map(|b| char::from(b).to_digit(16))
        .filter_map(|digit| u8::try_from(digit).ok())
        .collect();
    let mut out = [0; 16];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reboot_asks_only_for_what_was_durable() {
        let said = Testimony {
            boot: [1; 16],
            generation: 9,
            durable: 4,
        };
        assert_eq!(said.required([1; 16]), 9);
        assert_eq!(said.required([2; 16]), 4);
        assert_eq!(Testimony::decode(&said.encode()), Some(said));
    }

    #[test]
    fn a_torn_or_altered_witness_is_unreadable() {
        let bytes = Testimony {
            boot: [1; 16],
            generation: 9,
            durable: 4,
        }
        .encode();
        for i in 0..LEN {
            let mut bad = bytes;
            bad[i] ^= 0x10;
            assert_eq!(Testimony::decode(&bad), None);
            assert_eq!(Testimony::decode(&bytes[..i]), None);
        }
    }

    #[test]
    fn this_boot_has_an_id() {
        assert_ne!(boot_id(), [0; 16]);
    }
}
