"""test_frontends: polyvold by itself and polyvold behind nbdkit give the same answers.

How it works      Two daemons with equal volumes get the same random requests, good and bad, sent by libnbd
                  with its own checks turned off; bytes, errnos and block status must agree.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.clients.system import unguarded
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import has_ended, wait_until
from tests.support.raw_nbd import READ, Peer, request as raw_request

MIB = 1 << 20
SIZE = 8 * MIB
Answer = tuple[str, bytes]


@pytest.fixture
def both(make_daemon: Callable[..., Daemon]) -> tuple[Daemon, Daemon]:
    """The native front-end and nbdkit's."""
    daemons = make_daemon(), make_daemon("--frontend", "nbdkit")
    for daemon in daemons:
        daemon.make_volume("v", size="8M", partition_size="1M")
    return daemons


def answer(call: Callable[[], bytes | bytearray | None]) -> Answer:
    """An errno's name, or the bytes that came."""
    try:
        return "", bytes(call() or b"")
    except nbd.NbdError as error:
        return error.errno or str(error), b""


def status(handle: Any, length: int, offset: int) -> bytes:
    """Block status as text, runs of the same kind joined: servers may split them as they like."""
    runs: list[list[int]] = []
    for run, flags in nbd.allocation(handle, length, offset):
        if runs and runs[-1][1] == flags:
            runs[-1][0] += run
        else:
            runs.append([run, flags])
    return repr(runs).encode()


