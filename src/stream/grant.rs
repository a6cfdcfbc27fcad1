//! What may be connected to: each answer of Exec, Attach and PortForward is a grant, and its token
//! the only key to it. Good once, for a minute.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::Engine as _;
use rand::RngCore;

use crate::id::{ContainerId, SandboxId};

/// How long a token is good.
const LIFE: Duration = Duration::from_secs(60);
/// Most tokens at one time.
const MOST: usize = 1000;
/// Random bytes of a token.
const ENTROPY: usize = 16;

/// What streams are wanted of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StdioSpec {
    /// Its standard input.
    pub stdin: bool,
    /// Its standard output.
    pub stdout: bool,
    /// Its standard error; never with a terminal.
    pub stderr: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// To run a command.
    Exec {
        /// In which container.
        container: ContainerId,
        /// The command line, never empty.
        command: Vec<String>,
        /// Its streams.
        stdio: StdioSpec,
    },
    /// To see and feed a container's first process.
    Attach {
        /// Which container.
        container: ContainerId,
        /// Its streams.
        stdio: StdioSpec,
    },
    /// To connect to ports of a pod.
    PortForward {
        /// Which.
        sandbox: SandboxId,
        /// For clients that do not name ports themselves.
        ports: Vec<u16>,
    },
}

impl Grant {
    /// The first part of its path.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// All grants that wait for their client.
#[derive(Debug, Default)]
pub struct Grants {
    // Held for map operations only.
    waiting: Mutex<HashMap<String, (Instant, Grant)>>,
}

/// There are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MOST} streams wait for their client already")]
pub struct TooManyGrants;

impl Grants {
    /// A token for `grant`.
    ///
    /// # Errors
    /// When too many wait.
    pub fn give(&self, grant: Grant, now: Instant) -> Result<String, TooManyGrants> {
        let mut bytes = [0_u8; ENTROPY];
        rand::rng().fill_bytes(&mut bytes);
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST {
            waiting.retain(|_, (given, _)| now.duration_since(*given) < LIFE);
        }
        if waiting.len() >= MOST {
            return Err(TooManyGrants);
        }
        waiting.insert(token.clone(), (now, grant));
        Ok(token)
    }

    /// What a token is for, if it is good for `verb`; it stays good.
    #[must_use]
    pub fn look(&self, verb: &str, token: &str, now: Instant) -> Option<Grant> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (given, grant) = waiting.get(token)?;
        (now.duration_since(*given) < LIFE && grant.verb() == verb).then(|| grant.clone())
    }

    /// Uses a token up. False: it was not good any more.
    #[must_use]
    pub fn take(&self, token: &str, now: Instant) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting
            .remove(token)
            .is_some_and(|(given, _)| now.duration_since(given) < LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant::PortForward {
            sandbox: SandboxId::random(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn a_token_is_good_once_for_its_own_verb_and_for_a_minute() {
        let (grants, now) = (Grants::default(), Instant::now());
        let token = grants.give(grant(), now).unwrap();
        assert_eq!(token.len(), 22, "{token}");
        assert_eq!(grants.look("exec", &token, now), None);
        assert_eq!(grants.look("portforward", "x", now), None);
        assert!(grants.look("portforward", &token, now).is_some());
        assert!(grants.take(&token, now));
        assert!(!grants.take(&token, now));
        let late = grants.give(grant(), now).unwrap();
        assert_eq!(grants.look("portforward", &late, now + LIFE), None);
        assert!(!grants.take(&late, now + LIFE));
    }

    #[test]
    fn a_thousand_may_wait_and_old_ones_make_room() {
        let (grants, now) = (Grants::default(), Instant::now());
        for _ in 0..MOST {
            grants.give(grant(), now).unwrap();
        }
        assert_eq!(grants.give(grant(), now), Err(TooManyGrants));
        assert!(grants.give(grant(), now + LIFE).is_ok());
    }
}
