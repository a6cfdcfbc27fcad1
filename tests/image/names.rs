//! What an image is called: ids, tags, digests; and the ways it comes in.

use std::{fs::File, io::Write};

use crisp::{
    error::{Classify, ErrorKind},
    image::{Credentials, PullRequest},
};
use serde_json::json;

use crate::{
    layer::{OCI_INDEX, Pack, Tar, build, digest, simple},
    registry::{Auth, Registry},
    site::Site,
};

#[tokio::test(flavor = "multi_thread")]
async fn tags_digests_and_ids() {
    let (registry, site) = (Registry::start().await, Site::new());
    let image = build(
        &[Tar::new().file("f", b"x").done()],
        Pack::Gzip,
        &json!({"User": "www-data:1004"}),
    );
    let manifest = registry.push("a/app", "v1", &image);
    registry.push("a/app", "v2", &image);
    registry.push("b/app", "latest", &image);
    let name = |text: &str| registry.name(text);
    let by_tag = site.pull(&name("a/app:v1")).await.unwrap();
    assert_eq!(by_tag.id, digest(&image.config));
    assert_eq!(by_tag.tags, [name("a/app:v1")]);
    assert_eq!(by_tag.digests, [name(&format!("a/app@{manifest}"))]);
    assert_eq!(by_tag.config.user, "www-data:1004");
    assert!(by_tag.size > 0);
    // Every name and the id say the same.
    let id = by_tag.id.clone();
    for text in [
        &name("a/app:v1"),
        &by_tag.digests[0],
        &id,
        &id[7..],
        &id[7..20],
    ] {
        assert_eq!(
            site.images.resolve(text).unwrap().as_ref(),
            Some(&by_tag),
            "{text}"
        );
    }
    site.pull(&name("a/app:v2")).await.unwrap();
    let all = site.pull(&name("b/app")).await.unwrap();
    assert_eq!(
        all.tags,
        [name("a/app:v1"), name("a/app:v2"), name("b/app:latest")]
    );
    assert_eq!((all.digests.len(), &all.id), (2, &id));
    assert_eq!(site.images.list().len(), 1);
    // Gone under every name at once, any number of callers.
    let texts = [
        name("a/app:v2"),
        id.clone(),
        id.clone(),
        id.clone(),
        id.clone(),
    ];
    let removals = texts.iter().map(|text| async {
        site.images.remove(text).await.unwrap();
        assert!(site.images.status(&id).is_none());
    });
    futures_util::future::join_all(removals).await;
    assert!(site.images.resolve(&name("b/app")).unwrap().is_none());
    site.images.remove(&"0".repeat(64)).await.unwrap();
    for _ in 0..400 {
        if site.list("layers").is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert!(site.list("layers").is_empty(), "unused layers go");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_digest_there_is_no_tag() {
    let (registry, site) = (Registry::start().await, Site::new());
    let manifest = registry.push("d/app", "latest", &simple("digest"));
    let reference = registry.name(&format!("d/app@{manifest}"));
    let image = site.pull(&reference).await.unwrap();
    assert!(image.tags.is_empty());
    assert_eq!(image.digests, [reference]);
    assert_eq!(site.read(&image, "etc/marker"), b"digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_leaves_its_old_image() {
    let (registry, site) = (Registry::start().await, Site::new());
    registry.push("m", "t", &simple("old"));
    let old = site.pull(&registry.name("m:t")).await.unwrap();
    registry.push("m", "t", &simple("new"));
    let new = site.pull(&registry.name("m:t")).await.unwrap();
    assert_ne!(old.id, new.id);
    assert!(site.images.status(&old.id).unwrap().tags.is_empty());
    assert_eq!(
        site.images.status(&registry.name("m:t")).unwrap().id,
        new.id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_and_every_packing() {
    let (registry, site) = (Registry::start().await, Site::new());
    for (tag, pack) in [
        ("g", Pack::Gzip),
        ("z", Pack::Zstd),
        ("p", Pack::Plain),
        ("d", Pack::Docker),
    ] {
        let image = build(
            &[
                Tar::new().file("f", tag.as_bytes()).done(),
                Tar::new().file("g", b"2").done(),
            ],
            pack,
            &json!({}),
        );
        registry.push("pack", tag, &image);
        let pulled = site
            .pull(&registry.name(&format!("pack:{tag}")))
            .await
            .unwrap();
        assert_eq!(site.read(&pulled, "f"), tag.as_bytes());
    }
    let image = simple("indexed");
    let found = registry.push("idx", "plain", &image);
    let architecture = crisp::image::Platform::host().architecture;
    let entry = |architecture: &str, digest: &str| {
        json!({"mediaType": crate::layer::OCI_MANIFEST, "digest": digest,
            "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let other = digest(b"other");
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry("s390x", &other), entry(&architecture, &found)]});
    let bytes = serde_json::to_vec(&index).unwrap();
    let top = registry.push_manifest("idx", "multi", OCI_INDEX, &bytes);
    let pulled = site.pull(&registry.name("idx:multi")).await.unwrap();
    assert_eq!(pulled.digests, [registry.name(&format!("idx@{top}"))]);
    // An index that names itself, so to say, and one for other machines.
    let nested = |digest: &str, size: usize| {
        serde_json::to_vec(
            &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            {"mediaType": OCI_INDEX, "digest": digest, "size": size}]}),
        )
        .unwrap()
    };
    let (mut digest, mut size) = (top, bytes.len());
    for _ in 0..6 {
        let bytes = nested(&digest, size);
        size = bytes.len();
        digest = registry.push_manifest("idx", "deep", OCI_INDEX, &bytes);
    }
    let error = site.pull(&registry.name("idx:deep")).await.unwrap_err();
    assert!(
        crisp::error::Chain(&error).to_string().contains("nested"),
        "{error}"
    );
    let foreign = json!({"schemaVersion": 2, "manifests": [entry("s390x", &other)]});
    registry.push_manifest(
        "idx",
        "far",
        OCI_INDEX,
        &serde_json::to_vec(&foreign).unwrap(),
    );
    let error = site.pull(&registry.name("idx:far")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_every_kind() {
    let (registry, site) = (Registry::start().await, Site::new());
    registry.push("private", "t", &simple("secret"));
    let reference = registry.name("private:t");
    let bearer = |wants: &str| Auth {
        header: "Bearer tok-1".into(),
        demand: format!(
            "Bearer realm=\"http://{}/token\",service=\"s\"",
            registry.address
        ),
        token: Some((wants.to_owned(), "tok-1".to_owned())),
    };
    let basic = "Basic dXNlcjpwYXNz"; // user:pass
    let user = Credentials {
        username: "user".into(),
        password: "pass".into(),
        ..Credentials::default()
    };
    let cases = [
        (bearer(basic), user.clone()),
        (
            bearer("refresh_token=refresh-1"),
            Credentials {
                identity_token: "refresh-1".into(),
                ..Credentials::default()
            },
        ),
        (
            Auth {
                header: basic.into(),
                demand: "Basic realm=\"x\"".into(),
                token: None,
            },
            Credentials {
                auth: "dXNlcjpwYXNz".into(),
                ..Credentials::default()
            },
        ),
        (
            Auth {
                header: "Bearer given".into(),
                demand: "Basic".into(),
                token: None,
            },
            Credentials {
                registry_token: "given".into(),
                ..Credentials::default()
            },
        ),
    ];
    for (auth, credentials) in cases {
        registry.demand(auth);
        let denied = site.pull(&reference).await.unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::PullReason);
        assert!(denied.to_string().contains("denied"), "{denied}");
        let request = PullRequest {
            reference: reference.clone(),
            credentials: Some(credentials),
            pinned: false,
        };
        let image = site.images.pull(request).await.unwrap();
        site.images.remove(&image.id).await.unwrap();
    }
    // A registry that is never content is asked twice, not for ever.
    registry.demand(Auth {
        header: "never".into(),
        ..bearer(basic)
    });
    let before = registry.seen("/manifests/").len();
    let request = PullRequest {
        reference: reference.clone(),
        credentials: Some(user),
        pinned: false,
    };
    site.images.pull(request).await.unwrap_err();
    assert_eq!(registry.seen("/manifests/").len(), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_comes_in_like_a_pull() {
    let site = Site::new();
    let image = simple("archived");
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [{
        "mediaType": crate::layer::OCI_MANIFEST, "digest": digest(&image.manifest),
        "size": image.manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "example.org/a/b:c"}}]}))
    .unwrap();
    let blob = |bytes: &[u8]| format!("blobs/{}", digest(bytes).replace(':', "/"));
    let layout = Tar::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", &index)
        .file(&blob(&image.manifest), &image.manifest)
        .file(&blob(&image.config), &image.config)
        .file(&blob(&image.blobs[0]), &image.blobs[0])
        .done();
    let path = site.dir.path().join("oci.tar");
    File::create(&path).unwrap().write_all(&layout).unwrap();
    let imported = site.images.import(&path, None).await.unwrap();
    assert_eq!(imported[0].tags, ["example.org/a/b:c"]);
    assert_eq!(site.read(&imported[0], "etc/marker"), b"archived");
    let named = site
        .images
        .import(&path, Some("busybox:test"))
        .await
        .unwrap();
    assert_eq!(
        named[0].tags,
        ["docker.io/library/busybox:test", "example.org/a/b:c"]
    );

    let second = simple("docker-archived");
    let manifest = serde_json::to_vec(&json!([{"Config": "config.json",
        "RepoTags": ["app:1", "other/app:2"], "Layers": ["l/layer.tar"]}]))
    .unwrap();
    let archive = Tar::new()
        .file("manifest.json", &manifest)
        .file("config.json", &second.config)
        .file("l/layer.tar", &second.tars[0])
        .done();
    let path = site.dir.path().join("docker.tar");
    File::create(&path).unwrap().write_all(&archive).unwrap();
    let imported = site.images.import(&path, None).await.unwrap();
    assert_eq!(
        imported[0].tags,
        ["docker.io/library/app:1", "docker.io/other/app:2"]
    );
    assert_eq!(site.read(&imported[0], "etc/marker"), b"docker-archived");

    // A blob that is not what its name says.
    let bad = Tar::new()
        .file("index.json", &index)
        .file(&blob(&image.manifest), &image.manifest)
        .file(&blob(&image.config), b"{}")
        .done();
    let path = site.dir.path().join("bad.tar");
    File::create(&path).unwrap().write_all(&bad).unwrap();
    let error = site.images.import(&path, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
