//! Layers unpacked alone and stacked by overlayfs show what unpacking them one after the other
//! would have made: compared with a model over random layers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
};

use proptest::prelude::*;
use serde_json::json;
use tar::EntryType;

use crate::{
    layer::{Item, Pack, Tar, build, digest},
    registry::Registry,
    site::Site,
};
use crisp::snapshot::overlay;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Dir { mode: u32, uid: u32, mtime: i64 },
    File { mode: u32, uid: u32, data: Vec<u8> },
}

/// One thing in a layer.
#[derive(Debug, Clone)]
enum Op {
    Dir {
        path: String,
        mode: u32,
        uid: u32,
        mtime: i64,
        replaces: bool,
        whiteout_first: bool,
    },
    File {
        path: String,
        mode: u32,
        uid: u32,
    },
    Hide(String),
    Opaque(String),
}

type Tree = BTreeMap<String, Node>;

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/')
        .map(|(at, _)| path[..at].to_owned())
        .collect()
}

fn remove(tree: &mut Tree, path: &str) {
    tree.remove(path);
    tree.retain(|key, _| !key.starts_with(&format!("{path}/")));
}

/// What sequential unpacking means.
fn model(layers: &[Vec<Op>]) -> Tree {
    let mut tree = Tree::new();
    for (number, ops) in layers.iter().enumerate() {
        for op in ops {
            match op {
                Op::Hide(path) => remove(&mut tree, path),
                Op::Opaque(path) => tree.retain(|key, _| !key.starts_with(&format!("{path}/"))),
                Op::Dir {
                    path,
                    replaces: true,
                    ..
                } => remove(&mut tree, path),
                _ => {}
            }
        }
        for op in ops {
            let (Op::Dir { path, .. } | Op::File { path, .. } | Op::Hide(path)) = op else {
                continue;
            };
            if matches!(op, Op::Hide(_)) && parents(path).is_empty() {
                continue;
            }
            for parent in parents(path) {
                if !matches!(tree.get(&parent), Some(Node::Dir { .. })) {
                    remove(&mut tree, &parent);
                    tree.insert(
                        parent,
                        Node::Dir {
                            mode: 0o755,
                            uid: 0,
                            mtime: 0,
                        },
                    );
                }
            }
            match op {
                Op::Dir {
                    mode, uid, mtime, ..
                } => {
                    if !matches!(tree.get(path), Some(Node::Dir { .. })) {
                        remove(&mut tree, path);
                    }
                    tree.insert(
                        path.clone(),
                        Node::Dir {
                            mode: *mode,
                            uid: *uid,
                            mtime: *mtime,
                        },
                    );
                }
                Op::File { mode, uid, .. } => {
                    remove(&mut tree, path);
                    let data = format!("{path} of {number}").into_bytes();
                    tree.insert(
                        path.clone(),
                        Node::File {
                            mode: *mode,
                            uid: *uid,
                            data,
                        },
                    );
                }
                _ => {}
            }
        }
        for op in ops {
            if let Op::Opaque(path) = op {
                for parent in parents(&format!("{path}/x")) {
                    if !matches!(tree.get(&parent), Some(Node::Dir { .. })) {
                        remove(&mut tree, &parent);
                        tree.insert(
                            parent,
                            Node::Dir {
                                mode: 0o755,
                                uid: 0,
                                mtime: 0,
                            },
                        );
                    }
                }
            }
        }
    }
    tree
}

