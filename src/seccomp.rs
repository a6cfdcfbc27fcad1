//! Seccomp profiles by name, compiled once and kept.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crisp_oci::{
    plan::SeccompPlan,
    seccomp::{self, Circumstances, CompileError, Profile, ProfileError, Program},
};
use oci_spec::{OciSpecError, runtime::LinuxSeccomp};

use crate::{
    bundle::{HostFacts, SeccompWanted, seccomp_wanted},
    container::spec::ContainerSpec,
    error::{Classify, ErrorKind},
};

/// Largest profile read from a file.
const MAX_PROFILE: u64 = 1024 * 1024;
/// Most profiles kept; beyond it the cache starts anew.
const MAX_KEPT: usize = 256;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The file cannot be read.
    #[error("localhost_ref: cannot read profile {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no profile.
    #[error("localhost_ref: {} is not a seccomp profile", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ProfileError,
    },
    /// The profile cannot be written into a runtime spec: a bug of ours.
    #[error("cannot write the seccomp profile into the runtime spec")]
    Spec(#[source] OciSpecError),
    /// The profile cannot be compiled.
    #[error("cannot compile the seccomp profile")]
    Compile(#[source] CompileError),
}

impl Classify for SeccompError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// A profile in its two forms.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// For the runtime spec on disk.
    pub spec: LinuxSeccomp,
    /// For the kernel.
    pub program: Program,
}

impl Compiled {
    /// For a plan.
    #[must_use]
    pub fn plan(&self) -> SeccompPlan {
        SeccompPlan {
            program: self.program.bytes.to_vec(),
            flags: self.program.flags,
        }
    }
}

/// Compiled filters by what they were made of.
#[derive(Debug, Default)]
pub struct Filters {
    // Held for map operations only; a profile compiled twice at the same time does no harm.
    kept: Mutex<HashMap<Key, Arc<Compiled>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Default { capabilities: u64 },
    File { content: Vec<u8>, capabilities: u64 },
}

impl Filters {
    /// The filter that a container asks for, if any.
    ///
    /// # Errors
    /// When its profile cannot be read or compiled.
    pub fn wanted(
        &self,
        container: &ContainerSpec,
        host: &HostFacts,
    ) -> Result<Option<Compiled>, SeccompError> {
        let capabilities = crate::bundle::capability_bits(container, host);
        let key = match seccomp_wanted(container) {
            SeccompWanted::None => return Ok(None),
            SeccompWanted::RuntimeDefault => Key::Default { capabilities },
            SeccompWanted::Localhost(path) => {
                let content = read(Path::new(&path))?;
                return self
                    .compiled(
                        Key::File {
                            content,
                            capabilities,
                        },
                        Some(path),
                    )
                    .map(Some);
            }
        };
        self.compiled(key, None).map(Some)
    }

    fn compiled(&self, key: Key, path: Option<PathBuf>) -> Result<Compiled, SeccompError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = kept().get(&key) {
            return Ok(compiled.as_ref().clone());
        }
        let profile = match &key {
            Key::Default { capabilities } => seccomp::default_profile(*capabilities),
            Key::File {
                content,
                capabilities,
            } => {
                let at = Circumstances {
                    caps: *capabilities,
                    kernel: kernel_version(),
                };
                Profile::from_json(content, &at).map_err(|source| SeccompError::Parse {
                    path: path.unwrap_or_default(),
                    source,
                })?
            }
        };
        let program = seccomp::compile(&profile).map_err(SeccompError::Compile)?;
        let compiled = Compiled {
            spec: profile.to_oci().map_err(SeccompError::Spec)?,
            program,
        };
        let mut kept = kept();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key, Arc::new(compiled.clone()));
        Ok(compiled)
    }
}

/// Major and minor version of the running kernel, which a profile's conditions may ask for.
fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().ok();
    let release = release
        .as_ref()
        .and_then(|name| name.release().to_str())
        .unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn read(path: &Path) -> Result<Vec<u8>, SeccompError> {
    let failed = |source| SeccompError::Read {
        path: path.to_owned(),
        source,
    };
    // A FIFO must not hang the daemon.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let mut content = Vec::new();
    file.take(MAX_PROFILE + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > MAX_PROFILE {
        return Err(failed(io::Error::other("larger than 1 MiB")));
    }
    Ok(content)
}
