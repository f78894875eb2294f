"""systemd: notifying it of the daemon's state, and logging to its journal with fields.

How it works      `notify` speaks sd_notify's protocol on $NOTIFY_SOCKET. A `Store` gives systemd file
                  descriptors to keep for the next process ($FDSTORE says how many it takes; systemd before
                  254 does not set it, so the unit does). `watchdog_interval_s` says how often
                  systemd wants a regular sign of life. `log_to_journal` sends log records by the journal's
                  own protocol when our stderr is the journal's ($JOURNAL_STREAM); the keys in capitals that a
                  record was given by `extra` (VOLUME, DEVICE, SNAPSHOT) become fields.
Errors            None: without systemd nothing is sent. Only a `Store` raises OSError.
"""

import contextlib
import logging
import os
import select
import socket
import sys
from array import array
from typing import Self

WATCHDOG_SHARE = 1 / 3
"""We speak up so much sooner than systemd would lose patience."""
STORE_TIMEOUT_S = 10.0
"""How long systemd may take to take one message."""


def notify(*states: str) -> None:
    """Send states such as 'READY=1' together; without systemd nothing happens. Never raises."""
    address = _address()
    if address is None:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto("\n".join(states).encode(), address)


def _address() -> str | None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    return "\0" + address[1:] if address.startswith("@") else address


class Store:
    """systemd's store of file descriptors, which are passed to the next process of the service."""

    @classmethod
    def offered(cls) -> "Store | None":
        """The store, if there is one."""
        address, most = _address(), os.environ.get("FDSTORE", "")
        return cls(address) if address is not None and is_number(most) and int(most) > 0 else None

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.settimeout(STORE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def put(self, name: str, number: int) -> None:
        """Store a copy of a file descriptor under this name."""
        self._send(f"FDSTORE=1\nFDNAME={name}", number)

    def settle(self, timeout_s: float) -> bool:
        """Wait until systemd has read all that was stored; whether it has."""
        reading, writing = os.pipe()
        try:
            self._send("BARRIER=1", writing)
        finally:
            os.close(writing)
        try:
            watch = select.poll()  # it hangs up when systemd has closed the other end
            watch.register(reading, 0)
            return bool(watch.poll(timeout_s * 1000))
        finally:
            os.close(reading)

    def _send(self, text: str, number: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [number]))]
        self._channel.sendmsg([text.encode()], rights, 0, self._address)


def remove_stored(names: list[str]) -> None:
    """Remove the descriptors of these names from the store. Never raises."""
    for name in names:
        notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def is_number(text: str) -> bool:
    """Whether a text of the environment is a whole number, as systemd writes one."""
    return text.isascii() and text.isdigit()


def watchdog_interval_s() -> float | None:
    """How often to send 'WATCHDOG=1', seconds; None if there is no watchdog."""
    patience = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not is_number(patience):
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


def log_somewhere() -> None:
    """Send log records to the journal if it is where stderr goes; else write warnings and errors there."""
    if not log_to_journal():
        logging.basicConfig(
            stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(levelname)s: %(message)s"
        )
