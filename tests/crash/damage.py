"""damage: one file in a state directory is damaged, missing, older or swapped; checks polyvold's reaction.

How it works      `python -m tests.crash.damage --seed S --count N` builds a state (state_images.py) and has
                  four images of it: after an earlier run, earlier in the last run, as a kill leaves the last
                  run, and as a stop leaves it. A trial takes one of the last two, damages it by a drawn
                  kind, which is an action and a class of files, looks it through with `polyvol check`, starts
                  a service on it and reads everything, stops it, and checks again. `--images FILE` keeps the
                  images when a trial fails, or uses those that are there; `--trial N` makes that trial alone,
                  `--kind ACTION CLASS` draws that kind alone, `--go-on` does not end at a failure.
What must hold    Every export returns its data or EIO, or its volume is not served and shows the reason, or
                  the start is refused with a sentence. No volume and no snapshot of a served volume is
                  missing, unless the whole state directory is older than they are. If anything is not served
                  or missing, the check says so before the start and after it; the check changes nothing.
                  Nothing but PolyvolError is raised, in any thread.
Errors            Exit code 1 when a trial fails; the last line of the output is a result in JSON.
"""

import argparse
import contextlib
import faulthandler
import json
import pickle
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from polyvol.daemon.check import check_state
from polyvol.daemon.service import Service
from polyvol.mapping.errors import PolyvolError
from tests.crash.history import Lost
from tests.crash.recorder import SMALL
from tests.crash.state_images import BLOCK, MIB, SIZE, File, Image, Story, below, build, bytes_of, lay_out
from tests.support.proc import Argument, run

LABEL_BYTES = 4096
CHUNK = 1 << 16
HANG_S = 60
"""How long a trial may take; then the program ends with what each thread does."""

Kind = tuple[str, str]
"""What is done, and to what class of files."""
UNTOLD: frozenset[Kind] = frozenset({("older-earlier", "device"), ("older-earlier", "devices")})
"""Kinds that nothing can tell: a block at its home has no checksum, and a run writes a label twice. An
older state directory is drawn without its devices, for the same reason."""


@dataclass
class Result:
    """How many trials of each kind had each outcome, and what was wrong."""

    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """How many there were."""
        return sum(sum(each.values()) for each in self.outcomes.values())


# Damage

CLASSES = (
    (r"state/catalog\.db", "catalog"),
    (r"state/catalog\.db-wal", "wal"),
    (r"state/catalog\.db-shm", "shm"),
    (r"state/catalog\.mark", "mark"),
    (r"state/lock", "lock"),
    (r"disks/.*|state/devices/.*", "device"),
    (r"state/volumes/[^/]*/.*\.journal", "journal"),
    (r"state/volumes/[^/]*/.*\.checkpoint", "checkpoint"),
    (r"state/volumes/[^/]*/.*", "engine file"),
    (r"state/volumes/[^/]*", "volume directory"),
    (r"state/volumes", "volumes"),
    (r"state/manifests/[^/]*/.*", "manifest"),
    (r"state/manifests/[^/]*", "manifest directory"),
    (r"state/manifests", "manifests"),
    (r"state/devices", "devices"),
    (r"state", "state"),
)
"""Classes of files and directories, by their paths."""


def class_of(path: str) -> str | None:
    """The class of a path; None: it is not touched."""
    return next((name for pattern, name in CLASSES if re.fullmatch(pattern, path)), None)


