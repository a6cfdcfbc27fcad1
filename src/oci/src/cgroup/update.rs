//! Setting limits: all or none.

use std::io;
use std::path::{Path, PathBuf};

use super::setting::{self, Setting};
use super::{Cgroup, CgroupError, Resources, read, write};

const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

impl Cgroup {
    /// Sets the limits that are named and leaves the others. If one cannot be set, those set
    /// before it get their earlier values back. What was set can be taken back by [`Updated::undo`].
    ///
    /// # Errors
    /// [`CgroupError::Resources`] before anything was touched; [`CgroupError::Set`],
    /// [`CgroupError::NoController`], [`CgroupError::MemoryInUse`]; [`CgroupError::Rollback`] if
    /// going back failed as well.
    pub fn update(&self, resources: &Resources) -> Result<Updated, CgroupError> {
        let current = |controller: &'static str, file: &str| {
            let text = read(&self.controller(controller)?.join(file)).ok()?;
            Some(text.trim().to_owned())
        };
        let settings = match self.v2 {
            true => setting::v2(resources, &current),
            false => setting::v1(resources, &current),
        };
        let settings = settings.map_err(CgroupError::Resources)?;
        self.check_memory(resources)?;
        let mut done = Vec::new();
        match self.set_all(settings, &mut done) {
            Ok(()) => Ok(Updated(done)),
            Err(error) => Err(roll_back(self.in_clear_words(error, resources), done)),
        }
    }

    /// v2 kills for a limit below what is in use; v1 gives back what it can and refuses the rest.
    /// So on v2 the kernel is asked for memory first, and only what it cannot give is refused.
    fn check_memory(&self, resources: &Resources) -> Result<(), CgroupError> {
        let (true, Some(limit)) = (resources.memory_check_before_update, resources.memory_limit)
        else {
            return Ok(());
        };
        let Some(bytes) = u64::try_from(limit).ok().filter(|bytes| *bytes > 0) else {
            return Ok(());
        };
        let Some(dir) = self.unified().filter(|_| self.v2) else {
            return Ok(());
        };
        let usage = self.memory_usage()?.unwrap_or(0);
        if usage <= bytes {
            return Ok(());
        }
        // Not all may be there to give, and kernels before 5.19 have no such file.
        let _ = write(&dir.join("memory.reclaim"), &(usage - bytes).to_string());
        match self.memory_usage()?.unwrap_or(0) {
            usage if usage > bytes => Err(CgroupError::MemoryInUse { limit, usage }),
            _ => Ok(()),
        }
    }

    /// v1 answers "busy" to a limit that is below what it cannot give back.
    fn in_clear_words(&self, error: CgroupError, resources: &Resources) -> CgroupError {
        let CgroupError::Set { path, source, .. } = &error else {
            return error;
        };
        let of_memory = path
            .file_name()
            .is_some_and(|name| name == "memory.limit_in_bytes");
        match (resources.memory_limit, self.memory_usage()) {
            (Some(limit), Ok(Some(usage))) if of_memory && source.raw_os_error() == Some(EBUSY) => {
                CgroupError::MemoryInUse { limit, usage }
            }
            _ => error,
        }
    }

    fn set_all(&self, settings: Vec<Setting>, done: &mut Vec<Undo>) -> Result<(), CgroupError> {
        // The kernel judges period and quota together, so that either may have to go first.
        let mut postponed = None;
        for setting in settings {
            match self.set(&setting, done) {
                Err(CgroupError::Set { source, .. })
                    if source.raw_os_error() == Some(EINVAL)
                        && setting.file == "cpu.cfs_period_us" =>
                {
                    postponed = Some(setting);
                }
                other => other?,
            }
        }
        postponed.map_or(Ok(()), |setting| self.set(&setting, done))
    }

    fn set(&self, setting: &Setting, done: &mut Vec<Undo>) -> Result<(), CgroupError> {
        let Some(dir) = self.controller(setting.controller) else {
            return match setting.optional {
                true => Ok(()),
                false => Err(CgroupError::NoController {
                    controller: setting.controller.to_owned(),
                    file: setting.file.clone().into_owned(),
                }),
            };
        };
        let path = dir.join(&*setting.file);
        let before = read(&path);
        // A key may come with several lines, each a setting of its own (io.max).
        for value in setting.value.lines().filter(|line| !line.is_empty()) {
            match write(&path, value) {
                Ok(()) => {}
                Err(error) if setting.optional && is_missing(&error) => return Ok(()),
                // On v2 a file that is not there means that its controller is not.
                Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => {
                    return Err(CgroupError::NoController {
                        controller: setting.controller.to_owned(),
                        file: setting.file.clone().into_owned(),
                    });
                }
                Err(source) => {
                    return Err(CgroupError::Set {
                        path,
                        value: value.to_owned(),
                        source,
                    });
                }
            }
        }
        if let Ok(before) = before {
            done.push(Undo { path, before });
        }
        Ok(())
    }
}

/// What an update has changed.
#[derive(Debug)]
#[must_use = "an update that is not taken back stands"]
pub struct Updated(Vec<Undo>);

impl Updated {
    /// Nothing changed.
    pub fn nothing() -> Self {
        Self(Vec::new())
    }

    /// Gives every file its earlier value back, also after one of them refused.
    ///
    /// # Errors
    /// The first refusal.
    pub fn undo(self) -> Result<(), CgroupError> {
        let mut first = None;
        for undo in self.0.into_iter().rev() {
            for value in earlier(&undo.path, &undo.before) {
                if let Err(source) = write(&undo.path, &value) {
                    first.get_or_insert(CgroupError::Set {
                        path: undo.path.clone(),
                        value,
                        source,
                    });
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// What a file said before it was written.
#[derive(Debug)]
struct Undo {
    path: PathBuf,
    before: String,
}

fn roll_back(error: CgroupError, done: Vec<Undo>) -> CgroupError {
    for undo in done.into_iter().rev() {
        for value in earlier(&undo.path, &undo.before) {
            if let Err(source) = write(&undo.path, &value) {
                let error = Box::new(error);
                return CgroupError::Rollback {
                    error,
                    path: undo.path,
                    value,
                    source,
                };
            }
        }
    }
    error
}

/// How to write what was read: per-device files list one device a line, and a device that is not
/// listed has no limit, which needs no going back to for limits set in the same breath.
fn earlier(path: &Path, before: &str) -> Vec<String> {
    let lines: Vec<_> = before.lines().map(|line| line.trim().to_owned()).collect();
    let empty_means_none = path.file_name().is_some_and(|name| {
        let name = name.to_string_lossy();
        name == "cpuset.cpus" || name == "cpuset.mems"
    });
    match lines.is_empty() || lines == [""] {
        true if empty_means_none => vec!["\n".to_owned()],
        true => Vec::new(),
        false => lines,
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(EOPNOTSUPP)
}
