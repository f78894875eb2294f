"""Check: examines a stopped state directory: catalog, journals, log areas and devices, compared with each
other.

How it works      The lock is held, and not written to. The catalog is copied and the copy is opened, because
                  SQLite may write to what it opens. Then these are checked: the catalog by itself, and
                  whether a start may use it according to its mark; devices and their labels; extents; each
                  volume's maps and slots (by the engine, which only reads); and files that belong to nothing.
Invariants        CK1 nothing in the state directory or on a device is changed.
Errors            StateLocked, StateUnusable, NoState. Findings are in the view, not raised.
"""

import fcntl
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polyvol.daemon.engine_border import EngineModule, load_engine
from polyvol.daemon.errors import NoState, SnapshotWasDeleted, StateLocked, StateUnusable
from polyvol.daemon.partitions.records import record_problems, share_problems
from polyvol.daemon.types.status import CheckView, CheckVolumeView
from polyvol.daemon.volumes.manifest_digests import other_time
from polyvol.mapping.catalog.database import LATEST_VERSION, mark_of
from polyvol.mapping.catalog.examine import (
    Examiner,
    content_problems,
    format_version,
    reading,
    reference_problems,
)
from polyvol.mapping.catalog.failures import failure
from polyvol.mapping.catalog.mark import BadMark, Mark
from polyvol.mapping.catalog.rewrite import rewrite
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.device import short_clause, trouble_at
from polyvol.mapping.errors import PolyvolError, StateFull
from polyvol.mapping.extent import Extent
from polyvol.mapping.no_space import NEEDED, is_no_space
from polyvol.mapping.os_errors import advice, reason
from polyvol.mapping.partition import Partition
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import UNDER_WAY, Volume
from polyvol.mapping.specs import manifest_directory, volume_directory, volume_spec

_CATALOG = "catalog.db"
_ENGINE_FILE = re.compile(r"p(\d{3})-\d{10}\.(journal|checkpoint|checkpoint\.new)")
_FAILED_SYNC = re.compile(r"(p\d{3}|d\d{6})\.failed-sync(\.new)?")
_MANIFEST = re.compile(r"p(\d{3})\.manifest(\.new)?")
_CHUNK = 4 << 20


def check_state(state_dir: Path, *, data: bool, module: EngineModule | None = None) -> CheckView:
    """Check a state directory that no daemon owns; with `data`, read and check every slot too."""
    path = state_dir / _CATALOG
    with _held(state_dir), _scratch() as scratch:
        copy = _copied(path, scratch)
        problems = list(_catalog_problems(path, copy))
        if not problems and not copy.exists():
            raise NoState(state=state_dir)
        if not problems:
            catalog = Catalog(copy, accept_older=True)  # the mark is not copied, and was checked before
            try:
                problems = list(_mark_problems(path))
                return _Check(state_dir, catalog, module or load_engine(), data, problems).run()
            finally:
                catalog.close()
        return CheckView(state_dir=str(state_dir), problems=problems, notes=[], volumes=[], devices=0)


def copy_catalog(state_dir: Path) -> bytes:
    """The catalog of a state directory that no daemon owns, as one file. NoState, or the error with which a
    start would refuse it."""
    path = state_dir / _CATALOG
    with _held(state_dir), _scratch() as scratch:
        copy = _copied(path, scratch)
        try:
            rewrite(copy, lambda _: True)
            if copy.exists() and Examiner(path, LATEST_VERSION, Mark(mark_of(path))).examine(copy):
                return copy.read_bytes()
        except (sqlite3.DatabaseError, UnicodeError, OSError) as error:
            raise failure(path, error, opening=True) from error
    raise NoState(state=state_dir)


def _copied(path: Path, scratch: str) -> Path:
    """The files of a catalog, copied."""
    copy = Path(scratch) / _CATALOG
    for suffix in ("", "-wal", ".renewed"):
        source = path.with_name(f"{_CATALOG}{suffix}")
        if source.exists():
            shutil.copyfile(source, f"{copy}{suffix}")
    return copy


@contextmanager
def _scratch() -> Iterator[str]:
    """A directory for copies of the catalog; StateFull if they do not fit."""
    try:
        with tempfile.TemporaryDirectory(prefix="polyvol-check-") as scratch:
            try:
                yield scratch
            except OSError as error:
                raise _no_scratch(scratch, error) from error
    except OSError as error:
        raise _no_scratch(os.environ.get("TMPDIR", "/tmp"), error) from error


def _no_scratch(path: str, error: OSError) -> PolyvolError:
    if is_no_space(error) or isinstance(error, FileNotFoundError):
        what = "a copy of the catalog cannot be made; $TMPDIR can name another directory for it"
        return StateFull(path=path, what=what, need=NEEDED)
    return StateUnusable(state=error.filename or path, why=reason(error), todo=advice(error))


