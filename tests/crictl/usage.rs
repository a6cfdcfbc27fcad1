//! stats, statsp, metricsp, metricdescs, events, update, imagefsinfo, runtime-config, and a port of
//! the host.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crisp_harness::{
    cgroup,
    crictl::Crictl,
    process::{Process, until},
};
use serde_json::{Value, json};

const OWN: u8 = 1;

/// Works for a moment now and then, and holds some memory and a file.
const WORK: &str = "dd if=/dev/zero of=/written bs=1024 count=512 2>/dev/null; \
    while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.05; done";

fn own() -> Value {
    json!({ "pid": OWN })
}

/// The number in a field, which crictl prints as text where it has 64 bits.
fn number(value: &Value) -> u64 {
    let value = value.get("value").unwrap_or(value);
    value
        .as_u64()
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
        .unwrap_or_else(|| panic!("no number: {value}"))
}

#[tokio::test]
async fn stats_shows_what_a_container_uses() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("uses", OWN);
    let id = crictl.launch(&pod, "uses", "c", &["sh", "-c", WORK], own());
    let pid = crictl.json(&["inspect", &id])["info"]["pid"]
        .as_u64()
        .unwrap();
    let pid = u32::try_from(pid).unwrap();
    // The table: a row with a share of CPU and memory in it.
    let table = crictl.run(&["stats", "-s", "1"]);
    let row = table.lines().find(|line| line.starts_with(&id[..13]));
    let row = row.unwrap_or_else(|| panic!("no row of {id}: {table}"));
    assert!(row.contains("kB") || row.contains("MB"), "{table}");
    let before = cgroup::number(pid, cgroup::CPU).unwrap();
    let stats = crictl.json(&["stats", "-o", "json", "-s", "0", &id]);
    let after = cgroup::number(pid, cgroup::CPU).unwrap();
    let stats = &stats["stats"][0];
    assert_eq!(stats["attributes"]["metadata"]["name"], "c");
    let used = number(&stats["cpu"]["usageCoreNanoSeconds"]);
    assert!(
        (before..=after).contains(&used),
        "{used} is not between {before} and {after}"
    );
    assert!(number(&stats["cpu"]["usageNanoCores"]) > 0, "{stats}");
    let memory = number(&stats["memory"]["usageBytes"]);
    assert!(number(&stats["memory"]["workingSetBytes"]) <= memory);
    assert!(number(&stats["writableLayer"]["inodesUsed"]) >= 1);
    assert!(
        until(Duration::from_secs(30), || {
            let stats = crictl.json(&["stats", "-o", "json", "-s", "0", &id]);
            number(&stats["stats"][0]["writableLayer"]["usedBytes"]) >= 512 * 1024
        }),
        "what it wrote is seen"
    );
    let _gone = crictl.run(&["stop", "-t", "0", &id]);
    let empty = crictl.json(&["stats", "-o", "json", "-s", "0"]);
    assert_eq!(empty["stats"].as_array().map_or(0, Vec::len), 0, "{empty}");
}

#[tokio::test]
async fn statsp_shows_a_pod_with_its_network() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("whole", OWN);
    let id = crictl.launch(&pod, "whole", "c", &["sh", "-c", WORK], own());
    let table = crictl.run(&["statsp", "-s", "1"]);
    assert!(
        table.lines().any(|line| line.contains(&pod[..13])),
        "{table}"
    );
    let stats = crictl.json(&["statsp", "-o", "json", "-s", "0", "--id", &pod]);
    let linux = &stats["stats"][0]["linux"];
    assert_eq!(linux["containers"][0]["attributes"]["id"], id.as_str());
    assert!(number(&linux["process"]["processCount"]) >= 2, "{linux}");
    assert_eq!(linux["network"]["defaultInterface"]["name"], "eth0");
    assert!(
        number(&linux["cpu"]["usageCoreNanoSeconds"])
            >= number(&linux["containers"][0]["cpu"]["usageCoreNanoSeconds"]),
        "{linux}"
    );
}

#[tokio::test]
async fn metricdescs_and_metricsp_fit_each_other() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("measured", OWN);
    let id = crictl.launch(&pod, "measured", "c", &["sleep", "1000"], own());
    let descriptors = crictl.json(&["metricdescs"]);
    let descriptors = descriptors["descriptors"].as_array().unwrap();
    let metrics = crictl.json(&["metricsp"]);
    let of_pod = &metrics["podMetrics"][0];
    assert_eq!(of_pod["podSandboxId"], pod.as_str());
    assert_eq!(of_pod["containerMetrics"][0]["containerId"], id.as_str());
    for descriptor in descriptors {
        let keys = descriptor["labelKeys"].as_array().unwrap().len();
        let of = |metrics: &Value| {
            let metrics = metrics["metrics"].as_array().unwrap();
            let named = metrics
                .iter()
                .filter(|metric| metric["name"] == descriptor["name"]);
            named.cloned().collect::<Vec<Value>>()
        };
        let samples = of(of_pod);
        assert!(!samples.is_empty(), "{descriptor} has no sample");
        for sample in samples.iter().chain(&of(&of_pod["containerMetrics"][0])) {
            assert_eq!(
                sample["labelValues"].as_array().unwrap().len(),
                keys,
                "{sample}"
            );
        }
    }
}

