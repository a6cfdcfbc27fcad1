//! Hooks, groups of resctrl, mounts that are attached nowhere.

use super::*;

#[test]
fn what_cannot_be_served_of_them_is_refused_by_name() {
    let table = [
        (
            "/hooks/createRuntime",
            json!([{"path": "true"}]),
            "hooks.createRuntime[0].path: \"true\" is not an absolute path",
        ),
        (
            "/hooks/prestart",
            json!([{"path": "/bin/true"}, {"path": "/bin/true", "timeout": 0}]),
            "hooks.prestart[1].timeout: 0 is not a number of seconds above 0",
        ),
        (
            "/hooks/poststop",
            json!([{"path": "/bin/true", "env": ["A=\0"]}]),
            "hooks.poststop[0].env: \"A=\\0\" contains NUL",
        ),
        (
            "/hooks/startContainer",
            json!(vec![json!({"path": "/bin/true"}); 257]),
            "hooks.startContainer: more than 256",
        ),
        (
            "/linux/intelRdt",
            json!({"closID": "a/b"}),
            "linux.intelRdt.closID: \"a/b\" is no name of a group",
        ),
        (
            "/linux/intelRdt",
            json!({}),
            "linux.intelRdt.closID is absent",
        ),
        (
            "/linux/intelRdt",
            json!({"closID": "x", "l3CacheSchema": "L3:0=f"}),
            "linux.intelRdt.l3CacheSchema is not supported",
        ),
        (
            "/linux/intelRdt",
            json!({"closID": "x", "enableMonitoring": true}),
            "linux.intelRdt.enableMonitoring is not supported",
        ),
    ];
    for (pointer, value, expected) in table {
        assert_eq!(refused(pointer, value), expected);
    }
}

#[test]
fn hooks_are_planned_with_what_they_are_told() {
    let hook =
        |path: &str| json!([{"path": path, "args": ["a", "b"], "env": ["X=1"], "timeout": 3}]);
    let mut spec = with(
        "/hooks",
        json!({
            "prestart": hook("/1"), "createRuntime": hook("/2"), "createContainer": hook("/3"),
            "startContainer": hook("/4"), "poststart": hook("/5"), "poststop": hook("/6"),
        }),
    );
    spec["annotations"] = json!({"b": "2", "a": "1"});
    let hooks = planned(spec).hooks.expect("hooks");
    let lists = [
        &hooks.prestart,
        &hooks.create_runtime,
        &hooks.create_container,
        &hooks.start_container,
        &hooks.poststart,
        &hooks.poststop,
    ];
    for (index, list) in lists.into_iter().enumerate() {
        let expected = crate::plan::HookPlan {
            path: format!("/{}", index + 1),
            args: vec!["a".into(), "b".into()],
            env: vec!["X=1".into()],
            timeout: Some(3),
        };
        assert_eq!(*list, [expected]);
    }
    assert_eq!(
        (&*hooks.root_path, &*hooks.oci_version),
        ("/run/b/rootfs", "1.2.0")
    );
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(hooks.annotations, [pair("a", "1"), pair("b", "2")]);
    assert_eq!(planned(with("/hooks", json!({"poststop": []}))).hooks, None);
}

#[test]
fn a_group_of_resctrl_is_its_tasks_file() {
    for (group, tasks) in [
        ("/", "/sys/fs/resctrl/tasks"),
        ("gold", "/sys/fs/resctrl/gold/tasks"),
    ] {
        let plan = planned(with("/linux/intelRdt", json!({"closID": group})));
        assert_eq!(plan.process.resctrl.as_deref(), Some(tasks));
    }
}

#[test]
fn a_source_may_stand_for_a_detached_mount() {
    let spec = with(
        "/mounts",
        json!([
            {"destination": "/a", "type": "bind", "source": "/run/v/0", "options": ["rbind", "ro"]},
            {"destination": "/b", "type": "bind", "source": "/run/v/1", "options": ["rbind", "ro"]},
        ]),
    );
    let spec: Spec = serde_json::from_value(spec).expect("a specification");
    let detached = [DetachedSource {
        source: "/run/v/1".into(),
        mount: FdIndex(4),
        below: Some("etc".into()),
    }];
    let plan = plan(&SpecInput {
        spec: &spec,
        id: "c1",
        bundle: "/run/b",
        host: &host(),
        rootfs: None,
        joins: &[],
        seccomp: None,
        detached: &detached,
        idmaps: &[],
    });
    let steps = plan.expect("planned").steps;
    let bound = |step: &Step| match step {
        Step::Bind(bind) => Some((bind.detached, bind.in_root.clone())),
        _ => None,
    };
    let binds: Vec<_> = steps.iter().filter_map(bound).collect();
    assert_eq!(
        binds,
        [(None, None), (Some(FdIndex(4)), Some("etc".into()))]
    );
}
