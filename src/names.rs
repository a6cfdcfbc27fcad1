//! Names: who holds one, and what a second request for it gets.
//!
//! A mutating request runs detached from its caller. While it runs, the same request joins it. When
//! it has succeeded but its answer reached nobody, the same request gets the same id. When it has
//! failed, the name is free: nothing is ever "reserved" by something that is not there. A different
//! request for a live name, or the same one after its answer was delivered, is refused, and the
//! refusal names the id.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// How long an answer counts as on its way.
const IN_FLIGHT: Duration = Duration::from_millis(250);

/// How an operation ended; `None` while it runs.
type Outcome<E> = Option<Result<(), Arc<E>>>;

struct Entry<S, I, E> {
    spec: Arc<S>,
    id: I,
    outcome: watch::Receiver<Outcome<E>>,
    /// When an answer was handed to the connection.
    answered: Option<Instant>,
}

/// The names of one kind of object. `S` is the request as compared with a retry of it, `I` the id,
/// `E` the error of the operation.
pub struct Names<S, I, E> {
    /// How long an answer may be on its way. A client that gives up in that moment never sees what
    /// was sent to it, and no server can know that it did not.
    in_flight: Duration,
    // Held for map operations only, never across an await.
    entries: Mutex<HashMap<String, Entry<S, I, E>>>,
}

/// Why a request got no id.
#[derive(Debug)]
pub enum NameError<I, E> {
    /// The name belongs to this live object.
    Taken(I),
    /// The operation, ours or the one joined, failed.
    Failed(Arc<E>),
    /// The operation ended without an outcome: it panicked. The name is free again.
    Lost,
}

impl<S, I, E> Default for Names<S, I, E> {
    fn default() -> Self {
        Self::with_answers_in_flight_for(IN_FLIGHT)
    }
}

impl<S, I, E> Names<S, I, E> {
    fn with_answers_in_flight_for(in_flight: Duration) -> Self {
        Self {
            in_flight,
            entries: Mutex::new(HashMap::new()),
        }
    }
}

impl<S, I, E> Entry<S, I, E> {
    /// Whether the answer has arrived, as far as a server can tell.
    fn is_delivered(&self, in_flight: Duration) -> bool {
        self.answered.is_some_and(|at| at.elapsed() >= in_flight)
    }
}

impl<S, I, E> Names<S, I, E>
where
    S: PartialEq + Send + Sync + 'static,
    I: Clone + PartialEq + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry<S, I, E>>> {
        // A panic while the lock is held cannot leave the map half-changed: each use is one call.
        self.entries
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs `work` for the holder of `name`, or joins the run that is under way.
    ///
    /// `work` is spawned: dropping the returned future does not stop it.
    ///
    /// # Errors
    /// [`NameError::Taken`] when the name is held by a different or an already answered request,
    /// [`NameError::Failed`] when the operation failed.
    pub async fn claim<W, F>(
        self: &Arc<Self>,
        name: String,
        spec: Arc<S>,
        fresh: impl FnOnce() -> I,
        work: W,
    ) -> Result<I, NameError<I, E>>
    where
        W: FnOnce(I) -> F,
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        let (id, mut outcome) = {
            let mut entries = self.lock();
            match entries.get(&name) {
                Some(held) if held.is_delivered(self.in_flight) || held.spec != spec => {
                    return Err(NameError::Taken(held.id.clone()));
                }
                Some(held) => (held.id.clone(), held.outcome.clone()),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    let id = fresh();
                    let entry = Entry {
                        spec,
                        id: id.clone(),
                        outcome: outcome.clone(),
                        answered: None,
                    };
                    entries.insert(name.clone(), entry);
                    self.spawn(name.clone(), id.clone(), sender, work(id.clone()));
                    (id, outcome)
                }
            }
        };
        let ended = outcome
            .wait_for(Option::is_some)
            .await
            .map(|seen| seen.clone());
        match ended {
            Ok(Some(Ok(()))) => {
                self.mark_delivered(&name, &id);
                Ok(id)
            }
            Ok(Some(Err(error))) => Err(NameError::Failed(error)),
            Ok(None) | Err(_) => Err(NameError::Lost),
        }
    }

    fn spawn<F>(self: &Arc<Self>, name: String, id: I, sender: watch::Sender<Outcome<E>>, work: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        let guard = ReleaseUnlessDone {
            names: Arc::clone(self),
            name,
            id,
            done: false,
        };
        let span = tracing::Span::current();
        tokio::spawn(tracing::Instrument::instrument(
            async move {
                let mut guard = guard;
                let result = work.await.map_err(Arc::new);
                guard.done = result.is_ok();
                // The name is freed before the failure is told, so that a retry finds it free.
                drop(guard);
                sender.send_replace(Some(result));
            },
            span,
        ));
    }

    /// Takes note of an object found at start: its answer counts as delivered.
    pub fn adopt(&self, name: String, spec: Arc<S>, id: I) {
        let (_, outcome) = watch::channel(Some(Ok(())));
        self.lock().insert(
            name,
            Entry {
                spec,
                id,
                outcome,
                answered: Instant::now().checked_sub(self.in_flight),
            },
        );
    }

    /// Frees `name` if `id` holds it.
    pub fn release(&self, name: &str, id: &I) {
        let mut entries = self.lock();
        if entries.get(name).is_some_and(|held| held.id == *id) {
            entries.remove(name);
        }
    }

    fn mark_delivered(&self, name: &str, id: &I) {
        if let Some(held) = self.lock().get_mut(name)
            && held.id == *id
        {
            held.answered.get_or_insert_with(Instant::now);
        }
    }
}

