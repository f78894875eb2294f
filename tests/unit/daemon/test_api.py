"""The control API over its socket: statuses, strict bodies, the OpenAPI document."""

import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from polyvol.daemon.api.server import ROUTES
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
        ("POST", "/v1/volumes", '{"name": "w", "size": 1%s}' % ("0" * 40), 400, "size-too-large"),
        ("POST", "/v1/volumes", '{"name": "v", "size": 4096}', 409, "name-in-use"),
        ("POST", "/v1/snapshots", '{"volumes": []}', 400, "bad-request"),
        ("POST", "/v1/devices", '{"path": "relative"}', 400, "bad-request"),
        ("POST", "/v1/devices", '{"path": "/x\\u0000y"}', 400, "bad-request"),
        ("POST", "/v1/devices", '{"path": "/nowhere/at/all", "size": 8388608}', 500, "device-io"),
        ("POST", "/v1/devices", '{"path": "/tmp/x", "size": 1%s}' % ("0" * 40), 400, "device-unusable"),
        ("POST", "/v1/volumes", "x" * (2 << 20), 413, "bad-request"),
        ("DELETE", "/v1/devices/v.data", None, 409, "device-in-use"),
        ("DELETE", "/v1/volumes/v%2Fw", None, 404, "unknown-volume"),
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


def test_the_document_describes_every_route_and_refers_only_to_what_is_there(daemon: Daemon) -> None:
    status, document = ask(daemon, "GET", "/openapi.json")
    assert status == 200
    described = {(method.upper(), path) for path, of_path in document["paths"].items() for method in of_path}
    assert described == {(route.method, route.path) for route in ROUTES}
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert {"VolumeView", "VolumeCreate", "SnapshotView", "DeviceView", "Error"} <= references
    parameters = document["paths"]["/v1/volumes/{volume}"]["get"]["parameters"]
    assert [(each["name"], each["in"]) for each in parameters] == [
        ("volume", "path"),
        ("partitions", "query"),
    ]
