"""hostile: what peers have done to other NBD servers, done to a real polyvold from outside.

How it works      An attack holds its sockets while a good client connects, negotiates and reads, several
                  times, and is timed. After each attack the daemon lives, serves, and has freed what it
                  held. One daemon takes all attacks, one after another, but for the one that ends with its
                  stop.
Invariants        X1 the daemon never ends; X2 a good client is served within 100 ms while an attack goes on,
                  with 4 KiB from connecting on, and with 1 MiB either way: the median of several, because the
                  machine has other work too; X3 the daemon's resident memory stays below 512 MiB.
"""

import errno
import resource
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon, short_directory
from tests.support.proc import wait_until
from tests.support.raw_nbd import (
    FLUSH,
    MIB,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_LIST,
    OPT_SET_CONTEXT,
    OPT_STRUCTURED,
    PATIENCE_S,
    READ,
    REP_ACK,
    STATUS,
    TRIM,
    WRITE,
    ZERO,
    Peer,
    choose_contexts,
    go,
    option,
    request,
)

pytestmark = pytest.mark.alone

PROMPTLY_S = 0.1
GRACE_S = 0.04
"""The shortest of the engine's GRACE_PERIODS: a client that does nothing for so long may be closed."""
RESIDENT_MIB_MAX = 512
IDLE_SOCKETS = 10_000
GOOD_AT = 255 * MIB
COMINGS = 2000


def starved_s() -> float:
    """How long this thread has waited for a processor so far."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


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

    def files(self) -> int:
        """How many files and sockets the daemon has open."""
        return len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))

    def seconds(self) -> list[float]:
        """How long a good client takes from connecting to a read's data; to read 1 MiB; to write it."""
        begun = time.monotonic()
        while True:
            starved = starved_s()
            try:
                with nbd.connect(self.uri) as handle:
                    assert len(handle.pread(4096, 0)) == 4096
                    times = [begun, time.monotonic()]
                    assert len(handle.pread(MIB, MIB)) == MIB
                    times.append(time.monotonic())
                    handle.pwrite(bytes(MIB), GOOD_AT)
                    times.append(time.monotonic())
                return [after - before for before, after in pairwise(times)]
            except nbd.NbdError as error:
                # A storm of others sometimes fills the socket's backlog: asking again takes time too.
                # Without a processor a client does nothing, and is closed like one that does not want to.
                if "backlog" not in str(error) and starved_s() - starved < GRACE_S:
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
        medians = [statistics.median(times) for times in zip(*took, strict=True)]
        print(f"medians {[round(median * 1000, 1) for median in medians]} ms, {max(resident):.0f} MiB")
        assert max(medians) < PROMPTLY_S, took
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


@pytest.mark.slow
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


def test_requests_that_cannot_be_served_are_refused_one_by_one(victim: Victim) -> None:
    """Past the end, of no bytes, of 4 GiB, unknown flags, unknown commands; the next one is served."""
    size, none, huge = 256 * MIB, 0, 0xFFFFFFFF
    refused = [
        (request(READ, size, 1), errno.EINVAL),
        (request(READ, size - 4095, 4096), errno.EINVAL),
        (request(READ, 2**64 - 1, 2), errno.EINVAL),
        (request(READ, 0, none), errno.EINVAL),
        (request(READ, 0, huge), errno.EINVAL),
        (request(WRITE, size - 1, 2) + b"xx", errno.ENOSPC),
        (request(WRITE, 0, none), errno.EINVAL),
        (request(TRIM, 0, huge), errno.EINVAL),
        (request(TRIM, 0, none), errno.EINVAL),
        (request(ZERO, 0, huge), errno.ENOSPC),
        (request(ZERO, 2**64 - 1, huge), errno.ENOSPC),
        (request(STATUS, 0, huge), errno.EINVAL),
        (request(STATUS, size, 1), errno.EINVAL),
        (request(STATUS, 0, none), errno.EINVAL),
        (request(FLUSH, 0, 1), errno.EINVAL),
        (request(READ, 0, 1, flags=0x8000), errno.EINVAL),
        (request(WRITE, 0, 1, flags=2) + b"x", errno.EINVAL),
        *((request(command, 0, 1), errno.EINVAL) for command in (8, 99, 0xFFFF)),
    ]
    with Peer(victim.path).enter(victim.export) as peer:
        for bad, error in refused:
            peer.socket.sendall(bad + request(READ, 0, 5, cookie=2))
            assert peer.reply()[:2] == (1, error), bad
            cookie, error, data = peer.reply()
            assert (cookie, error, len(data)) == (2, 0, 13)
    victim.recovers()


def test_block_status_stays_within_what_was_asked(victim: Victim) -> None:
    """nbdkit CVE-2025-47711, -47712: all there is, with unknown contexts, and one many times."""
    with Peer(victim.path) as peer:
        peer.greet()
        contexts = ["base:allocation"] * 1500 + ["qemu:dirty-bitmap:x", "base:", "", "x" * 4096]
        peer.socket.sendall(
            option(OPT_STRUCTURED) + choose_contexts(victim.export, *contexts) + go(victim.export)
        )
        assert [peer.answers() for _ in range(3)] == [REP_ACK] * 3
        for offset, length in ((0, 256 * MIB), (255 * MIB, MIB), (4095, 2), (256 * MIB - 1, 1)):
            peer.socket.sendall(request(STATUS, offset, length))
            _, error, payload = peer.reply()
            context, *extents = struct.unpack(f">{len(payload) // 4}I", payload)
            assert (error, context) == (0, 1)
            assert extents
            assert all(extents[::2])
            assert sum(extents[::2]) <= length
    victim.recovers()


@pytest.mark.slow
def test_clients_that_stop_in_the_middle_of_a_request_harm_nobody(victim: Victim) -> None:
    """A header without its end, payloads without theirs: nothing of them is written."""
    with ExitStack() as stack:
        good = Peer(victim.path).enter(victim.export)
        stack.enter_context(good)
        good.socket.sendall(request(WRITE, 0, MIB) + b"g" * MIB)
        assert good.reply().error == 0
        for number, peer in enumerate(victim.peers(stack, 60)):
            length = (512, 40_000, 32 * MIB)[number % 3]
            peer.pour(
                request(WRITE, 0, length) + b"b" * (length // 2)
                if number % 4
                else request(WRITE, 0, 512)[:20]
            )
        victim.holds_out()
    victim.recovers()
    assert nbd.read_all(victim.uri)[:MIB] == b"g" * MIB


def test_coming_and_going_leaves_nothing_open_and_no_memory(victim: Victim) -> None:
    """Thousands of connections, each dropped somewhere else."""
    talk = struct.pack(">I", 3) + option(OPT_STRUCTURED) + go(victim.export) + request(READ, 0, 70_000)
    talk += request(WRITE, 0, 100_000) + b"w" * 99_999

    def come_and_go() -> None:
        for number in range(COMINGS):
            with Peer(victim.path) as peer:
                peer.pour(talk[: number * len(talk) // COMINGS])

    come_and_go()
    victim.recovers()
    files, resident = victim.files(), victim.resident_mib()
    come_and_go()
    victim.recovers()
    wait_until(lambda: victim.files() <= files, "the end of every socket", PATIENCE_S)
    assert victim.resident_mib() < resident + 16


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


@pytest.mark.parametrize("attack", [reads, small_reads, pytest.param(writes, marks=pytest.mark.slow), wide])
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


@pytest.mark.slow
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