#[tokio::test]
async fn events_tell_a_life_from_beginning_to_end() {
    let crictl = Crictl::new().await.unwrap();
    let log = crictl.daemon.site().dir().join("events.log");
    let mut events = Process::start(&mut crictl.command(&["events"]), &log).unwrap();
    // Events come from the moment it listens on: pods are made until one is seen.
    let seen = || fs::read_to_string(&log).unwrap_or_default();
    let mut number = 0;
    assert!(until(Duration::from_secs(20), || {
        number += 1;
        let pod = crictl.pod(&format!("warm{number}"), OWN);
        let _gone = crictl.run(&["rmp", "-f", &pod]);
        seen().contains("CREATED_EVENT")
    }));
    let pod = crictl.pod("lives", OWN);
    let id = crictl.launch(&pod, "lives", "c", &["sleep", "1000"], own());
    let _stopped = crictl.run(&["stop", "-t", "0", &id]);
    let _gone = crictl.run(&["rm", &id]);
    let _gone = crictl.run(&["rmp", "-f", &pod]);
    let kinds = |id: &str| {
        let text = seen();
        let stream = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        let events: Vec<Value> = stream.map_while(Result::ok).collect();
        let of = events.iter().filter(|event| event["containerId"] == id);
        of.map(|event| {
            event["containerEventType"]
                .as_str()
                .unwrap_or("?")
                .to_owned()
        })
        .collect::<Vec<String>>()
    };
    let life =
        ["CREATED", "STARTED", "STOPPED", "DELETED"].map(|word| format!("CONTAINER_{word}_EVENT"));
    assert!(
        until(Duration::from_secs(10), || kinds(&pod) == life),
        "{:?} of {}",
        kinds(&pod),
        seen()
    );
    assert_eq!(kinds(&id), life);
    assert!(events.exited().unwrap().is_none(), "it listens on");
    events.kill().unwrap();
}

#[tokio::test]
async fn update_changes_the_limits_of_a_running_container() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("updated", OWN);
    let mut request = crictl.container("c", &["sleep", "1000"], own());
    request["linux"]["resources"] = json!({ "memory_limit_in_bytes": 64 << 20, "cpu_shares": 512 });
    let id = crictl.create(&pod, "updated", &request);
    let _id = crictl.run(&["start", &id]);
    let pid = crictl.json(&["inspect", &id])["info"]["pid"]
        .as_u64()
        .unwrap();
    let pid = u32::try_from(pid).unwrap();
    let _said = crictl.run(&[
        "update",
        "--memory",
        &(128 << 20).to_string(),
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "100000",
        &id,
    ]);
    assert_eq!(
        cgroup::number(pid, cgroup::MEMORY_LIMIT).unwrap(),
        128 << 20
    );
    assert!(
        cgroup::read(pid, cgroup::QUOTA)
            .unwrap()
            .starts_with("20000")
    );
    let resources = &crictl.json(&["inspect", &id])["status"]["resources"]["linux"];
    assert_eq!(number(&resources["memoryLimitInBytes"]), 128 << 20);
    assert_eq!(number(&resources["cpuQuota"]), 20_000);
    assert_eq!(
        number(&resources["cpuShares"]),
        512,
        "what was not named stays"
    );
    let refused = crictl.refused(&["update", "--cpuset-cpus", "4000", "--cpu-share", "99", &id]);
    assert!(refused.contains("cpuset"), "{refused}");
    let resources = &crictl.json(&["inspect", &id])["status"]["resources"]["linux"];
    assert_eq!(number(&resources["cpuShares"]), 512, "{resources}");
    let _stopped = crictl.run(&["stop", "-t", "0", &id]);
    let refused = crictl.refused(&["update", "--cpu-share", "99", &id]);
    assert!(refused.contains("has exited"), "{refused}");
}

#[tokio::test]
async fn imagefsinfo_shows_what_images_and_containers_take() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("disk", OWN);
    let _id = crictl.launch(&pod, "disk", "c", &["sh", "-c", WORK], own());
    let info = crictl.json(&["imagefsinfo"]);
    let images = &info["status"]["imageFilesystems"][0];
    assert!(number(&images["usedBytes"]) > 500_000, "{info}");
    assert!(number(&images["inodesUsed"]) > 10, "{info}");
    let path = images["fsId"]["mountpoint"].as_str().unwrap();
    assert!(
        fs::metadata(path).is_ok_and(|place| place.is_dir()),
        "{path}"
    );
    assert!(until(Duration::from_secs(30), || {
        let info = crictl.json(&["imagefsinfo"]);
        number(&info["status"]["containerFilesystems"][0]["usedBytes"]) >= 512 * 1024
    }));
}

#[tokio::test]
async fn runtime_config_names_the_cgroup_driver() {
    let crictl = Crictl::new().await.unwrap();
    let said = crictl.run(&["runtime-config"]).to_lowercase();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["cgroup", "driver:", "cgroupfs"]);
}

