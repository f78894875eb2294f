"""test_client_list: who is connected is shown, and can be disconnected.

How it works      libnbd's clients by unix socket and TCP, at both front ends. That a client that has vanished
                  is noticed is the kernel's work: what is looked at is that it was told to.
"""

import getpass
import json
import os
import re
import select
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import nbd as libnbd
import pytest

from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.cli.client import ApiError
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import run, wait_until
from tests.support.raw_nbd import MIB, OPT_LIST, READ, REP_ACK, WRITE, Peer, option, request


@pytest.fixture(params=["native", pytest.param("nbdkit", marks=pytest.mark.slow)])
def daemon(request: pytest.FixtureRequest, make_daemon: Callable[..., Daemon]) -> Daemon:
    """Serves volume v and snapshot v@s on a unix socket and on TCP."""
    daemon = make_daemon("--frontend", request.param, "--nbd-listen", "127.0.0.1:0")
    daemon.make_volume("v", size="8M", partition_size="4M")
    daemon.api.post("snapshots", body={"volumes": ["v"], "name": "s"})
    return daemon


def tcp(daemon: Daemon, export: str) -> str:
    address = next(uri for uri in daemon.api.get("status")["daemon"]["nbd"] if uri.startswith("nbd:"))
    return parse_uri(address, export).uri


def clients(daemon: Daemon) -> list[dict[str, Any]]:
    """The clients, when as many are there as are connected."""
    found: list[dict[str, Any]] = json.loads(daemon.ok("client", "list", "--json"))
    return found


def test_who_is_connected_is_shown(daemon: Daemon) -> None:
    assert clients(daemon) == []
    with nbd.connect(daemon.uri("v")) as local, nbd.connect(tcp(daemon, "v@s")) as remote:
        local.pwrite(b"x" * 65536, 0)
        remote.pread(1 << 20, 0)
        shown = {each["export"]: each for each in clients(daemon)}
        assert set(shown) == {"v", "v@s"}
        assert (shown["v"]["pid"], shown["v"]["user"]) == (os.getpid(), getpass.getuser())
        assert (shown["v"]["address"], shown["v"]["read_only"]) == (None, False)
        assert 65536 <= shown["v"]["received"] < 70000
        assert shown["v@s"]["read_only"]
        assert shown["v@s"]["address"].startswith("127.0.0.1:")
        assert 1 << 20 <= shown["v@s"]["sent"] < (1 << 20) + 4096
        assert all(each["in_flight"] == 0 for each in shown.values())
        assert daemon.ok("client", "list", "v").count("\n") == 2
        table = daemon.ok("client", "list")
        assert f"{getpass.getuser()}, pid {os.getpid()}" in table
        assert shown["v@s"]["address"] in table
    wait_until(lambda: clients(daemon) == [], "the clients to be gone")


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_a_client_is_disconnected(daemon: Daemon, way: str) -> None:
    uri = daemon.uri if way == "unix" else lambda export: tcp(daemon, export)
    another_way = daemon.uri("v") if way == "tcp" else tcp(daemon, "v")
    with nbd.connect(another_way) as other, nbd.connect(uri("v@s")) as handle:
        assert handle.pread(4, 0) == bytes(4)
        words = daemon.refused("snapshot", "delete", "v@s")
        assert "`polyvol client list` shows who is connected" in words
        (number,) = (str(each["id"]) for each in clients(daemon) if each["export"] == "v@s")
        assert f"client {number} of v@s disconnected" in daemon.ok("client", "disconnect", number)
        daemon.ok("snapshot", "delete", "v@s")
        with pytest.raises(libnbd.Error):
            handle.pread(4, 0)
        assert other.pread(4, 0) == bytes(4)
        assert f"there is no client {number}" in daemon.refused("client", "disconnect", number)
    assert "was disconnected" in str(daemon.api.get("status")["events"])


def test_all_clients_of_an_export_are_disconnected(daemon: Daemon) -> None:
    with (
        nbd.connect(daemon.uri("v")) as first,
        nbd.connect(tcp(daemon, "v")) as second,
        nbd.connect(tcp(daemon, "v@s")) as stays,
    ):
        ended = json.loads(daemon.ok("client", "disconnect", "--export", "v", "--json"))
        assert [each["export"] for each in ended] == ["v", "v"]
        for handle in (first, second):
            with pytest.raises(libnbd.Error):
                handle.pread(4, 0)
        assert stays.pread(4, 0) == bytes(4)
    assert "there is no export 'w'" in daemon.refused("client", "disconnect", "--export", "w")
    assert daemon.ok("client", "disconnect", "--export", "v") == "0 clients of v\n"
    assert daemon.api.get("clients") == []


