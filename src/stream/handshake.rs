//! What client and server agree on before the first byte: pure.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::websocket::{Format, accept_key};

/// What SPDY clients ask for a protocol with.
pub const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What they are told if there is none.
pub const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// How the outcome of a session is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// As text if something went wrong: before version 4.
    Text,
    /// As a status object.
    Status,
}

/// What bytes on the connection mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// SPDY on the connection itself.
    Spdy,
    /// Channels of a WebSocket.
    Channels(Format),
    /// SPDY in a WebSocket.
    Tunnel,
    /// Ports in channels of a WebSocket.
    Ports,
}

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// What bytes mean.
    pub wire: Wire,
    /// How the outcome is told.
    pub report: Report,
    /// Whether the client sends sizes of its terminal.
    pub resizes: bool,
    /// What the answer says.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Why there is nothing to agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Plain HTTP.
    #[error("this is for upgrades to SPDY/3.1 or websocket")]
    NoUpgrade,
    /// SPDY without a protocol inside.
    #[error("X-Stream-Protocol-Version is missing")]
    NoProtocol,
    /// None of the protocols inside is known.
    #[error("none of the protocols asked for is served")]
    UnknownProtocol {
        /// Those that are.
        served: &'static [&'static str],
    },
    /// Not the WebSocket of RFC 6455.
    #[error("Sec-WebSocket-Version must be 13, with a Sec-WebSocket-Key")]
    WebSocket,
}

impl Refusal {
    /// As HTTP says it.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoUpgrade | Self::NoProtocol | Self::WebSocket => StatusCode::BAD_REQUEST,
            Self::UnknownProtocol { .. } => StatusCode::FORBIDDEN,
        }
    }
}

const COMMAND_SPDY: &[&str] = &[
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
const COMMAND_WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const PORTS_SPDY: &[&str] = &["portforward.k8s.io"];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PORTS_WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// Agrees with a client. `ports`: it is about ports, not about a command.
///
/// # Errors
/// Any [`Refusal`].
pub fn agree(headers: &HeaderMap, ports: bool) -> Result<Agreed, Refusal> {
    let mentions = |name: HeaderName, word: &str| {
        values(headers, &name).any(|value| value.to_ascii_lowercase().contains(word))
    };
    if !mentions(header::CONNECTION, "upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    if mentions(header::UPGRADE, "websocket") {
        websocket(headers, ports)
    } else if mentions(header::UPGRADE, "spdy/3.1") {
        spdy(headers, ports)
    } else {
        Err(Refusal::NoUpgrade)
    }
}

fn spdy(headers: &HeaderMap, ports: bool) -> Result<Agreed, Refusal> {
    let served = if ports { PORTS_SPDY } else { COMMAND_SPDY };
    if values(headers, &PROTOCOL).next().is_none() {
        return Err(Refusal::NoProtocol);
    }
    let picked = pick(headers, &PROTOCOL, served).ok_or(Refusal::UnknownProtocol { served })?;
    Ok(Agreed {
        wire: Wire::Spdy,
        report: report(picked),
        resizes: matches!(picked, "v4.channel.k8s.io" | "v3.channel.k8s.io"),
        headers: vec![
            (header::UPGRADE, HeaderValue::from_static("SPDY/3.1")),
            (PROTOCOL, HeaderValue::from_static(picked)),
        ],
    })
}

fn websocket(headers: &HeaderMap, ports: bool) -> Result<Agreed, Refusal> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let key = text(header::SEC_WEBSOCKET_KEY).and_then(accept_key);
    let key = key.and_then(|key| HeaderValue::from_str(&key).ok());
    let (Some("13"), Some(key)) = (text(header::SEC_WEBSOCKET_VERSION), key) else {
        return Err(Refusal::WebSocket);
    };
    let served = if ports {
        PORTS_WEBSOCKET
    } else {
        COMMAND_WEBSOCKET
    };
    let asked = values(headers, &header::SEC_WEBSOCKET_PROTOCOL)
        .next()
        .is_some();
    let picked = match pick(headers, &header::SEC_WEBSOCKET_PROTOCOL, served) {
        Some(picked) => Some(picked),
        None if asked => return Err(Refusal::UnknownProtocol { served }),
        // The first clients named none.
        None => None,
    };
    let wire = match picked {
        Some(TUNNEL) => Wire::Tunnel,
        Some(name) if ports && name.contains("base64") => {
            return Err(Refusal::UnknownProtocol { served });
        }
        _ if ports => Wire::Ports,
        Some("v5.channel.k8s.io") => Wire::Channels(Format::Closable),
        Some(name) if name.contains("base64") => Wire::Channels(Format::Base64),
        _ => Wire::Channels(Format::Binary),
    };
    let mut answer = vec![
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, key),
    ];
    if let Some(picked) = picked {
        let picked = HeaderValue::from_static(picked);
        answer.push((header::SEC_WEBSOCKET_PROTOCOL, picked));
    }
    Ok(Agreed {
        wire,
        report: report(picked.unwrap_or_default()),
        resizes: true,
        headers: answer,
    })
}

