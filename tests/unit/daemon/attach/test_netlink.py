"""What the kernel is told: messages, compared with bytes put together by hand as its headers say."""

import struct

import pytest

from polyvol.daemon.client.attach import netlink
from polyvol.daemon.client.attach.errors import NoNbdModule
from polyvol.daemon.client.attach.netlink import NbdMessage
from polyvol.daemon.client.attach.settings import Settings

SETTINGS = Settings(
    size=1 << 30, flags=0x16D, block_size=4096, backend="polyvol/v@s", timeout_s=120, dead_timeout_s=300
)
NESTED = 1 << 15


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def long(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=Q", value))


def sockets(*numbers: int) -> bytes:
    return attribute(
        7 | NESTED, b"".join(attribute(1 | NESTED, attribute(1, struct.pack("=I", n))) for n in numbers)
    )


BACKEND = attribute(10, b"polyvol/v@s\0")
COMMON = long(4, 120) + long(8, 300)


def body(message: NbdMessage) -> bytes:
    """A message after netlink's own header."""
    message.encode()
    data = bytes(message.data)
    assert struct.unpack_from("=I", data) == (len(data),)
    return data[16:]


def generic(command: int) -> bytes:
    return struct.pack("=BBH", command, 1, 0)


def test_connect_says_everything_of_the_device() -> None:
    expected = generic(1) + number(1, 3) + long(2, 1 << 30) + long(3, 4096) + COMMON + BACKEND
    expected += long(5, 0x16D) + sockets(7, 9)
    assert body(netlink.connect_message(SETTINGS, [7, 9], 3)) == expected


def test_connect_leaves_the_choice_of_the_device_to_the_kernel() -> None:
    assert body(netlink.connect_message(SETTINGS, [7], None)).startswith(generic(1) + long(2, 1 << 30))


def test_reconfigure_names_the_backend_where_the_kernel_knows_it() -> None:
    expected = generic(3) + number(1, 0) + long(2, 1 << 30) + long(3, 4096) + COMMON
    known = netlink.reconfigure_message(0, SETTINGS, [7], backend_known=True)
    assert body(known) == expected + BACKEND + sockets(7)
    unknown = netlink.reconfigure_message(0, SETTINGS, [], backend_known=False)
    assert body(unknown) == expected


def test_disconnect_names_the_device() -> None:
    assert body(netlink.disconnect_message(5)) == generic(2) + number(1, 5)


def notice(command: int, index: int) -> bytes:
    data = generic(command) + number(1, index)
    return struct.pack("=IHHII", 16 + len(data), 30, 0, 0, 0) + data


def test_dead_links_are_read_from_notices() -> None:
    data = notice(4, 2) + notice(5, 8) + notice(4, 11)
    assert netlink.dead_links(data) == [2, 11]
    assert netlink.dead_links(data[:-1]) == [2]
    assert netlink.dead_links(b"\0" * 40) == []


def test_a_kernel_without_nbd_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "FAMILY", "no-such-family")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(NoNbdModule, match="--fuse"):
        netlink.Kernel()
