"""A restart under a service manager that keeps file descriptors: clients see a pause, and nothing else."""

import array
import fcntl
import os
import random
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fio, nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until
from tests.support.raw_nbd import (
    FLUSH,
    MIB,
    READ,
    STATUS,
    WRITE,
    Peer,
    go,
    option,
    request,
)
from tests.support.service_manager import Manager

SIZE = 64 * MIB


@pytest.fixture
def manager(short_dir: Path) -> Iterator[Manager]:
    """A polyvold under a service manager, with a volume v."""
    with Manager(short_dir) as manager:
        manager.make_volume("v", size="64M", partition_size="1M")
        yield manager


def went_on(manager: Manager, export: str = "v") -> int:
    """How many connections the running polyvold says it has taken over."""
    for text in manager.events():
        if f" to {export} resumed after a pause of" in text:
            return int(text.split()[0])
    return 0


def test_a_client_goes_on_where_it_was(manager: Manager) -> None:
    manager.ok("snapshot", "create", "v", "--name", "s")
    with nbd.connect(manager.uri("v")) as live, nbd.connect(manager.uri("v@s")) as frozen:
        live.pwrite(b"before" * 512, 0)
        manager.restart()
        assert live.pread(6, 0) == b"before"
        assert frozen.pread(6, 0) == bytes(6)
        assert nbd.allocation(live, 1 << 20, 0)  # the selected context is still selected
        live.pwrite(b"after!" * 512, 0)
        live.flush()
        frozen.set_strict_mode(0)
        with pytest.raises(nbd.NbdError, match="not permitted"):
            frozen.pwrite(b"x" * 512, 0)
        assert (went_on(manager), went_on(manager, "v@s")) == (1, 1)
        assert manager.api.get("status")["daemon"]["connections"] == 2
    assert manager.stored == {}


def test_a_client_from_before_its_volume_grew_goes_on(manager: Manager) -> None:
    with nbd.connect(manager.uri("v")) as live:
        live.set_strict_mode(0)
        live.pwrite(b"before" * 512, SIZE - 4096)
        manager.ok("volume", "grow", "v", "--size", "96M")
        for written, read in ((b"1", b"\0"), (b"2", b"1")):
            manager.restart()
            assert went_on(manager) == 1
            assert live.pread(6, SIZE - 4096) == b"before"
            assert live.pread(4096, SIZE) == read * 4096
            live.pwrite(written * 4096, SIZE)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fio_verifies_through_ten_restarts(manager: Manager) -> None:
    manager.ok("snapshot", "create", "v", "--name", "s")
    log = manager.directory / "fio.log"
    settings = {"time_based": 1, "runtime": 20, "verify_backlog": 512}
    with fio.loading(manager.uri("v"), log, size="48M", timeout_s=300, **settings) as load:
        wait_until(lambda: (manager.directory / "v-log.img").stat().st_blocks > 8192, "fio's writes")
        for _ in range(10):
            manager.restart()
            assert load.rc is None, load.said()
            assert went_on(manager) == 1
    assert manager.stored == {}


def written(offset: int, turn: int) -> bytes:
    """What a writer writes at an offset in its turn."""
    return struct.pack("<QQ", offset, turn) * 256


@pytest.mark.slow
def test_many_requests_in_flight_are_each_answered_once(manager: Manager) -> None:
    """Several libnbd connections, each with many requests in flight all the time, through five restarts."""
    stop = threading.Event()
    faults: list[BaseException] = []
    turns = [0] * 4

    def work(index: int) -> None:
        chosen = random.Random(index)
        try:
            with nbd.connect(manager.uri("v")) as handle:
                region = SIZE // len(turns)
                while not stop.is_set():
                    turns[index] += 1
                    offsets = [region * index + 4096 * chosen.randrange(region // 4096) for _ in range(64)]
                    places = sorted(set(offsets))
                    cookies = [
                        handle.aio_pwrite(nbd_buffer(written(offset, turns[index])), offset)
                        for offset in places
                    ]
                    while handle.aio_in_flight() > 0:
                        handle.poll(10_000)
                    assert all([handle.aio_command_completed(cookie) for cookie in cookies])
                    for offset in places[:8]:
                        assert handle.pread(4096, offset) == written(offset, turns[index])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(turns))]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: bool(faults) or all(turns), "the clients' beginning", 20)
        for _ in range(5):
            manager.restart()
            assert (went_on(manager), faults) == (len(turns), [])
            before = list(turns)
            wait_until(
                lambda before=before: bool(faults) or all(map(int.__gt__, turns, before)),  # type: ignore[misc]
                "the clients' going on",
                20,
            )
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not faults, faults


