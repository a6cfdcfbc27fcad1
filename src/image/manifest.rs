//! Manifests, indexes and image configurations: what a registry's documents must look like before
//! anything of them is believed.
//!
//! The bytes were verified against a digest by the caller. Here: one meaning only (a document that
//! could be read both as index and as manifest is refused), media types that agree, sizes that make
//! sense, a platform that runs here.

use std::collections::BTreeMap;

use oci_client::manifest::{
    IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageIndex,
    OciImageManifest,
};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::reference::Digest;
use crate::error::{Classify, ErrorKind};

/// Largest manifest or index, in bytes.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image configuration, in bytes.
pub const MAX_CONFIG: u64 = 4 << 20;
/// Most layers: the kernel stacks no more in one overlay.
pub const MAX_LAYERS: usize = 500;
/// Deepest nesting of indexes.
pub const MAX_INDEX_DEPTH: usize = 3;
/// Largest compressed layer, in bytes (1 TiB).
const MAX_LAYER: u64 = 1 << 40;
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What a manifest request accepts.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A document is not one that can be run here.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the expected shape.
    #[error("the {what} cannot be read")]
    Parse {
        /// Which document.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Both an index and a manifest.
    #[error("the document could be read as an index and as a manifest; such documents are refused")]
    Hybrid,
    /// Docker's first schema.
    #[error("the manifest is of Docker's schema 1, which is not supported")]
    Schema1,
    /// The media type is none that is known, or contradicts the content.
    #[error("media type {found:?} where {expected} belongs")]
    MediaType {
        /// What it says.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// An artifact, such as a signature or a chart.
    #[error("this is an artifact of type {0:?}, not an image that can be run")]
    Artifact(String),
    /// A descriptor's digest is malformed.
    #[error("descriptor")]
    Digest(#[source] super::reference::InvalidDigest),
    /// A descriptor's size is impossible.
    #[error("a {what} of {size} bytes is not believed (at most {limit})")]
    Size {
        /// What the descriptor points at.
        what: &'static str,
        /// The size it says.
        size: i64,
        /// The most we take.
        limit: u64,
    },
    /// Too many layers.
    #[error("the image has {0} layers, at most {MAX_LAYERS} can be mounted")]
    TooManyLayers(usize),
    /// Configuration and manifest disagree.
    #[error("the manifest has {layers} layers, the configuration names {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// Indexes nested too deeply.
    #[error("indexes are nested more than {MAX_INDEX_DEPTH} deep")]
    IndexDepth,
    /// The index has nothing for this machine.
    #[error("no image for {wanted} among {offered}")]
    NoPlatform {
        /// This machine.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// The image is for another machine.
    #[error("the image is for {found}, this machine is {wanted}")]
    WrongPlatform {
        /// What the configuration says.
        found: String,
        /// This machine.
        wanted: String,
    },
}

impl Classify for ManifestError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Schema1
            | Self::Artifact(_)
            | Self::NoPlatform { .. }
            | Self::WrongPlatform { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// A machine type, in Go's words as images use them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// Variants that run here, best first.
    pub variants: Vec<String>,
}

impl Platform {
    /// This machine.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variants): (&str, &[&str]) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", &["", "v1"]),
            "aarch64" => ("arm64", &["v8", ""]),
            other => (other, &[""]),
        };
        let mut variants: Vec<String> = variants.iter().map(|v| (*v).to_owned()).collect();
        if architecture == "amd64" {
            variants.splice(0..0, amd64_levels());
        }
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variants,
        }
    }

    fn rank(&self, os: &str, architecture: &str, variant: &str) -> Option<usize> {
        if os != self.os || architecture != self.architecture {
            return None;
        }
        self.variants.iter().position(|known| known == variant)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// The x86-64 levels above the base that this processor has, best first.
fn amd64_levels() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    {
        let v2 = std::is_x86_feature_detected!("sse4.2") && std::is_x86_feature_detected!("popcnt");
        let v3 = v2
            && std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("bmi2")
            && std::is_x86_feature_detected!("fma");
        let v4 = v3
            && std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512vl");
        [(v4, "v4"), (v3, "v3"), (v2, "v2")]
            .into_iter()
            .filter(|(has, _)| *has)
            .map(|(_, level)| level.to_owned())
            .collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}

/// A piece of content: what it is called and how large it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Number of bytes.
    pub size: u64,
}

impl Content {
    fn of(
        descriptor: &OciDescriptor,
        what: &'static str,
        limit: u64,
    ) -> Result<Self, ManifestError> {
        Self::new(&descriptor.digest, descriptor.size, what, limit)
    }

    fn new(digest: &str, size: i64, what: &'static str, limit: u64) -> Result<Self, ManifestError> {
        let digest = Digest::parse(digest).map_err(ManifestError::Digest)?;
        match u64::try_from(size) {
            Ok(bytes) if bytes <= limit => Ok(Self {
                digest,
                size: bytes,
            }),
            _ => Err(ManifestError::Size { what, size, limit }),
        }
    }
}

/// What a document turned out to be.
#[derive(Debug)]
pub enum Document {
    /// An index: go on with this manifest (or index).
    Index(Content),
    /// A manifest.
    Manifest(Manifest),
}

/// A manifest, reduced to what matters.
#[derive(Debug)]
pub struct Manifest {
    /// The configuration.
    pub config: Content,
    /// The layers, base first.
    pub layers: Vec<Content>,
}

/// The keys that tell documents apart. Duplicate keys are an error of the parser.
#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

/// Reads a verified document. `content_type` is what the registry called it, if it did.
///
/// # Errors
/// [`ManifestError`] for everything that is not clearly an image for `platform`.
pub fn read_document(
    bytes: &[u8],
    content_type: Option<&str>,
    platform: &Platform,
) -> Result<Document, ManifestError> {
    let parse = |source| ManifestError::Parse {
        what: "manifest",
        source,
    };
    let shape: Shape = serde_json::from_slice(bytes).map_err(parse)?;
    if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return Err(ManifestError::Schema1);
    }
    let index = shape.manifests.is_some();
    if index && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(ManifestError::Hybrid);
    }
    let expected = if index {
        (
            [OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE],
            "an index",
        )
    } else {
        (
            [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE],
            "an image manifest",
        )
    };
    // A registry that calls everything text/plain or octet-stream contradicts nothing.
    let typed = content_type.filter(|name| name.contains("manifest") || name.contains("index"));
    for found in [shape.media_type.as_deref(), typed].into_iter().flatten() {
        let name = found.split(';').next().unwrap_or_default().trim();
        if !expected.0.contains(&name) {
            let found = name.chars().take(100).collect();
            return Err(ManifestError::MediaType {
                found,
                expected: expected.1,
            });
        }
    }
    if index {
        let index: OciImageIndex =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse {
                what: "index",
                source,
            })?;
        return choose(&index, platform).map(Document::Index);
    }
    let manifest: OciImageManifest = serde_json::from_slice(bytes).map_err(parse)?;
    read_manifest(&manifest).map(Document::Manifest)
}

