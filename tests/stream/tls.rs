//! Streams over TLS: certificates that change, clients that must show one.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::{
    Host,
    client::{Spdy, parts},
    soon,
};

fn openssl(dir: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {text}");
}

/// An authority and what it signs, by name.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = "ec_paramgen_curve:P-256";
        let new = [
            "req", "-x509", "-newkey", "ec", "-pkeyopt", key, "-nodes", "-days", "2",
        ];
        let files = [
            "-subj",
            "/CN=authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ];
        openssl(dir.path(), &[&new[..], &files].concat());
        Self(dir)
    }

    fn sign(&self, name: &str) {
        let key = "ec_paramgen_curve:P-256";
        let subject = format!("/CN={name}");
        let (key_file, request) = (format!("{name}.key"), format!("{name}.csr"));
        let new = [
            "req", "-newkey", "ec", "-pkeyopt", key, "-nodes", "-subj", &subject,
        ];
        openssl(
            self.0.path(),
            &[&new[..], &["-keyout", &key_file, "-out", &request]].concat(),
        );
        fs::write(self.0.path().join("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        let out = format!("{name}.pem");
        let sign = [
            "x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key",
        ];
        let files = [
            "-CAcreateserial",
            "-extfile",
            "ext",
            "-in",
            &request,
            "-out",
            &out,
        ];
        openssl(self.0.path(), &[&sign[..], &files].concat());
    }

    fn path(&self, file: &str) -> String {
        self.0.path().join(file).to_string_lossy().into_owned()
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()
    }

    /// Whether the server agrees on this version of TLS, and no other.
    fn agrees(&self, url: &str, version: &str) -> bool {
        let output = Command::new("openssl")
            .current_dir(self.0.path())
            .args(["s_client", "-connect", parts(url).0, "-brief"])
            .args(["-cert", "client.pem", "-key", "client.key"])
            // Or openssl itself would not even try the old ones.
            .args(["-cipher", "DEFAULT@SECLEVEL=0", &format!("-{version}")])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.contains("CONNECTION ESTABLISHED")
    }

    /// Connects, with the certificate of a name if there is one.
    async fn connect(
        &self,
        url: &str,
        client: Option<&str>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca")).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder
                    .with_client_auth_cert(vec![self.certificate(name)], key)
                    .unwrap()
            }
        };
        let stream = TcpStream::connect(parts(url).0).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }
}

/// Runs a command over TLS and returns what it printed.
async fn run(host: &Host, id: &str, stream: TlsStream<TcpStream>, url: &str) -> String {
    let mut spdy = Spdy::over(stream, url, &["v4.channel.k8s.io"])
        .await
        .unwrap();
    spdy.open_for("o").await;
    let all = spdy.collect().await;
    assert_eq!(all.code(), 0, "{id} {}", host.daemon.pid());
    all.text("stdout")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_again_and_clients_must_have_one() {
    let authority = Authority::new();
    for name in ["server", "next", "client"] {
        authority.sign(name);
    }
    let lines = format!(
        "tls_cert = {:?}\ntls_key = {:?}\ntls_client_ca = {:?}",
        authority.path("server.pem"),
        authority.path("server.key"),
        authority.path("ca.pem")
    );
    let host = Host::with(&lines).await;
    let (_pod, id) = host.running("tls", &["sleep", "1000"]).await;
    let url = host
        .exec(&id, "o", &["head", "-c", "300000", "/dev/zero"])
        .await
        .unwrap();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    // Without a certificate, and without TLS: neither uses the token up.
    let refused = match authority.connect(&url, None).await {
        Err(_) => true,
        Ok(stream) => Spdy::over(stream, &url, &["v4.channel.k8s.io"])
            .await
            .is_err(),
    };
    println!("S8 a client without a certificate: refused {refused}");
    assert!(refused, "a client without certificate is served");
    let plain = Spdy::connect(&url, "v4.channel.k8s.io").await.err();
    println!("S8 a client without TLS: {plain:?}");
    assert!(plain.is_some());
    for (version, expected) in [
        ("tls1", false),
        ("tls1_1", false),
        ("tls1_2", true),
        ("tls1_3", true),
    ] {
        let agreed = authority.agrees(&url, version);
        println!(
            "S8 {version}: {}",
            if agreed { "agreed" } else { "refused" }
        );
        assert_eq!(agreed, expected, "{version}");
    }
    let stream = authority.connect(&url, Some("client")).await.unwrap();
    assert_eq!(run(&host, &id, stream, &url).await.len(), 300_000);
    // A new certificate, in place of the old one.
    for kind in ["key", "pem"] {
        fs::copy(
            authority.path(&format!("next.{kind}")),
            authority.path(&format!("server.{kind}")),
        )
        .unwrap();
    }
    let next = authority.certificate("next");
    let deadline = tokio::time::Instant::now() + crate::LIMIT;
    loop {
        let url = host.exec(&id, "o", &["echo", "hi"]).await.unwrap();
        let stream = soon(authority.connect(&url, Some("client"))).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(run(&host, &id, stream, &url).await, "hi\n");
        if shown == next {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the new certificate is not shown"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    host.pods.remove_all().await.unwrap();
}
