//! Registries over https: authorities of one's own, certificates that do not fit, client
//! certificates.

use std::{fs, path::Path, process::Command, sync::Arc};

use crisp::error::{Chain, Classify, ErrorKind};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

use crate::{
    layer::{digest, simple},
    registry::Registry,
    site::Site,
};

/// A directory with an authority, a server's and a client's certificate.
pub struct Keys {
    dir: tempfile::TempDir,
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {text}");
}

impl Keys {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let new = [
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        let make = |more: &[&str]| openssl(dir.path(), &[&new[..], more].concat());
        make(&[
            "-x509",
            "-days",
            "2",
            "-subj",
            "/CN=authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        for (name, extension) in [
            (
                "server",
                "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
            ),
            (
                "client",
                "subjectAltName=DNS:client\nextendedKeyUsage=clientAuth\n",
            ),
        ] {
            let (key, request, cert) = (
                format!("{name}.key"),
                format!("{name}.csr"),
                format!("{name}.pem"),
            );
            fs::write(dir.path().join("ext"), extension).unwrap();
            make(&["-subj", "/CN=x", "-keyout", &key, "-out", &request]);
            openssl(
                dir.path(),
                &[
                    "x509",
                    "-req",
                    "-days",
                    "2",
                    "-in",
                    &request,
                    "-CA",
                    "ca.pem",
                    "-CAkey",
                    "ca.key",
                    "-CAcreateserial",
                    "-extfile",
                    "ext",
                    "-out",
                    &cert,
                ],
            );
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn acceptor(&self, clients: bool) -> TlsAcceptor {
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let read = |name| CertificateDer::from_pem_file(self.path(name)).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(read("ca.pem")).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let config = builder
            .with_single_cert(vec![read("server.pem")], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_verification_and_client_certificates() {
    let keys = Keys::new();
    for clients in [false, true] {
        let (registry, site) = (Registry::start_tls(&keys, clients).await, Site::new());
        let image = simple("tls");
        registry.push("app", "t", &image);
        let url = format!("https://{}", registry.address);
        let client = if clients {
            format!(
                "client = [[{:?}, {:?}]]\n",
                keys.path("client.pem"),
                keys.path("client.key")
            )
        } else {
            String::new()
        };
        // An unknown authority, and (for clients) no certificate of ours.
        site.hosts("tls.example", &format!("server = {url:?}\n"));
        let error = site.pull("tls.example/app:t").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PullReason);
        assert!(
            error.to_string().starts_with("RegistryUnavailable: "),
            "{}",
            Chain(&error)
        );
        let ca = format!("server = {url:?}\nca = {:?}\n", keys.path("ca.pem"));
        if clients {
            site.hosts("tls.example", &ca);
            site.pull("tls.example/app:t").await.unwrap_err();
        }
        for trust in [ca, format!("server = {url:?}\nskip_verify = true\n")] {
            site.hosts("tls.example", &(trust + &client));
            let pulled = site.pull("tls.example/app:t").await.unwrap();
            assert_eq!(site.read(&pulled, "etc/marker"), b"tls");
            site.images.remove(&pulled.id).await.unwrap();
            // The next pull is to fetch the layer again.
            while !site.list("layers").is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        let agents: Vec<String> = registry
            .seen(&digest(&image.blobs[0]))
            .iter()
            .map(|seen| seen.headers["user-agent"].clone())
            .collect();
        // oci-client knows no client certificates: then our own path carries layers too.
        assert!(
            agents
                .iter()
                .all(|agent| agent.contains("oci-client") != clients),
            "{agents:?}"
        );
    }
}
