"""round_robin: hosts that write numbered blocks over all partitions, one write after the other.

How it works      Each client writes the numbers 1, 2, 3... as blocks filled with the number, each only after
                  the one before was acknowledged, to its own slots in turn: a slot on every partition of
                  every volume, then the next row of slots, then the first again. So at one instant slot s
                  holds the largest number up to some n that belongs there: `prefixes` reads the slots and
                  finds each client's n, or a number that is missing although a later one is there. A client
                  is a process of its own (`python -m tests.support.round_robin`) that connects by libnbd.
Owner and locks   Clients tell in a mapped file what they have issued and what was acknowledged: 16 bytes for
                  each, which only that client writes. The file's first word tells them to stop.
Errors            AssertionError from `prefixes`, and from `writing` when a client failed.
"""

import json
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import nbd

from tests.support.proc import Argument, Background, wait_until

BLOCK = 4096
NUMBER = struct.Struct("<Q")


@dataclass(frozen=True)
class Layout:
    """Where the slots are: `rows` blocks for each client at the start of each partition of each volume."""

    clients: int
    volumes: int
    partitions: int
    partition_bytes: int
    rows: int = 2

    @property
    def slots(self) -> int:
        """How many slots a client has."""
        return self.volumes * self.partitions * self.rows

    def place(self, client: int, slot: int) -> tuple[int, int]:
        """A slot's volume and offset."""
        volume, partition = slot % self.volumes, slot // self.volumes % self.partitions
        row = slot // (self.volumes * self.partitions)
        return volume, partition * self.partition_bytes + (client * self.rows + row) * BLOCK

    def slot(self, number: int) -> int:
        """The slot that a number is written to."""
        return (number - 1) % self.slots


def block(number: int) -> bytes:
    """The block that says this number."""
    return NUMBER.pack(number) * (BLOCK // NUMBER.size)


def prefixes(layout: Layout, read: Callable[[int, int, int], bytes], what: str) -> list[int]:
    """Each client's last number, all before it being there; `read` takes volume, length and offset."""
    length = layout.clients * layout.rows * BLOCK
    rows = {
        (volume, partition): read(volume, length, partition * layout.partition_bytes)
        for volume in range(layout.volumes)
        for partition in range(layout.partitions)
    }
    last = []
    for client in range(layout.clients):
        found = []
        for slot in range(layout.slots):
            volume, offset = layout.place(client, slot)
            partition, at = divmod(offset, layout.partition_bytes)
            data = rows[volume, partition][at : at + BLOCK]
            (number,) = NUMBER.unpack_from(data)
            assert data == block(number), f"{what}: client {client}'s slot {slot} is torn"
            found.append(number)
        newest = max(found)
        last.append(newest)
        for slot, number in enumerate(found):
            expected = newest - (layout.slot(newest) - slot) % layout.slots if newest else 0
            assert number == max(expected, 0), (
                f"{what}: not one instant: it has client {client}'s number {newest}, but on slot {slot}"
                f" (volume, offset {layout.place(client, slot)}) number {number} and not {expected}"
            )
    return last


class Progress:
    """What the clients have issued and what was acknowledged."""

    def __init__(self, path: Path, clients: int) -> None:
        size = 8 + 16 * clients
        with path.open("a+b") as file:
            if os.fstat(file.fileno()).st_size < size:
                file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        # Whole words, so that no reader sees half of a number.
        self._words = memoryview(self._map).cast("Q")

    def stop(self) -> None:
        """Tell all clients to stop."""
        self._words[0] = 1

    @property
    def stopped(self) -> bool:
        """Whether they were told."""
        return self._words[0] != 0

    def tell(self, client: int, *, issued: int | None = None, acknowledged: int | None = None) -> None:
        """Say how far a client is."""
        if issued is not None:
            self._words[1 + 2 * client] = issued
        if acknowledged is not None:
            self._words[2 + 2 * client] = acknowledged

    def issued(self) -> list[int]:
        """Each client's last number that may be on its way."""
        return list(self._words[1::2])

    def acknowledged(self) -> list[int]:
        """Each client's last number that was acknowledged."""
        return list(self._words[2::2])

    def close(self) -> None:
        """Close the file; what it said last stays."""
        held = memoryview(bytes(self._words)).cast("Q")
        self._words.release()
        self._words = held
        self._map.close()


@contextmanager
def writing(
    layout: Layout,
    addresses: Sequence[str],
    directory: Path,
    *,
    first: Sequence[int] | None = None,
    may_be_cut_off: bool = False,
) -> Iterator[Progress]:
    """Clients that write while the body runs, from `first` on. They all have begun when it is entered, and
    must have ended well unless the server may leave them."""
    path = directory / "progress"
    path.unlink(missing_ok=True)
    start = list(first or [0] * layout.clients)
    progress = Progress(path, layout.clients)
    with ExitStack() as stack:
        stack.callback(progress.close)
        clients = []
        for client in range(layout.clients):
            progress.tell(client, issued=start[client], acknowledged=start[client])
            told = json.dumps({"layout": asdict(layout), "client": client, "first": start[client]})
            log = directory / f"client-{client}.log"
            command: list[Argument] = [sys.executable, "-m", __name__, path, told, *addresses]
            process = Background(*command, log=log, cwd=Path(__file__).resolve().parents[2])
            clients.append(stack.enter_context(process))

        def begun() -> bool:
            assert all(process.rc is None for process in clients), [process.said() for process in clients]
            return all(now > before for now, before in zip(progress.acknowledged(), start, strict=True))

        wait_until(begun, "the clients' first writes", 30)
        try:
            yield progress
        finally:
            progress.stop()
            codes = [process.wait() for process in clients]
        if not may_be_cut_off:
            assert not any(codes), [process.said() for process in clients]
            assert progress.issued() == progress.acknowledged()


def client(path: Path, told: str, addresses: Sequence[str]) -> None:
    """The program of a client."""
    facts = json.loads(told)
    layout = Layout(**facts["layout"])
    me, number = facts["client"], facts["first"]
    progress = Progress(path, layout.clients)
    handles = []
    for address in addresses:
        handle = nbd.NBD()
        handle.connect_uri(address)
        handles.append(handle)
    places = [layout.place(me, slot) for slot in range(layout.slots)]
    while not progress.stopped:
        number += 1
        volume, offset = places[layout.slot(number)]
        progress.tell(me, issued=number)
        handles[volume].pwrite(block(number), offset)
        progress.tell(me, acknowledged=number)
    for handle in handles:
        handle.shutdown()


if __name__ == "__main__":
    client(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
