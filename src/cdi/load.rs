//! The spec directories: what lies in them, which device is described where, what is wrong.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::spec::{Device, Spec};
use crate::yaml;

/// Largest spec file.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Most spec files.
const MAX_FILES: usize = 1024;

/// What tells a file from its successor: path, device, inode, size, time of change.
type Stamp = (PathBuf, u64, u64, u64, i64, i64);

/// Everything that the directories say.
#[derive(Debug, Default)]
pub struct Known {
    stamps: Vec<Stamp>,
    /// By qualified name.
    devices: BTreeMap<String, Place>,
    /// What is wrong, by file or directory.
    pub problems: BTreeMap<PathBuf, String>,
}

/// Where a device is described.
#[derive(Debug, Clone)]
enum Place {
    One {
        directory: usize,
        file: PathBuf,
        spec: Arc<Spec>,
        index: usize,
    },
    /// Files of one directory contradict each other.
    Conflict {
        directory: usize,
        files: Vec<PathBuf>,
    },
}

/// A device found.
#[derive(Debug)]
pub struct Found<'a> {
    /// The file that describes it.
    pub file: &'a Path,
    /// That file's content.
    pub spec: &'a Arc<Spec>,
    /// The device in it.
    pub device: &'a Device,
}

impl Known {
    /// Whether the directories look as they did when this was read.
    pub(super) fn is_current(&self, dirs: &[PathBuf]) -> bool {
        stamps(dirs).is_ok_and(|found| found.0 == self.stamps)
    }

    /// Reads the directories; the later one of two that describe the same device counts.
    pub(super) fn load(dirs: &[PathBuf]) -> Self {
        let mut known = Self::default();
        let files = match stamps(dirs) {
            Ok((stamps, files)) => {
                known.stamps = stamps;
                files
            }
            Err((path, problem)) => {
                known.problems.insert(path, problem);
                return known;
            }
        };
        for (directory, file) in files {
            match read(&file) {
                Ok(spec) => known.add(directory, &file, Arc::new(spec)),
                Err(problem) => drop(known.problems.insert(file, problem)),
            }
        }
        for (name, place) in &known.devices {
            if let Place::Conflict { files, .. } = place {
                let file = files.last().cloned().unwrap_or_default();
                let problem = format!("{name} is described in {} as well", shown(files));
                known.problems.entry(file).or_insert(problem);
            }
        }
        known
    }

    fn add(&mut self, directory: usize, file: &Path, spec: Arc<Spec>) {
        for (index, device) in spec.devices.iter().enumerate() {
            let name = format!("{}={}", spec.kind, device.name);
            let mut place = Place::One {
                directory,
                file: file.to_owned(),
                spec: Arc::clone(&spec),
                index,
            };
            match self.devices.get(&name) {
                Some(Place::One {
                    directory: other,
                    file: first,
                    ..
                }) if *other == directory => {
                    let files = vec![first.clone(), file.to_owned()];
                    place = Place::Conflict { directory, files };
                }
                Some(Place::Conflict {
                    directory: other,
                    files,
                }) if *other == directory => {
                    let files = [&files[..], &[file.to_owned()]].concat();
                    place = Place::Conflict { directory, files };
                }
                _ => {}
            }
            self.devices.insert(name, place);
        }
    }

    /// The device of a qualified name.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn find(&self, name: &str) -> Result<Found<'_>, String> {
        match self.devices.get(name) {
            Some(Place::One {
                file, spec, index, ..
            }) => Ok(Found {
                file,
                spec,
                device: &spec.devices[*index],
            }),
            Some(Place::Conflict { files, .. }) => {
                Err(format!("it is described in {}", shown(files)))
            }
            None => Err(match self.problems.iter().next() {
                None => "no CDI spec describes it".to_owned(),
                // Perhaps in the file that cannot be read.
                Some((file, problem)) => {
                    let file = file.display();
                    format!("no CDI spec describes it, but {file} cannot be used: {problem}")
                }
            }),
        }
    }

    /// Qualified names of all devices that can be asked for.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.devices
            .iter()
            .filter_map(|(name, place)| match place {
                Place::One { .. } => Some(name.as_str()),
                Place::Conflict { .. } => None,
            })
            .collect()
    }
}

fn shown(files: &[PathBuf]) -> String {
    let files: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    files.join(" and ")
}

type Listed = (Vec<Stamp>, Vec<(usize, PathBuf)>);

/// The spec files in their order, with what tells whether they changed. A directory that is not there
/// has none.
fn stamps(dirs: &[PathBuf]) -> Result<Listed, (PathBuf, String)> {
    let (mut stamps, mut files) = (Vec::new(), Vec::new());
    for (directory, path) in dirs.iter().enumerate() {
        let failed = |error: io::Error| (path.clone(), error.to_string());
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.path();
            let extension = name.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("json" | "yaml")) {
                names.push(name);
            }
        }
        names.sort();
        for file in names {
            // One that vanished meanwhile was not there.
            let Ok(meta) = fs::metadata(&file) else {
                continue;
            };
            stamps.push((
                file.clone(),
                meta.dev(),
                meta.ino(),
                meta.size(),
                meta.ctime(),
                meta.ctime_nsec(),
            ));
            files.push((directory, file));
        }
        if files.len() > MAX_FILES {
            return Err((path.clone(), format!("more than {MAX_FILES} spec files")));
        }
    }
    Ok((stamps, files))
}

