//! The table of all keys: the one place that says which there are and of what kind.

use super::value::Kind;

/// A setting.
pub(super) struct Key {
    /// Dotted name in a file.
    pub name: &'static str,
    /// What it accepts.
    pub kind: Kind,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

/// All keys with a fixed name. The variable of `a.b_c` is `CRISP_A_B_C`, its flag `--a-b-c`.
pub(super) const KEYS: &[Key] = &[
    key("root", Kind::Path),
    key("state", Kind::Path),
    key("listen", Kind::Text),
    key(
        "log_level",
        Kind::Word(&["error", "warn", "info", "debug", "trace"]),
    ),
    key("log_format", Kind::Word(&["text", "json"])),
    key("network.conf_dir", Kind::Path),
    key("network.plugin_dirs", Kind::Paths),
    key("network.native", Kind::Word(&["never", "auto", "prefer"])),
    key("network.default_bridge", Kind::Switch),
    key("image.hosts_dir", Kind::Path),
    key("stream.address", Kind::Text),
    key("stream.port", Kind::Port),
    key("stream.tls_cert", Kind::Text),
    key("stream.tls_key", Kind::Text),
    key("stream.tls_client_ca", Kind::Text),
    key("stream.kill_on_disconnect", Kind::Switch),
    key("stream.idle_timeout", Kind::Text),
    key("stream.creation_timeout", Kind::Text),
    key("runtime.default", Kind::Text),
    key("runtime.create_mount_sources", Kind::Switch),
    key("runtime.cdi_dirs", Kind::Paths),
    key("runtime.blockio_config", Kind::Path),
];

/// Below this section every name is a handler with the keys of [`HANDLER_KEYS`]; they are set in
/// files only.
pub(super) const HANDLERS: &str = "runtime.handlers";

/// The keys of a handler.
pub(super) const HANDLER_KEYS: &[Key] = &[
    key("type", Kind::Word(&["builtin", "oci"])),
    key("path", Kind::Path),
];

/// The kind of a dotted key, if there is such a key.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    if let Some((_, field)) = split_handler(name) {
        return HANDLER_KEYS.iter().find(|k| k.name == field);
    }
    KEYS.iter().find(|k| k.name == name)
}

/// Handler name and field of a dotted key like `runtime.handlers.runc.path`.
pub(super) fn split_handler(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(HANDLERS)?
        .strip_prefix('.')?
        .rsplit_once('.')
}

/// A dotted name that has keys below it.
pub(super) fn is_section(name: &str) -> bool {
    let below = |known: &str| {
        known
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    let handler = name
        .strip_prefix(HANDLERS)
        .and_then(|rest| rest.strip_prefix('.'));
    name == HANDLERS
        || handler.is_some_and(|n| !n.contains('.'))
        || KEYS.iter().any(|k| below(k.name))
}

/// The environment variable of a key.
pub(super) fn variable(name: &str) -> String {
    format!("CRISP_{}", name.to_ascii_uppercase().replace('.', "_"))
}

/// The flag of a key.
pub(super) fn flag(name: &str) -> String {
    format!("--{}", name.replace(['.', '_'], "-"))
}

/// The known name that an unknown one was probably meant to be.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |name: &str| {
        // The right key in the wrong section is nearer than any misspelling.
        if last(name) == last(unknown) {
            0
        } else {
            distance(unknown, name)
        }
    };
    known
        .map(|name| (score(name), name))
        .min()
        .and_then(|(distance, name)| {
            (distance <= (unknown.chars().count() / 3).max(2)).then_some(name)
        })
}

/// Every fixed key, and the handler keys as they look for the handler `like` is about.
pub(super) fn names(like: &str) -> Vec<String> {
    let mut names: Vec<String> = KEYS.iter().map(|k| k.name.to_owned()).collect();
    if let Some((handler, _)) = split_handler(like) {
        names.extend(
            HANDLER_KEYS
                .iter()
                .map(|k| format!("{HANDLERS}.{handler}.{}", k.name)),
        );
    }
    names
}

/// Edit distance (insert, delete, replace), over texts cut to a length that keeps it cheap.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_or_misplaced_key_finds_its_own() {
        let known = || KEYS.iter().map(|k| k.name);
        for (unknown, meant) in [
            ("rot", Some("root")),
            ("log-level", Some("log_level")),
            ("network.conf_dirs", Some("network.conf_dir")),
            ("netwrok.conf_dir", Some("network.conf_dir")),
            ("conf_dir", Some("network.conf_dir")),
            ("stream.prot", Some("stream.port")),
            ("metrics.address", Some("stream.address")),
            ("something.else_entirely", None),
        ] {
            assert_eq!(nearest(unknown, known()), meant, "{unknown}");
        }
    }

    #[test]
    fn variables_and_flags_are_distinct() {
        let all = |f: fn(&str) -> String| {
            KEYS.iter()
                .map(|k| f(k.name))
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(all(variable).len(), KEYS.len());
        assert_eq!(all(flag).len(), KEYS.len());
        assert_eq!(variable("network.conf_dir"), "CRISP_NETWORK_CONF_DIR");
        assert_eq!(flag("network.conf_dir"), "--network-conf-dir");
    }
}
