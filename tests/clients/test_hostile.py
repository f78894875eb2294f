"""hostile: what peers have done to other NBD servers, done to a real polyvold from outside.

How it works      An attack holds its sockets while a good client connects, negotiates and reads, several
                  times, and is timed. After each attack the daemon lives, serves, and has let go of what it
                  held. One daemon takes all attacks, one after another, but for the one that ends with its
                  stop.
Invariants        X1 the daemon never ends; X2 a good client is served within 100 ms while an attack goes on:
                  the median of several, because the machine has other work too; X3 the daemon's resident
                  memory stays below 512 MiB.
"""

import resource
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon, short_directory
from tests.support.proc import wait_until

PROMPTLY_S = 0.1
RESIDENT_MIB_MAX = 512
IDLE_SOCKETS = 10_000
PATIENCE_S = 20.0

OPTION_MAGIC = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
REP_ACK = 1
OPT_EXPORT_NAME, OPT_LIST, OPT_GO, OPT_STRUCTURED, OPT_SET_CONTEXT = 1, 3, 7, 8, 10
READ, WRITE, TRIM, ZERO, STATUS = 0, 1, 4, 6, 7
MIB = 1 << 20


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    """An option, whose length may be a lie."""
    return struct.pack(">QII", OPTION_MAGIC, number, len(data) if length is None else length) + data


def go(export: str) -> bytes:
    """The option that enters transmission."""
    name = export.encode()
    return option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))


def choose_allocation(export: str) -> bytes:
    """The options that make BLOCK_STATUS possible."""
    name, query = export.encode(), b"base:allocation"
    data = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(query)) + query
    return option(OPT_STRUCTURED) + option(OPT_SET_CONTEXT, data)


def request(command: int, offset: int, length: int, *, cookie: int = 1) -> bytes:
    """A request's header."""
    return struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, cookie, offset, length)


class Peer:
    """A raw socket to the server."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(str(path))  # blocking: with a timeout a full backlog would be an error
            self.socket.settimeout(PATIENCE_S)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def take(self, length: int) -> bytes:
        """Exactly so many bytes."""
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            assert piece, "the server closed"
            data += piece
        return bytes(data)

    def greet(self) -> None:
        """Take the greeting and answer it."""
        assert self.take(18).startswith(b"NBDMAGIC")
        self.socket.sendall(struct.pack(">I", 3))

    def answers(self) -> int:
        """Take the replies to one option; the last one's kind."""
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind == REP_ACK or kind >> 31:
                return int(kind)

    def enter(self, export: str) -> Self:
        """Begin transmission, with everything that can be negotiated."""
        self.greet()
        self.socket.sendall(choose_allocation(export) + go(export))
        assert [self.answers() for _ in range(3)] == [REP_ACK] * 3
        return self

    def pour(self, data: bytes) -> None:
        """Send as much as the server takes now."""
        self.socket.setblocking(False)
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while data:
                data = data[self.socket.send(data) :]


