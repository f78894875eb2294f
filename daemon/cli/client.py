"""The command line's client of the control API: one request, one answer, over the control socket.

Errors            What the API refuses is raised as ApiError with the same words; DaemonNotRunning and
                  DaemonUnreachable where nobody answers.
"""

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

from polyvol.daemon.errors import DaemonNotRunning, DaemonUnreachable
from polyvol.daemon.state import control_socket

Json: TypeAlias = Any
"""What JSON can say; openapi.json has the exact types."""


class ApiError(Exception):
    """An error that the API answered with: its sentence, and its code."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.code = code


class Client:
    """Asks the daemon of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def get(self, *parts: str, **query: str | bool | None) -> Json:
        """GET /v1/PART/PART..., with those query parameters that are not None."""
        return self._ask("GET", parts, query, None)

    def post(self, *parts: str, body: object) -> Json:
        """POST a body."""
        return self._ask("POST", parts, {}, body)

    def patch(self, *parts: str, body: object) -> Json:
        """PATCH with a body."""
        return self._ask("PATCH", parts, {}, body)

    def delete(self, *parts: str) -> Json:
        """DELETE what the path names."""
        return self._ask("DELETE", parts, {}, None)

    def _ask(
        self, method: str, parts: tuple[str, ...], query: dict[str, str | bool | None], body: object
    ) -> Json:
        target = "/v1/" + "/".join(quote(part, safe="") for part in parts)
        given = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in query.items()
            if value is not None
        }
        if given:
            target += "?" + urlencode(given)
        connection = _UnixConnection(control_socket(self._state_dir))
        try:
            text = None if body is None else json.dumps(body)
            headers = {} if text is None else {"Content-Type": "application/json"}
            connection.request(method, target, text, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise DaemonNotRunning(state=self._state_dir) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "its answer broke off"
            raise DaemonUnreachable(state=self._state_dir, why=why) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise ApiError(**answer["error"])
        return answer


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(os.fspath(self._path))
