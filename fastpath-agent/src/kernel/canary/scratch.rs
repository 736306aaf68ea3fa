//! The scratch namespaces: client — router — server, on two veth pairs, with addresses, routes and forwarding.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressHeaderFlags,
        link::{InfoData, InfoKind, InfoVeth},
    },
};

use super::CanaryError;
use crate::{core::model::OperState, kernel::links::Links};

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Name of the device in the client's and the server's namespace.
const FAR_END: &str = "eth0";
/// How long the pairs may take to have a carrier on both ends.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);
/// Numbers of the networks; the router has .1 in both, the other end .2.
const CLIENT_NET: u8 = 1;
const SERVER_NET: u8 = 2;

/// A network namespace that lives as long as this handle, or a process in it.
pub(super) struct Namespace(File);

impl Namespace {
    /// The calling thread's.
    fn current() -> Result<Self, CanaryError> {
        File::open("/proc/thread-self/ns/net").map(Self).map_err(build("look at a scratch namespace"))
    }

    /// A fresh one, which the calling thread is in from now on.
    fn fresh() -> Result<Self, CanaryError> {
        const STEP: &str = "make a network namespace";
        match unshare(CloneFlags::CLONE_NEWNET) {
            // Without CAP_SYS_ADMIN it takes a user namespace, in which this process has all capabilities.
            Err(Errno::EPERM) => unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET),
            other => other,
        }
        .map_err(|errno| build(STEP)(errno.into()))?;
        Self::current()
    }

    /// Puts the calling thread into it: what it opens from now on is there.
    pub(super) fn enter(&self) -> Result<(), CanaryError> {
        setns(&self.0, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| build("enter a scratch namespace")(errno.into()))
    }
}

fn build(step: &'static str) -> impl Fn(io::Error) -> CanaryError {
    move |source| CanaryError::Build { step, source }
}

fn netlink(step: &'static str) -> impl Fn(rtnetlink::Error) -> CanaryError {
    move |source| CanaryError::Netlink { step, source: Box::new(source) }
}

/// All three.
pub(super) struct Scratch {
    pub(super) client: Namespace,
    pub(super) router: Namespace,
    pub(super) server: Namespace,
    /// Why a family isn't forwarded.
    not_forwarded: Vec<(Family, String)>,
}

impl Scratch {
    /// Builds it; the calling thread ends up in one of the namespaces.
    pub(super) async fn build() -> Result<Self, CanaryError> {
        let client = Namespace::fresh()?;
        let server = Namespace::fresh()?;
        let router = Namespace::fresh()?;
        let not_forwarded = [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|family| Some((family, forward(family).err()?)))
            .collect();
        let near = connect()?;
        for (name, far) in [("client", &client), ("server", &server)] {
            let peer = LinkUnspec::new_with_name(FAR_END).setns_by_fd(far.0.as_raw_fd()).build();
            let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
                .name(name)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .build();
            near.link().add(pair).execute().await.map_err(netlink("make a veth pair"))?;
        }
        set_up(&near, "client", CLIENT_NET, 1).await?;
        set_up(&near, "server", SERVER_NET, 1).await?;
        for (namespace, net) in [(&client, CLIENT_NET), (&server, SERVER_NET)] {
            namespace.enter()?;
            let far = connect()?;
            set_up(&far, FAR_END, net, 2).await?;
            for family in [Family::V4, Family::V6] {
                let route = match address(family, net, 1) {
                    IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build(),
                    IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).build(),
                };
                far.route().add(route).execute().await.map_err(netlink("add a route"))?;
            }
        }
        router.enter()?;
        wait_for_carrier().await?;
        Ok(Self { client, router, server, not_forwarded })
    }

    /// Where the server is reached.
    pub(super) fn server_address(family: Family) -> IpAddr {
        address(family, SERVER_NET, 2)
    }

    /// Why the router doesn't forward this family; `None` if it does.
    pub(super) fn not_forwarded(&self, family: Family) -> Option<&str> {
        self.not_forwarded.iter().find(|(f, _)| *f == family).map(|(_, why)| why.as_str())
    }
}

/// Networks for benchmarks (RFC 2544) and for documentation (RFC 3849); nothing else is in these namespaces.
fn address(family: Family, net: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 18, net, host).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, net.into(), 0, 0, 0, host.into()).into(),
    }
}

/// A connection to rtnetlink in the calling thread's namespace.
fn connect() -> Result<Handle, CanaryError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(build("open an rtnetlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Switches forwarding on in the calling thread's namespace, unless it is.
fn forward(family: Family) -> Result<(), String> {
    let path = match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    if fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    fs::write(path, "1").map_err(|error| format!("cannot write {path} in a scratch namespace: {error}"))
}

/// Switches the link on, and gives it addresses.
async fn set_up(handle: &Handle, device: &str, net: u8, host: u8) -> Result<(), CanaryError> {
    let mut links = handle.link().get().match_name(device.to_owned()).execute();
    let link = links.try_next().await.map_err(netlink("find a link"))?;
    let index = link.map(|link| link.header.index).unwrap_or_default();
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(netlink("switch a link on"))?;
    // A router asks for neighbours from its link-local address, and the one that the kernel makes up isn't usable before
    // it has been checked for duplicates.
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host.into()).into();
    for (address, prefix) in
        [(address(Family::V4, net, host), 24), (address(Family::V6, net, host), 64), (link_local, 64)]
    {
        let mut request = handle.address().add(index, address, prefix);
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await.map_err(netlink("add an address"))?;
    }
    Ok(())
}

/// Until both of the router's links are up, as the ruleset wants them.
async fn wait_for_carrier() -> Result<(), CanaryError> {
    let mut links = Links::open()?;
    let began = Instant::now();
    loop {
        let up = |link: &crate::core::model::Link| !link.loopback && link.oper_state == OperState::Up;
        if links.list()?.iter().filter(|link| up(link)).count() == 2 {
            return Ok(());
        }
        if began.elapsed() > CARRIER_LIMIT {
            return Err(build("get a carrier on the veth pairs")(io::ErrorKind::TimedOut.into()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