class Victim:
    """A daemon under attack."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.export = daemon.make_volume(size="256M")
        self.path = daemon.nbd_socket
        self.uri = daemon.uri(self.export)

    def resident_mib(self) -> float:
        """The daemon's resident memory now."""
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def seconds(self) -> float:
        """How long a good client takes from connecting to the data of a read."""
        begun = time.monotonic()
        while True:
            try:
                with nbd.connect(self.uri) as handle:
                    assert len(handle.pread(4096, 0)) == 4096
                return time.monotonic() - begun
            except nbd.NbdError as error:
                # A storm of others fills the socket's backlog now and then: asking again takes time too.
                if "backlog" not in str(error):
                    raise
                time.sleep(0.001)

    def peers(self, stack: ExitStack, count: int, *, enter: bool = True) -> list[Peer]:
        """So many peers, closed with the stack."""
        peers = [stack.enter_context(Peer(self.path)) for _ in range(count)]
        return [peer.enter(self.export) for peer in peers] if enter else peers

    def holds_out(self) -> None:
        """X1, X2 and X3 while an attack goes on."""
        took, resident = [], []
        for _ in range(9):
            took.append(self.seconds())
            resident.append(self.resident_mib())
        print(f"median {statistics.median(took) * 1000:.1f} ms, {max(resident):.0f} MiB")
        assert statistics.median(took) < PROMPTLY_S, took
        assert max(resident) < RESIDENT_MIB_MAX
        assert self.daemon.running, self.daemon.said()

    def recovers(self) -> None:
        """Nothing of the attack is left: no connection has a thread any more."""

        def alone() -> bool:
            tasks = Path(f"/proc/{self.daemon.pid}/task")
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                names = [(task / "comm").read_text() for task in tasks.iterdir()]
                return not any(name.startswith("nbd-reader") for name in names)
            return False

        wait_until(alone, "the end of every connection", PATIENCE_S)
        self.holds_out()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    """A daemon with a volume, which takes one attack after another."""
    with short_directory() as directory, Daemon(directory) as daemon:
        yield Victim(daemon)


@contextmanager
def descriptors(count: int) -> Iterator[int]:
    """So many descriptors for this process, or as many as it may have; how many sockets that leaves."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(count + 500, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, before[0]), before[1]))
    try:
        yield min(count, wanted - 500)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def lying_lengths(export: str) -> list[bytes]:
    """Handshakes whose lengths lie: each must end itself alone."""
    huge = 0xFFFFFFFF
    flags = struct.pack(">I", 3)
    name = export.encode()
    return [
        flags + option(OPT_EXPORT_NAME, b"x", length=huge),
        flags + option(OPT_GO, struct.pack(">I", huge) + b"x"),
        flags + option(OPT_GO, b"x", length=huge),
        flags + option(OPT_LIST, b"", length=0x80000000),
        flags + option(OPT_SET_CONTEXT, struct.pack(">I", len(name)) + name + struct.pack(">I", huge)),
        flags + option(OPT_SET_CONTEXT, b"\xff" * 20_000),
        flags + option(OPT_GO, struct.pack(">I", 4096) + b"n" * 4096 + b"\0\0"),
        struct.pack(">I", huge),
        b"GET / HTTP/1.1\r\n\r\n" * 40,
    ]


def test_lengths_that_lie_end_only_their_own_connection(victim: Victim) -> None:
    """nbd-server CVE-2022-26495, -26496; qemu CVE-2017-15118, -15119, CVE-2020-10761."""
    with ExitStack() as stack:
        for attack in lying_lengths(victim.export) * 5:
            peer = stack.enter_context(Peer(victim.path))
            peer.pour(attack)
        victim.holds_out()
    victim.recovers()


def test_clients_that_leave_anywhere_leave_nothing_behind(victim: Victim) -> None:
    """nbd-server CVE-2013-7441; qemu CVE-2017-9524; an assertion of nbdkit's in mid-reply."""
    payload = request(WRITE, 0, 500) + b"w" * 500 + request(WRITE, 1 << 40, 32 * MIB) + b"x" * 99
    talk = struct.pack(">I", 3) + option(OPT_STRUCTURED) + go(victim.export)
    talk += request(READ, 0, 4 * MIB) + payload
    for cut in range(0, len(talk), 3):
        with Peer(victim.path) as peer:
            peer.pour(talk[:cut])
    for taken in (1, 17, 100_000):
        with Peer(victim.path).enter(victim.export) as peer:
            peer.pour(request(READ, 0, MIB) * 50)
            peer.socket.settimeout(PATIENCE_S)
            peer.take(taken)
    victim.recovers()


