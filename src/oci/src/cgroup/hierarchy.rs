//! Which control group hierarchies the host has.

use std::fs;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// The hierarchies of a host, found once at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// One tree with all controllers.
    V2 {
        /// Where it is mounted.
        mount: PathBuf,
    },
    /// A tree per controller (or group of controllers).
    V1 {
        /// Controller (`memory`, `name=systemd`, ..) and where its tree is mounted. Controllers
        /// mounted together name the same place.
        controllers: Vec<(String, PathBuf)>,
        /// A v2 tree mounted besides, for killing and for knowing whether a group is populated.
        unified: Option<PathBuf>,
    },
}

/// Controllers of v1 that are joined. Others (net_cls, perf_event, ..) hold nothing of ours.
const WANTED: [&str; 10] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "devices",
    "freezer",
    "blkio",
    "hugetlb",
    "name=systemd",
];

impl Hierarchy {
    /// Looks at the mounts of the calling process.
    ///
    /// # Errors
    /// [`CgroupError::Probe`] when `/proc/self/mountinfo` cannot be read, [`CgroupError::NoHierarchy`] when it
    /// names no control groups.
    pub fn probe() -> Result<Self, CgroupError> {
        let path = "/proc/self/mountinfo";
        let text = fs::read_to_string(path).map_err(|source| CgroupError::Probe {
            path: path.into(),
            source,
        })?;
        Self::from_mountinfo(&text).ok_or(CgroupError::NoHierarchy)
    }

    /// The pure part of [`Hierarchy::probe`].
    #[must_use]
    pub fn from_mountinfo(text: &str) -> Option<Self> {
        let mut unified = None;
        let mut controllers: Vec<(String, PathBuf)> = Vec::new();
        for mount in text.lines().filter_map(Mount::parse) {
            match mount.fstype {
                // The first mount of a tree is the host's; later ones are clones of it.
                "cgroup2" => unified = unified.or(Some(mount.point)),
                "cgroup" => {
                    for option in mount.options.split(',').filter(|o| WANTED.contains(o)) {
                        if controllers.iter().all(|(name, _)| name != option) {
                            controllers.push((option.to_owned(), mount.point.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        let real = controllers
            .iter()
            .any(|(name, _)| !name.starts_with("name="));
        match (real, unified) {
            (false, Some(mount)) => Some(Self::V2 { mount }),
            (false, None) => None,
            (true, unified) => Some(Self::V1 {
                controllers,
                unified,
            }),
        }
    }

    /// The distinct trees, each with the controllers it carries; the unified one of a hybrid host
    /// comes last, without a controller.
    pub(super) fn trees(&self) -> Vec<Tree> {
        match self {
            Self::V2 { mount } => vec![Tree {
                mount: mount.clone(),
                kind: TreeKind::Unified,
            }],
            Self::V1 {
                controllers,
                unified,
            } => {
                let mut trees: Vec<(PathBuf, Vec<String>)> = Vec::new();
                for (name, mount) in controllers {
                    match trees.iter_mut().find(|tree| tree.0 == *mount) {
                        Some(tree) => tree.1.push(name.clone()),
                        None => trees.push((mount.clone(), vec![name.clone()])),
                    }
                }
                let mut trees: Vec<_> = trees
                    .into_iter()
                    .map(|(mount, names)| Tree {
                        mount,
                        kind: TreeKind::V1(names),
                    })
                    .collect();
                trees.extend(unified.iter().map(|at| Tree {
                    mount: at.clone(),
                    kind: TreeKind::Unified,
                }));
                trees
            }
        }
    }
}

/// One mounted tree.
pub(super) struct Tree {
    pub(super) mount: PathBuf,
    pub(super) kind: TreeKind,
}

/// What a tree carries.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TreeKind {
    Unified,
    V1(Vec<String>),
}

struct Mount<'a> {
    point: PathBuf,
    fstype: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// proc_pid_mountinfo(5).
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let point = unescape(front.split(' ').nth(4)?);
        let mut back = back.split(' ');
        let fstype = back.next()?;
        let options = back.nth(1)?;
        Some(Self {
            point: PathBuf::from(point),
            fstype,
            options,
        })
    }
}

/// mountinfo writes blank, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).map(|digits| u8::from_str_radix(digits, 8)) {
            Some(Ok(byte)) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            _ => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// A path below the mounts: absolute, without empty, `.` or `..` components.
pub(super) fn check_path(path: &str) -> Result<&str, CgroupError> {
    let wrong = |why| {
        Err(CgroupError::Path {
            path: path.to_owned(),
            why,
        })
    };
    let Some(relative) = path.strip_prefix('/') else {
        return wrong("it must begin with a slash");
    };
    if path.len() > 3000 {
        return wrong("it is longer than 3000 bytes");
    }
    for component in relative.split('/') {
        match component {
            "" => return wrong("a component is empty"),
            "." | ".." => return wrong("a component is . or .."),
            name if name.len() > 255 => return wrong("a component is longer than 255 bytes"),
            name if name.bytes().any(|byte| byte < b' ') => {
                return wrong("a component has a control character");
            }
            _ => {}
        }
    }
    Ok(relative)
}

/// Where a process is in a tree, from the text of its `/proc/PID/cgroup` (cgroups(7)).
pub(super) fn membership<'a>(text: &'a str, kind: &TreeKind) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let found = match kind {
            TreeKind::Unified => names.is_empty(),
            TreeKind::V1(wanted) => wanted
                .iter()
                .any(|name| names.split(',').any(|n| n == name)),
        };
        found.then_some(path)
    })
}