/// Frees the name when the operation failed or panicked.
struct ReleaseUnlessDone<S, I, E>
where
    S: PartialEq + Send + Sync + 'static,
    I: Clone + PartialEq + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    names: Arc<Names<S, I, E>>,
    name: String,
    id: I,
    done: bool,
}

impl<S, I, E> Drop for ReleaseUnlessDone<S, I, E>
where
    S: PartialEq + Send + Sync + 'static,
    I: Clone + PartialEq + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn drop(&mut self) {
        if !self.done {
            self.names.release(&self.name, &self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    type TestNames = Names<u8, u32, String>;

    async fn claim(
        names: &Arc<TestNames>,
        spec: u8,
        id: u32,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Result<u32, NameError<u32, String>> {
        names
            .claim("n".to_owned(), Arc::new(spec), || id, |_| work)
            .await
    }

    #[tokio::test]
    async fn a_retry_joins_the_running_operation() {
        let names = Arc::new(TestNames::with_answers_in_flight_for(Duration::ZERO));
        let runs = Arc::new(AtomicU32::new(0));
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let counted = Arc::clone(&runs);
        let first = tokio::spawn({
            let names = Arc::clone(&names);
            async move {
                claim(&names, 1, 7, async move {
                    counted.fetch_add(1, Ordering::SeqCst);
                    wait.await.map_err(|e| e.to_string())
                })
                .await
            }
        });
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        first.abort();
        let second = tokio::spawn({
            let names = Arc::clone(&names);
            async move { claim(&names, 1, 8, async { Err("second run".to_owned()) }).await }
        });
        tokio::task::yield_now().await;
        go.send(()).expect("the operation waits");
        assert!(matches!(second.await.expect("no panic"), Ok(7)));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_delivered_answer_makes_the_name_taken() {
        let names = Arc::new(TestNames::with_answers_in_flight_for(Duration::ZERO));
        assert!(matches!(claim(&names, 1, 7, async { Ok(()) }).await, Ok(7)));
        let again = claim(&names, 1, 8, async { Ok(()) }).await;
        assert!(matches!(again, Err(NameError::Taken(7))));
        names.release("n", &7);
        assert!(matches!(claim(&names, 1, 9, async { Ok(()) }).await, Ok(9)));
    }

    #[tokio::test]
    async fn a_different_request_is_refused_while_the_first_runs() {
        let names = Arc::new(TestNames::with_answers_in_flight_for(Duration::ZERO));
        let running = tokio::spawn({
            let names = Arc::clone(&names);
            async move { claim(&names, 1, 7, std::future::pending()).await }
        });
        while !names.lock().contains_key("n") {
            tokio::task::yield_now().await;
        }
        running.abort();
        let other = claim(&names, 2, 8, async { Ok(()) }).await;
        assert!(matches!(other, Err(NameError::Taken(7))));
    }

    #[tokio::test]
    async fn a_failed_or_panicked_operation_frees_the_name() {
        let names = Arc::new(TestNames::with_answers_in_flight_for(Duration::ZERO));
        let failed = claim(&names, 1, 7, async { Err("no".to_owned()) }).await;
        assert!(matches!(failed, Err(NameError::Failed(_))));
        let panicked = claim(&names, 1, 8, async { panic!("a bug") }).await;
        assert!(matches!(panicked, Err(NameError::Lost)));
        assert!(matches!(claim(&names, 1, 9, async { Ok(()) }).await, Ok(9)));
    }

    #[tokio::test]
    async fn a_lost_answer_is_given_to_the_retry() {
        let names = Arc::new(TestNames::with_answers_in_flight_for(Duration::ZERO));
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let lost = tokio::spawn({
            let names = Arc::clone(&names);
            async move {
                claim(&names, 1, 7, async {
                    wait.await.map_err(|e| e.to_string())
                })
                .await
            }
        });
        while !names.lock().contains_key("n") {
            tokio::task::yield_now().await;
        }
        // The client is gone, then the operation ends.
        lost.abort();
        assert!(lost.await.is_err());
        go.send(()).expect("the operation waits");
        while names.lock()["n"].outcome.borrow().is_none() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(claim(&names, 1, 8, async { Ok(()) }).await, Ok(7)));
    }

    #[tokio::test]
    async fn an_answer_on_its_way_may_be_asked_for_again() {
        let hour = Duration::from_secs(3600);
        let names = Arc::new(TestNames::with_answers_in_flight_for(hour));
        assert!(matches!(claim(&names, 1, 7, async { Ok(()) }).await, Ok(7)));
        assert!(matches!(claim(&names, 1, 8, async { Ok(()) }).await, Ok(7)));
        let other = claim(&names, 2, 9, async { Ok(()) }).await;
        assert!(matches!(other, Err(NameError::Taken(7))));
    }
}
