"""Isolation: an error of one object ends the work on that object, and nothing else.

How it works      The body of each loop over objects (devices, volumes, snapshots, schedules, connections) is
                  `with isolate(...)`. It catches every error of the body, expected or not, and reports it as
                  a clause: to `failed`, or as an event. An unexpected error is logged with its traceback.
Invariants        AP1 no Exception leaves the body; only exceptions that end the process do.
Owner and locks   None of its own.
"""

import logging
from collections.abc import Callable
from types import TracebackType

from polyvol.daemon.context import Context
from polyvol.daemon.errors import JournalsUnusable
from polyvol.mapping import os_errors
from polyvol.mapping.errors import PolyvolError

DEFECT = "internal error in polyvold; its log has the details"
"""What users see of an unexpected error."""

_log = logging.getLogger("polyvol")


class _Isolation:
    """The context manager of `isolate`."""

    def __init__(self, context: Context, what: str, failed: Callable[[str], object]) -> None:
        self._context = context
        self._what = what
        self._failed = failed

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return error is None
        self._failed(logged_reason(self._context, self._what, error))
        return True


def isolate(
    context: Context,
    what: str,
    failed: Callable[[str], object] | None = None,
    *,
    volume: str | None = None,
    **fields: object,
) -> _Isolation:
    """Catch all errors of the body. `what`: the action and its object, for people. `failed` gets the
    reason, a clause; without it, `what` and the reason become an event, which is not repeated while it is
    among the latest. `volume` and `fields` are for the journal."""

    def report(reason: str) -> None:
        context.events.add_once("warning", f"{what} failed: {reason}", volume=volume, **fields)

    return _Isolation(context, what, failed or report)


def logged_reason(context: Context, what: str, error: Exception) -> str:
    """An error as a clause for people; an unexpected one is logged with its traceback and `what`."""
    if not isinstance(error, (PolyvolError, OSError, context.engine_error)):
        _log.error("%s", what, exc_info=error)
    return reason_of(context, error)


def reason_of(context: Context, error: Exception) -> str:
    """An error as a clause for people."""
    if isinstance(error, JournalsUnusable):
        return str(error)  # with what to do, which depends on the journals
    if isinstance(error, PolyvolError):
        return error.message
    if isinstance(error, context.engine_error):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = "" if error.filename is None else f"{error.filename}: "
        return where + os_errors.reason(error)
    return DEFECT
