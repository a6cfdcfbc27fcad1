//! Changes the limits of a container: all of them or none.
//!
//! The control group comes first, since only the kernel knows whether it can be done; then the OOM
//! scores of the processes; then the record; and only then is it published. What fails takes back
//! what went before it.

use std::{fs, io, sync::Arc};

use crisp_oci::{
    cgroup::{Cgroup, CgroupError, Updated},
    plan::ProcessPlan,
};

use super::{Container, record::ContainerRecord, state::State};
use crate::{
    bundle::{self, BundleError},
    error::{Chain, Classify, ErrorKind},
    node::Node,
    sandbox::spec::Resources,
    store::record_file::RecordFileError,
};

/// How often new processes are looked for that were forked with the old score meanwhile.
const SCORE_PASSES: usize = 8;

/// Why limits were not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Its processes are gone.
    #[error("cannot update a container that {state}")]
    WrongState {
        /// Where the container is.
        state: &'static str,
    },
    /// This host has no such limits.
    #[error(transparent)]
    Bundle(BundleError),
    /// They cannot be expressed.
    #[error(transparent)]
    Plan(crisp_oci::spec::PlanError),
    /// The kernel refused; nothing is changed.
    #[error("cannot change the limits, nothing is changed")]
    Group(#[source] CgroupError),
    /// The kernel refused; nothing is changed.
    #[error("linux.oom_score_adj: cannot set {score} for process {pid}, nothing is changed")]
    OomScore {
        /// What was asked for.
        score: i32,
        /// For which process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The change could not be recorded, and is taken back.
    #[error("cannot record the limits, nothing is changed")]
    Record(#[source] RecordFileError),
    /// The daemon is ending.
    #[error("the daemon is shutting down")]
    Draining,
}

impl Classify for UpdateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::WrongState { .. } => ErrorKind::WrongState,
            Self::Bundle(_) | Self::Plan(_) => ErrorKind::InvalidArgument,
            Self::Group(error) => group_kind(error),
            Self::OomScore { .. } => ErrorKind::WrongState,
            Self::Record(error) => error.kind(),
            Self::Draining => ErrorKind::NotReady,
        }
    }
}

/// What a refused limit means for the caller.
#[must_use]
pub fn group_kind(error: &CgroupError) -> ErrorKind {
    match error {
        CgroupError::Resources(_) => ErrorKind::InvalidArgument,
        CgroupError::MemoryInUse { .. } | CgroupError::NoController { .. } => ErrorKind::WrongState,
        CgroupError::Set { source, .. } => match source.raw_os_error() {
            Some(libc::EINVAL | libc::ERANGE | libc::ENOENT) => ErrorKind::InvalidArgument,
            Some(libc::EBUSY | libc::EACCES | libc::EPERM) => ErrorKind::WrongState,
            _ => ErrorKind::Internal,
        },
        _ => ErrorKind::Internal,
    }
}

/// Changes the limits that `asked` names. Called by the container's driver.
pub(super) async fn apply(
    node: &Arc<Node>,
    container: &Container,
    record: &mut ContainerRecord,
    asked: &Resources,
) -> Result<(), UpdateError> {
    let state = container.state();
    if let State::Exited(_) = &*state {
        return Err(UpdateError::WrongState {
            state: state.word(),
        });
    }
    let before = container.resources();
    let after = merged(&before, asked);
    let change = Change::plan(node, container, &before, &after, asked)?;
    let done = tokio::task::spawn_blocking(move || change.carry_out())
        .await
        .map_err(|_| UpdateError::Draining)??;
    let recorded = record.resources.replace(after.clone());
    if let Err(error) = node.write_container(record).await {
        record.resources = recorded;
        let undone = tokio::task::spawn_blocking(move || done.undo()).await;
        if let Ok(Err(error)) = undone {
            tracing::error!(id = %container.id, error = %Chain(&error), "cannot take back limits");
        }
        return Err(UpdateError::Record(error));
    }
    container.resources.store(Arc::new(after));
    Ok(())
}

/// The limits after the update. Memory that grows past the limit of memory and swap together
/// carries it along: no kernel takes the one without the other.
fn merged(before: &Resources, asked: &Resources) -> Resources {
    let mut after = before.updated(asked);
    if let (Some(memory), Some(sum)) = (after.memory_limit, after.memory_swap_limit)
        && asked.memory_swap_limit.is_none()
        && sum >= 0
        && u64::try_from(sum).is_ok_and(|sum| sum < memory)
    {
        after.memory_swap_limit = i64::try_from(memory).ok();
    }
    after
}

/// What is to be done, with everything looked up.
struct Change {
    group: Cgroup,
    limits: crisp_oci::cgroup::Resources,
    score: Option<Score>,
}

#[derive(Clone, Copy)]
struct Score {
    /// Tells what the container's processes have now.
    init: i32,
    wanted: i32,
}

