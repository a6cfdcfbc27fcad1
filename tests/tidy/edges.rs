//! Which part of the project may know what.

use super::source::{Source, all};

/// A word, the places that may use it, and why no other may.
struct Fence {
    word: &'static str,
    only: &'static [&'static str],
    why: &'static str,
}

const fn fence(word: &'static str, only: &'static [&'static str], why: &'static str) -> Fence {
    Fence { word, only, why }
}

const FENCES: &[Fence] = &[
    fence(
        "sled",
        &["src/store/"],
        "the engine can be replaced by replacing one directory",
    ),
    fence(
        "oci_client",
        &["src/image/"],
        "registries are an affair of images",
    ),
    fence(
        "reqwest",
        &["src/image/"],
        "registries are an affair of images",
    ),
    fence(
        "tonic",
        &["src/cri/", "src/daemon.rs", "src/cli/demo.rs"],
        "the protocol ends at the edge",
    ),
    fence("prost", &["src/cri/"], "the protocol ends at the edge"),
    fence(
        "cri::proto",
        &["src/cri/", "src/cli/demo.rs"],
        "the domain has types of its own",
    ),
    fence(
        "clap",
        &["src/cli/", "src/config/args.rs", "src/main.rs"],
        "arguments are parsed once",
    ),
    fence(
        "toml",
        &["src/config/", "src/image/hosts.rs"],
        "files of settings are read once",
    ),
    fence(
        "saphyr_parser",
        &["src/yaml.rs"],
        "one place says what a YAML file may hold",
    ),
    fence(
        "tracing_subscriber",
        &["src/observe/"],
        "one place says how logs look",
    ),
    fence(
        "tar",
        &["src/snapshot/apply/", "src/image/archive.rs"],
        "archives are hostile",
    ),
    fence(
        "flate2",
        &["src/snapshot/apply/", "src/stream/spdy/"],
        "compressed streams are hostile",
    ),
    fence(
        "zstd",
        &["src/snapshot/apply/"],
        "compressed streams are hostile",
    ),
    fence(
        "hyper",
        &["src/stream/server.rs"],
        "the upgrade to streams happens in one place",
    ),
    fence(
        "tokio_rustls",
        &["src/stream/tls.rs"],
        "one place says how streams are encrypted",
    ),
    fence(
        "unsafe",
        &["src/sys/"],
        "what must be proved stands in one crate",
    ),
    fence(
        "from_raw_fd",
        &["src/sys/"],
        "a descriptor has one owner from its birth",
    ),
    fence(
        "process::exit",
        &[],
        "main returns its exit code, so that everything is dropped",
    ),
    fence("set_var", &[], "the environment belongs to all threads"),
];

/// A place and the words it may not use.
struct Wall {
    /// A directory, with the files of it that may after all.
    place: &'static str,
    except: &'static [&'static str],
    never: &'static [&'static str],
    why: &'static str,
}

