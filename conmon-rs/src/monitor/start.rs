//! Letting the program run.

use crate::container::{Container, now_ns};
use crate::report;
use crate::requests::Refusal;
use conmon_rs::protocol::{Phase, STAGE_PHASE};
use crisp_sys::{Errno, pidfd};
use std::os::fd::AsFd;

impl Container {
    /// Opens the gate and waits until the program was executed or could not be. In the second case
    /// init is ending, and the exit record will tell the code a shell would show.
    pub fn start(&mut self) -> Result<(), Refusal> {
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
        match gate.open() {
            Ok(()) => {
                self.phase = Phase::Running;
                self.started_at_ns = now_ns();
                Ok(())
            }
            Err(error) => {
                let text = report::chain(&error);
                self.start_failure = Some((error.exit_code(), text.clone()));
                // It is on its way out already, unless it is stuck.
                let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
                Err(Refusal::new("start", error.errno(), text))
            }
        }
    }
}
