//! Credentials and the tokens they buy.

use std::{collections::HashMap, fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use oci_client::token_cache::RegistryToken;
use reqwest::{StatusCode, Url};
use tokio::sync::Mutex;

use super::{
    EndpointError, Host, Policy,
    http::{check_target, read_capped, transport},
};
use crate::image::hosts::{Endpoint, is_loopback};

const MAX_TOKEN_BODY: u64 = 1 << 20;
const MAX_CHALLENGE: usize = 8 << 10;
const MAX_TOKEN: usize = 64 << 10;
const CLIENT_ID: &str = "crisp";

/// What a client sent to pull with: the CRI's AuthConfig.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// `user:password` in base64; used if there is no user name.
    pub auth: String,
    /// The server these are for; empty means the one of the image.
    pub server_address: String,
    /// A refresh token to be changed for an access token.
    pub identity_token: String,
    /// A bearer token to be sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?})", self.server_address)
    }
}

impl Credentials {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let parts = [
            &self.username,
            &self.auth,
            &self.identity_token,
            &self.registry_token,
        ];
        parts.iter().all(|part| part.is_empty())
    }

    fn basic(&self) -> Option<(String, String)> {
        if !self.username.is_empty() {
            return Some((self.username.clone(), self.password.clone()));
        }
        let decoded = STANDARD
            .decode(self.auth.trim())
            .ok()
            .filter(|bytes| !bytes.is_empty())?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
    }

    /// Whether they may be shown to an endpoint: to the server they name, else to the registry
    /// itself and the mirrors an operator put in its place. Never in clear text over a network.
    fn may_go_to(&self, endpoint: &Endpoint) -> bool {
        let clear = endpoint.base.scheme() == "http" && !is_loopback(&endpoint.base);
        if clear && !endpoint.configured {
            return false;
        }
        if self.server_address.is_empty() {
            return true;
        }
        let address = &self.server_address;
        let with_scheme = if address.contains("://") {
            address.clone()
        } else {
            format!("https://{address}")
        };
        let Ok(server) = Url::parse(&with_scheme) else {
            return false;
        };
        let hub = |host: Option<&str>| host.is_some_and(|host| host.ends_with("docker.io"));
        let same_host = server.host_str() == endpoint.base.host_str()
            && (server.port().is_none() || server.port() == endpoint.base.port());
        same_host
            || (hub(server.host_str()) && hub(endpoint.base.host_str()))
            || endpoint.mirror && endpoint.configured
    }
}

/// What is sent along with requests to one endpoint.
pub struct Auth {
    credentials: Option<Credentials>,
    repository: String,
    current: Mutex<Current>,
}

#[derive(Default, Clone)]
struct Current {
    /// The value of Authorization.
    header: Option<HeaderValue>,
    /// The token inside, for oci-client.
    bearer: Option<String>,
    basic: Option<(String, String)>,
    /// Raised with every renewal, so that one 401 renews once for all that wait.
    generation: u64,
}

/// One state of the authorization.
pub struct Ticket {
    /// The header to send.
    pub header: Option<HeaderValue>,
    /// Which one it is.
    pub generation: u64,
}

impl Auth {
    pub(super) fn new(
        endpoint: &Endpoint,
        repository: &str,
        credentials: Option<Credentials>,
    ) -> Self {
        let credentials =
            credentials.filter(|found| !found.is_empty() && found.may_go_to(endpoint));
        let mut current = Current::default();
        if let Some(token) = credentials
            .as_ref()
            .map(|c| &c.registry_token)
            .filter(|token| !token.is_empty())
        {
            current.header = bearer(token).ok();
            current.bearer = Some(token.clone());
        }
        Self {
            credentials,
            repository: repository.to_owned(),
            current: Mutex::new(current),
        }
    }

    pub(super) async fn ticket(&self) -> Ticket {
        let current = self.current.lock().await;
        Ticket {
            header: current.header.clone(),
            generation: current.generation,
        }
    }

    /// What oci-client needs to send the same.
    pub(super) async fn for_oci_client(&self) -> Option<oci_client::secrets::RegistryAuth> {
        use oci_client::secrets::RegistryAuth;
        let current = self.current.lock().await;
        match (&current.bearer, &current.basic) {
            (Some(token), _) => Some(RegistryAuth::Bearer(token.clone())),
            (None, Some((user, password))) => {
                Some(RegistryAuth::Basic(user.clone(), password.clone()))
            }
            (None, None) => None,
        }
    }

    /// Answers a 401. `seen` is the generation the refused request was made with.
    pub(super) async fn renew(
        &self,
        host: &Host,
        policy: &Policy,
        challenges: &[String],
        seen: u64,
    ) -> Result<bool, EndpointError> {
        let mut current = self.current.lock().await;
        if current.generation != seen {
            return Ok(true); // somebody else did it meanwhile
        }
        let offered: Vec<Challenge> = challenges
            .iter()
            .filter_map(|text| Challenge::parse(text))
            .collect();
        if let Some(challenge) = offered.iter().find(|found| found.scheme == "bearer") {
            let token = self.token(host, policy, challenge).await?;
            current.header = Some(bearer(&token)?);
            (current.bearer, current.basic) = (Some(token), None);
        } else if offered.iter().any(|found| found.scheme == "basic") {
            let Some((user, password)) = self.credentials.as_ref().and_then(Credentials::basic)
            else {
                return Ok(false);
            };
            let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            current.header = Some(sensitive(&text)?);
            (current.bearer, current.basic) = (None, Some((user, password)));
        } else {
            return Ok(false);
        }
        current.generation += 1;
        Ok(true)
    }

