"""odd values: every request of the control API with each of its fields, path parts and query parameters odd.

How it works      `requests` gives, for each route, one request that is right in its form, and that request
                  with one thing replaced at a time. Nothing here names a disk or file that could be hurt.
"""

import dataclasses
import json
import random
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import quote

from polyvol.daemon.api.route import Route

NUMBERS = (
    "-1",
    "0",
    "1",
    "4095",
    "4096",
    str(1 << 31),
    str((1 << 53) + 1),
    str((1 << 63) - 1),
    str((1 << 63) - 4096),
    str(1 << 63),
    str(-(1 << 63)),
    str(-(1 << 63) - 1),
    str(1 << 64),
    "1e3",
    "1e400",
    "-1e400",
    "0.5",
    "NaN",
    "Infinity",
    "9" * 400,
    "9" * 5000,
    "-" + "9" * 5000,
)
"""As JSON, or what is no JSON."""
_STRINGS = (
    "",
    " ",
    "v",
    "nix",
    "@g",
    "v@s",
    "../x",
    "/",
    "/nowhere/at/all",
    "/dev/null",
    "\0",
    "/\0",
    "a\nb",
    "\u202e\ud7ff\U0010ffff",
    "%s %d {name} {0!r}",
    "x" * 300,
    "/" + "x" * 300,
    "/" + "x/" * 5000,
    "*",
    "[",
    "(" * 100 + "*" * 100,
    "* * * * *",
    "0 0 31 2 *",
    "99999999999999999999 * * * *",
    "*/0 * * * *",
    "-5-5 * * * *",
    "9" * 5000,
    "00000000-0000-0000-0000-000000000000",
)
STRINGS = (*map(json.dumps, _STRINGS), '"\\ud800"', "'x'")
LISTS = (
    "[]",
    "[[]]",
    "[null]",
    "[1]",
    '["v", "v"]',
    '["nix", "v"]',
    '[""]',
    '["\\u0000"]',
    json.dumps([f"n{number}" for number in range(90_000)]),
    json.dumps(["v"] * 90_000),
    json.dumps(["*"] * 2000),
    "[" * 20_000,
    "{}",
    '{"x": 1}',
    "null",
    "true",
)
VALUES = (*NUMBERS, *STRINGS, *LISTS)
IN_PATHS = ("%00", "%ff", "nix", "..", "v%2Fs", "v@s", "%F0%9F%98%80", "x" * 3000, "%0a", "-1", "a%20b", "@")
_SENSIBLE: dict[str, Any] = {
    "name": "made",
    "volume": "v",
    "volumes": ["v"],
    "path": "/nowhere/at/all",
    "size": 1 << 20,
    "target": "v",
    "keep": {"last": 2},
    "every_s": 3600,
    "prefix": "p",
    "tag": "t",
    "names": ["s"],
    "source": "a file",
    "stream": "11111111-1111-1111-1111-111111111111",
    "snapshot": "r",
    "snapshot_uuid": "22222222-2222-2222-2222-222222222222",
    "export": "nix",
    "quiesce": "/bin/true",
    "ahead_s": 86_400,
    "weekly": False,
    "paused": False,
    "rate": 1 << 20,
}
_DRY = {"dry_run": True}
"""So that most are tried without being done."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request: the encoded path, with its query, and the text of its body."""

    method: str
    path: str
    body: str


def requests(routes: list[Route], names: dict[str, str]) -> Iterator[Request]:
    """All of them; `names`: what is there, for the parts of paths."""
    for route in routes:
        path = route.path
        for part, name in names.items():
            path = path.replace(f"{{{part}}}", quote(name))
        body = _body(route.body)
        text = "" if body is None else json.dumps(body)
        yield Request(route.method, path, text)
        for part in [each for each in names if f"{{{each}}}" in route.path]:
            for odd in IN_PATHS:
                other = route.path.replace(f"{{{part}}}", odd)
                for rest, name in names.items():
                    other = other.replace(f"{{{rest}}}", quote(name))
                yield Request(route.method, other, text)
        for parameter, _, _ in route.query:
            for value in VALUES:
                yield Request(route.method, f"{path}?{parameter}={quote(value[:8000])}", "")
            yield Request(route.method, f"{path}?{parameter}&{parameter}=1&{parameter}=%00", "")
        if body is not None:
            for text in _odd_bodies(route.body, body):
                yield Request(route.method, path, text)


def random_requests(routes: list[Route], names: dict[str, str], seed: int, count: int) -> Iterator[Request]:
    """Requests with several things odd at once."""
    draw = random.Random(seed)
    with_body = [route for route in routes if route.body is not None]
    for _ in range(count):
        route = draw.choice(with_body)
        path = route.path
        for part, name in names.items():
            path = path.replace(f"{{{part}}}", quote(name))
        body = {key: json.dumps(each) for key, each in (_body(route.body) or {}).items()}
        fields = dataclasses.fields(route.body)
        for field in draw.sample(fields, min(len(fields), draw.randint(2, 5))):
            kind = _kind(get_type_hints(route.body)[field.name])
            body[field.name] = draw.choice(kind if draw.random() < 0.9 else VALUES)
        members = ", ".join(f"{json.dumps(key)}: {each}" for key, each in body.items())
        yield Request(route.method, path, "{" + members + "}")


def _kind(of: Any) -> tuple[str, ...]:
    """Odd values that a field may take as far as its type goes."""
    kinds = {of, *get_args(of)}
    if bool in kinds:
        return ("true", "false")
    if int in kinds:
        return tuple(each for each in NUMBERS if each.lstrip("-").isdecimal())
    if str in kinds and get_origin(of) is not tuple:
        return STRINGS
    if get_origin(of) is tuple:
        return LISTS
    return VALUES


def _body(of: Any) -> dict[str, Any] | None:
    """A body of the right form for a type."""
    if of is None:
        return None
    body: dict[str, Any] = {}
    for field in dataclasses.fields(of):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required or field.name in ("size", "every_s", "dry_run"):
            body[field.name] = (_SENSIBLE | _DRY).get(field.name, "x")
    return body


def _odd_bodies(of: Any, body: dict[str, Any]) -> Iterator[str]:
    yield from ("", "[]", "null", "{", '{"x": 1}', *NUMBERS, "[" * 50_000, "\0", "\ufeff{}")
    hints = get_type_hints(of)
    for field in dataclasses.fields(of):
        for value in VALUES:
            yield _with(body, field.name, value)
        inner = next(
            (each for each in (hints[field.name], *get_args(hints[field.name])) if _is_body(each)), None
        )
        if inner is None:
            continue
        for each in dataclasses.fields(inner):
            for value in VALUES:
                own = {} if each.name == "quiesce" or field.name == "keep" else {"quiesce": "/bin/true"}
                yield _with(body, field.name, _with(own, each.name, value))


def _is_body(of: Any) -> bool:
    return get_origin(of) is None and dataclasses.is_dataclass(of)


def _with(body: dict[str, Any], name: str, value: str) -> str:
    """The body's text with one value as this text."""
    rest = {key: each for key, each in body.items() if key != name}
    members = [f"{json.dumps(key)}: {json.dumps(each)}" for key, each in rest.items()]
    return "{" + ", ".join([*members, f"{json.dumps(name)}: {value}"]) + "}"