/// Hooks of a spec run as root, so the file must be as trustworthy as a program.
fn read(path: &Path) -> Result<Spec, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("it is no regular file".to_owned());
    }
    if meta.mode() & 0o002 != 0 || (meta.uid() != 0 && meta.uid() != own_uid()) {
        return Err("others than root can write it".to_owned());
    }
    if meta.len() > MAX_FILE {
        return Err(format!("it has more than {MAX_FILE} bytes"));
    }
    let text = io::read_to_string(io::Read::take(file, MAX_FILE)).map_err(|e| e.to_string())?;
    let document = if path
        .extension()
        .is_some_and(|extension| extension == "yaml")
    {
        yaml::parse(&text).map_err(|error| error.to_string())?
    } else {
        serde_json::from_str(&text).map_err(|error| error.to_string())?
    };
    Spec::read(document)
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn spec(kind: &str, device: &str) -> String {
        format!(
            "{{\"cdiVersion\": \"0.6.0\", \"kind\": \"{kind}\", \"devices\": [{{\"name\": \
             \"{device}\", \"containerEdits\": {{\"env\": [\"FROM={device}\"]}}}}]}}"
        )
    }

    struct Site {
        _dir: tempfile::TempDir,
        dirs: Vec<PathBuf>,
    }

    fn site() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["a", "b"].map(|name| dir.path().join(name)).to_vec();
        Site { _dir: dir, dirs }
    }

    impl Site {
        fn write(&self, directory: usize, name: &str, text: &str) -> PathBuf {
            fs::create_dir_all(&self.dirs[directory]).unwrap();
            let path = self.dirs[directory].join(name);
            fs::write(&path, text).unwrap();
            path
        }

        fn load(&self) -> Known {
            Known::load(&self.dirs)
        }
    }

    #[test]
    fn json_and_yaml_are_read_and_others_are_not() {
        let site = site();
        assert!(site.load().names().is_empty(), "no directories, no devices");
        site.write(0, "a.json", &spec("v.com/gpu", "j"));
        let yaml = "cdiVersion: 0.6.0\nkind: v.com/nic\ndevices:\n- name: y\n  \
                    containerEdits: {env: [A=1]}\n";
        site.write(1, "b.yaml", yaml);
        site.write(1, "c.txt", "no spec");
        site.write(1, "d.yaml.tmp", "half written");
        let known = site.load();
        assert_eq!(known.names(), ["v.com/gpu=j", "v.com/nic=y"]);
        assert!(known.problems.is_empty(), "{:?}", known.problems);
    }

    #[test]
    fn a_later_directory_counts_and_one_directory_must_not_contradict_itself() {
        let site = site();
        site.write(0, "x.json", &spec("v.com/gpu", "0"));
        let later = site.write(1, "a.json", &spec("v.com/gpu", "0"));
        assert_eq!(site.load().find("v.com/gpu=0").unwrap().file, later);
        site.write(1, "b.json", &spec("v.com/gpu", "0"));
        site.write(1, "c.json", &spec("v.com/gpu", "1"));
        let known = site.load();
        let problem = known.find("v.com/gpu=0").unwrap_err();
        assert!(
            problem.contains("a.json and ") && problem.contains("b.json"),
            "{problem}"
        );
        assert_eq!(known.names(), ["v.com/gpu=1"], "others are not affected");
        assert_eq!(known.problems.len(), 1);
    }

    #[test]
    fn a_broken_file_is_told_and_harms_no_other() {
        let site = site();
        site.write(0, "good.json", &spec("v.com/gpu", "0"));
        let broken = site.write(0, "broken.json", "{");
        let open = site.write(0, "open.json", &spec("v.com/gpu", "1"));
        fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
        let known = site.load();
        known.find("v.com/gpu=0").unwrap();
        assert_eq!(
            known.problems.keys().collect::<Vec<_>>(),
            [&broken, &open],
            "{:?}",
            known.problems
        );
        let problem = known.find("v.com/gpu=1").unwrap_err();
        assert!(problem.contains("broken.json cannot be used"), "{problem}");
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        let site = site();
        let file = site.write(0, "a.json", &spec("v.com/gpu", "0"));
        let known = site.load();
        assert!(known.is_current(&site.dirs));
        fs::write(&file, spec("v.com/gpu", "10")).unwrap();
        assert!(!known.is_current(&site.dirs), "written in place");
        let known = site.load();
        let other = site.write(1, "b.json", &spec("v.com/nic", "0"));
        assert!(!known.is_current(&site.dirs), "a file in a new directory");
        let known = site.load();
        fs::rename(&other, &file).unwrap();
        assert!(!known.is_current(&site.dirs), "renamed over another");
        let known = site.load();
        fs::remove_file(&file).unwrap();
        assert!(!known.is_current(&site.dirs), "removed");
        assert!(site.load().names().is_empty());
    }
}
