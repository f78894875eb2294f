"""faults: one failing system call at a time, in all operations of the daemon.

How it works      A scenario, always the same, on a service in this process: it starts on a volume that was
                  not stopped (recovery; sometimes as after a power loss), writes in place and redirected,
                  flushes, cuts, deletes, zeroes, trims, writes until the journal rolls and a checkpoint is
                  made, and stops. `python -m tests.crash.faults --count N --seed S` draws N faults: the K-th
                  call of a kind on some of the files fails, once or from then on. Every other time the
                  service is started again afterwards, on the same machine, and used a little. A fault has
                  a name, KIND:PART:K:ERRNO:ONCE-OR-EVER:SEED, and `--fault NAME` tries that one alone.
What must hold    Nothing panics; each failure is reported, in one sentence; acknowledged data exists after a
                  start without the fault; and data of an acknowledged flush exists after a power loss, which
                  may lose the data of a failed sync (disk.py).
Errors            Exit code 1, and the result (JSON, the last line) says which fault and what was wrong.
"""

import argparse
import contextlib
import errno
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from polyvol.daemon.service import Service
from polyvol.daemon.types.devices import DeviceAdd, DeviceRetry
from polyvol.daemon.types.snapshots import SnapshotCreate
from polyvol.daemon.types.volumes import VolumeCreate
from polyvol.mapping.errors import PolyvolError
from tests.crash.check import Checker, lay_out, read
from tests.crash.disk import Disk, Tree
from tests.crash.history import (
    NEVER,
    SECTOR,
    Change,
    Clock,
    Expected,
    Flush,
    History,
    Lost,
    Snapshot,
    contents,
    packed,
)
from tests.crash.recorder import Control, Kind, preloaded, read_log
from tests.crash.workload import SECTORS, VOLUME, make_volume
from tests.support.proc import run

BLOCK = 8
ERRORS = {
    "write": (errno.EIO, errno.ENOSPC),
    "sync": (errno.EIO, errno.ENOSPC),
    "allocate": (errno.ENOSPC, errno.EIO),
    "truncate": (errno.EIO,),
    "open": (errno.EIO, errno.EMFILE, errno.ENOMEM),
    "rename": (errno.EIO,),
    "unlink": (errno.EIO,),
    "mkdir": (errno.ENOSPC,),
    "map": (errno.ENOMEM,),
    "read": (errno.EIO,),
}
PARTS = ("devices", "volumes", "catalog", "")


@dataclass(frozen=True)
class Fault:
    """The `at`-th call of a kind on paths that contain `part` fails, `ever`: all after it too."""

    kind: str
    part: str
    at: int
    error: int
    ever: bool
    seed: int

    def __str__(self) -> str:
        often = "ever" if self.ever else "once"
        return ":".join(
            (self.kind, self.part, str(self.at), errno.errorcode[self.error], often, str(self.seed))
        )

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """From its name."""
        kind, part, at, error, often, seed = text.split(":")
        return cls(kind, part, int(at), int(getattr(errno, error)), often == "ever", int(seed))


@dataclass
class Result:
    """What was tried: faults, those that hit, after-crash images. And what was wrong."""

    faults: int = 0
    hit: int = 0
    images: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)


class Told:
    """A service's volume as a host has it, with everything noted. What fails is noted, and nothing raised but
    what is not an error of ours."""

    def __init__(self, service: Service, clock: Clock, history: History, first_tag: int) -> None:
        self.service = service
        self.history = history
        self._clock = clock
        self._tag = first_tag
        self._handle = service.engine.open(VOLUME)

    def close(self) -> None:
        self._handle.close()

    def write(self, first: int, count: int, *, fua: bool = False) -> None:
        self._tag += 1
        tag = self._tag
        data = contents(tag, first, count)
        self._change(tag, first, count, fua, lambda: self._handle.pwrite(data, first * SECTOR, fua=fua))

    def zero(self, first: int, count: int, *, trim: bool) -> None:
        call = self._handle.trim if trim else self._handle.zero
        self._change(0, first, count, False, lambda: call(count * SECTOR, first * SECTOR))

    def flush(self) -> None:
        issued, _ = self._clock.now()
        with contextlib.suppress(OSError):
            self._handle.flush()
            self.history.flushes.append(Flush(issued, self._clock.now()[1]))

    def cut(self, name: str) -> None:
        snapshot = Snapshot(name, self._clock.now()[1])
        self.history.snapshots.append(snapshot)
        with clean():
            self.service.create_snapshots(SnapshotCreate(volumes=(VOLUME,), name=name))
            snapshot.reported_at = self._clock.now()[1]
            with contextlib.suppress(OSError):
                snapshot.content = packed(read(self.service, f"{VOLUME}@{name}"))

    def delete(self, name: str) -> None:
        snapshot = next(one for one in self.history.snapshots if one.name == name)
        snapshot.deleting_at = self._clock.now()[1]
        with clean():
            self.service.delete_snapshot(VOLUME, name)
            snapshot.deleted_at = self._clock.now()[1]

    def _change(self, tag: int, first: int, count: int, fua: bool, call: Callable[[], None]) -> None:
        issued, issued_at = self._clock.now()
        change = Change(tag, first, count, fua, issued, issued_at)
        self.history.changes.append(change)
        with contextlib.suppress(OSError):
            call()
            change.acknowledged, change.acknowledged_at = self._clock.now()


