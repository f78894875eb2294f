//! Bus error: a store to a mapped page, or a read of one, that the kernel answers with SIGBUS, becomes a result.
//!
//! How it works      The kernel raises SIGBUS in the thread that touches a mapped page which it cannot provide: the file
//!                   system cannot allocate it (on one that copies on write, also where the file was allocated before), the
//!                   disk cannot read it, the file was made shorter, the file system has shut down. [`guarded`] says which
//!                   bytes the thread is about to touch. The handler puts a page of zeroes in the place of the one that
//!                   failed, so that the instruction ends, and notes that; who has touched it puts the file's page back.
//! Invariants        BE1 only what `guarded` was told of is replaced; any other SIGBUS goes to the handler that was there
//!                   before, or ends the process.
//!                   BE2 the handler calls only mmap and sigaction, and touches nothing of a thread but its two cells.
//! Owner and locks   the cells: their thread, and the handler, which runs in it.

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, compiler_fence};

thread_local! {
    /// First address that this thread touches, and the one behind the last.
    static TOUCHED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    /// A page of those was replaced.
    static REPLACED: Cell<bool> = const { Cell::new(false) };
}

/// What SIGBUS did before; never freed.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

/// Has SIGBUS handled from here on, unless it is already.
pub fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        PAGE_BYTES.store(rustix::param::page_size(), Ordering::Relaxed);
        // SAFETY: an all-zero sigaction is a valid one, and it is filled in before it is used.
        let (mut new, mut before): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        new.sa_sigaction = handle as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: valid pointers. `BEFORE` is set first by a call that changes nothing.
        unsafe {
            libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before);
            BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Release);
            libc::sigaction(libc::SIGBUS, &raw const new, ptr::null_mut());
        }
    });
}

/// Runs `touch`, which touches these bytes of a mapping; `false` if the kernel could not provide all of them. Then some
/// pages of the mapping are not the file's any more.
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
    // SAFETY: the kernel gives a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let (start, end) = TOUCHED.get();
    if (start..end).contains(&address) && replace(address) {
        REPLACED.set(true);
        return;
    }
    pass_on(signal, info, context);
}

/// Puts a page of zeroes, of this process alone, in the place of the one at `address`.
fn replace(address: usize) -> bool {
    let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
    let page = address & !(page_bytes - 1);
    let (access, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
    );
    // SAFETY: errno is the thread's. The page is of a mapping that the thread is touching, so it stays mapped; what it
    // held could not be read nor written.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let placed = libc::mmap(page as *mut _, page_bytes, access, flags, -1, 0);
        *errno = before;
        placed != libc::MAP_FAILED
    }
}

/// Leaves a SIGBUS to the previous handler (BE1).
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.load(Ordering::Acquire);
    // SAFETY: it was set before the handler was, and is never freed.
    let before = unsafe { &*before };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: valid pointers. The instruction is run again, and ends the process.
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
