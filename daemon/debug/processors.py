"""Processors: what each is at and what waits in it, as users see it.

How it works      The engine answers within half a second, also if processors are stuck. Names are added: of
                  volumes by the catalog, which is asked for as long as NAMES_S, because its disk may hang; of
                  threads by the kernel.
Errors            EngineFailed, when the engine is being stopped.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from polyvol.daemon.context import Context
from polyvol.daemon.errors import log_failure
from polyvol.daemon.types.debug import (
    CountView,
    InFlightView,
    ProcessorDebugView,
    ProcessorsView,
    ShareDebugView,
)
from polyvol.daemon.workers import answers

if TYPE_CHECKING:
    from polyvol.engine import EngineInspection, Group, ProcessorLook, ShareLook

NAMES_S = 1.0
_log = logging.getLogger("polyvol")
TASKS = Path("/proc/self/task")


def inspect(context: Context) -> "EngineInspection":
    """What the engine is at."""
    with context.engine_errors("looking at the processors"):
        return context.engine.inspect()


def volume_names(context: Context) -> dict[int, str]:
    """Every volume's name, by id."""
    return {volume.id: volume.shown_name for volume in context.catalog.volumes.all()}


def names_soon(context: Context) -> dict[int, str]:
    """Every volume's name, by id; none if the catalog does not answer soon: then numbers are shown."""

    def names() -> dict[int, str]:
        try:
            return volume_names(context)
        except Exception as error:
            log_failure(_log, "finding out the names of volumes", error)
            return {}

    return answers({"names": names}, NAMES_S, "polyvol-debug").get("names", {})


def processors_view(inspection: "EngineInspection", names: Mapping[int, str]) -> ProcessorsView:
    """All processors; `names`: of volumes."""
    processors = [_processor(look, names) for look in inspection["processors"]]
    return ProcessorsView(cutting=inspection["cutting"], processors=processors)


def named(identity: int | None, names: Mapping[int, str]) -> str | None:
    """The name of a volume or device, or its number, where there is one."""
    return None if identity is None else names.get(identity, f"number {identity}")


def _processor(look: "ProcessorLook", names: Mapping[int, str]) -> ProcessorDebugView:
    return ProcessorDebugView(
        processor=look["processor"],
        answered=look["answered"],
        running=look["running"],
        sharing=look["sharing"],
        own_thread=look["own_thread"],
        thread=look["thread"],
        thread_name=None if look["thread"] is None else thread_name(look["thread"]),
        since_ms=look["since_ms"],
        doing=look["doing"],
        doing_volume=named(look["doing_volume"], names),
        queued_parts=_group(look["queued_parts"]),
        queued_others=_group(look["queued_others"]),
        shares_ms=look["shares_ms"],
        shares=[_share(share, names) for share in look["shares"]],
    )


def _share(look: "ShareLook", names: Mapping[int, str]) -> ShareDebugView:
    return ShareDebugView(
        volume=named(look["volume"], names),
        queued=look["queued"],
        turn=_group(look["turn"]),
        overlap=_group(look["overlap"]),
        backlog={kind: _group(group) for kind, group in look["backlog"].items()},
        held=_group(look["held"]),
        starved=_group(look["starved"]),
        reserved=_group(look["reserved"]),
        in_flight=[InFlightView(**handed) for handed in look["in_flight"]],
        given_up=_group(look["given_up"]),
        settling=_group(look["settling"]),
        cut_ms=look["cut_ms"],
        checkpointing=look["checkpointing"],
        leaving=look["leaving"],
        rolling_back=look["rolling_back"],
    )


def _group(group: "Group") -> CountView:
    return CountView(count=group["count"], oldest_ms=group["oldest_ms"])


def thread_name(thread: int) -> str | None:
    """The name of a thread of this process; None if it has ended."""
    try:
        return (TASKS / str(thread) / "comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return None