def test_idle_sockets_delay_nobody(victim: Victim) -> None:
    """qemu CVE-2024-7409, and an idle socket that stopped nbdkit's Python plugin: 10,000 of them."""
    with descriptors(IDLE_SOCKETS) as count, ExitStack() as stack:
        begun = time.monotonic()
        idle = victim.peers(stack, count, enter=False)
        victim.holds_out()
        for peer in (idle[0], idle[-1]):
            peer.take(18)
            assert peer.socket.recv(1) == b"", "ten seconds are all that a handshake gets"
        assert time.monotonic() - begun < PATIENCE_S
    victim.recovers()


def test_handshakes_full_of_data_stay_within_memory(victim: Victim) -> None:
    """Thousands of options that never end, and lists that nobody collects."""
    with descriptors(4000) as count, ExitStack() as stack:
        endless = option(OPT_SET_CONTEXT, b"x" * 16_000, length=16_384)
        for number, peer in enumerate(victim.peers(stack, count, enter=False)):
            peer.pour(struct.pack(">I", 3) + (endless if number % 2 else option(OPT_LIST) * 200))
        victim.holds_out()
    victim.recovers()


def reads(number: int) -> bytes:
    """Large reads, never collected."""
    return request(READ, (number % 7) * 32 * MIB, 32 * MIB) * 100


def small_reads(_number: int) -> bytes:
    """Very many small reads, never collected."""
    return request(READ, 0, 4096) * 5000


def writes(number: int) -> bytes:
    """Large writes, half of them without their payload."""
    if number % 2:
        return request(WRITE, (number % 7) * 32 * MIB, 32 * MIB) + bytes(8 * MIB)
    return (request(WRITE, number * MIB, MIB) + bytes(MIB)) * 8


def wide(_number: int) -> bytes:
    """Requests of few bytes that reach far."""
    return (request(TRIM, 0, 256 * MIB) + request(ZERO, 0, 256 * MIB) + request(STATUS, 0, 256 * MIB)) * 400


@pytest.mark.parametrize("attack", [reads, small_reads, writes, wide])
def test_floods_delay_nobody_and_stay_within_memory(victim: Victim, attack: Callable[[int], bytes]) -> None:
    """Memory of 1 to 3 GiB, and others delayed by seconds, measured on the stock servers."""
    with ExitStack() as stack:
        for number, peer in enumerate(victim.peers(stack, 64)):
            peer.pour(attack(number))
        victim.holds_out()
    victim.recovers()


def test_connecting_and_leaving_without_end_delays_nobody(victim: Victim) -> None:
    """Connections that come and go as fast as they can, in mid-reply."""
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            with suppress(OSError), Peer(victim.path) as peer:
                peer.pour(struct.pack(">I", 3) + go(victim.export) + request(READ, 0, MIB))

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        victim.holds_out()
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    victim.recovers()


def test_idle_connections_cost_no_time(victim: Victim) -> None:
    """Threads of the NBD server sleep while nothing happens, connections in transmission or not."""

    def wakes() -> dict[str, int]:
        tasks = Path(f"/proc/{victim.daemon.pid}/task").iterdir()
        found = {}
        for task in tasks:
            name = (task / "comm").read_text().strip()
            if name.startswith("nbd-"):
                status = (task / "status").read_text()
                found[f"{name} {task.name}"] = int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
        return found

    with ExitStack() as stack:
        victim.peers(stack, 8)
        time.sleep(0.5)
        before = wakes()
        assert len(before) == 10, "two threads of the server, and one for each connection"
        time.sleep(1.5)
        assert wakes() == before
    victim.recovers()


def test_it_stops_with_attacks_going_on(daemon: Daemon) -> None:
    """A race at shutdown, qemu CVE-2024-7409: the daemon ends well, and soon."""
    victim = Victim(daemon)
    with ExitStack() as stack:
        victim.peers(stack, 200, enter=False)
        for number, peer in enumerate(victim.peers(stack, 16)):
            peer.pour((reads, writes, small_reads)[number % 3](number))
        begun = time.monotonic()
        daemon.stop()
        assert time.monotonic() - begun < PATIENCE_S
