//! The engine itself: sled, one tree, one atomic batch at a time. Everything here may panic or hang,
//! and `host` expects that.
//!
//! Keys are `table NUL key`; the canary has the table-less key `NUL canary`.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    envelope,
    error::Fault,
    witness::{self, Found, Witness},
};

const CANARY_KEY: &[u8] = b"\0canary";
const CANARY_SCHEMA: u16 = 1;
/// The page cache of the engine. Reads come from our own memory, so it only needs to hold the pages
/// being written.
const CACHE_BYTES: u64 = 1024 * 1024;

/// Written with every batch: what must be found again.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Canary {
    count: u64,
    generation: u64,
}

impl Canary {
    fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("a struct of two integers serialises");
        envelope::seal(CANARY_SCHEMA, &body)
    }
}

/// All records: raw key to envelope, every envelope checked.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// An open database.
pub(super) struct Engine {
    db: sled::Db,
    /// The engine never syncs its file, so it is done here, through a descriptor of our own.
    file: File,
    witness: Witness,
    #[cfg(test)]
    dir: std::path::PathBuf,
}

/// One atomic set of changes.
pub(super) struct Batch {
    /// Raw key, and envelope or `None` to remove. Of several changes of a key the last one counts.
    pub writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Number of records after it.
    pub count: u64,
    /// Its number.
    pub generation: u64,
    /// Whether it must survive a power cut.
    pub durable: bool,
}

/// A database that was opened and found whole.
pub(super) struct Checked {
    pub engine: Engine,
    pub records: Records,
    pub generation: u64,
    /// It was empty and nothing had ever been acknowledged from it.
    pub created: bool,
}

impl Engine {
    /// Opens the database in `dir`, reads everything and compares it with canary and witness.
    pub(super) fn open(dir: &Path) -> Result<Checked, Fault> {
        let said = witness::read(dir);
        let db = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .use_compression(false)
            .open()
            .map_err(Fault::Engine)?;
        let path = dir.join("db");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| Fault::File {
                call: "open",
                path,
                source,
            })?;
        let (records, canary) = read_all(&db)?;
        let count = records.len() as u64;
        let now = witness::boot_id();
        match (canary, said) {
            (None, Found::Nothing) if count == 0 => Self::found(dir, db, file),
            (None, Found::Nothing) => Err(Fault::Short {
                found: count,
                expected: 0,
            }),
            (None, _) => Err(Fault::Empty),
            (Some(c), _) if c.count != count => Err(Fault::Short {
                found: count,
                expected: c.count,
            }),
            (Some(c), Found::Whole(said)) if c.generation < said.required(now) => {
                Err(Fault::Stale {
                    found: c.generation,
                    expected: said.required(now),
                })
            }
            (Some(c), said) => {
                let durable = match said {
                    Found::Whole(said) => said.durable,
                    Found::Nothing | Found::Unreadable => 0,
                };
                let witness = Witness::attach(dir, c.generation, durable)?;
                let engine = Self {
                    db,
                    file,
                    witness,
                    #[cfg(test)]
                    dir: dir.to_owned(),
                };
                Ok(Checked {
                    engine,
                    records,
                    generation: c.generation,
                    created: false,
                })
            }
        }
    }

    /// Makes an empty database durable before anything is acknowledged from it. The witness comes
    /// last: once it exists, an empty database is a lost one.
    fn found(dir: &Path, db: sled::Db, file: File) -> Result<Checked, Fault> {
        let canary = Canary {
            count: 0,
            generation: 0,
        };
        db.insert(CANARY_KEY, canary.encode())
            .map_err(Fault::Engine)?;
        db.flush().map_err(Fault::Engine)?;
        file.sync_all().map_err(|source| Fault::File {
            call: "fsync",
            path: dir.join("db"),
            source,
        })?;
        sync_dir(dir)?;
        let witness = Witness::attach(dir, 0, 0)?;
        witness.sync()?;
        sync_dir(dir)?;
        let engine = Self {
            db,
            file,
            witness,
            #[cfg(test)]
            dir: dir.to_owned(),
        };
        Ok(Checked {
            engine,
            records: Records::new(),
            generation: 0,
            created: true,
        })
    }

    /// Commits a batch. On return it survives the death of the daemon, a durable one a power cut.
    pub(super) fn commit(&mut self, batch: &Batch) -> Result<(), Fault> {
        let Batch {
            writes,
            count,
            generation,
            durable,
        } = batch;
        let mut changes = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => changes.insert(key.as_slice(), value.as_slice()),
                None => changes.remove(key.as_slice()),
            }
        }
        let canary = Canary {
            count: *count,
            generation: *generation,
        };
        changes.insert(CANARY_KEY, canary.encode());
        #[cfg(test)]
        injected::fail(&self.dir, injected::Moment::Before)?;
        self.db.apply_batch(changes).map_err(Fault::Engine)?;
        self.db.flush().map_err(Fault::Engine)?;
        #[cfg(test)]
        injected::fail(&self.dir, injected::Moment::After)?;
        if *durable {
            self.file.sync_data().map_err(|source| Fault::File {
                call: "fdatasync",
                path: "db".into(),
                source,
            })?;
        }
        self.witness.say(*generation, *durable)?;
        if *durable {
            self.witness.sync()?;
        }
        Ok(())
    }
}

