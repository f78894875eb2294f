"""Dump: all that there is to see of this process, for a bug report. It has names and paths, and nothing of
what is stored.

How it works      Each section is asked for on a thread of its own, and none is waited for longer than
                  PATIENCE_S: a lock that is held, or a device or a state directory that hangs, costs its
                  section and no other. What is missing is said.
Owner and locks   It takes no lock of objects, and changes nothing.
Errors            None: what fails is among `problems`.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from polyvol.daemon.clients.verbs import Clients
from polyvol.daemon.context import Context
from polyvol.daemon.debug import threads
from polyvol.daemon.debug.processors import inspect, named, names_soon, processors_view, volume_names
from polyvol.daemon.isolation import reason_of
from polyvol.daemon.restores.verbs import HIDDEN
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.debug import DumpView, LockView, ProcessorsView
from polyvol.daemon.types.status import StatusView
from polyvol.daemon.workers import answers

PATIENCE_S = 3.0
_SECTIONS = {
    "status": "the status",
    "engine": "what the engine is at",
    "volumes": "the names of volumes",
    "devices": "the names of devices",
    "threads": "the threads",
    "locks": "the locks",
    "connections": "the connections",
    "exports": "the exports",
    "descriptors": "the open descriptors",
    "process": "the process",
}
_log = logging.getLogger("polyvol")


class Debug:
    """What the process is at."""

    def __init__(self, context: Context, clients: Clients) -> None:
        self._context = context
        self._clients = clients

    def processors(self) -> ProcessorsView:
        """What each processor is at, and what waits in it; EngineFailed."""
        return processors_view(inspect(self._context), names_soon(self._context))

    def dump(self, status: Callable[[], StatusView]) -> DumpView:
        """All that there is to see."""
        context = self._context
        sections: dict[str, Callable[[], Any]] = {
            "status": status,
            "engine": partial(inspect, context),
            "volumes": partial(volume_names, context),
            "devices": context.device_names,
            "threads": threads.thread_views,
            "locks": self._locks,
            "connections": self._clients.list_all,
            "exports": self._exports,
            "descriptors": threads.descriptor_counts,
            "process": threads.process_facts,
        }
        found, problems = self._asked(sections)
        engine, volumes, devices = (found.get(name) for name in ("engine", "volumes", "devices"))
        return DumpView(
            time=iso(context.clock()),
            problems=problems,
            status=found.get("status"),
            processors=None if engine is None else processors_view(engine, volumes or {}),
            engine=None if engine is None else _rest(engine, volumes or {}, devices or {}),
            threads=found.get("threads", []),
            locks=found.get("locks", []),
            connections=found.get("connections", []),
            exports=found.get("exports", []),
            descriptors=found.get("descriptors", {}),
            process=found.get("process", {}),
        )

    def _asked(self, sections: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], list[str]]:
        """What each section answers in time, and what is to be said of the others."""
        problems = {}

        def ask(name: str) -> tuple[bool, object]:
            try:
                return True, sections[name]()
            except Exception as error:
                _log.warning("a dump lacks %s", _SECTIONS[name], exc_info=error)
                problems[name] = (
                    f"{_SECTIONS[name]} could not be found out: {reason_of(self._context, error)}"
                )
                return False, None

        questions = {name: partial(ask, name) for name in sections}
        answered = answers(questions, PATIENCE_S, "polyvol-debug")
        for name in sections.keys() - answered.keys():
            problems.setdefault(name, f"{_SECTIONS[name]} could not be found out: no answer in time")
        found = {name: answer for name, (good, answer) in answered.items() if good}
        return found, [problems[name] for name in sections if name in problems]

    def _locks(self) -> list[LockView]:
        locks = self._context.locks
        views = [
            LockView(
                noun=operation.noun,
                names=operation.names,
                what=operation.what,
                seconds=round(locks.seconds(operation), 3),
                waiting=locks.waiting(operation),
                thread=threads.native_id(operation.thread),
            )
            for operation in locks.held()
        ]
        holder = locks.catalog_lock.holder()
        if holder is not None:
            ident, seconds = holder
            views.append(
                LockView(
                    noun="catalog",
                    names=[],
                    what="a change of the catalog",
                    seconds=round(seconds, 3),
                    waiting=0,
                    thread=threads.native_id(ident),
                )
            )
        return views

    def _exports(self) -> list[dict[str, Any]]:
        """All exports; the name of one that is hidden is a secret of who restores to it."""
        return [
            {**export, "name": export["name"].partition(HIDDEN)[0]}
            for export in self._context.engine.exports()
        ]


def _rest(inspection: Any, volumes: dict[int, str], devices: dict[int, str]) -> dict[str, Any]:  # noqa: ANN401
    """The engine's inspection but for its processors, with names."""
    flushers = [{**each, "volume": named(each["volume"], volumes)} for each in inspection["flushers"]]
    pools = []
    for pool in inspection["pools"]:
        lanes = [
            {**lane, "volume": named(lane["volume"], volumes), "device": named(lane["device"], devices)}
            for lane in pool["lanes"]
        ]
        pools.append({**pool, "lanes": lanes})
    kept = {name: inspection[name] for name in ("memory", "limits", "cutting")}
    return {"flushers": flushers, "pools": pools, **kept}
