//! Whole groups of both versions, as directories of ordinary files.

use std::fs;
use std::path::Path;

use super::super::Hierarchy;
use super::*;

const V2: &[(&str, &str)] = &[
    (
        "cpu.stat",
        "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 700\n",
    ),
    ("cpu.max", "20000 100000\n"),
    ("cpu.weight", "100\n"),
    (
        "cpu.pressure",
        "some avg10=1.00 avg60=0.00 avg300=0.00 total=11\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    ),
    (
        "memory.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n",
    ),
    (
        "io.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=13\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
    ),
    ("memory.current", "1000\n"),
    ("memory.max", "4000\n"),
    ("memory.peak", "2000\n"),
    ("memory.low", "0\n"),
    (
        "memory.stat",
        "anon 100\nfile 600\nkernel 50\nfile_mapped 70\ninactive_file 300\npgfault 8\npgmajfault 1\n",
    ),
    ("memory.events", "low 0\nhigh 0\nmax 6\noom 2\noom_kill 1\n"),
    ("memory.swap.current", "30\n"),
    ("memory.swap.max", "max\n"),
    (
        "io.stat",
        "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
    ),
    ("pids.current", "7\n"),
    ("pids.max", "max\n"),
    ("hugetlb.2MB.current", "2097152\n"),
];

const V1: &[(&str, &str)] = &[
    ("cpuacct.usage", "5000000\n"),
    ("cpuacct.usage_user", "3000000\n"),
    ("cpuacct.usage_sys", "2000000\n"),
    (
        "cpu.stat",
        "nr_periods 10\nnr_throttled 4\nthrottled_time 700000\n",
    ),
    ("cpu.cfs_period_us", "100000\n"),
    ("cpu.cfs_quota_us", "20000\n"),
    ("cpu.shares", "1024\n"),
    ("memory.usage_in_bytes", "1000\n"),
    ("memory.limit_in_bytes", "4000\n"),
    ("memory.memsw.limit_in_bytes", "5000\n"),
    ("memory.max_usage_in_bytes", "2000\n"),
    ("memory.failcnt", "6\n"),
    ("memory.kmem.usage_in_bytes", "50\n"),
    ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
    (
        "memory.stat",
        "cache 1\nrss 2\npgfault 5\npgmajfault 0\ntotal_cache 600\ntotal_rss 100\ntotal_mapped_file 70\ntotal_inactive_file 300\ntotal_swap 30\ntotal_pgfault 8\ntotal_pgmajfault 1\n",
    ),
    (
        "memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    ),
    (
        "blkio.throttle.io_service_bytes_recursive",
        "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
    ),
    (
        "blkio.throttle.io_serviced_recursive",
        "8:0 Read 3\n8:0 Write 4\n8:0 Total 7\nTotal 7\n",
    ),
    ("pids.current", "7\n"),
    ("pids.max", "max\n"),
    ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
    ("hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
];

fn v2(mount: &Path) -> Hierarchy {
    Hierarchy::V2 {
        mount: mount.to_owned(),
    }
}

/// All controllers in one directory, as if mounted together.
fn v1(mount: &Path) -> Hierarchy {
    let names = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"];
    Hierarchy::V1 {
        controllers: names
            .map(|name| (name.to_owned(), mount.to_owned()))
            .to_vec(),
        unified: None,
    }
}

fn group(scratch: &Path, files: &[(&str, &str)], hierarchy: fn(&Path) -> Hierarchy) -> Cgroup {
    fs::create_dir_all(scratch.join("a")).unwrap();
    for (name, text) in files {
        fs::write(scratch.join("a").join(name), text).unwrap();
    }
    Cgroup::observe(&hierarchy(scratch), "/a").unwrap()
}

fn sizes() -> Vec<String> {
    vec!["2MB".to_owned(), "1GB".to_owned()]
}

#[test]
fn both_versions_tell_the_same() {
    for (files, hierarchy) in [(V1, v1 as fn(&Path) -> Hierarchy), (V2, v2)] {
        let scratch = tempfile::tempdir().unwrap();
        let group = group(scratch.path(), files, hierarchy);
        let stats = group.stats().unwrap();
        let expected = Stats {
            cpu_usage_ns: Some(5_000_000),
            memory_usage: Some(1000),
            memory_working_set: Some(700),
            memory_rss: Some(100),
            memory_limit: Some(4000),
            page_faults: Some(8),
            major_page_faults: Some(1),
            swap_usage: Some(30),
            // v1 limits the sum; here v2 limits nothing.
            swap_limit: (!group.v2).then_some(1000),
            pids: Some(7),
            pids_limit: None,
            cpu_pressure: stats.cpu_pressure,
            memory_pressure: stats.memory_pressure,
            io_pressure: stats.io_pressure,
        };
        assert_eq!(stats, expected);
        if group.v2 {
            let total = |pressure: Option<Pressure>| {
                let pressure = pressure.unwrap();
                (pressure.some.total_us, pressure.full.total_us)
            };
            assert_eq!(total(stats.cpu_pressure), (11, 1));
            assert_eq!(total(stats.memory_pressure), (12, 2));
            assert_eq!(total(stats.io_pressure), (13, 3));
        }
        let details = group.details(&sizes()).unwrap();
        let expected = Details {
            cpu_user_ns: Some(3_000_000),
            cpu_system_ns: Some(2_000_000),
            cfs_periods: Some(10),
            cfs_throttled_periods: Some(4),
            cfs_throttled_ns: Some(700_000),
            cpu_period: Some(100_000),
            cpu_quota: Some(20_000),
            // The least shares with a weight of 100.
            cpu_shares: details
                .cpu_shares
                .filter(|shares| (1000..=1024).contains(shares)),
            memory_cache: Some(600),
            memory_mapped_file: Some(70),
            memory_kernel: Some(50),
            memory_peak: Some(2000),
            memory_limit_hits: Some(6),
            memory_reservation: group.v2.then_some(0),
            own_page_faults: (!group.v2).then_some(5),
            own_major_page_faults: (!group.v2).then_some(0),
            oom_kills: Some(1),
            io: vec![DeviceIo {
                major: 8,
                minor: 0,
                read_bytes: 1,
                written_bytes: 2,
                reads: 3,
                writes: 4,
            }],
            hugepages: vec![HugepageUse {
                size: "2MB".to_owned(),
                usage: 2 << 20,
                peak: if group.v2 { 2 << 20 } else { 4 << 20 },
            }],
        };
        assert_eq!(details, expected);
        assert!(details.cpu_shares.is_some());
    }
}

#[test]
fn a_file_that_is_missing_or_says_nonsense_costs_its_figures_only() {
    for (files, hierarchy) in [(V1, v1 as fn(&Path) -> Hierarchy), (V2, v2)] {
        for (name, text) in files {
            let scratch = tempfile::tempdir().unwrap();
            let group = group(scratch.path(), files, hierarchy);
            let path = scratch.path().join("a").join(name);
            fs::remove_file(&path).unwrap();
            group.stats().unwrap();
            group.details(&sizes()).unwrap();
            let long = text.repeat(5000);
            for nonsense in ["", "\n", "x y z\n", "-5\n", "\u{0}", &long] {
                fs::write(&path, nonsense).unwrap();
                group.stats().unwrap();
                group.details(&sizes()).unwrap();
            }
            fs::write(&path, [0xff, 0xfe, b'\n']).unwrap();
            group.stats().unwrap();
        }
    }
}
