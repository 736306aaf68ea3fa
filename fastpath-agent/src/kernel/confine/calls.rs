//! Which system calls a running agent makes, as a filter of seccomp (Documentation/userspace-api/seccomp_filter.rst). Another one
//! fails with ENOSYS. Above all there is no `execve`, no new process or namespace, no socket but netlink and UNIX, no new map or
//! program of eBPF, and no memory that can be executed. With `--export=ipfix+tcp://…` sockets of TCP are added.

use std::{collections::BTreeMap, env::consts::ARCH};

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The filter can't be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It can't be made; for a processor that the crate doesn't know, for one.
    #[error(transparent)]
    Made(#[from] BackendError),
    /// The kernel refuses it.
    #[error(transparent)]
    Installed(#[from] seccompiler::Error),
}

/// Whatever their arguments are.
#[rustfmt::skip]
const ANY: &[c_long] = &[
    // Descriptors. Which files may be opened is for Landlock to say.
    libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_write, libc::SYS_writev, libc::SYS_close,
    libc::SYS_openat, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs,
    libc::SYS_fstatfs, libc::SYS_lseek, libc::SYS_getdents64, libc::SYS_readlinkat, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_fcntl, libc::SYS_dup, libc::SYS_dup3, libc::SYS_mkdirat,
    libc::SYS_unlinkat, libc::SYS_renameat2, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_getcwd,
    // A long line for the journal is handed over in a file of memory.
    libc::SYS_memfd_create, libc::SYS_ftruncate,
    // Sockets that are there already, and those that are made below.
    libc::SYS_bind, libc::SYS_connect, libc::SYS_listen, libc::SYS_accept4, libc::SYS_shutdown,
    libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_getsockname,
    libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt,
    // Waiting, and the time.
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2,
    libc::SYS_ppoll, libc::SYS_eventfd2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime,
    libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_restart_syscall,
    // Threads, their memory and their signals.
    libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity, libc::SYS_getcpu, libc::SYS_membarrier, libc::SYS_brk, libc::SYS_munmap,
    libc::SYS_mremap, libc::SYS_madvise, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn, libc::SYS_sigaltstack, libc::SYS_exit, libc::SYS_exit_group,
    // What it asks about itself and the machine.
    libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid,
    libc::SYS_getegid, libc::SYS_getrandom, libc::SYS_getrusage, libc::SYS_sysinfo, libc::SYS_uname,
    libc::SYS_capget,
];

/// Older names of some, which newer processors haven't.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD: &[c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_mkdir,
    libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_renameat, libc::SYS_chmod, libc::SYS_poll, libc::SYS_epoll_wait,
    libc::SYS_accept, libc::SYS_time, libc::SYS_dup2,
];
#[cfg(target_arch = "aarch64")]
const OLD: &[c_long] = &[libc::SYS_renameat];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OLD: &[c_long] = &[];

/// Installs it for all threads. It can't be taken away again. `connects`: connections over TCP are made.
pub(super) fn filter(connects: bool) -> Result<(), FilterError> {
    // What C libraries take for an older kernel, and do without, as with `clone3`, whose flags can't be seen.
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(allowed(connects)?, refused, SeccompAction::Allow, ARCH.try_into()?)?;
    Ok(seccompiler::apply_filter_all_threads(&BpfProgram::try_from(filter)?)?)
}

/// Each call with the arguments that it may have; without any, all.
fn allowed(connects: bool) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    let mut calls: BTreeMap<_, _> = ANY.iter().chain(OLD).map(|call| (*call, Vec::new())).collect();
    let any_of = |argument, values: &[u32]| {
        values.iter().map(|value| rule(argument, !0, *value)).collect::<Result<Vec<_>, _>>()
    };
    let mut sockets = any_of(0, &[libc::AF_NETLINK as u32, libc::AF_UNIX as u32])?;
    if connects {
        // SOCK_CLOEXEC and SOCK_NONBLOCK come with the type.
        let kind = !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let stream = SeccompCmpOp::MaskedEq(kind.into());
            sockets.push(SeccompRule::new(vec![
                SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family as u64)?,
                SeccompCondition::new(1, SeccompCmpArgLen::Dword, stream, libc::SOCK_STREAM as u64)?,
            ])?);
        }
    }
    calls.insert(libc::SYS_socket, sockets);
    calls.insert(libc::SYS_socketpair, vec![rule(0, !0, libc::AF_UNIX as u32)?]);
    calls.insert(libc::SYS_ioctl, any_of(1, &IOCTLS)?);
    calls.insert(libc::SYS_bpf, any_of(0, &BPF_COMMANDS)?);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        calls.insert(call, vec![rule(2, libc::PROT_EXEC as u32, 0)?]);
    }
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u32;
    calls.insert(libc::SYS_clone, vec![rule(0, thread | NEW_NAMESPACES, thread)?]);
    calls.insert(libc::SYS_prctl, any_of(0, &[libc::PR_SET_NAME as u32, libc::PR_SET_VMA as u32])?);
    // How an abort ends the process.
    calls.insert(libc::SYS_tgkill, vec![rule(0, !0, std::process::id())?]);
    // Reads a limit, of this process.
    let of_itself = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)?;
    let reads = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    calls.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![of_itself, reads])?]);
    Ok(calls)
}

/// That the argument of this number, masked, is this value.
fn rule(argument: u8, mask: u32, value: u32) -> Result<SeccompRule, BackendError> {
    let equal = SeccompCmpOp::MaskedEq(mask.into());
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, equal, value.into())?])
}

/// Whether a descriptor blocks, is a terminal; SIOCGIFNAME, SIOCGIFINDEX and SIOCETHTOOL (include/uapi/linux/sockios.h).
const IOCTLS: [u32; 5] = [libc::FIONBIO as u32, libc::TCGETS as u32, 0x8910, 0x8933, 0x8946];

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// `enum bpf_cmd` (include/uapi/linux/bpf.h): elements of maps, pins, runs of a program that is there, links, and questions.
const BPF_COMMANDS: [u32; 18] = [
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    6,  // BPF_OBJ_PIN
    7,  // BPF_OBJ_GET
    8,  // BPF_PROG_ATTACH
    9,  // BPF_PROG_DETACH
    10, // BPF_PROG_TEST_RUN
    15, // BPF_OBJ_GET_INFO_BY_FD
    16, // BPF_PROG_QUERY
    24, // BPF_MAP_LOOKUP_BATCH
    25, // BPF_MAP_LOOKUP_AND_DELETE_BATCH
    26, // BPF_MAP_UPDATE_BATCH
    27, // BPF_MAP_DELETE_BATCH
    28, // BPF_LINK_CREATE
    29, // BPF_LINK_UPDATE
    34, // BPF_LINK_DETACH
];
