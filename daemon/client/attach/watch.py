"""Supervising one attached volume in the foreground: what polyvol-attach@NAME.service runs.

How it works      Attaches, or takes over what an earlier process attached, and notifies systemd. Then it
                  sleeps until the kernel reports a dead link (it reconnects, and retries until the daemon is
                  back), a signal arrives (SIGTERM: detach; SIGHUP: check now), or a check is due whether the
                  export has grown. nbdfuse cannot reconnect: with it, the process waits for the end of
                  nbdfuse.
Invariants        AW1 a device that is in use is never ended here: it stays in the kernel, for the next
                  process to take over. When the host shuts down, it is unmounted first, and its use as
                  swap is ended.
Errors            Those of the first attach; a server that does not answer is retried for START_S first. Later
                  errors are logged, once each, and retried.
"""

import contextlib
import functools
import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from polyvol.daemon.client.attach import disks, fuse, nbd_device, units
from polyvol.daemon.client.attach.disks import path_of
from polyvol.daemon.client.attach.errors import AttachedInUse, ProgramFailed, ServerUnreachable
from polyvol.daemon.client.attach.netlink import Kernel, Notices
from polyvol.daemon.client.attach.records import Attached, Places, Wanted
from polyvol.daemon.client.attach.users import release, users_of
from polyvol.daemon.host.notify import notify
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.sizes import exact_size
from polyvol.snapshot.snapshot import export_parts

START_S = 60.0
"""How long the first attach waits for a server that does not answer, as at boot."""
LOOK_S = 10.0
SHUTDOWN_S = 40.0
"""How long the users of a device have while the host shuts down; less than the unit's TimeoutStopSec."""
SHUTDOWN_LOOK_S = 0.5
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_log = logging.getLogger("polyvol")


def watch(places: Places, wanted: Wanted) -> None:
    """Run until SIGTERM or SIGINT, or until another process has detached it."""
    with _Waker() as waker:
        try:
            if wanted.kind == "fuse":
                _watch_fuse(places, wanted, waker)
            else:
                with Kernel() as channel:
                    _Watch(channel, places, wanted, waker).run()
        except PolyvolError as error:
            notify(f"STATUS={error}")
            raise


class _Waker:
    """Waits for signals and descriptors together."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self._reader, selectors.EVENT_READ)

    def __enter__(self) -> "_Waker":
        self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.selector.close()
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float) -> set[int]:
        """Wait for an event or the end of the time; the signals that arrived."""
        self.selector.select(timeout_s)
        with contextlib.suppress(BlockingIOError):
            return set(self._reader.recv(4096))
        return set()


def _ending(signals: set[int]) -> bool:
    return bool(signals & {signal.SIGTERM, signal.SIGINT})


class _Watch:
    """One device of the kernel's NBD client."""

    def __init__(self, channel: Kernel, places: Places, wanted: Wanted, waker: _Waker) -> None:
        self._kernel = channel
        self._places = places
        self._wanted = wanted
        self._waker = waker
        self._notices = Notices(channel.notices_group)
        self._said = ""

    def run(self) -> None:
        """Attach, supervise, detach."""
        with contextlib.closing(self._notices):
            self._waker.selector.register(self._notices, selectors.EVENT_READ)
            there = nbd_device.find(self._places, self._wanted.name)
            now = there or self._begin()
            if now is None:
                return
            self._tell(path_of(self._places, now), ready=True)
            # Links of a device that was taken over may have died unnoticed.
            dead = there is not None
            while disks.connected(now.device):
                after = self._reconnect(now) if dead else self._grow(now)
                if after is None:
                    return
                now = self._noted(now, after)
                signals = self._waker.wait(LOOK_S)
                if _ending(signals):
                    self._end(now, daemon_answers=True)
                    return
                dead = self._dead(now) or signal.SIGHUP in signals
        _log.warning("%s (/dev/%s) was detached by somebody else", now.name, now.device, extra=self._fields())
        self._places.forget(Attached, now.name)

    def _begin(self) -> Attached | None:
        """Attach; None if asked to end first."""
        deadline = time.monotonic() + START_S
        for pause_s in _pauses():
            try:
                with self._places.lock(self._wanted.name, "device"):
                    return nbd_device.attach(self._kernel, self._places, self._wanted)[0]
            except ServerUnreachable as error:
                if time.monotonic() >= deadline:
                    raise
                notify(f"STATUS={error}")
                if _ending(self._waker.wait(pause_s)):
                    return None
        return None

    def _reconnect(self, now: Attached) -> Attached | None:
        """Reconnect, however long it takes; None if asked to end first."""
        begun = time.monotonic()
        for pause_s in _pauses():
            if not disks.connected(now.device):
                return now
            self._dead(now)  # links known to be dead get new connections; later ones wake us again
            try:
                after = nbd_device.reconnect(self._kernel, self._wanted, now)
                took_s = time.monotonic() - begun
                _log.info("%s is connected again, after %.1f s", now.name, took_s, extra=self._fields())
                self._said = ""
                self._tell(path_of(self._places, now))
                return after
            except PolyvolError as error:
                self._complain(error)
            signals = self._waker.wait(pause_s)
            if _ending(signals):
                self._end(now, daemon_answers=False)
                return None
        return now

    def _grow(self, now: Attached) -> Attached:
        with contextlib.suppress(ServerUnreachable):  # only its links matter
            try:
                return nbd_device.grow(self._kernel, self._wanted, now)
            except PolyvolError as error:
                self._complain(error)
        return now

    def _noted(self, now: Attached, after: Attached) -> Attached:
        if after.size != now.size:
            grown = (after.name, exact_size(now.size), exact_size(after.size))
            _log.info("%s has grown from %s to %s", *grown, extra=self._fields())
        if after != now:
            self._places.write(after)
        return after

    def _dead(self, now: Attached) -> bool:
        """Whether the kernel has reported dead links since the last call."""
        number = nbd_device.device_number(now.device)
        return number is not None and self._notices.dead(number)

    def _end(self, now: Attached, *, daemon_answers: bool) -> None:
        """Detach it, unless it is in use (AW1). Nothing is flushed here: without the daemon a flush would
        block, and an unused device has no unwritten data, because the kernel writes it at the last close."""
        force = not daemon_answers
        detach = functools.partial(nbd_device.detach, self._kernel, self._places, now, force=force)
        with self._places.lock(now.name, "device"):
            error = _end(now, detach, daemon_answers=daemon_answers)
        if error is not None:
            said = (now.name, now.device, error)
            _log.warning("%s stays attached as /dev/%s: %s", *said, extra=self._fields())
            return
        _log.info("%s (/dev/%s) was detached", now.name, now.device, extra=self._fields())

    def _complain(self, error: PolyvolError) -> None:
        """Log an error when it is new."""
        if str(error) != self._said:
            self._said = str(error)
            notify(f"STATUS={error}")
            _log.warning("%s: %s", self._wanted.name, error, extra=self._fields())

    def _tell(self, path: Path, *, ready: bool = False) -> None:
        if ready:
            _log.info("%s is attached as %s", self._wanted.name, path, extra=self._fields())
        notify(f"STATUS=attached as {path}", *(["READY=1"] if ready else []))

    def _fields(self) -> dict[str, str]:
        return fields(self._wanted.name)


