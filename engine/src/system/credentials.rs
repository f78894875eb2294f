//! Credentials: which process connected a unix socket.
//!
//! How it works      The kernel records it at `connect`. The pid is 0 for a process of another pid namespace; rustix's
//!                   type has no 0, so libc is called.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The process and the user that connected a unix socket; the pid is `None` for one that this process cannot see.
pub fn of_peer(socket: BorrowedFd<'_>) -> Option<(Option<u32>, u32)> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to values of ours that outlive the call, and `length` is the size of the first.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    let pid = u32::try_from(found.pid).ok().filter(|pid| *pid > 0);
    (failed == 0).then_some((pid, found.uid))
}
