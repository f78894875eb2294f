"""The parameters of routes that answer with a page of a list."""

from typing import Literal

from polyvol.daemon.api.route import Call
from polyvol.daemon.partitions.pages import COUNT, COUNT_MAX

Parameter = tuple[str, Literal["string"], str]


def page_query(what: str) -> tuple[Parameter, Parameter]:
    """The parameters of a route whose pages begin with a `what`, such as 'The number of the run'."""
    first = f"{what} that the page begins with: 0, or `next` of the page before"
    count = f"How much a page has, up to {COUNT_MAX} [{COUNT}]"
    return ("first", "string", first), ("count", "string", count)


def page(call: Call) -> tuple[int, int]:
    """The page that a call asks for: where it begins, and how much it has."""
    return call.number("first", 0), call.number("count", COUNT)
