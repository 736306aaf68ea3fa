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
