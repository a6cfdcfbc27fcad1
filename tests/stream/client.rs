//! A SPDY client that sends what it is told to, and a WebSocket client of the same kind.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::soon;

/// An answer that is no upgrade.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    /// Head and body.
    pub text: String,
}

/// Host with port, and path, of an address.
pub fn parts(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").unwrap().1;
    let at = rest.find('/').unwrap();
    rest.split_at(at)
}

/// Sends a request's head and reads the answer's.
pub async fn request<T>(stream: &mut T, head: &str) -> Result<String, Refused>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => {
                let text = String::from_utf8_lossy(&answer).into_owned();
                return Err(Refused { status: 0, text });
            }
        }
    }
    let mut text = String::from_utf8(answer).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    if status == 101 {
        return Ok(text);
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    text.push_str(&String::from_utf8(body).unwrap());
    Err(Refused { status, text })
}

/// The head of a SPDY client's request.
pub fn spdy_head(url: &str, protocols: &[&str]) -> String {
    let (host, path) = parts(url);
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         Content-Length: 0\r\n"
    );
    for protocol in protocols {
        head.push_str(&format!("X-Stream-Protocol-Version: {protocol}\r\n"));
    }
    head + "\r\n"
}

/// What a SPDY server says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Reply(u32),
    Data(u32, Vec<u8>, bool),
    Reset(u32, u32),
    Ping(u32),
    GoAway,
}

/// A SPDY connection.
pub struct Spdy<T = TcpStream> {
    pub stream: T,
    opened: u32,
    names: BTreeMap<u32, String>,
}

/// Everything a session's streams brought.
#[derive(Debug, Default)]
pub struct Collected {
    /// By the streams' names.
    pub streams: BTreeMap<String, Vec<u8>>,
    /// Those that were finished.
    pub finished: Vec<String>,
}

impl Collected {
    pub fn text(&self, name: &str) -> String {
        let bytes = self
            .streams
            .get(name)
            .map(Vec::as_slice)
            .unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The status that v4 tells.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.text("error")).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The exit code; 0 for success.
    pub fn code(&self) -> i32 {
        let status = self.status();
        if status["status"] == "Success" {
            return 0;
        }
        assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
        status["details"]["causes"][0]["message"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }
}

impl Spdy {
    /// Connects as a client with this one protocol.
    pub async fn connect(url: &str, protocol: &str) -> Result<Self, Refused> {
        let stream = TcpStream::connect(parts(url).0).await.unwrap();
        Self::over(stream, url, &[protocol]).await
    }

    /// As crictl runs a command: connects and opens the streams of the letters i, o, e, t.
    pub async fn session(url: &str, streams: &str) -> Self {
        let mut spdy = Self::connect(url, "v4.channel.k8s.io").await.unwrap();
        spdy.open_for(streams).await;
        spdy
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Spdy<T> {
    pub async fn over(mut stream: T, url: &str, protocols: &[&str]) -> Result<Self, Refused> {
        request(&mut stream, &spdy_head(url, protocols)).await?;
        Ok(Self {
            stream,
            opened: 0,
            names: BTreeMap::new(),
        })
    }

    /// Over something that speaks SPDY already.
    pub fn bare(stream: T) -> Self {
        Self {
            stream,
            opened: 0,
            names: BTreeMap::new(),
        }
    }

    /// Opens the streams of a command and waits for their replies.
    pub async fn open_for(&mut self, streams: &str) {
        let wanted = [
            ("error", true),
            ("stdin", streams.contains('i')),
            ("stdout", streams.contains('o')),
            ("stderr", streams.contains('e')),
            ("resize", streams.contains('t')),
        ];
        for (name, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
            let id = self.open(&[("streamtype", name)]).await;
            assert_eq!(soon(self.next()).await, Some(Said::Reply(id)), "{name}");
        }
    }

    /// The bytes that open a stream. Deflate may store, and so does this.
    pub fn open_frame(&mut self, headers: &[(&str, &str)]) -> (u32, Vec<u8>) {
        let mut plain = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let length = u16::try_from(plain.len()).unwrap();
        let mut block = if self.opened == 0 {
            vec![0x78, 0x01]
        } else {
            Vec::new()
        };
        block.push(0);
        block.extend(length.to_le_bytes());
        block.extend((!length).to_le_bytes());
        block.extend(plain);
        let id = 2 * self.opened + 1;
        self.opened += 1;
        let mut body = id.to_be_bytes().to_vec();
        body.extend([0; 6]);
        body.extend(block);
        (id, control(1, &body))
    }

    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let (id, frame) = self.open_frame(headers);
        self.names.insert(
            id,
            headers.first().map_or("", |(_, value)| *value).to_owned(),
        );
        self.stream.write_all(&frame).await.unwrap();
        id
    }

    fn id(&self, name: &str) -> u32 {
        *self
            .names
            .iter()
            .find(|(_, known)| *known == name)
            .unwrap()
            .0
    }

    /// Sends bytes on a stream by its name; `last` finishes it.
    pub async fn send(&mut self, name: &str, bytes: &[u8], last: bool) {
        let id = self.id(name);
        self.send_to(id, bytes, last).await;
    }

    pub async fn send_to(&mut self, id: u32, bytes: &[u8], last: bool) {
        self.stream.write_all(&data(id, bytes, last)).await.unwrap();
    }

    pub async fn reset(&mut self, id: u32) {
        let body = [id.to_be_bytes(), 5_u32.to_be_bytes()].concat();
        self.stream.write_all(&control(3, &body)).await.unwrap();
    }

    /// What comes next; nothing at the end of the connection, however it came.
    pub async fn next(&mut self) -> Option<Said> {
        let mut head = [0; 8];
        self.stream.read_exact(&mut head).await.ok()?;
        let word =
            |at: usize, from: &[u8]| u32::from_be_bytes(from[at..at + 4].try_into().unwrap());
        let length = word(4, &head) & 0xff_ffff;
        let mut body = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut body).await.ok()?;
        if head[0] & 0x80 == 0 {
            return Some(Said::Data(word(0, &head), body, head[4] & 1 == 1));
        }
        assert_eq!(head[..3], [0x80, 3, 0]);
        Some(match head[3] {
            2 => Said::Reply(word(0, &body)),
            3 => Said::Reset(word(0, &body), word(4, &body)),
            6 => Said::Ping(word(0, &body)),
            7 => Said::GoAway,
            other => panic!("control frame {other}"),
        })
    }

