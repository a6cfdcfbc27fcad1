//! Volumes that need no API server.

use std::fs;

use serde_json::{Value, json};

use crate::{
    host::{Host, Seen, expect},
    manifest::{STAY, pod, shell, with, with_spec},
};

pub fn pods(host: &Host) -> Vec<Value> {
    let dir = host.shared("volumes");
    // What cannot be written shows as what kubelet says about the pod.
    let _made = fs::create_dir_all(&dir);
    let _made = fs::write(dir.join("file"), "from the host\n");
    let container = with(
        shell("c", STAY),
        json!({
            "env": [{ "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
            "securityContext": { "runAsUser": 1000, "runAsGroup": 1000 },
            "volumeMounts": [
                { "name": "disk", "mountPath": "/disk" },
                { "name": "memory", "mountPath": "/memory" },
                { "name": "host", "mountPath": "/host" },
                { "name": "host", "mountPath": "/frozen", "readOnly": true, "recursiveReadOnly": "IfPossible" },
                { "name": "file", "mountPath": "/etc/one-file" },
                { "name": "disk", "mountPath": "/sub", "subPath": "deep/er" },
                { "name": "disk", "mountPath": "/named", "subPathExpr": "of-$(POD)" },
                { "name": "host", "mountPath": "/one-of-them", "subPath": "file" },
            ],
        }),
    );
    let other = with(
        shell("other", STAY),
        json!({ "volumeMounts": [{ "name": "disk", "mountPath": "/shared" }] }),
    );
    let spec = json!({
        "securityContext": { "fsGroup": 2000 },
        "volumes": [
            { "name": "disk", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
            { "name": "host", "hostPath": { "path": dir, "type": "Directory" } },
            { "name": "file", "hostPath": { "path": dir.join("file"), "type": "File" } },
        ],
    });
    vec![with_spec(pod("volumes", &[container, other]), spec)]
}

pub fn directories(host: &mut Host) -> Seen {
    host.ready("volumes")?;
    let seen = |script: &str| host.exec("volumes", "c", script);
    let owner = seen("touch /disk/mine && stat -c %g /disk /disk/mine | tr '\\n' ' '; id -G")?;
    expect(owner == "2000 2000 1000 2000", format!("fsGroup: {owner}"))?;
    expect(
        seen("grep -c '^tmpfs /memory tmpfs' /proc/mounts")? == "1",
        "/memory is no tmpfs",
    )?;
    let limit = seen(
        "dd if=/dev/zero of=/memory/full bs=64k count=64 2>/dev/null; stat -c %s /memory/full",
    )?;
    expect(
        limit == "1048576",
        format!("a tmpfs of 1 MiB took {limit} bytes"),
    )?;
    expect(seen("cat /host/file")? == "from the host", "/host")?;
    let frozen = seen("grep ' /frozen ' /proc/mounts | cut -d ' ' -f 4")?;
    expect(frozen.starts_with("ro,"), format!("/frozen: {frozen}"))?;
    expect(
        seen("cat /etc/one-file /one-of-them | sort -u")? == "from the host",
        "single files",
    )?;
    seen("echo below > /sub/x && echo named > /named/y")?;
    let pod = host.kubelet.pod_name("volumes");
    let other = host.exec(
        "volumes",
        "other",
        &format!("cat /shared/deep/er/x /shared/of-{pod}/y"),
    )?;
    expect(
        other == "below\nnamed",
        format!("the other container sees {other}"),
    )?;
    Ok("emptyDir with fsGroup 2000, in memory limited to 1 MiB, hostPath directory, file and read-only, subPath and subPathExpr, shared by two containers".to_owned())
}

pub fn projected_pods(_: &Host) -> Vec<Value> {
    let field = |path: &str, from: &str| json!({ "path": path, "fieldRef": { "fieldPath": from } });
    let memory = json!({ "path": "memory", "resourceFieldRef": { "containerName": "c", "resource": "limits.memory" } });
    let variable = |name: &str, from: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": from } } });
    let container = with(
        shell("c", STAY),
        json!({
            "resources": { "limits": { "memory": "64Mi" } },
            "env": [variable("IP", "status.podIP"), variable("NODE", "spec.nodeName")],
            "volumeMounts": [
                { "name": "all", "mountPath": "/all", "readOnly": true },
                { "name": "down", "mountPath": "/down/name", "subPath": "name" },
            ],
        }),
    );
    let spec = json!({ "volumes": [
        { "name": "all", "projected": { "defaultMode": 0o440, "sources": [
            { "downwardAPI": { "items": [field("labels", "metadata.labels"), memory] } },
            { "downwardAPI": { "items": [field("deep/namespace", "metadata.namespace")] } },
        ] } },
        { "name": "down", "downwardAPI": { "items": [field("name", "metadata.name")] } },
    ] });
    vec![with_spec(pod("projected", &[container]), spec)]
}

/// kubelet refuses projected volumes without a client of an API server, even those that need none;
/// so it gets one that never answers.
pub fn projected(host: &mut Host) -> Seen {
    host.kubelet.stop()?;
    host.kubelet.in_cluster(true);
    host.kubelet.start()?;
    let seen = projected_files(host);
    host.kubelet.stop()?;
    host.kubelet.in_cluster(false);
    host.kubelet.start()?;
    seen
}

fn projected_files(host: &Host) -> Seen {
    let pod = host.ready("projected")?;
    let seen = host.exec("projected", "c", "cat /all/labels; echo; cat /all/memory; echo; cat /all/deep/namespace; echo; cat /down/name; echo; stat -Lc %a /all/labels; echo $IP; echo $NODE")?;
    let lines: Vec<&str> = seen.lines().collect();
    let name = host.kubelet.pod_name("projected");
    let ip = pod["status"]["podIP"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let node = host.daemon.site().name();
    let wanted = [
        "app=\"projected\"",
        "67108864",
        "default",
        &name,
        "440",
        &ip,
        node,
    ];
    expect(lines == wanted, format!("{lines:?}, not {wanted:?}"))?;
    Ok(format!(
        "labels, limit and namespace projected with mode 440, a single file by subPath, podIP {ip} and node in the environment"
    ))
}