fn archive(number: usize, ops: &[Op]) -> Vec<u8> {
    let hidden = |path: &str| match path.rsplit_once('/') {
        Some((dir, name)) => format!("{dir}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    let mut tar = Tar::new();
    for op in ops {
        tar = match op {
            Op::Dir {
                path,
                mode,
                uid,
                mtime,
                replaces,
                whiteout_first,
            } => {
                if *replaces && *whiteout_first {
                    tar = tar.file(&hidden(path), b"");
                }
                tar = tar.add(&Item {
                    name: path,
                    mode: *mode,
                    uid: u64::from(*uid),
                    mtime: u64::try_from(*mtime).unwrap(),
                    kind: EntryType::Directory,
                    ..Item::default()
                });
                if *replaces && !*whiteout_first {
                    tar = tar.file(&hidden(path), b"");
                }
                tar
            }
            Op::File { path, mode, uid } => {
                let data = format!("{path} of {number}").into_bytes();
                let uid = u64::from(*uid);
                tar.add(&Item {
                    name: path,
                    mode: *mode,
                    uid,
                    data: &data,
                    ..Item::default()
                })
            }
            Op::Hide(path) => tar.file(&hidden(path), b""),
            Op::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq"), b""),
        };
    }
    tar.done()
}

fn read_tree(root: &Path, prefix: &str, into: &mut Tree) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        // A whiteout in a directory that only one layer has is listed by overlayfs, though it is
        // not there.
        let meta = match fs::symlink_metadata(entry.path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            meta => meta.unwrap(),
        };
        let (mode, uid) = (meta.mode() & 0o7777, meta.uid());
        if meta.is_dir() {
            into.insert(
                path.clone(),
                Node::Dir {
                    mode,
                    uid,
                    mtime: meta.mtime(),
                },
            );
            read_tree(&entry.path(), &path, into);
        } else {
            let data = fs::read(entry.path()).unwrap();
            into.insert(path, Node::File { mode, uid, data });
        }
    }
}

/// Imports the layers as an image and reads what a container would see.
async fn seen(site: &Site, tars: &[Vec<u8>]) -> Tree {
    let image = build(tars, Pack::Plain, &json!({}));
    let names: Vec<String> = (0..tars.len()).map(|i| format!("{i}.tar")).collect();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["golden:x"], "Layers": names}]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut archive = Tar::new()
        .file("manifest.json", &manifest)
        .file("c.json", &image.config);
    for (name, tar) in names.iter().zip(tars) {
        archive = archive.file(name, tar);
    }
    let path = site.dir.path().join("golden.tar");
    File::create(&path)
        .unwrap()
        .write_all(&archive.done())
        .unwrap();
    let imported = site.images.import(&path, None).await.unwrap().remove(0);
    let mount = overlay::mount_detached(&site.images.lowers(&imported), None).unwrap();
    let mut tree = Tree::new();
    let root = format!("/proc/self/fd/{}/.", mount.as_raw_fd());
    read_tree(Path::new(&root), "", &mut tree);
    tree
}

fn layer_strategy() -> impl Strategy<Value = Vec<Op>> {
    let path = prop::sample::select(vec![
        "a", "b", "a/b", "a/c", "b/a", "a/b/c", "a/b/d", "b/a/c", "c",
    ]);
    let attributes = (
        prop::sample::select(vec![0o755, 0o700, 0o1777]),
        0_u32..3,
        1_i64..1_000_000,
    );
    let one = (path, 0..8_u8, attributes, any::<bool>()).prop_map(
        |(path, kind, (mode, uid, mtime), first)| {
            let path = path.to_owned();
            match kind {
                0..=2 => Op::Dir {
                    path,
                    mode,
                    uid,
                    mtime,
                    replaces: kind == 0,
                    whiteout_first: first,
                },
                3..=5 => Op::File {
                    path,
                    mode: mode & 0o777,
                    uid,
                },
                6 => Op::Hide(path),
                _ => Op::Opaque(path),
            }
        },
    );
    prop::collection::vec(one, 1..6).prop_map(consistent)
}

/// Takes out what no tool would write into one layer: two entries of a name, things below a file,
/// whiteouts of what the layer brings.
fn consistent(ops: Vec<Op>) -> Vec<Op> {
    let mut kept: Vec<Op> = Vec::new();
    let mut names: BTreeSet<String> = BTreeSet::new();
    let (mut leaves, mut inner): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    let mut ops = ops;
    // Parents first, as tar files are.
    ops.sort_by_key(|op| match op {
        Op::Dir { path, .. } | Op::File { path, .. } | Op::Hide(path) | Op::Opaque(path) => {
            path.matches('/').count()
        }
    });
    for op in ops {
        let (path, leaf) = match &op {
            Op::Dir { path, .. } | Op::Opaque(path) => (path.clone(), false),
            Op::File { path, .. } | Op::Hide(path) => (path.clone(), true),
        };
        let opaque = matches!(op, Op::Opaque(_));
        let below_leaf = parents(&path).iter().any(|parent| leaves.contains(parent));
        let taken = !opaque && names.contains(&path);
        if below_leaf || taken || leaves.contains(&path) || (leaf && inner.contains(&path)) {
            continue;
        }
        inner.extend(parents(&path));
        if leaf {
            leaves.insert(path.clone());
        } else {
            inner.insert(path.clone());
        }
        if !opaque {
            names.insert(path);
        }
        kept.push(op);
    }
    kept
}

