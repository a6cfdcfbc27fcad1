//! pull, images, inspecti, rmi.

use crisp_harness::{crictl::Crictl, suite::BUSYBOX};

#[tokio::test]
async fn pull_says_that_the_image_is_up_to_date() {
    let crictl = Crictl::new().await.unwrap();
    let said = crictl.run(&["pull", BUSYBOX]);
    assert!(
        said.starts_with("Image is up to date for sha256:"),
        "{said}"
    );
    assert_eq!(
        crictl.run(&["pull", BUSYBOX]),
        said,
        "a second pull finds the same image"
    );
    let refused = crictl.refused(&["pull", "registry.k8s.io/no/such-image:1"]);
    assert!(
        refused.contains("no/such-image"),
        "the message names the image: {refused}"
    );
}

#[tokio::test]
async fn images_lists_what_was_pulled() {
    let crictl = Crictl::new().await.unwrap();
    assert_eq!(crictl.run(&["images", "-q", BUSYBOX]), "");
    let id = crictl
        .run(&["pull", BUSYBOX])
        .rsplit(' ')
        .next()
        .unwrap()
        .to_owned();
    let listed = crictl.json(&["images", "-o", "json"]);
    let image = listed["images"]
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["id"] == id.as_str())
        .unwrap();
    assert_eq!(image["repoTags"][0], BUSYBOX);
    assert!(
        image["repoDigests"][0]
            .as_str()
            .unwrap()
            .starts_with("registry.k8s.io/e2e-test-images/busybox@sha256:")
    );
    assert!(image["size"].as_str().unwrap().parse::<u64>().unwrap() > 100_000);
    assert!(
        crictl
            .run(&["images"])
            .contains("registry.k8s.io/e2e-test-images/busybox")
    );
    assert_eq!(
        crictl.run(&["images", "-q", BUSYBOX]),
        id,
        "a reference filters"
    );
}

#[tokio::test]
async fn inspecti_shows_status_and_info() {
    let crictl = Crictl::new().await.unwrap();
    let _said = crictl.run(&["pull", BUSYBOX]);
    let image = crictl.json(&["inspecti", BUSYBOX]);
    assert_eq!(image["status"]["repoTags"][0], BUSYBOX);
    assert!(image["info"].is_object(), "{image}");
    let refused = crictl.refused(&["inspecti", "registry.k8s.io/no/such-image:1"]);
    assert!(refused.contains("no such image"), "{refused}");
}

#[tokio::test]
async fn rmi_removes_all_tags_of_an_image() {
    let crictl = Crictl::new().await.unwrap();
    let tags =
        ["1", "2", "3"].map(|tag| format!("gcr.io/k8s-staging-cri-tools/test-image-tags:{tag}"));
    for tag in &tags {
        let _said = crictl.run(&["pull", tag]);
    }
    let said = crictl.run(&["rmi", &tags[1]]);
    for tag in &tags {
        assert!(said.contains(&format!("Deleted: {tag}")), "{said}");
    }
    assert_eq!(
        crictl.run(&[
            "images",
            "-q",
            "gcr.io/k8s-staging-cri-tools/test-image-tags"
        ]),
        ""
    );
    let _gone = crictl.refused(&["rmi", &tags[0]]);
}