fn choose(index: &OciImageIndex, platform: &Platform) -> Result<Content, ManifestError> {
    let best = index
        .manifests
        .iter()
        .filter_map(|entry| {
            let known = [
                OCI_IMAGE_MEDIA_TYPE,
                IMAGE_MANIFEST_MEDIA_TYPE,
                OCI_IMAGE_INDEX_MEDIA_TYPE,
                IMAGE_MANIFEST_LIST_MEDIA_TYPE,
            ];
            if !known.contains(&entry.media_type.as_str()) || entry.artifact_type.is_some() {
                return None;
            }
            let rank = match &entry.platform {
                Some(found) => platform.rank(
                    &found.os.to_string(),
                    &found.architecture.to_string(),
                    found.variant.as_deref().unwrap_or_default(),
                )?,
                // Without a platform: only if nothing says better, and the configuration decides.
                None => usize::MAX,
            };
            Some((rank, entry))
        })
        .min_by_key(|(rank, _)| *rank);
    match best {
        Some((_, entry)) => Content::new(&entry.digest, entry.size, "manifest", MAX_MANIFEST),
        None => {
            let mut offered: Vec<String> = index
                .manifests
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .map(|p| format!("{}/{}", p.os, p.architecture))
                .collect();
            offered.sort();
            offered.dedup();
            offered.truncate(20);
            let offered = if offered.is_empty() {
                "nothing".to_owned()
            } else {
                offered.join(", ")
            };
            Err(ManifestError::NoPlatform {
                wanted: platform.to_string(),
                offered,
            })
        }
    }
}

