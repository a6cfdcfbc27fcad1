//! Collecting what has ended: init, execs, and orphans of the container, whose parent the monitor
//! becomes.

use crate::event_loop::Monitor;
use crisp_sys::pidfd;

impl Monitor {
    /// Collects everything that has ended.
    pub fn reap(&mut self) {
        while let Ok(Some((pid, status))) = pidfd::try_wait_any() {
            let Some(container) = &mut self.container else {
                continue;
            };
            if pid == container.pid && container.is_alive() {
                self.init_ended(status);
            } else if let Some(event) = container.execs.ended(pid, status) {
                self.connections.broadcast(&self.epoll, &event);
            }
        }
    }
}
