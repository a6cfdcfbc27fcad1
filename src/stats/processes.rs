//! What the processes of a group hold, from `/proc`: dear enough to be read for metrics only.

use std::{fs, path::Path};

/// Of all processes of a group together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Processes.
    pub processes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
}

impl Held {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            processes: self.processes + other.processes,
            descriptors: self.descriptors + other.descriptors,
            sockets: self.sockets + other.sockets,
        }
    }
}

/// What `pids` hold. A process that has ended meanwhile holds nothing.
#[must_use]
pub fn held(pids: &[i32]) -> Held {
    let mut held = Held::default();
    for pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        held.processes += 1;
        for entry in entries.flatten() {
            held.descriptors += 1;
            let target = fs::read_link(entry.path());
            let is_socket = target.is_ok_and(|target| {
                target
                    .as_os_str()
                    .as_encoded_bytes()
                    .starts_with(b"socket:")
            });
            held.sockets += u64::from(is_socket);
        }
    }
    held
}

/// How many files a process may open before it raises its own limit; 0 is unlimited or unknown.
#[must_use]
pub fn open_files_limit(pid: i32) -> u64 {
    let path = format!("/proc/{pid}/limits");
    fs::read_to_string(Path::new(&path)).map_or(0, |text| soft_limit(&text, "Max open files"))
}

fn soft_limit(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let soft = line.and_then(|rest| rest.split_whitespace().next());
    soft.and_then(|soft| soft.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_found_by_their_name() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max open files            1024                 524288               files     \n";
        for (name, value) in [
            ("Max open files", 1024),
            ("Max cpu time", 0),
            ("Max pending signals", 0),
        ] {
            assert_eq!(soft_limit(text, name), value, "{name}");
        }
    }

    #[test]
    fn this_process_holds_what_it_opened() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = held(&[pid]);
        let _socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let _file = fs::File::open("/dev/null").unwrap();
        // Other tests of this process open and close as they like.
        assert!(before.processes == 1 && held(&[pid]).sockets >= 1);
        assert_eq!(held(&[-1]), Held::default());
        assert!(open_files_limit(pid) > 0);
    }
}
