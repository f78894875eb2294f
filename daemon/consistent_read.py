"""Consistent read: everything in one answer shows one state.

How it works      Within `ConsistentRead.one_state` the thread's queries see one state of the catalog, and the
                  engine is asked for its exports and its counters once. The two are joined by ids and names:
                  an object that the engine does not have (yet, or any more) is shown by its catalog record
                  alone.
Invariants        RE1 nothing is changed within it, and no lock is waited for: a verb that decides something
                  reads again under its locks (the catalog refuses a transaction within it).
Owner and locks   None: each thread has its own.
Errors            CatalogFailed.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from polyvol.daemon.engine_border import EngineLike
from polyvol.mapping.catalog.store import Catalog

if TYPE_CHECKING:
    from polyvol.daemon.context import Context
    from polyvol.engine import EngineStats, ExportInfo

P = ParamSpec("P")
R = TypeVar("R")


class _Reader(Protocol):
    """A class with verbs that only read."""

    @property
    def _context(self) -> "Context": ...


V = TypeVar("V", bound=_Reader)


class _Facts(threading.local):
    """The engine's answers to this thread."""

    reading = False
    exports: "Sequence[ExportInfo] | None" = None
    stats: "EngineStats | None" = None


class ConsistentRead:
    """The catalog and the engine, for verbs that only read."""

    def __init__(self, catalog: Catalog, engine: EngineLike) -> None:
        self._catalog = catalog
        self._engine = engine
        self._facts = _Facts()

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """One state for all that this thread reads within; may be nested."""
        facts = self._facts
        if facts.reading:
            yield
            return
        with self._catalog.reading():
            facts.reading = True
            try:
                yield
            finally:
                facts.reading, facts.exports, facts.stats = False, None, None

    def exports(self) -> "Sequence[ExportInfo]":
        """All exports, by name."""
        facts = self._facts
        if not facts.reading:
            return self._engine.exports()
        if facts.exports is None:
            facts.exports = self._engine.exports()
        return facts.exports

    def stats(self) -> "EngineStats":
        """The engine's counters."""
        facts = self._facts
        if not facts.reading:
            return self._engine.stats()
        if facts.stats is None:
            facts.stats = self._engine.stats()
        return facts.stats


def reads(verb: Callable[Concatenate[V, P], R]) -> Callable[Concatenate[V, P], R]:
    """Run a verb that only reads within one state."""

    @functools.wraps(verb)
    def in_one_state(self: V, /, *arguments: P.args, **named: P.kwargs) -> R:
        with self._context.reading():
            return verb(self, *arguments, **named)

    return in_one_state
