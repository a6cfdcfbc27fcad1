//! Runtime handlers: the configured names a pod may ask for and the OCI runtime behind each.

use std::collections::BTreeMap;

use crate::{
    config::{HandlerConfig, RuntimeConfig},
    error::{Classify, ErrorKind},
};

/// Why a handler cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// Nobody configured it.
    #[error("unknown runtime handler {name:?}; configured are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// It is configured, but this version runs no external OCI runtimes.
    #[error("runtime handler {name:?} is an external OCI runtime, which this version does not run")]
    External {
        /// What was asked for.
        name: String,
    },
}

impl Classify for HandlerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::InvalidArgument,
            Self::External { .. } => ErrorKind::Unsupported,
        }
    }
}

/// The handlers of this daemon.
#[derive(Debug, Clone)]
pub struct Handlers {
    default: String,
    by_name: BTreeMap<String, HandlerConfig>,
}

impl Handlers {
    /// As configured.
    #[must_use]
    pub fn new(config: &RuntimeConfig) -> Self {
        Self {
            default: config.default.clone(),
            by_name: config.handlers.clone(),
        }
    }

    /// The runtime behind `name`; the empty name is the default one.
    ///
    /// # Errors
    /// [`HandlerError`] when there is none that can be used.
    pub fn find(&self, name: &str) -> Result<&HandlerConfig, HandlerError> {
        let asked = if name.is_empty() { &self.default } else { name };
        match self.by_name.get(asked) {
            Some(HandlerConfig::Oci { .. }) => Err(HandlerError::External {
                name: asked.to_owned(),
            }),
            Some(builtin) => Ok(builtin),
            None => Err(HandlerError::Unknown {
                name: asked.chars().take(80).collect(),
                known: self.by_name.keys().cloned().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The names that can be used, and the empty one for the default.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let usable = |(name, config): (&String, &HandlerConfig)| {
            matches!(config, HandlerConfig::Builtin).then(|| name.clone())
        };
        std::iter::once(String::new())
            .chain(self.by_name.iter().filter_map(usable))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_runtimes() {
        let handlers = Handlers::new(&RuntimeConfig {
            default: "crisp".to_owned(),
            handlers: BTreeMap::from([
                ("crisp".to_owned(), HandlerConfig::Builtin),
                (
                    "kata".to_owned(),
                    HandlerConfig::Oci {
                        path: "/usr/bin/kata".into(),
                    },
                ),
            ]),
            ..crate::config::Config::default().runtime
        });
        assert_eq!(handlers.find(""), Ok(&HandlerConfig::Builtin));
        assert_eq!(handlers.find("crisp"), Ok(&HandlerConfig::Builtin));
        assert!(matches!(
            handlers.find("kata"),
            Err(HandlerError::External { .. })
        ));
        let unknown = handlers
            .find("nope")
            .expect_err("nobody configured it")
            .to_string();
        assert!(
            unknown.contains("nope") && unknown.contains("crisp, kata"),
            "{unknown}"
        );
        assert_eq!(handlers.names(), ["", "crisp"]);
    }
}
