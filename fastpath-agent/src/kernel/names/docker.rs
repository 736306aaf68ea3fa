//! Docker's HTTP API (`GET /containers/json`), which Podman has too.

use std::{collections::BTreeMap, net::IpAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::AskError;
use crate::core::names::Names;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    names: Vec<String>,
    network_settings: Option<Settings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    networks: Option<BTreeMap<String, Network>>,
}

#[derive(Deserialize)]
struct Network {
    #[serde(rename = "IPAddress", default)]
    v4: String,
    #[serde(rename = "GlobalIPv6Address", default)]
    v6: String,
}

/// Adds the running containers.
pub(super) async fn read(stream: UnixStream, names: &mut Names) -> Result<(), AskError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/containers/json").header(HOST, "localhost").body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.map_err(|error| AskError::Answer(error.to_string()))?).await?;
    let status = answer.status();
    if !status.is_success() {
        return Err(AskError::Status(status.to_string()));
    }
    let body = answer.into_body().collect().await?.to_bytes();
    connection.abort();
    add(&body, names)
}

fn add(body: &[u8], names: &mut Names) -> Result<(), AskError> {
    let containers: Vec<Container> =
        serde_json::from_slice(body).map_err(|error| AskError::Answer(error.to_string()))?;
    for Container { names: own, network_settings } in containers {
        let Some(name) = own.first().map(|name| name.trim_start_matches('/')) else { continue };
        for network in network_settings.and_then(|settings| settings.networks).unwrap_or_default().values() {
            for address in
                [&network.v4, &network.v6].into_iter().filter_map(|text| text.parse::<IpAddr>().ok())
            {
                names.add(address, name);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_docker_is_read() {
        // Docker 20.10 and Podman 4.3, shortened.
        let body = r#"[
            {"Id":"1","Names":["/web"],"State":"running","NetworkSettings":{"Networks":
                {"bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":"fd00::2","Gateway":"172.17.0.1"}}}},
            {"Id":"2","Names":["/host"],"NetworkSettings":{"Networks":{"host":{"IPAddress":"","GlobalIPv6Address":""}}}},
            {"Id":"3","Names":[],"NetworkSettings":null},
            {"Id":"4","Names":["/new"],"NetworkSettings":{"Networks":null},"Other":1}
        ]"#;
        let mut names = Names::default();
        add(body.as_bytes(), &mut names).unwrap();
        let of = |text: &str| names.of(text.parse().unwrap()).map(str::to_owned);
        assert_eq!((of("172.17.0.2").as_deref(), of("fd00::2").as_deref()), (Some("web"), Some("web")));
        assert_eq!(of("172.17.0.1"), None);
        assert!(add(b"{\"message\":\"no\"}", &mut names).is_err());
    }
}
