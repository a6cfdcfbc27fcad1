//! The chain of plugins: order, results handed on, undoing, records.

use std::{fs, path::PathBuf};

use crisp::{
    error::{Chain, Classify, ErrorKind},
    network::{DetachRequest, NetworkError, PortMapping, Protocol},
};
use serde_json::json;

use super::{Fakes, RESULT, own_namespace, request};

#[tokio::test]
async fn results_are_handed_on_and_del_runs_in_reverse_with_the_last() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", &RESULT.replace("10.1.2.3", "10.1.2.4"));
    fakes.well_behaved("two", RESULT);
    fakes.conf("1.0.0", &["one", "two"]);
    let network = fakes.network();
    network.set_pod_cidrs(vec!["10.1.0.0/16".into()]);
    let mut request = request(&own_namespace());
    request.port_mappings = vec![PortMapping {
        protocol: Protocol::Udp,
        container_port: 53,
        host_port: 5353,
        host_ip: None,
    }];
    let attachment = network.attach(&request).await.unwrap();
    assert_eq!(
        attachment.ips,
        ["10.1.2.3".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(fakes.input("one", "ADD").get("prevResult"), None);
    assert_eq!(
        fakes.input("two", "ADD")["prevResult"]["ips"][0]["address"],
        "10.1.2.4/24"
    );
    let runtime = &fakes.input("two", "ADD")["runtimeConfig"];
    let mapping = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}]);
    assert_eq!(runtime["portMappings"], mapping);
    assert_eq!(runtime["ipRanges"], json!([[{"subnet": "10.1.0.0/16"}]]));
    network.check(&request.sandbox).await.unwrap();
    network
        .detach(&DetachRequest {
            sandbox: request.sandbox.clone(),
        })
        .await
        .unwrap();
    let calls = [
        "one ADD",
        "two ADD",
        "one CHECK",
        "two CHECK",
        "two DEL",
        "one DEL",
    ];
    assert_eq!(fakes.calls(), calls);
    for plugin in ["one", "two"] {
        let input = fakes.input(plugin, "DEL");
        assert_eq!(input["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
        assert_eq!(&input["runtimeConfig"], runtime);
    }
    assert_eq!(fakes.records(), 0);
    network
        .detach(&DetachRequest {
            sandbox: request.sandbox,
        })
        .await
        .unwrap();
    assert_eq!(fakes.calls().len(), 6, "nothing on record, nothing to run");
}

#[tokio::test]
async fn a_failed_chain_is_undone_whole() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fakes.plugin(
        "two",
        r#"[ $CNI_COMMAND = DEL ] && exit 0
echo '{"cniVersion":"1.0.0","code":100,"msg":"no more","details":"pool is empty"}'; exit 1"#,
    );
    fakes.well_behaved("three", RESULT);
    fakes.conf("1.0.0", &["one", "two", "three"]);
    let error = fakes
        .network()
        .attach(&request(&own_namespace()))
        .await
        .unwrap_err();
    assert_eq!(
        Chain(&error).to_string(),
        r#"network "fakes": ADD of plugin "two": error 100: no more; pool is empty"#
    );
    let calls = ["one ADD", "two ADD", "three DEL", "two DEL", "one DEL"];
    assert_eq!(fakes.calls(), calls);
    assert_eq!(fakes.records(), 0);
}

#[tokio::test]
async fn a_failed_del_is_kept_and_repeated_until_it_succeeds() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fakes.plugin(
        "two",
        r#"cat > "$dir/two.$CNI_COMMAND"
if [ $CNI_COMMAND = DEL ] && [ ! -e "$dir/healed" ]; then echo broken >&2; exit 3; fi
cat "$dir/result""#,
    );
    fs::write(fakes.path("result"), RESULT).unwrap();
    fakes.conf("1.0.0", &["one", "two"]);
    let request = request(&own_namespace());
    let detach = DetachRequest {
        sandbox: request.sandbox.clone(),
    };
    let network = fakes.network();
    network.attach(&request).await.unwrap();
    for _ in 0..2 {
        let error = network.detach(&detach).await.unwrap_err();
        let text = Chain(&error).to_string();
        assert!(
            text.contains("DEL of plugin \"two\": ended with exit status 3, saying: broken"),
            "{text}"
        );
    }
    assert_eq!(
        fakes
            .calls()
            .iter()
            .filter(|call| *call == "one DEL")
            .count(),
        2
    );
    drop(network);
    // Another daemon, with another configuration in force, still knows how to undo it.
    fakes.well_behaved("other", RESULT);
    fakes.conf("0.4.0", &["other"]);
    let network = fakes.network();
    assert_eq!(network.attachments().unwrap(), [request.sandbox.as_str()]);
    fs::write(fakes.path("healed"), "").unwrap();
    network.detach(&detach).await.unwrap();
    assert!(network.attachments().unwrap().is_empty());
    assert!(!fakes.calls().iter().any(|call| call.starts_with("other")));
}