const fn wall(place: &'static str, never: &'static [&'static str], why: &'static str) -> Wall {
    Wall {
        place,
        except: &[],
        never,
        why,
    }
}

const WALLS: &[Wall] = &[
    Wall {
        place: "src/bundle/",
        // Looks users up in the rootfs, through a descriptor.
        except: &["src/bundle/user.rs"],
        never: &[
            "tokio",
            "std::fs",
            "crisp_sys",
            "crate::cri",
            "crate::store",
            "crate::monitor",
        ],
        why: "the generator of runtime specs is pure",
    },
    wall(
        "src/config/",
        &["tokio", "crate::cri", "crate::sandbox"],
        "settings know no users",
    ),
    wall(
        "src/store/",
        &[
            "crate::cri",
            "crate::sandbox",
            "crate::container",
            "crate::image",
            "crate::network",
        ],
        "records are defined by those who keep them",
    ),
    wall(
        "src/sandbox/",
        &["crate::cri"],
        "the domain does not know the protocol",
    ),
    wall(
        "src/container/",
        &["crate::cri"],
        "the domain does not know the protocol",
    ),
    wall(
        "src/image/",
        &["crate::cri", "crate::sandbox", "crate::container"],
        "images know no users",
    ),
    wall(
        "src/snapshot/",
        &["crate::cri", "crate::sandbox", "crate::container"],
        "layers know no users",
    ),
    wall(
        "src/stream/",
        &["crate::cri"],
        "streams know no protocol but the client's",
    ),
    wall(
        "src/network/",
        &["crate::cri", "crate::sandbox", "crate::container"],
        "networks know no users",
    ),
    wall(
        "src/stats/",
        &["crate::cri", "crate::monitor"],
        "usage is read from the kernel, by nobody's leave",
    ),
    wall(
        "src/cdi/",
        &[
            "crate::cri",
            "crate::sandbox",
            "crate::container",
            "crate::store",
        ],
        "devices know no users",
    ),
    wall(
        "src/monitor/",
        &["crate::cri"],
        "monitors know no protocol but their own",
    ),
    wall(
        "src/cri/",
        &["crate::store", "crisp_sys"],
        "the edge has no policy and no kernel",
    ),
    wall(
        "src/oci/",
        &[
            "tokio",
            "tracing_subscriber",
            "thread::spawn",
            "thread::Builder",
        ],
        "single-threaded, blocking",
    ),
    wall(
        "src/pause/",
        &["tokio", "thread::spawn", "thread::Builder"],
        "single-threaded, tiny",
    ),
    wall(
        "conmon-rs/src/",
        &["tokio", "thread::spawn", "thread::Builder", "serde_json"],
        "single-threaded, tiny",
    ),
];

/// The walls around a file.
fn walls(path: &str) -> impl Iterator<Item = &'static Wall> {
    WALLS
        .iter()
        .filter(move |w| path.starts_with(w.place) && !w.except.contains(&path))
}

fn report(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

fn production() -> impl Iterator<Item = Source> {
    all()
        .into_iter()
        .filter(|s| !s.is_test() && s.path != "build.rs")
}

#[test]
fn each_word_stays_behind_its_fence() {
    let mut problems = Vec::new();
    for source in production() {
        for fence in FENCES {
            if fence
                .only
                .iter()
                .any(|place| source.path.starts_with(place))
            {
                continue;
            }
            for line in source.lines_with(fence.word) {
                problems.push(format!(
                    "{}:{line}: `{}` belongs to {:?}: {}",
                    source.path, fence.word, fence.only, fence.why
                ));
            }
        }
    }
    report(problems);
}

#[test]
fn no_place_uses_what_it_must_not_know() {
    let mut problems = Vec::new();
    for source in production() {
        for wall in walls(&source.path) {
            // Tests at the end of a file may do what they like.
            let tests = source
                .code
                .find("#[cfg(test)]\nmod tests {")
                .unwrap_or(source.code.len());
            let last = source.code[..tests].lines().count();
            for word in wall.never {
                for line in source.lines_with(word).into_iter().filter(|l| *l <= last) {
                    problems.push(format!(
                        "{}:{line}: `{word}` is not for {}: {}",
                        source.path, wall.place, wall.why
                    ));
                }
            }
        }
    }
    report(problems);
}

#[test]
fn the_places_named_above_exist() {
    let sources = all();
    let places = FENCES
        .iter()
        .flat_map(|f| f.only)
        .chain(WALLS.iter().map(|w| &w.place));
    for place in places {
        assert!(
            sources.iter().any(|s| s.path.starts_with(place)),
            "{place} is gone"
        );
    }
}

#[test]
fn unsafe_is_forbidden_by_every_crate_but_one() {
    for source in all() {
        // A crate's root says so for the whole crate.
        let is_root = source.path.ends_with("/lib.rs")
            || (source.path.ends_with("/main.rs") && !source.path.starts_with("tests/"))
            || source.path.contains("/src/bin/");
        if is_root && !source.path.starts_with("src/sys/") {
            assert!(
                source.text.contains("#![forbid(unsafe_code)]"),
                "{} does not forbid unsafe code",
                source.path
            );
        }
    }
}
