//! The watch: what ready says, and that it says so soon after the directory changed.

use std::fs;

use crisp::network::{Network, NotReady};

use super::{Fakes, RESULT, eventually, own_namespace, request};

fn reason(network: &Network) -> String {
    network
        .ready()
        .map_or_else(|reason| reason.to_string(), |()| "ready".to_owned())
}

async fn becomes(network: &Network, words: &str) {
    eventually(&format!("{words:?}"), || reason(network).contains(words)).await;
}

#[tokio::test]
async fn readiness_follows_the_directory() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fs::remove_dir(fakes.path("conf")).unwrap();
    let network = fakes.network();
    assert!(matches!(network.ready(), Err(NotReady::NoConfig { .. })));
    let error = network
        .attach(&request(&own_namespace()))
        .await
        .unwrap_err();
    assert!(
        crisp::error::Chain(&error)
            .to_string()
            .contains("no CNI configuration")
    );
    // The directory appears first, its file later, half-written first.
    fs::create_dir(fakes.path("conf")).unwrap();
    fs::write(
        fakes.path("conf/10-fakes.conflist"),
        r#"{"cniVersion":"1.0"#,
    )
    .unwrap();
    becomes(&network, "10-fakes.conflist is not a JSON object").await;
    fakes.conf("1.0.0", &["one"]);
    becomes(&network, "ready").await;
    fakes.conf("1.0.0", &["one", "missing"]);
    becomes(&network, "names plugin \"missing\", which is in none of").await;
    fs::rename(fakes.path("conf"), fakes.path("away")).unwrap();
    becomes(&network, "no CNI configuration").await;
    fs::rename(fakes.path("away"), fakes.path("conf")).unwrap();
    fakes.conf("1.0.0", &["one"]);
    becomes(&network, "ready").await;
}

#[tokio::test]
async fn a_version_that_a_plugin_does_not_speak_is_found_before_any_pod() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fakes.conf("0.3.1", &["one"]);
    let network = fakes.network();
    becomes(&network, "is of cniVersion 0.3.1, plugin").await;
    becomes(&network, "speaks 0.4.0, 1.0.0, 1.1.0").await;
}

#[tokio::test]
async fn status_decides_where_it_exists() {
    let fakes = Fakes::new();
    fakes.plugin(
        "one",
        r#"[ $CNI_COMMAND = STATUS ] || exit 0
[ -e "$dir/up" ] || { echo '{"code":50,"msg":"agent is down"}'; exit 1; }"#,
    );
    fakes.conf("1.1.0", &["one"]);
    let network = fakes.network();
    assert_eq!(network.ready(), Err(NotReady::Starting));
    becomes(
        &network,
        "status of plugin \"one\": error 50: agent is down",
    )
    .await;
    fs::write(fakes.path("up"), "").unwrap();
    // Any event in the directory asks again; otherwise the tick does.
    fs::write(fakes.path("conf/99.txt"), "").unwrap();
    becomes(&network, "ready").await;
}

#[tokio::test]
async fn a_plugin_that_hangs_at_its_version_does_not_hold_up_a_new_configuration() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fakes.well_behaved("two", &RESULT.replace("1.0.0", "1.1.0"));
    let hang = std::process::Command::new("sh")
        .args([
            "-c",
            "printf '#!/bin/sh\\nexec sleep 600\\n' > \"$1\" && chmod 755 \"$1\"",
            "sh",
        ])
        .arg(fakes.path("bin/hangs"))
        .status();
    assert!(hang.unwrap().success());
    fakes.conf("1.1.0", &["hangs"]);
    let network = fakes.network();
    assert_eq!(network.ready(), Err(NotReady::Starting));
    fakes.conf("1.0.0", &["one"]);
    becomes(&network, "ready").await;
}
