"""Pages of the control API, all that there are; and texts that several tables share.

How it works      Where the next page begins is known from the page before it. It is asked for as soon as that
                  has come, so that polyvold makes it while this process uses what it has. The thread that
                  waits for it does not keep the process from ending.
Errors            ReplacedBetweenPages.
"""

from collections.abc import Callable, Iterator
from functools import partial
from threading import Thread

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.mapping.sizes import counted, format_size
from polyvol.snapshot.errors.partitions import ReplacedBetweenPages

_COUNT = "4096"
UNKNOWN = "unknown"


def pages(client: Client, name: str, *parts: str, **query: str | bool | None) -> Iterator[Json]:
    """All pages of what belongs to a volume or snapshot; `name`: that, for people."""

    def ask(first: int) -> Json:
        return client.get(*parts, first=str(first), count=_COUNT, **query)

    page = ask(0)
    uuid = page["uuid"]
    while page["next"] is not None:
        following = _Asked(partial(ask, page["next"]))
        yield page
        page = following.answer()
        if page["uuid"] != uuid:
            raise ReplacedBetweenPages(name=name)
    yield page


class _Asked:
    """A page that polyvold makes while the one before it is used here."""

    def __init__(self, ask: Callable[[], Json]) -> None:
        self._ask = ask
        self._answer: Json = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def answer(self) -> Json:
        """The page; what asking for it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except BaseException as error:  # raised by `answer`
            self._error = error


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
