"""signals: how polyvold receives signals, with either front end.

How it works      The signals that polyvold acts on are blocked in every thread and received by waiting, so
                  that no handler interrupts a call. SIGTERM and SIGINT stop it, SIGHUP reloads. SIGUSR1 and
                  SIGUSR2 are ignored. SIGALRM ends a wait at its time limit. Python ignores
                  SIGPIPE. All others keep the kernel's action.
Invariants        SG1 `block` is called before any other thread is started. SG2 A program that is started here
                  gets its mask reset, except nbdkit, whose plugin waits for the same signals.
Owner and locks   The main thread alone.
"""

import signal

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
RELOADING = signal.SIGHUP
_TIME_IS_OVER = signal.SIGALRM
_WITHOUT_MEANING = frozenset({signal.SIGUSR1, signal.SIGUSR2})
_INSTANT_S = 1e-6
"""The shortest wait: a timer of 0 s never ends."""


def block() -> None:
    """Block the signals, for `next_signal` to receive them (SG1)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, RELOADING, _TIME_IS_OVER, *_WITHOUT_MEANING})


def next_signal(timeout_s: float) -> int | None:
    """The next signal to act on; None if none came within this time, seconds.

    Not by sigtimedwait: where the process is stopped until after the end of the wait, by SIGSTOP or while the
    machine sleeps, Python (3.11 to 3.13) returns what was in memory, which may be the number of a signal."""
    signal.setitimer(signal.ITIMER_REAL, max(timeout_s, _INSTANT_S))
    number = signal.sigwaitinfo({*ENDING, RELOADING, _TIME_IS_OVER}).si_signo
    signal.setitimer(signal.ITIMER_REAL, 0)
    return None if number == _TIME_IS_OVER else number
