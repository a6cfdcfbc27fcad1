//! Taking a group away.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::processes::below;
use super::{Cgroup, CgroupError, is_gone};

/// A killed process leaves its group a moment before it is reaped; attempts with doubled pauses up
/// to 16 ms make about half a second.
const ATTEMPTS: u32 = 36;

impl Cgroup {
    /// Removes the directories [`Cgroup::create`] made, with whatever groups the container made
    /// below. What is gone already is success. Groups above that were made on the way go too,
    /// unless somebody else uses them by now. Every tree is tried even if one fails.
    ///
    /// # Errors
    /// [`CgroupError::Remove`], the first; calling again is possible.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for dir in &self.dirs {
            let (leaf, above) = match dir.made.split_last() {
                Some((last, above)) if *last == dir.path => (Some(last), above),
                _ => (None, &dir.made[..]),
            };
            let removed = leaf.map_or(Ok(()), |leaf| remove_tree(leaf));
            if removed.is_ok() {
                for parent in above.iter().rev() {
                    // Busy means that others moved in; it is theirs now.
                    let _ = fs::remove_dir(parent);
                }
            }
            result = result.and(removed);
        }
        result
    }
}

fn remove_tree(leaf: &Path) -> Result<(), CgroupError> {
    // Mostly there is nothing below, and one call does it.
    let mut pause = Duration::from_micros(100);
    for attempt in 1.. {
        let failed = match fs::remove_dir(leaf) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => error,
        };
        if !is_busy(&failed) || attempt == ATTEMPTS {
            return Err(CgroupError::Remove {
                path: leaf.to_path_buf(),
                source: failed,
            });
        }
        let mut children = below(leaf);
        let deepest_first = children.drain(1..).rev();
        let removed = deepest_first
            .filter(|child| fs::remove_dir(child).is_ok())
            .count();
        if removed == 0 {
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(16));
        }
    }
    unreachable!("the loop returns at the last attempt")
}

fn is_busy(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ResourceBusy | ErrorKind::DirectoryNotEmpty
    )
}
