//! Images as volumes, options of mounts, CDI devices.

use super::*;

const REFUSALS: &[(ContainerChange, &str)] = &[
    (
        |c| image_mount(c).host_path = "/srv".into(),
        "config.mounts[0].host_path: must be empty if image is set",
    ),
    (
        |c| image_mount(c).readonly = false,
        "config.mounts[0].readonly: must be set if image is set",
    ),
    (
        |c| {
            context(c).privileged = true;
            image_mount(c).propagation = 2;
        },
        "config.mounts[0].propagation: must not be PROPAGATION_BIDIRECTIONAL if image",
    ),
    (
        |c| image_mount(c).image_sub_path = "a\0b".into(),
        "config.mounts[0].image_sub_path: must not contain",
    ),
    (
        |c| image_mount(c).image.as_mut().unwrap().image = "two words".into(),
        "config.mounts[0].image.image: ",
    ),
    (
        |c| {
            for _ in 0..129 {
                image_mount(c);
            }
        },
        "config.mounts: must have at most 128 images",
    ),
    (
        |c| {
            let i = add_mount(c, "/a", "/x");
            c.mounts[i].mount_options = vec!["noexec".into(), "exec".into()];
        },
        "config.mounts[0].mount_options[1]: must be one of noexec, nosuid, nodev, is \"exec\"",
    ),
    (
        |c| {
            c.cdi_devices = vec![
                proto::CdiDevice {
                    name: "vendor.com/gpu=0".into(),
                },
                proto::CdiDevice {
                    name: "vendor.com/gpu".into(),
                },
            ];
        },
        "config.CDI_devices[1].name: \"vendor.com/gpu\" must be of the form",
    ),
    (
        |c| {
            let names = "vendor.com/gpu=0,1".to_owned();
            drop(c.annotations.insert("cdi.k8s.io/plugin_gpu".into(), names));
        },
        "config.annotations[\"cdi.k8s.io/plugin_gpu\"]: \"1\" must be of the form",
    ),
];

#[test]
fn wrong_volumes_and_devices_are_refused_by_field() {
    for (change, expected) in REFUSALS {
        let error = changed_container(*change).expect_err(expected);
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

/// Adds an image as a volume.
fn image_mount(config: &mut proto::ContainerConfig) -> &mut proto::Mount {
    let index = add_mount(config, "/image", "");
    let mount = &mut config.mounts[index];
    mount.readonly = true;
    mount.image = Some(proto::ImageSpec {
        image: "volume:1".into(),
        user_specified_image: "volume".into(),
        ..Default::default()
    });
    mount
}

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
