//! Against the kernel of the machine, as root, in groups of their own; and the order of writes on
//! v2 against a directory tree that stands in for it, since controllers may be bound to v1 here.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// A group below `/crisp-test-..` that goes away with its processes.
struct Scratch {
    group: Cgroup,
    hierarchy: Hierarchy,
    children: Vec<Child>,
}

impl Scratch {
    fn new(resources: &Resources, rules: &[DeviceRule]) -> Self {
        let hierarchy = Hierarchy::probe().unwrap();
        let group = Cgroup::create(&hierarchy, &unique(), resources, rules).unwrap();
        Self {
            group,
            hierarchy,
            children: Vec::new(),
        }
    }

    /// Runs a shell script in the group. The shell moves itself: `tasks` on v1, `cgroup.procs` in
    /// the unified tree.
    fn run(&mut self, script: &str) -> &mut Child {
        let mut text = String::new();
        for dir in &self.group.dirs {
            let file = if dir.kind == TreeKind::Unified {
                "cgroup.procs"
            } else {
                "tasks"
            };
            text += &format!("echo 0 > {}/{file} || exit 99\n", dir.path.display());
        }
        let child = Command::new("sh")
            .args(["-c", &format!("{text}{script}")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        self.children.push(child);
        self.children.last_mut().unwrap()
    }

    fn read(&self, controller: &str, file: &str) -> String {
        let dir = self.group.controller(controller).unwrap();
        read(&dir.join(file)).unwrap().trim().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.group.thaw();
        let _ = self.group.kill();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let removed = self.group.remove();
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

fn unique() -> String {
    let mut random = [0; 6];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut random)
        .unwrap();
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("/crisp-test-{}-{random}/leaf", std::process::id())
}

/// Waits for something that is about to happen.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn limits() -> Resources {
    Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory_limit: Some(64 << 20),
        memory_swap: Some(64 << 20),
        pids_limit: Some(100),
        ..Resources::default()
    }
}

fn is_v1(group: &Cgroup) -> bool {
    !group.v2
}

#[test]
fn limits_are_read_back_from_the_kernel() {
    let scratch = Scratch::new(&limits(), &[DeviceRule::ALLOW_ALL]);
    assert_eq!(scratch.read("pids", "pids.max"), "100");
    if is_v1(&scratch.group) {
        assert_eq!(scratch.read("cpu", "cpu.shares"), "512");
        assert_eq!(scratch.read("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(scratch.read("memory", "memory.limit_in_bytes"), "67108864");
        assert!(!scratch.read("cpuset", "cpuset.cpus").is_empty());
        assert!(!scratch.read("cpuset", "cpuset.mems").is_empty());
    } else {
        assert_eq!(scratch.read("cpu", "cpu.max"), "50000 100000");
        assert_eq!(scratch.read("memory", "memory.max"), "67108864");
    }
}

#[test]
fn memory_grows_and_shrinks_past_the_earlier_limits() {
    let scratch = Scratch::new(&limits(), &[DeviceRule::ALLOW_ALL]);
    for bytes in [512 << 20, 16 << 20, 128 << 20] {
        let both = Some(bytes);
        let resources = Resources {
            memory_limit: both,
            memory_swap: both,
            ..Resources::default()
        };
        let _ = scratch.group.update(&resources).unwrap();
        assert_eq!(
            scratch.group.stats().unwrap().memory_limit,
            u64::try_from(bytes).ok()
        );
    }
    // Without naming the sum, past it.
    let resources = Resources {
        memory_limit: Some(1 << 30),
        ..Resources::default()
    };
    let _ = scratch.group.update(&resources).unwrap();
    assert_eq!(scratch.group.stats().unwrap().memory_limit, Some(1 << 30));
    assert_eq!(scratch.read("pids", "pids.max"), "100");
}

#[test]
fn a_failed_update_leaves_everything_as_it_was() {
    let scratch = Scratch::new(&limits(), &[DeviceRule::ALLOW_ALL]);
    let bad = Resources {
        cpu_shares: Some(2048),
        memory_limit: Some(128 << 20),
        memory_swap: Some(128 << 20),
        pids_limit: Some(7),
        // No such device: refused by the kernel after all of the above was set.
        blkio_throttle: vec![BlkioThrottle {
            major: 4095,
            minor: 99,
            read_bps: Some(1),
            ..BlkioThrottle::default()
        }],
        ..Resources::default()
    };
    let error = scratch.group.update(&bad).unwrap_err();
    assert!(matches!(error, CgroupError::Set { .. }), "{error:?}");
    assert_eq!(scratch.read("pids", "pids.max"), "100");
    assert_eq!(scratch.group.stats().unwrap().memory_limit, Some(64 << 20));
    if is_v1(&scratch.group) {
        assert_eq!(scratch.read("cpu", "cpu.shares"), "512");
    }
}

#[test]
fn a_failed_create_leaves_nothing() {
    let hierarchy = Hierarchy::probe().unwrap();
    let path = unique();
    let bad = Resources {
        cpuset_cpus: Some("9999".into()),
        ..Resources::default()
    };
    assert!(Cgroup::create(&hierarchy, &path, &bad, &[]).is_err());
    let group = Cgroup::observe(&hierarchy, &path).unwrap();
    assert!(
        group
            .dirs
            .iter()
            .all(|dir| !dir.path.parent().unwrap().exists())
    );
}

#[test]
fn only_what_was_made_is_removed() {
    let hierarchy = Hierarchy::probe().unwrap();
    let path = unique();
    let parent = path.strip_suffix("/leaf").unwrap();
    let all = [DeviceRule::ALLOW_ALL];
    let above = Cgroup::create(&hierarchy, parent, &Resources::default(), &all).unwrap();
    let leaf = Cgroup::create(&hierarchy, &path, &Resources::default(), &all).unwrap();
    leaf.remove().unwrap();
    assert!(leaf.dirs.iter().all(|dir| !dir.path.exists()));
    assert!(above.dirs.iter().all(|dir| dir.path.exists()));
    let again = Cgroup::create(&hierarchy, parent, &Resources::default(), &all).unwrap();
    again.remove().unwrap();
    assert!(above.dirs.iter().all(|dir| dir.path.exists()));
    above.remove().unwrap();
    above.remove().unwrap();
    assert!(above.dirs.iter().all(|dir| !dir.path.exists()));
}

#[test]
fn an_occupied_group_is_refused() {
    let mut scratch = Scratch::new(&Resources::default(), &[DeviceRule::ALLOW_ALL]);
    scratch.run("exec sleep 1000");
    eventually("joining", || scratch.group.populated().unwrap());
    let (hierarchy, path) = (scratch.hierarchy.clone(), scratch.group.path().to_owned());
    eventually("joining every tree", || {
        let made = Cgroup::create(&hierarchy, &path, &Resources::default(), &[]);
        matches!(made, Err(CgroupError::Occupied { .. }))
    });
}

#[test]
fn prepared_descriptors_join_every_tree() {
    let scratch = Scratch::new(&Resources::default(), &[DeviceRule::ALLOW_ALL]);
    let opened = Cgroup::open(&scratch.hierarchy, scratch.group.path()).unwrap();
    let seen = Cgroup::observe(&scratch.hierarchy, scratch.group.path()).unwrap();
    assert_eq!(seen.join_self(), Err(JoinError::NotPrepared));
    // A process moves as a whole in the unified tree, so a thread of the test cannot go there; in
    // the v1 trees one can, and comes back.
    if is_v1(&scratch.group) {
        std::thread::scope(|scope| {
            let joined = scope.spawn(|| {
                opened.join_self_v1().unwrap();
                let text = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
                text.lines()
                    .filter(|line| line.contains(scratch.group.path()))
                    .count()
            });
            let trees = scratch
                .group
                .dirs
                .iter()
                .filter(|dir| dir.kind != TreeKind::Unified);
            assert_eq!(joined.join().unwrap(), trees.count());
        });
    }
    assert!(scratch.group.unified().is_none() || opened.unified_fd().is_some());
}

/// In a process of its own (this test again, told so by its environment), since joining the
/// unified tree moves a process as a whole.
#[test]
fn join_self_is_in_every_tree_afterwards() {
    const TOLD: &str = "CRISP_TEST_JOIN";
    let hierarchy = Hierarchy::probe().unwrap();
    if let Some(path) = std::env::var_os(TOLD) {
        let path = path.to_str().unwrap();
        let group = Cgroup::open(&hierarchy, path).unwrap();
        let start = Instant::now();
        group.join_self_v1().unwrap();
        let v1 = start.elapsed();
        group.join_self().unwrap();
        println!("v1 trees in {v1:?}, all in {:?}", start.elapsed());
        let text = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        let inside = text.lines().filter(|line| line.ends_with(path)).count();
        assert_eq!(inside, group.dirs.len(), "{text}");
        return;
    }
    let mut scratch = Scratch::new(&Resources::default(), &[DeviceRule::ALLOW_ALL]);
    let name = "cgroup::tests::join_self_is_in_every_tree_afterwards";
    let child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(TOLD, scratch.group.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    scratch.children.push(child);
    let child = &mut scratch.children[0];
    let mut text = String::new();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    println!("{text}");
}

#[test]
fn the_group_of_a_process_is_where_it_moved() {
    let mut scratch = Scratch::new(&Resources::default(), &[DeviceRule::ALLOW_ALL]);
    for dir in &scratch.group.dirs {
        let inner = dir.path.join("inner");
        fs::create_dir(&inner).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(text) = read(&dir.path.join(file)) {
                let _ = write(&inner.join(file), text.trim());
            }
        }
    }
    let script: Vec<_> = scratch
        .group
        .dirs
        .iter()
        .map(|dir| format!("echo $$ > {}/inner/cgroup.procs", dir.path.display()))
        .collect();
    let child = scratch.run(&format!(
        "{} && echo && exec sleep 1000",
        script.join(" && ")
    ));
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let found = Cgroup::open_of(&scratch.hierarchy, pid).unwrap();
    assert_eq!(found.path(), format!("{}/inner", scratch.group.path()));
    assert_eq!(found.pids().unwrap(), [pid]);
    found.remove().unwrap();
    assert!(found.populated().unwrap());
    assert_eq!(scratch.group.pids().unwrap(), [pid]);
}

#[test]
fn kill_ends_a_tree_that_keeps_forking() {
    let mut scratch = Scratch::new(&limits(), &[DeviceRule::ALLOW_ALL]);
    scratch.run("loop() { while :; do (sleep 0.01 & loop) 2>/dev/null; done; }; loop 2>/dev/null");
    eventually("forking", || scratch.group.pids().unwrap().len() > 20);
    scratch.group.kill().unwrap();
    let child = scratch.children.last_mut().unwrap();
    child.wait().unwrap();
    eventually("the end of all", || !scratch.group.populated().unwrap());
    scratch.group.kill().unwrap();
}

#[test]
fn kill_without_the_unified_tree_ends_a_tree_that_keeps_forking() {
    let mut scratch = Scratch::new(&limits(), &[DeviceRule::ALLOW_ALL]);
    scratch.run("loop() { while :; do (sleep 0.01 & loop) 2>/dev/null; done; }; loop 2>/dev/null");
    eventually("forking", || scratch.group.pids().unwrap().len() > 20);
    let Hierarchy::V1 { controllers, .. } = scratch.hierarchy.clone() else {
        return;
    };
    let v1 = Hierarchy::V1 {
        controllers,
        unified: None,
    };
    let group = Cgroup::observe(&v1, scratch.group.path()).unwrap();
    assert!(group.populated().unwrap());
    group.kill().unwrap();
    eventually("the end of all", || !group.populated().unwrap());
    assert_eq!(scratch.read("freezer", "freezer.state"), "THAWED");
}

#[test]
fn frozen_processes_are_killed_too() {
    let mut scratch = Scratch::new(&Resources::default(), &[DeviceRule::ALLOW_ALL]);
    scratch.run("exec sleep 1000");
    eventually("joining", || !scratch.group.pids().unwrap().is_empty());
    eventually("exec", || scratch.group.populated().unwrap());
    scratch.group.freeze().unwrap();
    if is_v1(&scratch.group) {
        // As a container with its own freezer directory might.
        let dir = scratch.group.controller("freezer").unwrap();
        write(&dir.join("freezer.state"), "FROZEN").unwrap();
    }
    scratch.group.kill().unwrap();
    scratch.children[0].wait().unwrap();
    eventually("the end", || !scratch.group.populated().unwrap());
}

#[test]
fn freezing_stops_and_thawing_goes_on() {
    let mut scratch = Scratch::new(&Resources::default(), &[DeviceRule::ALLOW_ALL]);
    scratch.run("while :; do :; done");
    let usage = |scratch: &Scratch| scratch.group.stats().unwrap().cpu_usage_ns.unwrap();
    eventually("work", || usage(&scratch) > 1_000_000);
    scratch.group.freeze().unwrap();
    // A frozen process may still be on its way off the processor, which is counted when it left.
    let mut before = usage(&scratch);
    eventually("rest", || {
        std::thread::sleep(Duration::from_millis(30));
        let now = usage(&scratch);
        std::mem::replace(&mut before, now) == now
    });
    scratch.group.thaw().unwrap();
    eventually("work", || usage(&scratch) > before);
}

#[test]
fn a_memory_hog_is_counted_once_and_told() {
    let resources = Resources {
        memory_limit: Some(16 << 20),
        memory_swap: Some(16 << 20),
        ..Resources::default()
    };
    let mut scratch = Scratch::new(&resources, &[DeviceRule::ALLOW_ALL]);
    let mut watch = scratch.group.oom_watch().unwrap();
    assert_eq!(scratch.group.oom_kill_count().unwrap(), 0);
    // One process, so one kill: tail keeps what it reads without newline.
    let status = scratch.run("exec tail /dev/zero").wait().unwrap();
    assert!(!status.success());
    assert_eq!(scratch.group.oom_kill_count().unwrap(), 1);
    let events = match watch.readiness() {
        Readiness::Readable => 1,
        Readiness::Priority => 2,
    };
    let wait = |limit| crisp_sys::event::poll(watch.as_fd(), events, Some(limit)).unwrap();
    assert!(wait(Duration::from_secs(20)));
    watch.acknowledge();
    let wait = |limit| crisp_sys::event::poll(watch.as_fd(), events, Some(limit)).unwrap();
    assert!(!wait(Duration::ZERO));
}

#[test]
fn stats_tell_what_is_used() {
    let mut scratch = Scratch::new(&limits(), &[DeviceRule::ALLOW_ALL]);
    let child =
        scratch.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo; exec sleep 1000");
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    let stats = scratch.group.stats().unwrap();
    assert!(stats.cpu_usage_ns > Some(1_000_000), "{stats:?}");
    assert!(stats.memory_usage > Some(0), "{stats:?}");
    assert!(stats.memory_working_set <= stats.memory_usage);
    // The kernel adds faults up in batches, so a young group may have none yet.
    assert!(
        stats.page_faults.is_some() && stats.major_page_faults.is_some(),
        "{stats:?}"
    );
    assert_eq!((stats.pids, stats.pids_limit), (Some(1), Some(100)));
    assert_eq!(stats.memory_limit, Some(64 << 20));
    let gone = Cgroup::observe(&scratch.hierarchy, &unique()).unwrap();
    let Err(CgroupError::Read { source, .. }) = gone.stats() else {
        panic!("stats of nothing")
    };
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
    assert!(!gone.populated().unwrap() && gone.pids().unwrap().is_empty());
    gone.kill().unwrap();
    gone.remove().unwrap();
}

fn null_only() -> [DeviceRule; 1] {
    [DeviceRule {
        allow: true,
        kind: DeviceKind::Char,
        major: Some(1),
        minor: Some(3),
        access: DeviceRule::READ | DeviceRule::WRITE,
    }]
}

const OPENS: &str = "true < /dev/null && echo null; true < /dev/zero && echo zero";

#[test]
fn devices_no_rule_names_are_denied() {
    let mut scratch = Scratch::new(&Resources::default(), &null_only());
    let output = |scratch: &mut Scratch| {
        let mut text = String::new();
        let child = scratch.run(&format!("exec 2>&1; {OPENS}"));
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    };
    let text = output(&mut scratch);
    assert!(
        text.contains("null\n") && !text.contains("zero\n"),
        "{text}"
    );
    scratch.group.set_devices(&[DeviceRule::ALLOW_ALL]).unwrap();
    let text = output(&mut scratch);
    assert!(text.contains("null\n") && text.contains("zero\n"), "{text}");
    scratch.group.set_devices(&[]).unwrap();
    let text = output(&mut scratch);
    assert!(
        !text.contains("null\n") && !text.contains("zero\n"),
        "{text}"
    );
}

/// The programs of v2 work on the unified tree of a hybrid host too, so here is the real thing.
#[test]
fn device_programs_are_enforced_by_the_kernel() {
    let found = Hierarchy::probe().unwrap();
    let mount = match found {
        Hierarchy::V2 { mount } => mount,
        Hierarchy::V1 {
            unified: Some(unified),
            ..
        } => unified,
        Hierarchy::V1 { .. } => return,
    };
    // A group of our own stands for the root: nothing is handed down there, and what the host's own
    // root hands down is the host's affair.
    let mount = mount.join(unique().trim_matches('/').trim_end_matches("/leaf"));
    fs::create_dir(&mount).unwrap();
    let hierarchy = Hierarchy::V2 {
        mount: mount.clone(),
    };
    let group = Cgroup::create(&hierarchy, &unique(), &Resources::default(), &null_only()).unwrap();
    let mut scratch = Scratch {
        group,
        hierarchy,
        children: Vec::new(),
    };
    for (rules, zero) in [(&null_only()[..], false), (&[DeviceRule::ALLOW_ALL], true)] {
        scratch.group.set_devices(rules).unwrap();
        let mut text = String::new();
        let child = scratch.run(&format!("exec 2>&1; {OPENS}"));
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(text.contains("null\n"), "{text}");
        assert_eq!(text.contains("zero\n"), zero, "{text}");
    }
    drop(scratch);
    fs::remove_dir(mount).unwrap();
}

#[test]
fn groups_a_container_made_go_with_it() {
    let mut scratch = Scratch::new(&Resources::default(), &[DeviceRule::ALLOW_ALL]);
    for dir in &scratch.group.dirs {
        fs::create_dir_all(dir.path.join("inner/most")).unwrap();
        fs::create_dir(dir.path.join("other")).unwrap();
    }
    scratch.run("exec sleep 1000");
    eventually("joining", || scratch.group.populated().unwrap());
    scratch.group.kill().unwrap();
    // Not yet reaped by us: the kernel takes it out of its groups all the same.
    scratch.group.remove().unwrap();
    assert!(scratch.group.dirs.iter().all(|dir| !dir.path.exists()));
}

/// Only names and texts of files: a directory accepts what a kernel may not.
#[test]
fn v2_files_are_written_below_a_stand_in_tree() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().to_path_buf();
    fs::write(mount.join("cgroup.controllers"), "cpu memory pids misc\n").unwrap();
    fs::write(mount.join("cgroup.subtree_control"), "pids\n").unwrap();
    fs::create_dir_all(mount.join("a/b")).unwrap();
    for file in [
        "cpu.weight",
        "cpu.max",
        "memory.max",
        "memory.swap.max",
        "pids.max",
    ] {
        fs::write(mount.join("a/b").join(file), "max\n").unwrap();
    }
    for file in ["cgroup.procs", "memory.high"] {
        fs::write(mount.join("a/b").join(file), "").unwrap();
    }
    let hierarchy = Hierarchy::V2 {
        mount: mount.clone(),
    };
    let resources = Resources {
        unified: vec![("memory.high".into(), "9".into())],
        ..limits()
    };
    let group = Cgroup::create(&hierarchy, "/a/b", &resources, &[DeviceRule::ALLOW_ALL]).unwrap();
    let text = |file: &str| fs::read_to_string(mount.join(file)).unwrap();
    // A file keeps what was longer; the kernel's are set whole.
    assert!(text("cgroup.subtree_control").starts_with("+cpu +memory"));
    assert!(text("a/b/cpu.max").starts_with("50000 100000"));
    assert!(text("a/b/memory.max").starts_with("67108864"));
    assert!(text("a/b/memory.swap.max").starts_with('0'));
    assert_eq!(text("a/b/memory.high"), "9");
    assert!(group.clone_fd().is_some());
    // None of these directories is ours.
    group.remove().unwrap();
    assert!(mount.join("a/b").exists());
    let missing = Resources {
        hugepages: vec![("2MB".into(), 1)],
        ..Resources::default()
    };
    let error = group.update(&missing).unwrap_err();
    assert!(
        matches!(error, CgroupError::NoController { .. }),
        "{error:?}"
    );
}

#[test]
fn controllers_are_handed_down_only_if_they_are_there_and_not_yet() {
    let missing = create::missing_controllers;
    assert_eq!(missing("cpu io memory misc\n", "memory\n"), ["cpu", "io"]);
    assert!(missing("cpuset\n", "cpuset\n").is_empty());
}

#[test]
fn groups_above_that_another_takes_away_are_made_again() {
    let hierarchy = Hierarchy::probe().unwrap();
    let unique = unique();
    let top = unique.trim_start_matches('/').split('/').next().unwrap();
    let parent = format!("/{top}");
    // Each makes the parent when it is missing, and takes it away when it made it and is the last.
    let churn = |name: &str| {
        for _ in 0..60 {
            let path = format!("{parent}/{name}");
            let rules = [DeviceRule::ALLOW_ALL];
            let group = Cgroup::create(&hierarchy, &path, &Resources::default(), &rules).unwrap();
            let _other_may_be_in_the_parent = group.remove();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| churn("a"));
        scope.spawn(|| churn("b"));
    });
    let left = Cgroup::observe(&hierarchy, &parent).unwrap();
    left.remove().unwrap();
}
