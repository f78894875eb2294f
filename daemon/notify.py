"""sd_notify: telling systemd how the daemon is, where systemd asks for it ($NOTIFY_SOCKET)."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send a state such as 'READY=1' or 'STOPPING=1'; without systemd nothing happens. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)
