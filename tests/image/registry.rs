//! A registry on loopback that can be told to misbehave, answer by answer.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::layer::{Built, DOCKER_MANIFEST, OCI_MANIFEST, digest};

/// What an answer does instead of being right.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Right after all.
    None,
    /// This status with these headers and an empty body.
    Status(u16, Vec<(&'static str, String)>),
    /// Closes before answering.
    Reset,
    /// Says the right length, ends after so many bytes.
    CutAfter(usize),
    /// Sends so many bytes, then nothing for ever.
    StallAfter(usize),
    /// One byte is another one.
    Altered,
    /// A few bytes more, the length says so.
    Longer,
    /// Endless body without length.
    Endless,
    /// The body comes in small pieces with pauses.
    Slow(Duration),
    /// Ignores a range and sends all.
    IgnoreRange,
    /// 206 with a range nobody asked for.
    WrongRange,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub query: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

/// What must be shown to be served.
#[derive(Clone)]
pub struct Auth {
    /// The header that opens.
    pub header: String,
    /// The demand on 401.
    pub demand: String,
    /// What `/token` wants as Authorization or in its body, and the token it gives.
    pub token: Option<(String, String)>,
}

#[derive(Default)]
struct State {
    content: HashMap<String, (String, Vec<u8>)>,
    faults: HashMap<String, VecDeque<Fault>>,
    always: HashMap<String, Fault>,
    seen: Vec<Seen>,
    auth: Option<Auth>,
}

#[derive(Clone)]
pub struct Registry {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Registry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = Self {
            address,
            state: Arc::default(),
        };
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = serving.clone();
                tokio::spawn(async move {
                    let _ = registry.serve(stream).await;
                });
            }
        });
        registry
    }

    /// The same over TLS; with `clients`, only for clients with a certificate of that authority.
    pub async fn start_tls(keys: &crate::tls::Keys, clients: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acceptor = keys.acceptor(clients);
        let registry = Self {
            address,
            state: Arc::default(),
        };
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (registry, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = registry.serve(stream).await;
                    }
                });
            }
        });
        registry
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The reference of an image here.
    pub fn name(&self, repository_and_tag: &str) -> String {
        format!("{}/{repository_and_tag}", self.address)
    }

    pub fn put(&self, path: &str, kind: &str, bytes: &[u8]) {
        self.state()
            .content
            .insert(path.to_owned(), (kind.to_owned(), bytes.to_vec()));
    }

    /// Stores an image under `repository` and `tag`; returns the manifest's digest.
    pub fn push(&self, repository: &str, tag: &str, image: &Built) -> String {
        let text = String::from_utf8_lossy(&image.manifest);
        let kind = if text.contains(DOCKER_MANIFEST) {
            DOCKER_MANIFEST
        } else {
            OCI_MANIFEST
        };
        for blob in image.blobs.iter().chain([&image.config]) {
            let path = format!("/v2/{repository}/blobs/{}", digest(blob));
            self.put(&path, "application/octet-stream", blob);
        }
        self.push_manifest(repository, tag, kind, &image.manifest)
    }

    pub fn push_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> String {
        let found = digest(bytes);
        for selector in [tag, &found] {
            self.put(
                &format!("/v2/{repository}/manifests/{selector}"),
                kind,
                bytes,
            );
        }
        found
    }

    /// The next answers for paths that contain `part`.
    pub fn fault(&self, part: &str, faults: &[Fault]) {
        self.state()
            .faults
            .insert(part.to_owned(), faults.iter().cloned().collect());
    }

    /// All answers for paths that contain `part`.
    pub fn always(&self, part: &str, fault: Fault) {
        self.state().always.insert(part.to_owned(), fault);
    }

    pub fn heal(&self) {
        let mut state = self.state();
        state.always.clear();
        state.faults.clear();
        state.auth = None;
    }

    pub fn demand(&self, auth: Auth) {
        self.state().auth = Some(auth);
    }

    /// The requests whose path contains `part`.
    pub fn seen(&self, part: &str) -> Vec<Seen> {
        self.state()
            .seen
            .iter()
            .filter(|seen| seen.path.contains(part))
            .cloned()
            .collect()
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            match line.trim_end().split_once(": ") {
                Some((key, value)) => {
                    headers.insert(key.to_ascii_lowercase(), value.to_owned());
                }
                None => break,
            }
        }
        let length = headers
            .get("content-length")
            .and_then(|l| l.parse().ok())
            .unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let seen = Seen {
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        let mut stream = stream.into_inner();
        self.answer(&mut stream, seen).await?;
        stream.shutdown().await
    }

    fn next_fault(&self, path: &str) -> Fault {
        let mut state = self.state();
        let queued = state
            .faults
            .iter_mut()
            .find(|(part, queue)| path.contains(*part) && !queue.is_empty())
            .and_then(|(_, queue)| queue.pop_front());
        queued
            .or_else(|| {
                state
                    .always
                    .iter()
                    .find(|(p, _)| path.contains(*p))
                    .map(|(_, f)| f.clone())
            })
            .unwrap_or(Fault::None)
    }

    async fn answer(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        seen: Seen,
    ) -> std::io::Result<()> {
        let (auth, content) = {
            let mut state = self.state();
            state.seen.push(seen.clone());
            (state.auth.clone(), state.content.get(&seen.path).cloned())
        };
        if let Some(auth) = auth {
            let shown = seen
                .headers
                .get("authorization")
                .cloned()
                .unwrap_or_default();
            if seen.path == "/token" {
                let (wants, token) = auth.token.clone().unwrap_or_default();
                if shown.contains(&wants) || seen.body.contains(&wants) {
                    let body = format!("{{\"token\":\"{token}\"}}");
                    return write(stream, 200, &[], body.as_bytes()).await;
                }
                return write(stream, 401, &[], b"").await;
            }
            if shown != auth.header {
                return write(stream, 401, &[("www-authenticate", auth.demand)], b"").await;
            }
        }
        let fault = self.next_fault(&seen.path);
        if let Fault::Status(status, headers) = &fault {
            return write(stream, *status, headers, b"").await;
        }
        let Some((kind, mut bytes)) = content else {
            let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            return write(stream, 404, &[], body).await;
        };
        let range = seen.headers.get("range").and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse::<usize>()
                .ok()
        });
        let mut headers = vec![("content-type", kind)];
        let mut status = 200;
        let total = bytes.len();
        if let (Some(at), false) = (range, matches!(fault, Fault::IgnoreRange)) {
            let from = if matches!(fault, Fault::WrongRange) {
                0
            } else {
                at
            };
            bytes = bytes[from.min(total)..].to_vec();
            status = 206;
            headers.push((
                "content-range",
                format!("bytes {from}-{}/{total}", total - 1),
            ));
        }
        misbehave(stream, fault, status, &headers, bytes).await
    }
}

