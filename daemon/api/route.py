"""Routes as data: what the server serves and what the OpenAPI document describes are the same table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from polyvol.daemon.errors import BadRequest
from polyvol.daemon.ranges import NUMBER_MAX

if TYPE_CHECKING:
    from polyvol.daemon.service import Service

_DIGITS_MAX = 100


@dataclass(frozen=True, slots=True)
class Call:
    """A request that came in: what its path and its query name, and its body, read as the route's type."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any = None

    def flag(self, name: str) -> bool:
        """A query parameter that is true or false (when missing)."""
        value = self.query.get(name, "false")
        if value not in ("true", "false"):
            raise BadRequest(why=f"{name} is {value!r}, and can be true or false")
        return value == "true"

    def number(self, name: str, default: int) -> int:
        """A query parameter that is a whole number."""
        value = self.query.get(name)
        return default if value is None else _whole(name, value)

    def number_in_path(self, name: str) -> int:
        """A part of the path that is a whole number."""
        return _whole(name, self.path[name])


def _whole(name: str, value: str) -> int:
    """A whole number up to NUMBER_MAX; BadRequest."""
    if not value.isascii() or not value.isdecimal() or len(value) > _DIGITS_MAX:
        raise BadRequest(why=f"{name} is {value[:100]!r}, and can be a whole number up to {NUMBER_MAX}")
    number = int(value)
    if number > NUMBER_MAX:
        raise BadRequest(why=f"{name} is {number}, which is more than {NUMBER_MAX}")
    return number


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path. `body` and `result` are types from daemon/types; a result of bytes
    is a file. `query` names the parameters with their type and a sentence each. `slow`: it may take long
    although it changes nothing. `frees`: it frees space, as each DELETE and PATCH may, so it may use the
    reserve of the state directory."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    summary: str
    call: "Callable[[Service, Call], object]"
    result: Any
    body: Any = None
    status: int = 200
    query: tuple[tuple[str, Literal["boolean", "string"], str], ...] = ()
    slow: bool = False
    frees: bool = False
