"""The kernel's NBD client, controlled over generic netlink.

How it works      Requests and answers by pyroute2; the kernel's notices (a link of a device is dead) come on
                  a separate socket that a loop can wait on. The kernel keeps references to the sockets that
                  it gets: the caller closes its own descriptors afterwards.
Owner and locks   A `Kernel` and a `Notices` belong to one thread.
Errors            NoNbdModule, NeedsRoot, KernelRefused.
"""

import errno
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from polyvol.daemon.client.attach.disks import load_nbd
from polyvol.daemon.client.attach.errors import KernelRefused, NeedsRoot, NoNbdModule
from polyvol.daemon.client.attach.settings import Settings
from polyvol.mapping.os_errors import reason, reason_of

FAMILY = "nbd"
NOTICES = "nbd_mc_group"
VERSION = 1
CMD_CONNECT = 1
CMD_DISCONNECT = 2
CMD_RECONFIGURE = 3
CMD_LINK_DEAD = 4
NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NOTICE_BYTES_MAX = 65536
HEADER_BYTES = 16
"""Of a netlink message."""


class NbdMessage(genlmsg):  # type: ignore[misc] # pyroute2 has no types
    """A message of the family, as linux/nbd-netlink.h describes it."""

    prefix = "NBD_ATTR_"
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "hex"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):  # type: ignore[misc] # noqa: N801 - pyroute2 finds it by this name
        """The list of sockets."""

        nla_flags = 1 << 15  # NLA_F_NESTED
        nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_ITEM", "item"))

        class item(nla):  # type: ignore[misc] # noqa: N801
            """One socket."""

            nla_flags = 1 << 15
            nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))


def connect_message(settings: Settings, sockets: Sequence[int], index: int | None) -> NbdMessage:
    """Make a block device of these sockets' descriptors; `index` None: the kernel takes a free one."""
    attributes: list[tuple[str, object]] = [] if index is None else [("NBD_ATTR_INDEX", index)]
    return _message(
        CMD_CONNECT,
        [
            *attributes,
            ("NBD_ATTR_SIZE_BYTES", settings.size),
            ("NBD_ATTR_BLOCK_SIZE_BYTES", settings.block_size),
            *_common(settings),
            ("NBD_ATTR_SERVER_FLAGS", settings.flags),
            ("NBD_ATTR_SOCKETS", _sockets(sockets)),
        ],
    )


def reconfigure_message(
    index: int, settings: Settings, sockets: Sequence[int], *, backend_known: bool
) -> NbdMessage:
    """Replace dead connections by these, and grow to the size. `backend_known`: the kernel knows the backend,
    and then requires it here."""
    attributes: list[tuple[str, object]] = [
        ("NBD_ATTR_INDEX", index),
        ("NBD_ATTR_SIZE_BYTES", settings.size),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", settings.block_size),
        *(each for each in _common(settings) if backend_known or each[0] != "NBD_ATTR_BACKEND_IDENTIFIER"),
    ]
    if sockets:
        attributes.append(("NBD_ATTR_SOCKETS", _sockets(sockets)))
    return _message(CMD_RECONFIGURE, attributes)


def disconnect_message(index: int) -> NbdMessage:
    """End a block device."""
    return _message(CMD_DISCONNECT, [("NBD_ATTR_INDEX", index)])


class Kernel:
    """A channel to the kernel's NBD client. Use it as a context manager."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise NeedsRoot(what="attaching")
        load_nbd()
        self._netlink = GenericNetlinkSocket()
        try:
            self._netlink.bind(FAMILY, NbdMessage)
        except (NetlinkError, OSError) as error:
            self._netlink.close()
            raise NoNbdModule() from error
        except BaseException:
            self._netlink.close()
            raise

    @property
    def notices_group(self) -> int:
        """The multicast group of the kernel's notices."""
        return int(self._netlink.mcast_groups[NOTICES])

    def connect(self, settings: Settings, sockets: Sequence[int], index: int | None) -> int:
        """Make a block device; its number."""
        answers = self._ask(connect_message(settings, sockets, index), "a block device for it")
        for answer in answers:
            told = answer.get_attr("NBD_ATTR_INDEX")
            if told is not None:
                return int(told)
        if index is None:
            raise KernelRefused(what="a block device", why="it does not say which one it made")
        return index

    def reconfigure(
        self, index: int, settings: Settings, sockets: Sequence[int], *, backend_known: bool
    ) -> None:
        """Replace a block device's dead connections, and set its size."""
        message = reconfigure_message(index, settings, sockets, backend_known=backend_known)
        self._ask(message, f"new connections for /dev/nbd{index}")

    def disconnect(self, index: int) -> None:
        """End a block device; what was not written yet is lost."""
        self._ask(disconnect_message(index), f"to end /dev/nbd{index}")

    def _ask(self, message: NbdMessage, what: str) -> list[NbdMessage]:
        try:
            return list(
                self._netlink.nlm_request(
                    message, msg_type=self._netlink.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK
                )
            )
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise NeedsRoot(what="attaching") from error
            raise KernelRefused(what=what, why=reason_of(error.code)) from error
        except OSError as error:
            raise KernelRefused(what=what, why=reason(error)) from error

    def close(self) -> None:
        """Close the channel; block devices stay."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Notices:
    """The kernel's notices of links that have died, from now on. `fileno` is for a loop to wait on."""

    def __init__(self, group: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_GENERIC)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._socket.fileno()

    def dead(self, index: int) -> bool:
        """Whether a link of this device has died since the last call; True also if notices were lost."""
        found = False
        while True:
            try:
                data = self._socket.recv(NOTICE_BYTES_MAX)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: notices were lost
                found = True
                continue
            found = found or index in dead_links(data)

    def close(self) -> None:
        """End it."""
        self._socket.close()


def dead_links(data: bytes) -> list[int]:
    """The numbers of the block devices of which these messages say that a link has died."""
    found = []
    while len(data) >= HEADER_BYTES:
        (length,) = struct.unpack_from("=I", data)
        if not HEADER_BYTES <= length <= len(data):
            break
        message = NbdMessage(data[:length])
        message.decode()
        index = message.get_attr("NBD_ATTR_INDEX")
        if message["cmd"] == CMD_LINK_DEAD and index is not None:
            found.append(int(index))
        data = data[(length + 3) // 4 * 4 :]
    return found


def _message(command: int, attributes: list[tuple[str, object]]) -> NbdMessage:
    message = NbdMessage()
    message["cmd"] = command
    message["version"] = VERSION
    message["attrs"] = [list(each) for each in attributes]
    return message


def _common(settings: Settings) -> list[tuple[str, object]]:
    return [
        ("NBD_ATTR_TIMEOUT", settings.timeout_s),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", settings.dead_timeout_s),
        ("NBD_ATTR_BACKEND_IDENTIFIER", settings.backend),
    ]


def _sockets(descriptors: Sequence[int]) -> dict[str, object]:
    items = [["NBD_SOCK_ITEM", {"attrs": [["NBD_SOCK_FD", number]]}] for number in descriptors]
    return {"attrs": items}
