"""The command line's client of the control API: one request, one answer, over the control socket.

How it works      A request that only reads has a time-out. One that changes something has none, because hooks
                  and disks may be slow: after a while a line on stderr says that it waits.
Errors            What the API refuses is raised as ApiError with the same words; DaemonNotRunning and
                  DaemonUnreachable (unreachable.py) if there is no answer, or one of another program;
                  DaemonVersion if another version does not understand the request; NotText.
"""

import http.client
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

from polyvol.daemon.client.cli.unreachable import not_polyvold, not_reached, silent
from polyvol.daemon.errors import DaemonVersion, NotText
from polyvol.daemon.state.directory import control_socket
from polyvol.daemon.version import version
from polyvol.mapping.errors import BadName

Json: TypeAlias = Any
"""What JSON can say; openapi.json has the exact types."""

CONNECT_S = 10
READ_S = 60.0
"""How long an answer to a request that changes nothing may take."""
NOTICE_S = 15.0
SERVER = "polyvold"
VERSION_HEADER = "Polyvol-Version"
_SHOWN_MAX = 100
_NOT_UNDERSTOOD = ("bad-request", "no-such-page")
_latest: list[tuple[Path, str | None]] = []


def latest_answer() -> tuple[Path, str | None] | None:
    """The source of the last answer: the state directory, and the version of its polyvold. None: there was no
    answer."""
    return _latest[-1] if _latest else None


class ApiError(Exception):
    """An error that the API answered with: its code, its sentence and its hint."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.code = code
        self.message = message
        self.advice = hint


class Client:
    """Asks the daemon of one state directory. `read_s`: how long an answer to a request that changes nothing
    may take."""

    def __init__(self, state_dir: Path, *, read_s: float = READ_S) -> None:
        self._state_dir = state_dir
        self._read_s = read_s

    def get(self, *parts: str, **query: str | bool | None) -> Json:
        """GET /v1/PART/PART..., with those query parameters that are not None."""
        return self._ask("GET", parts, query, None)

    def get_file(self, *parts: str) -> bytes:
        """GET a result that is not JSON."""
        answer: bytes = self._ask("GET", parts, {}, None, is_file=True)
        return answer

    def post(self, *parts: str, body: object) -> Json:
        """POST a body."""
        return self._ask("POST", parts, {}, body)

    def patch(self, *parts: str, body: object) -> Json:
        """PATCH with a body."""
        return self._ask("PATCH", parts, {}, body)

    def delete(self, *parts: str) -> Json:
        """DELETE the path."""
        return self._ask("DELETE", parts, {}, None)

    def _ask(
        self,
        method: str,
        parts: tuple[str, ...],
        query: dict[str, str | bool | None],
        body: object,
        *,
        is_file: bool = False,
    ) -> Json:
        for noun, part in zip(("", *parts), parts, strict=False):
            if not part:
                raise BadName(noun=noun.removesuffix("s"), name=part)
        parts, query, body = (_as_utf8(each) for each in (parts, query, body))
        target = "/v1/" + "/".join(quote(part, safe="") for part in parts)
        given = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in query.items()
            if value is not None
        }
        if given:
            target += "?" + urlencode(given)
        text = None if body is None else json.dumps(body)
        status, headers, answer = self._exchange(method, target, text, is_file=is_file)
        theirs = headers.get(VERSION_HEADER)
        _latest[:] = [(self._state_dir, theirs)]
        if status >= 400:
            raise self._refused(answer, theirs)
        return answer

    def _exchange(
        self, method: str, target: str, text: str | None, *, is_file: bool
    ) -> tuple[int, http.client.HTTPMessage, Json]:
        """Send a request, and read the answer: its status, its headers and its body, unparsed for a file."""
        reads = method == "GET"
        path = control_socket(self._state_dir)
        connection = _UnixConnection(path, self._read_s if reads else None)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise not_reached(self._state_dir, error) from error
            headers = {} if text is None else {"Content-Type": "application/json"}
            with _notice(self._state_dir, NOTICE_S):
                connection.request(method, target, text, headers)
                with connection.getresponse() as response:
                    if response.getheader("Server") != SERVER:
                        raise not_polyvold(self._state_dir)
                    answer = response.read()
                    if not is_file or response.status >= 400:
                        answer = json.loads(answer)
                    return response.status, response.headers, answer
        except TimeoutError as error:
            raise silent(self._state_dir, f"it has not answered for {self._read_s:.0f} s") from error
        except (http.client.BadStatusLine, http.client.UnknownProtocol, http.client.LineTooLong) as error:
            if isinstance(error, http.client.RemoteDisconnected):
                raise silent(self._state_dir, "it ended before it answered", changes=not reads) from error
            raise not_polyvold(self._state_dir) from error
        except (http.client.HTTPException, ValueError, OSError) as error:
            raise silent(self._state_dir, "its answer broke off", changes=not reads) from error
        finally:
            connection.close()

    def _refused(self, answer: Json, theirs: str | None) -> Exception:
        try:
            error = ApiError(**answer["error"])
        except (TypeError, KeyError):
            return not_polyvold(self._state_dir)
        ours = version()
        if error.code in _NOT_UNDERSTOOD and theirs != ours:
            theirs = theirs or "unknown"
            return DaemonVersion(state=self._state_dir, theirs=theirs, ours=ours, why=error.message)
        return error


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket. `timeout_s`: for each part of the answer."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        if self.sock is not None:
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The kernel's time-out: Python's own would not wait for a free place in the backlog.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", CONNECT_S, 0))
        self.sock.connect(os.fsencode(self._path))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))
        self.sock.settimeout(self._timeout_s)


@contextmanager
def _notice(state_dir: Path, after_s: float) -> Iterator[None]:
    """After a while, print on stderr that polyvold has not answered yet, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    text = f"polyvold on {state_dir} has not answered for {after_s:.0f} s; still waiting, Ctrl-C ends that"
    timer = threading.Timer(after_s, lambda: print(text, file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _as_utf8(value: Json) -> Json:
    """A value whose texts are all UTF-8, whatever the encoding of this locale; NotText."""
    if isinstance(value, str):
        return _text_as_utf8(value)
    if isinstance(value, dict):
        return {key: _as_utf8(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_utf8(each) for each in value]
    return value


def _text_as_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode()
        except UnicodeDecodeError as error:
            raise NotText(text=text[:_SHOWN_MAX]) from error
    return text
