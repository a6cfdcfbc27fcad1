//! Identifiers: parsed once at the edge, trusted ever after.

use std::{fmt, str::FromStr, sync::Arc};

use rand::RngCore;
use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 lower-case hexadecimal digits, this is {0:?}")]
pub struct InvalidId(pub String);

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// A fresh random id (256 bits).
            #[must_use]
            pub fn random() -> Self {
                let mut bytes = [0_u8; 32];
                rand::rng().fill_bytes(&mut bytes);
                let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                Self(text.into())
            }

            /// The full id.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits, as crictl shows them.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if text.len() == 64 && hex {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId(text.chars().take(80).collect()))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hex_id! {
    /// Id of a pod sandbox.
    SandboxId
}
hex_id! {
    /// Id of a container.
    ContainerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_and_differ() {
        let (a, b) = (SandboxId::random(), SandboxId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse(), Ok(a.clone()));
    }

    #[test]
    fn anything_but_64_hex_digits_is_refused() {
        for text in [
            "",
            "abc",
            &"A".repeat(64),
            &"g".repeat(64),
            &"a".repeat(65),
            "../../etc",
        ] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
    }
}
