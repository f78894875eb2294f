"""The control API as a WSGI application: a request becomes a call of the service, and its result JSON.

How it works      A path is matched, segment by segment, against the routes, and its segments are decoded
                  only then, so that a name may hold a slash. Bodies are read strictly as the route's type.
                  What reads and writes a type is made when first needed: all would take half a start's time.
Errors            {"error": {"code", "message", "hint"}}. An exception other than PolyvolError is a defect: it
                  is logged, and the client gets 'internal-error'.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import TypeAdapter, ValidationError

from polyvol.daemon.api.openapi import openapi_document
from polyvol.daemon.api.route import Call, Route
from polyvol.daemon.clients import routes as clients
from polyvol.daemon.debug import routes as debug
from polyvol.daemon.devices import routes as device
from polyvol.daemon.errors import BadRequest, InternalError, NoSuchPage, http_status
from polyvol.daemon.groups import routes as group
from polyvol.daemon.partitions import routes as partition
from polyvol.daemon.processors import routes as processor
from polyvol.daemon.ranges import NUMBER_MAX
from polyvol.daemon.renames import routes as rename
from polyvol.daemon.restores import routes as restore
from polyvol.daemon.schedules import routes as schedule
from polyvol.daemon.snapshots import deletion_routes as deletions, diff_routes as diff, routes as snapshot
from polyvol.daemon.types.status import StatusView
from polyvol.daemon.version import version
from polyvol.daemon.volumes import routes as volume, scrub_routes as scrub
from polyvol.mapping.errors import PolyvolError, StateFull
from polyvol.mapping.no_space import NEEDED, is_no_space
from polyvol.mapping.os_errors import as_clause
from polyvol.mapping.sizes import format_size

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from polyvol.daemon.service import Service

ROUTES: list[Route] = [
    Route("GET", "/v1/status", "Everything at a glance", lambda service, _: service.status(), StatusView),
    Route(
        "GET",
        "/v1/catalog/copy",
        "The catalog as it is now, as one SQLite file",
        lambda service, _: service.copy_catalog(),
        bytes,
        slow=True,
    ),
    *device.ROUTES,
    *clients.ROUTES,
    *debug.ROUTES,
    *volume.ROUTES,
    *partition.ROUTES,
    *processor.ROUTES,
    *snapshot.ROUTES,
    *diff.ROUTES,
    *deletions.ROUTES,
    *restore.ROUTES,
    *scrub.ROUTES,
    *group.ROUTES,
    *schedule.ROUTES,
    *rename.ROUTES,
]
BODY_BYTES_MAX = 1 << 20
_log = logging.getLogger("polyvol.api")


class Application:
    """Answers for one service; may be called by many threads at once."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        status, text = self._answer(environ)
        is_file = isinstance(text, _File)
        headers = [
            ("Content-Type", "application/octet-stream" if is_file else "application/json; charset=utf-8"),
            ("Content-Length", str(len(text))),
            ("Polyvol-Version", version()),
        ]
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [text]

    def only_looks(self, method: str, path: str) -> bool:
        """Whether a call waits for no lock and no device."""
        if method != "GET":
            return False
        try:
            return not _find(method, urlsplit(path).path)[0].slow
        except _Refused:
            return True

    def _answer(self, environ: "WSGIEnvironment") -> tuple[int, bytes]:
        method = environ["REQUEST_METHOD"]
        path = urlsplit(environ["REQUEST_URI"]).path
        try:
            if (method, path) == ("GET", "/openapi.json"):
                return 200, _openapi_text()
            route, named = _find(method, path)
            body = environ["wsgi.input"].read(BODY_BYTES_MAX + 1)
            return route.status, self._call(route, named, environ["QUERY_STRING"], body)
        except _Refused as refused:
            return refused.status, error_text(refused.error)
        except PolyvolError as error:
            return http_status(error), error_text(error)
        except Exception as error:
            if isinstance(error, OSError) and is_no_space(error):
                where = Path(error.filename).parent if error.filename else self._service.state_dir
                full = StateFull(path=where, what="what was asked for cannot be recorded", need=NEEDED)
                return http_status(full), error_text(full)
            _log.exception("%s %s", method, path)
            return 500, error_text(InternalError(what=f"{method} {unquote(path)}"))

    def _call(self, route: Route, named: dict[str, str], query_text: str, body: bytes) -> bytes:
        query = _once(parse_qsl(query_text, keep_blank_values=True), "the query parameter")
        unknown = set(query) - {name for name, _, _ in route.query}
        if unknown:
            raise BadRequest(why=f"there is no query parameter {min(unknown)!r} here")
        if len(body) > BODY_BYTES_MAX:
            too_long = BadRequest(why=f"its body is longer than {format_size(BODY_BYTES_MAX)}")
            raise _Refused(too_long, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        read = None if route.body is None else _read_body(_adapter(route.body), body)
        frees = route.frees or route.method in ("DELETE", "PATCH")
        with self._service.reserve.given_up() if frees else nullcontext():
            result = route.call(self._service, Call(named, query, read))
        if isinstance(result, bytes):
            return _File(result)
        return _adapter(route.result).dump_json(result)


class _File(bytes):
    """The body of an answer that is not JSON."""


class _Refused(Exception):
    """An error whose HTTP status does not follow from its kind."""

    def __init__(self, error: PolyvolError, status: HTTPStatus) -> None:
        self.error = error
        self.status = status


def error_text(error: PolyvolError) -> bytes:
    """An error as the body of a response."""
    body = {"error": {"code": error.code, "message": error.message, "hint": error.advice}}
    return json.dumps(body).encode()


def _find(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route of a path that is still encoded, and the decoded values of its parameters."""
    status = HTTPStatus.NOT_FOUND
    segments = [unquote(segment) for segment in path.split("/")]
    for route in ROUTES:
        named = _named(route.path.split("/"), segments)
        if named is None:
            continue
        if route.method == method:
            return route, named
        status = HTTPStatus.METHOD_NOT_ALLOWED
    raise _Refused(NoSuchPage(method=method, path=unquote(path)), status)


def _named(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    """The values of a pattern's parameters in a path; None if the path does not match."""
    if len(pattern) != len(segments):
        return None
    named = {}
    for want, have in zip(pattern, segments, strict=True):
        if want.startswith("{"):
            named[want[1:-1]] = have
        elif want != have:
            return None
    return named if all(named.values()) else None


@cache
def _openapi_text() -> bytes:
    """The description of the API, which takes some 0.3 s to make."""
    return json.dumps(openapi_document(ROUTES, "1")).encode()


@cache
def _adapter(of: Any) -> TypeAdapter[Any]:  # noqa: ANN401
    return TypeAdapter(of)


def _once(pairs: Sequence[tuple[str, Any]], what: str = "the key") -> dict[str, Any]:
    """A dictionary of these pairs; BadRequest if a key is repeated, because the choice is ambiguous."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequest(why=f"{what} {name!r} is given twice")
        found[name] = value
    return found


def _read_body(body_type: TypeAdapter[Any], text: bytes) -> object:
    try:
        read = body_type.validate_json(text)
        json.loads(text, object_pairs_hook=_once)
        return read
    except ValidationError as error:
        path, first = _first_error(error, text)
        where = ".".join(str(part) for part in path)
        said = _wrong(first["type"], first.get("ctx", {})) or as_clause(first["msg"])
        message = f"{where}: {said}" if where else said
        raise BadRequest(why=message) from error


def _first_error(error: ValidationError, text: bytes) -> tuple[list[str | int], Any]:
    """The first error, with the path of its value. Where a value may have several forms, there is an error
    for each, and that of the form which fits best counts. pydantic's names of forms are left out of paths."""
    errors = error.errors(include_url=False, include_input=False)
    if not errors[0]["loc"]:
        return [], errors[0]
    body = json.loads(text)
    found = [(_path(each, body), each) for each in errors]
    place = found[0][0]
    of_value = [each for each in found if each[0][: len(place)] == place]
    return max(of_value, key=lambda each: (len(each[0]), not each[1]["type"].endswith("_type")))


def _path(error: Any, value: object) -> list[str | int]:  # noqa: ANN401
    """The keys and numbers of an error's path that lead to a value of a body."""
    path: list[str | int] = []
    *_, last = error["loc"]
    for part in error["loc"]:
        if isinstance(value, dict) and (part in value or (error["type"] == "missing" and part == last)):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path.append(part)
            value = value[part] if part < len(value) else None
    return path


_WRONG = {
    "missing": "it is missing",
    "unexpected_keyword_argument": "there is no such key here",
    "int_type": "it is not a whole number",
    "string_type": "it is not a text",
    "bool_type": "it is neither true nor false",
    "tuple_type": "it is not a list",
    "dataclass_type": "it is not an object",
    "dataclass_exact_type": "it is not an object",
}
"""What is wrong, by pydantic's type of error."""


def _wrong(kind: str, limits: Mapping[str, Any]) -> str | None:
    """What is wrong with a body or a value of it; None where pydantic says it as well."""
    if kind in _WRONG:
        return _WRONG[kind]
    if kind == "json_invalid":
        return f"its body is not JSON: {limits['error']}"
    if kind == "less_than_equal":
        return f"the number is larger than {limits['le']}"
    if kind == "greater_than_equal":
        return f"the number is less than {limits['ge']}"
    if kind == "int_parsing_size":
        return f"the number is larger than {NUMBER_MAX}"
    if kind == "too_long":
        return f"{limits['actual_length'] or 'too many'} are named, and at most {limits['max_length']} can be"
    return None
