//! Signals to process groups.

use libc::c_long;

use crate::error::{Errno, Error, Result, check};

/// Sends a signal to every process of a group. The caller sees to it that the number still means
/// the group it wants: its leader is a child that was not reaped.
///
/// # Errors
/// `EINVAL` for a group of 1 or less, which kill(2) would take for init's, our own, or everybody;
/// those of the call.
pub fn kill(group: i32, signo: i32) -> Result<()> {
    let args = || format!("-{group}, {signo}");
    if group <= 1 {
        return Err(Error::new("kill", args(), Errno::EINVAL));
    }
    // SAFETY: plain integers.
    let value = unsafe { libc::kill(-group, signo) };
    check("kill", c_long::from(value), args).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use super::*;

    #[test]
    fn numbers_that_mean_more_than_one_group_are_refused() {
        for group in [1, 0, -1, i32::MIN] {
            assert_eq!(kill(group, 0).unwrap_err().errno(), Errno::EINVAL);
        }
    }

    #[test]
    fn all_of_the_group_get_it() {
        let mut first = Command::new("sleep")
            .arg("1000")
            .process_group(0)
            .spawn()
            .expect("sleep");
        let group = i32::try_from(first.id()).expect("pid");
        let mut second = Command::new("sleep")
            .arg("1000")
            .process_group(group)
            .spawn()
            .expect("sleep");
        kill(group, libc::SIGKILL).expect("kill");
        for child in [&mut first, &mut second] {
            assert_eq!(child.wait().expect("wait").signal(), Some(libc::SIGKILL));
        }
    }
}
