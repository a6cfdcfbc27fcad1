//! Decompression: the compressed stream on one thread, its consumer on another.
//!
//! The format is told by the first bytes, not by what the manifest calls it. gzip may have several
//! members and zstd several frames; bytes after them that are neither are an error, and so is a
//! stream that ends early. Windows above 128 MiB are refused by the decoder.

use std::{
    io::{self, BufRead, BufReader, Cursor, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use sha2::{Digest, Sha256};

use super::{Failure, FailureKind, Limits};

const CHUNK: usize = 256 << 10;
const IN_FLIGHT: usize = 8;
const INPUT_BUFFER: usize = 64 << 10;
/// Largest zstd window, as a power of two.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Below this nobody asks how well something compresses.
const RATIO_FREE: u64 = 1 << 30;

/// The uncompressed archive, hashed as it is consumed.
pub struct Inflated {
    chunks: Option<Receiver<Vec<u8>>>,
    spare: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hasher: Sha256,
    failure: Arc<Mutex<Option<Failure>>>,
    thread: Option<JoinHandle<()>>,
}

struct Counting<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Inflated {
    /// Starts the thread that reads and decompresses `compressed`.
    ///
    /// # Errors
    /// [`Failure`] if the stream cannot be begun or is of a format that is not supported.
    pub fn start(compressed: impl Read + Send + 'static, limits: &Limits) -> Result<Self, Failure> {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Counting {
            inner: compressed,
            count: Arc::clone(&count),
        };
        let decoder = decoder(counted)?;
        let (full, chunks) = sync_channel::<Vec<u8>>(IN_FLIGHT);
        let (spare, empty) = sync_channel::<Vec<u8>>(IN_FLIGHT + 2);
        let failure = Arc::new(Mutex::new(None));
        let (slot, limits) = (Arc::clone(&failure), limits.clone());
        let thread = thread::Builder::new()
            .name("inflate".into())
            .spawn(move || {
                if let Err(failure) = pump(decoder, &full, &empty, &count, &limits) {
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                }
            })
            .map_err(|error| Failure::system("thread", &error))?;
        Ok(Self {
            chunks: Some(chunks),
            spare,
            current: Vec::new(),
            at: 0,
            hasher: Sha256::new(),
            failure,
            thread: Some(thread),
        })
    }

    /// What went wrong in the stream so far.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Reads to the end and returns the digest of everything, in hex.
    ///
    /// # Errors
    /// [`Failure`] if the stream is damaged.
    pub fn finish(&mut self) -> Result<String, Failure> {
        loop {
            let read = self
                .fill_buf()
                .map_err(|e| Failure::corrupt(e.to_string()))?
                .len();
            if read == 0 {
                break;
            }
            self.consume(read);
        }
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| Failure {
                kind: FailureKind::System,
                message: "the decompressing thread ended by a panic".into(),
            })?;
        }
        match self.take_failure() {
            Some(failure) => Err(failure),
            None => {
                let digest = std::mem::take(&mut self.hasher).finalize();
                Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
            }
        }
    }
}

impl Drop for Inflated {
    fn drop(&mut self) {
        drop(self.chunks.take()); // the thread's next send fails, and it ends
    }
}

