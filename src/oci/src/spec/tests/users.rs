//! User namespaces, what other namespaces are needed for, and what must not reach the plan.

use super::*;

/// A specification as for a pod with a user namespace.
fn with_users(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = base();
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user", "path": "/proc/77/ns/user"}));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    spec["linux"]["uidMappings"] = mapping.clone();
    spec["linux"]["gidMappings"] = mapping;
    change(&mut spec);
    spec
}

#[test]
fn a_user_namespace_is_joined_and_its_ids_are_checked() {
    let joins = [(NamespaceKind::User, FdIndex(3))];
    let plan = plan_on(with_users(|_| {}), &host(), &joins).unwrap();
    let joined = plan
        .namespaces
        .iter()
        .find(|entry| entry.kind == NamespaceKind::User);
    assert_eq!(joined.unwrap().how, NamespaceHow::JoinPidfd(FdIndex(3)));
    assert_eq!(plan.cgroup.owner, None, "it does not see its groups");
    for (field, user) in [
        ("process.user.uid", json!({"uid": 1000, "gid": 0})),
        ("process.user.gid", json!({"uid": 0, "gid": 1000})),
        (
            "process.user.additionalGids",
            json!({"uid": 0, "gid": 0, "additionalGids": [5, 2000]}),
        ),
    ] {
        let spec = with_users(|spec| spec["process"]["user"] = user);
        let error = plan_on(spec, &host(), &joins).unwrap_err().to_string();
        assert!(
            error.starts_with(field) && error.ends_with("is not mapped in the user namespace"),
            "{error}"
        );
    }
}

#[test]
fn who_may_write_to_its_groups_in_a_user_namespace_owns_them() {
    let mount = |access: &str| json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", access]}]);
    for (access, owner) in [("rw", Some((100_000, 100_000))), ("ro", None)] {
        let spec = with_users(|spec| spec["mounts"] = mount(access));
        let plan = plan_on(spec, &host(), &[]).unwrap();
        assert_eq!(plan.cgroup.owner, owner, "{access}");
    }
    let mut spec = base();
    spec["mounts"] = mount("rw");
    assert_eq!(planned(spec).cgroup.owner, None, "the host's root is");
}

#[test]
fn mounts_with_mappings_find_their_user_namespace() {
    let spec = |mapping: Value, options: Value| {
        let mut spec = base();
        spec["mounts"] = json!([{"destination": "/v", "type": "bind", "source": "/srv",
            "options": options, "uidMappings": mapping.clone(), "gidMappings": mapping}]);
        spec
    };
    let idmap = |outside| {
        let ranges = vec![IdRange {
            inside: 0,
            outside,
            length: 10,
        }];
        Idmap {
            uids: ranges.clone(),
            gids: ranges,
            namespace: FdIndex(4),
        }
    };
    let plan = |spec: Value, idmaps: &[Idmap]| {
        let spec: Spec = serde_json::from_value(spec).unwrap();
        plan(&SpecInput {
            spec: &spec,
            id: "c1",
            bundle: "/run/b",
            host: &host(),
            rootfs: None,
            joins: &[],
            idmaps,
            detached: &[],
            seccomp: None,
        })
    };
    let mapping = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    for (options, recursive) in [
        (json!(["rbind"]), false),
        (json!(["rbind", "idmap"]), false),
        (json!(["rbind", "ridmap"]), true),
    ] {
        let made = plan(spec(mapping.clone(), options), &[idmap(1), idmap(5000)]).unwrap();
        let [Step::Bind(bind)] = &made.steps[..1] else {
            panic!("{:?}", made.steps)
        };
        assert_eq!(
            (bind.idmap, bind.idmap_recursive),
            (Some(FdIndex(4)), recursive)
        );
    }
    let error = plan(spec(mapping, json!(["rbind"])), &[idmap(1)]).unwrap_err();
    assert!(
        error.to_string().contains("mounts[0].uidMappings"),
        "{error}"
    );
}

#[test]
fn annotations_steer_nothing() {
    let with = with(
        "/annotations",
        json!({
            "run.oci.keep_original_groups": "1",
            "run.oci.mount_context_type": "rootcontext",
            "run.oci.handler": "krun",
            "run.oci.delegate-cgroup": "a",
            "org.systemd.property.MemoryMax": "1",
            "org.criu.config": "/etc/shadow",
            "bundle": "/",
        }),
    );
    assert_eq!(planned(with), planned(base()));
}

#[test]
fn a_host_name_needs_a_namespace() {
    let mut spec = with("/hostname", json!("h"));
    assert_eq!(planned(spec.clone()).hostname.as_deref(), Some("h"));
    spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let error = plan_on(spec, &host(), &[]).unwrap_err().to_string();
    assert_eq!(error, "hostname: needs a UTS namespace of the container's");
    assert!(refused("/hostname", json!("h".repeat(65))).contains("longer than 64"));
}
