//! Hostile layers: refused with a reason, or applied to something harmless; never anything outside.

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
};

use crisp::snapshot::{
    applier::{ApplierError, Applying},
    apply::{Applied, Failure, FailureKind, Limits},
};
use tar::EntryType;

use crate::{
    layer::{Item, Tar, gzip},
    site::applier,
};

/// Applies a layer by the confined child; `target` must exist.
async fn apply_to(target: &Path, data: &[u8], limits: &Limits) -> Result<Applied, ApplierError> {
    let mut child = Applying::start(&applier(), target, limits).await?;
    for part in data.chunks(65536) {
        if !child.feed(part).await? {
            break;
        }
    }
    child.finish().await
}

fn limits() -> Limits {
    Limits {
        max_bytes: 64 << 20,
        max_seconds: 60,
        max_entries: 100_000,
        ..Limits::default()
    }
}

fn refused(result: Result<Applied, ApplierError>, what: &str) -> Failure {
    match result {
        Err(ApplierError::Failed(failure)) => failure,
        other => panic!("{what}: {other:?}"),
    }
}

fn long(count: usize, part: &str) -> String {
    vec![part; count].join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_with_a_reason_and_nothing_outside_changes() {
    use FailureKind::{Corrupt, Limit, Refused};
    let place = tempfile::tempdir().unwrap();
    let precious = place.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let outside = precious.to_str().unwrap();
    let special = |name, kind, device| Item {
        name,
        kind,
        device,
        ..Item::default()
    };
    let deep = long(2100, "d");
    let wide = "n".repeat(300);
    let big_xattr = vec![b'x'; 70_000];
    let table: Vec<(&str, Vec<u8>, FailureKind, &str)> = vec![
        (
            "I1 upwards",
            Tar::new().file("../x", b"").done(),
            Refused,
            "upwards",
        ),
        (
            "I1 hidden",
            Tar::new().file("a/../../x", b"").done(),
            Refused,
            "upwards",
        ),
        (
            "I4 outside",
            Tar::new().hard_link("l", outside).done(),
            Refused,
            "not in this layer",
        ),
        (
            "I4 upwards",
            Tar::new().hard_link("l", "../precious").done(),
            Refused,
            "outside",
        ),
        (
            "I4 later",
            Tar::new().hard_link("l", "f").file("f", b"").done(),
            Refused,
            "not in this",
        ),
        (
            "I4 dir",
            Tar::new().dir("d", 0o755).hard_link("l", "d").done(),
            Refused,
            "directory",
        ),
        (
            "I5 dots",
            Tar::new().file(".wh...", b"").done(),
            Refused,
            "hides nothing",
        ),
        (
            "I5 empty",
            Tar::new().file("d/.wh.", b"").done(),
            Refused,
            "hides nothing",
        ),
        (
            "I6 whiteout",
            Tar::new()
                .add(&special("w", EntryType::Char, (0, 0)))
                .done(),
            Refused,
            "overlay",
        ),
        (
            "I9 odd type",
            Tar::new()
                .add(&special("x", EntryType::new(b'V'), (0, 0)))
                .done(),
            Refused,
            "type",
        ),
        (
            "I10 long name",
            Tar::new().file(&wide, b"").done(),
            Limit,
            "255",
        ),
        (
            "I10 NUL",
            Tar::new()
                .add(&Item {
                    name: "x",
                    pax: vec![("path", b"a\0b")],
                    ..Item::default()
                })
                .done(),
            Refused,
            "NUL",
        ),
        (
            "I10 xattrs",
            Tar::new()
                .add(&Item {
                    name: "x",
                    pax: vec![("SCHILY.xattr.user.a", &big_xattr)],
                    ..Item::default()
                })
                .done(),
            Limit,
            "64 KiB",
        ),
        (
            "I10 uid -1",
            Tar::new()
                .add(&Item {
                    name: "x",
                    pax: vec![("uid", b"4294967295")],
                    ..Item::default()
                })
                .done(),
            Refused,
            "nobody",
        ),
        (
            "I10 size",
            Tar::new()
                .add(&Item {
                    name: "x",
                    pax: vec![("size", b"99999999999999")],
                    ..Item::default()
                })
                .done(),
            Limit,
            "claims",
        ),
        (
            "I11 below a file",
            Tar::new().file("a", b"").file("a/b", b"").done(),
            Refused,
            "not a directory",
        ),
        (
            "I13 cut",
            {
                let mut data = Tar::new().file("f", &[1; 5000]).unfinished();
                data.truncate(2000);
                data
            },
            Corrupt,
            "ends",
        ),
        (
            "I13 checksum",
            {
                let mut data = Tar::new().file("f", b"").done();
                data[0] ^= 1;
                data
            },
            Corrupt,
            "checksum",
        ),
        (
            "I13 dangling",
            {
                let data = Tar::new()
                    .add(&Item {
                        name: "x",
                        pax: vec![("path", b"y")],
                        ..Item::default()
                    })
                    .unfinished();
                data[..1024].to_vec()
            },
            Corrupt,
            "extension",
        ),
        (
            "I17 depth",
            Tar::new().file(&deep, b"").done(),
            Limit,
            "4096",
        ),
        (
            "root file",
            Tar::new().file("./", b"").symlink("/", "x").done(),
            Refused,
            "root",
        ),
        (
            "link circle",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/f", b"")
                .done(),
            Refused,
            "too many",
        ),
    ];
    for (name, data, kind, part) in table {
        let target = tempfile::tempdir_in(place.path()).unwrap();
        for data in [data.clone(), gzip(&data)] {
            let result = apply_to(target.path(), &data, &limits()).await;
            let failure = refused(result, name);
            assert!(failure.message.contains(part), "{name}: {failure}");
            assert_eq!(failure.kind, kind, "{name}: {failure}");
        }
        assert_eq!(fs::read(&precious).unwrap(), b"precious", "{name}");
        assert_eq!(
            fs::metadata(&precious).unwrap().mode() & 0o7777,
            0o644,
            "{name}"
        );
        drop(target);
        let left: Vec<_> = fs::read_dir(place.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_the_layer_lead_inside_the_layer() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("root");
    fs::create_dir(&target).unwrap();
    let layer = Tar::new()
        .symlink("up", "../../../..")
        .file("up/escaped", b"1")
        .symlink("abs", "/etc")
        .file("abs/passwd", b"2")
        .symlink("usrlib", "usr/lib")
        .file("usrlib/x", b"3")
        .hard_link("again", "usrlib/x")
        .done();
    let applied = apply_to(&target, &layer, &limits()).await.unwrap();
    assert_eq!(fs::read(target.join("escaped")).unwrap(), b"1");
    assert_eq!(fs::read(target.join("etc/passwd")).unwrap(), b"2");
    assert_eq!(fs::read(target.join("usr/lib/x")).unwrap(), b"3");
    assert_eq!(fs::metadata(target.join("again")).unwrap().nlink(), 2);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    let implied: Vec<_> = applied
        .implied
        .iter()
        .map(|p| String::from_utf8_lossy(p).into_owned())
        .collect();
    assert_eq!(implied, ["etc", "usr", "usr/lib"]);
    assert!(applied.landlock || crisp_sys::landlock::version() < 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_a_layer_may_have() {
    let place = tempfile::tempdir().unwrap();
    let capability = b"\x01\0\0\x02\n\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let ustar_long = long(30, "component");
    let newline = "new\nline";
    let layer = Tar::new()
        .add(&Item {
            name: "./",
            mode: 0o711,
            uid: 5,
            gid: 6,
            kind: EntryType::Directory,
            ..Item::default()
        })
        .add(&Item {
            name: "d",
            mode: 0o1777,
            mtime: 77,
            kind: EntryType::Directory,
            ..Item::default()
        })
        .add(&Item {
            name: "d/suid",
            mode: 0o6755,
            uid: 1000,
            gid: 1001,
            data: b"x",
            pax: vec![
                ("SCHILY.xattr.security.capability", capability),
                ("SCHILY.xattr.user.a", b"v\n="),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/x"),
                ("SCHILY.xattr.security.selinux", b"l"),
            ],
            ..Item::default()
        })
        .add(&Item {
            name: "fifo",
            kind: EntryType::Fifo,
            ..Item::default()
        })
        .add(&Item {
            name: "null",
            kind: EntryType::Char,
            device: (1, 3),
            mode: 0o666,
            ..Item::default()
        })
        .add(&Item {
            name: "disk",
            kind: EntryType::Block,
            device: (8, 0),
            ..Item::default()
        })
        .add(&Item {
            name: "late",
            pax: vec![("mtime", b"-5.5")],
            ..Item::default()
        })
        .add(&Item {
            name: "far",
            pax: vec![("mtime", b"1000000000000000000")],
            ..Item::default()
        })
        .file(&ustar_long, b"long")
        .file(newline, b"")
        .file("flip", b"1")
        .dir("flip", 0o700)
        .file("flip/inside", b"")
        .file("flip", b"2")
        .file(".wh..wh.plnk/x", b"")
        .done();
    let applied = apply_to(place.path(), &layer, &limits()).await.unwrap();
    let at = |name: &str| place.path().join(name);
    let root = fs::metadata(place.path()).unwrap();
    assert_eq!(
        (root.mode() & 0o7777, root.uid(), root.gid()),
        (0o711, 5, 6)
    );
    let dir = fs::metadata(at("d")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o1777, 77));
    let suid = fs::metadata(at("d/suid")).unwrap();
    assert_eq!(
        (suid.mode() & 0o7777, suid.uid(), suid.gid()),
        (0o6755, 1000, 1001)
    );
    let found = xattr::get(at("d/suid"), "security.capability")
        .unwrap()
        .unwrap();
    assert_eq!(found, capability);
    assert_eq!(
        xattr::get(at("d/suid"), "user.a").unwrap().unwrap(),
        b"v\n="
    );
    assert_eq!(
        xattr::get(at("d/suid"), "trusted.overlay.redirect").unwrap(),
        None
    );
    assert_eq!(applied.stripped_xattrs, 2);
    assert!(
        fs::symlink_metadata(at("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let null = fs::symlink_metadata(at("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(
        (null.rdev(), null.mode() & 0o777),
        (nix::sys::stat::makedev(1, 3), 0o666)
    );
    assert!(
        fs::symlink_metadata(at("disk"))
            .unwrap()
            .file_type()
            .is_block_device()
    );
    assert_eq!(fs::metadata(at("late")).unwrap().mtime(), -6);
    assert_eq!(fs::read(at(&ustar_long)).unwrap(), b"long");
    assert!(at(newline).exists());
    assert_eq!(fs::read(at("flip")).unwrap(), b"2");
    assert_eq!(
        fs::metadata(at("flip")).unwrap().permissions().mode() & 0o7777,
        0o644
    );
    assert_eq!(applied.skipped_aufs, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_files_keep_their_holes() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = File::create(source.join("sparse")).unwrap();
    use std::os::unix::fs::FileExt;
    for at in (0..30_u64).map(|i| i * 1_000_000) {
        file.write_all_at(format!("at {at}").as_bytes(), at)
            .unwrap();
    }
    file.set_len(40_000_000).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=0.0"],
    ] {
        let output = std::process::Command::new("tar")
            .arg("-cS")
            .args(format)
            .arg("-C")
            .arg(&source)
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success(), "{format:?}");
        let target = tempfile::tempdir().unwrap();
        let applied = apply_to(target.path(), &output.stdout, &limits())
            .await
            .unwrap();
        let made = target.path().join("sparse");
        assert!(
            fs::read(&made).unwrap() == fs::read(source.join("sparse")).unwrap(),
            "{format:?}"
        );
        assert!(
            fs::metadata(&made).unwrap().blocks() * 512 < 2_000_000,
            "{format:?}"
        );
        assert!(applied.bytes < 1_000_000);
    }
    // Claims that do not add up.
    let claims = |map: &'static [u8]| {
        Tar::new()
            .add(&Item {
                name: "s",
                data: b"12345",
                pax: vec![
                    ("GNU.sparse.size", b"9000000000000000000"),
                    ("GNU.sparse.map", map),
                ],
                ..Item::default()
            })
            .done()
    };
    for map in [
        &b"0,5"[..],
        b"0,6",
        b"5,3,4,2",
        b"18446744073709551615,5",
        b"0",
    ] {
        let target = tempfile::tempdir().unwrap();
        let data = claims(map);
        refused(
            apply_to(target.path(), &data, &limits()).await,
            "sparse claim",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_stop_bombs() {
    let cases: Vec<(&str, Vec<u8>, Limits)> = vec![
        (
            "I12 bytes",
            gzip(&Tar::new().file("zero", &vec![0; 3 << 20]).done()),
            Limits {
                max_bytes: 1 << 20,
                ..limits()
            },
        ),
        (
            "I14 entries",
            (0..600)
                .fold(Tar::new(), |tar, i| tar.file(&format!("f{i}"), b""))
                .done(),
            Limits {
                max_entries: 500,
                ..limits()
            },
        ),
        (
            "space",
            Tar::new().file("big", &vec![1; 65 << 20]).done(),
            Limits {
                reserve_bytes: u64::MAX,
                max_bytes: 1 << 30,
                ..limits()
            },
        ),
    ];
    for (name, data, limits) in cases {
        let target = tempfile::tempdir().unwrap();
        let failure = refused(apply_to(target.path(), &data, &limits).await, name);
        assert!(
            matches!(failure.kind, FailureKind::Limit | FailureKind::NoSpace),
            "{name}: {failure}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_dies_is_an_error() {
    let target = tempfile::tempdir().unwrap();
    let mut command = applier();
    command.program = "/bin/false".into();
    let ended = match Applying::start(&command, target.path(), &limits()).await {
        Ok(child) => child.finish().await.map(drop),
        Err(error) => Err(error),
    };
    ended.expect_err("no report");
}
