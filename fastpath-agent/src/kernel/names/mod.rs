//! Asks the container runtimes of this node who has which address, over their sockets. Only reads, and not for long.

mod cri;
mod docker;

use std::{fs, io, path::Path, time::Duration};

use tokio::{net::UnixStream, time::timeout};

use crate::core::names::Names;

/// Which runtimes are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that are there.
    All,
    /// Those of Kubernetes nodes.
    Cri,
    /// Docker, and Podman, which speaks the same.
    Docker,
}

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

/// The names that the runtimes know, and which of them couldn't be asked. A socket that isn't there is no error unless `which` says
/// that it should be.
pub async fn read(which: Which) -> (Names, Vec<NamesError>) {
    let (mut names, mut errors) = (Names::default(), Vec::new());
    let wanted = |kind| which == Which::All || which == kind;
    let cri = CRI.iter().filter(|_| wanted(Which::Cri)).map(|path| (*path, Which::Cri));
    let docker = DOCKER.iter().filter(|_| wanted(Which::Docker)).map(|path| (*path, Which::Docker));
    let mut asked = 0;
    for (path, kind) in cri.chain(docker) {
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            continue;
        }
        asked += 1;
        match timeout(LIMIT, ask(Path::new(path), kind, &mut names)).await {
            Ok(Ok(())) => {}
            // containerd that serves Docker only.
            Ok(Err(AskError::Unimplemented)) if which == Which::All => {}
            Ok(Err(error)) => errors.push(NamesError { path, why: error.to_string() }),
            Err(_) => {
                errors.push(NamesError { path, why: format!("no answer within {} s", LIMIT.as_secs()) })
            }
        }
    }
    if asked == 0 && which != Which::All {
        let path = if which == Which::Cri { CRI[0] } else { DOCKER[0] };
        errors.push(NamesError { path, why: "there is no such socket".to_owned() });
    }
    (names, errors)
}

async fn ask(path: &Path, kind: Which, names: &mut Names) -> Result<(), AskError> {
    let stream = UnixStream::connect(path).await?;
    match kind {
        Which::Docker => docker::read(stream, names).await,
        Which::All | Which::Cri => cri::read(stream, names).await,
    }
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