/// `path` and the directories above it up to, not including, `mount`; topmost first.
pub(super) fn chain(mount: &Path, relative: &str) -> Vec<PathBuf> {
    let mut at = mount.to_path_buf();
    relative
        .split('/')
        .map(|component| {
            at.push(component);
            at.clone()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /somewhere/else rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
37 31 0:39 / /sys/fs/cgroup/net_cls rw - cgroup cgroup rw,net_cls
";
    const V2: &str = "41 31 0:38 / /sys/fs/c\\040group rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn v2_is_found_when_no_v1_controller_is_mounted() {
        let mount = PathBuf::from("/sys/fs/c group");
        assert_eq!(Hierarchy::from_mountinfo(V2), Some(Hierarchy::V2 { mount }));
        let named = "40 31 0:37 / /s rw - cgroup cgroup rw,name=systemd\n";
        let found = Hierarchy::from_mountinfo(&format!("{named}{V2}"));
        assert!(matches!(found, Some(Hierarchy::V2 { .. })));
        assert_eq!(Hierarchy::from_mountinfo(named), None);
    }

    #[test]
    fn hybrid_has_v1_controllers_and_the_unified_tree() {
        let found = Hierarchy::from_mountinfo(&format!("{V1}{V2}")).unwrap();
        let Hierarchy::V1 {
            controllers,
            unified,
        } = &found
        else {
            panic!("{found:?}")
        };
        let names: Vec<_> = controllers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu", "cpuacct", "memory", "name=systemd"]);
        assert_eq!(controllers[2].1, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(unified.as_deref(), Some(Path::new("/sys/fs/c group")));
        let kinds: Vec<_> = found.trees().into_iter().map(|tree| tree.kind).collect();
        assert_eq!(kinds[0], TreeKind::V1(vec!["cpu".into(), "cpuacct".into()]));
        assert_eq!(kinds.last(), Some(&TreeKind::Unified));
    }

    #[test]
    fn membership_is_found_per_tree() {
        let text = "9:name=systemd:/s\n2:cpu,cpuacct:/a:b\n0::/u\n";
        let of = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect();
            membership(text, &TreeKind::V1(names))
        };
        assert_eq!(of(&["cpuacct"]), Some("/a:b"));
        assert_eq!(of(&["name=systemd"]), Some("/s"));
        assert_eq!(of(&["memory"]), None);
        assert_eq!(membership(text, &TreeKind::Unified), Some("/u"));
    }

    #[test]
    fn paths_that_leave_the_tree_are_refused() {
        for path in [
            "", "a", "/", "/a/", "//a", "/a/../b", "/a/./b", "/..", "/a\n",
        ] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        assert_eq!(check_path("/kubepods/pod1/x").unwrap(), "kubepods/pod1/x");
    }
}
