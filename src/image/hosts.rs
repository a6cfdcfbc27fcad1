//! Where a registry is really reached: containerd's `hosts.toml` directories.
//!
//! `<hosts_dir>/<registry>/hosts.toml` (a port may be written `host_port_` or `host:port`), else
//! `<hosts_dir>/_default/hosts.toml`, else the registry itself. Read anew at every pull, so an edit
//! needs no restart; a broken file fails the pull and names file and line, because falling back
//! to the origin would quietly bypass a mirror that was configured for a reason.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use reqwest::Url;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::reference::DOCKER_HUB;

const MAX_FILE: u64 = 1 << 20;
const MAX_HOSTS: usize = 64;

/// A `hosts.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file says something that means nothing.
    #[error("{path}:{line}: {what}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        what: String,
    },
}

/// How TLS is spoken with an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Files with certificates to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// Client certificates: certificate and, if it is not in the same file, key.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether the server's certificate is believed unseen.
    pub skip_verify: bool,
}

/// One place to ask for an image.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The base of the API, without a slash at its end: `https://mirror.example/v2`.
    pub base: Url,
    /// Content may be fetched by digest.
    pub pull: bool,
    /// Tags may be looked up.
    pub resolve: bool,
    /// TLS settings.
    pub tls: Tls,
    /// Headers sent with every request to this endpoint.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Time for connecting.
    pub dial_timeout: Option<Duration>,
    /// An operator wrote this endpoint down (not derived from the image's name).
    pub configured: bool,
    /// The path of the API is not the standard one.
    pub own_path: bool,
    /// The endpoint stands for another registry: requests say which (`ns=`).
    pub mirror: bool,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.base) // headers may hold secrets
    }
}

/// Whether the host of a URL is this machine itself.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

/// The endpoints of `registry` in the order to try them.
///
/// # Errors
/// [`HostsError`] if a file is there and cannot be used.
pub fn endpoints(hosts_dir: Option<&Path>, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    if let Some(dir) = hosts_dir {
        for name in directory_names(registry) {
            let path = dir.join(name).join("hosts.toml");
            if let Some(text) = read(&path)? {
                return File {
                    path: &path,
                    text: &text,
                    registry,
                }
                .endpoints();
            }
        }
    }
    Ok(vec![origin(registry)])
}

fn directory_names(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned()];
    let port_at = registry
        .rfind(':')
        .filter(|at| !registry[*at..].contains(']'));
    if let Some(at) = port_at {
        names.insert(0, format!("{}_{}_", &registry[..at], &registry[at + 1..]));
    }
    names.push("_default".to_owned());
    names
}

fn read(path: &Path) -> Result<Option<String>, HostsError> {
    let wrong = |source| HostsError::Read {
        path: path.to_owned(),
        source,
    };
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() > MAX_FILE => {
            return Err(wrong(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a regular file of at most 1 MiB",
            )));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error)),
    }
    fs::read_to_string(path).map(Some).map_err(wrong)
}

