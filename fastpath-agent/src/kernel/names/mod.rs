//! Asks the container runtimes of this node who has which address, over their sockets. Only reads, and not for long.

mod cri;
mod docker;

use std::{fs, io, path::Path, time::Duration};

use tokio::{net::UnixStream, time::timeout};

use crate::core::names::{Names, NamesFrom};

/// Sockets of containerd (also as k3s has it) and CRI-O.
const CRI: [&str; 3] =
    ["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/crio/crio.sock"];
/// Sockets of Docker and Podman.
const DOCKER: [&str; 2] = ["/run/docker.sock", "/run/podman/podman.sock"];
/// The time that a runtime has to answer: a table of flows mustn't wait for one that hangs.
const LIMIT: Duration = Duration::from_secs(2);

/// A runtime can't be asked.
#[derive(Debug, thiserror::Error)]
#[error("no names from {path}: {why}; `--names=off` doesn't ask")]
pub struct NamesError {
    path: &'static str,
    why: String,
}

/// The names that the runtimes know, and which of them couldn't be asked. A socket that isn't there is no error unless `from` says
/// that it should be.
pub async fn read(from: NamesFrom) -> (Names, Vec<NamesError>) {
    let (mut names, mut errors) = (Names::default(), Vec::new());
    let wanted = |kind| from == NamesFrom::Auto || from == kind;
    let cri = CRI.iter().filter(|_| wanted(NamesFrom::Cri)).map(|path| (*path, false));
    let docker = DOCKER.iter().filter(|_| wanted(NamesFrom::Docker)).map(|path| (*path, true));
    let mut asked = 0;
    for (path, is_docker) in cri.chain(docker) {
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            continue;
        }
        asked += 1;
        match timeout(LIMIT, ask(Path::new(path), is_docker, &mut names)).await {
            Ok(Ok(())) => {}
            // containerd that serves Docker only.
            Ok(Err(AskError::Unimplemented)) if from == NamesFrom::Auto => {}
            Ok(Err(error)) => errors.push(NamesError { path, why: error.to_string() }),
            Err(_) => {
                errors.push(NamesError { path, why: format!("no answer within {} s", LIMIT.as_secs()) })
            }
        }
    }
    if asked == 0 && matches!(from, NamesFrom::Cri | NamesFrom::Docker) {
        let path = if from == NamesFrom::Cri { CRI[0] } else { DOCKER[0] };
        errors.push(NamesError { path, why: "there is no such socket".to_owned() });
    }
    (names, errors)
}

async fn ask(path: &Path, is_docker: bool, names: &mut Names) -> Result<(), AskError> {
    let stream = UnixStream::connect(path).await?;
    if is_docker { docker::read(stream, names).await } else { cri::read(stream, names).await }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("it answers with {0}")]
    Status(String),
    #[error("it doesn't speak the Container Runtime Interface")]
    Unimplemented,
    #[error("its answer can't be read: {0}")]
    Answer(String),
}
