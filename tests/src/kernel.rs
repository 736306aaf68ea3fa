//! The kernel's calls that no crate wraps, for the harness. What is done with them is its callers' matter.
#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use nix::libc;

/// The members of union bpf_attr that loading needs.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Those that pinning needs.
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Loads a program (`kind`: enum bpf_prog_type) under a name of at most 15 bytes.
pub(crate) fn load(kind: u32, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    let license = c"GPL";
    let mut load = Load {
        kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    load.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the attributes are as the kernel defines them, and all that they point to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins the descriptor's object.
pub(crate) fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    const OBJ_PIN: libc::c_long = 6;
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let object = Object { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 };
    // SAFETY: as in `load`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, &raw const object, size_of::<Object>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends IPv4 packets with these options from now on.
pub(crate) fn set_ip_options(socket: &impl AsFd, options: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel copies the bytes, whose number is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens one end of a PPPoE session and makes a ppp interface of it, in the network namespace of the thread. Both last as long as
/// what is returned. There is no negotiation: both ends know what they would agree on.
pub(crate) fn pppoe(session: u16, peer: [u8; 6], device: &str) -> io::Result<[OwnedFd; 3]> {
    // include/uapi/linux/if_pppox.h, linux/ppp-ioctl.h, linux/ppp_defs.h.
    const PX_PROTO_OE: libc::c_int = 0;
    const GET_CHANNEL: libc::c_ulong = 0x8004_7437;
    const ATTACH_CHANNEL: libc::c_ulong = 0x4004_7438;
    const CONNECT: libc::c_ulong = 0x4004_743a;
    const NEW_UNIT: libc::c_ulong = 0xc004_743e;
    const SET_PROTOCOL_MODE: libc::c_ulong = 0x4008_744b;
    const PPP_IP: u32 = 0x21;
    const PASS: u32 = 0;
    // struct sockaddr_pppox, packed: family, protocol, session, the peer's MAC address, the device's name.
    let mut address = [0_u8; 30];
    address[..2].copy_from_slice(&(libc::AF_PPPOX as u16).to_ne_bytes());
    address[6..8].copy_from_slice(&session.to_be_bytes());
    address[8..14].copy_from_slice(&peer);
    address[14..14 + device.len()].copy_from_slice(device.as_bytes());

    // SAFETY: no pointers.
    let socket = check(unsafe { libc::socket(libc::AF_PPPOX, libc::SOCK_STREAM, PX_PROTO_OE) })?;
    // SAFETY: the kernel has just made this descriptor, and nothing else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the address is as the kernel defines it and outlives the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) })?;
    let open = || {
        Ok::<_, io::Error>(OwnedFd::from(
            std::fs::OpenOptions::new().read(true).write(true).open("/dev/ppp")?,
        ))
    };
    let (channel, unit) = (open()?, open()?);
    let ioctl = |fd: &OwnedFd, request, argument: &mut [u32; 2]| {
        // SAFETY: the kernel reads and writes 8 bytes there at most.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument.as_mut_ptr()) }).map(drop)
    };
    let (mut channel_number, mut unit_number) = ([0; 2], [u32::MAX, 0]);
    ioctl(&socket, GET_CHANNEL, &mut channel_number)?;
    ioctl(&channel, ATTACH_CHANNEL, &mut channel_number)?;
    ioctl(&unit, NEW_UNIT, &mut unit_number)?;
    ioctl(&channel, CONNECT, &mut unit_number)?;
    ioctl(&unit, SET_PROTOCOL_MODE, &mut [PPP_IP, PASS])?;
    Ok([socket, channel, unit])
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Maps a page that can be executed.
pub fn map_executable() -> io::Result<()> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, at an address of the kernel's choice, concerns no memory that is in use.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nothing points into it.
    check(unsafe { libc::munmap(address, 4096) }).map(drop)
}
