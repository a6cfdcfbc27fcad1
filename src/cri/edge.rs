//! What every request passes: a span with its method, and the one log line of its failure.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use tower::{Layer, Service};
use tracing::Instrument;

/// The layer around both services.
#[derive(Clone, Copy)]
pub struct EdgeLayer;

/// A service inside the layer.
#[derive(Clone)]
pub struct Edge<S>(S);

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;
    fn layer(&self, inner: S) -> Edge<S> {
        Edge(inner)
    }
}

impl<S, B, R> Service<http::Request<B>> for Edge<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: std::fmt::Display,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let span = tracing::info_span!("rpc", method);
        let begun = Instant::now();
        let answer = self.0.call(request);
        let watched = async move {
            let answer = answer.await;
            let took = begun.elapsed();
            match &answer {
                Ok(response) => match failure(response.headers()) {
                    Some((code, message)) => {
                        tracing::warn!(method, code, message, ?took, "request failed");
                    }
                    None => tracing::debug!(method, ?took, "request"),
                },
                Err(error) => tracing::warn!(method, %error, "request failed"),
            }
            answer
        };
        Box::pin(watched.instrument(span))
    }
}

/// Code and message of a failed unary request, which tonic puts into the first headers.
fn failure(headers: &http::HeaderMap) -> Option<(String, String)> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let code = text("grpc-status");
    (!code.is_empty() && code != "0").then(|| (code, text("grpc-message").replace("%20", " ")))
}
