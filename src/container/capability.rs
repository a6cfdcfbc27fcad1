//! Linux capabilities by name and as sets.

use std::fmt;

use crisp_oci::capability::{self, NAMES};
use serde::{Deserialize, Serialize};

/// A capability by its kernel number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capability(u8);

impl Capability {
    /// Parses a name, with or without `CAP_`, in either case. `ALL` is no capability: callers treat
    /// it as a set.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        capability::number(bare).map(Self)
    }

    /// The kernel's number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The name with its `CAP_` prefix, as a runtime spec has it.
    #[must_use]
    pub fn name(self) -> String {
        format!("CAP_{}", NAMES[usize::from(self.0)])
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A set of capabilities; bit n is kernel number n.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// Nothing.
    pub const EMPTY: Self = Self(0);
    /// Everything this build has a name for.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// From a kernel mask such as `CapBnd`; bits without a name are dropped.
    #[must_use]
    pub fn from_mask(mask: u64) -> Self {
        Self(mask & Self::ALL.0)
    }

    /// As a kernel mask.
    #[must_use]
    pub fn mask(self) -> u64 {
        self.0
    }

    /// Adds one.
    pub fn insert(&mut self, capability: Capability) {
        self.0 |= 1 << capability.0;
    }

    /// Whether it has this one.
    #[must_use]
    pub fn contains(self, capability: Capability) -> bool {
        self.0 & (1 << capability.0) != 0
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What both have.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Without those of `other`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// In the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        (0_u8..)
            .zip(NAMES)
            .map(|(number, _)| Capability(number))
            .filter(move |c| self.contains(*c))
    }
}

impl FromIterator<Capability> for CapabilitySet {
    fn from_iter<I: IntoIterator<Item = Capability>>(iter: I) -> Self {
        let mut set = Self::EMPTY;
        iter.into_iter()
            .for_each(|capability| set.insert(capability));
        set
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(Capability::name))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_in_every_spelling_that_clients_use() {
        for name in ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin", "Cap_Net_Admin"] {
            assert_eq!(
                Capability::parse(name).map(Capability::number),
                Some(12),
                "{name}"
            );
        }
        for name in [
            "",
            "CAP_",
            "ALL",
            "NET ADMIN",
            "CAP_CAP_CHOWN",
            "NET_ADMIN\n",
        ] {
            assert_eq!(Capability::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn every_name_is_one_the_runtime_spec_knows() {
        for capability in CapabilitySet::ALL.iter() {
            let json = format!("{:?}", capability.name());
            let oci: Result<oci_spec::runtime::Capability, _> = serde_json::from_str(&json);
            assert!(oci.is_ok(), "{capability}");
        }
        assert_eq!(CapabilitySet::ALL.iter().count(), NAMES.len());
    }

    #[test]
    fn sets_behave_like_sets() {
        let chown = Capability::parse("chown").unwrap();
        let kill = Capability::parse("kill").unwrap();
        let both: CapabilitySet = [chown, kill].into_iter().collect();
        assert_eq!(both.mask(), 0b10_0001);
        assert!(
            !both
                .difference([chown].into_iter().collect())
                .contains(chown)
        );
        assert_eq!(CapabilitySet::from_mask(u64::MAX), CapabilitySet::ALL);
    }
}