/// The registry itself: https, or http on this machine's loopback.
fn origin(registry: &str) -> Endpoint {
    let host = if registry == DOCKER_HUB {
        "registry-1.docker.io"
    } else {
        registry
    };
    let https = Url::parse(&format!("https://{host}/v2")).expect("a checked host makes a URL");
    let plain = is_loopback(&https) && https.port().is_some();
    let base = if plain {
        Url::parse(&format!("http://{host}/v2")).expect("a checked host makes a URL")
    } else {
        https
    };
    Endpoint {
        base,
        pull: true,
        resolve: true,
        tls: Tls::default(),
        headers: Vec::new(),
        dial_timeout: None,
        configured: false,
        own_path: false,
        mirror: false,
    }
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
    registry: &'a str,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl File<'_> {
    fn error(&self, at: usize, what: impl Into<String>) -> HostsError {
        let line = self.text.as_bytes()[..at.min(self.text.len())]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        HostsError::Content {
            path: self.path.to_owned(),
            line: line + 1,
            what: what.into(),
        }
    }

    fn endpoints(&self) -> Result<Vec<Endpoint>, HostsError> {
        let parsed = DeTable::parse(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.error(at, error.message().to_owned())
        })?;
        let root = parsed.get_ref();
        let mut server = None;
        let mut hosts: Vec<(usize, Endpoint)> = Vec::new();
        let mut settings = DeTable::new();
        for (key, value) in root {
            match key.get_ref().as_ref() {
                "server" => server = Some((self.string(value)?, value.span().start)),
                "host" => {
                    let table = self.table(value, "host")?;
                    for (url, value) in table {
                        let at = url.span().start;
                        let table = self.table(value, "host")?;
                        hosts.push((at, self.endpoint(url.get_ref(), at, table)?));
                    }
                }
                _ => {
                    settings.insert(key.clone(), value.clone());
                }
            }
        }
        if hosts.len() > MAX_HOSTS {
            return Err(self.error(0, format!("more than {MAX_HOSTS} hosts")));
        }
        hosts.sort_by_key(|(at, _)| *at); // the order of the file is the order of trying
        let mut endpoints: Vec<Endpoint> = hosts.into_iter().map(|(_, host)| host).collect();
        let last = match server {
            Some((url, at)) => self.endpoint(&url, at, &settings)?,
            None => {
                let origin = origin(self.registry);
                let mut last = self.endpoint(origin.base.as_str(), 0, &settings)?;
                (last.configured, last.mirror, last.own_path) = (false, false, false);
                last
            }
        };
        if !endpoints.iter().any(|endpoint| endpoint.base == last.base) {
            endpoints.push(last);
        }
        Ok(endpoints)
    }

    fn endpoint(
        &self,
        url: &str,
        at: usize,
        settings: &DeTable<'_>,
    ) -> Result<Endpoint, HostsError> {
        let with_scheme = if url.contains("://") {
            url.to_owned()
        } else {
            format!("https://{url}")
        };
        let mut base = Url::parse(&with_scheme)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
            .ok_or_else(|| self.error(at, format!("{url:?} is not an http or https URL")))?;
        if base.query().is_some() || !base.username().is_empty() || base.password().is_some() {
            return Err(self.error(at, "a host's URL has neither query nor user"));
        }
        let mut endpoint = Endpoint {
            configured: true,
            ..origin("localhost:1")
        };
        let mut override_path = false;
        for (key, value) in settings {
            let value_at = value.span().start;
            match key.get_ref().as_ref() {
                "capabilities" => self.capabilities(&mut endpoint, value)?,
                "ca" => endpoint.tls.ca = self.paths(value)?,
                "client" => endpoint.tls.client = self.client(value)?,
                "skip_verify" => endpoint.tls.skip_verify = self.boolean(value)?,
                "override_path" => override_path = self.boolean(value)?,
                "dial_timeout" => {
                    let text = self.string(value)?;
                    let time = duration(&text).ok_or_else(|| {
                        self.error(value_at, format!("{text:?} is not a time such as \"10s\""))
                    })?;
                    endpoint.dial_timeout = Some(time);
                }
                "header" => endpoint.headers = self.headers(value)?,
                other => {
                    return Err(self.error(
                        key.span().start,
                        format!(
                            "unknown key {other:?}; known are server, host, capabilities, ca, \
                             client, skip_verify, override_path, dial_timeout, header"
                        ),
                    ));
                }
            }
        }
        let path = base.path().trim_end_matches('/').to_owned();
        let api = if override_path || path.ends_with("/v2") {
            path
        } else {
            format!("{path}/v2")
        };
        endpoint.own_path = api != "/v2";
        base.set_path(&api);
        let origin_host = origin(self.registry);
        endpoint.mirror = base.host_str() != origin_host.base.host_str()
            || base.port_or_known_default() != origin_host.base.port_or_known_default();
        endpoint.base = base;
        Ok(endpoint)
    }

    fn capabilities(&self, endpoint: &mut Endpoint, value: &Value<'_>) -> Result<(), HostsError> {
        (endpoint.pull, endpoint.resolve) = (false, false);
        for (name, at) in self.strings(value)? {
            match name.as_str() {
                "pull" => endpoint.pull = true,
                "resolve" => endpoint.resolve = true,
                "push" | "referrers" => {}
                other => {
                    return Err(self.error(
                        at,
                        format!("unknown capability {other:?}; known are pull, resolve, push"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn headers(&self, value: &Value<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, HostsError> {
        let mut headers = Vec::new();
        for (key, value) in self.table(value, "header")? {
            let name = HeaderName::from_bytes(key.get_ref().as_bytes())
                .map_err(|_| self.error(key.span().start, "not the name of an HTTP header"))?;
            for (text, at) in self.strings(value)? {
                let mut value = HeaderValue::from_str(&text)
                    .map_err(|_| self.error(at, "not the value of an HTTP header"))?;
                value.set_sensitive(true);
                headers.push((name.clone(), value));
            }
        }
        Ok(headers)
    }

    fn client(&self, value: &Value<'_>) -> Result<Vec<(PathBuf, Option<PathBuf>)>, HostsError> {
        let DeValue::Array(items) = value.get_ref() else {
            return Ok(vec![(self.beside(&self.string(value)?), None)]);
        };
        let mut pairs = Vec::new();
        for item in items {
            let parts: Vec<_> = self
                .strings(item)?
                .into_iter()
                .map(|(text, _)| text)
                .collect();
            match parts.as_slice() {
                [one] => pairs.push((self.beside(one), None)),
                [cert, key] if key.is_empty() => pairs.push((self.beside(cert), None)),
                [cert, key] => pairs.push((self.beside(cert), Some(self.beside(key)))),
                _ => {
                    let what = "client takes a file or pairs of certificate and key";
                    return Err(self.error(item.span().start, what));
                }
            }
        }
        Ok(pairs)
    }

    fn paths(&self, value: &Value<'_>) -> Result<Vec<PathBuf>, HostsError> {
        Ok(self
            .strings(value)?
            .iter()
            .map(|(text, _)| self.beside(text))
            .collect())
    }

    /// Relative paths are meant beside the file.
    fn beside(&self, text: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(text)
    }

    fn string(&self, value: &Value<'_>) -> Result<String, HostsError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => Err(self.error(value.span().start, "a string belongs here")),
        }
    }

    fn strings(&self, value: &Value<'_>) -> Result<Vec<(String, usize)>, HostsError> {
        match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .map(|item| Ok((self.string(item)?, item.span().start)))
                .collect(),
            _ => Ok(vec![(self.string(value)?, value.span().start)]),
        }
    }

    fn boolean(&self, value: &Value<'_>) -> Result<bool, HostsError> {
        match value.get_ref() {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(self.error(value.span().start, "true or false belongs here")),
        }
    }

    fn table<'t, 'v>(
        &self,
        value: &'t Value<'v>,
        name: &str,
    ) -> Result<&'t DeTable<'v>, HostsError> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.error(value.span().start, format!("{name} is a table"))),
        }
    }
}

/// Go's notation for the units that make sense here: `500ms`, `10s`, `2m`.
fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split].parse().ok()?;
    let unit = match &text[split..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * unit)
        .ok()
        .filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(registry: &str, text: &str) -> Result<Vec<Endpoint>, HostsError> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let own = dir
            .path()
            .join(registry.replace(':', "_") + if registry.contains(':') { "_" } else { "" });
        fs::create_dir(&own).expect("directory");
        fs::write(own.join("hosts.toml"), text).expect("file");
        endpoints(Some(dir.path()), registry)
    }

    #[test]
    fn without_a_file_the_registry_itself() {
        let bases = |registry: &str| {
            endpoints(None, registry).expect("origin")[0]
                .base
                .to_string()
        };
        assert_eq!(bases("docker.io"), "https://registry-1.docker.io/v2");
        assert_eq!(bases("gcr.io"), "https://gcr.io/v2");
        assert_eq!(bases("localhost:5000"), "http://localhost:5000/v2");
        assert_eq!(bases("127.0.0.1:5000"), "http://127.0.0.1:5000/v2");
        assert_eq!(bases("[::1]:5000"), "http://[::1]:5000/v2");
        assert_eq!(bases("localhost"), "https://localhost/v2");
    }

    #[test]
    fn hosts_in_the_order_of_the_file_then_the_server() {
        let found = parse(
            "gcr.io",
            r#"
            server = "https://gcr.io"
            dial_timeout = "3s"
            [host."http://z.example:5000"]
              capabilities = ["pull"]
              skip_verify = true
              [host."http://z.example:5000".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."https://a.example/mirror/path"]
              capabilities = ["pull", "resolve"]
              override_path = true
              ca = "ca.pem"
              client = [["cert.pem", "key.pem"]]
              dial_timeout = "500ms"
            [host."https://b.example/sub"]
            "#,
        )
        .expect("parses");
        let bases: Vec<_> = found.iter().map(|e| e.base.to_string()).collect();
        assert_eq!(
            bases,
            [
                "http://z.example:5000/v2",
                "https://a.example/mirror/path",
                "https://b.example/sub/v2",
                "https://gcr.io/v2"
            ]
        );
        assert!(found[0].pull && !found[0].resolve && found[0].tls.skip_verify);
        assert_eq!(found[0].headers.len(), 3);
        assert!(found[0].mirror && found[0].configured && !found[0].own_path);
        assert!(found[1].own_path && found[1].tls.ca[0].ends_with("gcr.io/ca.pem"));
        assert_eq!(found[1].dial_timeout, Some(Duration::from_millis(500)));
        assert_eq!(found[1].tls.client.len(), 1);
        assert!(!found[3].mirror && found[3].pull && found[3].resolve);
        assert_eq!(found[3].dial_timeout, Some(Duration::from_secs(3)));
    }

    #[test]
    fn port_directories_and_the_default() {
        let found = parse("127.0.0.1:5000", "server = \"http://10.0.0.1:80\"").expect("parses");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].base.as_str(), "http://10.0.0.1/v2");
        let found = parse("_default", "[host.\"http://m:1\"]").expect("parses");
        assert_eq!(found[0].base.as_str(), "http://m:1/v2");
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join("_default")).expect("directory");
        fs::write(
            dir.path().join("_default/hosts.toml"),
            "[host.\"http://m:1\"]",
        )
        .expect("file");
        let found = endpoints(Some(dir.path()), "quay.io").expect("default applies");
        assert_eq!(found[0].base.as_str(), "http://m:1/v2");
        assert_eq!(found[1].base.as_str(), "https://quay.io/v2");
    }

    #[test]
    fn broken_files_name_the_line() {
        for (text, line, part) in [
            ("server = \n", 1, ""),
            ("\n\nserver = 3", 3, "string"),
            ("\n[host.\"ftp://x\"]", 2, "http or https"),
            ("[host.\"http://x\"]\ncapabilites = []", 2, "unknown key"),
            (
                "[host.\"http://x\"]\ncapabilities = [\n\"pul\"]",
                3,
                "unknown capability",
            ),
            (
                "[host.\"http://x\"]\nskip_verify = \"yes\"",
                2,
                "true or false",
            ),
            ("dial_timeout = \"soon\"", 1, "not a time"),
            ("[host.\"http://u:p@x\"]", 1, "neither query nor user"),
            (
                "[host.\"http://x\".header]\n\"a b\" = \"c\"",
                2,
                "HTTP header",
            ),
        ] {
            match parse("gcr.io", text) {
                Err(HostsError::Content {
                    line: found, what, ..
                }) => {
                    assert_eq!(found, line, "{text}: {what}");
                    assert!(what.contains(part), "{text}: {what}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
