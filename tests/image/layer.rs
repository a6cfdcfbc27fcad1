//! Layers and images made in memory.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// `sha256:<hex>`.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A tar in the making. Names and types are written as they are, also the ones no tool would write.
#[derive(Default, Clone)]
pub struct Tar {
    bytes: Vec<u8>,
}

/// One entry.
#[derive(Clone)]
pub struct Item<'a> {
    pub name: &'a str,
    pub kind: EntryType,
    pub link: &'a str,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u32, u32),
    pub data: &'a [u8],
    pub pax: Vec<(&'a str, &'a [u8])>,
}

impl Default for Item<'_> {
    fn default() -> Self {
        Self {
            name: "",
            kind: EntryType::Regular,
            link: "",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            device: (0, 0),
            data: &[],
            pax: Vec::new(),
        }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    fn block(&mut self, header: &mut Header, data: &[u8]) {
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().div_ceil(512) * 512, 0);
    }

    pub fn add(mut self, item: &Item<'_>) -> Self {
        let mut pax = item.pax.clone();
        for (key, value) in [("path", item.name), ("linkpath", item.link)] {
            if value.len() > 99 {
                pax.push((key, value.as_bytes()));
            }
        }
        if !pax.is_empty() {
            let mut data = Vec::new();
            for (key, value) in pax {
                let rest = key.len() + value.len() + 3;
                let mut length = rest + 1;
                while length != rest + length.to_string().len() {
                    length = rest + length.to_string().len();
                }
                data.extend_from_slice(format!("{length} {key}=").as_bytes());
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            self.block(&mut header, &data);
        }
        let mut header = Header::new_gnu();
        let cut = |text: &str| text.as_bytes()[..text.len().min(99)].to_vec();
        header.as_old_mut().name[..cut(item.name).len()].copy_from_slice(&cut(item.name));
        header.as_old_mut().linkname[..cut(item.link).len()].copy_from_slice(&cut(item.link));
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(item.uid);
        header.set_gid(item.gid);
        header.set_mtime(item.mtime);
        header.set_device_major(item.device.0).unwrap();
        header.set_device_minor(item.device.1).unwrap();
        self.block(&mut header, item.data);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.add(&Item {
            name,
            data,
            ..Item::default()
        })
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.add(&Item {
            name,
            mode,
            kind: EntryType::Directory,
            ..Item::default()
        })
    }

    pub fn symlink(self, name: &str, link: &str) -> Self {
        self.add(&Item {
            name,
            link,
            kind: EntryType::Symlink,
            ..Item::default()
        })
    }

    pub fn hard_link(self, name: &str, link: &str) -> Self {
        self.add(&Item {
            name,
            link,
            kind: EntryType::Link,
            ..Item::default()
        })
    }

    pub fn done(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// Without the end mark.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// An image: its documents and blobs.
#[derive(Clone)]
pub struct Built {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    /// Compressed layers.
    pub blobs: Vec<Vec<u8>>,
    /// Uncompressed layers.
    pub tars: Vec<Vec<u8>>,
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// How a layer is packed.
#[derive(Clone, Copy, PartialEq)]
pub enum Pack {
    Gzip,
    Zstd,
    Plain,
    Docker,
}

pub fn build(tars: &[Vec<u8>], pack: Pack, config: &serde_json::Value) -> Built {
    let blobs: Vec<Vec<u8>> = tars
        .iter()
        .map(|tar| match pack {
            Pack::Gzip | Pack::Docker => gzip(tar),
            Pack::Zstd => zstd::encode_all(&tar[..], 1).unwrap(),
            Pack::Plain => tar.clone(),
        })
        .collect();
    let (manifest_type, config_type, layer_type) = match pack {
        Pack::Docker => (
            DOCKER_MANIFEST,
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
        _ => (
            OCI_MANIFEST,
            "application/vnd.oci.image.config.v1+json",
            match pack {
                Pack::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
                Pack::Plain => "application/vnd.oci.image.layer.v1.tar",
                _ => "application/vnd.oci.image.layer.v1.tar+gzip",
            },
        ),
    };
    let architecture = crisp::image::Platform::host().architecture;
    let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "os": "linux", "architecture": architecture, "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap();
    let layers: Vec<_> = blobs
        .iter()
        .map(|blob| {
            serde_json::json!({"mediaType": layer_type, "digest": digest(blob), "size": blob.len()})
        })
        .collect();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": {"mediaType": config_type, "digest": digest(&config), "size": config.len()},
        "layers": layers,
    }))
    .unwrap();
    Built {
        manifest,
        config,
        blobs,
        tars: tars.to_vec(),
    }
}

/// A one-layer image with a marker file.
pub fn simple(marker: &str) -> Built {
    let tar = Tar::new()
        .dir("etc/", 0o755)
        .file("etc/marker", marker.as_bytes())
        .done();
    build(&[tar], Pack::Gzip, &serde_json::json!({}))
}
