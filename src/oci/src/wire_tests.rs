use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    "[ -~äß]{0,12}"
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..12)
}

fn index() -> impl Strategy<Value = FdIndex> {
    any::<u16>().prop_map(FdIndex)
}

fn namespace() -> impl Strategy<Value = NamespacePlan> {
    let how = prop_oneof![
        Just(NamespaceHow::New),
        index().prop_map(NamespaceHow::JoinPidfd),
        text().prop_map(NamespaceHow::JoinPath),
    ];
    (0..8_usize, how).prop_map(|(at, how)| NamespacePlan {
        kind: NamespaceKind::ALL[at],
        how,
    })
}

fn filesystem() -> impl Strategy<Value = FilesystemStep> {
    let options = vec((text(), option::of(text())), 0..3);
    let rest = (any::<u64>(), option::of(any::<u32>()));
    (text(), text(), text(), any::<u64>(), options, rest).prop_map(
        |(fstype, source, target, flags, options, (propagation, target_mode))| FilesystemStep {
            fstype,
            source,
            target,
            flags,
            options,
            propagation,
            target_mode,
        },
    )
}

fn bind() -> impl Strategy<Value = BindStep> {
    let attrs = (
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
    );
    (
        text(),
        option::of(text()),
        text(),
        any::<bool>(),
        attrs,
        (option::of(index()), any::<bool>(), option::of(index())),
    )
        .prop_map(
            |(source, in_root, target, recursive, attrs, (idmap, idmap_recursive, detached))| {
                BindStep {
                    source,
                    in_root,
                    target,
                    recursive,
                    attr_set: attrs.0,
                    attr_clear: attrs.1,
                    attr_set_recursive: attrs.2,
                    attr_clear_recursive: attrs.3,
                    propagation: attrs.4,
                    idmap,
                    idmap_recursive,
                    detached,
                }
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    let device = (text(), any::<[u32; 5]>()).prop_map(|(path, [mode, major, minor, uid, gid])| {
        Step::Device(DeviceStep {
            path,
            mode,
            major,
            minor,
            uid,
            gid,
        })
    });
    prop_oneof![
        filesystem().prop_map(Step::Filesystem),
        bind().prop_map(Step::Bind),
        device,
        (text(), text()).prop_map(|(path, target)| Step::Symlink { path, target }),
        (text(), any::<u32>()).prop_map(|(path, mode)| Step::Mkdir { path, mode }),
        text().prop_map(|path| Step::Mask { path }),
        text().prop_map(|path| Step::ReadOnly { path }),
        Just(Step::Console),
        (text(), any::<u64>()).prop_map(|(path, set)| Step::Attributes { path, set }),
    ]
}

fn process() -> impl Strategy<Value = ProcessPlan> {
    let who = (
        any::<u32>(),
        any::<u32>(),
        vec(any::<u32>(), 0..4),
        option::of(any::<u32>()),
    );
    let caps = any::<[u64; 5]>();
    let limits = vec((any::<u32>(), any::<u64>(), any::<u64>()), 0..4);
    let lsm = (option::of(text()), option::of(text()), option::of(text()));
    let seccomp = option::of((bytes(), any::<u64>()));
    let size = option::of(any::<(u16, u16)>());
    let rest = (
        option::of(any::<i32>()),
        any::<bool>(),
        size,
        option::of(any::<u32>()),
        option::of(any::<(u32, u32)>()),
        option::of((any::<u32>(), any::<i32>(), any::<u64>())),
    );
    let texts = (vec(bytes(), 0..4), vec(bytes(), 0..4), text());
    (texts, who, caps, limits, lsm, seccomp, any::<bool>(), rest).prop_map(
        |(texts, who, caps, limits, lsm, seccomp, nnp, rest)| ProcessPlan {
            args: texts.0,
            env: texts.1,
            cwd: texts.2,
            uid: who.0,
            gid: who.1,
            additional_gids: who.2,
            umask: who.3,
            terminal: rest.1,
            console_size: rest.2,
            capabilities: CapabilitySets {
                bounding: caps[0],
                effective: caps[1],
                permitted: caps[2],
                inheritable: caps[3],
                ambient: caps[4],
            },
            no_new_privileges: nnp,
            rlimits: limits
                .into_iter()
                .map(|(resource, soft, hard)| Rlimit {
                    resource,
                    soft,
                    hard,
                })
                .collect(),
            oom_score_adj: rest.0,
            apparmor: lsm.0,
            selinux_label: lsm.1,
            seccomp: seccomp.map(|(program, flags)| SeccompPlan { program, flags }),
            personality: rest.3,
            scheduler: rest.5.map(|(policy, nice, period)| SchedAttr {
                policy,
                nice,
                period,
                ..SchedAttr::default()
            }),
            io_priority: rest.4,
            resctrl: lsm.2,
            guarded: !nnp,
        },
    )
}

fn resources() -> impl Strategy<Value = Resources> {
    let memory = (
        option::of(any::<i64>()),
        option::of(any::<i64>()),
        any::<bool>(),
    );
    let lists = (
        vec((text(), any::<u64>()), 0..3),
        vec((text(), text()), 0..3),
        vec(any::<(u32, u32, u16)>(), 0..3),
        vec((any::<u32>(), option::of(any::<u64>())), 0..3),
    );
    (
        option::of(any::<u64>()),
        option::of(any::<i64>()),
        option::of(text()),
        memory,
        lists,
    )
        .prop_map(
            |(cpu_shares, cpu_quota, cpuset_cpus, memory, lists)| Resources {
                cpu_shares,
                cpu_quota,
                cpuset_cpus,
                memory_limit: memory.0,
                pids_limit: memory.1,
                memory_check_before_update: memory.2,
                hugepages: lists.0,
                unified: lists.1,
                blkio_weight_devices: lists
                    .2
                    .into_iter()
                    .map(|(major, minor, weight)| BlkioWeight {
                        major,
                        minor,
                        weight,
                    })
                    .collect(),
                blkio_throttle: lists
                    .3
                    .into_iter()
                    .map(|(major, read_bps)| BlkioThrottle {
                        major,
                        read_bps,
                        ..BlkioThrottle::default()
                    })
                    .collect(),
                ..Resources::default()
            },
        )
}

fn cgroup() -> impl Strategy<Value = CgroupPlan> {
    let path = || text().prop_map(PathBuf::from);
    let hierarchy = prop_oneof![
        path().prop_map(|mount| Hierarchy::V2 { mount }),
        (vec((text(), path()), 0..3), option::of(path())).prop_map(|(controllers, unified)| {
            Hierarchy::V1 {
                controllers,
                unified,
            }
        }),
    ];
    let kind = prop_oneof![
        Just(DeviceKind::All),
        Just(DeviceKind::Block),
        Just(DeviceKind::Char)
    ];
    let rule = (
        any::<bool>(),
        kind,
        option::of(any::<u32>()),
        option::of(any::<u32>()),
        0..8_u8,
    )
        .prop_map(|(allow, kind, major, minor, access)| DeviceRule {
            allow,
            kind,
            major,
            minor,
            access,
        });
    (
        hierarchy,
        text(),
        resources(),
        vec(rule, 0..4),
        option::of(any::<(u32, u32)>()),
    )
        .prop_map(
            |(hierarchy, path, resources, device_rules, owner)| CgroupPlan {
                hierarchy,
                path,
                resources,
                device_rules,
                owner,
            },
        )
}

fn hooks() -> impl Strategy<Value = HooksPlan> {
    let hook = (
        text(),
        vec(text(), 0..3),
        vec(text(), 0..3),
        option::of(any::<u32>()),
    )
        .prop_map(|(path, args, env, timeout)| HookPlan {
            path,
            args,
            env,
            timeout,
        });
    let heads = (text(), text(), vec((text(), text()), 0..3));
    (heads, vec(vec(hook, 0..3), 6..7)).prop_map(|(heads, mut lists)| {
        let mut next = || lists.pop().unwrap_or_default();
        HooksPlan {
            oci_version: heads.0,
            root_path: heads.1,
            annotations: heads.2,
            prestart: next(),
            create_runtime: next(),
            create_container: next(),
            start_container: next(),
            poststart: next(),
            poststop: next(),
        }
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    let rootfs = prop_oneof![
        index().prop_map(RootfsSource::DetachedMount),
        text().prop_map(RootfsSource::Path)
    ];
    let names = (option::of(text()), option::of(text()), option::of(text()));
    (
        (
            "[a-z0-9]{1,12}",
            text(),
            rootfs,
            any::<bool>(),
            any::<u64>(),
        ),
        vec(namespace(), 0..4),
        names,
        vec((text(), text()), 0..3),
        vec(step(), 0..6),
        process(),
        (cgroup(), option::of(hooks())),
    )
        .prop_map(
            |(head, namespaces, names, sysctls, steps, process, (cgroup, hooks))| Plan {
                id: head.0,
                bundle: head.1,
                rootfs: head.2,
                rootfs_readonly: head.3,
                rootfs_propagation: head.4,
                namespaces,
                hostname: names.0,
                domainname: names.1,
                sysctls,
                steps,
                process,
                cgroup,
                mount_label: names.2,
                hooks,
            },
        )
}

proptest! {
    #[test]
    fn every_plan_comes_back(plan in plan()) {
        prop_assert_eq!(decode(&encode(&plan)), Ok(plan));
    }

    #[test]
    fn a_damaged_plan_never_panics(
        plan in plan(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode(&plan);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok(read) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&read)), Ok(read));
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        let _ = decode(&bytes);
        let _ = decode_process(&bytes);
    }

    #[test]
    fn every_process_comes_back(process in process()) {
        prop_assert_eq!(decode_process(&encode_process(&process)), Ok(process));
    }
}

#[test]
fn unknown_tags_are_skipped_and_unknown_steps_refused() {
    let mut writer = Writer::new();
    writer.put_str(1, "id");
    writer.put_str(9999, "from the future");
    assert_eq!(
        decode(&writer.clone().into_bytes()).expect("skips").id,
        "id"
    );
    writer.put_group(10, |group| group.put_bool(99, true));
    assert_eq!(
        decode(&writer.into_bytes()),
        Err(DecodeError::Unknown {
            what: "step",
            number: 99
        })
    );
    assert_eq!(decode(&[]), Err(DecodeError::Absent("id")));
}
