"""check: runs a service on an after-crash image, and checks that all promised data is there.

How it works      The image's files are laid out below a directory, the host's boot id becomes another, and a
                  `polyvol.daemon.service.Service` is started on them in this process (which has the recorder
                  preloaded). Its volume and snapshots are compared with the history. Then it must work: the
                  check writes, flushes, cuts, reads back, stops and starts it again; sometimes it runs
                  `polyvol check`, deletes and trims everything, and no slot may remain in use.
Errors            Lost with what is missing; whatever a start or a stop raises.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyvol.daemon.check import check_state
from polyvol.daemon.engine_border import HandleLike
from polyvol.daemon.service import Service
from polyvol.daemon.types.snapshots import SnapshotCreate
from tests.crash.disk import Tree
from tests.crash.history import SECTOR, Expected, Lost, contents
from tests.crash.workload import SECTORS, SIZE, VOLUME

VOLUME_ID = 1
"""The catalog's number of the only volume."""
CHUNK = 64 << 10
ZEROES = bytes(CHUNK)
PROBE_TAG = 1 << 50
"""Above all tags of a workload."""


def lay_out(tree: Tree, directory: Path) -> None:
    """Make the tree below the directory, and nothing else there; what reads as zeroes takes no space."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in tree.items():
        path = directory / name
        if content is None:
            path.mkdir()
            continue
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, content.size)
            view = memoryview(content.data)[: content.size]
            for at in range(0, len(view), CHUNK):
                piece = bytes(view[at : at + CHUNK])  # compared at once, which a view is not
                if piece != ZEROES[: len(piece)]:
                    os.pwrite(fd, piece, at)
        finally:
            os.close(fd)


class Checker:
    """A place for images, and what they have to hold."""

    def __init__(self, directory: Path, boot_id: Path, expected: Expected) -> None:
        self.root = directory
        self._boot_id = boot_id
        self._expected = expected

    def reboot(self) -> None:
        """Another boot id."""
        self._boot_id.write_text(f"{uuid.uuid4()}\n")

    def check(self, at: int, *, thorough: bool) -> None:
        """Check what lies in the directory, as left by a power loss at this moment."""
        with self.serving() as service:
            found = self.look(service, at)
            if found is None:
                return
            after = use(service, found)
        if thorough and (problems := check_state(self.root / "state", data=True).problems):
            raise Lost(f"`polyvol check` finds: {'; '.join(problems)}")
        with self.serving() as service:
            again = self._read_all(service)
            if again[VOLUME] != after:
                raise Lost("after a clean stop and start the volume is another")
            for name in set(again) & set(found) - {VOLUME}:
                if again[name] != found[name]:
                    raise Lost(f"after a clean stop and start snapshot {name} is another")
            if thorough:
                give_back(service)

    def look(self, service: Service, at: int, *, everything: bool = False) -> dict[str, bytes] | None:
        """The live volume and the snapshots, checked; None if there need not be a volume yet and is none."""
        if not self._is_served(service, at):
            return None
        found = self._read_all(service)
        self.compare(found, at, everything=everything)
        return found

    def compare(self, found: dict[str, bytes], at: int, *, everything: bool = False) -> None:
        """Compare what all exports hold with what they may hold at this moment."""
        self._expected.check_live(found[VOLUME], at, everything=everything)
        names = {name.removeprefix(f"{VOLUME}@") for name in found if name != VOLUME}
        self._expected.check_names(names, at)
        for name in names:
            self._expected.check_snapshot(name, found[f"{VOLUME}@{name}"])

    @contextmanager
    def serving(self) -> Iterator[Service]:
        """A service on the directory."""
        service = Service(self.root / "state", processors=2, serve_nbd=False)
        service.start()
        try:
            yield service
        finally:
            service.stop()

    def _is_served(self, service: Service, at: int) -> bool:
        volumes = {view.name: view for view in service.volumes.list_all()}
        if not self._expected.volume_is_promised(at):
            return VOLUME in volumes and volumes[VOLUME].state == "serving"
        if VOLUME not in volumes:
            raise Lost("the volume is gone")
        if volumes[VOLUME].reason is not None:
            raise Lost(f"the volume is not served: {volumes[VOLUME].reason}")
        return True

    def _read_all(self, service: Service) -> dict[str, bytes]:
        return {export["name"]: read(service, export["name"]) for export in service.exports()}


def read(service: Service, export: str) -> bytes:
    """The whole of an export."""
    handle = service.engine.open(export)
    try:
        return handle.pread(SIZE, 0)
    finally:
        handle.close()


def use(service: Service, found: dict[str, bytes]) -> bytes:
    """Write, cut, write again, flush, read back, delete: it has to work. The live volume afterwards."""
    expected = bytearray(found[VOLUME])
    handle = service.engine.open(VOLUME)

    def write(tag: int, first: int, count: int) -> None:
        data = contents(PROBE_TAG + tag, first, count)
        write_with_room(service, handle, data, first * SECTOR, found)
        expected[first * SECTOR : (first + count) * SECTOR] = data

    try:
        for one in range(6):
            write(one, one * SECTORS // 7, 8 - one)
        service.create_snapshots(SnapshotCreate(volumes=(VOLUME,), name="probe"))
        pinned = bytes(expected)
        for one in range(6):
            write(10 + one, one * SECTORS // 7 + 3, 9)
        handle.flush()
        if handle.pread(SIZE, 0) != expected:
            raise Lost("what was just written reads otherwise")
    finally:
        handle.close()
    if read(service, f"{VOLUME}@probe") != pinned:
        raise Lost("a snapshot that was just taken reads otherwise")
    for name in found:
        if name != VOLUME and read(service, name) != found[name]:
            raise Lost(f"writing has changed snapshot {name}")
    service.delete_snapshot(VOLUME, "probe")
    return bytes(expected)


def write_with_room(
    service: Service, handle: HandleLike, data: bytes, offset: int, found: dict[str, bytes]
) -> None:
    """Write, and delete snapshots as long as there is no room."""
    while True:
        try:
            return handle.pwrite(data, offset)
        except OSError as error:
            others = sorted(set(found) - {VOLUME})
            if error.errno != errno.ENOSPC or not others:
                raise
            del found[others[0]]
            service.delete_snapshot(VOLUME, others[0].removeprefix(f"{VOLUME}@"))


def give_back(service: Service) -> None:
    """Delete all snapshots and trim everything: then no slot is in use."""
    for view in service.snapshots.list_all(VOLUME):
        service.delete_snapshot(VOLUME, view.name)
    handle = service.engine.open(VOLUME)
    try:
        handle.trim(SIZE, 0)
        handle.flush()
    finally:
        handle.close()
    used = service.engine.space(VOLUME_ID)["used_bytes"]
    if used:
        raise Lost(f"{used} bytes of the change log are in use although nothing refers to them")
