//! Names of addresses, as a command's flags want them.

use crate::{
    cli::NamesFrom,
    core::{flow::Node, names::Names},
    kernel::names::{self, NamesError, Which},
};

/// Asks the runtimes; says in a line each which of them couldn't be asked.
pub(super) async fn read(from: NamesFrom, node: &Node) -> Names {
    let (names, errors) = ask(from, node).await;
    for error in errors {
        eprintln!("{error}");
    }
    names
}

/// The same, silently.
pub(super) async fn ask(from: NamesFrom, node: &Node) -> (Names, Vec<NamesError>) {
    let which = match from {
        NamesFrom::Auto => Which::All,
        NamesFrom::Cri => Which::Cri,
        NamesFrom::Docker => Which::Docker,
        NamesFrom::Off => return (Names::default(), Vec::new()),
    };
    let (names, errors) = names::read(which).await;
    (names.without(&node.addresses), errors)
}
