//! Bus error: turns a SIGBUS from an access to a mapped page into a result.
//!
//! How it works      The kernel raises SIGBUS in the thread that touches a mapped page which it cannot provide: the
//!                   file system cannot allocate it (on one that copies on write, also where the file was allocated
//!                   before), the disk cannot read it, the file was made shorter, the file system has shut down.
//!                   [`guarded`] declares which bytes the thread is about to touch. The handler replaces the page that
//!                   failed with a page of zeroes, so that the instruction completes, and notes that; the caller of
//!                   `guarded` then maps the file's page again.
//! Invariants        BE1 only pages that `guarded` declared are replaced; any other SIGBUS goes to the previous
//!                   handler, or ends the process.
//!                   BE2 the handler calls only mmap and sigaction, and touches nothing of a thread except its two
//!                       cells.
//! Owner and locks   the cells: their thread, and the handler, which runs in it.

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, compiler_fence};

thread_local! {
    /// First address that this thread touches, and the one after the last.
    static TOUCHED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    /// One of these pages was replaced.
    static REPLACED: Cell<bool> = const { Cell::new(false) };
}

/// The previous action of SIGBUS; never freed.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

/// Installs the handler of SIGBUS, once.
pub fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        PAGE_BYTES.store(rustix::param::page_size(), Ordering::Relaxed);
        // SAFETY: an all-zero sigaction is a valid one, and its fields are set before it is used.
        let (mut new, mut before): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        new.sa_sigaction = handle as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: valid pointers. The first call only reads, so `BEFORE` is set before the handler is installed.
        unsafe {
            libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before);
            BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Release);
            libc::sigaction(libc::SIGBUS, &raw const new, ptr::null_mut());
        }
    });
}

/// Runs `touch`, which touches these bytes of a mapping; returns `false` if the kernel could not provide all of them.
/// Some pages of the mapping are then no longer the file's.
pub fn guarded(start: usize, length: usize, touch: impl FnOnce()) -> bool {
    TOUCHED.set((start, start + length));
    compiler_fence(Ordering::SeqCst);
    touch();
    compiler_fence(Ordering::SeqCst);
    TOUCHED.set((0, 0));
    !REPLACED.replace(false)
}

/// The handler (BE2).
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let (start, end) = TOUCHED.get();
    if (start..end).contains(&address) && replace(address) {
        REPLACED.set(true);
        return;
    }
    pass_on(signal, info, context);
}

/// Replaces the page at `address` with a private page of zeroes.
fn replace(address: usize) -> bool {
    let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
    let page = address & !(page_bytes - 1);
    let (access, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
    );
    // SAFETY: errno is the thread's. The page is of a mapping that the thread is touching, so it stays mapped; its
    // contents could neither be read nor written.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let placed = libc::mmap(page as *mut _, page_bytes, access, flags, -1, 0);
        *errno = before;
        placed != libc::MAP_FAILED
    }
}

/// Passes a SIGBUS to the previous handler (BE1).
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.load(Ordering::Acquire);
    // SAFETY: `BEFORE` was set before the handler was installed, and is never freed.
    let before = unsafe { &*before };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: valid pointers. The instruction runs again, and ends the process.
            unsafe {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: the flag says that this is its type.
            let handler: Handler = unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without the flag, this is its type.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
