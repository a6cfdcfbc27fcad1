//! Pods with users of their own, and profiles of security modules.

use super::*;

#[test]
fn the_default_apparmor_profile_is_missed_only_by_who_asks_for_it() {
    let mut parts = Parts::plain();
    parts.host.apparmor = true;
    let spec = parts.generate();
    assert_eq!(spec.process().as_ref().unwrap().apparmor_profile(), &None);
    parts.container.security.apparmor = Some(SecurityProfile::RuntimeDefault);
    let error = generate(&parts.input()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("apparmor_parser"), "{error}");
}

/// A pod with users of its own: 1000 of them.
fn with_users() -> Parts {
    let mut parts = Parts::plain();
    let range = IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 1000,
    };
    parts.sandbox.security.namespaces.user = UserNamespace::Pod {
        uids: range,
        gids: range,
    };
    parts
}

#[test]
fn golden_users() {
    let mut parts = with_users();
    let range = IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 1000,
    };
    let volume = parts.mount("/data", "/srv/data");
    (volume.uid_mappings, volume.gid_mappings) = (vec![range], vec![range]);
    parts.mount("/plain", "/srv/plain");
    golden("users.json", &parts);
}

#[test]
fn a_pod_with_users_of_its_own_gets_what_those_may_have() {
    let mut parts = with_users();
    let spec = parts.generate();
    assert!(options(&spec, "/dev/pts").contains("gid=5"));
    assert_eq!(
        mount_at(&spec, "/sys").unwrap().typ().as_deref(),
        Some("sysfs")
    );
    // A network that is the host's has a sysfs that is the host's.
    parts.sandbox.security.namespaces.network = NetworkMode::Node;
    let spec = parts.generate();
    let sys = mount_at(&spec, "/sys").unwrap();
    assert_eq!(sys.typ().as_deref(), Some("bind"));
    assert!(options(&spec, "/sys").contains("rro"));
    // A privileged one has no rights over the host's groups.
    parts.container.security.privileged = true;
    let kinds = |spec: &Spec| {
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone();
        namespaces
            .unwrap()
            .iter()
            .map(|n| n.typ())
            .collect::<Vec<_>>()
    };
    assert!(kinds(&parts.generate()).contains(&LinuxNamespaceType::Cgroup));
    // Too few groups for one of terminals.
    if let UserNamespace::Pod { gids, .. } = &mut parts.sandbox.security.namespaces.user {
        gids.length = 5;
    }
    assert!(!options(&parts.generate(), "/dev/pts").contains("gid=5"));
}

#[test]
fn apparmor_and_selinux_only_where_the_host_has_them() {
    let mut parts = Parts::plain();
    parts.container.security.selinux = Some(SelinuxOptions {
        level: Some("s0:c1,c2".into()),
        ..SelinuxOptions::default()
    });
    let confined = |parts: &Parts| {
        let spec = parts.generate();
        let process = spec.process().clone().unwrap();
        (
            process.apparmor_profile().clone(),
            process.selinux_label().clone(),
        )
    };
    assert_eq!(confined(&parts), (None, None));
    parts.host.apparmor = true;
    parts.host.apparmor_default = Some("crisp-default".into());
    parts.host.selinux = true;
    let label = |kind: &str| Some(format!("system_u:system_r:{kind}:s0:c1,c2"));
    assert_eq!(
        confined(&parts),
        (Some("crisp-default".into()), label("container_t"))
    );
    let mount_label = parts
        .generate()
        .linux()
        .as_ref()
        .unwrap()
        .mount_label()
        .clone();
    assert_eq!(
        mount_label.as_deref(),
        Some("system_u:object_r:container_file_t:s0:c1,c2")
    );
    parts.container.security.privileged = true;
    assert_eq!(confined(&parts), (None, label("spc_t")));
    parts.container.security.apparmor = Some(SecurityProfile::Localhost("mine".into()));
    assert_eq!(confined(&parts).0.as_deref(), Some("mine"));
}
