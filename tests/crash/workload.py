"""workload: load on a recorded polyvold, which notes the promises of flushes, cuts and deletions.

How it works      One volume of 2 MiB on two devices and a change log, in a state directory that is recorded
                  from its first file on. WRITERS threads write, zero and trim sectors of their own, each over
                  its own connection: in the first half of the volume whole regions, in the second half of
                  each block, so that they meet in blocks. One thread flushes, one takes snapshots, reads them
                  back and deletes them. In most runs blocks are relocated too; all rest sometimes,
                  so that the daemon finds its hosts idle and moves away what snapshots see at base places.
                  The daemon is killed at the end, so that there is no cleanup.
Errors            AssertionError when the daemon answers with an error other than ENOSPC.
"""

import errno
import itertools
import pickle
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nbd

from polyvol.daemon.client.cli.client import ApiError
from polyvol.mapping.errors import PolyvolError
from tests.clients.system import delete_when_unused
from tests.crash.history import (
    NEVER,
    SECTOR,
    Change,
    Clock,
    Expected,
    Flush,
    History,
    Snapshot,
    contents,
    packed,
    unpacked,
)
from tests.crash.recorder import cut_off, environment
from tests.support.daemon import Daemon, short_directory
from tests.support.nbd import connect

WRITERS = 3
SIZE = 2 << 20
SECTORS = SIZE // SECTOR
BLOCK_SECTORS = 8
HALF = SECTORS // 2
REGION = HALF // WRITERS // BLOCK_SECTORS * BLOCK_SECTORS
HALVES = (SECTORS - HALF) // (BLOCK_SECTORS // 2)
VOLUME = "v"
SNAPSHOTS_MAX = 3
PAUSES_S = (0.0, 0.001, 0.01, None)
"""How long a writer waits between two changes, on average: one of these for each recording. None: one thread
writes and flushes."""
QUIET_EVERY_S, QUIET_S = 0.2, 0.04
REST_EVERY_S, REST_S = 0.6, 0.12
"""When all rest, and how long: several looks of the relocation, see SMALL."""
RELOCATIONS = ("off", "auto", 1 << 30, 1 << 30)
"""How blocks are relocated, one of these for each recording: not, while hosts rest, at once."""


@dataclass
class Recording:
    """What a run left, in a directory: `log` and `history`."""

    directory: Path

    @property
    def log(self) -> Path:
        """The recorder's log."""
        return self.directory / "log"

    def load(self) -> History:
        """The history."""
        history: History = pickle.loads((self.directory / "history").read_bytes())
        return history

    def store(self, history: History) -> None:
        """Keep the history."""
        (self.directory / "history").write_bytes(pickle.dumps(history))


