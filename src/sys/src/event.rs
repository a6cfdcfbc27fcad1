//! Waiting: epoll, signals, counters and timers as descriptors.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use libc::{c_int, c_long};

use crate::error::{Errno, Result, check};
use crate::fd::owned;

/// Readable, or ended.
pub const EPOLLIN: u32 = libc::EPOLLIN.cast_unsigned();
/// Writable.
pub const EPOLLOUT: u32 = libc::EPOLLOUT.cast_unsigned();
/// Something exceptional, such as a changed cgroup file.
pub const EPOLLPRI: u32 = libc::EPOLLPRI.cast_unsigned();
/// An error is pending; always reported.
pub const EPOLLERR: u32 = libc::EPOLLERR.cast_unsigned();
/// The other end is gone; always reported.
pub const EPOLLHUP: u32 = libc::EPOLLHUP.cast_unsigned();
/// The other end will send no more.
pub const EPOLLRDHUP: u32 = libc::EPOLLRDHUP.cast_unsigned();
/// Report changes only.
pub const EPOLLET: u32 = libc::EPOLLET.cast_unsigned();

/// One report of [`Epoll::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What the descriptor was added with.
    pub token: u64,
    /// `EPOLL*` bits.
    pub events: u32,
}

/// An [`epoll(7)`](https://man7.org/linux/man-pages/man7/epoll.7.html) instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Epoll {
    /// A new instance.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> Result<Self> {
        // SAFETY: plain integer.
        let value = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check("epoll_create1", c_long::from(value), String::new).map(|fd| Self(owned(fd)))
    }

    fn control(&self, operation: c_int, fd: BorrowedFd<'_>, events: u32, token: u64) -> Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` is a struct epoll_event that outlives the call.
        let value = unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                operation,
                fd.as_raw_fd(),
                &raw mut event,
            )
        };
        check("epoll_ctl", c_long::from(value), || {
            format!("{operation}, {}, {events:#x}", fd.as_raw_fd())
        })
        .map(drop)
    }

    /// Watches a descriptor; remove it before it is closed if copies of it live on elsewhere.
    ///
    /// # Errors
    /// Those of epoll_ctl(2): `EPERM` for regular files, `EEXIST`.
    pub fn add(&self, fd: BorrowedFd<'_>, events: u32, token: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    /// Changes what a descriptor is watched for.
    ///
    /// # Errors
    /// Those of epoll_ctl(2): `ENOENT`.
    pub fn modify(&self, fd: BorrowedFd<'_>, events: u32, token: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    /// Stops watching.
    ///
    /// # Errors
    /// Those of epoll_ctl(2): `ENOENT`.
    pub fn delete(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Waits for events, for ever without a limit; returns how many were written to the front of
    /// `events`, 0 when the time is up or a signal came.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn wait(&self, events: &mut [Event], limit: Option<Duration>) -> Result<usize> {
        const ROOM: usize = 32;
        let mut kernel = [libc::epoll_event { events: 0, u64: 0 }; ROOM];
        let room = c_int::try_from(events.len().clamp(1, ROOM)).expect("at most 32");
        // Rounded up, so that a deadline is never polled in a busy loop just before it.
        let millis = limit.map_or(-1, |limit| {
            let millis = limit.as_nanos().div_ceil(1_000_000);
            c_int::try_from(millis).unwrap_or(c_int::MAX)
        });
        // SAFETY: `kernel` has room for `room` events.
        let value =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), kernel.as_mut_ptr(), room, millis) };
        let count = match check("epoll_wait", c_long::from(value), String::new) {
            Err(error) if error.errno == Errno::EINTR => 0,
            other => other?,
        };
        let count = usize::try_from(count).expect("epoll_wait returns a non-negative count");
        for (slot, event) in events.iter_mut().zip(&kernel[..count]) {
            *slot = Event {
                token: event.u64,
                events: event.events,
            };
        }
        Ok(count)
    }
}

/// Signals as reads: they must be blocked, which [`SignalFd::new`] does.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl SignalFd {
    /// Blocks `signals` in this thread and opens a non-blocking descriptor that reads them.
    ///
    /// # Errors
    /// Those of signalfd4(2) and sigprocmask(2).
    pub fn new(signals: &[i32]) -> Result<Self> {
        let mask = signals
            .iter()
            .fold(0_u64, |mask, signo| mask | 1 << (signo - 1));
        // SAFETY: the kernel's sigset is one u64, whose size is the last argument.
        let value = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                c_long::from(libc::SIG_BLOCK),
                &raw const mask,
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
        check("rt_sigprocmask", value, || {
            format!("SIG_BLOCK, {signals:?}")
        })?;
        let flags = c_long::from(libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        // SAFETY: -1 asks for a new descriptor; the mask is one u64, whose size is given.
        let value = unsafe {
            libc::syscall(
                libc::SYS_signalfd4,
                -1 as c_long,
                &raw const mask,
                size_of::<u64>(),
                flags,
            )
        };
        check("signalfd4", value, || format!("{signals:?}")).map(|fd| Self(owned(fd)))
    }

    /// The next pending signal: (number, pid of the sender). `None` if there is none.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read(&self) -> Result<Option<(i32, u32)>> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match crate::fd::read(self.0.as_fd(), &mut info) {
            Ok(count) if count == info.len() => {
                let word = |at: usize| {
                    u32::from_ne_bytes(info[at..at + 4].try_into().expect("four bytes"))
                };
                let signo = word(mem::offset_of!(libc::signalfd_siginfo, ssi_signo));
                let pid = word(mem::offset_of!(libc::signalfd_siginfo, ssi_pid));
                Ok(Some((signo.cast_signed(), pid)))
            }
            Ok(_) => Ok(None),
            Err(error) if error.errno == Errno::EAGAIN => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A counter as a descriptor, non-blocking.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl EventFd {
    /// A counter at 0.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> Result<Self> {
        // SAFETY: plain integers.
        let value = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        check("eventfd", c_long::from(value), String::new).map(|fd| Self(owned(fd)))
    }

    /// Adds to the counter.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn add(&self, count: u64) -> Result<()> {
        crate::fd::write(self.0.as_fd(), &count.to_ne_bytes()).map(drop)
    }

    /// Takes the count, 0 if nothing was added since.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn take(&self) -> Result<u64> {
        take_count(self.0.as_fd())
    }
}