@contextmanager
def _held(state_dir: Path) -> Iterator[None]:
    """Hold the lock without writing to it; StateLocked if a daemon has it."""
    try:
        fd = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # no daemon was ever here
        return
    except OSError as error:
        raise StateUnusable(state=state_dir, why=reason(error, state_dir), todo=advice(error)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise StateLocked(pid=pid, state=state_dir) from error
    finally:
        os.close(fd)


def _catalog_problems(path: Path, copy: Path) -> Iterator[str]:
    """Why a start would refuse the catalog at this path. `copy` is a copy of it, which is rewritten."""
    try:
        rewrite(copy, lambda _: True)
        found = list(_database_problems(path, copy)) if copy.exists() and copy.stat().st_size else []
        yield from found
        if not found:
            Examiner(path, LATEST_VERSION, Mark(mark_of(path))).examine(copy)
    except PolyvolError as error:
        yield error.message
    except (sqlite3.DatabaseError, UnicodeError, OSError) as error:
        yield failure(path, error, opening=True).message


def _database_problems(path: Path, copy: Path) -> Iterator[str]:
    with reading(path, copy) as connection:
        version = format_version(connection)
        if not 0 < version <= LATEST_VERSION:
            return  # the examination reports it
        found = content_problems(copy, connection, version) or reference_problems(connection)
        for problem in found:
            yield f"the catalog {path}: {problem}"


def _mark_problems(path: Path) -> Iterator[str]:
    mark = Mark(mark_of(path))
    for number, said in enumerate(mark.read() or [], 1):
        if isinstance(said, BadMark):
            yield f"{mark.path}: record {number} of 2 {said}"


class _Check:
    """One check of one state directory."""

    def __init__(
        self, state_dir: Path, catalog: Catalog, module: EngineModule, data: bool, problems: list[str]
    ) -> None:
        self._state_dir = state_dir
        self._catalog = catalog
        self._module = module
        self._data = data
        self._devices = {device.id: device for device in catalog.devices.all()}
        self._problems = problems
        self._notes: list[str] = []

    def run(self) -> CheckView:
        """Everything."""
        present = self._check_devices()
        self._check_extents()
        volumes = [self._check_volume(volume, present) for volume in self._catalog.volumes.all()]
        self._note_restores()
        self._check_files()
        return CheckView(
            state_dir=str(self._state_dir),
            problems=self._problems,
            notes=self._notes,
            volumes=volumes,
            devices=len(self._devices),
        )

    def _path(self, device: Device) -> Path:
        return self._state_dir / device.path

    def _check_devices(self) -> dict[int, str]:
        """The paths of the devices that are present and valid."""
        present, users = {}, self._catalog.devices.users()
        unfinished = {volume.id for volume in self._catalog.volumes.all() if volume.state != "ready"}
        for device in self._devices.values():
            if device.made_for in unfinished:
                continue  # the next start removes it, with its volume
            half = f"device {device.name} was being {UNDER_WAY.get(device.state, '')}"
            if device.unfinished is not None and device.id in users:
                self._problems.append(
                    f"{half}, and volumes have extents on it: the next start takes it into use"
                )
            elif device.state != "ready":
                self._notes.append(f"{half}: the next start settles that")
                continue
            reason = trouble_at(device, self._path(device), self._catalog.uuid)
            if reason is None:
                present[device.id] = str(self._path(device))
                short = self._catalog.settings.short(device.id)
                reason = None if short is None else short_clause(short, device.size)
            if reason is not None:
                self._problems.append(f"device {device.name}: {reason}")
        return present

    def _note_restores(self) -> None:
        """What is incomplete because a backup is being restored to it."""
        names = {volume.id: volume.name for volume in self._catalog.volumes.all()}
        for restore in self._catalog.restores.all():
            self._notes.append(
                f"volume {names[restore.volume]} is incomplete: it is being restored from {restore.source}"
            )

    def _check_extents(self) -> None:
        """Every extent lies in its device's data area, and no two overlap."""
        users: dict[int, list[tuple[Extent, str]]] = {}
        for volume in self._catalog.volumes.all():
            for partition in self._catalog.volumes.partitions(volume.id):
                for extent in partition.extents:
                    owner = f"partition {partition.number} of volume {volume.name}"
                    users.setdefault(extent.device, []).append((extent, owner))
            for log in self._catalog.log_areas.of(volume.id):
                for extent in log.extents:
                    owner = f"log area {log.number} of volume {volume.name}"
                    users.setdefault(extent.device, []).append((extent, owner))
        for identity, extents in users.items():
            self._check_extents_of(self._devices[identity], sorted(extents, key=lambda one: one[0].offset))

    def _check_extents_of(self, device: Device, extents: Iterable[tuple[Extent, str]]) -> None:
        area = device.data_area
        end, before = 0, ""
        for extent, owner in extents:
            where = f"device {device.name} at {extent.offset}"
            if extent.offset < area.offset or extent.end > area.end:
                self._problems.append(f"{where}: an extent of {owner} is outside the data area")
            if extent.offset < end:
                self._problems.append(f"{where}: an extent of {owner} is over one of {before}")
            if extent.end > end:
                end, before = extent.end, owner

    def _check_volume(self, volume: Volume, present: dict[int, str]) -> CheckVolumeView:
        catalog = self._catalog
        partitions, logs = catalog.volumes.partitions(volume.id), catalog.log_areas.of(volume.id)
        snapshots = catalog.snapshots.with_kept(volume.id)
        view = CheckVolumeView(name=volume.name, partitions=len(partitions), snapshots=len(snapshots))
        if volume.state != "ready":
            half = UNDER_WAY[volume.state]
            self._notes.append(f"volume {volume.name} was being {half}: the next start settles that")
            return view
        for snapshot in snapshots:
            if snapshot.epoch >= volume.next_epoch:
                what = f"snapshot {snapshot.name} has epoch {snapshot.epoch}, which is yet to come"
                self._problems.append(f"volume {volume.name}: {what}")
        for log in logs:
            if log.number >= volume.next_log or any(extent.length % _CHUNK for extent in log.extents):
                self._problems.append(f"volume {volume.name}: log area {log.number} cannot be")
        directory = volume_directory(self._state_dir, volume)
        if not directory.is_dir():
            self._problems.append(f"volume {volume.name}: its directory {directory} is not there")
            return view
        self._check_names(volume, directory, partitions)
        manifests = manifest_directory(self._state_dir, volume)
        self._check_manifests(volume, manifests, partitions)
        other = other_time(volume, manifests)
        if other is not None:
            self._problems.append(f"volume {volume.name}: {other}")
            return view
        try:
            report = self._module.check(
                volume_spec(catalog, volume, self._state_dir), present, data=self._data
            )
        except self._module.EngineError as error:
            self._problems.append(f"volume {volume.name}: {error}")
            return view
        self._problems += [f"volume {volume.name}: {problem}" for problem in report["problems"]]
        if report["more_problems"]:
            self._problems.append(f"volume {volume.name}: {report['more_problems']} more problems")
        for snapshot in snapshots:
            if snapshot.epoch in report["deleted_snapshots"]:
                deleted = SnapshotWasDeleted(name=f"{volume.name}@{snapshot.name}")
                self._problems.append(f"volume {volume.name}: {deleted}")
        for problem in (
            *record_problems(snapshots, report["processors"]),
            *share_problems(volume, snapshots, partitions),
        ):
            self._problems.append(f"volume {volume.name}: {problem}")
        for path in report["leftovers"]:
            self._notes.append(f"{os.fspath(path)} is left of a crash: the next start removes it")
        return CheckVolumeView(
            name=volume.name,
            partitions=len(partitions),
            snapshots=len(snapshots),
            slots=report["slots"],
            records=report["records"],
            checked=report["checked_bytes"],
        )

    def _check_names(self, volume: Volume, directory: Path, partitions: Iterable[Partition]) -> None:
        """Every file of a volume was written by one of its processors."""
        processors = {partition.processor for partition in partitions}
        for path in sorted(directory.iterdir()):
            match = _ENGINE_FILE.fullmatch(path.name)
            if _FAILED_SYNC.fullmatch(path.name):
                continue
            if match is None or int(match[1]) not in processors:
                self._problems.append(f"{path} belongs to no processor of volume {volume.name}")
            elif match[2] == "checkpoint.new":
                self._notes.append(f"{path} is left of a crash: nothing needs it")

    def _check_manifests(self, volume: Volume, directory: Path, partitions: Iterable[Partition]) -> None:
        """Every manifest belongs to a processor of its volume; the engine finds those that are missing."""
        processors = {partition.processor for partition in partitions}
        for path in sorted(directory.iterdir()) if directory.is_dir() else []:
            match = _MANIFEST.fullmatch(path.name)
            if match is None or int(match[1]) not in processors:
                self._problems.append(f"{path} belongs to no processor of volume {volume.name}")
            elif match[2]:
                self._notes.append(f"{path} is left of a crash: nothing needs it")

    def _check_files(self) -> None:
        """Every file below volumes/, manifests/ and devices/ belongs to an object of the catalog."""
        known = {str(volume.uuid) for volume in self._catalog.volumes.all()}
        paths = {self._path(device) for device in self._devices.values()}
        for folder in ("volumes", "manifests", "devices"):
            directory = self._state_dir / folder
            for path in sorted(directory.iterdir()) if directory.is_dir() else []:
                if path not in paths if folder == "devices" else path.name not in known:
                    what = "device" if folder == "devices" else "volume"
                    self._problems.append(f"{path} belongs to no {what} of the catalog")