/// fsync of a directory: makes the names in it durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Fault> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|source| Fault::File {
            call: "fsync",
            path: dir.to_owned(),
            source,
        })
}

fn read_all(db: &sled::Db) -> Result<(Records, Option<Canary>), Fault> {
    let mut records = Records::new();
    let mut canary = None;
    for item in db.iter() {
        let (key, value) = item.map_err(Fault::Engine)?;
        let damaged = |reason| Fault::Damaged {
            key: String::from_utf8_lossy(&key).into_owned(),
            reason,
        };
        let (schema, body) = envelope::open(&value).map_err(damaged)?;
        if key == CANARY_KEY {
            if schema != CANARY_SCHEMA {
                return Err(damaged("canary of another schema"));
            }
            canary =
                Some(serde_json::from_slice(body).map_err(|_| damaged("canary is not readable"))?);
        } else if split_key(&key).is_none() {
            return Err(damaged("not a key of this store"));
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
    }
    Ok((records, canary))
}

/// The raw key of a record.
pub(super) fn raw_key(table: &str, key: &str) -> Vec<u8> {
    let mut raw = Vec::with_capacity(table.len() + 1 + key.len());
    raw.extend_from_slice(table.as_bytes());
    raw.push(0);
    raw.extend_from_slice(key.as_bytes());
    raw
}

/// Table and key of a raw key.
pub(super) fn split_key(raw: &[u8]) -> Option<(&str, &str)> {
    let (table, key) = std::str::from_utf8(raw).ok()?.split_once('\0')?;
    (!table.is_empty() && !key.is_empty()).then_some((table, key))
}

/// Faults on demand: what a file `fail-next` in the database's directory asks for, once.
#[cfg(test)]
mod injected {
    use super::{Fault, Path};

    #[derive(PartialEq)]
    pub(super) enum Moment {
        Before,
        After,
    }

    pub(super) fn fail(dir: &Path, now: Moment) -> Result<(), Fault> {
        let path = dir.join("fail-next");
        let Ok(how) = std::fs::read_to_string(&path) else {
            return Ok(());
        };
        let moment = if how == "error after" {
            Moment::After
        } else {
            Moment::Before
        };
        if moment != now {
            return Ok(());
        }
        std::fs::remove_file(path).unwrap();
        match how.as_str() {
            "panic" => panic!("injected"),
            "hang" => loop {
                std::thread::park();
            },
            _ => Err(Fault::Engine(sled::Error::Io(std::io::Error::other(
                "injected",
            )))),
        }
    }
}
