"""Odd requests: whatever a client of the control API says, it gets an answer, and never 'internal-error'."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import pytest

from polyvol.daemon.api.application import ROUTES, Application
from tests.support.odd_values import Request, random_requests, requests
from tests.unit.conftest import Daemon

NEVER_SAID = ("Traceback", "constraint", "Error:", "SQL", "PyO3", "Input should", "Field required")
NAMES = {"volume": "v", "snapshot": "s", "group": "g", "device": "v.data", "schedule": "daily"}


def answer(application: Application, request: Request) -> tuple[int, Any]:
    """The status, and the body: from JSON, or as bytes where the answer is a file."""
    status: list[str] = []
    headers: dict[str, str] = {}

    def start(line: str, pairs: list[tuple[str, str]]) -> None:
        status.append(line)
        headers.update(pairs)

    body = request.body.encode("utf-8", "surrogatepass")
    environ: Any = {
        "REQUEST_METHOD": request.method,
        "REQUEST_URI": request.path,
        "QUERY_STRING": urlsplit(request.path).query,
        "wsgi.input": io.BytesIO(body),
    }
    text = b"".join(application(environ, start))  # type: ignore[arg-type]
    is_json = headers["Content-Type"].startswith("application/json")
    return int(status[0].split()[0]), json.loads(text) if is_json else text


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    daemon.ok("group", "create", "g", "v")
    daemon.ok("schedule", "add", "v", "--every", "1d", "--keep", "last=2", "--name", "daily")
    return daemon


def asked(daemon: Daemon, all_of: Iterable[Request]) -> Counter[int]:
    """Ask for all of these; how often each status was answered."""
    application = Application(daemon.service)
    seen: Counter[int] = Counter()
    wrong: Counter[str] = Counter()
    for request in all_of:
        if request.method == "DELETE" and request.path in ("/v1/volumes/v", "/v1/schedules/daily"):
            continue
        if request.path.endswith("/rename") and re.search(r'"name": "\w+"', request.body):
            continue  # what the others ask for keeps its name
        status, said = answer(application, request)
        seen[status] += 1
        if status < 400:
            continue
        message = said["error"]["message"]
        if said["error"]["code"] == "internal-error" or any(word in message for word in NEVER_SAID):
            wrong[f"{request.method} {request.path[:80]} {request.body[:100]}: {message}"] += 1
    assert not wrong, "\n".join(wrong)[:5000]
    return seen


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_no_request_is_an_internal_error(used: Daemon) -> None:
    seen = asked(used, requests(ROUTES, NAMES))
    assert seen[400] > 1000
    assert seen[200] > 10


@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_request_with_several_odd_values_is_an_internal_error(used: Daemon, seed: int) -> None:
    assert asked(used, random_requests(ROUTES, NAMES, seed, 1500))[400] > 300


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/volumes", "", "its body is not JSON: EOF"),
        ("/v1/volumes", "[]", "it is not an object"),
        ("/v1/volumes", "{}", "name: it is missing"),
        ("/v1/volumes", '{"name": 1}', "name: it is not a text"),
        ("/v1/volumes", '{"name": "a", "size": 1.5}', "size: it is not a whole number"),
        ("/v1/volumes", '{"name": "a", "dry_run": 1}', "dry_run: it is neither true nor false"),
        ("/v1/volumes", '{"name": "a", "devices": "d"}', "devices: it is not a list"),
        ("/v1/volumes", '{"name": "a", "nix": 1}', "nix: there is no such key here"),
        ("/v1/volumes", '{"name": "a", "size": 1, "size": 4096}', "the key 'size' is given twice"),
        (
            "/v1/volumes",
            json.dumps({"name": "a", "processors": [*range(300)]}),
            "processors: 300 are named, and at most 256 can be",
        ),
        ("/v1/volumes", '{"name": "a", "processors": [0, "1"]}', "processors.1: it is not a whole number"),
        (
            "/v1/volumes",
            '{"name": "a", "place": [{"first": 0, "last": 1, "nix": 1}]}',
            "place.0.nix: there is no such key here",
        ),
        ("/v1/volumes", '{"name": "a", "place": [{"first": 1}]}', "place.0.last: it is missing"),
        ("/v1/volumes", '{"name": "a", "place": ["x", 1]}', "place.1: it is not a text"),
        ("/v1/volumes?x=1&x=2", "", "the query parameter 'x' is given twice"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_plain_words(
    daemon: Daemon, path: str, body: str, said: str
) -> None:
    status, answered = answer(Application(daemon.service), Request("POST", path, body))
    assert status == 400
    assert answered["error"]["message"].startswith(f"the request is not valid: {said}")
    assert json.loads(daemon.ok("volume", "list", "--json")) == []