#[test]
fn stacked_layers_show_what_sequential_unpacking_makes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::new();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let layers = prop::collection::vec(layer_strategy(), 1..5);
    runner
        .run(&layers, |layers| {
            let tars: Vec<Vec<u8>> = layers
                .iter()
                .enumerate()
                .map(|(number, ops)| archive(number, ops))
                .collect();
            let found = runtime.block_on(seen(&site, &tars));
            prop_assert_eq!(found, model(&layers));
            Ok(())
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_writes_through_a_link_below() {
    let site = Site::new();
    let base = Tar::new()
        .dir("usr", 0o755)
        .dir("usr/lib", 0o711)
        .file("usr/lib/old", b"old")
        .symlink("lib", "usr/lib")
        .done();
    let top = Tar::new().file("lib/new", b"new").done();
    let image = build(&[base, top], Pack::Gzip, &json!({}));
    let registry = Registry::start().await;
    registry.push("link", "t", &image);
    let pulled = site.pull(&registry.name("link:t")).await.unwrap();
    let mount = overlay::mount_detached(&site.images.lowers(&pulled), None).unwrap();
    let root = format!("/proc/self/fd/{}", mount.as_raw_fd());
    assert_eq!(
        fs::read_link(format!("{root}/lib")).unwrap(),
        Path::new("usr/lib")
    );
    assert_eq!(fs::read(format!("{root}/usr/lib/new")).unwrap(), b"new");
    assert_eq!(fs::read(format!("{root}/usr/lib/old")).unwrap(), b"old");
    assert_eq!(
        fs::metadata(format!("{root}/usr/lib")).unwrap().mode() & 0o7777,
        0o711
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_implied_directories_on_two_bases() {
    let (registry, site) = (Registry::start().await, Site::new());
    let top = Tar::new().file("tmp/x", b"x").done();
    for (tag, mode) in [("one", 0o1777), ("two", 0o700)] {
        let base = Tar::new().dir("tmp", mode).done();
        registry.push(
            "implied",
            tag,
            &build(&[base, top.clone()], Pack::Gzip, &json!({})),
        );
    }
    let (one_name, two_name) = (registry.name("implied:one"), registry.name("implied:two"));
    let (one, two) = tokio::join!(site.pull(&one_name), site.pull(&two_name));
    for (image, mode) in [(one.unwrap(), 0o1777), (two.unwrap(), 0o700)] {
        let mount = overlay::mount_detached(&site.images.lowers(&image), None).unwrap();
        let tmp = format!("/proc/self/fd/{}/tmp", mount.as_raw_fd());
        assert_eq!(fs::metadata(&tmp).unwrap().mode() & 0o7777, mode);
    }
    // The same layer as a base was completed with nothing, which must not be shared.
    registry.push(
        "implied",
        "base",
        &build(std::slice::from_ref(&top), Pack::Gzip, &json!({})),
    );
    let alone = site.pull(&registry.name("implied:base")).await.unwrap();
    registry.push(
        "implied",
        "late",
        &build(
            &[Tar::new().dir("tmp", 0o750).done(), top.clone()],
            Pack::Gzip,
            &json!({}),
        ),
    );
    let late = site.pull(&registry.name("implied:late")).await.unwrap();
    for (image, mode) in [(alone, 0o755), (late, 0o750)] {
        let mount = overlay::mount_detached(&site.images.lowers(&image), None).unwrap();
        let tmp = format!("/proc/self/fd/{}/tmp", mount.as_raw_fd());
        assert_eq!(fs::metadata(&tmp).unwrap().mode() & 0o7777, mode);
    }
    // And the same layer shared by diff id where nothing is implied.
    let shared = Tar::new().file("plain", b"x").done();
    for tag in ["three", "four"] {
        let base = Tar::new().file(tag, b"x").done();
        registry.push(
            "shared",
            tag,
            &build(&[base, shared.clone()], Pack::Gzip, &json!({})),
        );
    }
    let three = site.pull(&registry.name("shared:three")).await.unwrap();
    let four = site.pull(&registry.name("shared:four")).await.unwrap();
    assert_eq!(three.layers()[1], four.layers()[1]);
    assert_eq!(format!("sha256:{}", three.layers()[1]), digest(&shared));
}
