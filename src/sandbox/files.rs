//! The text of a sandbox's files: resolv.conf, hosts and hostname. Only [`render`] and [`host_name`]
//! look at the host; the driver writes the files.
//!
//! Specs are validated, but the host's own resolv.conf is not, and a file that programs trust for
//! name look-ups gets no second line out of one value: what could end a line is left out.

use std::{fs::File, io::Read, net::IpAddr};

use super::spec::{DnsConfig, SandboxSpec};
use crate::id::SandboxId;

/// Largest file taken over from the host; longer ones are cut at a line.
pub const MAX_HOST_FILE: usize = 64 * 1024;

/// resolv.conf of a pod. A config of the pod's own is the whole truth; without one, or with one that
/// says nothing, the pod sees the host's file.
#[must_use]
pub fn resolv_conf(dns: Option<&DnsConfig>, host: &str) -> String {
    let Some(dns) = dns.filter(|dns| **dns != DnsConfig::default()) else {
        return copied(host);
    };
    let mut text = String::new();
    let mut line = |keyword: &str, words: &[String]| {
        let words: Vec<&str> = words
            .iter()
            .map(String::as_str)
            .filter(|w| is_word(w))
            .collect();
        if !words.is_empty() {
            text.push_str(keyword);
            text.push(' ');
            text.push_str(&words.join(" "));
            text.push('\n');
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    text
}

/// A file of the host (resolv.conf; hosts for a pod in the host's network): whole lines only, without
/// control characters.
#[must_use]
pub fn copied(host: &str) -> String {
    let mut text = String::new();
    for line in host.lines() {
        let clean: String = line
            .chars()
            .filter(|c| *c == '\t' || !c.is_control())
            .collect();
        if text.len() + clean.len() + 1 > MAX_HOST_FILE {
            break;
        }
        text.push_str(&clean);
        text.push('\n');
    }
    text
}

/// hosts of a pod with a network of its own: loopback names, and the pod's own name at its addresses. kubelet mounts a file of
/// its own over this one where it manages the pod's names; other clients get this.
#[must_use]
pub fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         fe00::\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    if is_word(hostname) {
        for ip in ips {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        }
    }
    text
}

/// hostname of a pod, one line.
#[must_use]
pub fn hostname(name: &str) -> String {
    let word = if is_word(name) { name } else { "" };
    format!("{word}\n")
}

/// The host name a pod has in effect: the one asked for; the node's with the host's network; else the
/// first digits of the sandbox's id.
#[must_use]
pub fn host_name(spec: &SandboxSpec, id: &SandboxId) -> String {
    match &spec.hostname {
        Some(name) => name.clone(),
        None if spec.host_network() => read_host("/proc/sys/kernel/hostname").trim().to_owned(),
        None => id.short().to_owned(),
    }
}

/// The files of a sandbox by name. Addresses are not known before the network is attached; see
/// [`hosts`] for the file with them.
#[must_use]
pub fn render(spec: &SandboxSpec, id: &SandboxId) -> [(&'static str, String); 3] {
    let name = host_name(spec, id);
    let own_hosts = if spec.host_network() {
        copied(&read_host("/etc/hosts"))
    } else {
        hosts(&name, &[])
    };
    [
        ("hosts", own_hosts),
        (
            "resolv.conf",
            resolv_conf(spec.dns.as_ref(), &read_host("/etc/resolv.conf")),
        ),
        ("hostname", hostname(&name)),
    ]
}

/// A file of the host as text; missing or unreadable ones are empty, as for every program there.
fn read_host(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What was read before an error is still what the host's programs see.
        let limit = u64::try_from(MAX_HOST_FILE).unwrap_or(u64::MAX);
        drop(file.take(limit).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Something that stays one word on its line.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::spec::NetworkMode;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pods_own_config_is_the_whole_file() {
        let dns = DnsConfig {
            servers: words(&["10.10.10.10", "fe80::1%eth0"]),
            searches: words(&["google.com", "svc.cluster.local"]),
            options: words(&["ndots:8", "edns0"]),
        };
        let expected = "search google.com svc.cluster.local\n\
                        nameserver 10.10.10.10\n\
                        nameserver fe80::1%eth0\n\
                        options ndots:8 edns0\n";
        assert_eq!(resolv_conf(Some(&dns), "nameserver 9.9.9.9\n"), expected);
    }

    #[test]
    fn without_one_it_is_the_hosts() {
        let host = "# by hand\nnameserver 9.9.9.9\noptions edns0";
        assert_eq!(resolv_conf(None, host), format!("{host}\n"));
        assert_eq!(
            resolv_conf(Some(&DnsConfig::default()), host),
            format!("{host}\n")
        );
        assert_eq!(resolv_conf(None, ""), "");
    }

    #[test]
    fn no_value_makes_a_line_of_its_own() {
        let dns = DnsConfig {
            servers: words(&["1.1.1.1\nnameserver 6.6.6.6", "2.2.2.2"]),
            searches: words(&["a b", "ok.example", "x\r"]),
            options: words(&["\u{2028}evil"]),
        };
        assert_eq!(
            resolv_conf(Some(&dns), ""),
            "search ok.example\nnameserver 2.2.2.2\n"
        );
        assert_eq!(
            resolv_conf(None, "nameserver 1.1.1.1\0\x1b[31m\n"),
            "nameserver 1.1.1.1[31m\n"
        );
        assert_eq!(
            hosts("a\n6.6.6.6 b", &["10.0.0.1".parse().unwrap()])
                .matches("10.0.0.1")
                .count(),
            0
        );
        assert_eq!(hostname("a\nb"), "\n");
    }

    #[test]
    fn a_huge_file_of_the_host_is_cut_at_a_line() {
        let host = "nameserver 10.0.0.1\n".repeat(10_000);
        let text = resolv_conf(None, &host);
        assert!(text.len() <= MAX_HOST_FILE && text.ends_with("10.0.0.1\n"));
    }

    #[test]
    fn the_pods_name_stands_at_each_of_its_addresses() {
        let ips = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let text = hosts("web", &ips);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.0.0.7\tweb\nfd00::7\tweb\n"), "{text}");
        assert_eq!(hostname("web"), "web\n");
    }

    fn pod() -> SandboxSpec {
        let metadata = super::super::spec::SandboxMetadata {
            name: "web".into(),
            uid: "1".into(),
            namespace: "default".into(),
            attempt: 0,
        };
        SandboxSpec {
            metadata,
            ..SandboxSpec::default()
        }
    }

    #[test]
    fn a_pod_without_a_name_is_called_by_its_id_and_in_the_hosts_network_by_the_hosts() {
        let id = "ab".repeat(32).parse().unwrap();
        let mut spec = pod();
        assert_eq!(host_name(&spec, &id), "ababababababa");
        let [hosts, _, hostname] = render(&spec, &id);
        assert!(hosts.1.contains("localhost"));
        assert_eq!(hostname, ("hostname", "ababababababa\n".to_owned()));
        spec.security.namespaces.network = NetworkMode::Node;
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(host_name(&spec, &id), own.trim());
        let [(_, hosts), ..] = render(&spec, &id);
        assert_eq!(
            hosts,
            copied(&std::fs::read_to_string("/etc/hosts").unwrap_or_default())
        );
        spec.hostname = Some("asked".into());
        assert_eq!(host_name(&spec, &id), "asked");
    }
}