def make_volume(
    add_device: Callable[[dict[str, Any]], object],
    make: Callable[[dict[str, Any]], object],
    state_dir: Path,
    name: str = VOLUME,
) -> None:
    """The volume that everything here is about; its devices are in the state directory, wherever that is."""
    for device, room in ((f"{name}-0", SIZE // 2), (f"{name}-1", SIZE // 2), (f"{name}-log", 64 << 20)):
        path = str(state_dir / "devices" / device)
        add_device({"path": path, "name": device, "size": (1 << 20) + room})
    make(
        {
            "name": name,
            "size": SIZE,
            "partition_size": 1 << 20,
            "processors": 2,
            "devices": (f"{name}-0", f"{name}-1"),
            "log_devices": (f"{name}-log",),
            "when_full": "keep-snapshots",
        }
    )


class Load:
    """The threads, and what they note."""

    def __init__(
        self,
        daemon: Daemon,
        clock: Clock,
        seed: int,
        history: History | None = None,
        *,
        pause_s: float | None = 0.0004,
    ) -> None:
        self.history = history or History(SECTORS)
        self.killing = False
        self.failures: list[BaseException] = []
        self._daemon = daemon
        self._clock = clock
        self._seed = seed
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._tags = itertools.count(1 + (seed % 1000 << 20))
        self._threads: list[threading.Thread] = []

    def run(self, seconds: float) -> None:
        """Load for so long."""
        self.start()
        self._stop.wait(seconds)
        try:
            self._count_relocated()
        finally:
            self.finish()

    def start(self) -> None:
        """Begin."""
        bodies: list[Callable[[], None]] = [self._cut]
        if self._pause_s is None:
            bodies.append(self._write_and_flush)
        else:
            bodies.append(self._flush)
            bodies += [partial(self._write, writer, self._pause_s) for writer in range(WRITERS)]
        self._threads = [threading.Thread(target=self._guarded, args=(body,)) for body in bodies]
        for thread in self._threads:
            thread.start()

    def run_until_killed(self, seconds: float) -> None:
        """Load for so long, then kill the daemon."""
        self.start()
        time.sleep(seconds)
        try:
            self._count_relocated()
        finally:
            self.killing = True
            self._daemon.kill()
            self.finish()

    def _count_relocated(self) -> None:
        view = self._daemon.volume(VOLUME)["relocation"]
        self.history.relocated += 0 if view is None else view["moved"]

    def _rest(self) -> None:
        """Wait while all rest."""
        while time.monotonic() % REST_EVERY_S < REST_S and not self._stop.is_set():
            time.sleep(QUIET_S / 4)

    def finish(self) -> None:
        """End; whatever failed, unless the daemon is being killed, is raised."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"
        if self.failures:
            raise self.failures[0]

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except (nbd.Error, OSError, PolyvolError, ApiError) as error:
            if not self.killing:
                self.failures.append(error)
            self._stop.set()
        except BaseException as error:
            self.failures.append(error)
            self._stop.set()

    def _write_and_flush(self) -> None:
        """One after the other, with time in between for what the daemon does by itself."""
        draw = random.Random(f"{self._seed}-serial")
        with connect(self._daemon.uri(VOLUME)) as handle:
            while not self._stop.is_set():
                self._rest()
                for _ in range(draw.choice((1, 1, 1, 20))):
                    self._change(handle, draw, draw.randrange(WRITERS))
                time.sleep(draw.choice((0, 0.004, 0.012)))
                self._flush_now(handle)

    def _write(self, writer: int, pause_s: float) -> None:
        draw = random.Random(f"{self._seed}-{writer}")
        with connect(self._daemon.uri(VOLUME)) as handle:
            while not self._stop.is_set():
                self._rest()
                if time.monotonic() % QUIET_EVERY_S < QUIET_S:
                    time.sleep(QUIET_S / 4)  # all writers at once, so that flushes find nothing new
                    continue
                self._change(handle, draw, writer)
                time.sleep(draw.uniform(0, 2 * pause_s))

    def _change(self, handle: Any, draw: random.Random, writer: int) -> None:
        kind = draw.choices(("write", "zero", "trim"), (8, 1, 1))[0]
        fua = draw.random() < 0.1
        if draw.random() < 0.4:
            half = draw.randrange(HALVES // WRITERS) * WRITERS + writer
            inner = draw.randrange(4)
            self._do(handle, "write", HALF + half * 4 + inner, draw.randint(1, 4 - inner), fua)
            return
        base, length = writer * REGION, draw.choice((1, 3, 8, 8, 8, 16, 24, 40))
        first = base + draw.randrange(REGION - length)
        if length % BLOCK_SECTORS == 0 or kind == "trim":
            length = max(length, BLOCK_SECTORS) // BLOCK_SECTORS * BLOCK_SECTORS
            first = min(first, base + REGION - length) // BLOCK_SECTORS * BLOCK_SECTORS
        self._do(handle, kind, first, length, fua)

    def _do(self, handle: Any, kind: str, first: int, count: int, fua: bool) -> None:
        tag = next(self._tags) if kind == "write" else 0
        issued, issued_at = self._clock.now()
        change = Change(tag, first, count, fua, issued, issued_at)
        self.history.changes.append(change)
        flags = nbd.CMD_FLAG_FUA if fua else 0
        try:
            if kind == "write":
                handle.pwrite(contents(tag, first, count), first * SECTOR, flags)
            else:
                call = handle.zero if kind == "zero" else handle.trim
                call(count * SECTOR, first * SECTOR, flags)
        except nbd.Error as error:
            if error.errnum != errno.ENOSPC:
                raise
            return
        change.acknowledged, change.acknowledged_at = self._clock.now()

    def _flush(self) -> None:
        draw = random.Random(f"{self._seed}-flush")
        with connect(self._daemon.uri(VOLUME)) as handle:
            while not self._stop.is_set():
                time.sleep(draw.uniform(0.001, 0.03))
                self._flush_now(handle)

    def _flush_now(self, handle: Any) -> None:
        issued, _ = self._clock.now()
        handle.flush()
        self.history.flushes.append(Flush(issued, self._clock.now()[1]))

    def _cut(self) -> None:
        draw = random.Random(f"{self._seed}-cut")
        numbers = itertools.count()
        there = [one for one in self.history.snapshots if one.reported_at < NEVER]
        kept = [one for one in there if one.deleting_at == NEVER]
        while not self._stop.is_set():
            time.sleep(draw.uniform(0.01, 0.1))
            self._rest()
            issued, issued_at = self._clock.now()
            snapshot = Snapshot(f"s{self._seed}-{next(numbers)}", issued_at, issued)
            self.history.snapshots.append(snapshot)
            self._daemon.api.post("snapshots", body={"volumes": [VOLUME], "name": snapshot.name})
            snapshot.reported, snapshot.reported_at = self._clock.now()
            with connect(self._daemon.uri(f"{VOLUME}@{snapshot.name}")) as handle:
                snapshot.content = packed(bytes(handle.pread(SIZE, 0)))
            kept.append(snapshot)
            if len(kept) > draw.randint(0, SNAPSHOTS_MAX):
                self._delete(kept.pop(draw.randrange(len(kept))))

    def _delete(self, snapshot: Snapshot) -> None:
        snapshot.deleting_at = self._clock.now()[1]
        delete_when_unused(self._daemon, VOLUME, snapshot.name)
        snapshot.deleted_at = self._clock.now()[1]


def record(
    directory: Path, seed: int, seconds: float, *, sync_us: int = 0, kills: int = 0, stop: bool = False
) -> Recording:
    """Run the load on a recorded polyvold; what it left goes to `directory`. `kills`: how often it is killed
    and started again in between. `stop`: it is stopped in the end, not killed, and its files are kept as
    `left`."""
    recording = Recording(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with short_directory() as short:
        daemon = Daemon(short, "--processors", "2")
        root = short / "root"
        root.mkdir()
        daemon.move(root / "state")
        daemon.environment = environment(root, recording.log, sync_us=sync_us)
        with daemon:
            clock = Clock(recording.log)
            draw = random.Random(seed)
            pause_s, relocate = draw.choice(PAUSES_S), draw.choice(RELOCATIONS)
            load = Load(daemon, clock, seed, pause_s=pause_s)
            api = daemon.api
            make_volume(
                lambda body: api.post("devices", body=body),
                lambda body: api.post("volumes", body=body),
                daemon.state_dir,
            )
            api.patch("volumes", VOLUME, body={"relocate": relocate})
            load.history.made_at = clock.now()[1]
            for kill in range(1, kills + 1):
                load.run_until_killed(seconds / (kills + 1))
                cut_off(recording.log)
                daemon.environment = environment(root, recording.log, sync_us=sync_us, goes_on=kill)
                daemon.start()
                load = Load(daemon, clock, seed + kill, load.history, pause_s=pause_s)
            load.run(seconds / (kills + 1))
            if not stop:
                daemon.kill()
        assert "panicked" not in daemon.said(), daemon.said()
        expected = Expected(load.history)
        for snapshot in load.history.snapshots:
            if snapshot.content is not None:
                expected.check_instant(snapshot, unpacked(snapshot.content))
        recording.store(load.history)
        if stop:
            shutil.copytree(root, directory / "left", ignore=shutil.ignore_patterns("*.sock"))
    return recording
