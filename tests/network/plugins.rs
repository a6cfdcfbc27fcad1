//! The plugins of Debian: bridge, host-local, portmap.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use crisp::{
    error::Chain,
    network::{DetachRequest, Network, NetworkConfig, PortMapping, Protocol, netns},
};
use rand::Rng;

use super::{PATIENCE, new_namespace, request};

/// A bridge, a subnet and a lease directory of this test alone, and a pinned namespace.
struct Lab {
    dir: tempfile::TempDir,
    bridge: String,
    pin: String,
    namespace: OwnedFd,
}

impl Lab {
    fn new(masquerade: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tag = rand::rng().random_range(0..0x00ff_ffff);
        let (bridge, pin) = (format!("crt{tag:06x}"), format!("crisp-lab-{tag:06x}"));
        let namespace = new_namespace();
        netns::pin(namespace.as_fd(), &pin).unwrap();
        fs::create_dir(dir.path().join("conf")).unwrap();
        // Out of the ranges that machines and clusters commonly have.
        let subnet = format!("198.{}.{}.0/24", 18 + (tag & 1), (tag >> 1) & 0xff);
        let leases = dir.path().join("leases");
        let conf = format!(
            r#"{{"cniVersion":"1.0.0","name":"lab-{tag:06x}","plugins":[
            {{"type":"bridge","bridge":"{bridge}","isGateway":true,"ipMasq":{masquerade},
              "ipam":{{"type":"host-local","dataDir":"{}",
                       "ranges":[[{{"subnet":"{subnet}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
            {{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#,
            leases.display()
        );
        fs::write(dir.path().join("conf/10-lab.conflist"), conf).unwrap();
        Self {
            dir,
            bridge,
            pin,
            namespace,
        }
    }

    fn network(&self) -> Network {
        let config = NetworkConfig {
            conf_dir: self.dir.path().join("conf"),
            plugin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            ..NetworkConfig::default()
        };
        Network::start(config, &self.dir.path().join("results")).unwrap()
    }

    /// Addresses leased right now.
    fn leases(&self) -> Vec<String> {
        let networks = fs::read_dir(self.dir.path().join("leases"))
            .into_iter()
            .flatten()
            .flatten();
        networks
            .flat_map(|network| fs::read_dir(network.path()).unwrap().flatten())
            .filter_map(|lease| lease.file_name().into_string().ok())
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect()
    }

    /// Host ends of pods' interfaces on the bridge.
    fn ports(&self) -> usize {
        fs::read_dir(format!("/sys/class/net/{}/brif", self.bridge)).map_or(0, Iterator::count)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        netns::unpin(&self.pin).ok();
        Command::new("ip")
            .args(["link", "del", &self.bridge])
            .output()
            .ok();
    }
}

/// Answers one connection inside the namespace, on a thread of its own.
fn serve_in(namespace: &OwnedFd, ip: IpAddr) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let namespace = namespace.try_clone().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind((ip, 0)).unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        if let Ok((mut peer, _)) = listener.accept() {
            peer.write_all(b"hello from the pod").ok();
        }
    });
    (told.recv_timeout(PATIENCE).unwrap(), thread)
}

fn read_from(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_an_address_and_gives_everything_back() {
    let lab = Lab::new(true);
    let network = lab.network();
    network.ready().unwrap();
    let request = request(&PathBuf::from(netns::DIR).join(&lab.pin));
    let attachment = network.attach(&request).await.unwrap();
    let ip = attachment.ips[0];
    assert_eq!(lab.leases(), [ip.to_string()]);
    assert_eq!(lab.ports(), 1);
    let (address, served) = serve_in(&lab.namespace, ip);
    assert_eq!(read_from(address).unwrap(), "hello from the pod");
    served.join().unwrap();
    network.check(&request.sandbox).await.unwrap();
    let detach = DetachRequest {
        sandbox: request.sandbox,
    };
    network.detach(&detach).await.unwrap();
    assert!(lab.leases().is_empty());
    assert_eq!(lab.ports(), 0);
    network.detach(&detach).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_is_released_though_the_namespace_is_gone() {
    // Without the namespace Debian's bridge does not know which masquerading rules to remove.
    let lab = Lab::new(false);
    let network = lab.network();
    let request = request(&PathBuf::from(netns::DIR).join(&lab.pin));
    network.attach(&request).await.unwrap();
    netns::unpin(&lab.pin).unwrap();
    network
        .detach(&DetachRequest {
            sandbox: request.sandbox,
        })
        .await
        .unwrap();
    assert!(lab.leases().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_port_leads_into_the_pod_until_it_is_taken_back() {
    let lab = Lab::new(true);
    let network = lab.network();
    let mut request = request(&PathBuf::from(netns::DIR).join(&lab.pin));
    // Any port of the pod is free, and none of the pod's addresses is known yet.
    let (inside, served) = serve_in(&lab.namespace, "0.0.0.0".parse().unwrap());
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    request.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp,
        container_port: inside.port(),
        host_port: free.port(),
        host_ip: None,
    }];
    let attachment = network.attach(&request).await.unwrap();
    let answer = read_from(free);
    if answer.is_err() {
        // Lets the listener end before the failure is told.
        drop(read_from(SocketAddr::new(attachment.ips[0], inside.port())));
    }
    served.join().unwrap();
    let detached = network
        .detach(&DetachRequest {
            sandbox: request.sandbox,
        })
        .await;
    assert_eq!(answer.unwrap(), "hello from the pod");
    detached.map_err(|error| Chain(&error).to_string()).unwrap();
    assert!(read_from(free).is_err(), "the rule is gone");
    let rules = Command::new("iptables-save").output().unwrap();
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(
        !rules.contains(&format!("--dport {}", free.port())),
        "no rule is left"
    );
}
