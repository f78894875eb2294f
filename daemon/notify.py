"""systemd: telling it how the daemon is, and logging where its journal can be searched by field.

How it works      `notify` speaks sd_notify's protocol on $NOTIFY_SOCKET. `watchdog_interval_s` says how often
                  systemd wants to hear that all is well. `log_to_journal` sends log records by the journal's
                  own protocol when our stderr is the journal's ($JOURNAL_STREAM); the keys in capitals that a
                  record was given by `extra` (VOLUME, DEVICE, SNAPSHOT) become fields.
Errors            None: without systemd nothing happens.
"""

import contextlib
import logging
import os
import socket
import sys

WATCHDOG_SHARE = 1 / 3
"""We speak up so much sooner than systemd would lose patience."""


def notify(*states: str) -> None:
    """Send states such as 'READY=1' together; without systemd nothing happens. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto("\n".join(states).encode(), address)


def watchdog_interval_s() -> float | None:
    """How often to send 'WATCHDOG=1', seconds; None if nobody waits for it."""
    patience = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not patience.isdigit():
        return None
    return int(patience) / 1e6 * WATCHDOG_SHARE or None


def log_to_journal(identifier: str = "polyvold") -> bool:
    """Send all log records to the journal, from INFO on, if it is where stderr goes; else change nothing."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    with contextlib.suppress(OSError, ValueError):
        status = os.fstat(sys.stderr.fileno())
        if stream == f"{status.st_dev}:{status.st_ino}":
            with contextlib.suppress(ImportError):
                from systemd.journal import JournalHandler

                handler = JournalHandler(SYSLOG_IDENTIFIER=identifier)
                handler.setFormatter(logging.Formatter("%(message)s"))
                logging.basicConfig(level=logging.INFO, handlers=[handler])
                return True
    return False
