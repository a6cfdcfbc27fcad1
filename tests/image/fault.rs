//! Registries that misbehave: a clear error in bounded time, nothing of the image visible, and a
//! later pull works.

use std::time::Duration;

use crisp::{
    error::{Chain, Classify, ErrorKind},
    image::PullRequest,
};
use serde_json::json;

use crate::{
    layer::{Pack, Tar, build, digest, simple},
    registry::{Fault, Registry},
    site::Site,
};

fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_clear_bounded_and_passes() {
    let (registry, site) = (Registry::start().await, Site::new());
    let image = build(
        &[Tar::new().file("f", &noise(50_000)).done()],
        Pack::Gzip,
        &json!({}),
    );
    registry.push("app", "t", &image);
    let blob = digest(&image.blobs[0]);
    let config = digest(&image.config);
    let own = format!("http://{}/v2/app/manifests/t", registry.address);
    let to = |url: &str| Fault::Status(307, vec![("location", url.to_owned())]);
    let status = |code| Fault::Status(code, vec![]);
    let table: Vec<(&str, Fault, ErrorKind, &str)> = vec![
        ("manifests", status(404), ErrorKind::NotFound, "not found"),
        ("manifests", status(403), ErrorKind::PullReason, "denied"),
        (
            "manifests",
            status(500),
            ErrorKind::PullReason,
            "RegistryUnavailable: ",
        ),
        (
            "manifests",
            Fault::Reset,
            ErrorKind::PullReason,
            "RegistryUnavailable: ",
        ),
        (
            "manifests",
            Fault::StallAfter(10),
            ErrorKind::PullReason,
            "RegistryUnavailable: ",
        ),
        (
            "manifests",
            Fault::Endless,
            ErrorKind::PullReason,
            "4194304 bytes",
        ),
        ("manifests", to(&own), ErrorKind::PullReason, "five before"),
        (
            "manifests",
            to("http://169.254.169.254/x"),
            ErrorKind::PullReason,
            "link-local",
        ),
        (
            "manifests",
            to("file:///etc/passwd"),
            ErrorKind::PullReason,
            "neither http",
        ),
        (
            "manifests",
            Fault::Status(429, vec![("retry-after", "1000000000".into())]),
            ErrorKind::PullReason,
            "RegistryUnavailable: ",
        ),
        (&config, Fault::Altered, ErrorKind::PullReason, "digest"),
        (&config, Fault::Longer, ErrorKind::PullReason, "bytes"),
        (&blob, status(404), ErrorKind::NotFound, "not found"),
        (
            &blob,
            status(500),
            ErrorKind::PullReason,
            "RegistryUnavailable: ",
        ),
        (&blob, Fault::Altered, ErrorKind::InvalidArgument, "digest"),
        (&blob, Fault::Longer, ErrorKind::PullReason, "bytes"),
        (
            &blob,
            Fault::StallAfter(500),
            ErrorKind::PullReason,
            "RegistryUnavailable: ",
        ),
        (
            &blob,
            Fault::Slow(Duration::from_secs(3)),
            ErrorKind::PullReason,
            "stalled",
        ),
    ];
    for (path, fault, kind, part) in table {
        registry.heal();
        registry.always(path, fault.clone());
        let limit = Duration::from_secs(60);
        let pulled = tokio::time::timeout(limit, site.pull(&registry.name("app:t"))).await;
        let error = pulled
            .unwrap_or_else(|_| panic!("{fault:?} took for ever"))
            .unwrap_err();
        let text = Chain(&error).to_string();
        assert!(text.contains(part), "{path} {fault:?}: {text}");
        assert_eq!(error.kind(), kind, "{path} {fault:?}: {text}");
        assert!(site.images.list().is_empty());
        assert!(site.list("layers").is_empty());
        site.staging_empties().await;
    }
    registry.heal();
    let image = site.pull(&registry.name("app:t")).await.unwrap();
    assert_eq!(site.read(&image, "f"), noise(50_000));
    // Nobody listens.
    let error = site.pull("127.0.0.1:1/app:t").await.unwrap_err();
    assert!(
        error.to_string().starts_with("RegistryUnavailable: "),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::PullReason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_goes_on_where_it_broke() {
    for fault in [
        Fault::CutAfter(20_000),
        Fault::StallAfter(20_000),
        Fault::IgnoreRange,
        Fault::WrongRange,
    ] {
        let (registry, site) = (Registry::start().await, Site::new());
        let image = build(
            &[Tar::new().file("f", &noise(90_000)).done()],
            Pack::Gzip,
            &json!({}),
        );
        registry.push("app", "t", &image);
        let blob = digest(&image.blobs[0]);
        registry.fault(&blob, &[Fault::CutAfter(30_000), fault.clone()]);
        let pulled = site.pull(&registry.name("app:t")).await.unwrap();
        assert_eq!(site.read(&pulled, "f"), noise(90_000), "{fault:?}");
        let ranges: Vec<_> = registry
            .seen(&blob)
            .iter()
            .map(|seen| seen.headers.get("range").cloned())
            .collect();
        assert_eq!(ranges[0], None);
        assert_eq!(ranges[1].as_deref(), Some("bytes=30000-"), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_in_their_order_and_oci_client_for_layers() {
    let (mirror, bad, site) = (
        Registry::start().await,
        Registry::start().await,
        Site::new(),
    );
    let image = simple("mirrored");
    let manifest = mirror.push("sub/app", "t", &image);
    bad.push("sub/app", "t", &simple("other"));
    let blob = digest(&image.blobs[0]);
    // The bad one may not resolve; for the blob it serves wrong bytes.
    bad.put(
        &format!("/v2/sub/app/blobs/{blob}"),
        "application/octet-stream",
        &vec![9; image.blobs[0].len()],
    );
    site.hosts(
        "registry.example",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
            mirror.address, bad.address
        ),
    );
    let pulled = site.pull("registry.example/sub/app:t").await.unwrap();
    assert_eq!(pulled.tags, ["registry.example/sub/app:t"]);
    assert_eq!(
        pulled.digests,
        [format!("registry.example/sub/app@{manifest}")]
    );
    assert_eq!(site.read(&pulled, "etc/marker"), b"mirrored");
    assert!(bad.seen("/manifests/").is_empty());
    assert!(
        mirror.seen("/manifests/t")[0]
            .query
            .contains("ns=registry.example")
    );
    let agents: Vec<_> = mirror
        .seen(&blob)
        .iter()
        .map(|seen| seen.headers["user-agent"].clone())
        .collect();
    assert!(
        agents.iter().any(|agent| agent.contains("oci-client")),
        "{agents:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_below_a_path_with_headers() {
    let (mirror, site) = (Registry::start().await, Site::new());
    let image = simple("path");
    mirror.push("app", "t", &image);
    for (path, (kind, bytes)) in [
        (
            "/deep/mirror/app/manifests/t".to_owned(),
            (crate::layer::OCI_MANIFEST, &image.manifest),
        ),
        (
            format!("/deep/mirror/app/blobs/{}", digest(&image.config)),
            ("x", &image.config),
        ),
        (
            format!("/deep/mirror/app/blobs/{}", digest(&image.blobs[0])),
            ("x", &image.blobs[0]),
        ),
    ] {
        mirror.put(&path, kind, bytes);
    }
    site.hosts(
        "registry.example",
        &format!(
            "[host.\"http://{}/deep/mirror\"]\noverride_path = true\n\
             [host.\"http://{}/deep/mirror\".header]\nx-secret = \"s\"\n",
            mirror.address, mirror.address
        ),
    );
    site.pull("registry.example/app:t").await.unwrap();
    assert!(
        mirror
            .seen("/deep/")
            .iter()
            .all(|seen| seen.headers["x-secret"] == "s")
    );
    site.hosts("registry.example", "server = 3");
    let error = site.pull("registry.example/app:t").await.unwrap_err();
    let text = Chain(&error).to_string();
    assert!(text.contains("hosts.toml:1:"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_redirects() {
    let (registry, elsewhere, site) = (
        Registry::start().await,
        Registry::start().await,
        Site::new(),
    );
    let image = simple("redirected");
    registry.push("app", "t", &image);
    let path = format!("/v2/app/blobs/{}", digest(&image.blobs[0]));
    elsewhere.put("/storage", "x", &image.blobs[0]);
    let location = format!("http://{}/storage", elsewhere.address);
    registry.always(&path, Fault::Status(302, vec![("location", location)]));
    let credentials = crisp::image::Credentials {
        registry_token: "token".into(),
        ..crisp::image::Credentials::default()
    };
    let request = PullRequest {
        reference: registry.name("app:t"),
        credentials: Some(credentials),
        pinned: false,
    };
    site.images.pull(request).await.unwrap();
    assert!(
        registry
            .seen("/blobs/")
            .iter()
            .all(|seen| seen.headers.contains_key("authorization"))
    );
    let there = elsewhere.seen("/storage");
    assert!(
        !there.is_empty()
            && there
                .iter()
                .all(|s| !s.headers.contains_key("authorization"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_fetch_once_and_survive_a_cancelled_client() {
    let (registry, site) = (Registry::start().await, Site::new());
    let shared = Tar::new().file("base", &noise(60_000)).done();
    let one = build(
        &[shared.clone(), Tar::new().file("one", b"1").done()],
        Pack::Gzip,
        &json!({}),
    );
    let two = build(
        &[shared, Tar::new().file("two", b"2").done()],
        Pack::Gzip,
        &json!({}),
    );
    registry.push("app", "one", &one);
    registry.push("app", "two", &two);
    let base = digest(&one.blobs[0]);
    registry.always(&base, Fault::Slow(Duration::from_millis(10)));
    let name = registry.name("app:one");
    let given_up = site.pull(&name);
    let short = tokio::time::timeout(Duration::from_millis(100), given_up).await;
    assert!(
        short.is_err(),
        "the first client gives up while the base is on its way"
    );
    let names: Vec<String> = (0..8)
        .map(|i| registry.name(if i % 2 == 0 { "app:one" } else { "app:two" }))
        .collect();
    let pulls = names.iter().map(|name| site.pull(name));
    for pulled in futures_util::future::join_all(pulls).await {
        assert_eq!(site.read(&pulled.unwrap(), "base"), noise(60_000));
    }
    assert_eq!(
        registry.seen(&base).len(),
        1,
        "the shared layer was fetched once"
    );
    assert_eq!(registry.seen(&digest(&one.blobs[1])).len(), 1);
    assert_eq!(site.list("layers").len(), 3);
    site.staging_empties().await;
}
