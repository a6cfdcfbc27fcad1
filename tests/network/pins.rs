//! Pins of network namespaces.

use std::{fs, os::fd::AsFd, os::unix::fs::MetadataExt, path::Path, process::Command};

use crisp::network::netns;

use super::new_namespace;

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn mounts_of(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    table
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(path))
        .count()
}

#[test]
fn a_pin_keeps_the_namespace_and_ip_knows_it() {
    let name = format!("crisp-test-{}", std::process::id());
    let namespace = new_namespace();
    let own = fs::File::from(namespace.try_clone().unwrap())
        .metadata()
        .unwrap()
        .ino();
    let path = netns::pin(namespace.as_fd(), &name).unwrap();
    drop(namespace);
    assert!(netns::is_namespace(&path));
    assert_eq!(inode(&path), own);
    assert!(netns::pins("crisp-test-").unwrap().contains(&name));
    let listed = Command::new("ip")
        .args(["netns", "exec", &name, "ip", "link", "show", "lo"])
        .output();
    // A second pin of the name replaces the first and stacks nothing.
    let other = new_namespace();
    assert_eq!(netns::pin(other.as_fd(), &name).unwrap(), path);
    assert_ne!(inode(&path), own);
    let stacked = mounts_of(&path);
    netns::unpin(&name).unwrap();
    netns::unpin(&name).unwrap();
    assert!(!path.exists());
    assert_eq!((stacked, mounts_of(&path)), (1, 0));
    assert!(listed.unwrap().status.success(), "ip netns exec");
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    let namespace = new_namespace();
    for name in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        ".hidden",
        "a\0b",
        "a b",
        &"x".repeat(300),
    ] {
        assert!(netns::pin(namespace.as_fd(), name).is_err(), "{name:?}");
        assert!(netns::unpin(name).is_err(), "{name:?}");
    }
}

#[test]
fn the_directory_is_made_shared_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("netns");
    let namespace = new_namespace();
    let pinned: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|index| {
                let (at, namespace) = (&at, &namespace);
                scope.spawn(move || netns::pin_in(at, namespace.as_fd(), &format!("n{index}")))
            })
            .collect();
        all.into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let listed = netns::pins_in(&at, "n");
    for index in 0..8 {
        netns::unpin_in(&at, &format!("n{index}")).unwrap();
    }
    let left = mounts_of(&at);
    nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(pinned.into_iter().all(|pin| pin.is_ok()));
    assert_eq!(listed.unwrap().len(), 8);
    assert_eq!(left, 1, "bound onto itself exactly once");
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(4) == at.to_str())
        .unwrap();
    assert!(line.contains(" shared:"), "{line}");
}