def request(draw: random.Random) -> Callable[[Any], Answer]:
    """A random request, sometimes out of range."""
    kind = draw.choice(
        ["read", "read", "write", "write", "write", "zero", "trim", "flush", "status", "cache"]
    )
    offset = draw.choice([draw.randrange(SIZE), draw.randrange(SIZE // 4096) * 4096])
    length = draw.choice([1, 512, 4096, 4097, 65536, draw.randrange(1, 2 * MIB)])
    if draw.random() < 0.9:
        length = min(length, SIZE - offset)
    data = draw.randbytes(length)
    fua = draw.choice([0, 1])
    more = draw.choice([0, 2, 16, 18])
    sent: dict[str, Callable[[Any], bytes | bytearray | None]] = {
        "read": lambda handle: handle.pread(length, offset),
        "write": lambda handle: handle.pwrite(data, offset, fua),
        "zero": lambda handle: handle.zero(length, offset, fua | more),
        "trim": lambda handle: handle.trim(length, offset, fua),
        "flush": lambda handle: handle.flush(),
        "status": lambda handle: status(handle, length, offset),
        "cache": lambda handle: handle.cache(length, offset),
    }
    return lambda handle: answer(lambda: sent[kind](handle))


def same_answers(both: tuple[Daemon, Daemon], export: str, seed: int, count: int) -> None:
    draw = random.Random(seed)
    with ExitStack() as stack:
        handles = [unguarded(daemon.uri(export)) for daemon in both]
        for handle in handles:
            stack.callback(end, handle)
        for number in range(count):
            send = request(draw)
            native, nbdkit = (send(handle) for handle in handles)
            said = f"{native[0]!r}, and nbdkit {nbdkit[0]!r}"
            assert native == nbdkit, f"request {number} on {export}: {said}"


def end(handle: Any) -> None:
    """Disconnect, though the server may have left."""
    with suppress(nbd.NbdError):
        handle.shutdown()


@pytest.mark.slow
def test_the_same_requests_get_the_same_answers(both: tuple[Daemon, Daemon]) -> None:
    same_answers(both, "v", 11, 300)
    for daemon in both:
        daemon.ok("snapshot", "create", "v", "--name", "s")
    same_answers(both, "v", 12, 300)
    same_answers(both, "v@s", 13, 200)
    for export in ("v", "v@s"):
        assert nbd.read_all(both[0].uri(export)) == nbd.read_all(both[1].uri(export))
    for daemon in both:
        daemon.restart()
    assert nbd.read_all(both[0].uri("v")) == nbd.read_all(both[1].uri("v"))


@pytest.mark.slow
def test_both_say_the_same_of_an_export(both: tuple[Daemon, Daemon]) -> None:
    for daemon in both:
        daemon.ok("snapshot", "create", "v", "--name", "s")
        assert nbd.export_names(daemon.nbd_socket) == {"v", "v@s"}
    told_of = ["export-size", "is_read_only", "can_flush", "can_fua", "can_multi_conn", "can_cache"]
    told_of += ["can_trim", "can_zero", "can_fast_zero", "block_size_minimum", "block_size_maximum"]
    for export in ("v", "v@s"):
        native, nbdkit = (nbd.info(daemon.uri(export)) for daemon in both)
        assert {key: native.get(key) for key in told_of} == {key: nbdkit.get(key) for key in told_of}, export
    for daemon in both:
        with pytest.raises(nbd.NbdError), nbd.connect(daemon.uri("nobody")):
            pass


@pytest.mark.slow
def test_a_long_write_that_is_refused_is_read_to_its_end_first(both: tuple[Daemon, Daemon]) -> None:
    """A reply to a request that the client is still sending would end libnbd's connection."""
    for daemon in both:
        daemon.ok("snapshot", "create", "v", "--name", "s")
        refused_at_its_end(daemon)


def refused_at_its_end(daemon: Daemon) -> None:
    with ExitStack() as stack:
        handle = unguarded(daemon.uri("v@s"))
        stack.callback(end, handle)
        for data in (bytes(MIB), bytes(4 * MIB)):
            assert answer(partial(handle.pwrite, data, 0)) == ("EPERM", b"")
        assert answer(partial(handle.pread, 4096, 0)) == ("", bytes(4096))


@pytest.mark.slow
def test_nbdkit_stops_at_once_though_clients_are_connected(make_daemon: Callable[..., Daemon]) -> None:
    """One is idle, one has asked for more than it reads; nbdkit ends by itself, and is not killed."""
    daemon = make_daemon("--frontend", "nbdkit")
    daemon.make_volume("v", size="8M", partition_size="1M")
    with ExitStack() as stack:
        handle = unguarded(daemon.uri("v"))
        stack.callback(end, handle)
        handle.pwrite(b"kept", 0)
        greedy = stack.enter_context(Peer(daemon.nbd_socket)).enter("v")
        greedy.pour(raw_request(READ, 0, 4 * MIB) * 20)
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < 5
    daemon.start()
    assert nbd.read_all(daemon.uri("v"))[:4] == b"kept"


@pytest.mark.slow
def test_sockets_that_never_finish_the_handshake_stop_nobody_behind_nbdkit(nbdkit: Daemon) -> None:
    """With another thread model one of them would."""
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Peer(nbdkit.nbd_socket)).take(18)
        began = time.monotonic()
        with nbd.connect(nbdkit.uri("v")) as handle:
            assert len(handle.pread(4096, 0)) == 4096
        assert time.monotonic() - began < 5


@pytest.mark.slow
def test_the_control_socket_works_while_clients_are_connected(nbdkit: Daemon) -> None:
    told = nbdkit.api.get("status")["daemon"]
    assert told["frontend"] == "nbdkit"
    assert told["nbd"] == [f"nbd+unix:///?socket={nbdkit.nbd_socket}"]
    with nbd.connect(nbdkit.uri("v")) as one, nbd.connect(nbdkit.uri("v")) as other:
        one.pwrite(b"old", 5)
        nbdkit.ok("snapshot", "create", "v", "--name", "s")
        other.pwrite(b"new", 5)
        with nbd.connect(nbdkit.uri("v@s")) as snapshot:
            assert snapshot.pread(3, 5) == b"old"
            assert snapshot.is_read_only()
        assert one.pread(3, 5) == b"new"
        assert "in use" in nbdkit.refused("volume", "delete", "v", "--yes")
        nbdkit.make_volume("w", size="8M", partition_size="1M")
        assert nbd.export_names(nbdkit.nbd_socket) == {"v", "v@s", "w"}


@pytest.mark.slow
def test_nbdkit_is_started_again_when_it_dies(nbdkit: Daemon) -> None:
    with nbd.connect(nbdkit.uri("v")) as handle:
        handle.pwrite(b"kept", 4095)
    nbdkit.ok("snapshot", "create", "v", "--name", "s")
    child = nbdkit.served_by
    assert child != nbdkit.pid
    assert Path(f"/proc/{child}/comm").read_text().strip() == "nbdkit"
    assert f"{nbdkit.pid} " in Path(f"/proc/{child}/stat").read_text()
    kill(child)
    wait_until(lambda: nbdkit.cli("status").rc == 0, "the next nbdkit", 20)
    assert nbdkit.served_by != child
    for export in ("v", "v@s"):
        with nbd.connect(nbdkit.uri(export)) as handle:
            assert handle.pread(4, 4095) == b"kept"


def kill(pid: int) -> None:
    """SIGKILL for a process that this test's daemon has started."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid), f"the end of {pid}", 10)
