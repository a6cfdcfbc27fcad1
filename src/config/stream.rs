//! The keys of the streaming server.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use super::{
    StreamConfig, StreamTls,
    layer::Settings,
    load::{origin, value},
    value::{Value, absolute, quoted},
};

/// Shortest and longest times that make sense.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Takes everything below `stream.`.
pub(super) fn take(config: &mut StreamConfig, settings: &mut Settings) {
    if let Some(Value::Port(port)) = value(settings, "stream.port") {
        config.port = port;
    }
    if let Some(Value::Switch(on)) = value(settings, "stream.kill_on_disconnect") {
        config.kill_on_disconnect = on;
    }
    let address = |text: &str| text.parse::<IpAddr>().ok();
    let wanted = "an IP address, such as 127.0.0.1";
    if let Some(address) = parsed(settings, "stream.address", wanted, address) {
        config.address = address;
    }
    let wanted = "a time from 1s to 365d, such as 30s, 15m or 4h";
    if let Some(time) = parsed(settings, "stream.idle_timeout", wanted, time) {
        config.idle_timeout = time;
    }
    if let Some(time) = parsed(settings, "stream.creation_timeout", wanted, time) {
        config.creation_timeout = time;
    }
    take_tls(config, settings);
}

fn take_tls(config: &mut StreamConfig, settings: &mut Settings) {
    let problems = settings.problems.len();
    let mut file = |name: &str| {
        let wanted = "an absolute path without `..`, or empty";
        let path = |text: &str| match text {
            "" => Some(None),
            _ => absolute(text).map(Some),
        };
        parsed(settings, name, wanted, path).flatten()
    };
    let certificate: Option<PathBuf> = file("stream.tls_cert");
    let key: Option<PathBuf> = file("stream.tls_key");
    let client_ca: Option<PathBuf> = file("stream.tls_client_ca");
    if settings.problems.len() > problems {
        return;
    }
    let mut lacks = |given: &str, missing: &str| {
        let origin = origin(settings, given);
        settings.problem(origin, given, format!("is of no use without {missing}"));
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            config.tls = Some(StreamTls {
                certificate,
                key,
                client_ca,
            });
        }
        (Some(_), None) => lacks("stream.tls_cert", "stream.tls_key"),
        (None, Some(_)) => lacks("stream.tls_key", "stream.tls_cert"),
        (None, None) if client_ca.is_some() => lacks("stream.tls_client_ca", "stream.tls_cert"),
        (None, None) => {}
    }
}

/// The value of a key as `read` understands it; a problem if it does not.
fn parsed<T>(
    settings: &mut Settings,
    name: &str,
    wanted: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let Some(Value::Text(text)) = value(settings, name) else {
        return None;
    };
    let value = read(&text);
    if value.is_none() {
        let origin = origin(settings, name);
        settings.problem(origin, name, format!("{} is not {wanted}", quoted(&text)));
    }
    value
}

/// A number with its unit.
fn time(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let time = Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?);
    (SHORTEST..=LONGEST).contains(&time).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_make_sense() {
        for (text, seconds) in [
            ("1s", 1),
            ("15m", 900),
            ("4h", 14_400),
            ("365d", 31_536_000),
        ] {
            assert_eq!(time(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "4",
            "s",
            "0s",
            "-1s",
            "1.5h",
            "4 h",
            "366d",
            "99999999999999999999h",
            "1h1",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