@contextlib.contextmanager
def clean() -> Iterator[None]:
    """Whatever fails says so in one sentence, which `polyvol` would print."""
    try:
        yield
    except PolyvolError as error:
        if not error.message or "\n" in error.message or "Traceback" in error.message:
            raise Lost(f"not one clean sentence: {error.message!r}") from error


def prepare(told: Told) -> None:
    """What there is before the scenario."""
    for block in range(0, 200, 3):
        told.write(block * BLOCK, BLOCK)
    told.flush()
    told.cut("old")
    for block in range(0, 400, 5):
        told.write(block * BLOCK + block % 3, 5)
    told.flush()
    told.write(0, 100)


def scenario(told: Told) -> None:
    """Everything once, and small writes until the journal has rolled."""
    told.write(3 * BLOCK, 3 * BLOCK)
    told.write(2000, 3)
    told.flush()
    told.cut("new")
    told.write(3 * BLOCK, 2 * BLOCK)
    told.write(2001, 1, fua=True)
    told.zero(40 * BLOCK, 4 * BLOCK, trim=False)
    told.zero(50 * BLOCK, 4 * BLOCK, trim=True)
    told.flush()
    told.delete("old")
    told.flush()
    for number in range(1000):
        told.write(number * 37 % 500 * BLOCK, BLOCK)
        if number % 250 == 200:
            told.flush()
    told.cut("newer")
    told.write(300 * BLOCK, 20 * BLOCK)
    told.flush()
    told.write(300 * BLOCK + 3, 70)
    told.delete("new")


def mend(service: Service) -> None:
    """What is left of the fault: a device that has failed a sync stays so until it is retried."""
    for device in service.devices.list_all():
        if device.state == "faulty":
            service.retry_device(device.name, DeviceRetry())


def afterwards(told: Told) -> None:
    """What hosts do when the daemon was started again, on the same machine and without the fault."""
    told.flush()
    told.write(7 * BLOCK, 3 * BLOCK)
    told.cut("newest")
    told.write(2002, 2, fua=True)
    told.flush()