fn report(protocol: &str) -> Report {
    if protocol.starts_with("v4.") || protocol.starts_with("v5.") {
        Report::Status
    } else {
        Report::Text
    }
}

/// The first of the client's protocols that is served.
fn pick(
    headers: &HeaderMap,
    name: &HeaderName,
    served: &'static [&'static str],
) -> Option<&'static str> {
    values(headers, name).find_map(|asked| served.iter().find(|known| **known == asked).copied())
}

/// The values of a header, each of which may hold several.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let texts = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");

    #[test]
    fn spdy_picks_the_clients_first_known_protocol() {
        let up = ("connection", "keep-alive, Upgrade");
        let spdy = ("upgrade", "SPDY/3.1");
        let version = "x-stream-protocol-version";
        type Lines<'a> = &'a [(&'a str, &'a str)];
        let table: &[(Lines<'_>, bool, Result<&str, u16>)] = &[
            (&[], false, Err(400)),
            (&[up], false, Err(400)),
            (&[spdy, (version, "v4.channel.k8s.io")], false, Err(400)),
            (&[up, spdy], false, Err(400)),
            (&[up, spdy, (version, "")], false, Err(400)),
            (&[up, spdy, (version, "v9.channel.k8s.io")], false, Err(403)),
            (
                &[up, spdy, (version, "portforward.k8s.io")],
                false,
                Err(403),
            ),
            (&[up, spdy, (version, "v4.channel.k8s.io")], true, Err(403)),
            (
                &[up, spdy, (version, "portforward.k8s.io")],
                true,
                Ok("portforward.k8s.io"),
            ),
            (
                &[
                    up,
                    spdy,
                    (version, "v5.channel.k8s.io"),
                    (version, "v4.channel.k8s.io"),
                ],
                false,
                Ok("v4.channel.k8s.io"),
            ),
            (
                &[
                    up,
                    spdy,
                    (
                        version,
                        "v5.channel.k8s.io, v2.channel.k8s.io,v4.channel.k8s.io",
                    ),
                ],
                false,
                Ok("v2.channel.k8s.io"),
            ),
        ];
        for (lines, ports, expected) in table {
            let got = agree(&headers(lines), *ports);
            let got = got
                .as_ref()
                .map(|agreed| agreed.headers[1].1.to_str().unwrap());
            let got = got.map_err(|refusal| refusal.status().as_u16());
            assert_eq!(got, *expected, "{lines:?}");
        }
    }

    #[test]
    fn websocket_protocols_mean_what_they_say() {
        let base = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            KEY,
            VERSION,
        ];
        let protocol = "sec-websocket-protocol";
        let binary = Wire::Channels(Format::Binary);
        for (asked, ports, expected) in [
            (None, false, Some((binary, Report::Text))),
            (Some("channel.k8s.io"), false, Some((binary, Report::Text))),
            (
                Some("v4.channel.k8s.io"),
                false,
                Some((binary, Report::Status)),
            ),
            (
                Some("v5.channel.k8s.io,v4.channel.k8s.io"),
                false,
                Some((Wire::Channels(Format::Closable), Report::Status)),
            ),
            (
                Some("v4.base64.channel.k8s.io"),
                false,
                Some((Wire::Channels(Format::Base64), Report::Status)),
            ),
            (
                Some("base64.channel.k8s.io"),
                false,
                Some((Wire::Channels(Format::Base64), Report::Text)),
            ),
            (Some("v7.channel.k8s.io"), false, None),
            (Some(TUNNEL), true, Some((Wire::Tunnel, Report::Text))),
            (Some(TUNNEL), false, None),
            (
                Some("v4.channel.k8s.io"),
                true,
                Some((Wire::Ports, Report::Status)),
            ),
            (None, true, Some((Wire::Ports, Report::Text))),
            (Some("v5.channel.k8s.io"), true, None),
        ] {
            let mut lines = base.to_vec();
            lines.extend(asked.map(|asked| (protocol, asked)));
            let got = agree(&headers(&lines), ports);
            let got = got.ok().map(|agreed| (agreed.wire, agreed.report));
            assert_eq!(got, expected, "{asked:?} {ports}");
        }
        let answer = agree(&headers(&base), false).unwrap().headers;
        assert!(answer.contains(&(
            header::SEC_WEBSOCKET_ACCEPT,
            HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        )));
        let old = [base[0], base[1], KEY, ("sec-websocket-version", "8")];
        assert_eq!(agree(&headers(&old), false), Err(Refusal::WebSocket));
        let no_key = [base[0], base[1], ("sec-websocket-key", "short"), VERSION];
        assert_eq!(agree(&headers(&no_key), false), Err(Refusal::WebSocket));
    }
}
