"""signals: how polyvold receives signals, with either front end.

How it works      The signals that polyvold acts on are blocked in every thread and waited for, so that no
                  handler interrupts anything. SIGTERM and SIGINT stop it, SIGHUP reloads. SIGUSR1 and SIGUSR2
                  mean nothing here, and do not end it. Python ignores SIGPIPE. All others keep the kernel's
                  action.
Invariants        SG1 `block` is called before any other thread is started. SG2 A program that is started here
                  gets its mask reset, except nbdkit, whose plugin waits for the same signals.
Owner and locks   The main thread alone.
"""

import signal

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
RELOADING = signal.SIGHUP
_WITHOUT_MEANING = frozenset({signal.SIGUSR1, signal.SIGUSR2})


def block() -> None:
    """Have the signals wait until `next_signal` takes them (SG1)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, RELOADING, *_WITHOUT_MEANING})


def next_signal(timeout_s: float) -> int | None:
    """The next signal to act on; None if none came within this time, seconds."""
    info = signal.sigtimedwait({*ENDING, RELOADING}, timeout_s)
    return None if info is None else info.si_signo
