//! ImageService: every method parses, calls the domain and renders, nothing else.

use std::{collections::HashMap, sync::Arc};

use tonic::{Request, Response, Status};

use super::{
    convert::stats::filesystem,
    proto::{self, image_service_server::ImageService},
    status::status,
    stream::{self, Items},
};
use crate::{
    clock,
    image::{Credentials, Image, Images, PullRequest},
    node::Node,
    stats::{self, layer::LayerUsage},
};

/// The image half of the CRI.
pub struct ImageEdge {
    images: Images,
    node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;

impl ImageEdge {
    /// Serves the images of `node`.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self {
            images: node.images.clone(),
            node,
        }
    }

    fn items(&self, filter: Option<proto::ImageFilter>) -> Vec<proto::Image> {
        let wanted = filter.and_then(|filter| filter.image);
        let wanted = wanted
            .map(|spec| spec.image)
            .filter(|image| !image.is_empty());
        let images = match wanted {
            Some(wanted) => self.images.status(&wanted).into_iter().collect(),
            None => self.images.list(),
        };
        images.iter().map(|image| render(image)).collect()
    }
}

fn reference(spec: Option<proto::ImageSpec>) -> Result<String, Status> {
    let image = spec.map(|spec| spec.image).unwrap_or_default();
    if image.is_empty() {
        return Err(Status::invalid_argument("image.image: must not be empty"));
    }
    Ok(image)
}

fn render(image: &Image) -> proto::Image {
    let (uid, username) = user(&image.config.user);
    proto::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(proto::ImageSpec {
            image: image.id.to_string(),
            ..Default::default()
        }),
        pinned: image.pinned,
    }
}

/// The user part of an image's `user[:group]`: a number is a uid, anything else a name.
fn user(text: &str) -> (Option<proto::Int64Value>, String) {
    let user = text.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) => (
            Some(proto::Int64Value {
                value: i64::from(uid),
            }),
            String::new(),
        ),
        Err(_) => (None, user.to_owned()),
    }
}

fn credentials(auth: proto::AuthConfig) -> Credentials {
    Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

#[tonic::async_trait]
impl ImageService for ImageEdge {
    async fn list_images(
        &self,
        request: Request<proto::ListImagesRequest>,
    ) -> Answer<proto::ListImagesResponse> {
        let images = self.items(request.into_inner().filter);
        Ok(Response::new(proto::ListImagesResponse { images }))
    }

    type StreamImagesStream = Items<proto::StreamImagesResponse>;
    async fn stream_images(
        &self,
        request: Request<proto::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.items(request.into_inner().filter);
        Ok(Response::new(stream::batches(images, |images| {
            proto::StreamImagesResponse { images }
        })))
    }

    async fn image_status(
        &self,
        request: Request<proto::ImageStatusRequest>,
    ) -> Answer<proto::ImageStatusResponse> {
        let request = request.into_inner();
        let verbose = request.verbose;
        let found = self.images.status(&reference(request.image)?);
        let info = match &found {
            Some(image) if verbose => HashMap::from([(
                "info".to_owned(),
                self.images.verbose(image).unwrap_or_default().to_string(),
            )]),
            _ => HashMap::new(),
        };
        let image = found.map(|image| render(&image));
        Ok(Response::new(proto::ImageStatusResponse { image, info }))
    }

    async fn pull_image(
        &self,
        request: Request<proto::PullImageRequest>,
    ) -> Answer<proto::PullImageResponse> {
        let request = request.into_inner();
        let pull = PullRequest {
            reference: reference(request.image)?,
            credentials: request.auth.map(credentials),
            ..PullRequest::default()
        };
        let image = self
            .images
            .pull(pull)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(proto::PullImageResponse {
            image_ref: image.id.to_string(),
        }))
    }

    async fn remove_image(
        &self,
        request: Request<proto::RemoveImageRequest>,
    ) -> Answer<proto::RemoveImageResponse> {
        let reference = reference(request.into_inner().image)?;
        self.images
            .remove(&reference)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(proto::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<proto::ImageFsInfoRequest>,
    ) -> Answer<proto::ImageFsInfoResponse> {
        let images = self.images.fs_usage();
        let images = LayerUsage {
            at: clock::now_ns(),
            bytes: images.bytes,
            inodes: images.inodes,
        };
        let layers = stats::container::layers(&self.node)
            .await
            .map_err(|error| status(&error))?;
        // One file system, named by one path: with two kubelet would take it for two.
        let path = self.node.paths.root();
        Ok(Response::new(proto::ImageFsInfoResponse {
            image_filesystems: vec![filesystem(images, path)],
            container_filesystems: vec![filesystem(layers, path)],
        }))
    }
}