fn take_count(fd: BorrowedFd<'_>) -> Result<u64> {
    let mut count = [0; 8];
    match crate::fd::read(fd, &mut count) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(error) if error.errno == Errno::EAGAIN => Ok(0),
        Err(error) => Err(error),
    }
}

/// A one-shot timer on the monotonic clock, as a descriptor.
#[derive(Debug)]
pub struct TimerFd(OwnedFd);

impl AsFd for TimerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl TimerFd {
    /// A timer that is not set.
    ///
    /// # Errors
    /// Those of timerfd_create(2).
    pub fn new() -> Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: plain integers.
        let value = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        check("timerfd_create", c_long::from(value), String::new).map(|fd| Self(owned(fd)))
    }

    /// Fires once after `delay` (at least a nanosecond), or never with `None`; replaces what was
    /// set.
    ///
    /// # Errors
    /// Those of timerfd_settime(2).
    pub fn set(&self, delay: Option<Duration>) -> Result<()> {
        let delay = delay.map_or(Duration::ZERO, |delay| delay.max(Duration::from_nanos(1)));
        let seconds = i64::try_from(delay.as_secs()).unwrap_or(i64::MAX);
        let value: [i64; 4] = [0, 0, seconds, i64::from(delay.subsec_nanos())];
        // SAFETY: struct itimerspec is four 64-bit integers (interval, then value) on 64-bit
        // kernels, the only ones supported; no old value is asked for.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_timerfd_settime,
                crate::fd::raw(self.0.as_fd()),
                0 as c_long,
                value.as_ptr(),
                std::ptr::null_mut::<i64>(),
            )
        };
        check("timerfd_settime", returned, || format!("{delay:?}")).map(drop)
    }

    /// How often it fired since the last call (0 or 1).
    ///
    /// # Errors
    /// Those of read(2).
    pub fn take(&self) -> Result<u64> {
        take_count(self.0.as_fd())
    }
}

/// Waits until `fd` has one of `events` (`POLLIN` and so on), at most `limit`; false when the time
/// is up or a signal came.
///
/// # Errors
/// Those of poll(2).
pub fn poll(fd: BorrowedFd<'_>, events: i16, limit: Option<Duration>) -> Result<bool> {
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    let millis = limit.map_or(-1, |limit| {
        c_int::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
    });
    // SAFETY: one struct pollfd that outlives the call.
    let value = unsafe { libc::poll(&raw mut entry, 1, millis) };
    match check("poll", c_long::from(value), || {
        format!("{}", fd.as_raw_fd())
    }) {
        Err(error) if error.errno == Errno::EINTR => Ok(false),
        other => other.map(|ready| ready > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_reports_tokens_and_times_out() {
        let epoll = Epoll::new().expect("epoll");
        let counter = EventFd::new().expect("eventfd");
        epoll.add(counter.as_fd(), EPOLLIN, 42).expect("add");
        let mut events = [Event {
            token: 0,
            events: 0,
        }; 4];
        assert_eq!(
            epoll.wait(&mut events, Some(Duration::ZERO)).expect("wait"),
            0
        );
        counter.add(3).expect("add");
        assert_eq!(epoll.wait(&mut events, None).expect("wait"), 1);
        assert_eq!(
            events[0],
            Event {
                token: 42,
                events: EPOLLIN
            }
        );
        assert_eq!(
            (counter.take().expect("take"), counter.take().expect("take")),
            (3, 0)
        );
        epoll.delete(counter.as_fd()).expect("delete");
    }

    #[test]
    fn timer_fires_once_even_for_no_delay() {
        let timer = TimerFd::new().expect("timer");
        assert_eq!(timer.take().expect("take"), 0);
        timer.set(Some(Duration::ZERO)).expect("set");
        assert!(poll(timer.as_fd(), libc::POLLIN, None).expect("poll"));
        assert_eq!(
            (timer.take().expect("take"), timer.take().expect("take")),
            (1, 0)
        );
    }

    #[test]
    fn signals_become_readable() {
        std::thread::spawn(|| {
            let signals = SignalFd::new(&[libc::SIGUSR1]).expect("signalfd");
            assert_eq!(signals.read().expect("read"), None);
            // SAFETY: the signal is blocked in this thread and directed at it alone.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
            let (signo, pid) = signals.read().expect("read").expect("pending");
            assert_eq!((signo, pid), (libc::SIGUSR1, std::process::id()));
        })
        .join()
        .expect("thread");
    }
}
