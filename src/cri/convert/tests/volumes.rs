//! Volumes and devices; profiles by name.

use super::*;

#[test]
fn images_are_volumes_and_options_are_kept() {
    let spec = changed_container(|c| {
        let mount = image_mount(c);
        mount.image_sub_path = "etc".into();
        mount.propagation = 1;
        mount.mount_options = vec!["nosuid".into(), "noexec".into(), "nosuid".into()];
        let i = add_mount(c, "/data", "/srv");
        // Clients may send an empty message.
        c.mounts[i].image = Some(proto::ImageSpec::default());
    })
    .unwrap();
    let volume = spec.mounts[0].image.as_ref().unwrap();
    assert_eq!(
        (&*volume.image.image, &*volume.sub_path),
        ("volume:1", "etc")
    );
    assert_eq!(
        spec.mounts[0].options,
        [MountOption::NoSuid, MountOption::NoExec]
    );
    assert_eq!(spec.mounts[1].image, None);
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<ContainerSpec>(&json).unwrap(), spec);
    let mut view = container_view();
    view.spec = Arc::new(spec);
    view.image_volumes.insert(0, "sha256:7".into());
    let shown = &render::container_status(&view).mounts;
    let image = shown[0].image.as_ref().unwrap();
    assert_eq!(
        (
            &*image.image,
            &*image.user_specified_image,
            &*image.image_ref
        ),
        ("volume:1", "volume", "sha256:7")
    );
    assert_eq!(shown[0].image_sub_path, "etc");
    assert_eq!(shown[0].mount_options, ["nosuid", "noexec"]);
    assert_eq!(shown[1].image, None);
}

#[test]
fn records_of_earlier_releases_have_mounts_without_images() {
    let old = r#"{"container_path": "/a", "host_path": "/b", "readonly": false,
        "recursive_read_only": false, "selinux_relabel": false, "propagation": "private",
        "uid_mappings": [], "gid_mappings": []}"#;
    let mount: MountSpec = serde_json::from_str(old).unwrap();
    assert_eq!((mount.image, mount.options), (None, Vec::new()));
}

#[test]
fn cdi_devices_come_from_the_field_and_from_annotations_once_each() {
    let spec = changed_container(|c| {
        c.cdi_devices = ["v.com/gpu=1", "v.com/gpu=0"]
            .map(|name| proto::CdiDevice { name: name.into() })
            .into();
        for (key, value) in [
            ("cdi.k8s.io/b", "v.com/gpu=0,v.com/nic=x"),
            ("cdi.k8s.io/a", "v.com/gpu=2"),
            ("other/cdi.k8s.io", "no device"),
        ] {
            c.annotations.insert(key.into(), value.into());
        }
    })
    .unwrap();
    let expected = ["v.com/gpu=1", "v.com/gpu=0", "v.com/gpu=2", "v.com/nic=x"];
    assert_eq!(spec.cdi_devices, expected);
    assert_eq!(spec.annotations.len(), 3, "they are reported as they were");
}

#[test]
fn apparmor_profiles_in_every_notation() {
    let asked = |field: Option<proto::SecurityProfile>, old: &str| {
        let mut request = container_request();
        let context = context(request.config.as_mut().unwrap());
        context.apparmor = field;
        #[allow(deprecated)]
        context.apparmor_profile.push_str(old);
        container(&request, HostSupport { apparmor: true })
            .unwrap()
            .security
            .apparmor
    };
    let mine = Some(SecurityProfile::Localhost("mine".into()));
    assert_eq!(asked(profile(2, "localhost/mine"), ""), mine);
    assert_eq!(asked(profile(2, "mine"), ""), mine);
    assert_eq!(asked(None, "localhost/mine"), mine);
    assert_eq!(
        asked(profile(2, "mine"), "localhost/other"),
        mine,
        "the newer field wins"
    );
    assert_eq!(asked(None, "unconfined"), Some(SecurityProfile::Unconfined));
    assert_eq!(
        asked(profile(0, ""), ""),
        Some(SecurityProfile::RuntimeDefault)
    );
    assert_eq!(asked(None, ""), None);
}
