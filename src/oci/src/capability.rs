//! Capabilities by name. The one table: specs, seccomp profiles and requests speak of them.

/// Names without `CAP_` in the order of linux/capability.h (up to 6.18): the position is the number.
#[rustfmt::skip]
pub const NAMES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];

/// The bit of `CAP_SYS_PTRACE`, by which a process may trace any other that it sees.
pub const SYS_PTRACE: u64 = 1 << 19;

/// The number of a name without `CAP_`.
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    let index = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(index).ok()
}

/// The number of a name that must begin with `CAP_`, as profiles write it.
#[must_use]
pub fn prefixed(name: &str) -> Option<u8> {
    number(name.strip_prefix("CAP_")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bit_is_the_one_of_the_table() {
        assert_eq!(
            number("SYS_PTRACE").map(|number| 1 << number),
            Some(SYS_PTRACE)
        );
    }
}