def test_one_of_many_connections_of_a_process_is_disconnected(daemon: Daemon) -> None:
    """This process is also connected to the control socket, and has connections in handshake."""
    with ExitStack() as stack:
        handshakes = [stack.enter_context(Peer(daemon.nbd_socket)) for _ in range(2)]
        for peer in handshakes:
            peer.greet()
        handles = [stack.enter_context(nbd.connect(daemon.uri("v"))) for _ in range(4)]
        other = stack.enter_context(nbd.connect(daemon.uri("v@s")))
        one = clients(daemon)[1]["id"]
        daemon.api.delete("clients", str(one))
        wait_until(lambda: [ended(handle) for handle in handles].count(True) == 1, "the end of one")
        daemon.ok("client", "disconnect", "--export", "v")
        wait_until(lambda: all(ended(handle) for handle in handles), "the end of the others")
        assert _answers(other)
        for peer in handshakes:
            peer.socket.sendall(option(OPT_LIST))
            assert peer.answers() == REP_ACK


def half_a_write(peer: Peer) -> None:
    peer.socket.sendall(request(WRITE, 0, 4 * MIB) + bytes(2 * MIB))


def half_a_request(peer: Peer) -> None:
    peer.socket.sendall(request(WRITE, 0, 4 * MIB)[:9])


def reads_not_taken(peer: Peer) -> None:
    peer.pour(request(READ, 0, 4 * MIB) * 20)


def writes_without_end(peer: Peer) -> None:
    def write() -> None:
        with suppress(OSError, AssertionError):  # it is disconnected in a write, or between two
            while True:
                peer.socket.sendall(request(WRITE, 0, 4 * MIB) + bytes(4 * MIB))
                peer.reply()

    threading.Thread(target=write, daemon=True).start()


@pytest.mark.parametrize(
    "busy",
    [
        half_a_write,
        writes_without_end,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (half_a_request, reads_not_taken)),
    ],
)
def test_a_client_is_disconnected_whatever_it_does(daemon: Daemon, busy: Callable[[Peer], None]) -> None:
    with Peer(daemon.nbd_socket).enter("v") as peer:
        busy(peer)
        [client] = daemon.api.get("clients")
        daemon.api.delete("clients", str(client["id"]))
        assert daemon.api.get("clients") == []
        wait_until(lambda: hung_up(peer.socket), "the end of its connection")
        daemon.ok("snapshot", "delete", "v@s")
        daemon.ok("volume", "delete", "v", "--yes")


def hung_up(one: socket.socket) -> bool:
    """Whether the other end of a socket is gone."""
    watch = select.poll()
    watch.register(one, select.POLLRDHUP)
    return bool(watch.poll(0))


@pytest.mark.slow
def test_hundreds_of_clients_are_listed_and_disconnected(daemon: Daemon) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(daemon.nbd_socket)).enter("v") for _ in range(400)]
        assert len(clients(daemon)) == 400
        assert daemon.ok("client", "disconnect", "--export", "v").count("disconnected") == 400
        wait_until(lambda: all(hung_up(peer.socket) for peer in peers), "the end of the connections")
    assert clients(daemon) == []


def _answers(handle: libnbd.NBD) -> bool:
    try:
        return bool(handle.pread(4, 0) == bytes(4))
    except libnbd.Error:
        return False


def ended(handle: libnbd.NBD) -> bool:
    """Whether a client knows that its connection has ended."""
    _answers(handle)
    return bool(handle.aio_is_dead() or handle.aio_is_closed())


def test_an_unknown_id_disconnects_nobody(daemon: Daemon) -> None:
    with nbd.connect(daemon.uri("v")) as handle:
        [client] = clients(daemon)
        number = str(client["id"])
        assert "there is no client 99" in daemon.refused("client", "disconnect", number, "99")
        assert handle.pread(4, 0) == bytes(4)
        assert daemon.ok("client", "disconnect", number, number).startswith(f"client {number} of v disconn")


def test_ids_that_nobody_has(daemon: Daemon) -> None:
    for text in ("0", "99", "x", "-1", "1.0", "9" * 40, "%00"):
        with pytest.raises(ApiError) as caught:
            daemon.api.delete("clients", text)
        assert caught.value.code == "unknown-client", text


def test_clients_that_vanish_are_asked_for(daemon: Daemon) -> None:
    with nbd.connect(tcp(daemon, "v")) as handle:
        handle.pread(4, 0)
        port = re.search(r":(\d+)/", tcp(daemon, "v"))
        assert port is not None
        ask = ("ss", "-tnoH", "state", "established", f"( sport = :{port[1]} )")
        wait_until(lambda: "timer:(keepalive," in run(*ask).out, "the kernel to wait for its next question")