    async fn token(
        &self,
        host: &Host,
        policy: &Policy,
        challenge: &Challenge,
    ) -> Result<String, EndpointError> {
        let wrong = |what: &str| EndpointError::Token(what.to_owned());
        let realm = challenge
            .values
            .get("realm")
            .ok_or_else(|| wrong("the demand names no realm"))?;
        let mut url = Url::parse(realm).map_err(|_| wrong("the realm is not a URL"))?;
        check_target(&host.endpoint.base, &url)
            .map_err(|why| EndpointError::Token(format!("realm {realm:?} refused: {why}")))?;
        let scope = format!("repository:{}:pull", self.repository);
        let service = challenge.values.get("service");
        let credentials = self.credentials.as_ref();
        let identity = credentials
            .map(|c| &c.identity_token)
            .filter(|token| !token.is_empty());
        let request = if let Some(identity) = identity {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token")
                .append_pair("client_id", CLIENT_ID)
                .append_pair("refresh_token", identity)
                .append_pair("scope", &scope);
            if let Some(service) = service {
                form.append_pair("service", service);
            }
            host.client
                .post(url)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.finish())
        } else {
            url.query_pairs_mut()
                .append_pair("scope", &scope)
                .append_pair("client_id", CLIENT_ID);
            if let Some(service) = service {
                url.query_pairs_mut().append_pair("service", service);
            }
            match credentials.and_then(Credentials::basic) {
                Some((user, password)) => host.client.get(url).basic_auth(user, Some(password)),
                None => host.client.get(url),
            }
        };
        let response = with_timeout(policy.answer_timeout, "ask for a token", request.send())
            .await?
            .map_err(transport("ask for a token"))?;
        let status = response.status();
        if status != StatusCode::OK {
            // 4xx is a refusal; 5xx is the token server being down.
            return Err(EndpointError::Status {
                status: if status.is_redirection() {
                    502
                } else {
                    status.as_u16()
                },
                message: "from the token server".into(),
            });
        }
        let read = read_capped(response, MAX_TOKEN_BODY);
        let body = with_timeout(policy.answer_timeout, "read a token", read).await??;
        let answer: RegistryToken = serde_json::from_slice(&body)
            .map_err(|_| wrong("the token server's answer holds no token"))?;
        let token = answer.token().to_owned();
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(wrong("the token is empty or too long"));
        }
        Ok(token)
    }
}

pub(super) async fn with_timeout<T>(
    limit: Duration,
    action: &str,
    work: impl Future<Output = T>,
) -> Result<T, EndpointError> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| EndpointError::Timeout {
            action: action.to_owned(),
            seconds: limit.as_secs(),
        })
}

fn bearer(token: &str) -> Result<HeaderValue, EndpointError> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Result<HeaderValue, EndpointError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| EndpointError::Token("it holds characters no header may have".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// One `WWW-Authenticate` demand.
struct Challenge {
    scheme: String,
    values: HashMap<String, String>,
}

impl Challenge {
    /// `Scheme key="value",key=value`. Quoted values may hold commas and escaped characters.
    fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_CHALLENGE {
            return None;
        }
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut values = HashMap::new();
        let mut chars = rest.chars().peekable();
        loop {
            while chars.next_if(|c| *c == ',' || c.is_whitespace()).is_some() {}
            let mut key = String::new();
            while let Some(c) = chars.next_if(|c| *c != '=' && *c != ',') {
                key.push(c.to_ascii_lowercase());
            }
            if chars.next_if_eq(&'=').is_none() {
                if chars.peek().is_none() {
                    break;
                }
                continue;
            }
            let mut value = String::new();
            if chars.next_if_eq(&'"').is_some() {
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => value.extend(chars.next()),
                        c => value.push(c),
                    }
                }
            } else {
                while let Some(c) = chars.next_if(|c| *c != ',') {
                    value.push(c);
                }
            }
            if value.chars().any(char::is_control) {
                return None;
            }
            values.entry(key.trim().to_owned()).or_insert(value);
        }
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            values,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::hosts::endpoints;

    #[test]
    fn challenges() {
        let found = Challenge::parse(
            r#"Bearer realm="https://a.example/token?x=1,2",service="reg \"q\"", scope=repository:a:pull"#,
        )
        .expect("parses");
        assert_eq!(found.scheme, "bearer");
        assert_eq!(found.values["realm"], "https://a.example/token?x=1,2");
        assert_eq!(found.values["service"], "reg \"q\"");
        assert_eq!(found.values["scope"], "repository:a:pull");
        assert_eq!(Challenge::parse("Basic").expect("parses").scheme, "basic");
        assert!(Challenge::parse(&"x".repeat(1 << 20)).is_none());
        assert!(Challenge::parse("Bearer realm=\"http://x\r\nA: b\"").is_none());
    }

    #[test]
    fn where_credentials_go() {
        let credentials = |server: &str| Credentials {
            username: "u".into(),
            server_address: server.into(),
            ..Credentials::default()
        };
        let endpoint = |registry: &str| endpoints(None, registry).expect("origin").remove(0);
        for (server, registry, goes) in [
            ("", "gcr.io", true),
            ("gcr.io", "gcr.io", true),
            ("https://gcr.io/v2/", "gcr.io", true),
            ("quay.io", "gcr.io", false),
            ("https://index.docker.io/v1/", "docker.io", true),
            ("", "127.0.0.1:5000", true),
        ] {
            assert_eq!(
                credentials(server).may_go_to(&endpoint(registry)),
                goes,
                "{server}"
            );
        }
        let auth = Credentials {
            auth: STANDARD.encode("me:pa:ss"),
            ..Credentials::default()
        };
        assert_eq!(auth.basic(), Some(("me".into(), "pa:ss".into())));
        assert!(!format!("{auth:?}").contains("pa"));
    }
}