#[tokio::test]
async fn undoing_that_fails_too_says_both_and_stays_on_record() {
    let fakes = Fakes::new();
    fakes.plugin("one", "echo \"$CNI_COMMAND is broken\" >&2; exit 1");
    fakes.conf("1.0.0", &["one"]);
    let network = fakes.network();
    let error = network
        .attach(&request(&own_namespace()))
        .await
        .unwrap_err();
    assert!(matches!(error, NetworkError::Undo { .. }));
    let text = Chain(&error).to_string();
    assert!(
        text.contains("ADD is broken") && text.contains("DEL is broken"),
        "{text}"
    );
    assert_eq!(network.attachments().unwrap().len(), 1);
}

#[tokio::test]
async fn a_vanished_namespace_is_given_as_none() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fakes.conf("1.0.0", &["one"]);
    let network = fakes.network();
    // A plain file where the pin was: what an unmounted pin looks like.
    let path: PathBuf = fakes.path("pin");
    fs::write(&path, "").unwrap();
    let request = request(&path);
    network.attach(&request).await.unwrap();
    network
        .detach(&DetachRequest {
            sandbox: request.sandbox,
        })
        .await
        .unwrap();
    assert_eq!(fakes.log()[1], "one DEL netns=");
}

#[tokio::test]
async fn an_interrupted_attempt_is_undone_before_the_next() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fakes.conf("1.0.0", &["one"]);
    let request = request(&own_namespace());
    fakes.network().attach(&request).await.unwrap();
    fakes.network().attach(&request).await.unwrap();
    assert_eq!(fakes.calls(), ["one ADD", "one DEL", "one ADD"]);
}

#[tokio::test]
async fn a_damaged_record_is_undone_by_the_configuration_in_force() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fakes.conf("1.0.0", &["one"]);
    let request = request(&own_namespace());
    let network = fakes.network();
    network.attach(&request).await.unwrap();
    let record = fakes
        .path("results")
        .join(format!("{}.json", request.sandbox));
    let whole = fs::read(&record).unwrap();
    fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    network
        .detach(&DetachRequest {
            sandbox: request.sandbox,
        })
        .await
        .unwrap();
    assert_eq!(fakes.log()[1], "one DEL netns=");
    assert!(network.attachments().unwrap().is_empty());
}

#[tokio::test]
async fn gc_is_told_what_stays() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", &RESULT.replace("1.0.0", "1.1.0"));
    fakes.conf("1.1.0", &["one"]);
    let network = fakes.network();
    super::eventually("status heard", || network.ready().is_ok()).await;
    let request = request(&own_namespace());
    network.attach(&request).await.unwrap();
    network.gc().await.unwrap();
    let valid = fakes.input("one", "GC")["cni.dev/valid-attachments"].clone();
    assert_eq!(
        valid,
        json!([{"containerID": request.sandbox.as_str(), "ifname": "eth0"}])
    );
}

#[tokio::test]
async fn requests_that_plugins_could_misread_are_refused_before_any_runs() {
    let fakes = Fakes::new();
    fakes.well_behaved("one", RESULT);
    fakes.conf("1.0.0", &["one"]);
    let network = fakes.network();
    let good = request(&own_namespace());
    let mut bad = vec![good.clone(), good.clone(), good.clone(), good.clone()];
    bad[0].pod.name = "x;CNI_IFNAME=lo".into();
    bad[1].ifname = "../../eth0".into();
    bad[2].ips = vec!["10.0.0.1".into()];
    bad[3]
        .annotations
        .insert("kubernetes.io/ingress-bandwidth".into(), "fast".into());
    for request in bad {
        let error = network.attach(&request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    assert!(fakes.log().is_empty());
    assert_eq!(fakes.records(), 0);
}
