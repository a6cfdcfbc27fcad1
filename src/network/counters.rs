//! What the interfaces of a pod have sent and received, asked from the kernel over a netlink socket.
//!
//! A socket belongs for ever to the network namespace it was made in. So it is made once, on a thread
//! that enters the namespace and ends, and read from any thread after that, whether or not a
//! container runs in the pod. It also keeps the namespace alive, so that it must be closed when the
//! pod gives up its network.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sched::CloneFlags,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt,
            socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

/// The kernel answers while it takes the question; this is for the day when it does not.
const ANSWER_LIMIT: TimeVal = TimeVal::new(1, 0);
/// The largest packet of a dump.
const PACKET: usize = 32 * 1024;
/// Packets of one dump.
const MAX_PACKETS: usize = 1000;

/// An interface and what went through it since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// As the pod sees it.
    pub name: String,
    /// Received.
    pub received: Traffic,
    /// Sent.
    pub sent: Traffic,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// Why there are no counters.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// The namespace cannot be entered, or no socket be made in it.
    #[error("cannot open a socket in {}", path.display())]
    Open {
        /// The pin of the namespace.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer.
    #[error("cannot ask for the interfaces")]
    Ask(#[source] Errno),
    /// The kernel answered with an error.
    #[error("the kernel refuses to tell the interfaces")]
    Refused(#[source] Errno),
}

/// The socket of one pod, opened when it is first read.
#[derive(Debug, Default)]
pub struct Counters {
    // Held while the kernel is asked, which is some microseconds; never over an await.
    socket: Mutex<Socket>,
}

#[derive(Debug, Default)]
enum Socket {
    #[default]
    Unopened,
    Open {
        socket: OwnedFd,
        questions: u32,
    },
    Closed,
}

impl Counters {
    /// Reads the counters of the namespace pinned at `netns`, loopback left out; nothing after
    /// [`Counters::close`]. Blocks for a moment.
    ///
    /// # Errors
    /// [`CountersError`]; the next reading opens a new socket.
    pub fn read(&self, netns: &Path) -> Result<Vec<Interface>, CountersError> {
        let mut slot = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Socket::Unopened = *slot {
            let socket = open_in(netns).map_err(|source| CountersError::Open {
                path: netns.to_owned(),
                source,
            })?;
            *slot = Socket::Open {
                socket,
                questions: 0,
            };
        }
        let Socket::Open { socket, questions } = &mut *slot else {
            return Ok(Vec::new());
        };
        *questions = questions.wrapping_add(1);
        let answer = ask(socket, *questions);
        if answer.is_err() {
            *slot = Socket::Unopened;
        }
        answer
    }

    /// Lets go of the namespace, for good.
    pub fn close(&self) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Socket::Closed;
    }
}

/// A netlink socket of the namespace at `netns`. The thread that enters it ends here, so that no
/// other work is ever done in there.
fn open_in(netns: &Path) -> io::Result<OwnedFd> {
    let namespace = File::open(netns)?;
    let thread = std::thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || -> io::Result<OwnedFd> {
            crisp_sys::ns::setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET.bits())?;
            Ok(socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?)
        })?;
    let socket = thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))?;
    setsockopt(&socket, ReceiveTimeout, &ANSWER_LIMIT)?;
    Ok(socket)
}

fn ask(socket: &OwnedFd, question: u32) -> Result<Vec<Interface>, CountersError> {
    let request = request(question);
    send(socket.as_raw_fd(), &request, MsgFlags::empty()).map_err(CountersError::Ask)?;
    let mut interfaces = Vec::new();
    let mut packet = vec![0; PACKET];
    for _ in 0..MAX_PACKETS {
        let length = match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            other => other.map_err(CountersError::Ask)?,
        };
        match take(&packet[..length], question, &mut interfaces) {
            Progress::More => {}
            Progress::Done => return Ok(interfaces),
            Progress::Failed(errno) => {
                return Err(CountersError::Refused(Errno::from_raw(errno)));
            }
        }
    }
    Err(CountersError::Ask(Errno::EOVERFLOW))
}

// The wire format, rtnetlink(7). All numbers are in the byte order of the host.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS64: u16 = 23;
const IFF_LOOPBACK: u32 = 8;
/// Of a message, and of the part about a link.
const HEADER: usize = 16;

fn request(question: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * HEADER);
    bytes.extend(32_u32.to_ne_bytes());
    bytes.extend(RTM_GETLINK.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend(question.to_ne_bytes());
    bytes.resize(2 * HEADER, 0);
    bytes
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
    Failed(i32),
}

