//! The Container Runtime Interface (k8s.io/cri-api, `runtime.v1.RuntimeService`): its pods and their addresses. gRPC is a length
//! and a message of Protocol Buffers over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md).

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request,
    client::conn::http2::{self, SendRequest},
    header::{CONTENT_TYPE, HeaderMap, TE},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

use super::AskError;
use crate::core::names::Names;

/// Of the messages only the fields that are used; others are passed over.
#[derive(Message)]
struct ListRequest {}

#[derive(Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    /// 0: ready.
    #[prost(int32, tag = "3")]
    state: i32,
}

#[derive(Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Message)]
struct StatusRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

#[derive(Message)]
struct Status {
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
}

#[derive(Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    more: Vec<PodIp>,
}

#[derive(Message)]
struct PodIp {
    #[prost(string, tag = "1")]
    ip: String,
}

/// Before each message: not compressed, and its length.
const PREFIX: usize = 5;
/// gRPC's status for a service that isn't there.
const UNIMPLEMENTED: &str = "12";

/// Adds the pods that are ready.
pub(super) async fn read(stream: UnixStream, names: &mut Names) -> Result<(), AskError> {
    let (mut runtime, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let pods: ListResponse = call(&mut runtime, "ListPodSandbox", &ListRequest {}).await?;
    for Sandbox { id, metadata, .. } in pods.items.into_iter().filter(|pod| pod.state == 0) {
        let Some(metadata) = metadata else { continue };
        let status: StatusResponse = match call(&mut runtime, "PodSandboxStatus", &StatusRequest { id }).await
        {
            Ok(status) => status,
            // It has gone meanwhile.
            Err(AskError::Status(_)) => continue,
            Err(error) => return Err(error),
        };
        let Some(network) = status.status.and_then(|status| status.network) else { continue };
        let name = format!("{}/{}", metadata.namespace, metadata.name);
        for text in std::iter::once(&network.ip).chain(network.more.iter().map(|more| &more.ip)) {
            if let Ok(address) = text.parse() {
                names.add(address, &name);
            }
        }
    }
    connection.abort();
    Ok(())
}

async fn call<T: Message + Default>(
    runtime: &mut SendRequest<Full<Bytes>>,
    method: &str,
    request: &impl Message,
) -> Result<T, AskError> {
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(request.encoded_len()).unwrap_or_default());
    body.put_slice(&request.encode_to_vec());
    let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::new(body.freeze()))
        .map_err(|error| AskError::Answer(error.to_string()))?;
    let answer = runtime.send_request(request).await?;
    if !answer.status().is_success() {
        return Err(AskError::Status(answer.status().to_string()));
    }
    // An answer without a body has its status in its head.
    let head = answer.headers().clone();
    let body = answer.into_body().collect().await?;
    check(body.trailers().unwrap_or(&head))?;
    let body = body.to_bytes();
    let message = body.get(PREFIX..).ok_or_else(|| AskError::Answer("it is too short".to_owned()))?;
    T::decode(message).map_err(|error| AskError::Answer(error.to_string()))
}

/// Looks whether the call has succeeded.
fn check(headers: &HeaderMap) -> Result<(), AskError> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match header("grpc-status") {
        "0" => Ok(()),
        UNIMPLEMENTED => Err(AskError::Unimplemented),
        status => Err(AskError::Status(format!("gRPC status {status}: {}", header("grpc-message")))),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{StreamBody, combinators::BoxBody};
    use hyper::{Response, body::Frame, server::conn::http2 as server, service::service_fn};

    use super::*;

    /// Answers as containerd does, two pods: one with two addresses, one that has gone meanwhile.
    async fn runtime(
        request: Request<hyper::body::Incoming>,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let pod = |id: &str, name: &str, state| Sandbox {
            id: id.to_owned(),
            metadata: Some(Metadata { name: name.to_owned(), namespace: "shop".to_owned() }),
            state,
        };
        let (message, status) = match method.as_str() {
            "ListPodSandbox" => {
                let items = vec![pod("1", "web-0", 0), pod("2", "gone", 0), pod("3", "old", 1)];
                (ListResponse { items }.encode_to_vec(), "0")
            }
            _ if StatusRequest::decode(&body[PREFIX..]).expect("a request").id == "1" => {
                let more = vec![PodIp { ip: "fd00::2".to_owned() }];
                let network = Some(Network { ip: "10.1.0.2".to_owned(), more });
                (StatusResponse { status: Some(Status { network }) }.encode_to_vec(), "0")
            }
            _ => (Vec::new(), "5"),
        };
        let mut data = vec![0];
        data.extend((message.len() as u32).to_be_bytes());
        data.extend(message);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().expect("a value"));
        let frames = [Ok(Frame::data(Bytes::from(data))), Ok(Frame::trailers(trailers))];
        Ok(Response::new(BoxBody::new(StreamBody::new(futures_util::stream::iter(frames)))))
    }

    #[tokio::test]
    async fn pods_that_are_ready_have_their_addresses() {
        let (client, end) = UnixStream::pair().expect("sockets");
        let serve = server::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(end), service_fn(runtime));
        tokio::spawn(serve);
        let mut names = Names::default();
        read(client, &mut names).await.expect("names");
        let of = |text: &str| names.of(text.parse().expect("an address")).map(str::to_owned);
        assert_eq!(
            (of("10.1.0.2").as_deref(), of("fd00::2").as_deref()),
            (Some("shop/web-0"), Some("shop/web-0"))
        );
        assert_eq!(names.addresses("gone"), [] as [std::net::IpAddr; 0]);
    }

    #[test]
    fn a_runtime_without_the_service_is_told_from_one_that_fails() {
        let head = |status: &str| {
            let mut head = HeaderMap::new();
            head.insert("grpc-status", status.parse().expect("a value"));
            head
        };
        assert!(check(&head("0")).is_ok());
        assert!(matches!(check(&head(UNIMPLEMENTED)), Err(AskError::Unimplemented)));
        assert!(matches!(check(&head("7")), Err(AskError::Status(_))));
        assert!(check(&HeaderMap::new()).is_err());
    }
}