fn read_manifest(manifest: &OciImageManifest) -> Result<Manifest, ManifestError> {
    let config_type = manifest.config.media_type.as_str();
    if let Some(kind) = &manifest.artifact_type {
        return Err(ManifestError::Artifact(kind.chars().take(100).collect()));
    }
    if config_type != OCI_CONFIG && config_type != IMAGE_DOCKER_CONFIG_MEDIA_TYPE {
        return Err(ManifestError::Artifact(
            config_type.chars().take(100).collect(),
        ));
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(manifest.layers.len()));
    }
    let config = Content::of(&manifest.config, "configuration", MAX_CONFIG)?;
    let layers = manifest
        .layers
        .iter()
        .map(|layer| {
            check_layer_type(&layer.media_type)?;
            Content::of(layer, "layer", MAX_LAYER)
        })
        .collect::<Result<_, _>>()?;
    Ok(Manifest { config, layers })
}

/// The compression is told by the bytes themselves; the media type must be that of a layer.
fn check_layer_type(found: &str) -> Result<(), ManifestError> {
    let known = found.starts_with("application/vnd.oci.image.layer.")
        && ["tar", "tar+gzip", "tar+zstd"]
            .iter()
            .any(|end| found.ends_with(end))
        || [
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ]
        .contains(&found);
    if known {
        return Ok(());
    }
    let found = found.chars().take(100).collect();
    Err(ManifestError::MediaType {
        found,
        expected: "a layer (tar, tar+gzip or tar+zstd)",
    })
}

/// What an image asks of its containers. All of it is hostile input for whoever uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// User as the image has it, unparsed: `1000`, `www-data:1004`, empty.
    pub user: String,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command, or arguments of the entry point.
    pub cmd: Vec<String>,
    /// Working directory; may be empty.
    pub working_dir: String,
    /// Paths the image declares as volumes, sorted.
    pub volumes: Vec<String>,
    /// Stop signal; may be empty.
    pub stop_signal: String,
    /// Labels. Never merged with labels of ours.
    pub labels: BTreeMap<String, String>,
}

/// A verified image configuration.
#[derive(Debug, Clone)]
pub struct ConfigDocument {
    /// What containers are given.
    pub config: ImageConfig,
    /// Digests of the uncompressed layers, base first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawDocument {
    os: Option<String>,
    architecture: Option<String>,
    config: Option<RawConfig>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// Reads a verified configuration.
///
/// # Errors
/// [`ManifestError`] if it is malformed, for another platform, or names another number of layers.
pub fn read_config(
    bytes: &[u8],
    layers: usize,
    platform: &Platform,
) -> Result<ConfigDocument, ManifestError> {
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse {
            what: "image configuration",
            source,
        })?;
    let (os, architecture) = (
        raw.os.unwrap_or_default(),
        raw.architecture.unwrap_or_default(),
    );
    let other = |found: &str, own: &str| !found.is_empty() && found != own;
    if other(&os, &platform.os) || other(&architecture, &platform.architecture) {
        return Err(ManifestError::WrongPlatform {
            found: format!("{os}/{architecture}").chars().take(100).collect(),
            wanted: platform.to_string(),
        });
    }
    let names = raw
        .rootfs
        .and_then(|rootfs| rootfs.diff_ids)
        .unwrap_or_default();
    if names.len() != layers {
        return Err(ManifestError::LayerCount {
            layers,
            diff_ids: names.len(),
        });
    }
    let diff_ids = names
        .iter()
        .map(|name| Digest::parse(name).map_err(ManifestError::Digest))
        .collect::<Result<_, _>>()?;
    let config = raw.config.unwrap_or_default();
    Ok(ConfigDocument {
        config: ImageConfig {
            user: config.user.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: config.stop_signal.unwrap_or_default(),
            labels: config.labels.unwrap_or_default(),
        },
        diff_ids,
    })
}

