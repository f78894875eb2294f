"""The service: builds all parts that run for one state directory, and starts and stops them in order.

How it works      start: lock; sockets; catalog; engine; devices; volumes and snapshots, exported; the
                  connections of the previous process; NBD; control API. stop: the reverse order. A start that
                  fails stops what it had started. Sockets from systemd are used unchanged, and stay when the
                  service stops. It runs inside polyvold, and inside nbdkit (serve_nbd=False: nbdkit has the
                  NBD sockets then, and I/O uses `engine.open`).
Invariants        SE1 one service for each state directory (the lock); SE2 clients find every healthy volume
                  and snapshot exported as soon as they can connect; SE3 `stop` waits for changes in progress,
                  up to a limit (CALLS_S in api/server.py and others); SE4 if a call hangs at a stop, the
                  devices and the state directory stay held until the process has ended.
Owner and locks   One thread calls `start` and `stop`; it need not be the main thread. Any thread may call the
                  verbs; those that change an object take its locks (locks.py).
Errors            StateLocked, SocketUnusable, CatalogVersion, EngineFailed and others; then nothing is left
                  running.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from polyvol.daemon import hand_over
from polyvol.daemon.api.server import ControlServer
from polyvol.daemon.clients.verbs import Clients
from polyvol.daemon.config import IO_TIMEOUT_S
from polyvol.daemon.context import Context
from polyvol.daemon.debug.dump import Debug
from polyvol.daemon.devices import files as device_files
from polyvol.daemon.devices.health import notes, summary
from polyvol.daemon.devices.mounts import MountWatch
from polyvol.daemon.devices.udev import DiskWatch
from polyvol.daemon.devices.verbs import Devices
from polyvol.daemon.engine_border import EngineLike, EngineModule, load_engine, start_engine
from polyvol.daemon.engine_log import EngineLog
from polyvol.daemon.errors import StopUnfinished, engine_errors
from polyvol.daemon.groups.rollback import Rollbacks
from polyvol.daemon.groups.verbs import Groups
from polyvol.daemon.hooks.run import HookRunner
from polyvol.daemon.host import memory, sockets
from polyvol.daemon.host.notify import Store
from polyvol.daemon.operations import daemon_view, operation_views
from polyvol.daemon.partitions.logs import PartitionLogs
from polyvol.daemon.partitions.places import Places
from polyvol.daemon.partitions.verbs import Partitions
from polyvol.daemon.processors.verbs import Processors
from polyvol.daemon.renames.verbs import Renames
from polyvol.daemon.restores.verbs import Restores
from polyvol.daemon.schedules.verbs import Schedules
from polyvol.daemon.snapshots.deletions import Deletions
from polyvol.daemon.snapshots.diff import Diffs
from polyvol.daemon.snapshots.taker import SnapshotTaker
from polyvol.daemon.snapshots.verbs import Snapshots
from polyvol.daemon.space.change_logs import SpaceMonitor
from polyvol.daemon.space.relocation import RelocationWorker
from polyvol.daemon.space.state_space import StateSpaceMonitor
from polyvol.daemon.state import directory as state
from polyvol.daemon.state.reserve import Reserve
from polyvol.daemon.types.deletions import DeletionView
from polyvol.daemon.types.devices import DeviceAdd, DeviceRetry, DeviceView
from polyvol.daemon.types.scrubs import ScrubSet, ScrubSettingsView
from polyvol.daemon.types.snapshots import SnapshotCreate, SnapshotDeleted, SnapshotView
from polyvol.daemon.types.status import StatusView
from polyvol.daemon.types.volumes import (
    CloneCreate,
    VolumeCreate,
    VolumeDeleted,
    VolumeView,
)
from polyvol.daemon.version import build
from polyvol.daemon.volumes import manifest_digests
from polyvol.daemon.volumes.scrub import Scrubs
from polyvol.daemon.volumes.serving import Serving
from polyvol.daemon.volumes.verbs import Volumes
from polyvol.daemon.workers import ended
from polyvol.mapping.catalog.settings import Settings
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.clock import Clock, steady_ns, wall_ns
from polyvol.mapping.plans.placement import PROCESSORS_MAX, check_processors

if TYPE_CHECKING:
    from polyvol.engine import ExportInfo

ENGINE_S = 100.0
"""How long a stop waits for the engine, which writes large checkpoints. The rest takes less than 50 s;
TimeoutStopSec in systemd/polyvold.service is more than both."""
_log = logging.getLogger("polyvol")


class Service:
    """polyvol on one state directory. `processors` None: one for each core. `frontend` and `nbd_addresses`
    (URIs): for `polyvol status`, if a server other than the engine serves NBD. `clock`: nanoseconds
    since 1970, for schedules and scrubs; `steady`: nanoseconds of a clock that is never set.
    `accept_older_catalog`: serve the catalog even if its mark says that a newer one existed."""

    def __init__(
        self,
        state_dir: Path,
        *,
        processors: int | None = None,
        nbd_socket: Path | None = None,
        nbd_listen: str | None = None,
        serve_nbd: bool = True,
        frontend: str = "native",
        nbd_addresses: Sequence[str] = (),
        passed: sockets.InheritedSockets | None = None,
        engine_module: EngineModule | None = None,
        clock: Clock = wall_ns,
        steady: Clock = steady_ns,
        accept_older_catalog: bool = False,
        io_timeout_s: int = IO_TIMEOUT_S,
    ) -> None:
        check_processors(processors)
        self.state_dir = Path(os.path.abspath(state_dir))  # noqa: PTH100 - symbolic links stay as they are
        self._processors = processors or min(len(os.sched_getaffinity(0)), PROCESSORS_MAX)
        self._nbd_socket = nbd_socket or state.nbd_socket(self.state_dir)
        self._nbd_listen, self._serve_nbd = nbd_listen, serve_nbd
        self._frontend = frontend
        self.nbd_addresses = list(nbd_addresses)
        self._passed = passed or sockets.InheritedSockets()
        self._module = engine_module
        self._clock, self._steady = clock, steady
        self._accept_older_catalog, self._io_timeout_s = accept_older_catalog, io_timeout_s
        self._undo = ExitStack()
        self._left = False
        self._started_ns = self._began_ns = 0

    @property
    def engine(self) -> EngineLike:
        """The engine, between start and stop: for I/O from this process."""
        return self._engine

    @property
    def devices(self) -> Devices:
        """The verbs of devices."""
        return self._devices

    @property
    def volumes(self) -> Volumes:
        """The verbs of volumes."""
        return self._volumes

    @property
    def clients(self) -> Clients:
        """The verbs of clients."""
        return self._clients

    @property
    def snapshots(self) -> Snapshots:
        """The verbs of snapshots."""
        return self._snapshots

    @property
    def groups(self) -> Groups:
        """The verbs of groups and holds."""
        return self._groups

    @property
    def schedules(self) -> Schedules:
        """The verbs of schedules."""
        return self._schedules

    def start(self) -> None:
        """Start everything; on return, all healthy volumes and snapshots are served."""
        with ExitStack() as undo:
            self._start(undo)
            self._undo = undo.pop_all()

    def stop(self) -> None:
        """Stop everything: connections are closed, all data is durable, the sockets are removed. Idempotent.
        StopUnfinished, after about ENGINE_S seconds, if a device hangs: then the process must end at once."""
        self._undo.close()

    def exports(self) -> "Sequence[ExportInfo]":
        """All listed exports, by name."""
        return [export for export in self.engine.exports() if not export["hidden"]]

    def probe(self, timeout_s: float) -> bool:
        """Whether the control API's loop and the engine answer within this time."""
        asked = self._context.probes.ask({"probe": self.engine.stats})
        return bool(asked) and self._server.answers(timeout_s)

    def summary(self) -> str:
        """The state of everything in one line, for systemd to show."""
        return summary(self._context)

    def reload(self, processors: int | None = None, *, io_timeout_s: int | None = None) -> None:
        """Have at least so many processors and this time-out, and check again for missing devices."""
        self._context.set_io_timeout(self._context.io_timeout_s if io_timeout_s is None else io_timeout_s)
        if processors is not None:
            self._context.grow_processors(processors)
        self._devices.open_missing()
        self._serving.serve_waiting()
        self._serving.finish()

    def status(self) -> StatusView:
        """The status of everything."""
        self._state_space.refresh()
        with self._context.reading():
            return StatusView(
                daemon=daemon_view(
                    self._context,
                    version=self._version,
                    frontend=self._frontend,
                    nbd=self.nbd_addresses,
                    started_ns=self._started_ns,
                    uptime_ns=self._steady() - self._began_ns,
                ),
                volumes=self._volumes.list_all(counted=True),
                devices=self._devices.list_all(),
                notes=notes(self._context),
                operations=operation_views(self._context),
                events=self._context.events.latest(),
            )

    def copy_catalog(self) -> bytes:
        """The catalog as it is now, as one SQLite file."""
        return self._context.catalog.whole()

    def add_device(self, request: DeviceAdd) -> DeviceView:
        """Add a device; if a missing device is back, serve the volumes that waited for it."""
        view, brought_back = self._devices.add(request)
        if brought_back:
            self._serving.serve_waiting()
        _log.info("device %s is %s", view.name, view.path, extra={"DEVICE": view.name})
        return view

    def retry_device(self, name: str, request: DeviceRetry) -> DeviceView:
        """Reopen a device, and serve the volumes that waited for it."""
        view = self._devices.retry(request, name)
        self._serving.serve_waiting()
        return view

    def device_found(self, path: Path) -> DeviceView | None:
        """Handle a file or disk that appeared: reopen its device, if that is missing or faulty."""
        view = self._devices.found(path)
        if view is not None:
            self._serving.serve_waiting()
        return view

    def disk_gone(self, number: int) -> None:
        """Handle the removal of the disk of this number."""
        self._devices.gone(number)

    def disk_came(self, path: Path) -> DeviceView | None:
        """Handle a disk that was added or changed at this path: reopen its device, if that is missing."""
        return self._is_back(self._devices.came(path))

    def file_appeared(self, device: int) -> DeviceView | None:
        """Handle a file that appeared at the path of a missing device: use it, if it is the device."""
        return self._is_back(self._devices.appeared(device))

    def _is_back(self, view: DeviceView | None) -> DeviceView | None:
        if view is not None:
            self._serving.serve_waiting()
            self._context.events.add("info", f"device {view.name} is back: {view.path}")
        return view

    def remove_device(self, name: str) -> DeviceView:
        """Remove a device; what it was."""
        view = self._devices.show(name)
        self._devices.remove(name)
        _log.info("device %s was removed", name, extra={"DEVICE": name})
        return view

    @property
    def scrubs(self) -> Scrubs:
        """The verbs of scrubs."""
        return self._scrubs

    @property
    def diffs(self) -> Diffs:
        """The verbs of what changed."""
        return self._diffs

    def set_scrubs(self, request: ScrubSet) -> ScrubSettingsView:
        """Switch weekly scrubs on or off."""
        self._scrubs.set_weekly(request.weekly)
        return ScrubSettingsView(weekly=self._scrubs.weekly)

    def create_volume(self, request: VolumeCreate) -> VolumeView:
        """Make a volume."""
        view = self._volumes.create(request)
        _log.info("volume %s was created", view.name, extra={"VOLUME": view.name})
        return view

    def clone_volume(self, volume: str, snapshot: str, request: CloneCreate) -> VolumeView:
        """Make a volume from a snapshot."""
        view = self._volumes.clone(volume, snapshot, request)
        _log.info("volume %s was cloned", view.name, extra={"VOLUME": view.name})
        return view

    def delete_volume(self, name: str) -> VolumeDeleted:
        """Delete a volume with its snapshots."""
        view = self._volumes.delete(name, self._groups.refuse_delete)
        _log.info("volume %s was deleted", name, extra={"VOLUME": name})
        return view

    def create_snapshots(self, request: SnapshotCreate) -> list[SnapshotView]:
        """Take one cut."""
        return self._taker.take(request)

    def delete_snapshot(self, volume: str, name: str) -> SnapshotDeleted:
        """Delete a snapshot."""
        view = self._snapshots.delete(volume, name)
        _log.info("snapshot %s@%s was deleted", volume, name, extra={"VOLUME": volume, "SNAPSHOT": name})
        return view

    @property
    def rollbacks(self) -> Rollbacks:
        """The verbs of going back to a snapshot."""
        return self._rollbacks

    @property
    def restores(self) -> Restores:
        """The verbs of restores."""
        return self._restores

    @property
    def deletions(self) -> Deletions:
        """The verbs of deleting many snapshots."""
        return self._deletions

    def delete_snapshots(self, volume: str, names: Sequence[str]) -> DeletionView:
        """Delete many snapshots of a volume."""
        view = self._deletions.begin(volume, names)
        _log.info("%d snapshots of volume %s are being deleted", view.left, volume, extra={"VOLUME": volume})
        return view

    def _start(self, undo: ExitStack) -> None:
        memory.give_back()
        state.make_state_dir(self.state_dir)
        undo.callback(self._unless_left, state.StateLock(self.state_dir, self._passed.lock).release)
        self.reserve = Reserve(self.state_dir)
        self.reserve.begin()
        undo.callback(self.reserve.end)
        self._start_on(undo)
        self.reserve.end()
        undo.callback(self.reserve.begin_stop)

    def _start_on(self, undo: ExitStack) -> None:
        """Start everything, with the reserve released."""
        undo.callback(self._passed.close)
        control = self._passed.control or self._bind_unix(undo, state.control_socket(self.state_dir))
        listeners = self._bind_nbd(undo) if self._serve_nbd else []
        module = self._module or load_engine()
        self._version = module.__version__
        build()  # it is cached: the sources may change while the daemon runs
        catalog = Catalog(self.state_dir / "catalog.db", accept_older=self._accept_older_catalog)
        undo.callback(self._unless_left, catalog.close)
        catalog.keep_room(self.reserve.given_up)
        engine = self._engine = start_engine(module, self._processors)
        self._context = Context(
            self.state_dir, catalog, engine, module.EngineError, self._processors, self._processors
        )
        EngineLog(module, self._context).start(undo)
        self._context.reserve = self.reserve
        self._context.set_io_timeout(self._io_timeout_s)
        undo.callback(self._unless_left, partial(device_files.close_all, self._context))
        undo.callback(self._stop_engine, engine, module, catalog.settings)
        clean = catalog.settings.begin_run(state.boot_id())
        self._context.clock, self._context.steady = self._clock, self._steady
        self._make_verbs()
        self._started_ns, self._began_ns = self._clock(), self._steady()
        held = hand_over.take_devices(self._passed)
        undo.callback(self._devices.stop)
        self._devices.start(clean=clean, passed=held)
        hand_over.forget_devices(held)
        if self._accept_older_catalog:
            manifest_digests.forget(self._context)
        self._volumes.start()
        undo.callback(self._devices.shrunk.note)
        self._state_space = StateSpaceMonitor(self._context, self.reserve, self.reload)
        relocation = RelocationWorker(self._context)
        parts = (self._context, self._snapshots, self._state_space, relocation.relieve)
        space = SpaceMonitor(*parts, self._volumes.log_growth, also=self._look_at_space)
        for worker in (space, relocation, self._deletions, self._scrubs):
            undo.callback(worker.stop)
            worker.start()
        self._hooks.settle()
        undo.callback(self._schedules.stop)
        self._schedules.start()
        for watch in (
            DiskWatch(self.disk_gone, self.disk_came),
            MountWatch(self._devices.missing, self.file_appeared),
        ):
            undo.callback(watch.stop)
            watch.start()
        if self._serve_nbd:
            hand_over.take(self._context, self._passed.handed)
            undo.callback(self._hand_over)
        with engine_errors("serving NBD", module.EngineError):
            for listener in listeners:
                engine.listen(listener.detach())
        server = ControlServer(self, control)
        undo.callback(server.stop)  # SE3: it waits for the requests in progress
        undo.callback(self._context.locks.close)  # so that these end soon
        undo.callback(self._hooks.stop)  # likewise
        server.start()
        self._server = server

    def _look_at_space(self) -> None:
        """Look at the state directory, and at shrunk devices if that is due, every few seconds."""
        self._state_space.look()
        self._devices.shrunk.note_if_due()

    def _make_verbs(self) -> None:
        """The verbs of each noun, on this context."""
        self._clients = Clients(self._context)
        self.debug: Debug = Debug(self._context, self._clients)
        self._devices = Devices(self._context)
        self._scrubs = Scrubs(self._context)
        self._volumes = Volumes(self._context, self._devices, self._scrubs)
        self._serving = Serving(self._context, self._volumes)
        self._snapshots = Snapshots(self._context, self._volumes.log_areas)
        self._hooks = HookRunner(self._context)
        self._taker = SnapshotTaker(self._context, self._snapshots, self._hooks)
        self._groups = Groups(self._context, self._snapshots, self._taker)
        self._schedules = Schedules(self._context, self._snapshots, self._taker)
        self.renames: Renames = Renames(
            self._context, self._volumes, self._serving, self._snapshots, self._groups
        )
        self._diffs = Diffs(self._context)
        self.partitions: Partitions = Partitions(self._context)
        self.partition_logs: PartitionLogs = PartitionLogs(self._context)
        self.places: Places = Places(self._context)
        self.processors: Processors = Processors(self._context)
        self._deletions = Deletions(self._context)
        self._rollbacks = Rollbacks(self._context, self._volumes, self._snapshots, self._groups)
        self._restores = Restores(
            self._context, self._volumes, self._snapshots, self._groups, self._rollbacks
        )

    def _hand_over(self) -> None:
        store = Store.offered()
        if store is not None:
            with store:
                hand_over.give(self._context, store)

    def _stop_engine(self, engine: EngineLike, module: EngineModule, settings: Settings) -> None:
        """Stop the engine; the run ended cleanly if everything is durable and the catalog can say so."""

        def stop() -> None:
            with engine_errors("making everything durable", module.EngineError):
                engine.stop()
            manifest_digests.end(self._context)
            device_files.end_run(self._context)
            settings.end_run()

        if not ended(stop, ENGINE_S, "polyvol-stop"):
            self._left = True
            raise StopUnfinished(state=self.state_dir)

    def _unless_left(self, release: Callable[[], object]) -> None:
        """Close an object, unless a hanging call still uses it (SE4)."""
        if not self._left:
            release()

    def _bind_unix(self, undo: ExitStack, path: Path) -> socket.socket:
        listener = sockets.bind_unix(path)
        undo.callback(path.unlink, missing_ok=True)
        undo.callback(_close, listener)
        return listener

    def _bind_nbd(self, undo: ExitStack) -> list[socket.socket]:
        listeners = list(self._passed.nbd) or [self._bind_unix(undo, self._nbd_socket)]
        if self._nbd_listen is not None:
            for listener in sockets.bind_tcp(self._nbd_listen):
                undo.callback(_close, listener)
                listeners.append(listener)
        self.nbd_addresses += [sockets.nbd_uri(listener) for listener in listeners]
        return listeners


def _close(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.close()  # once it was detached, this does nothing
