//! A CRI client over a Unix socket, generated from the same protocol file as the daemon.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

/// The protocol.
#[allow(
    missing_docs,
    clippy::all,
    unused_qualifications,
    reason = "generated from proto/cri/v1/cri.proto"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

use v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};

/// Both services of one runtime. Cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Cri {
    /// RuntimeService.
    pub runtime: RuntimeServiceClient<Channel>,
    /// ImageService.
    pub image: ImageServiceClient<Channel>,
}

impl Cri {
    async fn channel(socket: &Path) -> io::Result<Channel> {
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        Endpoint::from_static("http://localhost")
            .connect_timeout(Duration::from_secs(5))
            .connect_with_connector(connector)
            .await
            .map_err(|error| io::Error::other(format!("connect to {}: {error}", socket.display())))
    }

    /// Connects to a socket.
    ///
    /// # Errors
    /// When nothing listens there.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let channel = Self::channel(socket).await?;
        const LIMIT: usize = 16 << 20;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LIMIT),
            image: ImageServiceClient::new(channel).max_decoding_message_size(LIMIT),
        })
    }

    /// Connects, and again until Version answers or `limit` is over.
    ///
    /// # Errors
    /// The last one seen.
    pub async fn connect_until_served(socket: &Path, limit: Duration) -> io::Result<Self> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let error = match Self::connect(socket).await {
                Ok(mut client) => match client.runtime.version(v1::VersionRequest::default()).await
                {
                    Ok(_) => return Ok(client),
                    Err(status) => io::Error::other(status.to_string()),
                },
                Err(error) => error,
            };
            if tokio::time::Instant::now() > deadline {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A codec that sends bytes as they are and takes no interest in the answer.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(
        &mut self,
        item: Vec<u8>,
        buffer: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), tonic::Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = tonic::Status;

    fn decode(
        &mut self,
        buffer: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<()>, tonic::Status> {
        let rest = bytes::Buf::remaining(buffer);
        bytes::Buf::advance(buffer, rest);
        Ok(Some(()))
    }
}

/// Calls a unary method with a body that no protobuf encoder made.
///
/// # Errors
/// The daemon's, which is what the caller wants to see.
pub async fn raw(socket: &Path, method: &'static str, body: Vec<u8>) -> Result<(), tonic::Status> {
    let channel = Cri::channel(socket)
        .await
        .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
    client
        .unary(tonic::Request::new(body), path, Raw)
        .await
        .map(|_| ())
}
