//! What is linked into what, and what is linked into nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{cargo, root};

/// Crates by name that end up in the binary of a package.
fn linked(package: &str) -> BTreeSet<String> {
    let tree = cargo(&[
        "tree",
        "--offline",
        "--locked",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--package",
        package,
    ]);
    // Procedural macros run in the compiler, and so does what only they need: those four.
    let compiler_only = [
        "proc-macro2",
        "quote",
        "syn",
        "unicode-ident",
        "thiserror-impl",
    ];
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty() && !compiler_only.contains(name))
        .map(str::to_owned)
        .collect()
}

/// What stays beside containers is tiny: everything linked into it is named here.
const BESIDE_CONTAINERS: &[&str] = &["crisp-oci", "crisp-sys", "libc", "thiserror"];

#[test]
fn the_monitor_and_the_pause_link_nothing_else() {
    for package in ["conmon-rs", "crisp-pause"] {
        let linked = linked(package);
        assert!(linked.contains(package), "{package}: {linked:?}");
        let allowed = |name: &String| name == package || BESIDE_CONTAINERS.contains(&name.as_str());
        let extra: Vec<&String> = linked.iter().filter(|name| !allowed(name)).collect();
        assert!(extra.is_empty(), "{package} links {extra:?}");
    }
}

#[test]
fn the_oci_runtime_links_no_async_runtime_and_no_store() {
    let linked = linked("crisp-oci");
    for name in ["tokio", "tonic", "sled", "hyper", "tracing-subscriber"] {
        assert!(!linked.contains(name), "crisp-oci links {name}");
    }
}

#[test]
fn crates_depend_downwards_only() {
    // crisp-sys <- crisp-oci <- conmon-rs, crisp-pause <- crisp
    for (package, never) in [
        (
            "crisp-sys",
            &["crisp-oci", "conmon-rs", "crisp-pause", "crisp"][..],
        ),
        ("crisp-oci", &["conmon-rs", "crisp-pause", "crisp"]),
        ("crisp-pause", &["conmon-rs", "crisp"]),
        ("conmon-rs", &["crisp-pause", "crisp"]),
    ] {
        let linked = linked(package);
        for name in never {
            assert!(!linked.contains(*name), "{package} depends on {name}");
        }
    }
}

/// Package name to the names of all packages that depend on it, from the lock file.
fn dependents() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let lock: toml::Table = text.parse().unwrap();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap().to_owned();
        let needs = package.get("dependencies").and_then(|d| d.as_array());
        for need in needs.into_iter().flatten() {
            let need = need.as_str().unwrap().split(' ').next().unwrap();
            found
                .entry(need.to_owned())
                .or_default()
                .insert(name.clone());
        }
        found.entry(name).or_default();
    }
    found
}

fn deny() -> toml::Table {
    std::fs::read_to_string(root().join("deny.toml"))
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn no_banned_crate_is_in_the_lock_file() {
    let (deny, dependents) = (deny(), dependents());
    let bans = deny["bans"]["deny"].as_array().unwrap();
    assert!(bans.len() > 5, "the list is read");
    for ban in bans {
        let name = ban["crate"].as_str().unwrap();
        let Some(users) = dependents.get(name) else {
            continue;
        };
        let wrappers: Vec<&str> = ban
            .get("wrappers")
            .and_then(|w| w.as_array())
            .into_iter()
            .flatten()
            .map(|w| w.as_str().unwrap())
            .collect();
        let bad: Vec<&String> = users
            .iter()
            .filter(|u| !wrappers.contains(&u.as_str()))
            .collect();
        let reason = ban["reason"].as_str().unwrap();
        assert!(
            !wrappers.is_empty() && bad.is_empty(),
            "{name} is banned ({reason}) but used by {users:?}"
        );
    }
}

#[test]
fn the_engine_is_pinned_and_the_archive_parser_is_new_enough() {
    let text = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let lock: toml::Table = text.parse().unwrap();
    let version = |name: &str| {
        let packages = lock["package"].as_array().unwrap();
        let package = packages
            .iter()
            .find(|p| p["name"].as_str() == Some(name))
            .unwrap();
        package["version"].as_str().unwrap().to_owned()
    };
    assert_eq!(version("sled"), "0.34.7");
    let tar = version("tar");
    let parts: Vec<u32> = tar.split('.').map(|p| p.parse().unwrap()).collect();
    assert!(parts >= vec![0, 4, 46], "tar {tar} has known holes");
}

#[test]
fn cargo_deny_agrees_where_it_is_installed() {
    let there = std::process::Command::new(env!("CARGO"))
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        println!("no cargo-deny here: licences are not checked, bans are (see above)");
        return;
    }
    cargo(&["deny", "--offline", "check", "licenses", "bans", "sources"]);
}
