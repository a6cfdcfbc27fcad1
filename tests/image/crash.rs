//! Daemons that die, stores that are lost, layers that rot.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crisp::{
    image::{Images, PullRequest},
    store::Store,
};
use serde_json::json;

use crate::{
    layer::{Pack, Tar, build, digest},
    registry::{Fault, Registry},
    site::{Site, settings},
};

/// The process that is killed: pulls into the directory the environment names.
#[expect(clippy::exit, reason = "a child process of a test ends here")]
pub fn puller() {
    let root = std::env::var("CRISP_TEST_ROOT").unwrap();
    let reference = std::env::var("CRISP_TEST_REFERENCE").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let images = open(Path::new(&root));
        let request = PullRequest {
            reference,
            ..PullRequest::default()
        };
        images.1.pull(request).await.unwrap();
    });
    std::process::exit(0);
}

/// Opening blocks: not for a thread that drives tasks.
fn try_open(root: &Path) -> Option<(Store, Images)> {
    tokio::task::block_in_place(|| {
        let (store, report) = Store::open(root.join("store")).ok()?;
        let images = Images::open(settings(root), &store, report.must_rebuild()).unwrap();
        Some((store, images))
    })
}

fn open(root: &Path) -> (Store, Images) {
    try_open(root).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_pull() {
    let registry = Registry::start().await;
    let layers: Vec<Vec<u8>> = (0..3_u8)
        .map(|i| Tar::new().file(&format!("f{i}"), &vec![i; 200_000]).done())
        .collect();
    let image = build(&layers, Pack::Plain, &json!({}));
    registry.push("app", "t", &image);
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4_usize {
        registry.heal();
        // Each time another layer is slow, so that others are staged or already in their places.
        let slow = digest(&image.blobs[round % 3]);
        registry.always(&slow, Fault::Slow(Duration::from_millis(10)));
        let before = registry.seen(&slow).len();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_entry", "--exact", "--nocapture", "--test-threads=1"])
            .env("CRISP_TEST_CHILD", "pull")
            .env("CRISP_TEST_ROOT", dir.path())
            .env("CRISP_TEST_REFERENCE", registry.name("app:t"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..1000 {
            if registry.seen(&slow).len() > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(50 * round as u64)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let (_store, images) = open(dir.path());
        assert!(images.list().is_empty(), "nothing half-made is visible");
    }
    registry.heal();
    let (_store, images) = open(dir.path());
    let request = PullRequest {
        reference: registry.name("app:t"),
        ..PullRequest::default()
    };
    let pulled = images.pull(request).await.unwrap();
    assert_eq!(images.lowers(&pulled).len(), 3);
    images.start_collecting();
    for _ in 0..400 {
        if fs::read_dir(dir.path().join("staging")).unwrap().count() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("staging is not cleared");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_store_is_rebuilt_from_the_files() {
    let registry = Registry::start().await;
    let image = build(
        &[Tar::new().file("f", b"x").done()],
        Pack::Gzip,
        &json!({"User": "7"}),
    );
    registry.push("app", "t", &image);
    let dir = tempfile::tempdir().unwrap();
    let request = PullRequest {
        reference: registry.name("app:t"),
        ..PullRequest::default()
    };
    let (store, images) = open(dir.path());
    let pulled = images.pull(request).await.unwrap();
    drop((images, store));
    for lost in [false, true] {
        if lost {
            fs::remove_dir_all(dir.path().join("store")).unwrap();
        }
        let (store, images) = open_again(dir.path()).await;
        assert_eq!(images.list(), std::slice::from_ref(&pulled), "lost: {lost}");
        let pin = images.pin(&pulled.id).unwrap();
        // Removed while a container uses it: the layers stay until the pin is gone.
        if lost {
            images.start_collecting();
            images.remove(&pulled.id).await.unwrap();
            assert!(images.list().is_empty());
            let keys = pin.keys().to_vec();
            assert!(images.pin_layers(&keys).is_some());
            drop(pin);
            images.start_collecting();
            assert!(images.pin_layers(&keys).is_none());
        } else {
            drop(pin);
        }
        drop((images, store));
    }
    let (_store, images) = open_again(dir.path()).await;
    assert!(images.list().is_empty(), "removed for good");
}

/// Tasks of the last one may hold the store a moment longer.
async fn open_again(root: &Path) -> (Store, Images) {
    for _ in 0..200 {
        if let Some(opened) = try_open(root) {
            return opened;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the store stays locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_layer_is_fetched_again() {
    let (registry, site) = (Registry::start().await, Site::new());
    let image = build(
        &[Tar::new().file("f", b"precious").done()],
        Pack::Gzip,
        &json!({}),
    );
    registry.push("app", "t", &image);
    let pulled = site.pull(&registry.name("app:t")).await.unwrap();
    assert_eq!(site.images.verify().unwrap(), 0);
    // What a power cut leaves of files that were not synced.
    fs::write(site.images.lowers(&pulled)[0].join("f"), "").unwrap();
    assert_eq!(site.images.verify().unwrap(), 1);
    assert!(site.images.status(&pulled.id).is_none());
    let again = site.pull(&registry.name("app:t")).await.unwrap();
    assert_eq!(again.id, pulled.id);
    assert_eq!(site.read(&again, "f"), b"precious");
}
