//! Overlay mounts that no mount table shows.

use std::{fs, os::fd::AsRawFd, path::PathBuf};

use crisp::snapshot::overlay::{self, MAX_LOWERS, Upper};
use serde_json::json;

use crate::{
    layer::{Pack, Tar, build},
    registry::Registry,
    site::Site,
};

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_layer_one_layer_the_same_layer_twice() {
    let (registry, site) = (Registry::start().await, Site::new());
    let layer = Tar::new().dir("./", 0o711).file("f", b"x").done();
    let empty = Tar::new().done();
    for (tag, tars) in [
        ("none", vec![]),
        ("one", vec![layer.clone()]),
        ("twice", vec![layer.clone(), empty, layer]),
    ] {
        registry.push("app", tag, &build(&tars, Pack::Gzip, &json!({})));
        let image = site
            .pull(&registry.name(&format!("app:{tag}")))
            .await
            .unwrap();
        let dir = site.dir.path().join(format!("upper-{tag}"));
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        overlay::make_upper(&upper, &work, site.images.root_attributes(&image)).unwrap();
        let half = Upper {
            upper: &upper,
            work: &work,
            volatile: true,
        };
        let mount = overlay::mount_detached(&site.images.lowers(&image), Some(half)).unwrap();
        let root = format!("/proc/self/fd/{}", mount.as_raw_fd());
        fs::write(format!("{root}/written"), "w").unwrap();
        assert_eq!(fs::read_to_string(upper.join("written")).unwrap(), "w");
        assert_eq!(fs::read(format!("{root}/f")).is_ok(), tag != "none");
        if tag != "none" {
            use std::os::unix::fs::MetadataExt;
            assert_eq!(
                fs::metadata(format!("{root}/.")).unwrap().mode() & 0o7777,
                0o711
            );
        }
        drop(mount);
        // A volatile upper directory is mounted again only after its mark is gone.
        let lowers = site.images.lowers(&image);
        overlay::mount_detached(&lowers, Some(half)).expect_err("the mark is there");
        overlay::clear_volatile(&work).unwrap();
        overlay::mount_detached(&lowers, Some(half)).unwrap();
    }
}

#[test]
fn five_hundred_layers_and_long_names() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(200));
    let lowers: Vec<PathBuf> = (0..=MAX_LOWERS)
        .map(|index| {
            let lower = long.join(format!("{:0>60}", index));
            fs::create_dir_all(&lower).unwrap();
            fs::write(lower.join(format!("f{index}")), "").unwrap();
            lower
        })
        .collect();
    let before = mounts();
    let mount = overlay::mount_detached(&lowers[..MAX_LOWERS], None).unwrap();
    let root = format!("/proc/self/fd/{}/.", mount.as_raw_fd());
    assert_eq!(fs::read_dir(&root).unwrap().count(), MAX_LOWERS);
    fs::write(format!("{root}/x"), "").expect_err("read-only");
    assert!(mounts() <= before + 1, "nothing is attached");
    overlay::mount_detached(&lowers, None).expect_err("one too many");
}
