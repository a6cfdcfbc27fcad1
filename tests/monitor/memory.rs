//! Memory that one more container costs.

use conmon_rs::protocol::Request;
use crisp_oci::plan::{ProcessPlan, SeccompPlan};

use crate::attach::{OUTPUT, Pipes, attach};
use crate::fixture::{Monitor, Site, eventually, process};

/// Private and anonymous memory in KiB.
fn memory(monitor: &Monitor) -> (u64, u64) {
    let private = monitor.smaps("Private_Dirty") + monitor.smaps("Private_Clean");
    (private, monitor.smaps("Anonymous"))
}

/// A filter as large as that of an ordinary container, which allows everything.
fn filter() -> SeccompPlan {
    let load = [0x20, 0, 0, 0, 0, 0, 0, 0];
    let allow = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];
    SeccompPlan {
        program: [vec![load; 2000], vec![allow]].concat().concat(),
        flags: 0,
    }
}

/// The budget of 256 KiB holds for the static release build, which `CONMON_RS` names; other builds
/// have more around them, but must not grow either.
#[test]
fn memory_stays_where_it_is() {
    let script = format!(
        "wait() {{ while [ ! -e /tmp/$1 ]; do sleep 0.01; done; }}; \
        wait go; yes {line} | head -c 100000000; wait again; yes {line} | head -c 10000000; sleep 1000",
        line = "x".repeat(99)
    );
    // Two do the same, so that what they share is not counted as one's own.
    let sites = [Site::new(), Site::new()];
    let ordinary = |args: &[&str]| ProcessPlan {
        seccomp: Some(filter()),
        ..process(args)
    };
    let start = |site: &Site| {
        let mut plan = site.plan(&[]);
        plan.process = ordinary(&["sh", "-c", &script]);
        site.start(&plan)
    };
    let mut monitors: Vec<Monitor> = sites.iter().map(start).collect();
    let fresh = memory(&monitors[0]);
    for monitor in &mut monitors {
        for _ in 0..100 {
            let (exec, ..) = monitor.exec(&ordinary(&["true"])).unwrap();
            assert_eq!(monitor.exec_exited(exec), (0, 0));
        }
    }
    let after_execs = memory(&monitors[0]);
    for monitor in &mut monitors {
        let (exec, ..) = monitor
            .exec(&process(&["sh", "-c", ": > /tmp/go"]))
            .unwrap();
        assert_eq!(monitor.exec_exited(exec), (0, 0));
        // A record of 99 bytes and 41 around them for each 100 bytes printed.
        eventually("all is printed", || {
            monitor.hello().0.log.written_bytes == 140_000_000
        });
    }
    let after_log = memory(&monitors[0]);
    for monitor in &mut monitors {
        let mut client = attach(monitor, OUTPUT);
        let reader = std::thread::spawn(move || client.read(10_000_000).len());
        let (exec, ..) = monitor
            .exec(&process(&["sh", "-c", ": > /tmp/again"]))
            .unwrap();
        assert_eq!(monitor.exec_exited(exec), (0, 0));
        assert_eq!(reader.join().unwrap(), 10_000_000);
    }
    let mut clients: Vec<Pipes> = monitors.iter_mut().map(|m| attach(m, OUTPUT)).collect();
    let attached = memory(&monitors[0]);
    clients.clear();
    println!(
        "(private, anonymous) in KiB: fresh {fresh:?}, 100 execs {after_execs:?}, 100 MB of log {after_log:?}, \
        attached {attached:?}"
    );
    let budget = if std::env::var_os("CONMON_RS").is_some() {
        256
    } else {
        4096
    };
    for (what, (private, _)) in [("fresh", fresh), ("execs", after_execs), ("log", after_log)] {
        assert!(private <= budget, "{what}: {private} KiB");
    }
    assert!(
        attached.0 <= 2 * budget,
        "with a client: {} KiB",
        attached.0
    );
    for monitor in &mut monitors {
        monitor.done(Request::KillAll);
        monitor.exited();
    }
}
