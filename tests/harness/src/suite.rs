//! The images that critest, the crictl ring and the bench ask for, as stand-ins that satisfy every
//! spec, and the storage directory a registry serves them from.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    image::{Dialect, Entry, Image, ImageConfig, Layer, Shape, architecture, with_parents},
    programs::Programs,
};

/// Hosts whose names the images carry; all are served by one loopback registry, path kept.
pub const REGISTRY_HOSTS: [&str; 4] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws"];

/// The image most tests run: busybox.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// The pause image that external runtimes pull for their sandboxes.
pub const PAUSE: &str = "registry.k8s.io/pause:3.9";

/// Accounts that specs name. `www-data` is the owner of web files on Debian too.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnobody:x:65534:\n";

/// Every applet is a hard link, never a symlink: a spec masks `/bin/ls`, and through a symlink it
/// would mask the shell as well.
fn base(programs: &Programs) -> io::Result<Layer> {
    let mut layer = Layer::new();
    layer.insert(
        "bin/busybox".to_owned(),
        Entry::File(fs::read(&programs.busybox)?, 0o755),
    );
    for applet in &programs.applets {
        layer
            .entry(applet.clone())
            .or_insert_with(|| Entry::Hard("bin/busybox".to_owned()));
    }
    for dir in [
        "dev",
        "etc",
        "home",
        "proc",
        "sys",
        "usr/local/bin",
        "usr/sbin",
        "var/run",
        "var/www",
    ] {
        layer.insert(dir.to_owned(), Entry::Dir(0o755));
    }
    layer.insert("root".to_owned(), Entry::Dir(0o700));
    layer.insert("tmp".to_owned(), Entry::Dir(0o1777));
    layer.insert("var/tmp".to_owned(), Entry::Dir(0o1777));
    layer.insert("etc/passwd".to_owned(), text(PASSWD));
    layer.insert("etc/group".to_owned(), text(GROUP));
    Ok(with_parents(layer))
}

fn text(content: &str) -> Entry {
    Entry::File(content.as_bytes().to_vec(), 0o644)
}

fn program(path: &str, file: &Path, mode: u32) -> io::Result<Layer> {
    Ok(with_parents(Layer::from([(
        path.to_owned(),
        Entry::File(fs::read(file)?, mode),
    )])))
}

fn marker(name: &str) -> Layer {
    Layer::from([(format!("{name}.txt"), text(&format!("{name}\n")))])
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}

/// One row of the table below.
struct Row {
    repository: String,
    tags: &'static [&'static str],
    image: Image,
}

/// Builds rows; alternates the shapes so that each is pulled by some spec.
struct Table<'a> {
    base: &'a Layer,
    rows: Vec<Row>,
}

impl Table<'_> {
    /// `top` lies on the busybox base.
    fn add(
        &mut self,
        repository: &str,
        tags: &'static [&'static str],
        top: Option<Layer>,
        config: ImageConfig,
    ) {
        let layers = std::iter::once(self.base.clone()).chain(top).collect();
        self.push(repository, tags, layers, config);
    }

    fn push(
        &mut self,
        repository: &str,
        tags: &'static [&'static str],
        layers: Vec<Layer>,
        config: ImageConfig,
    ) {
        let (dialect, shape) = match self.rows.len() % 4 {
            0 => (Dialect::Oci, Shape::Index),
            1 => (Dialect::Docker, Shape::Bare),
            2 => (Dialect::Oci, Shape::Bare),
            _ => (Dialect::Docker, Shape::Index),
        };
        self.rows.push(Row {
            repository: repository.to_owned(),
            tags,
            image: Image {
                layers,
                config,
                dialect,
                shape,
            },
        });
    }
}

fn server(name: &str, port: &str, title: &str) -> ImageConfig {
    let binary = format!("/usr/sbin/{name}");
    let pid_file = format!("/var/run/{name}.pid");
    ImageConfig {
        cmd: words(&[&binary, port, &pid_file, title]),
        ..ImageConfig::default()
    }
}

fn shell() -> ImageConfig {
    ImageConfig {
        cmd: words(&["sh"]),
        ..ImageConfig::default()
    }
}

fn rows(programs: &Programs) -> io::Result<Vec<Row>> {
    let base = base(programs)?;
    let mut table = Table {
        base: &base,
        rows: Vec::new(),
    };
    let nginx = program("usr/sbin/nginx", &programs.webserver, 0o755)?;
    let httpd = program("usr/local/bin/httpd-server", &programs.webserver, 0o755)?;
    table.add("e2e-test-images/busybox", &["1.29-2"], None, shell());
    table.add(
        "docker/library/busybox",
        &[
            "latest",
            "1",
            "1-uclibc",
            "1-glibc",
            "1-musl",
            "1.35.0-glibc",
        ],
        None,
        shell(),
    );
    table.add(
        "e2e-test-images/nginx",
        &["1.14-2"],
        Some(nginx.clone()),
        server("nginx", "80", "nginx: master process nginx"),
    );
    let httpd_config = ImageConfig {
        cmd: words(&["/usr/local/bin/httpd-server", "80"]),
        ..ImageConfig::default()
    };
    table.add(
        "e2e-test-images/httpd",
        &["2.4.39-4"],
        Some(httpd),
        httpd_config,
    );
    let setuid = program("usr/bin/nnp", &programs.euid, 0o6755)?;
    let setuid_config = ImageConfig {
        cmd: words(&["/usr/bin/nnp"]),
        ..ImageConfig::default()
    };
    table.add(
        "e2e-test-images/nonewprivs",
        &["1.3"],
        Some(setuid),
        setuid_config,
    );
    let pause = program("pause", &programs.pause, 0o755)?;
    let pause_config = ImageConfig {
        entrypoint: words(&["/pause"]),
        user: "65535:65535".to_owned(),
        ..ImageConfig::default()
    };
    table.push(
        "pause",
        &["3.9", "3.10", "3.10.1"],
        vec![pause],
        pause_config,
    );
    let hostnet = format!("k8s-staging-cri-tools/hostnet-nginx-{}", architecture());
    table.add(
        &hostnet,
        &["latest"],
        Some(nginx),
        server("nginx", "12003", "nginx: master process nginx"),
    );
    cri_tools(&mut table);
    Ok(table.rows)
}

