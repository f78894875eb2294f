"""fairness: whatever some clients ask for, and however much, another one's small requests are answered soon.

How it works      Clients send one kind of flood over several connections: small requests for large work, as
                  many as the server takes. A `WaitingClient`, a separate process, reads, writes
                  and connects, on another volume or the same one. The first blocks of the volume under attack
                  are in many pieces: every other one is a hole in its file, so that looking at them and
                  clearing them is much work. Other floods and victims use snapshots, and a volume that is a
                  clone of a clone, and so on.
Invariants        Q1 its worst wait is below 100 ms and a few times what it waited at worst in the second
                  before the flood, which is the machine's other work. A flood may be tried a few times: one
                  that makes others wait does so each time;
                  Q2 a flood fits in the server's memory: else it closes some of the connections.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, short_directory
from tests.support.proc import wait_until
from tests.support.raw_nbd import (
    FLUSH,
    MIB,
    OPT_STRUCTURED,
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
from tests.support.waiting_client import WaitingClient, Waits

pytestmark = [pytest.mark.alone, pytest.mark.slow]

CACHE = 5
NO_HOLE = 2
BLOCK = 4096
SIZE_MIB = 1024
PIECES_MIB = 128
PROMPTLY_MS = 100.0
NOISE = 3.0
TRIES = 6
QUIET_S = 1.0
CLONES = 20
LEFT_BEHIND = 1000
GONE_S = 40.0

Flood = Callable[[int], bytes]


def status(number: int) -> bytes:
    """BLOCK_STATUS of what is in many pieces."""
    return request(STATUS, number % 8 * 16 * MIB, 256 * MIB)


def trim(number: int) -> bytes:
    """TRIM of partitions, and sometimes of everything."""
    return request(TRIM, number % 16 * 64 * MIB, 64 * MIB if number % 8 else (SIZE_MIB - 960) * MIB)


def zero(_: int) -> bytes:
    """WRITE_ZEROES of everything."""
    return request(ZERO, 0, SIZE_MIB * MIB)


def allocated_zero(_: int) -> bytes:
    """WRITE_ZEROES of everything, which stays allocated."""
    return request(ZERO, 0, SIZE_MIB * MIB, flags=NO_HOLE)


def unaligned_zero(number: int) -> bytes:
    """WRITE_ZEROES that begins and ends within blocks."""
    return request(ZERO, number % 7 * 512 + 512, 200 * MIB)


def cache(_: int) -> bytes:
    """CACHE of everything."""
    return request(CACHE, 0, SIZE_MIB * MIB)


def large_read(number: int) -> bytes:
    """A read of much."""
    return request(READ, number % 120 * 8 * MIB, 8 * MIB)


def small_write(number: int) -> bytes:
    """A write of half a block, all to the same few blocks."""
    return request(WRITE, number % 4 * BLOCK + 512, 2048) + b"w" * 2048


def whole_write(number: int) -> bytes:
    """A write of a whole block, anywhere."""
    return request(WRITE, number * 7919 % (SIZE_MIB * 256) * BLOCK, BLOCK) + b"w" * BLOCK


def flush(_: int) -> bytes:
    """FLUSH."""
    return request(FLUSH, 0, 0)


def mixed(number: int) -> bytes:
    """All of these."""
    floods = (status, trim, zero, cache, medium_read, small_write, flush, whole_write, allocated_zero)
    return floods[number % len(floods)](number // len(floods))


def medium_read(number: int) -> bytes:
    """A read that a pool thread makes, and of which many fit in the server's memory."""
    return request(READ, number % 900 * MIB, MIB)


