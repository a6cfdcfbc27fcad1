//! Room on the disk. A full one is noticed here, before the engine sees it: an engine that met ENOSPC
//! can hang or lose its log, a refused commit harms nothing.
//!
//! Removing must work when everything is full, because it is what makes room. So a small file is kept
//! in reserve: it is given up for removals only, and made again when there is plenty of room.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{error::Fault, open::beside};

/// Free bytes that must be left for a batch that stores something: the engine takes segments of
/// 512 KiB and writes a snapshot now and then.
pub(super) const PUT_FLOOR: u64 = 4 * 1024 * 1024;
/// Free bytes that must be left for a batch that only removes.
const REMOVE_FLOOR: u64 = 1024 * 1024;
/// Size of the reserve.
const RESERVE: i64 = 2 * 1024 * 1024;
/// Free bytes from which the reserve is made again.
const PLENTY: u64 = 64 * 1024 * 1024;

/// The room around a database.
pub(super) struct Space {
    dir: PathBuf,
    reserve: PathBuf,
    reserved: bool,
}

impl Space {
    /// Looks after the room around the database in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        let reserve = beside(dir, ".reserve");
        let mut space = Self {
            dir: dir.to_owned(),
            reserved: reserve.exists(),
            reserve,
        };
        if !space.reserved && space.free() >= PUT_FLOOR + RESERVE.unsigned_abs() {
            space.make_reserve();
        }
        space
    }

    /// Checks that there is room for a commit.
    pub(super) fn check(&mut self, stores_something: bool) -> Result<(), Fault> {
        let free = self.free();
        if !self.reserved && free >= PLENTY {
            self.make_reserve();
        }
        let floor = if stores_something {
            PUT_FLOOR
        } else {
            REMOVE_FLOOR
        };
        if free >= floor {
            return Ok(());
        }
        if !stores_something && self.reserved {
            self.reserved = false;
            if fs::remove_file(&self.reserve).is_ok() {
                tracing::warn!("the disk is full; the store removes records from its reserve");
            }
            if self.free() >= floor {
                return Ok(());
            }
        }
        Err(Fault::NoSpace { free, floor })
    }

    fn make_reserve(&mut self) {
        self.reserved = File::create(&self.reserve).is_ok_and(|file| {
            let none = nix::fcntl::FallocateFlags::empty();
            nix::fcntl::fallocate(&file, none, 0, RESERVE).is_ok()
        });
        if !self.reserved {
            let _ = fs::remove_file(&self.reserve);
        }
    }

    /// Free bytes for root. If they cannot be asked for, the engine will find out.
    fn free(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.dir).map_or(u64::MAX, |s| {
            s.blocks_free().saturating_mul(s.fragment_size())
        })
    }
}
