//! Annotations of the runtime spec: what tools look containers up by.

use std::collections::HashMap;

use super::BundleInput;

/// What kubelet writes for itself. Other annotations of clients stay out of the runtime spec: OCI
/// runtimes read knobs from annotations (systemd properties, CRIU paths, hypervisor binaries), and
/// whoever may annotate a pod may not turn those.
const PASSED: [&str; 3] = [
    "io.kubernetes.container.",
    "io.kubernetes.pod.",
    "kubernetes.io/",
];

pub(super) fn annotations(input: &BundleInput<'_>) -> HashMap<String, String> {
    let sandbox = &input.sandbox.metadata;
    let own = [
        ("io.kubernetes.cri.container-type", "container"),
        (
            "io.kubernetes.cri.container-name",
            input.container.metadata.name.as_str(),
        ),
        (
            "io.kubernetes.cri.image-name",
            input.container.image.image.as_str(),
        ),
        ("io.kubernetes.cri.image-id", input.image_id),
        ("io.kubernetes.cri.sandbox-id", input.sandbox_id.as_str()),
        ("io.kubernetes.cri.sandbox-name", sandbox.name.as_str()),
        (
            "io.kubernetes.cri.sandbox-namespace",
            sandbox.namespace.as_str(),
        ),
        ("io.kubernetes.cri.sandbox-uid", sandbox.uid.as_str()),
    ];
    let passed = input
        .container
        .annotations
        .iter()
        .filter(|(key, _)| PASSED.iter().any(|prefix| key.starts_with(prefix)))
        .map(|(key, value)| (key.clone(), value.clone()));
    passed
        .chain(own.map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect()
}
