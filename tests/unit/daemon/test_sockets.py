"""Sockets that a start finds: passed with and without names, addresses that are not there, stale ones."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.errors import SocketUnusable
from polyvol.daemon.host import sockets
from polyvol.daemon.host.notify import watchdog_interval_s
from tests.unit.daemon.test_systemd import Systemd

HERE, NOT_HERE = "127.0.0.1", "2001:db8::1"


@pytest.fixture
def systemd(short_dir: Path) -> Iterator[Systemd]:
    with ExitStack() as stack:
        yield Systemd(short_dir, stack)


@pytest.mark.parametrize(
    "names",
    [
        "",
        "polyvold.socket:polyvold.socket",
        *(pytest.param(each, marks=pytest.mark.slow) for each in (":", "unknown:unknown", "nbd", ":control")),
    ],
)
def test_passed_sockets_without_a_name_are_told_by_their_address(systemd: Systemd, names: str) -> None:
    process = systemd.start(names=names)
    systemd.hears("READY=1")
    status = Client(systemd.state_dir).get("status")
    assert status["daemon"]["nbd"] == [f"nbd+unix:///?socket={systemd.state_dir}/nbd.sock"]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("passed", ["datagram", "file"])
def test_what_is_passed_and_means_nothing_is_closed(systemd: Systemd, passed: str) -> None:
    """As after a downgrade: what a newer polyvold has had kept."""
    with ExitStack() as stack:
        if passed == "datagram":
            other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).fileno()
        else:
            other = os.memfd_create("x")
            stack.callback(os.close, other)
        process = systemd.start(names="nbd:control:later", more=[other])
        systemd.hears("READY=1")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "'later' is not used" in err


def test_a_socket_of_virtual_machines_is_no_nbd_socket(caplog: pytest.LogCaptureFixture) -> None:
    """Keepalive options do not fit it, and nobody can be told its address."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    listener.listen()
    with pytest.raises(SocketUnusable, match="no listening unix or TCP socket"):
        sockets._named(listener.fileno(), "nbd")
    by_name: dict[str, list[socket.socket]] = {"control": [], "nbd": []}
    sockets._take_unnamed(listener.detach(), "polyvold.socket", by_name, None)
    assert by_name == {"control": [], "nbd": []}
    assert "'polyvold.socket' is not used" in caplog.text


def test_the_name_of_an_abstract_socket_is_shown() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0polyvol-{os.getpid()}")
        assert sockets.nbd_uri(listener) == f"nbd+unix:///?socket=@polyvol-{os.getpid()}"


def test_a_control_socket_of_the_network_is_refused(systemd: Systemd) -> None:
    with socket.create_server((HERE, 0)) as listener:
        systemd.sockets[1] = listener
        process = systemd.start()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "a socket of the network, open to everybody" in err


@pytest.mark.parametrize("number", ["\u00b2", "-1", "1e3", "9" * 400, "x"])
def test_numbers_of_the_environment_that_are_none_are_ignored(
    monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", number)
    assert sockets.inherited_from_systemd() == sockets.InheritedSockets()
    if number != "9" * 400:
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        monkeypatch.setenv("WATCHDOG_USEC", number)
        assert watchdog_interval_s() is None


def found(*hosts: str) -> Any:
    """What a name is resolved to."""
    families = [socket.AF_INET6 if ":" in host else socket.AF_INET for host in hosts]
    kind = socket.SOCK_STREAM
    return lambda *_, **__: [
        (family, kind, 0, "", (host, 0, *([0, 0] if ":" in host else [])))
        for family, host in zip(families, hosts, strict=True)
    ]


@pytest.mark.parametrize("hosts", [(NOT_HERE, HERE), (HERE, NOT_HERE)])
def test_addresses_of_a_host_that_are_not_here_are_left_out(
    monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    """As localhost, where IPv6 is off."""
    monkeypatch.setattr(socket, "getaddrinfo", found(*hosts))
    (listener,) = sockets.bind_tcp("localhost:0")
    with closing(listener):
        assert listener.getsockname()[0] == HERE


def test_a_family_that_the_kernel_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(250, socket.SOCK_STREAM, 0, "", ("x", 0)), *found(HERE)()]
    )
    (listener,) = sockets.bind_tcp("localhost:0")
    listener.close()


def test_a_host_with_no_address_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found("203.0.113.1", "203.0.113.2"))
    with pytest.raises(SocketUnusable, match="this machine does not have that address"):
        sockets.bind_tcp("elsewhere:0")


@pytest.mark.parametrize("host", ["a" * 64, "a..b", ".", "\udcff"])
def test_a_host_that_cannot_be_is_refused(host: str) -> None:
    with pytest.raises(SocketUnusable, match="no host can have that name"):
        sockets.bind_tcp(f"{host}:0")


def test_an_ip_address_that_comes_later_is_listened_on(caplog: pytest.LogCaptureFixture) -> None:
    """As one that DHCP gives, or that moves between machines."""
    (listener,) = sockets.bind_tcp("203.0.113.1:0")
    listener.close()
    assert "no interface has 203.0.113.1" in caplog.text


def test_an_address_in_use_leaves_none_of_the_others_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SocketUnusable, match="in use"):
            sockets.bind_tcp(f"{HERE}:{port}")


def test_a_socket_whose_backlog_is_full_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with ExitStack() as stack:
        holder = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        holder.bind(str(path))
        holder.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting.connect(str(path))
        with pytest.raises(SocketUnusable, match="accepts no connections"):
            sockets.bind_unix(path)
    assert path.exists()


def test_accepted_connections_are_kept_alive_for_a_minute() -> None:
    (listener,) = sockets.bind_tcp(f"{HERE}:0")
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
