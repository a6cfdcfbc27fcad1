//! What every request passes: its deadline, a span with its method, and the one log line of its failure.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tonic::Status;
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
    R: Default,
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
        // Before tonic's own timer, which answers CANCELLED where the protocol has DEADLINE_EXCEEDED:
        // a client that hears that before its own timer rings is told the wrong thing.
        let limit = deadline(request.headers()).map(tokio::time::sleep);
        let answer = self.0.call(request);
        let watched = async move {
            let late = async {
                match limit {
                    Some(limit) => limit.await,
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                biased;
                answer = answer => answer,
                () = late => Ok(Status::deadline_exceeded("the client's deadline has passed").into_http()),
            };
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

/// How long the client waits, by its header `grpc-timeout`: at most eight digits and a unit.
fn deadline(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn deadlines_are_read_as_the_protocol_writes_them() {
        for (text, expected) in [
            ("1m", Some(Duration::from_millis(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2S", Some(Duration::from_secs(2))),
            ("3M", Some(Duration::from_secs(180))),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789S", None),
            ("S", None),
            ("-1S", None),
            ("1x", None),
            ("", None),
        ] {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(deadline(&headers), expected, "{text:?}");
        }
        assert_eq!(deadline(&http::HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_passed_deadline_is_deadline_exceeded() {
        let slow = tower::service_fn(|_: http::Request<()>| async {
            std::future::pending::<Result<http::Response<()>, Infallible>>().await
        });
        let request = http::Request::builder().header("grpc-timeout", "1m");
        let answer = EdgeLayer.layer(slow).call(request.body(()).unwrap());
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
    }
}
