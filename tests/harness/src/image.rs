//! Writes container images from nothing: layers, config, manifest, index, the same bytes each
//! time. Into the storage directory of Debian's docker-registry, or as an OCI archive.
//!
//! No docker, no build tool: a test image is a list of files, and its digests must not change
//! between runs, or a cached store would never be hit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Media types of one image: the OCI ones, or those docker push writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `application/vnd.oci.*`
    Oci,
    /// `application/vnd.docker.*`, schema 2
    Docker,
}

/// What a reference resolves to first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The manifest itself.
    Bare,
    /// An index (manifest list) with this platform and a decoy of another one.
    Index,
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A directory with its mode.
    Dir(u32),
    /// A regular file: content and mode (setuid bits included).
    File(Vec<u8>, u32),
    /// A hard link to an earlier path of the same layer.
    Hard(String),
    /// A symbolic link.
    Soft(String),
}

/// A layer: path without a leading slash to entry. Directories come out before what is in them
/// because the map is sorted; hard links are written last.
pub type Layer = BTreeMap<String, Entry>;

/// The config of an image, as far as the suites need it.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// `User`
    pub user: String,
    /// `Entrypoint`
    pub entrypoint: Vec<String>,
    /// `Cmd`
    pub cmd: Vec<String>,
    /// `Labels`
    pub labels: BTreeMap<String, String>,
}

/// An image to write.
#[derive(Debug, Clone)]
pub struct Image {
    /// Layers, bottom first.
    pub layers: Vec<Layer>,
    /// What its config says.
    pub config: ImageConfig,
    /// Media types.
    pub dialect: Dialect,
    /// Manifest or index.
    pub shape: Shape,
}

/// A blob: bytes by digest.
#[derive(Debug, Clone)]
struct Blob {
    media_type: String,
    digest: String,
    bytes: Vec<u8>,
}

/// All blobs of an image; `top` is what a tag names.
struct Written {
    blobs: Vec<Blob>,
    manifests: Vec<Blob>,
    top: Blob,
}

/// `sha256:...` of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The layer as an uncompressed tar: fixed owner, fixed times.
fn tar(layer: &Layer) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let (links, first): (Vec<_>, Vec<_>) = layer
        .iter()
        .partition(|(_, entry)| matches!(entry, Entry::Hard(_)));
    for (path, entry) in first.into_iter().chain(links) {
        let mut header = tar::Header::new_ustar();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        match entry {
            Entry::Dir(mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                builder.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Entry::File(bytes, mode) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, bytes.as_slice())?;
            }
            Entry::Hard(target) => {
                header.set_entry_type(tar::EntryType::Link);
                header.set_mode(0o755);
                builder.append_link(&mut header, path, target)?;
            }
            Entry::Soft(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, path, target)?;
            }
        }
    }
    builder.into_inner()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

impl Blob {
    fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: digest(&bytes),
            bytes,
        }
    }

    fn json(media_type: &str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

impl Dialect {
    /// Media types of config, layer, manifest, index.
    fn media_types(self) -> [&'static str; 4] {
        match self {
            Self::Oci => [
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+gzip",
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.index.v1+json",
            ],
            Self::Docker => [
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.distribution.manifest.list.v2+json",
            ],
        }
    }
}

impl Image {
    fn write(&self) -> io::Result<Written> {
        let [config_type, layer_type, manifest_type, index_type] = self.dialect.media_types();
        let mut blobs = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            let plain = tar(layer)?;
            diff_ids.push(digest(&plain));
            blobs.push(Blob::new(layer_type, gzip(&plain)?));
        }
        let layers: Vec<Value> = blobs.iter().map(Blob::descriptor).collect();
        let mut config = json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "User": self.config.user,
            "Labels": self.config.labels,
            "WorkingDir": "/",
        });
        if !self.config.entrypoint.is_empty() {
            config["Entrypoint"] = json!(self.config.entrypoint);
        }
        if !self.config.cmd.is_empty() {
            config["Cmd"] = json!(self.config.cmd);
        }
        let config = Blob::json(
            config_type,
            &json!({
                "architecture": architecture(),
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": config,
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
                "history": diff_ids.iter().map(|_| json!({ "created": "1970-01-01T00:00:00Z" })).collect::<Vec<_>>(),
            }),
        );
        let manifest = Blob::json(
            manifest_type,
            &json!({ "schemaVersion": 2, "mediaType": manifest_type, "config": config.descriptor(), "layers": layers }),
        );
        blobs.push(config);
        let mut manifests = vec![manifest.clone()];
        let top = match self.shape {
            Shape::Bare => manifest,
            Shape::Index => {
                let index = index_of(index_type, &manifest);
                manifests.push(index.clone());
                index
            }
        };
        Ok(Written {
            blobs,
            manifests,
            top,
        })
    }

    /// Puts the image into a registry's storage directory as `repository:tag` and returns the
    /// digest that the tag names.
    ///
    /// # Errors
    /// When the storage cannot be written.
    pub fn store(&self, storage: &Path, repository: &str, tags: &[&str]) -> io::Result<String> {
        let written = self.write()?;
        let base = storage.join("docker/registry/v2");
        let home = base.join("repositories").join(repository);
        for blob in written.blobs.iter().chain(&written.manifests) {
            put(&blob_path(&base, &blob.digest), &blob.bytes)?;
            put(
                &home.join("_layers").join(link(&blob.digest)),
                blob.digest.as_bytes(),
            )?;
        }
        for manifest in &written.manifests {
            put(
                &home
                    .join("_manifests/revisions")
                    .join(link(&manifest.digest)),
                manifest.digest.as_bytes(),
            )?;
        }
        for tag in tags {
            let tag = home.join("_manifests/tags").join(tag);
            put(&tag.join("current/link"), written.top.digest.as_bytes())?;
            put(
                &tag.join("index").join(link(&written.top.digest)),
                written.top.digest.as_bytes(),
            )?;
        }
        Ok(written.top.digest)
    }

    /// Writes the image as an OCI archive (a tar of an image layout) that names `reference`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn archive(&self, path: &Path, reference: &str) -> io::Result<()> {
        let written = self.write()?;
        let mut files = Layer::new();
        files.insert("blobs".to_owned(), Entry::Dir(0o755));
        files.insert("blobs/sha256".to_owned(), Entry::Dir(0o755));
        files.insert(
            "oci-layout".to_owned(),
            Entry::File(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(), 0o644),
        );
        let mut top = written.top.descriptor();
        top["annotations"] = json!({ "org.opencontainers.image.ref.name": reference, "io.containerd.image.name": reference });
        let index = json!({ "schemaVersion": 2, "mediaType": Dialect::Oci.media_types()[3], "manifests": [top] });
        files.insert(
            "index.json".to_owned(),
            Entry::File(index.to_string().into_bytes(), 0o644),
        );
        for blob in written.blobs.into_iter().chain(written.manifests) {
            files.insert(
                format!("blobs/sha256/{}", hex(&blob.digest)),
                Entry::File(blob.bytes, 0o644),
            );
        }
        fs::write(path, tar(&files)?)
    }
}