/// The chain ids of a list of diff ids: entry `i` names the stack of layers up to and with `i`.
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

    fn amd64() -> Platform {
        Platform {
            os: "linux".into(),
            architecture: "amd64".into(),
            variants: vec!["v2".into(), String::new(), "v1".into()],
        }
    }

    fn manifest(config_type: &str, layer_type: &str, size: i64) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_IMAGE_MEDIA_TYPE}",
            "config":{{"mediaType":"{config_type}","digest":"{HEX}","size":10}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{HEX}","size":{size}}}]}}"#
        )
    }

    #[test]
    fn oci_and_docker_manifests() {
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let text = manifest(OCI_CONFIG, gzip, 5);
        match read_document(text.as_bytes(), Some(OCI_IMAGE_MEDIA_TYPE), &amd64()) {
            Ok(Document::Manifest(manifest)) => assert_eq!(manifest.layers[0].size, 5),
            other => panic!("{other:?}"),
        }
        let text = manifest(
            IMAGE_DOCKER_CONFIG_MEDIA_TYPE,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            5,
        )
        .replace(OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE);
        assert!(read_document(text.as_bytes(), None, &amd64()).is_ok());
    }

    #[test]
    fn hostile_documents_are_refused() {
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let good = manifest(OCI_CONFIG, gzip, 5);
        let hybrid = good.replacen('{', "{\"manifests\":[],", 1);
        let doubled = good.replacen('{', "{\"layers\":[],", 1);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let table: [(&str, Option<&str>, &str); 10] = [
            (&hybrid, None, "index and as a manifest"),
            (&doubled, None, "cannot be read"),
            (&deep, None, "cannot be read"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, None, "schema 1"),
            (&good, Some(OCI_IMAGE_INDEX_MEDIA_TYPE), "media type"),
            (&manifest(OCI_CONFIG, gzip, -1), None, "not believed"),
            (&manifest(OCI_CONFIG, gzip, i64::MAX), None, "not believed"),
            (
                &manifest(OCI_CONFIG, "application/octet-stream", 5),
                None,
                "media type",
            ),
            (
                &manifest("application/vnd.cncf.helm.config.v1+json", gzip, 5),
                None,
                "artifact",
            ),
            (&good.replace(HEX, "sha256:../../x"), None, "descriptor"),
        ];
        for (text, content_type, part) in table {
            let error = read_document(text.as_bytes(), content_type, &amd64())
                .expect_err("refused")
                .to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_index_entry_that_fits_best() {
        let entry = |architecture: &str, variant: &str, last: char| {
            let digest = format!("{}{last}", &HEX[..HEX.len() - 1]);
            format!(
                r#"{{"mediaType":"{OCI_IMAGE_MEDIA_TYPE}","digest":"{digest}","size":3,
                "platform":{{"os":"linux","architecture":"{architecture}","variant":"{variant}"}}}}"#
            )
        };
        let index = |entries: &[String]| {
            format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                entries.join(",")
            )
        };
        let pick =
            |entries: &[String]| match read_document(index(entries).as_bytes(), None, &amd64()) {
                Ok(Document::Index(content)) => Ok(content.digest.as_str().chars().last()),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.to_string()),
            };
        let all = [
            entry("arm64", "", '1'),
            entry("amd64", "", '2'),
            entry("amd64", "v2", '3'),
            entry("amd64", "v4", '4'),
        ];
        assert_eq!(pick(&all), Ok(Some('3')));
        assert_eq!(pick(&all[..2]), Ok(Some('2')));
        let error = pick(&all[..1]).expect_err("wrong platform");
        assert!(
            error.contains("linux/amd64") && error.contains("linux/arm64"),
            "{error}"
        );
    }

    #[test]
    fn configurations() {
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"User":"www-data:1004",
            "Volumes":{{"/b":{{}},"/a":{{}}}},"Entrypoint":null}},
            "rootfs":{{"type":"layers","diff_ids":["{HEX}"]}}}}"#
        );
        let read = read_config(text.as_bytes(), 1, &amd64()).expect("reads");
        assert_eq!(read.config.user, "www-data:1004");
        assert_eq!(read.config.volumes, ["/a", "/b"]);
        assert!(matches!(
            read_config(text.as_bytes(), 2, &amd64()),
            Err(ManifestError::LayerCount {
                layers: 2,
                diff_ids: 1
            })
        ));
        let arm = text.replace("amd64", "arm64");
        assert!(matches!(
            read_config(arm.as_bytes(), 1, &amd64()),
            Err(ManifestError::WrongPlatform { .. })
        ));
    }

    #[test]
    fn chains() {
        let diff = Digest::parse(HEX).expect("digest");
        let chain = chain_ids(&[diff.clone(), diff.clone()]);
        assert_eq!(chain[0], diff);
        assert_eq!(chain[1], Digest::of(format!("{HEX} {HEX}").as_bytes()));
    }
}
