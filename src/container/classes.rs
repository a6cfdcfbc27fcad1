//! Classes that divide the machine: which one a container is in, by its and its pod's annotations.
//!
//! The most specific annotation counts: the container's own, then the pod's for this container, then
//! the pod's for all of its containers.

use std::path::Path;

use super::spec::ContainerSpec;
use crate::{
    blockio::{self, BlockIoError},
    bundle::Classes,
    error::{Classify, ErrorKind},
    sandbox::spec::SandboxSpec,
};

/// Where the kernel's groups of cache and memory bandwidth are.
pub const RESCTRL: &str = "/sys/fs/resctrl";

/// A kind of class with its annotations.
struct Kind {
    container: &'static str,
    pod: &'static str,
}

const RDT: Kind = Kind {
    container: "io.kubernetes.cri.rdt-class",
    pod: "rdt.resources.beta.kubernetes.io/",
};

const BLOCK_IO: Kind = Kind {
    container: "io.kubernetes.cri.blockio-class",
    pod: "blockio.resources.beta.kubernetes.io/",
};

/// Why a container cannot be in the class it asks for.
#[derive(Debug, thiserror::Error)]
pub enum ClassError {
    /// The name cannot be a group's.
    #[error("RDT class {class:?} (annotation {annotation}) is no name of a resctrl group")]
    Name {
        /// The class.
        class: String,
        /// Who says so.
        annotation: String,
    },
    /// The host does not divide its caches.
    #[error(
        "RDT class {class:?} (annotation {annotation}): this host has no resctrl mounted at {RESCTRL}"
    )]
    NoResctrl {
        /// The class.
        class: String,
        /// Who says so.
        annotation: String,
    },
    /// There is no such group.
    #[error(
        "RDT class {class:?} (annotation {annotation}): there is no group of that name in {RESCTRL}"
    )]
    NoGroup {
        /// The class.
        class: String,
        /// Who says so.
        annotation: String,
    },
    /// The class of block I/O cannot be used.
    #[error("block I/O class {class:?} (annotation {annotation})")]
    BlockIo {
        /// The class.
        class: String,
        /// Who says so.
        annotation: String,
        /// Why.
        #[source]
        source: BlockIoError,
    },
}

impl Classify for ClassError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name { .. } | Self::NoGroup { .. } => ErrorKind::InvalidArgument,
            Self::NoResctrl { .. } => ErrorKind::Unsupported,
            Self::BlockIo { source, .. } => source.kind(),
        }
    }
}

/// The classes of a container. Reads the class file and looks up groups only where one is asked for.
///
/// # Errors
/// A class that is asked for and not there is named, with the annotation.
pub fn resolve(
    container: &ContainerSpec,
    sandbox: &SandboxSpec,
    resctrl: &Path,
    block_io: &Path,
) -> Result<Classes, ClassError> {
    let mut classes = Classes::default();
    if let Some((annotation, class)) = asked(&RDT, container, sandbox) {
        classes.resctrl = Some(group(resctrl, annotation, class)?);
    }
    if let Some((annotation, class)) = asked(&BLOCK_IO, container, sandbox) {
        let limits = blockio::class(block_io, &class);
        classes.block_io = Some(limits.map_err(|source| ClassError::BlockIo {
            class,
            annotation,
            source,
        })?);
    }
    Ok(classes)
}

/// The annotation that counts, and the class it names; an empty name is none.
fn asked(
    kind: &Kind,
    container: &ContainerSpec,
    sandbox: &SandboxSpec,
) -> Option<(String, String)> {
    let own = kind.container.to_owned();
    let one = format!("{}container.{}", kind.pod, container.metadata.name);
    let all = format!("{}pod", kind.pod);
    let lookups = [
        (&container.annotations, own),
        (&sandbox.annotations, one),
        (&sandbox.annotations, all),
    ];
    lookups
        .into_iter()
        .find_map(|(annotations, key)| Some((annotations.get(&key)?.clone(), key)))
        .filter(|(class, _)| !class.is_empty())
        .map(|(class, key)| (key, class))
}

fn group(resctrl: &Path, annotation: String, class: String) -> Result<String, ClassError> {
    let named = !matches!(&*class, "." | "..") && !class.contains(['/', '\n', '\0']);
    if !named || class.len() > 255 {
        return Err(ClassError::Name { class, annotation });
    }
    if !resctrl.join("tasks").exists() {
        return Err(ClassError::NoResctrl { class, annotation });
    }
    if !resctrl.join(&class).join("tasks").exists() {
        return Err(ClassError::NoGroup { class, annotation });
    }
    Ok(class)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::Chain;

    fn specs(container: &[(&str, &str)], pod: &[(&str, &str)]) -> (ContainerSpec, SandboxSpec) {
        let map = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let mut spec = ContainerSpec {
            annotations: map(container),
            ..ContainerSpec::default()
        };
        spec.metadata.name = "main".into();
        let sandbox = SandboxSpec {
            annotations: map(pod),
            ..SandboxSpec::default()
        };
        (spec, sandbox)
    }

    #[test]
    fn the_most_specific_annotation_counts() {
        let pod = "rdt.resources.beta.kubernetes.io/pod";
        let one = "rdt.resources.beta.kubernetes.io/container.main";
        let other = "rdt.resources.beta.kubernetes.io/container.other";
        let own = "io.kubernetes.cri.rdt-class";
        for (container, sandbox, expected) in [
            (&[][..], &[][..], None),
            (&[], &[(other, "x")], None),
            (&[], &[(pod, "a")], Some("a")),
            (&[], &[(pod, "a"), (one, "b")], Some("b")),
            (&[(own, "c")], &[(pod, "a"), (one, "b")], Some("c")),
            (&[], &[(pod, "a"), (one, "")], None),
        ] {
            let (container, sandbox) = specs(container, sandbox);
            let found = asked(&RDT, &container, &sandbox).map(|(_, class)| class);
            assert_eq!(found.as_deref(), expected);
        }
    }

    #[test]
    fn a_class_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let resctrl = dir.path().join("resctrl");
        let classes = dir.path().join("classes.yaml");
        let resolve = |class: &str| {
            let (container, sandbox) = specs(&[("io.kubernetes.cri.rdt-class", class)], &[]);
            resolve(&container, &sandbox, &resctrl, &classes)
        };
        let text = |class: &str| Chain(&resolve(class).unwrap_err()).to_string();
        assert!(text("gold").contains("\"gold\"") && text("gold").contains("no resctrl"));
        fs::create_dir_all(resctrl.join("gold")).unwrap();
        fs::write(resctrl.join("tasks"), "").unwrap();
        assert!(text("gold").contains("no group of that name"));
        fs::write(resctrl.join("gold/tasks"), "").unwrap();
        assert_eq!(resolve("gold").unwrap().resctrl.as_deref(), Some("gold"));
        assert!(text("../x").contains("no name of a resctrl group"));
        let annotation = "blockio.resources.beta.kubernetes.io/pod";
        let (container, sandbox) = specs(&[], &[(annotation, "slow")]);
        let error = super::resolve(&container, &sandbox, &resctrl, &classes).unwrap_err();
        let text = Chain(&error).to_string();
        assert!(
            text.contains("\"slow\"") && text.contains(annotation),
            "{text}"
        );
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{text}");
    }
}
