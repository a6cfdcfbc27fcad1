//! The states of a container, as one pure table.
//!
//! ```text
//! (creating) -> Created -> Running -> Exited -> (removed)
//!                  \___________________^
//! ```
//! Creating and removed are not states of a container: before the first nobody can see it, after the
//! second nobody can. An exit is final: no event changes its code.

use serde::{Deserialize, Serialize};

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255; 128 + n for a death by signal n; 255 when nobody saw it end.
    pub code: i32,
    /// One CamelCase word, as kubelet shows it: `Completed`, `Error`, `OOMKilled`, ...
    pub reason: String,
    /// For people: what is known beyond the code.
    pub message: String,
    /// Nanoseconds since the epoch; 0 if it never started.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Its process exists and waits at the start gate.
    Created,
    /// Its process runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Its process ended.
    Exited(Exit),
}

/// What can happen to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The start gate opened and the program was executed.
    Started {
        /// Nanoseconds since the epoch.
        at: i64,
    },
    /// The process ended.
    Ended(Exit),
}

/// A change that the state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a container that {state} cannot {change}")]
pub struct Illegal {
    state: &'static str,
    change: &'static str,
}

impl State {
    /// The state after `change`.
    ///
    /// # Errors
    /// [`Illegal`] when it cannot happen from here.
    pub fn after(&self, change: Change) -> Result<Self, Illegal> {
        match (self, change) {
            (Self::Created, Change::Started { at }) => Ok(Self::Running { started_at: at }),
            (Self::Created, Change::Ended(exit)) => Ok(Self::Exited(exit)),
            (Self::Running { started_at }, Change::Ended(exit)) => Ok(Self::Exited(Exit {
                started_at: *started_at,
                ..exit
            })),
            (Self::Running { .. }, Change::Started { .. }) => Err(Illegal {
                state: self.word(),
                change: "start",
            }),
            (Self::Exited(_), Change::Started { .. }) => Err(Illegal {
                state: self.word(),
                change: "start",
            }),
            (Self::Exited(_), Change::Ended(_)) => Err(Illegal {
                state: self.word(),
                change: "end again",
            }),
        }
    }

    /// A word for messages.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created => "is created",
            Self::Running { .. } => "is running",
            Self::Exited(_) => "has exited",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exit(code: i32) -> Exit {
        Exit {
            code,
            reason: "Error".to_owned(),
            message: String::new(),
            started_at: 0,
            finished_at: 9,
        }
    }

    #[test]
    fn every_pair_of_state_and_change() {
        let running = State::Running { started_at: 5 };
        let ended = State::Exited(exit(3));
        let table = [
            (
                State::Created,
                Change::Started { at: 5 },
                Some(running.clone()),
            ),
            (State::Created, Change::Ended(exit(3)), Some(ended.clone())),
            (running.clone(), Change::Started { at: 6 }, None),
            (
                running,
                Change::Ended(exit(3)),
                Some(State::Exited(Exit {
                    started_at: 5,
                    ..exit(3)
                })),
            ),
            (ended.clone(), Change::Started { at: 7 }, None),
            (ended, Change::Ended(exit(4)), None),
        ];
        for (state, change, expected) in table {
            assert_eq!(
                state.after(change.clone()).ok(),
                expected,
                "{state:?} {change:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_first_exit_code_stays(changes in proptest::collection::vec(0..3_i32, 0..12)) {
            let mut state = State::Created;
            let mut first = None;
            for (step, change) in changes.into_iter().enumerate() {
                let code = i32::try_from(step).expect("few steps");
                let change = if change == 0 { Change::Started { at: 1 } } else {
                    Change::Ended(exit(code))
                };
                let ends = matches!(change, Change::Ended(_));
                if let Ok(next) = state.after(change) {
                    if ends { first.get_or_insert(code); }
                    state = next;
                }
                if let (State::Exited(seen), Some(code)) = (&state, first) {
                    prop_assert_eq!(seen.code, code);
                }
            }
        }
    }
}
