//! Names that operators know instead of addresses: of pods and containers on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use clap::ValueEnum;

use crate::core::{
    flow::connection::{Tuple, has_ports, protocol_name},
    printable::printable,
};

/// Whom to ask for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamesFrom {
    /// The container runtimes that are there
    Auto,
    /// containerd or CRI-O, for `namespace/pod`
    Cri,
    /// Docker or Podman, for names of containers
    Docker,
    /// Nobody
    Off,
}

/// Names by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// None where an address has several names.
    by_address: BTreeMap<IpAddr, Option<String>>,
}

impl Names {
    /// `owner` is `namespace/pod`, or a container's name. Where several share an address, it names none of them.
    pub fn add(&mut self, address: IpAddr, owner: &str) {
        let owner = printable(owner.as_bytes()).into_owned();
        self.by_address
            .entry(address)
            .and_modify(|known| *known = known.take().filter(|known| *known == owner))
            .or_insert(Some(owner));
    }

    /// The addresses of the node itself are nobody's: pods in the host's network have them.
    pub fn without(mut self, node: &BTreeSet<IpAddr>) -> Self {
        self.by_address.retain(|address, _| !node.contains(address));
        self
    }

    /// Who has this address.
    pub fn of(&self, address: IpAddr) -> Option<&str> {
        self.by_address.get(&address)?.as_deref()
    }

    /// The source of `tuple` by its name or address, with its port if its protocol has one.
    pub fn source(&self, tuple: &Tuple) -> String {
        match self.of(tuple.source) {
            Some(name) if has_ports(tuple.protocol) => format!("{name}:{}", tuple.source_port),
            Some(name) => name.to_owned(),
            None => tuple.to_string().split(' ').nth(1).unwrap_or_default().to_owned(),
        }
    }

    /// Who dialled whom, as in `tcp shop/web-0:40000 > 10.96.0.12:5432`; and who answers, if that is another.
    pub fn ends(&self, original: &Tuple, reply: Option<&Tuple>) -> (String, Option<String>) {
        let (client, dialled) = (self.source(original), self.source(&original.reversed()));
        let answers = reply.map(|reply| self.source(reply)).filter(|end| *end != dialled);
        (format!("{} {client} > {dialled}", protocol_name(original.protocol)), answers)
    }

    /// The addresses of `namespace/pod`, of all pods of that name, or of a container.
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let is_it = |owner: &str| owner == name || owner.split_once('/').is_some_and(|(_, pod)| pod == name);
        let owned = self.by_address.iter().filter(|(_, owner)| owner.as_deref().is_some_and(is_it));
        owned.map(|(address, _)| *address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_name_or_none() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut names = Names::default();
        for (address, owner) in [
            ("10.1.0.2", "shop/web-0"),
            ("fd00::2", "shop/web-0"),
            ("10.1.0.3", "test/web-0"),
            ("10.1.0.4", "proxy\u{1b}[2J"),
            ("10.1.0.5", "a/one"),
            ("10.1.0.5", "a/two"),
            ("192.0.2.1", "kube-system/dns"),
        ] {
            names.add(ip(address), owner);
        }
        names.add(ip("10.1.0.2"), "shop/web-0");
        let names = names.without(&[ip("192.0.2.1")].into());
        assert_eq!(names.of(ip("10.1.0.2")), Some("shop/web-0"));
        assert_eq!(names.of(ip("10.1.0.4")), Some(r"proxy\x1b[2J"), "harmless on a terminal");
        assert_eq!((names.of(ip("10.1.0.5")), names.of(ip("192.0.2.1"))), (None, None));
        assert_eq!(names.addresses("shop/web-0"), [ip("10.1.0.2"), ip("fd00::2")]);
        assert_eq!(names.addresses("web-0"), [ip("10.1.0.2"), ip("10.1.0.3"), ip("fd00::2")]);
        assert_eq!(names.addresses("web"), [] as [IpAddr; 0]);
    }
}