class Campaign:
    """Faults tried in a directory of this process; `said` is where its stderr goes."""

    def __init__(self, directory: Path, said: Path) -> None:
        self.result = Result()
        self._root = directory / "root"
        self._log = directory / "log"
        self._boot_id = directory / "boot-id"
        self._said = said
        self._control = Control()
        os.environ["RECORDER_BOOT_ID"] = str(self._boot_id)
        self._new_boot_id()
        self._booted = self._boot_id.read_text()
        self._base, self._history = self._make_base()
        self.counts = self._count()

    def run(self, faults: Iterator[Fault], deadline: float) -> None:
        """Try these until one shows something wrong or the time (monotonic) is over."""
        for fault in faults:
            if time.monotonic() > deadline:
                return
            print(fault, flush=True)
            self.result.faults += 1
            try:
                self._try(fault)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                trace = "" if isinstance(error, Lost) else traceback.format_exc()
                self.result.failures.append({"fault": str(fault), "wrong": said, "trace": trace})
                return

    def drawn(self, seed: int, count: int) -> Iterator[Fault]:
        """Faults of all kinds, on calls that the scenario makes."""
        draw = random.Random(seed)
        choices = [key for key, calls in self.counts.items() if calls]
        for _ in range(count):
            kind, part = draw.choice(choices)
            calls = self.counts[kind, part]
            at = draw.randint(1, min(calls, 40) if draw.random() < 0.7 else calls)
            error = draw.choice(ERRORS[kind])
            yield Fault(kind, part, at, error, draw.random() < 0.4, draw.randrange(1 << 30))

    def _new_boot_id(self) -> None:
        Checker(self._root, self._boot_id, Expected(History(0))).reboot()

    def _make_base(self) -> tuple[Tree, History]:
        """A volume, used, and cut off before it was stopped."""
        self._root.mkdir()
        history = History(SECTORS)
        with self._recorded():
            service = self._service()
            service.start()
            make_volume(
                lambda body: service.add_device(DeviceAdd(**body)),
                lambda body: service.create_volume(VolumeCreate(**body)),
                self._root / "state",
            )
            history.made_at = 0
            clock = Clock(self._log)
            told = Told(service, clock, history, 0)
            prepare(told)
            (self._root / "state" / "lock").read_bytes()  # a call, so that what was stored is in the log
            end = clock.now()[1]
            told.close()
            service.stop()
        disk = Disk()
        for record in read_log(self._log):
            if record.at < end:
                disk.apply(record)
        # All this was before the log of what follows; the last write was acknowledged, but not flushed.
        for change in history.changes:
            change.issued = change.issued_at = change.acknowledged = change.acknowledged_at = -1
        history.changes[-1].acknowledged = 0
        history.flushes = [Flush(0, -1)]
        for snapshot in history.snapshots:
            snapshot.issued_at = snapshot.reported_at = -1
        return disk.tree(), history

    def _history_so_far(self, *, lost_power: bool = False) -> History:
        base = self._history
        snapshots = [replace(one) for one in base.snapshots]
        *durable, last = base.changes
        last = replace(last, acknowledged=NEVER if lost_power else last.acknowledged)
        changes = [*durable, last]
        return History(SECTORS, -1, changes=changes, flushes=[*base.flushes], snapshots=snapshots)

    def _count(self) -> dict[tuple[str, str], int]:
        """How many calls of each kind, on each part, the scenario makes."""
        counts = {}
        for kind in ERRORS:
            for part in PARTS[:-1]:
                lay_out(self._base, self._root)
                with self._recorded():
                    self._control.fail(kind, NEVER, 0, part=part)
                    self._run_scenario(self._history_so_far())
                    counts[kind, part] = self._control.counted()
                    self._control.fail("", 0, 0)
        return counts

    def _service(self) -> Service:
        return Service(self._root / "state", processors=2, serve_nbd=False)

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        self._control.begin(self._root, self._log)
        try:
            yield
        finally:
            self._control.end()

    def _run_scenario(
        self,
        history: History,
        acts: Callable[[Told], None] = scenario,
        first_tag: int = 1 << 20,
        clock: Clock | None = None,
    ) -> None:
        service = self._service()
        started = False
        with clean():
            service.start()
            started = True
        if not started:
            return
        try:
            if VOLUME in {export["name"] for export in service.exports()}:
                told = Told(service, clock or Clock(self._log), history, first_tag)
                acts(told)
                told.close()
        finally:
            with clean():
                service.stop()

    def _try(self, fault: Fault) -> None:
        lost_power = fault.seed % 3 == 0
        history = self._history_so_far(lost_power=lost_power)
        said = self._said.stat().st_size
        lay_out(self._base, self._root)
        self._boot_id.write_text(self._booted)
        if lost_power:
            self._new_boot_id()
        with self._recorded():
            clock = Clock(self._log)
            self._control.fail(fault.kind, fault.at, fault.error, ever=fault.ever, part=fault.part)
            try:
                self._run_scenario(history, clock=clock)
            finally:
                self.result.hit += self._control.counted() >= fault.at
                self._control.fail("", 0, 0)
            if fault.seed % 2:
                self._run_scenario(history, afterwards, 1 << 30, clock)
        text = self._said.read_bytes()[said:].decode(errors="replace")
        if "panicked" in text:
            raise Lost(f"the engine has panicked:\n{text}")
        self._judge(fault, history)

    def _judge(self, fault: Fault, history: History) -> None:
        expected = Expected(history)
        checker = Checker(self._root, self._boot_id, expected)
        end = self._log.stat().st_size
        with checker.serving() as service:
            mend(service)
            checker.look(service, end, everything=True)
        records = list(read_log(self._log))
        draw = random.Random(fault.seed)
        first = sum(record.kind == Kind.KNOWN for record in records)
        moments = {draw.randrange(first, len(records)), len(records) - 1}
        disk = Disk(self._base)
        for number, record in enumerate(records):
            disk.apply(record)
            if number in moments:
                at = records[number + 1].at if number + 1 < len(records) else end
                lay_out(disk.image(draw.choice(("nothing", "nothing", "random", "files")), draw), self._root)
                checker.reboot()
                checker.check(at, thorough=False)
                self.result.images += 1


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--fault", type=Fault.parse)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
        said = Path(short) / "said"
        said.touch()
        campaign = Campaign(Path(short), said)
        faults = campaign.drawn(options.seed, options.count)
        if options.fault is not None:
            faults = iter([options.fault])
        with said.open("wb") as file:
            os.dup2(file.fileno(), 2)
        campaign.run(faults, time.monotonic() + options.seconds)
        print(json.dumps(asdict(campaign.result)), flush=True)
    return 1 if campaign.result.failures else 0


def try_faults(
    *, seed: int, count: int, seconds: float = 1e9, timeout_s: float = 600, fault: str | None = None
) -> Result:
    """Run the program; its result. `fault`: that one alone."""
    with tempfile.TemporaryDirectory(prefix="pv-") as short:
        env = preloaded(Path(short) / "boot-id")
        words = ["--seed", str(seed), "--count", str(count), "--seconds", str(seconds)]
        words += [] if fault is None else ["--fault", fault]
        ended = run(sys.executable, "-m", __name__, *words, env=env, timeout_s=timeout_s)
    lines = ended.out.splitlines()
    if ended.rc not in (0, 1) or not lines or not lines[-1].startswith("{"):
        last = lines[-1] if lines else ""
        wrong = f"the process ended with {ended.rc}:\n{ended.out}{ended.err}"
        return Result(failures=[{"fault": last, "wrong": wrong, "trace": ""}])
    return Result(**json.loads(lines[-1]))


if __name__ == "__main__":
    sys.exit(main())