class Damage:
    """Draws damages of images."""

    def __init__(self, images: dict[str, Image], draw: random.Random) -> None:
        self._images = images
        self._draw = draw
        self._base = draw.choice(("killed", "stopped"))
        self.image = dict(images[self._base])
        self.kind: Kind = ("", "")
        self.name = ""

    def make(self, only: Kind | None = None) -> None:
        """Damage the image by a drawn kind, or by this one."""
        choices = self._choices()
        if only is not None and only not in choices:
            self._base = "killed" if self._base == "stopped" else "stopped"
            self.image = dict(self._images[self._base])
            choices = self._choices()
        self.kind = only or self._draw.choice(sorted(set(choices) - UNTOLD))
        path = self._draw.choice(choices[self.kind])
        detail = getattr(self, f"_{self.kind[0].replace('-', '_')}")(path)
        self.name = f"{self._base}: {self.kind[0]} {path}{detail}"

    def _choices(self) -> dict[Kind, list[str]]:
        """The paths that each kind can be tried on."""
        choices: dict[Kind, list[str]] = {}
        for path in sorted({*self.image, *self._images["first"], *self._images["earlier"]}):
            what = class_of(path)
            for action in self._actions(path, what) if what is not None else ():
                choices.setdefault((action, what or ""), []).append(path)
        return choices

    def _actions(self, path: str, what: str) -> Iterator[str]:
        here, file = path in self.image, self.image.get(path)
        if here and what != "state":  # nothing is left that could tell
            yield "drop"
        if file is not None and file.size and what != "lock":
            yield "flip"
            yield "truncate"
            if what == "catalog":
                yield "value"
            if what == "device" and "log" in path and any(at >= MIB for at, _ in file.pieces):
                yield "flip-slot"
        for image in ("first", "earlier"):
            if (what, image, self._base) == ("state", "earlier", "killed"):
                continue  # labels are of the same run
            other = below(self._images[image], path)
            if other and other != below(self.image, path) and what != "lock":
                yield f"older-{image}"
        if here and len(self._like(path)) > 1:
            yield "swap"

    def _like(self, path: str) -> list[str]:
        """Files or directories of the same class."""
        return [name for name in self.image if class_of(name) == class_of(path)]

    def _drop(self, path: str) -> str:
        for name in below(self.image, path):
            del self.image[name]
        return ""

    def _flip(self, path: str) -> str:
        """One bit: of the first bytes, of all of it, or of a page that is not zeros. Of a device: of its
        label."""
        data = bytearray(bytes_of(self.image[path], LABEL_BYTES if class_of(path) == "device" else None))
        where: list[Callable[[], int]] = [
            lambda: self._draw.randrange(min(len(data), 128)),
            lambda: self._draw.randrange(len(data)),
            lambda: self._used_byte(data),
            lambda: self._used_byte(data),
        ]
        return self._flip_at(path, self._draw.choice(where)())

    def _used_byte(self, data: bytearray) -> int:
        """Where a byte is that is not zero, each page as likely as the others."""
        pages = [at for at in range(0, len(data), BLOCK) if any(data[at : at + BLOCK])]
        page = self._draw.choice(pages or [0])
        return page + self._draw.choice(
            [at for at, byte in enumerate(data[page : page + BLOCK]) if byte] or [0]
        )

    def _flip_slot(self, path: str) -> str:
        """One bit of what a change log has."""
        file = self.image[path]
        assert file is not None
        at, data = self._draw.choice([each for each in file.pieces if each[0] >= MIB])
        return self._flip_at(path, at + self._draw.randrange(len(data)))

    def _flip_at(self, path: str, at: int) -> str:
        file = self.image[path]
        assert file is not None
        bit = self._draw.randrange(8)
        byte = bytes_of(file, at + 1)[at] if at < file.size else 0
        self.image[path] = File(file.size, (*file.pieces, (at, bytes([byte ^ 1 << bit]))))
        return f" at {at} bit {bit}"

    def _value(self, path: str) -> str:
        """One bit of a number in a row of the catalog, past its triggers; its log is taken in."""
        with tempfile.TemporaryDirectory() as scratch:
            catalog = Path(scratch) / "catalog.db"
            for suffix in ("", "-wal"):
                if self.image.get(f"{path}{suffix}") is not None:
                    Path(f"{catalog}{suffix}").write_bytes(bytes_of(self.image[f"{path}{suffix}"]))
            done = None
            while done is None:
                with contextlib.suppress(sqlite3.IntegrityError):
                    done = self._change_row(catalog)
            data = catalog.read_bytes()
        for suffix in ("-wal", "-shm"):
            self.image.pop(f"{path}{suffix}", None)
        self.image[path] = File(len(data), ((0, data),))
        return done

    def _change_row(self, catalog: Path) -> str | None:
        with contextlib.closing(sqlite3.connect(catalog, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA ignore_check_constraints = ON")
            query = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
            table = self._draw.choice([row[0] for row in connection.execute(query)])
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            row = dict(self._draw.choice(rows)) if rows else {}
            numbers = [name for name, value in row.items() if isinstance(value, int)]
            if not numbers:
                return None
            column, bit = self._draw.choice(numbers), self._draw.randrange(24)
            same = " AND ".join(f"{name} IS ?" for name in row)
            new = row[column] ^ 1 << bit
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {same}", (new, *row.values()))
            return f": {table}.{column} from {row[column]} to {new}"

    def _truncate(self, path: str) -> str:
        file = self.image[path]
        assert file is not None
        size = self._draw.choice((0, self._draw.randrange(file.size), max(0, file.size - BLOCK)))
        cut = tuple((at, data[: size - at]) for at, data in file.pieces if at < size)
        self.image[path] = File(size, cut)
        return f" to {size}"

    def _older_first(self, path: str) -> str:
        return self._older(path, "first")

    def _older_earlier(self, path: str) -> str:
        return self._older(path, "earlier")

    def _older(self, path: str, image: str) -> str:
        """Of the state directory: without the devices in it, which could not be told from newer ones."""
        kept = below(self.image, f"{path}/devices") if path == "state" else {}
        self._drop(path)
        self.image.update({**below(self._images[image], path), **kept})
        for above in Path(path).parents:
            if str(above) != ".":
                self.image.setdefault(str(above), None)
        return ""

    def _swap(self, path: str) -> str:
        other = self._draw.choice([name for name in self._like(path) if name != path])
        one, another = below(self.image, path), below(self.image, other)
        for name in (*one, *another):
            del self.image[name]
        self.image.update({other + name[len(path) :]: file for name, file in one.items()})
        self.image.update({path + name[len(other) :]: file for name, file in another.items()})
        return f" with {other}"


# Trials


class Trial:
    """One damaged image below a root, looked at."""

    def __init__(self, root: Path, held: dict[str, bytes], kind: Kind) -> None:
        self._root = root
        self._held = held
        self._older = kind[1] == "state"  # what is newer than the catalog cannot be known
        self._raised: list[str] = []

    def run(self, image: Image) -> str:
        """The result: right, eio, not served or refused. Lost if that is not allowed."""
        lay_out(image, self._root)
        threading.excepthook = lambda raised: self._raised.append(repr(raised.exc_value))
        before = self._problems("before the start")
        outcome = self._start()
        after = self._problems("after the start")
        if self._raised:
            raise Lost(f"a thread has ended with {self._raised[0]}")
        for when, problems in (("before", before), ("after", after)):
            if outcome != "right" and not problems:
                raise Lost(f"{outcome}, and the check {when} the start says 0 problems")
        return outcome

    def _problems(self, when: str) -> list[str]:
        files = self._listing()
        try:
            problems = check_state(self._root / "state", data=True).problems
        except PolyvolError as error:
            problems = [str(error)]
        if self._listing() != files:
            raise Lost(f"the check {when} has changed files")
        return problems

    def _listing(self) -> list[tuple[str, int, int, int]]:
        found = []
        for path in sorted(self._root.rglob("*")):
            status = path.lstat()
            found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
        return found

    def _start(self) -> str:
        service = Service(self._root / "state", processors=2, serve_nbd=False)
        try:
            service.start()
        except PolyvolError:
            return "refused"
        try:
            return self._look(service)
        finally:
            with contextlib.suppress(PolyvolError):  # a volume whose device is missing keeps no checkpoint
                service.stop()

    def _look(self, service: Service) -> str:
        views = {view.name: view for view in service.volumes.list_all()}
        exports = {export["name"] for export in service.exports()}
        outcome = "right"
        for volume in sorted({name.partition("@")[0] for name in self._held}):
            if volume not in views and self._older:
                outcome = "not served"
                continue
            if volume not in views:
                raise Lost(f"volume {volume} is gone")
            names = {name for name in self._held if name.partition("@")[0] == volume}
            listed = {volume, *(f"{volume}@{each.name}" for each in service.snapshots.list_all(volume))}
            if listed != names and not (self._older and listed < names):
                raise Lost(f"volume {volume} has {sorted(listed)} and had {sorted(names)}")
            if volume not in exports:
                if views[volume].reason is None:
                    raise Lost(f"volume {volume} is not served, and nothing says why")
                outcome = "not served"
            elif listed - exports:
                raise Lost(f"{sorted(listed - exports)} are not served")
        if exports - set(self._held):
            raise Lost(f"{sorted(exports - set(self._held))} never were")
        for export in sorted(exports):
            if not self._is_right(service, export):
                outcome = "eio" if outcome == "right" else outcome
        return outcome

    def _is_right(self, service: Service, export: str) -> bool:
        """Compare all of an export; False if some of it cannot be read."""
        handle, held, whole = service.engine.open(export), self._held[export], True
        try:
            if handle.size != SIZE:
                raise Lost(f"{export} has {handle.size} bytes")
            for at in range(0, SIZE, CHUNK):
                length = min(CHUNK, SIZE - at)
                try:
                    pieces = [(at, handle.pread(length, at))]
                except OSError:
                    whole, pieces = False, list(_blocks(handle.pread, at, length))
                for offset, data in pieces:
                    if data != held[offset : offset + len(data)]:
                        raise Lost(f"{export} has other bytes in the {len(data)} at {offset}")
        finally:
            handle.close()
        return whole


def _blocks(pread: Callable[[int, int], bytes], at: int, length: int) -> Iterator[tuple[int, bytes]]:
    """Those blocks that can be read."""
    for offset in range(at, at + length, BLOCK):
        with contextlib.suppress(OSError):
            yield offset, pread(BLOCK, offset)


def run_trials(
    story: Story,
    seed: int,
    numbers: Iterable[int],
    deadline: float,
    *,
    kind: Kind | None = None,
    go_on: bool = False,
) -> Result:
    """Make these trials, until one fails or the time (monotonic) is over. `kind`: of this one alone;
    `go_on`: no failure ends it."""
    outcomes: dict[str, Counter[str]] = {}
    result = Result()
    for number in numbers:
        if time.monotonic() > deadline or (result.failures and not go_on):
            break
        damage = Damage(story.images, random.Random(f"{seed}-{number}"))
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            damage.make(kind)
            outcome = Trial(story.root, story.held, damage.kind).run(damage.image)
        except BaseException as error:
            trace = "" if isinstance(error, Lost) else traceback.format_exc()
            wrong = f"{damage.name}: {type(error).__name__}: {error}"
            result.failures.append({"trial": str(number), "wrong": wrong, "trace": trace})
            outcome = "LOST"
        outcomes.setdefault(" ".join(damage.kind), Counter())[outcome] += 1
    faulthandler.cancel_dump_traceback_later()
    result.outcomes = {kind: dict(each) for kind, each in sorted(outcomes.items())}
    return result


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--trial", type=int)
    parser.add_argument("--kind", nargs=2, metavar=("ACTION", "CLASS"))
    parser.add_argument("--go-on", action="store_true")
    options = parser.parse_args()
    if options.images is not None and options.images.exists():
        story: Story = pickle.loads(options.images.read_bytes())
        story.root.parent.mkdir()
    else:
        story = build(Path(tempfile.mkdtemp(prefix="polyvol-damage-", dir="/dev/shm")) / "root")
    try:
        numbers = range(options.count) if options.trial is None else [options.trial]
        deadline = time.monotonic() + options.seconds
        kind = None if options.kind is None else (options.kind[0], options.kind[1])
        result = run_trials(story, options.seed, numbers, deadline, kind=kind, go_on=options.go_on)
    finally:
        shutil.rmtree(story.root.parent)
    if result.failures and options.images is not None:
        options.images.write_bytes(pickle.dumps(story))
    print(json.dumps(asdict(result)), flush=True)
    return 1 if result.failures else 0


def run_damage(
    *,
    seed: int,
    count: int,
    seconds: float = 1e9,
    images: Path | None = None,
    trial: int | None = None,
    kind: Kind | None = None,
) -> Result:
    """Run the program; its result. `images`: where it keeps them when a trial fails, or has them from."""
    words: list[Argument] = ["--seed", str(seed), "--count", str(count), "--seconds", str(seconds)]
    words += [] if images is None else ["--images", images]
    words += [] if trial is None else ["--trial", str(trial)]
    words += [] if kind is None else ["--kind", *kind]
    ended = run(sys.executable, "-m", __name__, *words, env=SMALL, timeout_s=600)
    lines = ended.out.splitlines()
    if ended.rc not in (0, 1) or not lines:
        wrong = f"the program ended with {ended.rc}:\n{ended.out}{ended.err}"
        return Result(failures=[{"trial": "0", "wrong": wrong, "trace": ""}])
    result = Result(**json.loads(lines[-1]))
    if "panicked" in ended.err and not result.failures:
        result.failures.append({"trial": "0", "wrong": "the engine has panicked", "trace": ended.err})
    return result


if __name__ == "__main__":
    sys.exit(main())