impl Change {
    fn plan(
        node: &Node,
        container: &Container,
        before: &Resources,
        after: &Resources,
        asked: &Resources,
    ) -> Result<Self, UpdateError> {
        let named = Resources {
            // Swap goes with memory: the two are one limit on v1.
            memory_swap_limit: match asked.memory_limit {
                Some(_) => after.memory_swap_limit,
                None => asked.memory_swap_limit,
            },
            // The limit of swap alone, which v2 has, is told from both.
            memory_limit: match asked.memory_swap_limit {
                Some(_) => after.memory_limit,
                None => asked.memory_limit,
            },
            ..asked.clone()
        };
        let spec = bundle::linux_resources(&named, &node.host).map_err(UpdateError::Bundle)?;
        let mut limits = crisp_oci::spec::resources(Some(&spec)).map_err(UpdateError::Plan)?;
        limits.memory_check_before_update = true;
        let floor = node.host.oom_score_adj_floor.unwrap_or(i32::MIN);
        let score = (after.oom_score_adj != before.oom_score_adj).then_some(Score {
            init: container.fixed.pid,
            wanted: after.oom_score_adj.max(floor),
        });
        let group = Cgroup::observe(&node.facts.cgroup, &container.fixed.cgroup)
            .map_err(UpdateError::Group)?;
        Ok(Self {
            group,
            limits,
            score,
        })
    }

    fn carry_out(self) -> Result<Done, UpdateError> {
        let limits = self
            .group
            .update(&self.limits)
            .map_err(UpdateError::Group)?;
        let mut done = Done {
            limits,
            scores: Vec::new(),
        };
        if let Some(score) = self.score
            && let Err(error) = set_scores(&self.group, score, &mut done.scores)
        {
            if let Err(error) = done.undo() {
                tracing::error!(error = %Chain(&error), "cannot take back limits");
            }
            return Err(error);
        }
        Ok(done)
    }
}

/// What was changed.
struct Done {
    limits: Updated,
    /// Processes and what they had.
    scores: Vec<(i32, i32)>,
}

impl Done {
    fn undo(self) -> Result<(), CgroupError> {
        for (pid, score) in self.scores {
            // A process that has ended needs none.
            write_score(pid, score).ok();
        }
        self.limits.undo()
    }
}

/// Gives the new score to every process that has the container's. Others have chosen one for
/// themselves, which stays.
fn set_scores(
    group: &Cgroup,
    score: Score,
    changed: &mut Vec<(i32, i32)>,
) -> Result<(), UpdateError> {
    let Some(now) = read_score(score.init) else {
        return Ok(());
    };
    if now == score.wanted {
        return Ok(());
    }
    for _ in 0..SCORE_PASSES {
        let pids = group.pids().map_err(UpdateError::Group)?;
        let mut found = false;
        for pid in pids {
            if read_score(pid) != Some(now) {
                continue;
            }
            match write_score(pid, score.wanted) {
                Ok(()) => {
                    changed.push((pid, now));
                    found = true;
                }
                Err(error) if is_gone(&error) => {}
                Err(source) => {
                    return Err(UpdateError::OomScore {
                        score: score.wanted,
                        pid,
                        source,
                    });
                }
            }
        }
        if !found {
            break;
        }
    }
    Ok(())
}

/// How processes of the container are made since an update gave it another OOM score.
pub(super) fn with_score_in_force(
    container: &Container,
    node: &Node,
    template: Arc<ProcessPlan>,
) -> Arc<ProcessPlan> {
    let score = container.resources().oom_score_adj;
    if score == container.spec.resources.oom_score_adj {
        return template;
    }
    let floor = node.host.oom_score_adj_floor.unwrap_or(i32::MIN);
    Arc::new(ProcessPlan {
        oom_score_adj: Some(score.max(floor)),
        ..template.as_ref().clone()
    })
}

fn read_score(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
    text.trim().parse().ok()
}

fn write_score(pid: i32, score: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_grows_takes_the_limit_of_the_sum_along() {
        let limits = |memory, sum| Resources {
            memory_limit: memory,
            memory_swap_limit: sum,
            ..Resources::default()
        };
        for (before, asked, expected) in [
            ((Some(10), Some(10)), (Some(20), None), Some(20)),
            ((Some(10), Some(30)), (Some(20), None), Some(30)),
            ((Some(10), Some(-1)), (Some(20), None), Some(-1)),
            ((Some(10), None), (Some(20), None), None),
            ((Some(10), Some(10)), (None, Some(15)), Some(15)),
        ] {
            let after = merged(&limits(before.0, before.1), &limits(asked.0, asked.1));
            assert_eq!(after.memory_swap_limit, expected, "{before:?} {asked:?}");
        }
    }
}
