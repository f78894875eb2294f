"""The control API over its socket: statuses, strict bodies, the OpenAPI document."""

import contextlib
import http.client
import json
import os
import re
import resource
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from polyvol.daemon.api.application import ROUTES
from polyvol.daemon.api.server import _READERS, CONNECTIONS_MAX, _Channel
from polyvol.daemon.service import Service
from polyvol.daemon.types.status import StatusView
from polyvol.mapping.errors import UnknownVolume
from tests.unit.conftest import Daemon


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def ask(daemon: Daemon, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
    connection = Connection(daemon.state_dir / "control.sock")
    connection.request(method, path, body)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/volumes/nix", None, 404, "unknown-volume"),
        ("GET", "/v1/nix", None, 404, "no-such-page"),
        ("PUT", "/v1/volumes", None, 405, "no-such-page"),
        ("GET", "/v1/volumes?colour=red", None, 400, "bad-request"),
        ("GET", "/v1/volumes/v?partitions=2", None, 400, "bad-request"),
        ("POST", "/v1/volumes", "", 400, "bad-request"),
        ("POST", "/v1/volumes", "[]", 400, "bad-request"),
        ("POST", "/v1/volumes", '{"name": 1}', 400, "bad-request"),
        ("POST", "/v1/volumes", '{"name": "w", "size": "1M"}', 400, "bad-request"),
        ("POST", "/v1/volumes", '{"name": "w", "size": 4096.0}', 400, "bad-request"),
        ("POST", "/v1/volumes", '{"name": "w", "sise": 4096}', 400, "bad-request"),
        ("POST", "/v1/volumes", '{"name": "w", "size": -4096}', 400, "zero-size"),
        ("POST", "/v1/volumes", '{"name": "w", "size": 1%s}' % ("0" * 40), 400, "bad-request"),
        ("POST", "/v1/volumes", '{"name": "v", "size": 4096}', 409, "name-in-use"),
        ("POST", "/v1/snapshots", '{"volumes": []}', 400, "bad-request"),
        ("POST", "/v1/devices", '{"path": "relative"}', 400, "bad-request"),
        ("POST", "/v1/devices", '{"path": "/x\\u0000y"}', 400, "bad-request"),
        ("POST", "/v1/devices", '{"path": "/nowhere/at/all", "size": 8388608}', 500, "device-io"),
        ("POST", "/v1/devices", '{"path": "/tmp/x", "size": 1%s}' % ("0" * 40), 400, "bad-request"),
        ("POST", "/v1/volumes", "x" * (2 << 20), 413, "bad-request"),
        ("DELETE", "/v1/devices/v.data", None, 409, "device-in-use"),
        ("DELETE", "/v1/volumes/v%2Fw", None, 404, "unknown-volume"),
        ("GET", "/v1/volumes/", None, 404, "no-such-page"),
        ("GET", "/v1/%76olumes/nix", None, 404, "unknown-volume"),
        ("GET", "*", None, 404, "no-such-page"),
    ],
)
def test_what_is_wrong_is_answered_with_its_status_and_code(
    daemon: Daemon, method: str, path: str, body: str | None, status: int, code: str
) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    answered, answer = ask(daemon, method, path, body)
    assert (answered, answer["error"]["code"]) == (status, code)
    assert set(answer["error"]) == {"code", "message", "hint"}
    assert ask(daemon, "GET", "/v1/status")[0] == 200


def test_a_defect_is_logged_and_answered_without_its_details(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*, kept: bool) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(daemon.service.volumes, "list_all", broken)
    status, answer = ask(daemon, "GET", "/v1/volumes")
    assert (status, answer["error"]["code"]) == (500, "internal-error")
    assert "secret" not in json.dumps(answer)
    assert "secret" in caplog.text