def nbd_buffer(data: bytes) -> object:
    """libnbd's own kind of buffer."""
    import nbd as libnbd

    return libnbd.Buffer.from_bytearray(bytearray(data))


@pytest.mark.slow
@pytest.mark.parametrize(("length", "structured"), [(512, True), (20_000, False), (5 * MIB, True)])
def test_a_request_that_is_cut_anywhere_goes_on(manager: Manager, length: int, structured: bool) -> None:
    data = os.urandom(length)
    whole = request(WRITE, 4096, length, cookie=7) + data
    cuts = (3, 28, 28 + length // 2, len(whole) - 1)
    with Peer(manager.nbd_socket) as peer:
        enter(peer, structured)
        for cut in cuts:
            peer.socket.sendall(whole[:cut])
            wait_read(manager, peer)
            manager.restart()
            assert went_on(manager) == 1
            peer.socket.sendall(whole[cut:])
            assert simple(peer) == (7, 0)
            peer.socket.sendall(request(READ, 4096, 512, cookie=8))
            assert read_of(peer, 8, 512, structured) == data[:512]
    assert nbd.read_all(manager.uri("v"))[4096 : 4096 + length] == data


def enter(peer: Peer, structured: bool) -> None:
    """Begin transmission."""
    if structured:
        peer.enter("v")
        return
    peer.greet()
    peer.socket.sendall(go("v"))
    assert peer.answers() == 1


def wait_read(manager: Manager, peer: Peer) -> None:
    """Wait until the server has read all that the peer has sent."""

    def unread() -> int:
        left = array.array("i", [0])
        fcntl.ioctl(peer.socket, termios.TIOCOUTQ, left)
        return left[0]

    wait_until(lambda: unread() == 0, "the server's reading", 20)


def simple(peer: Peer) -> tuple[int, int]:
    """A simple reply without data: cookie and error."""
    magic, error, cookie = struct.unpack(">IIQ", peer.take(16))
    assert magic == 0x67446698
    return cookie, error


def read_of(peer: Peer, cookie: int, length: int, structured: bool) -> bytes:
    """The answer to a read."""
    if structured:
        reply = peer.reply()
        assert (reply.cookie, reply.error) == (cookie, 0)
        return reply.data[8:]
    assert simple(peer) == (cookie, 0)
    return peer.take(length)


def test_a_refused_write_that_is_cut_is_answered_once_and_consumed(manager: Manager) -> None:
    """Past the end: refused with ENOSPC, its payload thrown away, across two restarts."""
    with Peer(manager.nbd_socket) as peer:
        peer.enter("v")
        peer.socket.sendall(request(WRITE, SIZE, 3 * MIB, cookie=5) + bytes(MIB))
        for _ in range(2):
            wait_read(manager, peer)
            manager.restart()
            peer.socket.sendall(bytes(MIB))
        peer.socket.sendall(request(FLUSH, 0, 0, cookie=6))
        assert simple(peer) == (5, 28)
        assert simple(peer) == (6, 0)


def test_an_overlong_write_is_thrown_away_and_its_connection_ends(manager: Manager) -> None:
    """Longer than any write may be: a megabyte of it is consumed, then it is refused, across a restart."""
    with Peer(manager.nbd_socket) as peer:
        peer.enter("v")
        peer.socket.sendall(request(WRITE, 0, 40 * MIB, cookie=5) + bytes(MIB // 2))
        wait_read(manager, peer)
        manager.restart()
        assert went_on(manager) == 1
        peer.socket.sendall(bytes(MIB // 2))
        assert simple(peer) == (5, 22)
        assert closed(peer)


@pytest.mark.slow
def test_requests_that_wait_for_memory_go_on(manager: Manager) -> None:
    """More reads than a connection may have under way; their client begins to read during the stop."""
    count = 64
    with Peer(manager.nbd_socket) as peer:
        peer.enter("v")
        peer.socket.sendall(b"".join(request(READ, 0, 4 * MIB, cookie=n) for n in range(count)))
        time.sleep(0.5)
        found: list[int] = []

        def read() -> None:
            time.sleep(0.5)
            found.extend(peer.reply().cookie for _ in range(count))

        reader = threading.Thread(target=read)
        reader.start()
        manager.restart()
        reader.join(60)
        assert went_on(manager) == 1
    assert sorted(found) == list(range(count))


def test_requests_sent_while_nobody_runs_wait_in_the_socket(manager: Manager) -> None:
    with Peer(manager.nbd_socket) as peer:
        peer.enter("v")
        assert set(manager.stop_and_keep()) == {"connection-1", "hand-over"}
        peer.socket.sendall(request(WRITE, 0, 512, cookie=1) + b"w" * 512)
        peer.socket.sendall(request(READ, 0, 512, cookie=2) + request(STATUS, 0, MIB, cookie=3))
        manager.start()
        assert simple(peer) == (1, 0)
        replies = {reply.cookie: reply for reply in (peer.reply(), peer.reply())}
        assert replies[2].data[8:] == b"w" * 512
        assert replies[3].error == 0
        assert "resumed after a pause of" in " ".join(manager.events())


@pytest.mark.slow
def test_handshakes_that_have_begun_end_before_the_hand_over(manager: Manager) -> None:
    """Clients that come and go all the time: none sees an error, whatever a restart interrupts."""
    stop = threading.Event()
    faults: list[BaseException] = []
    served = [0]

    def visit() -> None:
        while not stop.is_set():
            try:
                with nbd.connect(manager.uri("v")) as handle:
                    handle.pread(512, 0)
                    handle.shutdown()
                served[0] += 1
            except BaseException as error:
                faults.append(error)
                return

    threads = [threading.Thread(target=visit) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            before = served[0]
            manager.restart()
            wait_until(lambda: bool(faults) or served[0] > before + 3, "visits", 20)  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not faults, faults


def closed(peer: Peer) -> bool:
    """Whether the server has closed, soon."""
    peer.socket.settimeout(10)
    try:
        return peer.socket.recv(1 << 20) == b""
    except ConnectionError:
        return True


def test_a_volume_that_is_gone_or_another_closes_its_connections(manager: Manager) -> None:
    manager.make_volume("other", size="8M", partition_size="1M")
    with Peer(manager.nbd_socket) as peer, Peer(manager.nbd_socket) as kept:
        peer.enter("other")
        kept.enter("v")
        manager.stop_and_keep()
        with Without(manager) as aside:
            aside.ok("volume", "delete", "other", "--yes")
            names = {"devices": ["other-0", "other-1"], "log_devices": ["other-log"]}
            aside.api.post("volumes", body={"name": "other", "size": 8 * MIB, **names})
        manager.start()
        assert closed(peer)
        kept.socket.sendall(request(READ, 0, 512, cookie=2))
        assert kept.reply().error == 0
        assert any("no longer there" in text for text in manager.events())


class Without:
    """The same state served without the manager, for a while."""

    def __init__(self, manager: Manager) -> None:
        self.daemon = Daemon(manager.directory, "--nbd-socket", str(manager.directory / "other.sock"))
        self.control = manager.control_socket.rename(manager.directory / "kept.sock")
        manager.forget_devices()

    def __enter__(self) -> Daemon:
        return self.daemon.__enter__()

    def __exit__(self, *_: object) -> None:
        self.daemon.stop()
        self.control.rename(self.daemon.control_socket)


def damage(manager: Manager, offset: int, data: bytes) -> None:
    """Change what was handed over."""
    os.pwrite(manager.stored["hand-over"], data, offset)


@pytest.mark.parametrize(
    ("offset", "data", "said"),
    [
        (8, b"\2", "in version 2, which this polyvol does not know"),
        (60, b"\xff", "is not whole"),
        (0, b"", "nothing was handed over with them"),
    ],
)
def test_what_cannot_be_understood_closes_all_connections(
    manager: Manager, offset: int, data: bytes, said: str
) -> None:
    with Peer(manager.nbd_socket) as peer:
        peer.enter("v")
        manager.stop_and_keep()
        if data:
            damage(manager, offset, data)
        else:
            os.close(manager.stored.pop("hand-over"))
        manager.start()
        assert closed(peer)
        assert any(said in text for text in manager.events()), manager.events()


def test_connections_are_taken_over_once(manager: Manager) -> None:
    """A polyvold that is killed after it has taken them over, before the manager is notified of that."""
    with Peer(manager.nbd_socket) as peer:
        peer.enter("v")
        kept = {name: os.dup(number) for name, number in manager.stop_and_keep().items()}
        manager.start()
        peer.socket.sendall(request(READ, 0, 512, cookie=2)[:9])
        wait_read(manager, peer)
        manager.kill()
        manager.stored |= kept
        manager.start()
        assert closed(peer)
        assert any("taken over once already" in text for text in manager.events())


@pytest.mark.slow
def test_a_start_that_fails_leaves_them_for_the_next(manager: Manager) -> None:
    with Peer(manager.nbd_socket) as peer:
        peer.enter("v")
        manager.stop_and_keep()
        kept = set(manager.stored)
        with (manager.state_dir / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert manager.launch().wait() == 1
        assert set(manager.stored) == kept
        manager.start()
        assert went_on(manager) == 1
        peer.socket.sendall(request(READ, 0, 512, cookie=2))
        assert peer.reply().error == 0


def test_a_client_that_hangs_up_meanwhile_is_forgotten(manager: Manager) -> None:
    with Peer(manager.nbd_socket) as stays:
        stays.enter("v")
        with Peer(manager.nbd_socket) as peer:
            peer.enter("v")
            manager.stop_and_keep()
        manager.start()
        assert went_on(manager) == 1
        stays.socket.sendall(request(READ, 0, 512, cookie=2))
        assert stays.reply().error == 0


@pytest.mark.slow
def test_a_client_that_never_reads_is_closed_and_holds_nobody_up_for_long(manager: Manager) -> None:
    with Peer(manager.nbd_socket) as deaf, Peer(manager.nbd_socket) as good:
        deaf.enter("v")
        good.enter("v")
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.pour(b"".join(request(READ, 0, 4 * MIB, cookie=n) for n in range(64)))
        time.sleep(0.3)
        begun = time.monotonic()
        assert set(manager.stop_and_keep()) == {"connection-1", "hand-over"}
        assert time.monotonic() - begun < 8
        manager.start()
        good.socket.sendall(request(READ, 0, 512, cookie=2))
        assert good.reply().error == 0
        assert went_on(manager) == 1
    assert "closed 1 connection to v: requests or replies did not end in time" in manager.said()


def test_without_a_store_connections_are_closed(short_dir: Path) -> None:
    with Manager(short_dir, stores=False) as manager:
        manager.make_volume("v", size="8M", partition_size="1M")
        with Peer(manager.nbd_socket) as peer:
            peer.enter("v")
            manager.restart()
            assert closed(peer)


def test_an_idle_handshake_does_not_hold_up_a_restart(manager: Manager) -> None:
    with Peer(manager.nbd_socket) as idle:
        idle.greet()
        idle.socket.sendall(option(99)[:5])
        begun = time.monotonic()
        manager.restart()
        assert time.monotonic() - begun < 10
        assert closed(idle)