class Attacked:
    """A daemon with the volumes `v`, under attack, and `w`, and a snapshot of `v`."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.path = daemon.nbd_socket
        daemon.add_devices("base", "log", size="4G")
        for name, size in (("v", SIZE_MIB), ("w", 64)):
            body = {
                "name": name,
                "size": size * MIB,
                "processors": 2,
                "devices": ["base"],
                "log_devices": ["log"],
            }
            daemon.api.post("volumes", body=body)
        self.break_up()
        daemon.ok("snapshot", "create", "v", "--name", "old")

    def break_up(self) -> None:
        """Have every other block of the beginning written."""
        with Peer(self.path) as peer:
            peer.enter("v")
            for start in range(0, PIECES_MIB * MIB, 64 * 2 * BLOCK):
                offsets = [start + number * 2 * BLOCK for number in range(64)]
                peer.socket.sendall(b"".join(request(WRITE, at, BLOCK) + b"p" * BLOCK for at in offsets))
                assert not any(peer.reply().error for _ in offsets)

    def under(self, flood: Flood, victim: WaitingClient, connections: int, each: int, export: str) -> Waits:
        """The victim's waits while connections make so many requests each."""
        with ExitStack() as stack:
            peers = [stack.enter_context(Peer(self.path)) for _ in range(connections)]
            for peer in peers:
                enter(peer, export)
            victim.waits()
            threads = [threading.Thread(target=send, args=(peer, flood, each), daemon=True) for peer in peers]
            threads += [threading.Thread(target=take, args=(peer, each), daemon=True) for peer in peers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(100)
                assert not thread.is_alive(), "the flood has no end"
            return victim.waits()


def enter(peer: Peer, export: str) -> None:
    """Begin transmission, with all contexts that there are."""
    peer.greet()
    contexts = choose_contexts(export, "base:allocation", *(["qemu:dirty-bitmap:"] if export == "v" else []))
    peer.socket.sendall(option(OPT_STRUCTURED) + contexts + go(export))
    assert [peer.answers() for _ in range(3)] == [REP_ACK] * 3
    peer.socket.settimeout(100)


def send(peer: Peer, flood: Flood, each: int) -> None:
    """A connection's requests, in a few pieces."""
    for start in range(0, each, 64):
        peer.socket.sendall(b"".join(flood(number) for number in range(start, min(each, start + 64))))


def take(peer: Peer, each: int) -> None:
    """All their answers."""
    ended = 0
    while ended < each:
        head = peer.take(16)
        if head[:4] == b"\x67\x44\x66\x98":
            ended += 1
            continue
        length = int.from_bytes(peer.take(4), "big")
        while length:
            data = peer.socket.recv(min(length, 1 << 20))
            assert data, "the server closed"
            length -= len(data)
        ended += head[5] & 1


def clone_often(daemon: Daemon, path: Path) -> None:
    """Make volumes `c1` to `c20`: each is a clone of the one before, with some blocks of its own."""
    source = "v@old"
    for number in range(1, CLONES + 1):
        clone = f"c{number}"
        daemon.ok("volume", "clone", source, clone)
        with Peer(path) as peer:
            peer.enter(clone)
            offsets = range(number * 2 * BLOCK, 8 * MIB, 2 * CLONES * BLOCK)
            peer.socket.sendall(b"".join(request(WRITE, at, BLOCK) + b"c" * BLOCK for at in offsets))
            assert not any(peer.reply().error for _ in offsets)
        if number < CLONES:
            daemon.ok("snapshot", "create", clone, "--name", "s")
            source = f"{clone}@s"


@pytest.fixture(scope="module")
def attacked() -> Iterator[Attacked]:
    """One daemon for all attacks."""
    with short_directory() as directory, Daemon(directory) as daemon:
        yield Attacked(daemon)


@pytest.fixture(scope="module")
def chain(attacked: Attacked) -> None:
    """Clones of clones."""
    clone_often(attacked.daemon, attacked.path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["w", "v"])
@pytest.mark.parametrize(
    ("flood", "connections", "each", "export"),
    [
        (status, 4, 200, "v"),
        (status, 32, 50, "v"),
        (status, 16, 100, "v@old"),
        (cache, 16, 100, "v"),
        (trim, 16, 100, "v"),
        (zero, 16, 50, "v"),
        (allocated_zero, 16, 50, "v"),
        (unaligned_zero, 8, 50, "v"),
        (large_read, 4, 40, "v"),
        (small_write, 32, 500, "v"),
        (whole_write, 32, 500, "v"),
        (flush, 16, 500, "v"),
        (mixed, 4, 60, "v"),
    ],
)
def test_others_are_answered_soon_under_a_flood(
    attacked: Attacked, flood: Flood, connections: int, each: int, export: str, victim: str
) -> None:
    check_promptness(attacked, flood, connections, each, export, victim)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["v@old", "c20"])
@pytest.mark.parametrize(
    ("flood", "connections", "each", "export"),
    [
        (status, 64, 20, "c20"),
        (cache, 64, 2, "c20"),
        (zero, 64, 20, "c20"),
        (medium_read, 64, 20, "c20"),
    ],
)
def test_snapshots_and_long_chains_of_clones_are_as_fair(
    attacked: Attacked, chain: None, flood: Flood, connections: int, each: int, export: str, victim: str
) -> None:
    check_promptness(attacked, flood, connections, each, export, victim)


def check_promptness(
    attacked: Attacked, flood: Flood, connections: int, each: int, export: str, victim: str
) -> None:
    """Assert Q1."""
    waits = []
    with WaitingClient(attacked.path, victim, "r" if "@" in victim else "rwc") as client:
        for _ in range(TRIES):
            attacked.break_up()
            client.waits()
            time.sleep(QUIET_S)
            quiet_ms = client.waits().worst_ms
            flooded = attacked.under(flood, client, connections, each, export)
            waits.append((round(quiet_ms, 1), flooded))
            if flooded.worst_ms < PROMPTLY_MS + NOISE * quiet_ms:
                return
    pytest.fail(f"without the flood, and with it: {waits}")


def test_what_clients_have_asked_for_is_not_done_once_they_are_gone(daemon: Daemon) -> None:
    """Thousands of TRIMs of 4096 partitions take minutes; the clients leave before one has ended."""
    daemon.make_volume("v", size="4G", partition_size="1M")
    with ExitStack() as stack:
        for _ in range(4):
            peer = stack.enter_context(Peer(daemon.nbd_socket)).enter("v")
            peer.socket.sendall(request(TRIM, 0, (4 << 30) - BLOCK) * LEFT_BEHIND)
    wait_until(
        lambda: json.loads(daemon.ok("client", "list", "--json")) == [], "the end of its requests", GONE_S
    )
