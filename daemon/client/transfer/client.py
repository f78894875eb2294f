"""An NBD export, accessed by libnbd: reads, writes and block status, by several threads at once.

How it works      Each thread has its own connection, made when first needed. libnbd waits without the GIL, so
                  that threads read, write and compress in parallel.
Invariants        TC1 while the first connection lasts, the name means one export: polyvold does not delete
                  what clients are connected to. So `check_first`, called at the end, proves that all
                  connections were to the same export.
Errors            TransferFailed, which names the export; LibnbdMissing.
"""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from polyvol.daemon.backup_errors import LibnbdMissing, TransferFailed
from polyvol.mapping.no_space import NO_SPACE
from polyvol.mapping.os_errors import DEFAULT_ADVICE, reason_of

ALLOCATION = "base:allocation"
CHANGED_SINCE = "qemu:dirty-bitmap:"
STATUS_BYTES = 256 << 20
"""What one question about block status is about, at most."""
_ZERO = 1 << 1
_Handle: TypeAlias = Any
_DIRTY = 1 << 0


class NbdExport:
    """An export at `uri`, called `name` in sentences. `since`: a snapshot to compare with."""

    def __init__(self, uri: str, name: str, *, since: str | None = None) -> None:
        try:
            import nbd  # Debian's package, which an installation may be without
        except ImportError as error:
            raise LibnbdMissing() from error
        self._nbd = nbd
        self._uri = uri
        self.name = name
        self._changed = None if since is None else CHANGED_SINCE + since
        self._own = threading.local()
        self._all: list[_Handle] = []
        self._lock = threading.Lock()
        self._first = self._connect([ALLOCATION, *([self._changed] if self._changed else [])])
        with self._errors("asking for the size of"):
            self.size = int(self._first.get_size())
            self.read_only = bool(self._first.is_read_only())
            if self._changed is not None and not self._first.can_meta_context(self._changed):
                raise TransferFailed(
                    what=f"comparing {name} with {since}", why="the server does not offer it"
                )

    def pread(self, length: int, offset: int) -> bytearray:
        """Read."""
        with self._errors("reading"):
            data: bytearray = self._mine().pread(length, offset)
            return data

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        """Write."""
        with self._errors("writing"):
            self._mine().pwrite(data, offset)

    def zero(self, length: int, offset: int) -> None:
        """Write zeros; the space may be freed."""
        handle = self._mine()
        with self._errors("writing"):
            if not handle.can_zero():
                for at in range(offset, offset + length, 1 << 20):
                    handle.pwrite(bytes(min(1 << 20, offset + length - at)), at)
                return
            while length:
                here = min(length, 1 << 30)
                handle.zero(here, offset)
                offset, length = offset + here, length - here

    def check_first(self) -> None:
        """TransferFailed unless the first connection has lasted until now (TC1)."""
        with self._errors("reading"):
            self._first.pread(1, 0)

    def flush(self) -> None:
        """Make all writes durable, on all connections."""
        with self._errors("flushing"):
            for handle in self._all if not self._first.can_multi_conn() else [self._first]:
                if handle.can_flush():
                    handle.flush()

    def status(self) -> Iterator[tuple[int, int, bool, bool]]:
        """Runs that cover the whole export, in order: offset, length, whether it certainly reads as zeros,
        whether it changed since the snapshot that it is compared with (True if there is none)."""
        at = 0
        while at < self.size:
            wanted = min(STATUS_BYTES, self.size - at)
            told = self._ask_status(wanted, at)
            zeros = told.get(ALLOCATION) or [wanted, 0]
            changed = [wanted, _DIRTY] if self._changed is None else told.get(self._changed, [])
            if not changed:
                raise TransferFailed(what=f"comparing on {self.name}", why="the server did not say")
            for length, zero, dirty in _merged(zeros, changed):
                yield at, length, bool(zero & _ZERO), bool(dirty & _DIRTY)
                at += length

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            handles, self._all = self._all, []
        for handle in handles:
            with suppress(self._nbd.Error):
                handle.shutdown(self._nbd.SHUTDOWN_ABANDON_PENDING)

    def _ask_status(self, length: int, offset: int) -> dict[str, list[int]]:
        told: dict[str, list[int]] = {}

        def extents(context: str, start: int, entries: list[int], _: object) -> int:
            if start == offset:
                told[context] = entries
            return 0

        with self._errors("asking for the block status of"):
            if not (self._first.can_meta_context(ALLOCATION) or self._changed):
                return told
            self._first.block_status(length, offset, extents)
        return told

    def _connect(self, contexts: list[str]) -> _Handle:
        with self._errors("connecting"):
            handle = self._nbd.NBD()
            for context in contexts:
                handle.add_meta_context(context)
            handle.connect_uri(self._uri)
        with self._lock:
            self._all.append(handle)
        return handle

    def _mine(self) -> _Handle:
        handle = getattr(self._own, "handle", None)
        if handle is None:
            handle = self._own.handle = self._connect([])
        return handle

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._nbd.Error as error:
            raise TransferFailed(
                what=f"{doing} {self.name}", why=_words(error), todo=_advice(error)
            ) from error


def _words(error: Any) -> str:  # noqa: ANN401 - of libnbd, which has no types
    """libnbd's message, without the names of its functions."""
    if error.errnum == errno.ENOENT and "server replied" in str(error.string):
        return "the server has no such export"
    if error.errnum in NO_SPACE:
        return "no space is left for it"
    if error.errnum:
        return reason_of(error.errnum)
    return str(error.string).removeprefix("nbd_").split(": ", 1)[-1]


def _advice(error: Any) -> str:  # noqa: ANN401 - of libnbd, which has no types
    """The hint for an error that a server returned, or for a server that does not answer."""
    if error.errnum in (errno.EIO, *NO_SPACE):
        return "see `polyvol status` of the polyvold that serves it, then try again"
    return DEFAULT_ADVICE


def _merged(one: list[int], other: list[int]) -> Iterator[tuple[int, int, int]]:
    """Two lists of length, flags, length, flags... as one, as far as both go."""
    left, right = iter(zip(one[::2], one[1::2], strict=True)), iter(zip(other[::2], other[1::2], strict=True))
    length, flags = next(left)
    length_other, flags_other = next(right)
    while True:
        here = min(length, length_other)
        yield here, flags, flags_other
        length -= here
        length_other -= here
        try:
            if not length:
                length, flags = next(left)
            if not length_other:
                length_other, flags_other = next(right)
        except StopIteration:
            return
