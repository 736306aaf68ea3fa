//! Names of addresses, as a command's flags want them.

use crate::{
    core::{
        flow::Node,
        names::{Names, NamesFrom},
    },
    kernel::names,
};

/// Asks the runtimes; says in a line each which of them couldn't be asked.
pub(super) async fn read(from: NamesFrom, node: &Node) -> Names {
    let (names, errors) = names::read(from).await;
    for error in errors {
        eprintln!("{error}");
    }
    names.without(&node.addresses)
}
