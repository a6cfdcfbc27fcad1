//! What lives: the objects of one kind by id, found by full id or by a prefix that only one has.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

/// Why an id leads to no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Nothing has this id or prefix.
    #[error("no {kind} with id {id:?}")]
    Unknown {
        /// "sandbox" or "container".
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// More than one object begins with this prefix.
    #[error("id prefix {id:?} fits more than one {kind}, give more digits")]
    Ambiguous {
        /// "sandbox" or "container".
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
}

/// The live objects of one kind. Reading never waits for an operation on an object.
pub struct Registry<T> {
    kind: &'static str,
    // Held for map operations only.
    objects: RwLock<BTreeMap<String, Arc<T>>>,
}

impl<T> Registry<T> {
    /// An empty registry of objects called `kind` in messages.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            objects: RwLock::new(BTreeMap::new()),
        }
    }

    /// Adds an object under its full id.
    pub fn insert(&self, id: &str, object: Arc<T>) {
        self.objects
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.to_owned(), object);
    }

    /// Takes an object out.
    pub fn remove(&self, id: &str) {
        self.objects
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    /// All objects, by id.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T>> {
        self.objects
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// The object with this id, or the only one whose id begins so.
    ///
    /// # Errors
    /// [`LookupError`] when there is none or more than one.
    pub fn find(&self, id: &str) -> Result<Arc<T>, LookupError> {
        let unknown = || LookupError::Unknown {
            kind: self.kind,
            id: id.chars().take(80).collect(),
        };
        if id.is_empty() {
            return Err(unknown());
        }
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let mut fitting = objects
            .range(id.to_owned()..)
            .take_while(|(full, _)| full.starts_with(id));
        let (full, object) = fitting.next().ok_or_else(unknown)?;
        if full != id && fitting.next().is_some() {
            return Err(LookupError::Ambiguous {
                kind: self.kind,
                id: id.to_owned(),
            });
        }
        Ok(Arc::clone(object))
    }
}

impl crate::error::Classify for LookupError {
    fn kind(&self) -> crate::error::ErrorKind {
        match self {
            Self::Unknown { .. } => crate::error::ErrorKind::NotFound,
            Self::Ambiguous { .. } => crate::error::ErrorKind::InvalidArgument,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_ids_and_unique_prefixes_are_found() {
        let registry = Registry::new("container");
        for id in ["aaa1", "aaa2", "bbb"] {
            registry.insert(id, Arc::new(id));
        }
        assert_eq!(registry.find("aaa1").map(|o| *o), Ok("aaa1"));
        assert_eq!(registry.find("b").map(|o| *o), Ok("bbb"));
        assert!(matches!(
            registry.find("aaa"),
            Err(LookupError::Ambiguous { .. })
        ));
        assert!(matches!(
            registry.find("c"),
            Err(LookupError::Unknown { .. })
        ));
        assert!(matches!(
            registry.find(""),
            Err(LookupError::Unknown { .. })
        ));
        registry.remove("aaa2");
        assert_eq!(registry.find("aaa").map(|o| *o), Ok("aaa1"));
    }
}
