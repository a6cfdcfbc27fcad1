//! The cgroups below which pods lie, as far as crisp itself made them.
//!
//! kubelet makes a cgroup for each pod and removes it. Where nobody made the one that was asked for,
//! crisp does, and it goes with the last sandbox that uses it: so it matters that each of them knows,
//! and not only the one that came first.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How many sandboxes use each of our parents.
#[derive(Debug, Default)]
// Held for map operations, and while the kernel is asked for one name.
pub struct Parents(Mutex<HashMap<String, usize>>);

impl Parents {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new sandbox uses `parent`. Whether it is ours: because others of ours use it, or because
    /// it is not there yet.
    pub fn claim(&self, parent: &str, is_there: impl FnOnce() -> bool) -> bool {
        let mut users = self.lock();
        if let Some(count) = users.get_mut(parent) {
            *count += 1;
            return true;
        }
        if is_there() {
            return false;
        }
        users.insert(parent.to_owned(), 1);
        true
    }

    /// A sandbox on record uses `parent`, which is ours.
    pub fn adopt(&self, parent: &str) {
        *self.lock().entry(parent.to_owned()).or_default() += 1;
    }

    /// A sandbox that used `parent`, which is ours, is gone.
    pub fn release(&self, parent: &str) {
        let mut users = self.lock();
        if let Some(count) = users.get_mut(parent) {
            *count -= 1;
            if *count == 0 {
                users.remove(parent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_later_knows_that_a_shared_parent_is_ours() {
        let parents = Parents::default();
        assert!(parents.claim("/a", || false));
        assert!(parents.claim("/a", || true), "made by the first one");
        parents.release("/a");
        assert!(parents.claim("/a", || true), "the second one is there");
        parents.release("/a");
        parents.release("/a");
        assert!(!parents.claim("/a", || true), "made by somebody else");
    }

    #[test]
    fn what_was_ours_before_a_restart_is_ours() {
        let parents = Parents::default();
        parents.adopt("/a");
        assert!(parents.claim("/a", || true));
    }
}