/// The platform's name as images spell it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// This platform second, behind one that nothing here runs: a runtime that takes the first entry
/// is caught. The decoy names the same blob, so that the registry's storage stays whole.
fn index_of(media_type: &str, manifest: &Blob) -> Blob {
    let entry = |architecture: &str| {
        let mut descriptor = manifest.descriptor();
        descriptor["platform"] = json!({ "architecture": architecture, "os": "linux" });
        descriptor
    };
    let mut decoy = entry("s390x");
    decoy["digest"] = json!(digest(b"no such manifest"));
    Blob::json(
        media_type,
        &json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [decoy, entry(architecture())] }),
    )
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn link(digest: &str) -> PathBuf {
    Path::new("sha256").join(hex(digest)).join("link")
}

fn blob_path(base: &Path, digest: &str) -> PathBuf {
    let hex = hex(digest);
    base.join("blobs/sha256")
        .join(&hex[..2])
        .join(hex)
        .join("data")
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().expect("every path here has a parent"))?;
    fs::write(path, bytes)
}

/// Parent directories of every path in the layer that are not in it yet, mode 0755.
#[must_use]
pub fn with_parents(mut layer: Layer) -> Layer {
    let mut parents = BTreeSet::new();
    for path in layer.keys() {
        for ancestor in Path::new(path).ancestors().skip(1) {
            if let Some(text) = ancestor.to_str().filter(|text| !text.is_empty()) {
                parents.insert(text.to_owned());
            }
        }
    }
    for parent in parents {
        layer.entry(parent).or_insert(Entry::Dir(0o755));
    }
    layer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Image {
        let layer = Layer::from([
            ("bin/a".to_owned(), Entry::File(b"a".to_vec(), 0o4755)),
            ("bin/b".to_owned(), Entry::Hard("bin/a".to_owned())),
        ]);
        Image {
            layers: vec![with_parents(layer)],
            config: ImageConfig::default(),
            dialect: Dialect::Oci,
            shape: Shape::Index,
        }
    }

    #[test]
    fn the_same_image_has_the_same_digest() {
        let storage = tempfile::tempdir().expect("a directory");
        let first = small()
            .store(storage.path(), "a/b", &["1"])
            .expect("stored");
        let second = small()
            .store(storage.path(), "a/b", &["2"])
            .expect("stored");
        assert_eq!(first, second);
        let current = fs::read_to_string(
            storage
                .path()
                .join("docker/registry/v2/repositories/a/b/_manifests/tags/2/current/link"),
        );
        assert_eq!(current.expect("the tag's link"), first);
    }

    #[test]
    fn hard_links_follow_their_targets_and_setuid_survives() {
        let bytes = tar(&small().layers[0]).expect("a tar");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let seen: Vec<(String, u32)> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("an entry");
                (
                    entry.path().expect("a path").display().to_string(),
                    entry.header().mode().expect("a mode"),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("bin/".to_owned(), 0o755),
                ("bin/a".to_owned(), 0o4755),
                ("bin/b".to_owned(), 0o755)
            ]
        );
    }
}