/// Asks an HTTP server, and again until it answers.
fn answers(address: &str) -> bool {
    until(Duration::from_secs(15), || {
        let Ok(mut stream) = TcpStream::connect(address) else {
            return false;
        };
        let limit = Some(Duration::from_secs(2));
        stream.set_read_timeout(limit).unwrap();
        let mut answer = String::new();
        stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.contains("from the pod")
    })
}

/// A port that nothing listens on now.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn a_port_of_the_host_leads_into_the_pod() {
    let crictl = Crictl::new().await.unwrap();
    let port = free_port();
    let mut sandbox = crictl.sandbox("served", OWN);
    sandbox["port_mappings"] =
        json!([{ "protocol": 0, "container_port": 8080, "host_port": port }]);
    let _image = crictl.run(&["pull", crisp_harness::suite::BUSYBOX]);
    let pod = crictl.run(&["runp", &crictl.file("served.pod.json", &sandbox)]);
    let script = "mkdir /www; echo from the pod > /www/hello; exec httpd -f -p 8080 -h /www";
    let id = crictl.launch(&pod, "served", "c", &["sh", "-c", script], own());
    let sysctl = |name: &str| {
        let file = format!("/proc/sys/net/ipv4/{name}");
        let said = crictl.run(&["exec", "-s", &id, "cat", &file]);
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(sysctl("ip_unprivileged_port_start"), "0");
    assert_eq!(sysctl("ping_group_range"), "0 2147483647");
    let ip = crictl.json(&["inspectp", &pod])["status"]["network"]["ip"].clone();
    let ip = ip.as_str().unwrap();
    assert!(answers(&format!("{ip}:8080")), "at the pod's own address");
    assert!(
        answers(&format!("127.0.0.1:{port}")),
        "at a port of the host"
    );
}

/// An address of this machine that other machines could use, of the newer family.
fn own_ipv6() -> Option<String> {
    let addresses = std::process::Command::new("ip")
        .args(["-6", "-o", "address", "show", "scope", "global"])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&addresses.stdout).into_owned();
    let mut words = text.split_whitespace().skip_while(|word| *word != "inet6");
    let address = words.nth(1)?.split('/').next()?;
    Some(address.to_owned())
}

/// Adds a range of IPv6 to the site's network, and has ports led into it.
fn add_ipv6(crictl: &Crictl) {
    let path = crictl.daemon.site().dir().join("net.d/10-test.conflist");
    let mut list: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let digits = crictl.daemon.site().name()[2..].to_owned();
    let subnet = format!("fdaa:{}:{}::/64", &digits[..4], &digits[4..]);
    let ipam = &mut list["plugins"][0]["ipam"];
    let ranges = ipam["ranges"].as_array_mut().unwrap();
    ranges.push(json!([{ "subnet": subnet }]));
    let routes = ipam["routes"].as_array_mut().unwrap();
    routes.push(json!({ "dst": "::/0" }));
    // Renamed into place: the daemon reads it the moment it changes.
    let new = path.with_extension("new");
    fs::write(&new, list.to_string()).unwrap();
    fs::rename(&new, &path).unwrap();
}

#[tokio::test]
async fn a_pod_has_addresses_of_both_families_and_ports_of_both_lead_into_it() {
    let Some(host) = own_ipv6() else {
        // A host without the family cannot lead into pods by it.
        return;
    };
    let crictl = Crictl::new().await.unwrap();
    add_ipv6(&crictl);
    let _image = crictl.run(&["pull", crisp_harness::suite::BUSYBOX]);
    let port = free_port();
    let mut sandbox = crictl.sandbox("both", OWN);
    sandbox["port_mappings"] =
        json!([{ "protocol": 0, "container_port": 8080, "host_port": port }]);
    let request = crictl.file("both.pod.json", &sandbox);
    let mut pod = String::new();
    let mut addresses = Value::Null;
    // Until the daemon has read the new configuration.
    assert!(until(Duration::from_secs(30), || {
        if !pod.is_empty() {
            let _gone = crictl.run(&["rmp", "-f", &pod]);
        }
        pod = crictl.run(&["runp", &request]);
        addresses = crictl.json(&["inspectp", &pod])["status"]["network"].clone();
        addresses["additionalIps"]
            .as_array()
            .is_some_and(|more| !more.is_empty())
    }));
    let script = "mkdir /www; echo from the pod > /www/hello; exec httpd -f -p 8080 -h /www";
    let _id = crictl.launch(&pod, "both", "c", &["sh", "-c", script], own());
    let second = addresses["additionalIps"][0]["ip"].as_str().unwrap();
    assert!(second.contains(':'), "{addresses}");
    assert!(
        answers(&format!("[{second}]:8080")),
        "at the pod's own address"
    );
    assert!(
        answers(&format!("127.0.0.1:{port}")),
        "at a port of the host"
    );
    assert!(
        answers(&format!("[{host}]:{port}")),
        "at the same port by IPv6"
    );
}
