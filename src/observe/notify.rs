//! Readiness for the service manager: datagrams as sd_notify(3) describes them.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr, net::UnixDatagram},
    },
};

/// Where to tell the service manager, if one asked.
#[derive(Debug, Clone)]
pub struct Notifier {
    socket: Option<OsString>,
}

impl Notifier {
    /// The service manager that started this process, by `NOTIFY_SOCKET`.
    #[must_use]
    pub fn from_environment() -> Self {
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|s| !s.is_empty()),
        }
    }

    /// The daemon serves.
    ///
    /// # Errors
    /// There is a service manager, and it could not be told.
    pub fn ready(&self) -> io::Result<()> {
        self.send(b"READY=1\nSTATUS=serving\n")
    }

    /// The daemon ends.
    ///
    /// # Errors
    /// As [`Notifier::ready`].
    pub fn stopping(&self) -> io::Result<()> {
        self.send(b"STOPPING=1\nSTATUS=ending; containers keep running\n")
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let sender = UnixDatagram::unbound()?;
        // A manager that does not read must not hold the daemon up.
        sender.set_nonblocking(true)?;
        sender.send_to_addr(message, &address(socket)?).map(drop)
    }
}

/// A name that starts with `@` is an abstract one.
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_on_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier {
            socket: Some(path.into()),
        };
        notifier.ready().unwrap();
        assert!(receive(&manager).starts_with("READY=1\n"));
        notifier.stopping().unwrap();
        assert!(receive(&manager).starts_with("STOPPING=1\n"));
    }

    #[test]
    fn the_manager_hears_on_an_abstract_name() {
        let name = format!("crisp-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        Notifier {
            socket: Some(format!("@{name}").into()),
        }
        .ready()
        .unwrap();
        assert!(receive(&manager).starts_with("READY=1\n"));
    }

    #[test]
    fn no_manager_is_fine_and_a_lost_one_is_an_error() {
        Notifier { socket: None }.ready().unwrap();
        let lost = Notifier {
            socket: Some("/nonexistent/notify".into()),
        };
        assert_eq!(lost.ready().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
