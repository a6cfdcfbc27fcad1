//! Requests for streams: exec, attach, port-forward.

use super::{
    exec::command,
    field::{Field, Result},
};
use crate::{cri::proto, stream::StdioSpec};

/// A validated `ExecRequest`, without the container it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecStreamSpec {
    /// Command line, never empty.
    pub command: Vec<String>,
    /// Its streams.
    pub stdio: StdioSpec,
}

/// Validates an exec that is streamed.
///
/// # Errors
/// No container is named, the command is empty, no stream is asked for, or stderr is with a terminal.
pub fn exec(request: &proto::ExecRequest) -> Result<ExecStreamSpec> {
    named("container_id", &request.container_id)?;
    let stdio = StdioSpec {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    Ok(ExecStreamSpec {
        command: command(&request.cmd)?,
        stdio: checked(stdio)?,
    })
}

/// Validates an attach.
///
/// # Errors
/// No container is named, no stream is asked for, or stderr is with a terminal.
pub fn attach(request: &proto::AttachRequest) -> Result<StdioSpec> {
    named("container_id", &request.container_id)?;
    checked(StdioSpec {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    })
}

/// Validates a port-forward: its ports, which may be none.
///
/// # Errors
/// No sandbox is named, or a number is no port.
pub fn port_forward(request: &proto::PortForwardRequest) -> Result<Vec<u16>> {
    named("pod_sandbox_id", &request.pod_sandbox_id)?;
    let ports = request.port.iter().enumerate().map(|(i, port)| {
        let valid = u16::try_from(*port).ok().filter(|port| *port != 0);
        valid.ok_or_else(|| {
            let field = Field::root("port");
            field
                .index(i)
                .invalid(format!("{port} is no port, 1 to 65535"))
        })
    });
    ports.collect()
}

fn named(field: &str, id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Field::root(field).invalid("must be set"));
    }
    Ok(())
}

fn checked(stdio: StdioSpec) -> Result<StdioSpec> {
    if !stdio.stdin && !stdio.stdout && !stdio.stderr {
        return Err(Field::root("stdout").invalid("one of stdin, stdout and stderr must be set"));
    }
    if stdio.tty && stdio.stderr {
        let problem = "must not be set with tty: a terminal has one output";
        return Err(Field::root("stderr").invalid(problem));
    }
    Ok(stdio)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_refused_by_field() {
        let exec_request = |id: &str, cmd: &[&str], tty, stdout, stderr| proto::ExecRequest {
            container_id: id.to_owned(),
            cmd: cmd.iter().map(|&word| word.to_owned()).collect(),
            tty,
            stdout,
            stderr,
            ..Default::default()
        };
        exec(&exec_request("a", &["sh"], true, true, false)).unwrap();
        for (request, field) in [
            (exec_request("", &["sh"], false, true, true), "container_id"),
            (exec_request("a", &[], false, true, true), "cmd"),
            (exec_request("a", &["sh"], false, false, false), "stdout"),
            (exec_request("a", &["sh"], true, true, true), "stderr"),
        ] {
            let error = exec(&request).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        let attach_request = |id: &str, tty, stdin, stderr| proto::AttachRequest {
            container_id: id.to_owned(),
            tty,
            stdin,
            stderr,
            ..Default::default()
        };
        attach(&attach_request("a", true, true, false)).unwrap();
        for (request, field) in [
            (attach_request("", false, true, false), "container_id"),
            (attach_request("a", false, false, false), "stdout"),
            (attach_request("a", true, false, true), "stderr"),
        ] {
            let error = attach(&request).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn ports_are_ports() {
        let request = |id: &str, port: &[i32]| proto::PortForwardRequest {
            pod_sandbox_id: id.to_owned(),
            port: port.to_vec(),
        };
        assert!(port_forward(&request("a", &[])).unwrap().is_empty());
        assert_eq!(
            port_forward(&request("a", &[1, 65535])).unwrap(),
            [1, 65535]
        );
        for (id, port, field) in [
            ("", 80, "pod_sandbox_id"),
            ("a", 0, "port[1]"),
            ("a", -1, "port[1]"),
            ("a", 65536, "port[1]"),
        ] {
            let error = port_forward(&request(id, &[80, port]))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