impl Read for Inflated {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(into.len());
        into[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Inflated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() {
            let next = self.chunks.as_ref().and_then(|chunks| chunks.recv().ok());
            let used = std::mem::replace(&mut self.current, next.unwrap_or_default());
            self.at = 0;
            self.hasher.update(&self.current);
            if used.capacity() > 0 {
                let _ = self.spare.try_send(used); // a missing spare costs one allocation
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.current.len());
    }
}

fn pump(
    mut decoder: Box<dyn Read + Send>,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
    compressed: &AtomicU64,
    limits: &Limits,
) -> Result<(), Failure> {
    let mut total: u64 = 0;
    loop {
        let mut chunk = empty
            .try_recv()
            .unwrap_or_else(|_| Vec::with_capacity(CHUNK));
        chunk.clear();
        (&mut decoder)
            .take(CHUNK as u64)
            .read_to_end(&mut chunk)
            .map_err(|error| Failure::corrupt(format!("compressed stream: {error}")))?;
        if chunk.is_empty() {
            return Ok(());
        }
        total += chunk.len() as u64;
        if total > limits.max_bytes {
            let limit = limits.max_bytes;
            return Err(Failure::limit(format!(
                "the layer unpacks to more than {limit} bytes"
            )));
        }
        let read = compressed.load(Ordering::Relaxed).max(1);
        if total > RATIO_FREE && total / read > limits.max_ratio {
            return Err(Failure::limit(format!(
                "{read} compressed bytes unpack to more than {total}: beyond {}:1",
                limits.max_ratio
            )));
        }
        if full.send(chunk).is_err() {
            return Ok(()); // the consumer gave up and says why itself
        }
    }
}

fn decoder(mut input: impl Read + Send + 'static) -> Result<Box<dyn Read + Send>, Failure> {
    let mut magic = Vec::with_capacity(6);
    input
        .by_ref()
        .take(6)
        .read_to_end(&mut magic)
        .map_err(|error| Failure::corrupt(format!("compressed stream: {error}")))?;
    let kind = magic.clone();
    let input = BufReader::with_capacity(INPUT_BUFFER, Cursor::new(magic).chain(input));
    match kind.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut zstd = zstd::stream::read::Decoder::with_buffer(input)
                .map_err(|error| Failure::system("zstd", &error))?;
            zstd.window_log_max(ZSTD_WINDOW_LOG)
                .map_err(|error| Failure::system("zstd", &error))?;
            Ok(Box::new(zstd))
        }
        [b'B', b'Z', b'h', ..] => Err(Failure::refused("bzip2 layers are not supported")),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(Failure::refused("xz layers are not supported")),
        _ => Ok(Box::new(input)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn inflate(data: Vec<u8>, limits: &Limits) -> Result<Vec<u8>, Failure> {
        let mut source = Inflated::start(Cursor::new(data), limits)?;
        let mut all = Vec::new();
        source
            .read_to_end(&mut all)
            .expect("errors come by take_failure");
        source.finish()?;
        Ok(all)
    }

    #[test]
    fn formats_members_and_frames() {
        let plain: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let (front, back) = plain.split_at(1_000_000);
        let limits = Limits::default();
        let members = [gzip(front), gzip(back)].concat();
        let zst = |data: &[u8]| zstd::encode_all(data, 1).expect("to memory");
        let skippable = [
            &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9][..],
            &zst(&plain),
        ]
        .concat();
        for data in [
            plain.clone(),
            gzip(&plain),
            members,
            [zst(front), zst(back)].concat(),
            skippable,
        ] {
            assert!(inflate(data, &limits).expect("inflates") == plain);
        }
        assert!(inflate(Vec::new(), &limits).expect("empty").is_empty());
    }

    #[test]
    fn damage_is_an_error() {
        let data = gzip(&[7; 100_000]);
        let zst = zstd::encode_all(&[7; 100_000][..], 1).expect("to memory");
        let limits = Limits::default();
        let mut altered = data.clone();
        *altered.last_mut().expect("a byte") ^= 1;
        for broken in [
            data[..data.len() - 9].to_vec(),
            altered,
            [&data[..], b"garbage"].concat(),
            zst[..zst.len() - 1].to_vec(),
            [&zst[..], b"garbage"].concat(),
            vec![0x1f, 0x8b, 8],
            b"BZh91AY".to_vec(),
            b"\xfd7zXZ\0...".to_vec(),
        ] {
            inflate(broken, &limits).expect_err("damaged");
        }
    }

    #[test]
    fn limits_hold() {
        let data = gzip(&[0; 3_000_000]);
        let limits = Limits {
            max_bytes: 1_000_000,
            ..Limits::default()
        };
        assert_eq!(
            inflate(data, &limits).expect_err("too much").kind,
            FailureKind::Limit
        );
        // A zstd frame that asks for a window of 2 GiB.
        let mut zst = zstd::stream::Encoder::new(Vec::new(), 1).expect("encoder");
        zst.window_log(28).expect("window");
        zst.long_distance_matching(true).expect("long distance");
        zst.include_contentsize(false).expect("no size");
        for _ in 0..300 {
            zst.write_all(&[1; 1 << 20]).expect("to memory");
        }
        let wide = zst.finish().expect("to memory");
        let refused = inflate(wide, &Limits::default()).expect_err("window");
        assert!(refused.message.contains("stream"), "{refused}");
    }
}
