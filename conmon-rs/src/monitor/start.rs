//! Letting the program run.

use crate::container::{Container, now_ns};
use crate::report;
use crate::requests::Refusal;
use conmon_rs::protocol::{Phase, STAGE_PHASE};
use crisp_oci::apply::{HookError, Within};
use crisp_sys::clone::SingleThreaded;
use crisp_sys::{Errno, pidfd};
use std::os::fd::AsFd;

/// Exit code of a container that a hook ended.
const HOOK_FAILED: i32 = 128;

impl Container {
    /// Opens the gate and waits until the program was executed or could not be. In the second case
    /// init is ending, and the exit record will tell the code a shell would show.
    pub fn start(&mut self, token: &SingleThreaded) -> Result<(), Refusal> {
        if self.phase != Phase::Created || !self.is_alive() {
            return Err(Refusal::new(
                STAGE_PHASE,
                Errno::ESRCH,
                "the container is not waiting for a start",
            ));
        }
        let Some(gate) = self.gate.take() else {
            return Err(Refusal::new(
                STAGE_PHASE,
                Errno::EALREADY,
                "the start was tried before",
            ));
        };
        if let Some(hooks) = &self.hooks
            && let Err(error) = hooks.before_start(token, self.within())
        {
            // Closed, so that init goes whatever becomes of the signal.
            drop(gate);
            return Err(self.forbidden(&error));
        }
        match gate.open() {
            Ok(()) => {
                self.phase = Phase::Running;
                self.started_at_ns = now_ns();
            }
            Err(error) => {
                let text = report::chain(&error);
                self.start_failure = Some((error.exit_code(), text.clone()));
                // It is on its way out already, unless it is stuck.
                let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
                return Err(Refusal::new("start", error.errno(), text));
            }
        }
        match self.hooks.as_ref().map(|h| h.after_start(token, self.pid)) {
            Some(Err(error)) => Err(self.forbidden(&error)),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Ends a container that a hook does not want.
    fn forbidden(&mut self, error: &HookError) -> Refusal {
        let text = report::chain(error);
        self.start_failure = Some((HOOK_FAILED, text.clone()));
        let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        Refusal::new("hook", Errno(0), text)
    }

    fn within(&self) -> Within<'_> {
        Within {
            init: self.pidfd.as_fd(),
            pid: self.pid,
            joined: &self.joined,
            cgroup: &self.cgroup,
        }
    }
}