def fields(name: str) -> dict[str, str]:
    """The journal's fields for an attached volume or snapshot."""
    volume, snapshot = export_parts(name)
    return {"VOLUME": volume, "SNAPSHOT": snapshot} if snapshot else {"VOLUME": volume}


def _end(now: Attached, detach: Callable[[], None], *, daemon_answers: bool = True) -> PolyvolError | None:
    """Detach an unused device (AW1); otherwise, or if that fails, the reason."""
    uses = users_of(now.device)
    # At shutdown, systemd unmounts file systems mounted by hand only after all services, and so the daemon,
    # have ended: this is the last moment at which their data can be written.
    deadline = time.monotonic() + SHUTDOWN_S
    while uses and daemon_answers and time.monotonic() < deadline and units.shutting_down():
        release(now.device)
        uses = users_of(now.device)
        if uses:
            time.sleep(SHUTDOWN_LOOK_S)  # systemd is stopping its users at the same time
    try:
        if uses:
            raise AttachedInUse(name=now.name, device=f"/dev/{now.device}", use=" and ".join(uses))
        detach()
    except PolyvolError as error:
        return error
    return None


def _watch_fuse(places: Places, wanted: Wanted, waker: _Waker) -> None:
    """One loop device over nbdfuse."""
    with places.lock(wanted.name, "device"):
        now = fuse.find(places, wanted.name)
        if now is None or fuse.trouble(places, now) is not None:
            now = fuse.attach(places, wanted)[0]
    _log.info("%s is attached as /dev/%s", wanted.name, now.device, extra=fields(wanted.name))
    notify("READY=1", f"STATUS=attached as /dev/{now.device}")
    while (why := fuse.trouble(places, now)) is None:
        if _ending(waker.wait(1.0)):
            with places.lock(now.name, "device"):
                error = _end(now, functools.partial(fuse.detach, places, now, force=False))
            if error is not None:
                said = (now.name, now.device, error)
                _log.warning("%s stays attached as /dev/%s: %s", *said, extra=fields(now.name))
            return
    with places.lock(now.name, "device"):
        if fuse.find(places, wanted.name) is not None:
            fuse.clean(places, now.name)
            raise ProgramFailed(program="nbdfuse", why=f"{why}, and the device has ended with it")


def _pauses() -> Iterator[float]:
    """How long to wait before each further try, seconds."""
    pause_s = RETRY_FIRST_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 2, RETRY_MAX_S)
