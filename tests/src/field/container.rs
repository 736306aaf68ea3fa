//! Containers for any engine: an image of a program that waits. Traffic comes from this process's sockets in their namespaces.

use crate::service::sh;

/// The root file system of the image, as a tar archive: `sleep` and its libraries.
pub(super) fn archive() -> &'static str {
    const ARCHIVE: &str = "/run/container.tar";
    sh(&format!(
        "[ -e {ARCHIVE} ] || tar --create --dereference --directory=/ --file={ARCHIVE} \
         $(echo usr/bin/sleep; ldd /usr/bin/sleep | grep -o '/lib[^ ]*' | cut -c2-)"
    ));
    ARCHIVE
}

/// Gives containerd the image as `localhost/tiny:latest`, in the form of an OCI layout.
pub(super) fn import_for_containerd() {
    let layer = archive();
    sh(&format!(
        "ctr images list --quiet | grep -q tiny && exit
         d=/run/container-layout; rm -rf $d; mkdir -p $d/blobs/sha256
         put() {{ h=$(sha256sum <$1 | cut -d' ' -f1); mv $1 $d/blobs/sha256/$h; s=$(stat -c %s $d/blobs/sha256/$h); }}
         cp {layer} $d/layer; put $d/layer; l=$h; ls=$s
         echo '{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Env\":[\"PATH=/usr/bin\"],\"Cmd\":[\"/usr/bin/sleep\",\"infinity\"]}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:'$l'\"]}}}}' >$d/c
         put $d/c; c=$h; cs=$s
         echo '{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:'$c'\",\"size\":'$cs'}},\"layers\":[{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:'$l'\",\"size\":'$ls'}}]}}' >$d/m
         put $d/m
         echo '{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:'$h'\",\"size\":'$s',\"annotations\":{{\"io.containerd.image.name\":\"localhost/tiny:latest\",\"org.opencontainers.image.ref.name\":\"latest\"}}}}]}}' >$d/index.json
         echo '{{\"imageLayoutVersion\":\"1.0.0\"}}' >$d/oci-layout
         tar --create --file=/run/container-oci.tar --directory=$d blobs index.json oci-layout
         ctr images import /run/container-oci.tar"
    ));
}
