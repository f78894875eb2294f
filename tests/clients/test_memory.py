"""test_memory: what a flood of hostile clients or calls took is given back some seconds later."""

import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from polyvol.daemon.client.cli.client import ApiError
from tests.support.daemon import Daemon
from tests.support.proc import wait_until
from tests.support.raw_nbd import READ, WRITE, Peer, go, option, request

MIB = 1 << 20
ALLOWED_KIB = 32 << 10
GIVEN_BACK_S = 20
THREADS = 8


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def flood(kind: Callable[[Path], None], path: Path, count: int) -> None:
    """So many connections of a kind, several at a time."""

    def some() -> None:
        for _ in range(count // THREADS):
            with suppress(OSError, AssertionError):
                kind(path)

    threads = [threading.Thread(target=some) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def half_a_handshake(path: Path) -> None:
    with Peer(path) as peer:
        peer.greet()
        peer.socket.sendall(go("v")[:-3])


def unknown_options(path: Path) -> None:
    with Peer(path) as peer:
        peer.greet()
        peer.socket.sendall(option(99, bytes(4000)) * 50)


def large_reads(path: Path) -> None:
    with Peer(path) as peer:
        peer.enter("v")
        peer.socket.sendall(b"".join(request(READ, at * MIB, 32 * MIB) for at in range(8)))


def half_a_write(path: Path) -> None:
    with Peer(path) as peer:
        peer.enter("v")
        peer.socket.sendall(request(WRITE, 0, 32 * MIB) + b"x" * (8 * MIB))


def large_call(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = client
        connection.request("POST", "/v1/volumes", b"{" + b" " * MIB, {"Content-Type": "application/json"})
        connection.getresponse().read()


@pytest.mark.slow
def test_what_a_flood_took_is_given_back(daemon: Daemon) -> None:
    daemon.make_volume("v", size="256M")
    kinds = [(half_a_handshake, 2000), (unknown_options, 400), (large_reads, 400), (half_a_write, 160)]
    large_reads(daemon.nbd_socket)
    before = resident_kib(daemon.pid)
    for kind, count in kinds:
        flood(kind, daemon.nbd_socket, count)
    flood(large_call, daemon.control_socket, 400)
    wait_until(
        lambda: resident_kib(daemon.pid) < before + ALLOWED_KIB, f"less than {before} + 32 MiB", GIVEN_BACK_S
    )


@pytest.mark.slow
def test_what_deleted_volumes_and_snapshots_took_is_given_back(daemon: Daemon) -> None:
    daemon.add_devices("d", size="8G")
    before = resident_kib(daemon.pid)
    for _ in range(2):
        for number in range(20):
            body = {"name": f"v{number}", "size": 16 * MIB, "devices": ["d"], "log_devices": ["d"]}
            with suppress(ApiError):
                daemon.api.post("volumes", body=body)
                daemon.api.post("snapshots", body={"of": [f"v{number}"], "name": "s"})
        for volume in daemon.api.get("volumes"):
            daemon.api.delete("volumes", volume["name"])
    assert daemon.api.get("volumes") == []
    wait_until(lambda: resident_kib(daemon.pid) < before + ALLOWED_KIB, "giving it back", GIVEN_BACK_S)
