//! The streams of exec and attach as clients open them, and how the outcome is told.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::{
    grant::StdioSpec,
    handshake::Report,
    mux::{Incoming, Lost, Opened, Reader, Streams, Writer},
    spdy::codec::ResetReason,
};

/// Bytes of sizes that may wait for the rest of one.
const MAX_SIZES: usize = 4096;

/// The streams of one client.
#[derive(Debug)]
pub struct Client {
    /// Its input, if it gives one.
    pub stdin: Option<Reader>,
    /// For output.
    pub stdout: Option<Writer>,
    /// For errors of the process.
    pub stderr: Option<Writer>,
    /// The sizes of its terminal.
    pub sizes: Option<Sizes>,
    outcome: Writer,
    report: Report,
}

/// Why a client never got all its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CollectError {
    /// It is gone.
    #[error("the client is gone")]
    Gone,
    /// It took too long.
    #[error("the client did not open its streams within {0:?}")]
    Late(Duration),
}

impl Client {
    /// Waits for the client to open its streams.
    ///
    /// # Errors
    /// When it does not.
    pub async fn collect(
        streams: &mut Streams,
        stdio: StdioSpec,
        resizes: bool,
        report: Report,
        limit: Duration,
    ) -> Result<Self, CollectError> {
        let wanted = roles(stdio, resizes);
        let mut found: Vec<(&str, Opened)> = Vec::new();
        let deadline = Instant::now() + limit;
        while found.len() < wanted.len() {
            let opened = tokio::time::timeout_at(deadline, streams.opened()).await;
            let opened = opened.map_err(|_| CollectError::Late(limit))?;
            let opened = opened.ok_or(CollectError::Gone)?;
            let asked = opened.headers.get("streamtype").unwrap_or_default();
            let role = wanted.iter().find(|role| role.eq_ignore_ascii_case(asked));
            match role {
                Some(role) if !found.iter().any(|(known, _)| known == role) => {
                    found.push((*role, opened));
                }
                _ => opened
                    .writer
                    .reset(ResetReason::Protocol)
                    .await
                    .unwrap_or(()),
            }
        }
        let mut take = |role: &str| {
            let at = found.iter().position(|(known, _)| *known == role)?;
            Some(found.swap_remove(at).1)
        };
        let outcome = take("error").ok_or(CollectError::Gone)?.writer;
        Ok(Self {
            stdin: take("stdin").map(|opened| opened.reader),
            stdout: take("stdout").map(|opened| opened.writer),
            stderr: take("stderr").map(|opened| opened.writer),
            sizes: take("resize").map(|opened| Sizes {
                from: opened.reader,
                buffer: Vec::new(),
            }),
            outcome,
            report,
        })
    }

    /// Tells the outcome; the session is over then.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn tell(&self, outcome: &Outcome) -> Result<(), Lost> {
        for writer in [&self.stdout, &self.stderr].into_iter().flatten() {
            writer.finish().await?;
        }
        let text = outcome.text(self.report);
        if !text.is_empty() {
            self.outcome.send(text.into()).await?;
        }
        self.outcome.finish().await
    }
}

/// The streams that the client of a request opens.
#[must_use]
pub fn roles(stdio: StdioSpec, resizes: bool) -> Vec<&'static str> {
    let all = [
        ("error", true),
        ("stdin", stdio.stdin),
        ("stdout", stdio.stdout),
        ("stderr", stdio.stderr && !stdio.tty),
        ("resize", stdio.tty && resizes),
    ];
    all.into_iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(role, _)| role)
        .collect()
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended with this code.
    Exited(i32),
    /// As it should.
    Done,
    /// Why it could not be served.
    Failed(String),
}

impl Outcome {
    /// As the error stream says it.
    #[must_use]
    pub fn text(&self, report: Report) -> String {
        let status = match (self, report) {
            (Self::Exited(0) | Self::Done, Report::Text) => return String::new(),
            (Self::Exited(code), Report::Text) => return exit_text(*code),
            (Self::Failed(why), Report::Text) => return why.clone(),
            (Self::Exited(0) | Self::Done, Report::Status) => {
                json!({ "metadata": {}, "status": "Success" })
            }
            (Self::Exited(code), Report::Status) => json!({
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": exit_text(*code),
                // Clients read the code as a byte.
                "details": { "causes": [{ "reason": "ExitCode", "message": (code & 0xff).to_string() }] },
            }),
            (Self::Failed(why), Report::Status) => json!({
                "metadata": {},
                "status": "Failure",
                "reason": "InternalError",
                "message": format!("Internal error occurred: {why}"),
                "details": { "causes": [{ "message": why }] },
                "code": 500,
            }),
        };
        status.to_string()
    }
}

fn exit_text(code: i32) -> String {
    format!("command terminated with exit code {code}")
}

