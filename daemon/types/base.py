"""What the types of the API share. Sizes, offsets and lengths are bytes."""

from datetime import UTC, datetime


def iso(nanoseconds: int) -> str:
    """An instant (ns since 1970, UTC) as ISO 8601 with microseconds."""
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    return moment.replace(microsecond=nanoseconds % 1_000_000_000 // 1000).isoformat().replace("+00:00", "Z")


WHY_FUTURE = "so the clock was ahead then, or is behind now"


STRICT = {"extra": "forbid", "strict": True}
"""For pydantic, which the API reads requests with: unknown keys and wrong types are refused."""
