//! Certificates of the streaming server, read again when their files change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
        server::{VerifierBuilderError, WebPkiClientVerifier},
    },
};

use crate::{config::StreamTls, error::Chain};

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no usable PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A file holds nothing.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// Certificate and key cannot be used, or not together.
    #[error("certificate and key of the streaming server cannot be used")]
    Use(#[from] rustls::Error),
    /// The client CA cannot be used.
    #[error("the client CA of the streaming server cannot be used")]
    ClientCa(#[from] VerifierBuilderError),
}

/// What a file was when it was read.
type Stamp = [Option<(u64, u64, i64, i64)>; 3];

struct Loaded {
    stamp: Stamp,
    looked: Instant,
    config: Arc<ServerConfig>,
}

/// The certificates in use.
pub struct Tls {
    files: StreamTls,
    // Held while files are looked at, never over an await.
    loaded: Mutex<Loaded>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Any [`TlsError`].
    pub fn open(files: StreamTls) -> Result<Self, TlsError> {
        let stamp = stamp(&files);
        let config = load(&files)?;
        Ok(Self {
            files,
            loaded: Mutex::new(Loaded {
                stamp,
                looked: Instant::now(),
                config,
            }),
        })
    }

    /// For the next connection. Files that changed are read again; if they cannot be used, the old
    /// certificates stay.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK {
            loaded.looked = Instant::now();
            let stamp = stamp(&self.files);
            if stamp != loaded.stamp {
                match load(&self.files) {
                    Ok(config) => {
                        tracing::info!("certificates of the streaming server read again");
                        loaded.config = config;
                        loaded.stamp = stamp;
                    }
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "new certificates cannot be used");
                    }
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&loaded.config))
    }
}

fn stamp(files: &StreamTls) -> Stamp {
    let of = |path: Option<&Path>| {
        let seen = fs::metadata(path?).ok()?;
        Some((seen.ino(), seen.size(), seen.mtime(), seen.mtime_nsec()))
    };
    [
        of(Some(&files.certificate)),
        of(Some(&files.key)),
        of(files.client_ca.as_deref()),
    ]
}

fn load(files: &StreamTls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?);
    let key = key.map_err(|source| TlsError::Pem {
        path: files.key.clone(),
        source,
    })?;
    let mut config = builder.with_single_cert(certificates(&files.certificate)?, key)?;
    // Upgrades are HTTP/1.1's.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        source,
    })?;
    if found.is_empty() {
        return Err(TlsError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(found)
}