    /// The next bytes of a stream that match a condition, with all before them.
    pub async fn read_until(&mut self, name: &str, found: impl Fn(&str) -> bool) -> String {
        let id = self.id(name);
        let mut text = String::new();
        while !found(&text) {
            match soon(self.next()).await {
                Some(Said::Data(from, bytes, last)) if from == id => {
                    text.push_str(&String::from_utf8_lossy(&bytes));
                    assert!(!last || found(&text), "{name} ended with {text:?}");
                }
                Some(_) => {}
                None => panic!("the connection ended with {text:?}"),
            }
        }
        text
    }

    /// Everything until the connection ends.
    pub async fn collect(&mut self) -> Collected {
        let mut all = Collected::default();
        while let Some(said) = soon(self.next()).await {
            if let Said::Data(id, bytes, last) = said {
                let name = self.names[&id].clone();
                all.streams.entry(name.clone()).or_default().extend(bytes);
                if last {
                    all.finished.push(name);
                }
            }
        }
        all
    }
}

pub fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend(kind.to_be_bytes());
    frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    frame.extend(body);
    frame
}

pub fn data(id: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    let mut frame = id.to_be_bytes().to_vec();
    frame.push(u8::from(last));
    frame.extend(&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..]);
    frame.extend(bytes);
    frame
}

/// A WebSocket connection.
pub struct WebSocket {
    pub stream: TcpStream,
    /// The protocol that was agreed on.
    pub protocol: Option<String>,
}

impl WebSocket {
    pub async fn connect(url: &str, protocols: &str) -> Result<Self, Refused> {
        let (host, path) = parts(url);
        let mut stream = TcpStream::connect(host).await.unwrap();
        let mut head = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        if !protocols.is_empty() {
            head.push_str(&format!("Sec-WebSocket-Protocol: {protocols}\r\n"));
        }
        let answer = request(&mut stream, &(head + "\r\n")).await?;
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        let protocol = answer
            .lines()
            .find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        Ok(Self {
            stream,
            protocol: protocol.map(str::to_owned),
        })
    }

    /// Sends one frame.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        self.stream.write_all(&frame(first, payload)).await.unwrap();
    }

    /// The next frame: its first byte and its content; nothing at the end of the connection.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = match head[1] {
            126 => u64::from(self.stream.read_u16().await.ok()?),
            127 => self.stream.read_u64().await.ok()?,
            short => short.into(),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some((head[0], payload))
    }

    /// Everything of each channel until the connection ends, and the code it was closed with.
    pub async fn collect(&mut self) -> (BTreeMap<u8, Vec<u8>>, Option<u16>) {
        let (mut channels, mut code) = (BTreeMap::new(), None);
        while let Some((first, payload)) = soon(self.next()).await {
            match first {
                0x81 | 0x82 => {
                    let channel: &mut Vec<u8> = channels.entry(payload[0]).or_default();
                    channel.extend(&payload[1..]);
                }
                0x88 => {
                    code = Some(u16::from_be_bytes([payload[0], payload[1]]));
                    self.send(0x88, &payload).await;
                    // As clients do: the server has nothing more to say.
                    self.stream.shutdown().await.ok();
                }
                other => panic!("frame {other:#x}"),
            }
        }
        (channels, code)
    }
}

/// A client's frame, masked.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        medium @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    let mask = [0x11, 0x22, 0x33, 0x44];
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}