/// The images of the suite's own staging project: mostly busybox with a marker.
fn cri_tools(table: &mut Table<'_>) {
    for name in [
        "test-image-latest",
        "test-image-1",
        "test-image-2",
        "test-image-3",
    ] {
        table.add(
            &format!("k8s-staging-cri-tools/{name}"),
            &["latest"],
            Some(marker(name)),
            shell(),
        );
    }
    table.add(
        "k8s-staging-cri-tools/test-image-tag",
        &["test"],
        Some(marker("test-image-tag")),
        shell(),
    );
    table.add(
        "k8s-staging-cri-tools/test-image-tag",
        &["all"],
        Some(marker("test-image-all")),
        shell(),
    );
    table.add(
        "k8s-staging-cri-tools/test-image-tags",
        &["1", "2", "3"],
        Some(marker("test-image-tags")),
        shell(),
    );
    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        let config = ImageConfig {
            user: user.to_owned(),
            ..shell()
        };
        let name = format!("test-image-user-{name}");
        table.add(
            &format!("k8s-staging-cri-tools/{name}"),
            &["latest"],
            Some(marker(&name)),
            config,
        );
    }
    let accounts = Layer::from([
        ("etc".to_owned(), Entry::Dir(0o755)),
        (
            "etc/passwd".to_owned(),
            text(&format!(
                "{PASSWD}default-user:x:1000:1000::/home:/bin/sh\n"
            )),
        ),
        (
            "etc/group".to_owned(),
            text(&format!(
                "{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
            )),
        ),
    ]);
    let config = ImageConfig {
        user: "1000".to_owned(),
        cmd: words(&["sleep", "infinity"]),
        ..ImageConfig::default()
    };
    table.add(
        "k8s-staging-cri-tools/test-image-predefined-group",
        &["latest"],
        Some(accounts),
        config,
    );
}

/// Writes all images below `storage` and returns what each `repository:tag` resolves to.
///
/// # Errors
/// When a program cannot be read or the storage not be written.
pub fn write(programs: &Programs, storage: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    for row in rows(programs)? {
        let digest = row.image.store(storage, &row.repository, row.tags)?;
        for tag in row.tags {
            digests.insert(format!("{}:{tag}", row.repository), digest.clone());
        }
    }
    Ok(digests)
}

/// A `hosts.toml` directory that sends every host of the suite to `registry` (`http://...`).
///
/// # Errors
/// When it cannot be written.
pub fn write_hosts(dir: &Path, registry: &str) -> io::Result<PathBuf> {
    for host in REGISTRY_HOSTS {
        let dir = dir.join(host);
        fs::create_dir_all(&dir)?;
        let text = format!(
            "server = \"{registry}\"\n\n[host.\"{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(dir.join("hosts.toml"), text)?;
    }
    Ok(dir.to_owned())
}

/// Where the images are kept between runs: below the cache, by a stamp of what they are made from.
fn cache() -> PathBuf {
    std::env::var_os("CRISP_TEST_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/crisp-tests"), PathBuf::from)
}

/// Compiles the programs and writes all images below `storage`, beside it first, then renamed into
/// place.
///
/// # Errors
/// When a tool does not come or something cannot be written.
pub fn prepare(storage: &Path) -> io::Result<BTreeMap<String, String>> {
    let scratch = tempfile::tempdir()?;
    let programs = Programs::build(scratch.path())?;
    write(&programs, storage)
}

/// The suite's registry, its images made if they are not there yet.
///
/// # Errors
/// When they cannot be made, or the registry does not answer.
pub fn registry() -> io::Result<crate::registry::Registry> {
    let cache = cache();
    fs::create_dir_all(&cache)?;
    // What the images are made from, so that a changed table makes new ones.
    let mut made_from = Vec::new();
    for source in [include_str!("suite.rs"), include_str!("image.rs")] {
        made_from.extend_from_slice(source.as_bytes());
    }
    for program in ["webserver", "euid", "pause"] {
        made_from.extend(fs::read(
            crate::tools::top().join(format!("tests/harness/programs/{program}.c")),
        )?);
    }
    made_from.extend_from_slice(crate::tools::get("busybox")?.as_os_str().as_encoded_bytes());
    let stamp = crate::image::digest(&made_from);
    let storage = cache.join(format!("images-{}", &stamp[7..19]));
    if !storage.exists() {
        let fresh = tempfile::Builder::new()
            .prefix(".images")
            .tempdir_in(&cache)?;
        prepare(&fresh.path().join("storage"))?;
        // Another run may have been first: its images are the same.
        let _first = fs::rename(fresh.path().join("storage"), &storage);
    }
    crate::registry::Registry::start(&storage)
}
