"""Pages of the control API, requested one by one until the last; and texts that several tables share.

Errors            ReplacedBetweenPages.
"""

from collections.abc import Iterator

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.mapping.sizes import counted, format_size
from polyvol.snapshot.errors.partitions import ReplacedBetweenPages

_COUNT = "10000"
UNKNOWN = "unknown"


def pages(client: Client, name: str, *parts: str, **query: str | bool | None) -> Iterator[Json]:
    """All pages of what belongs to a volume or snapshot; `name`: that, for people."""
    following: int | None = 0
    uuid = None
    while following is not None:
        page = client.get(*parts, first=str(following), count=_COUNT, **query)
        if uuid is not None and page["uuid"] != uuid:
            raise ReplacedBetweenPages(name=name)
        uuid, following = page["uuid"], page["next"]
        yield page


def entries(client: Client, name: str, key: str, *parts: str, **query: str | bool | None) -> list[Json]:
    """What all pages have under `key`."""
    return [entry for page in pages(client, name, *parts, **query) for entry in page[key]]


def known(value: object) -> object:
    """A value; 'unknown' for None."""
    return UNKNOWN if value is None else value


def known_size(size: int | None) -> str:
    """A size for people; 'unknown' for None."""
    return UNKNOWN if size is None else format_size(size)


def written_text(writes: int | None, written: int | None) -> str:
    """Writes and their bytes for people; 'unknown' for None."""
    if writes is None or written is None:
        return UNKNOWN
    return f"{counted(writes, 'write')}, {format_size(written)}" if writes else "0 writes"
