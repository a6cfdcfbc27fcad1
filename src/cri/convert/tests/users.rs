//! User namespaces of pods, and volumes whose owners are translated.

use super::*;

#[test]
fn a_right_user_namespace_passes_whole() {
    let spec = changed_sandbox(|c| userns(c, 0, &[(100_000, 0, 1000)])).unwrap();
    let range = IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 1000,
    };
    let expected = UserNamespace::Pod {
        uids: range,
        gids: range,
    };
    assert_eq!(spec.security.namespaces.user, expected);
    changed_sandbox(|c| userns(c, 2, &[])).unwrap();
    // With the host's network it may be, with its processes or memory not.
    changed_sandbox(|c| {
        userns(c, 0, &[(100_000, 0, 1000)]);
        sandbox_namespaces(c).network = 2;
    })
    .unwrap();
    let shared: [(&str, SandboxChange); 2] = [
        ("pid", |c| sandbox_namespaces(c).pid = 2),
        ("ipc", |c| sandbox_namespaces(c).ipc = 2),
    ];
    for (field, change) in shared {
        let mut request = sandbox_request();
        let config = request.config.as_mut().unwrap();
        userns(config, 0, &[(100_000, 0, 1000)]);
        change(config);
        let error = sandbox(&request, NO_APPARMOR).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(
            error
                .to_string()
                .contains(&format!("namespace_options.{field}: must not be NODE")),
            "{error}"
        );
    }
}

#[test]
fn volumes_are_translated_by_ranges_that_do_not_meet() {
    let mapping = |host_id, container_id, length| proto::IdMapping {
        host_id,
        container_id,
        length,
    };
    let with = |uids: &[proto::IdMapping], gids: &[proto::IdMapping]| {
        let (uids, gids) = (uids.to_vec(), gids.to_vec());
        let mut request = container_request();
        let config = request.config.as_mut().unwrap();
        let i = add_mount(config, "/a", "/x");
        config.mounts[i].uid_mappings = uids;
        config.mounts[i].gid_mappings = gids;
        container(&request, NO_APPARMOR)
    };
    let one = [mapping(100_000, 0, 1000)];
    let two = [mapping(100_000, 0, 1000), mapping(5, 1000, 1)];
    let spec = with(&two, &one).unwrap();
    assert_eq!(spec.mounts[0].uid_mappings.len(), 2);
    assert_eq!(spec.mounts[0].gid_mappings[0].host_id, 100_000);
    for (uids, gids, field) in [
        (&one[..], &[][..], "uidMappings: must be set if"),
        (&[], &one, "uidMappings: must be set if"),
        (
            &[mapping(1, 0, 0)],
            &one,
            "uidMappings[0].length: must be at least 1",
        ),
        (
            &one,
            &[mapping(u32::MAX, 0, 2)],
            "gidMappings[0].length: 2 ids",
        ),
        (
            &[mapping(1, 0, 10), mapping(20, 9, 5)],
            &one,
            "uidMappings[1]: must not overlap",
        ),
        (
            &[mapping(1, 0, 10), mapping(10, 50, 5)],
            &one,
            "uidMappings[1]: must not overlap",
        ),
    ] {
        let error = with(uids, gids).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn a_container_asks_for_the_user_namespace_of_its_pod_or_for_none() {
    let range = |host_id| IdMapping {
        host_id,
        container_id: 0,
        length: 1000,
    };
    let users = |host_id| UserNamespace::Pod {
        uids: range(host_id),
        gids: range(host_id),
    };
    let mut pod = SandboxSpec::default();
    pod.security.namespaces.user = users(1000);
    let mut asked = ContainerSpec::default();
    fits_sandbox(&asked, &pod).unwrap();
    asked.security.namespaces.user = users(1000);
    fits_sandbox(&asked, &pod).unwrap();
    asked.security.namespaces.user = users(2000);
    for pod in [&pod, &SandboxSpec::default()] {
        let error = fits_sandbox(&asked, pod).unwrap_err().to_string();
        assert!(
            error.contains("userns_options: must be the same"),
            "{error}"
        );
    }
    asked = ContainerSpec::default();
    asked.security.namespaces.pid = PidMode::Node;
    let error = fits_sandbox(&asked, &pod).unwrap_err().to_string();
    assert!(error.contains("namespace_options.pid"), "{error}");
    asked = ContainerSpec::default();
    asked.mounts.push(MountSpec {
        container_path: "/v".into(),
        host_path: "/v".into(),
        image: None,
        options: Vec::new(),
        readonly: false,
        recursive_read_only: false,
        selinux_relabel: false,
        propagation: Propagation::Bidirectional,
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
    });
    let error = fits_sandbox(&asked, &pod).unwrap_err().to_string();
    assert!(error.contains("mounts[0].propagation"), "{error}");
}