def test_what_is_no_http_is_refused_as_everything_is(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect(str(daemon.state_dir / "control.sock"))
        client.sendall(b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n")
        with client.makefile("rb") as answer:
            head, _, text = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 ")
    assert json.loads(text)["error"]["code"] == "bad-request"


def test_a_connection_serves_many_requests_and_is_closed_by_a_stop(daemon: Daemon) -> None:
    connection = Connection(daemon.state_dir / "control.sock")
    for _ in range(3):
        connection.request("GET", "/v1/status")
        socket_then = connection.sock
        assert json.loads(connection.getresponse().read())["volumes"] == []
        assert connection.sock is socket_then
    begun = time.monotonic()
    daemon.service.stop()
    assert time.monotonic() - begun < 5
    assert connection.sock.recv(1) == b""
    connection.close()


def test_a_stop_waits_for_the_calls_that_have_begun_and_answers_them(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, go = threading.Event(), threading.Event()
    status = daemon.service.status

    def slow() -> StatusView:
        came.set()
        assert go.wait(10)
        return status()

    monkeypatch.setattr(daemon.service, "status", slow)
    connection = Connection(daemon.state_dir / "control.sock")
    connection.request("GET", "/v1/status")
    assert came.wait(10)
    stopping = threading.Thread(target=daemon.service.stop)
    stopping.start()
    stopping.join(0.2)
    assert stopping.is_alive()
    go.set()
    assert connection.getresponse().status == 200
    stopping.join(10)
    assert not stopping.is_alive()
    connection.close()


def test_it_serves_beyond_1024_file_descriptors(daemon: Daemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held: list[int] = []
    try:
        while not held or held[-1] < 1100:
            held.append(os.dup(0))
        assert ask(daemon, "GET", "/v1/status")[0] == 200
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_document_describes_every_route_and_refers_only_to_what_is_there(daemon: Daemon) -> None:
    status, document = ask(daemon, "GET", "/openapi.json")
    assert status == 200
    described = {(method.upper(), path) for path, of_path in document["paths"].items() for method in of_path}
    assert described == {(route.method, route.path) for route in ROUTES}
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert {"Volume", "VolumeCreate", "Snapshot", "Device", "Error"} <= references
    parameters = document["paths"]["/v1/volumes/{volume}"]["get"]["parameters"]
    assert [(each["name"], each["in"]) for each in parameters] == [
        ("volume", "path"),
        ("partitions", "query"),
    ]


def opened(daemon: Daemon, said: bytes = b"") -> socket.socket:
    """A connection to the control socket that has said this."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(daemon.state_dir / "control.sock"))
    connection.sendall(said)
    return connection


@pytest.mark.parametrize(
    "said", [b"", b"GET /v1/st", b"POST /v1/snapshots HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_connections_that_say_no_more_keep_nobody_out(daemon: Daemon, said: bytes) -> None:
    with contextlib.ExitStack() as connections:
        for _ in range(CONNECTIONS_MAX + 50):
            connections.enter_context(opened(daemon, said))
        assert ask(daemon, "GET", "/v1/status")[0] == 200


def test_a_connection_with_a_call_under_way_is_not_closed_for_others(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def status(_: Service) -> StatusView:
        begun.set()
        assert go_on.wait(30)
        raise UnknownVolume(name="v")

    monkeypatch.setattr(Service, "status", status)
    with contextlib.ExitStack() as connections:
        first = connections.enter_context(opened(daemon, b"GET /v1/status HTTP/1.1\r\n\r\n"))
        assert begun.wait(10)
        for _ in range(CONNECTIONS_MAX + 50):
            connections.enter_context(opened(daemon))
        assert ask(daemon, "GET", "/v1/volumes")[0] == 200
        go_on.set()
        assert b"404 Not Found" in first.recv(1000)


def test_a_client_that_has_left_before_its_turn_is_no_defect(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop sees its request and its end at once, and closes the connection before a thread is free."""
    left, closed, go_on = threading.Event(), threading.Event(), threading.Event()
    begun = threading.Semaphore(0)
    made, close = _Channel.__init__, _Channel.handle_close

    def status(_: Service) -> StatusView:
        begun.release()
        assert go_on.wait(30)
        raise UnknownVolume(name="v")

    def make(*arguments: Any, **named: Any) -> None:
        made(*arguments, **named)
        assert left.wait(30)

    def close_it(channel: _Channel) -> None:
        close(channel)
        closed.set()

    monkeypatch.setattr(Service, "status", status)
    request = b"GET /v1/status HTTP/1.1\r\n\r\n"
    with contextlib.ExitStack() as connections:
        busy = [connections.enter_context(opened(daemon, request)) for _ in range(_READERS)]
        assert all(begun.acquire(timeout=10) for _ in busy)
        monkeypatch.setattr(_Channel, "__init__", make)
        monkeypatch.setattr(_Channel, "handle_close", close_it)
        with opened(daemon, request):
            pass
        left.set()
        assert closed.wait(10)
        go_on.set()
        for each in busy:
            assert b"404 Not Found" in each.recv(1000)
        assert ask(daemon, "GET", "/v1/volumes")[0] == 200
    assert not [each for each in caplog.records if each.name == "waitress"]


def test_clients_that_read_no_answers_take_no_threads_from_others(daemon: Daemon) -> None:
    with contextlib.ExitStack() as connections:
        deaf = [
            connections.enter_context(opened(daemon, b"GET /openapi.json HTTP/1.1\r\n\r\n" * 250))
            for _ in range(8)
        ]
        poll = select.poll()
        for connection in deaf:
            poll.register(connection, select.POLLHUP)
        until = time.monotonic() + 30
        while len(poll.poll(1000)) < len(deaf):  # each is closed, once too much is unread
            assert ask(daemon, "GET", "/v1/status")[0] == 200
            assert time.monotonic() < until
        assert ask(daemon, "GET", "/v1/status")[0] == 200


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (b"GET http://[::1/v1/status HTTP/1.1\r\n\r\n", 400, "the address is not one"),
        (b"GET /v1/status HTTP/x\r\n\r\n", 400, "start line is invalid"),
        (
            b"POST /v1/volumes HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n",
            413,
            "its body is longer than 1 MiB",
        ),
    ],
)
def test_what_is_no_request_is_answered_in_plain_words(
    daemon: Daemon, said: bytes, status: int, words: str
) -> None:
    with opened(daemon, said) as connection, connection.makefile("rb") as reader:
        head, _, body = reader.read().partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(body)["error"]["message"] == f"the request is not valid: {words}"
