//! A journalled undoing: how sandboxes and containers are taken apart.
//!
//! What is to go is on disk before the first step and until the last one is done, so an undoing can
//! be cut off anywhere (a crash, a plugin that hangs) and begun anew. For that each step is
//! idempotent and has a deadline of its own.

use std::{fmt, io, time::Duration};

use crate::{
    error::{Chain, Classify, ErrorKind},
    failpoint,
    network::NetworkError,
    store::{StoreError, record_file::RecordFileError},
};

/// How long one step may take.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Pauses between tries of what could not be undone.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What is taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// A pod sandbox.
    Sandbox,
    /// A container.
    Container,
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sandbox => "sandbox",
            Self::Container => "container",
        })
    }
}

/// Why a step of an undoing failed.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// A process, cgroup, mount or file does not go.
    #[error("cannot remove the {what} of the {of}")]
    Remains {
        /// Of what.
        of: Of,
        /// Which step.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A network plugin.
    #[error("cannot detach the pod from the network")]
    Network(#[source] NetworkError),
    /// The record does not go.
    #[error("cannot remove the record of the {of}")]
    Record {
        /// Of what.
        of: Of,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The journal of the undoing cannot be written.
    #[error("cannot record the removal of the {of}")]
    Journal {
        /// Of what.
        of: Of,
        /// Why.
        #[source]
        source: RecordFileError,
    },
    /// A step took too long.
    #[error("removal of the {what} of the {of} took longer than {STEP_LIMIT:?}")]
    Late {
        /// Of what.
        of: Of,
        /// Which step.
        what: &'static str,
    },
}

impl Classify for UndoError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Network(error) => error.kind(),
            Self::Late { .. } => ErrorKind::Deadline,
            Self::Remains { .. } | Self::Record { .. } | Self::Journal { .. } => {
                ErrorKind::Internal
            }
        }
    }
}

impl Of {
    /// Runs one step within its limit. Around it lie the failpoints `OF.undo.WHAT.begin` and `.end`:
    /// after the latter the step is done and nobody has taken note of it.
    ///
    /// # Errors
    /// The step's, or [`UndoError::Late`].
    pub async fn step<T>(
        self,
        what: &'static str,
        step: impl Future<Output = Result<T, UndoError>>,
    ) -> Result<T, UndoError> {
        failpoint::reach(format_args!("{self}.undo.{what}.begin"));
        let done = tokio::time::timeout(STEP_LIMIT, step).await;
        failpoint::reach(format_args!("{self}.undo.{what}.end"));
        done.unwrap_or(Err(UndoError::Late { of: self, what }))
    }

    /// [`Of::step`] for what blocks.
    ///
    /// # Errors
    /// As there.
    pub async fn blocking(
        self,
        what: &'static str,
        step: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), UndoError> {
        let step = tokio::task::spawn_blocking(step);
        let done = async {
            match step.await {
                Ok(done) => done.map_err(|source| UndoError::Remains {
                    of: self,
                    what,
                    source,
                }),
                Err(_) => Err(UndoError::Late { of: self, what }),
            }
        };
        self.step(what, done).await
    }
}

/// The pause before the next try, growing with each.
#[derive(Debug, Clone, Copy)]
pub struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(FIRST_RETRY)
    }
}

impl Patience {
    /// How long to wait now.
    pub fn pause(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(LAST_RETRY);
        wait
    }
}

/// Something that nobody can see any more and that is to go.
pub trait Undo: Send + 'static {
    /// Whose undoing it is, for the log.
    fn id(&self) -> &str;

    /// Takes apart what is still there.
    ///
    /// # Errors
    /// The step that failed; the next try goes on from there.
    fn attempt(&mut self) -> impl Future<Output = Result<(), UndoError>> + Send;
}

/// Tries once now, and goes on in the background until it is done.
pub async fn finish_in_background(mut undo: impl Undo) {
    if let Err(error) = undo.attempt().await {
        complain(undo.id(), &error);
        tokio::spawn(async move {
            let mut patience = Patience::default();
            loop {
                tokio::time::sleep(patience.pause()).await;
                match undo.attempt().await {
                    Ok(()) => return,
                    Err(error) => complain(undo.id(), &error),
                }
            }
        });
    }
}

fn complain(id: &str, error: &UndoError) {
    tracing::warn!(id, error = %Chain(error), "undoing fails, will retry");
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    struct Stubborn {
        tries: Arc<AtomicU32>,
        fails: u32,
    }

    impl Undo for Stubborn {
        fn id(&self) -> &'static str {
            "x"
        }

        async fn attempt(&mut self) -> Result<(), UndoError> {
            if self.tries.fetch_add(1, Ordering::SeqCst) < self.fails {
                return Err(UndoError::Late {
                    of: Of::Sandbox,
                    what: "test",
                });
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_fails_is_tried_again_until_it_is_done() {
        let tries = Arc::new(AtomicU32::new(0));
        let stubborn = Stubborn {
            tries: Arc::clone(&tries),
            fails: 1,
        };
        finish_in_background(stubborn).await;
        let again = async {
            while tries.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(30), again).await;
        assert!(done.is_ok(), "it is tried again");
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut patience = Patience::default();
        let waits: Vec<u64> = (0..8).map(|_| patience.pause().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