async fn misbehave(
    stream: &mut (impl AsyncWrite + Unpin),
    fault: Fault,
    status: u16,
    headers: &[(&'static str, String)],
    mut bytes: Vec<u8>,
) -> std::io::Result<()> {
    match fault {
        Fault::Reset => Ok(()),
        Fault::CutAfter(count) => {
            head(stream, status, headers, Some(bytes.len())).await?;
            stream.write_all(&bytes[..count.min(bytes.len())]).await
        }
        Fault::StallAfter(count) => {
            head(stream, status, headers, Some(bytes.len())).await?;
            stream.write_all(&bytes[..count.min(bytes.len())]).await?;
            std::future::pending().await
        }
        Fault::Altered => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            write(stream, status, headers, &bytes).await
        }
        Fault::Longer => {
            bytes.extend_from_slice(b"more");
            write(stream, status, headers, &bytes).await
        }
        Fault::Endless => {
            head(stream, status, headers, None).await?;
            loop {
                stream.write_all(&[b' '; 65536]).await?;
            }
        }
        Fault::Slow(pause) => {
            head(stream, status, headers, Some(bytes.len())).await?;
            for part in bytes.chunks(1024) {
                stream.write_all(part).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(())
        }
        _ => write(stream, status, headers, &bytes).await,
    }
}

async fn head(
    stream: &mut (impl AsyncWrite + Unpin),
    status: u16,
    headers: &[(&'static str, String)],
    length: Option<usize>,
) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
    for (key, value) in headers {
        text += &format!("{key}: {value}\r\n");
    }
    if let Some(length) = length {
        text += &format!("content-length: {length}\r\n");
    }
    text += "\r\n";
    stream.write_all(text.as_bytes()).await
}

async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    status: u16,
    headers: &[(&'static str, String)],
    body: &[u8],
) -> std::io::Result<()> {
    head(stream, status, headers, Some(body.len())).await?;
    stream.write_all(body).await
}
