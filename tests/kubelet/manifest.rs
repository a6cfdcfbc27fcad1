//! Static pods, as short as they can be written.

use crisp_harness::suite::BUSYBOX;
use serde_json::{Value, json};

/// The image with a web server on port 80.
pub const WEB: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";

/// Stays until it is told to go, at once.
pub const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

/// A pod of these containers.
pub fn pod(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": { "terminationGracePeriodSeconds": 2, "containers": containers },
    })
}

/// A busybox container that runs a script.
pub fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", script] })
}

/// A web server.
pub fn web(name: &str) -> Value {
    json!({ "name": name, "image": WEB })
}

/// The same with these keys added or replaced.
pub fn with(mut base: Value, more: Value) -> Value {
    if let (Some(all), Value::Object(more)) = (base.as_object_mut(), more) {
        all.extend(more);
    }
    base
}

/// A pod with these keys of its spec added or replaced.
pub fn with_spec(mut pod: Value, more: Value) -> Value {
    pod["spec"] = with(pod["spec"].take(), more);
    pod
}

/// A directory of the host as a volume.
pub fn host_path(name: &str, path: &std::path::Path) -> Value {
    json!({ "name": name, "hostPath": { "path": path, "type": "DirectoryOrCreate" } })
}
