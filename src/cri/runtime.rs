//! RuntimeService: every method parses, calls the domain and renders, nothing else.

use std::{collections::HashMap, sync::Arc};

use tonic::{Request, Response, Status};

use super::{
    convert::{
        self, HostSupport, exec as convert_exec,
        filter::{ContainerFilter, SandboxFilter},
        render, stream as convert_stream,
    },
    info,
    proto::{self, runtime_service_server::RuntimeService},
    status::status,
    stream::{self, Items},
    usage, views,
};
use crate::{
    container::{self, Container, create::CreateError},
    node::Node,
    registry::LookupError,
    sandbox::{self, Sandbox},
    stream::{Endpoint, Grant},
};

/// The runtime half of the CRI.
pub struct Runtime {
    node: Arc<Node>,
    streams: Arc<Endpoint>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Runtime {
    /// Serves the sandboxes and containers of `node`; clients of streams are sent to `streams`.
    #[must_use]
    pub fn new(node: Arc<Node>, streams: Arc<Endpoint>) -> Self {
        Self { node, streams }
    }

    fn grant(&self, grant: Grant) -> Result<String, Status> {
        self.streams.grant(grant).map_err(|error| status(&error))
    }

    fn host(&self) -> HostSupport {
        HostSupport {
            apparmor: self.node.host.apparmor,
        }
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Status> {
        self.node.sandboxes.find(id).map_err(|error| status(&error))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Status> {
        self.node
            .containers
            .find(id)
            .map_err(|error| status(&error))
    }
}

impl Runtime {
    fn sandbox_items(
        &self,
        filter: Option<&proto::PodSandboxFilter>,
    ) -> Result<Vec<proto::PodSandbox>, Status> {
        let filter = SandboxFilter::from_proto(filter).map_err(|e| status(&e))?;
        let all = self.node.sandboxes.all().into_iter();
        let views = all.map(|sandbox| views::sandbox(&sandbox));
        Ok(views
            .filter(|view| filter.matches(view))
            .map(|view| render::sandbox_item(&view))
            .collect())
    }

    fn container_items(
        &self,
        filter: Option<&proto::ContainerFilter>,
    ) -> Result<Vec<proto::Container>, Status> {
        let filter = ContainerFilter::from_proto(filter).map_err(|e| status(&e))?;
        let all = self.node.containers.all().into_iter();
        let views = all.map(|container| views::container(&container));
        Ok(views
            .filter(|view| filter.matches(view))
            .map(|view| render::container_item(&view))
            .collect())
    }
}

/// Stop and remove of what is not there succeed: kubelet repeats them until they do.
fn or_gone<T>(found: Result<T, LookupError>) -> Result<Option<T>, Status> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(LookupError::Unknown { .. }) => Ok(None),
        Err(error @ LookupError::Ambiguous { .. }) => Err(status(&error)),
    }
}

/// The answer of every method that this version does not serve.
fn not_served<T>(method: &str) -> Answer<T> {
    Err(Status::unimplemented(format!(
        "{method} is not served by this version of crisp"
    )))
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<proto::VersionRequest>) -> Answer<proto::VersionResponse> {
        Ok(Response::new(proto::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "crisp".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<proto::RunPodSandboxRequest>,
    ) -> Answer<proto::RunPodSandboxResponse> {
        let spec = convert::sandbox(request.get_ref(), self.host()).map_err(|e| status(&e))?;
        let id = sandbox::run::run(&self.node, spec)
            .await
            .map_err(|e| status(&*e))?;
        Ok(Response::new(proto::RunPodSandboxResponse {
            pod_sandbox_id: id.to_string(),
        }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<proto::StopPodSandboxRequest>,
    ) -> Answer<proto::StopPodSandboxResponse> {
        let found = self.node.sandboxes.find(&request.get_ref().pod_sandbox_id);
        if let Some(sandbox) = or_gone(found)? {
            sandbox.stop().await.map_err(|e| status(&*e))?;
        }
        Ok(Response::new(proto::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<proto::RemovePodSandboxRequest>,
    ) -> Answer<proto::RemovePodSandboxResponse> {
        let found = self.node.sandboxes.find(&request.get_ref().pod_sandbox_id);
        if let Some(sandbox) = or_gone(found)? {
            sandbox.remove().await.map_err(|e| status(&*e))?;
        }
        Ok(Response::new(proto::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<proto::PodSandboxStatusRequest>,
    ) -> Answer<proto::PodSandboxStatusResponse> {
        let request = request.get_ref();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let containers = self.node.containers_of(&sandbox.id);
        let info = if request.verbose {
            info::sandbox(&self.node, &sandbox)
        } else {
            HashMap::new()
        };
        Ok(Response::new(proto::PodSandboxStatusResponse {
            status: Some(render::sandbox_status(&views::sandbox(&sandbox))),
            info,
            containers_statuses: containers
                .iter()
                .map(|container| render::container_status(&views::container(container)))
                .collect(),
            timestamp: crate::clock::now_ns(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<proto::ListPodSandboxRequest>,
    ) -> Answer<proto::ListPodSandboxResponse> {
        let items = self.sandbox_items(request.get_ref().filter.as_ref())?;
        Ok(Response::new(proto::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<proto::CreateContainerRequest>,
    ) -> Answer<proto::CreateContainerResponse> {
        let request = request.get_ref();
        let spec = convert::container(request, self.host()).map_err(|e| status(&e))?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        convert::fits_sandbox(&spec, &sandbox.spec).map_err(|e| status(&e))?;
        let id = container::create::create(&self.node, &sandbox, spec)
            .await
            .map_err(|e: Arc<CreateError>| status(&*e))?;
        Ok(Response::new(proto::CreateContainerResponse {
            container_id: id.to_string(),
        }))
    }

    async fn start_container(
        &self,
        request: Request<proto::StartContainerRequest>,
    ) -> Answer<proto::StartContainerResponse> {
        let container = self.container(&request.get_ref().container_id)?;
        container.start().await.map_err(|e| status(&*e))?;
        Ok(Response::new(proto::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<proto::StopContainerRequest>,
    ) -> Answer<proto::StopContainerResponse> {
        let grace = convert_exec::stop_timeout(request.get_ref()).map_err(|e| status(&e))?;
        let found = self.node.containers.find(&request.get_ref().container_id);
        if let Some(container) = or_gone(found)? {
            container.stop(grace).await.map_err(|e| status(&*e))?;
        }
        Ok(Response::new(proto::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<proto::RemoveContainerRequest>,
    ) -> Answer<proto::RemoveContainerResponse> {
        let found = self.node.containers.find(&request.get_ref().container_id);
        if let Some(container) = or_gone(found)? {
            container.remove().await.map_err(|e| status(&*e))?;
        }
        Ok(Response::new(proto::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<proto::ListContainersRequest>,
    ) -> Answer<proto::ListContainersResponse> {
        let containers = self.container_items(request.get_ref().filter.as_ref())?;
        Ok(Response::new(proto::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<proto::ContainerStatusRequest>,
    ) -> Answer<proto::ContainerStatusResponse> {
        let request = request.get_ref();
        let container = self.container(&request.container_id)?;
        let info = if request.verbose {
            info::container(&self.node, &container)
        } else {
            HashMap::new()
        };
        Ok(Response::new(proto::ContainerStatusResponse {
            status: Some(render::container_status(&views::container(&container))),
            info,
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<proto::UpdateContainerResourcesRequest>,
    ) -> Answer<proto::UpdateContainerResourcesResponse> {
        let limits = convert::update(request.get_ref()).map_err(|e| status(&e))?;
        let container = self.container(&request.get_ref().container_id)?;
        container.update(limits).await.map_err(|e| status(&*e))?;
        Ok(Response::new(proto::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<proto::ReopenContainerLogRequest>,
    ) -> Answer<proto::ReopenContainerLogResponse> {
        let container = self.container(&request.get_ref().container_id)?;
        container.reopen_log().await.map_err(|e| status(&e))?;
        Ok(Response::new(proto::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<proto::ExecSyncRequest>,
    ) -> Answer<proto::ExecSyncResponse> {
        let request = request.get_ref();
        let spec = convert_exec::exec_sync(request).map_err(|e| status(&e))?;
        let container = self.container(&request.container_id)?;
        let captured = container
            .exec_sync(&self.node, spec.command, spec.timeout)
            .await
            .map_err(|e| status(&e))?;
        Ok(Response::new(proto::ExecSyncResponse {
            stdout: captured.stdout,
            stderr: captured.stderr,
            exit_code: captured.code,
        }))
    }

    async fn exec(&self, request: Request<proto::ExecRequest>) -> Answer<proto::ExecResponse> {
        let spec = convert_stream::exec(request.get_ref()).map_err(|e| status(&e))?;
        let container = self.container(&request.get_ref().container_id)?;
        container
            .check_running("run a command in")
            .map_err(|e| status(&e))?;
        let url = self.grant(Grant::Exec {
            container: container.id.clone(),
            command: spec.command,
            stdio: spec.stdio,
        })?;
        Ok(Response::new(proto::ExecResponse { url }))
    }

    async fn attach(
        &self,
        request: Request<proto::AttachRequest>,
    ) -> Answer<proto::AttachResponse> {
        let stdio = convert_stream::attach(request.get_ref()).map_err(|e| status(&e))?;
        let container = self.container(&request.get_ref().container_id)?;
        container
            .check_running("attach to")
            .map_err(|e| status(&e))?;
        let url = self.grant(Grant::Attach {
            container: container.id.clone(),
            stdio,
        })?;
        Ok(Response::new(proto::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<proto::PortForwardRequest>,
    ) -> Answer<proto::PortForwardResponse> {
        let ports = convert_stream::port_forward(request.get_ref()).map_err(|e| status(&e))?;
        let sandbox = self.sandbox(&request.get_ref().pod_sandbox_id)?;
        sandbox.accepts_connections().map_err(|e| status(&e))?;
        let url = self.grant(Grant::PortForward {
            sandbox: sandbox.id.clone(),
            ports,
        })?;
        Ok(Response::new(proto::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<proto::ContainerStatsRequest>,
    ) -> Answer<proto::ContainerStatsResponse> {
        let container = self.container(&request.get_ref().container_id)?;
        let stats = Some(usage::container(&self.node, container).await?);
        Ok(Response::new(proto::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<proto::ListContainerStatsRequest>,
    ) -> Answer<proto::ListContainerStatsResponse> {
        let stats = usage::containers(&self.node, request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(proto::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<proto::PodSandboxStatsRequest>,
    ) -> Answer<proto::PodSandboxStatsResponse> {
        let sandbox = self.sandbox(&request.get_ref().pod_sandbox_id)?;
        let stats = Some(usage::pod(&self.node, sandbox).await?);
        Ok(Response::new(proto::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<proto::ListPodSandboxStatsRequest>,
    ) -> Answer<proto::ListPodSandboxStatsResponse> {
        let stats = usage::pods(&self.node, request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(proto::ListPodSandboxStatsResponse { stats }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<proto::UpdateRuntimeConfigRequest>,
    ) -> Answer<proto::UpdateRuntimeConfigResponse> {
        let config = request
            .into_inner()
            .runtime_config
            .and_then(|config| config.network_config);
        if let Some(config) = config {
            let cidrs = config
                .pod_cidr
                .split(',')
                .map(str::trim)
                .filter(|cidr| !cidr.is_empty());
            self.node
                .network
                .set_pod_cidrs(cidrs.map(str::to_owned).collect());
        }
        Ok(Response::new(proto::UpdateRuntimeConfigResponse {}))
    }

    async fn status(
        &self,
        request: Request<proto::StatusRequest>,
    ) -> Answer<proto::StatusResponse> {
        let network = self.node.network.ready();
        let condition = |kind: &str, failure: Option<(&str, String)>| {
            let (reason, message) = failure
                .map(|(reason, message)| (reason.to_owned(), message))
                .unwrap_or_default();
            proto::RuntimeCondition {
                r#type: kind.to_owned(),
                status: reason.is_empty(),
                reason,
                message,
            }
        };
        let network = network.err().map(|error| {
            (
                "NetworkPluginNotReady",
                crate::error::Chain(&error).to_string(),
            )
        });
        let store = self.node.trouble().map(|reason| ("StoreStuck", reason));
        let features = proto::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: self.node.host.no_user_namespaces.is_none(),
        };
        let handlers = self.node.handlers.names().into_iter();
        Ok(Response::new(proto::StatusResponse {
            status: Some(proto::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", store),
                    condition("NetworkReady", network),
                ],
            }),
            info: if request.get_ref().verbose {
                info::node(&self.node)
            } else {
                HashMap::new()
            },
            runtime_handlers: handlers
                .map(|name| proto::RuntimeHandler {
                    name,
                    features: Some(features),
                })
                .collect(),
            features: Some(proto::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: features.user_namespaces,
                mount_options: true,
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<proto::CheckpointContainerRequest>,
    ) -> Answer<proto::CheckpointContainerResponse> {
        not_served("CheckpointContainer")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<proto::CheckpointPodRequest>,
    ) -> Answer<proto::CheckpointPodResponse> {
        not_served("CheckpointPod")
    }

    async fn restore_pod(
        &self,
        _: Request<proto::RestorePodRequest>,
    ) -> Answer<proto::RestorePodResponse> {
        not_served("RestorePod")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<proto::ListMetricDescriptorsRequest>,
    ) -> Answer<proto::ListMetricDescriptorsResponse> {
        let descriptors = usage::descriptors(&self.node);
        Ok(Response::new(proto::ListMetricDescriptorsResponse {
            descriptors,
        }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<proto::ListPodSandboxMetricsRequest>,
    ) -> Answer<proto::ListPodSandboxMetricsResponse> {
        let pod_metrics = usage::pod_metrics(&self.node).await?;
        Ok(Response::new(proto::ListPodSandboxMetricsResponse {
            pod_metrics,
        }))
    }

    async fn runtime_config(
        &self,
        _: Request<proto::RuntimeConfigRequest>,
    ) -> Answer<proto::RuntimeConfigResponse> {
        let linux = proto::LinuxRuntimeConfiguration {
            cgroup_driver: proto::CgroupDriver::Cgroupfs.into(),
        };
        Ok(Response::new(proto::RuntimeConfigResponse {
            linux: Some(linux),
        }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<proto::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<proto::UpdatePodSandboxResourcesResponse> {
        let resources = convert::update_pod(request.get_ref()).map_err(|e| status(&e))?;
        let sandbox = self.sandbox(&request.get_ref().pod_sandbox_id)?;
        sandbox.update(resources).await.map_err(|e| status(&*e))?;
        Ok(Response::new(proto::UpdatePodSandboxResourcesResponse {}))
    }

    type StreamPodSandboxesStream = Items<proto::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<proto::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.sandbox_items(request.get_ref().filter.as_ref())?;
        Ok(Response::new(stream::batches(items, |pod_sandboxes| {
            proto::StreamPodSandboxesResponse { pod_sandboxes }
        })))
    }

    type StreamContainersStream = Items<proto::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<proto::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = self.container_items(request.get_ref().filter.as_ref())?;
        Ok(Response::new(stream::batches(items, |containers| {
            proto::StreamContainersResponse { containers }
        })))
    }

    type StreamContainerStatsStream = Items<proto::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<proto::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = usage::containers(&self.node, request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(stream::batches(stats, |container_stats| {
            proto::StreamContainerStatsResponse { container_stats }
        })))
    }

    type StreamPodSandboxStatsStream = Items<proto::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<proto::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = usage::pods(&self.node, request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(stream::batches(stats, |pod_sandbox_stats| {
            proto::StreamPodSandboxStatsResponse { pod_sandbox_stats }
        })))
    }

    type StreamPodSandboxMetricsStream = Items<proto::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<proto::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = usage::pod_metrics(&self.node).await?;
        Ok(Response::new(stream::batches(
            metrics,
            |pod_sandbox_metrics| proto::StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            },
        )))
    }

    type GetContainerEventsStream = Items<proto::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<proto::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(stream::events(&self.node.events)?))
    }
}