/// The sizes of a client's terminal as they change.
#[derive(Debug)]
pub struct Sizes {
    from: Reader,
    buffer: Vec<u8>,
}

/// A size as clients write it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

impl Sizes {
    /// The next size: (width, height). Never, when no more will come. What is none is passed over.
    pub async fn next(&mut self) -> (u16, u16) {
        loop {
            match first_size(&mut self.buffer) {
                Some(Ok(size)) if size.width > 0 && size.height > 0 => {
                    return (size.width, size.height);
                }
                Some(Ok(_)) => continue,
                Some(Err(())) => {
                    pass_over(&mut self.buffer);
                    continue;
                }
                None => {}
            }
            match self.from.next().await {
                // Only the last one counts, and no size is that long.
                Incoming::Data(bytes) => {
                    if self.buffer.len() > MAX_SIZES {
                        self.buffer.clear();
                    }
                    let last = bytes.len().saturating_sub(MAX_SIZES);
                    self.buffer.extend_from_slice(&bytes[last..]);
                }
                _ => std::future::pending().await,
            }
        }
    }
}

/// Takes a size off the front; nothing if more is needed.
fn first_size(buffer: &mut Vec<u8>) -> Option<Result<Size, ()>> {
    let mut sizes = serde_json::Deserializer::from_slice(buffer).into_iter::<Size>();
    let first = sizes.next();
    let used = sizes.byte_offset();
    match first {
        Some(Ok(size)) => {
            buffer.drain(..used);
            Some(Ok(size))
        }
        Some(Err(error)) if error.is_eof() => None,
        Some(Err(_)) => Some(Err(())),
        None => {
            buffer.clear();
            None
        }
    }
}

/// Drops what is no size, up to where the next one may begin.
fn pass_over(buffer: &mut Vec<u8>) {
    let next = buffer.iter().skip(1).position(|byte| *byte == b'{');
    buffer.drain(..next.map_or(buffer.len(), |at| at + 1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_in_every_version() {
        let text = |outcome: &Outcome| outcome.text(Report::Text);
        assert_eq!(text(&Outcome::Done), "");
        assert_eq!(text(&Outcome::Exited(0)), "");
        assert_eq!(
            text(&Outcome::Exited(3)),
            "command terminated with exit code 3"
        );
        assert_eq!(text(&Outcome::Failed("no".to_owned())), "no");
        let status = |outcome: &Outcome| -> serde_json::Value {
            serde_json::from_str(&outcome.text(Report::Status)).unwrap()
        };
        assert_eq!(status(&Outcome::Exited(0))["status"], "Success");
        let exit = status(&Outcome::Exited(137));
        assert_eq!(exit["status"], "Failure");
        assert_eq!(exit["reason"], "NonZeroExitCode");
        assert_eq!(exit["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(exit["details"]["causes"][0]["message"], "137");
        let failed = status(&Outcome::Failed("no such file".to_owned()));
        assert_eq!(
            (&failed["reason"], &failed["code"]),
            (&json!("InternalError"), &json!(500))
        );
    }

    #[test]
    fn sizes_come_one_after_the_other_however_they_are_cut() {
        let mut buffer = b"{\"Width\":80,\"Height\":24}\n{\"Width\":1".to_vec();
        let size = first_size(&mut buffer).unwrap().unwrap();
        assert_eq!((size.width, size.height), (80, 24));
        assert!(first_size(&mut buffer).is_none());
        buffer.extend(b"20,\"Height\":50}");
        let size = first_size(&mut buffer).unwrap().unwrap();
        assert_eq!((size.width, size.height), (120, 50));
        assert!(first_size(&mut buffer).is_none() && buffer.is_empty());
        for garbage in [
            "x",
            "[1]",
            "{\"Width\":70000,\"Height\":1}",
            "{\"Width\":-1,\"Height\":1}",
        ] {
            assert!(
                first_size(&mut garbage.as_bytes().to_vec())
                    .unwrap()
                    .is_err(),
                "{garbage}"
            );
            let mut mixed = format!("{garbage}{{\"Width\":9,\"Height\":8}}").into_bytes();
            pass_over(&mut mixed);
            let size = first_size(&mut mixed).unwrap().unwrap();
            assert_eq!((size.width, size.height), (9, 8), "{garbage}");
        }
    }

    #[test]
    fn the_streams_of_each_request() {
        let stdio = |stdin, stdout, stderr, tty| StdioSpec {
            stdin,
            stdout,
            stderr,
            tty,
        };
        assert_eq!(
            roles(stdio(false, true, true, false), true),
            ["error", "stdout", "stderr"]
        );
        assert_eq!(
            roles(stdio(true, true, false, true), true),
            ["error", "stdin", "stdout", "resize"]
        );
        assert_eq!(
            roles(stdio(true, true, false, true), false),
            ["error", "stdin", "stdout"]
        );
    }
}
