//! Protobuf bytes to messages to validated specs: refused by field or accepted, never a panic.
#![no_main]

use crisp::cri::convert::{self, Field, HostSupport};
use crisp::cri::proto;
use libfuzzer_sys::fuzz_target;
use prost::Message;

const HOST: HostSupport = HostSupport { apparmor: true };

fuzz_target!(|bytes: &[u8]| {
    let [which, bytes @ ..] = bytes else { return };
    match which % 11 {
        0 => {
            if let Ok(request) = proto::RunPodSandboxRequest::decode(bytes) {
                let _ = convert::sandbox(&request, HOST);
            }
        }
        1 => {
            if let Ok(request) = proto::CreateContainerRequest::decode(bytes) {
                let container = convert::container(&request, HOST);
                let of = proto::RunPodSandboxRequest {
                    config: request.sandbox_config.clone(),
                    runtime_handler: String::new(),
                };
                if let (Ok(container), Ok(sandbox)) = (container, convert::sandbox(&of, HOST)) {
                    let _ = convert::fits_sandbox(&container, &sandbox);
                }
            }
        }
        2 => {
            if let Ok(request) = proto::ExecSyncRequest::decode(bytes) {
                let _ = convert::exec::exec_sync(&request);
            }
        }
        3 => {
            if let Ok(request) = proto::ExecRequest::decode(bytes) {
                let _ = convert::stream::exec(&request);
            }
        }
        4 => {
            if let Ok(request) = proto::UpdateContainerResourcesRequest::decode(bytes) {
                let _ = convert::update(&request);
            }
        }
        5 => {
            if let Ok(request) = proto::StopContainerRequest::decode(bytes) {
                let _ = convert::exec::stop_timeout(&request);
            }
        }
        6 => {
            if let Ok(request) = proto::AttachRequest::decode(bytes) {
                let _ = convert::stream::attach(&request);
            }
        }
        7 => {
            if let Ok(request) = proto::PortForwardRequest::decode(bytes) {
                let _ = convert::stream::port_forward(&request);
            }
        }
        8 => {
            if let Ok(request) = proto::UpdatePodSandboxResourcesRequest::decode(bytes) {
                let _ = convert::update_pod(&request);
            }
        }
        9 => {
            if let Ok(asked) = proto::LinuxContainerResources::decode(bytes) {
                let _ = convert::resources(&Field::root("resources"), &asked);
            }
        }
        _ => {
            if let Ok(filter) = proto::ContainerFilter::decode(bytes) {
                let _ = convert::filter::ContainerFilter::from_proto(Some(&filter));
            }
            if let Ok(filter) = proto::PodSandboxFilter::decode(bytes) {
                let _ = convert::filter::SandboxFilter::from_proto(Some(&filter));
            }
        }
    }
});
