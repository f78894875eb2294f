"""nbd: talk to an export with the clients that people use: libnbd, nbdinfo, nbdcopy, qemu.

How it works      `connect` gives a libnbd handle with connections of its own; the others run a program and
                  return what it said. `Reference` is the same bytes in memory, to compare with.
Errors            nbd.Error from libnbd, AssertionError from the programs.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbd

from tests.support.proc import Argument, check

NbdError = nbd.Error
BASE_ALLOCATION = "base:allocation"
REQ_ONE = nbd.CMD_FLAG_REQ_ONE
FUA = nbd.CMD_FLAG_FUA
CHUNK_BYTES = 4 * 1024 * 1024


def uri(export: str, socket: Path) -> str:
    """The address of an export on a unix socket."""
    return f"nbd+unix:///{quote(export, safe='@')}?socket={quote(str(socket))}"


def nbd_handle() -> Any:
    """A libnbd handle that is not connected yet."""
    return nbd.NBD()


@contextmanager
def connect(address: str, *, contexts: tuple[str, ...] = (BASE_ALLOCATION,)) -> Iterator[Any]:
    """A connected libnbd handle with these metadata contexts."""
    handle = nbd.NBD()
    try:
        for context in contexts:
            handle.add_meta_context(context)
        handle.connect_uri(address)
        yield handle
    finally:
        # A handle that never connected, or that the server has left, has nothing to end.
        with suppress(nbd.Error):
            handle.shutdown(nbd.SHUTDOWN_ABANDON_PENDING)


def buffer(length: int) -> Any:
    """Where an asynchronous read of so many bytes puts them."""
    return nbd.Buffer(length)


def filled(data: bytes) -> Any:
    """What an asynchronous write is given."""
    return nbd.Buffer.from_bytearray(bytearray(data))


def read_all(address: str) -> bytes:
    """The whole content of a small export."""
    with connect(address) as handle:
        size = handle.get_size()
        return b"".join(handle.pread(min(CHUNK_BYTES, size - at), at) for at in range(0, size, CHUNK_BYTES))


def allocation(handle: Any, length: int, offset: int) -> list[tuple[int, int]]:
    """Block status of a run: (length, flags of base:allocation), as far as the server told."""
    told: list[tuple[int, int]] = []

    def extent(context: str, _offset: int, entries: list[int], _error: object) -> int:
        if context == BASE_ALLOCATION:
            told.extend(zip(entries[::2], entries[1::2], strict=True))
        return 0

    handle.block_status(length, offset, extent)
    return told


def info(address: str) -> Any:
    """What nbdinfo says about one export."""
    return json.loads(check("nbdinfo", "--json", address))["exports"][0]


def export_names(socket: Path) -> set[str]:
    """The exports that the server lists."""
    listed = json.loads(check("nbdinfo", "--list", "--json", uri("", socket)))
    return {export["export-name"] for export in listed["exports"]}


def copy(source: Argument, target: Argument, *options: Argument) -> None:
    """nbdcopy, between an address and a file or another address."""
    check("nbdcopy", *options, source, target, timeout_s=300)


def qemu_compare(one: Argument, other: Argument) -> None:
    """Have qemu-img find the two the same."""
    check("qemu-img", "compare", "-f", "raw", "-F", "raw", one, other, timeout_s=300)


def qemu_io(address: str, *commands: str) -> str:
    """Run qemu-io commands on an export."""
    return check("qemu-io", "-f", "raw", *(part for one in commands for part in ("-c", one)), address)


class Reference:
    """What an export should hold: the same operations on bytes in memory."""

    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)

    def write(self, data: bytes, offset: int) -> None:
        """As pwrite."""
        self.data[offset : offset + len(data)] = data

    def zero(self, length: int, offset: int) -> None:
        """As write-zeroes and trim."""
        self.data[offset : offset + length] = bytes(length)

    def frozen(self) -> bytes:
        """As a snapshot."""
        return bytes(self.data)
