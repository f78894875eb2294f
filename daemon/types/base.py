"""What the types of the API share. Sizes, offsets and lengths are bytes."""

from datetime import UTC, datetime
from functools import lru_cache


def iso(nanoseconds: int) -> str:
    """An instant (ns since 1970, UTC) as ISO 8601 with microseconds."""
    microseconds = nanoseconds % 1_000_000_000 // 1000
    fraction = f".{microseconds:06d}" if microseconds else ""
    return f"{_second(nanoseconds // 1_000_000_000)}{fraction}Z"


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    """A second since 1970 as ISO 8601, without its zone. Many instants of a list lie in one."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


WHY_FUTURE = "so the clock was ahead then, or is behind now"


STRICT = {"extra": "forbid", "strict": True}
"""For pydantic, which the API reads requests with: unknown keys and wrong types are refused."""