/// Takes the links out of a packet. Answers to earlier questions are passed over.
fn take(mut packet: &[u8], question: u32, interfaces: &mut Vec<Interface>) -> Progress {
    while packet.len() >= HEADER {
        let length = usize::try_from(u32_at(packet, 0)).unwrap_or(usize::MAX);
        if length < HEADER || length > packet.len() {
            return Progress::Failed(Errno::EBADMSG as i32);
        }
        let (message, kind) = (&packet[HEADER..length], u16_at(packet, 4));
        if u32_at(packet, 8) == question {
            match kind {
                NLMSG_DONE => return Progress::Done,
                NLMSG_ERROR if message.len() >= 4 => {
                    let errno = i32::from_ne_bytes(u32_at(message, 0).to_ne_bytes());
                    return Progress::Failed(errno.saturating_neg());
                }
                RTM_NEWLINK => interfaces.extend(link(message)),
                _ => {}
            }
        }
        packet = packet.get(aligned(length)..).unwrap_or_default();
    }
    Progress::More
}

fn link(message: &[u8]) -> Option<Interface> {
    if message.len() < HEADER || u32_at(message, 8) & IFF_LOOPBACK != 0 {
        return None;
    }
    let mut interface = Interface::default();
    let mut rest = &message[HEADER..];
    while rest.len() >= 4 {
        let length = usize::from(u16_at(rest, 0));
        let Some(value) = rest.get(4..length) else {
            break;
        };
        // The two highest bits say how the value is to be read.
        match u16_at(rest, 2) & 0x3fff {
            IFLA_IFNAME => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                interface.name = String::from_utf8_lossy(name).into_owned();
            }
            IFLA_STATS64 if value.len() >= 64 => {
                let at = |index: usize| {
                    let mut bytes = [0; 8];
                    bytes.copy_from_slice(&value[index * 8..index * 8 + 8]);
                    u64::from_ne_bytes(bytes)
                };
                interface.received = Traffic {
                    packets: at(0),
                    bytes: at(2),
                    errors: at(4),
                    dropped: at(6),
                };
                interface.sent = Traffic {
                    packets: at(1),
                    bytes: at(3),
                    errors: at(5),
                    dropped: at(7),
                };
            }
            _ => {}
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    (!interface.name.is_empty()).then_some(interface)
}

fn aligned(length: usize) -> usize {
    length.div_ceil(4) * 4
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, question: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(question.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4)
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn link_message(question: u32, name: &str, flags: u32) -> Vec<u8> {
        let mut body = vec![0; 8];
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        body.extend(attribute(IFLA_IFNAME, format!("{name}\0").as_bytes()));
        body.extend(attribute(99, b"xyz"));
        let figures: Vec<u8> = (1_u64..=24).flat_map(u64::to_ne_bytes).collect();
        body.extend(attribute(IFLA_STATS64, &figures));
        message(RTM_NEWLINK, question, &body)
    }

    #[test]
    fn links_are_read_and_loopback_and_old_answers_are_not() {
        let mut packet = link_message(7, "eth0", 1);
        packet.extend(link_message(7, "lo", IFF_LOOPBACK));
        packet.extend(link_message(6, "old", 1));
        let mut found = Vec::new();
        assert_eq!(take(&packet, 7, &mut found), Progress::More);
        assert_eq!(
            take(&message(NLMSG_DONE, 7, &[0; 4]), 7, &mut found),
            Progress::Done
        );
        let expected = Interface {
            name: "eth0".to_owned(),
            received: Traffic {
                packets: 1,
                bytes: 3,
                errors: 5,
                dropped: 7,
            },
            sent: Traffic {
                packets: 2,
                bytes: 4,
                errors: 6,
                dropped: 8,
            },
        };
        assert_eq!(found, [expected]);
        let refusal = message(NLMSG_ERROR, 7, &(-95_i32).to_ne_bytes());
        assert_eq!(take(&refusal, 7, &mut found), Progress::Failed(95));
    }

    #[test]
    fn this_namespace_is_read_as_the_kernel_shows_it() {
        let counters = Counters::default();
        let names: Vec<String> = counters
            .read(Path::new("/proc/self/ns/net"))
            .unwrap()
            .into_iter()
            .map(|interface| interface.name)
            .collect();
        let text = std::fs::read_to_string("/proc/self/net/dev").unwrap();
        for name in &names {
            assert!(text.contains(&format!("{name}:")), "{name}: {text}");
        }
        assert!(!names.contains(&"lo".to_owned()));
        counters.close();
        assert_eq!(counters.read(Path::new("/proc/self/ns/net")).unwrap(), []);
        let gone = Counters::default().read(Path::new("/nowhere"));
        assert!(matches!(gone, Err(CountersError::Open { .. })));
    }

    proptest! {
        #[test]
        fn no_packet_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u16..40) {
            let mut found = Vec::new();
            take(&bytes, 1, &mut found);
            take(&message(kind, 1, &bytes), 1, &mut found);
        }
    }
}
