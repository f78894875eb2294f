"""Pages: which part of a long list a request is for.

Errors            BadRequest.
"""

from polyvol.daemon.errors import BadRequest

COUNT = 1000
"""How much a page has if the request does not say it."""
COUNT_MAX = 10_000


def checked(first: int, count: int) -> None:
    """Refuse a page that cannot be."""
    if first < 0 or not 1 <= count <= COUNT_MAX:
        raise BadRequest(why=f"first is 0 or more, and count from 1 to {COUNT_MAX}")


def following(first: int, count: int, end: int) -> int | None:
    """Where the page after this one begins; None if `end` is within it."""
    return first + count if first + count < end else None
