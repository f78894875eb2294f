"""Main loop: what polyvold's main thread does while it serves: obey signals, tell systemd how things are.

How it works      SIGTERM and SIGINT end the loop, SIGHUP reloads (signals.py), on a thread of its own: a
                  device that hangs does not delay the loop. Between signals systemd gets one line on
                  what is served, and, if it wants a watchdog's ping, one each time that the control API's
                  loop and the engine have answered. If they do not, polyvold stays silent, and systemd starts
                  it again.
Owner and locks   The main thread, which takes no lock and waits for no device, and one thread for each
                  reload; a SIGHUP while one is under way has another one follow it.
Errors            A failed reload is logged; the old settings stay in effect.
"""

import logging
import time
from collections.abc import Callable
from functools import partial

from polyvol.daemon.config import Config
from polyvol.daemon.host.notify import notify, watchdog_interval_s
from polyvol.daemon.host.signals import ENDING, RELOADING, next_signal
from polyvol.daemon.service import Service
from polyvol.daemon.workers import Workers
from polyvol.mapping.errors import PolyvolError

STATUS_INTERVAL_S = 10.0
PROBE_TIMEOUT_S = 5.0
_log = logging.getLogger("polyvol")


def run(service: Service, read_again: Callable[[], Config]) -> None:
    """Run until SIGTERM or SIGINT. `read_again` reads the settings again, or raises PolyvolError."""
    watchdog_s = watchdog_interval_s()
    interval_s = min(STATUS_INTERVAL_S, watchdog_s or STATUS_INTERVAL_S)
    told = ""
    reloads = Workers("polyvol-reload", concurrent=1)
    while True:
        status = _status(service)
        if status is not None:
            states = [status] if status != told else []
            told = status
            if watchdog_s is not None:
                states.append("WATCHDOG=1")
            if states:
                notify(*states)
        number = next_signal(interval_s)
        if number in ENDING:
            return
        if number == RELOADING:
            reloads.run("reload", partial(_reload, service, read_again))
            told = ""


def _status(service: Service) -> str | None:
    """The status line of a service that answers; None if it does not."""
    try:
        if service.probe(PROBE_TIMEOUT_S):
            return f"STATUS={service.summary()}"
        _log.error("the control API's loop did not answer within %.0f s", PROBE_TIMEOUT_S)
    except Exception:
        _log.exception("asking whether the control API and the engine answer")
    return None


def _reload(service: Service, read_again: Callable[[], Config]) -> None:
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        config = read_again()
        service.reload(config.processors, io_timeout_s=config.io_timeout_s)
        _log.info("reloaded")
    except PolyvolError as error:
        _log.error("the reload failed, and what was set before goes on: %s", error)
    except Exception:
        _log.exception("the reload failed, and what was set before goes on")
    notify("READY=1")
