//! Images as volumes, and what CDI devices need.

use super::*;
use crate::cdi::spec as cdi;

#[test]
fn options_and_images_are_binds_like_others() {
    let mut parts = Parts::plain();
    parts.mount("/o", "/srv").options = vec![MountOption::NoExec, MountOption::NoDev];
    let image = parts.mount("/image", "/run/crisp/containers/c/volumes/1");
    image.readonly = true;
    image.image = Some(ImageVolume::default());
    let spec = parts.generate();
    assert_eq!(options(&spec, "/o"), "rbind,rprivate,rw,noexec,nodev");
    assert_eq!(options(&spec, "/image"), "rbind,rprivate,ro");
}

#[test]
fn what_cdi_devices_need_is_in_the_spec() {
    let mut parts = Parts::plain();
    parts.container.envs = vec![EnvVar {
        name: "GPU".into(),
        value: b"mine".to_vec(),
    }];
    parts.mount("/opt/lib", "/srv/lib");
    parts.mount("/a/b", "/srv/b");
    let mount = |host: &str, container: &str, options: &[&str]| cdi::Mount {
        host_path: host.into(),
        container_path: container.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        r#type: String::new(),
    };
    let hook = |name: &str| cdi::Hook {
        hook_name: name.into(),
        path: format!("/usr/bin/{name}"),
        args: vec!["x".into(), "y".into()],
        timeout: Some(5),
        ..cdi::Hook::default()
    };
    parts.edits = Edits {
        env: vec![
            ("GPU".into(), "0".into()),
            ("LIB".into(), "/opt/lib".into()),
        ],
        mounts: vec![
            mount("/vendor/lib", "/opt/lib/", &["ro", "nosuid", "bind"]),
            mount("/vendor/a", "/a", &["rslave"]),
        ],
        hooks: vec![
            hook("createContainer"),
            hook("poststop"),
            hook("createContainer"),
        ],
        resctrl: Some("gold".into()),
        ..Edits::default()
    };
    let none = HostDevice {
        path: "/dev/quiet".into(),
        kind: DeviceKind::Char,
        major: 240,
        minor: 99,
        mode: 0o600,
        uid: 0,
        gid: 0,
        permissions: String::new(),
    };
    parts.devices = vec![none];
    let spec = parts.generate();
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    assert!(env.contains(&"GPU=0".to_owned()) && !env.contains(&"GPU=mine".to_owned()));
    let exact = environment(&parts.input());
    assert!(exact.contains(&b"LIB=/opt/lib".to_vec()));
    assert_eq!(options(&spec, "/opt/lib"), "rbind,rprivate,ro,nosuid,bind");
    assert_eq!(options(&spec, "/a"), "rbind,rprivate,rslave");
    let source = mount_at(&spec, "/opt/lib")
        .unwrap()
        .source()
        .clone()
        .unwrap();
    assert_eq!(
        source.as_os_str(),
        "/vendor/lib",
        "the device's replaces the pod's"
    );
    let places = targets(&spec);
    let place = |target: &str| places.iter().position(|at| at == target);
    assert!(place("/a") < place("/a/b"), "{places:?}");
    let hooks = spec.hooks().as_ref().unwrap();
    assert_eq!(hooks.create_container().as_ref().map(Vec::len), Some(2));
    assert_eq!(hooks.poststop().as_ref().unwrap()[0].timeout(), Some(5));
    assert_eq!(hooks.create_runtime(), &None);
    let linux = spec.linux().as_ref().unwrap();
    let group = linux.intel_rdt().as_ref().unwrap().clos_id().as_deref();
    assert_eq!(group, Some("gold"));
    assert!(linux.devices().iter().flatten().any(|d| d.minor() == 99));
    let rules = linux.resources().as_ref().unwrap().devices().clone();
    assert!(!rules.iter().flatten().any(|rule| rule.minor() == Some(99)));
    parts.classes.resctrl = Some("silver".into());
    let linux = parts.generate().linux().clone().unwrap();
    let group = linux.intel_rdt().as_ref().unwrap().clos_id().clone();
    assert_eq!(
        group.as_deref(),
        Some("silver"),
        "a class that is asked for counts"
    );
}
