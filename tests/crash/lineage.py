"""lineage: kills and power losses of a polyvold that rolls back, clones, renames and deletes.

How it works      `record` sends a recorded polyvold one request after another: a few blocks written and
                  flushed, a snapshot, a rollback, a clone, a snapshot or a volume renamed or deleted; all
                  contents before and after are known. During some of these it is killed and started again.
                  `python -m tests.crash.lineage RECORDING --seed S --count N --root D`, a program with the
                  recorder preloaded, makes after-crash images of drawn moments, starts a service on each, and
                  compares.
What must hold    All reported requests were completed; each other request was completed or not done at all; a
                  block that was not flushed is old or new. Objects kept for clones have clones. Then
                  everything works: all is written and read back, `polyvol check` finds nothing, and when all
                  volumes are deleted no device is left.
Errors            Exit code 1 and a sentence.
"""

import contextlib
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from polyvol.daemon.client.cli.client import ApiError
from polyvol.daemon.service import Service
from polyvol.mapping.errors import PolyvolError
from tests.crash import after_images
from tests.crash.history import SECTOR, Lost
from tests.crash.recorder import cut_off, environment
from tests.support.daemon import Daemon, short_directory
from tests.support.nbd import connect

BLOCK = 4096
SIZE = (1 << 20) + 3 * BLOCK
CELLS = [number * SIZE // 12 // BLOCK * BLOCK for number in range(12)]
"""Where the blocks are that are written."""
VOLUMES_MAX, SNAPSHOTS_MAX = 4, 6
KILL_S = 0.03

State = dict[str, tuple[int, ...]]
"""What every export holds: the turn that wrote each of its cells, 0 for zeros."""


@dataclass
class Step:
    """Something that was asked for, in a turn; moments are lengths of the log. `torn`: of the blocks that are
    written, each may be there or not; `done`: whether it had happened when it was `reported`."""

    before: State
    after: State
    issued: int
    reported: int
    torn: bool
    done: bool = True


@dataclass
class Story:
    """What was asked for and told."""

    steps: list[Step] = field(default_factory=list)


def block(turn: int) -> bytes:
    """What a turn writes."""
    return turn.to_bytes(8, "little") * (BLOCK // 8)


class Asking:
    """Draws what is asked for next, and what it makes of the state."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self._daemon = daemon
        self._draw = random.Random(seed)
        self.state: State = {}

    def next(self, turn: int) -> tuple[Callable[[], object], State, bool]:
        """What to call, what there is then, and whether that may be torn."""
        volumes = sorted(name for name in self.state if "@" not in name)
        snapshots = sorted(name for name in self.state if "@" in name)
        kinds = ["write"] * 4 + ["take"] * 3
        kinds += ["roll_back", "roll_back", "clone", "clone", "delete", "rename"] if snapshots else []
        kinds += ["delete_volume"] if len(volumes) > 1 else []
        kind = self._draw.choice(kinds)
        if kind == "clone" and len(volumes) == VOLUMES_MAX:
            kind = "delete_volume"
        if kind == "take" and len(snapshots) == SNAPSHOTS_MAX:
            kind = "delete"
        chosen = snapshots if kind in ("roll_back", "clone", "delete") else volumes
        which = self._draw.choice([*volumes, *snapshots] if kind == "rename" else chosen)
        if kind == "write":
            return self._write(which, turn)
        call, after = getattr(self, f"_{kind}")(which, turn)
        return call, after, False

    def _write(self, volume: str, turn: int) -> tuple[Callable[[], object], State, bool]:
        cells = self._draw.sample(range(len(CELLS)), self._draw.randint(1, 6))
        held = tuple(turn if number in cells else old for number, old in enumerate(self.state[volume]))

        def call() -> None:
            with connect(self._daemon.uri(volume)) as handle:
                for number in cells:
                    handle.pwrite(block(turn), CELLS[number])
                handle.flush()

        return call, {**self.state, volume: held}, True

    def _take(self, volume: str, turn: int) -> tuple[Callable[[], object], State]:
        body = {"volumes": [volume], "name": f"s{turn}"}
        after = {**self.state, f"{volume}@s{turn}": self.state[volume]}
        return lambda: self._daemon.api.post("snapshots", body=body), after

    def _roll_back(self, snapshot: str, turn: int) -> tuple[Callable[[], object], State]:
        volume, _, name = snapshot.partition("@")
        body: dict[str, object] = {"safety": self._draw.random() < 0.5, "safety_name": f"s{turn}"}
        after = {**self.state, volume: self.state[snapshot]}
        if body["safety"]:
            after[f"{volume}@s{turn}"] = self.state[volume]
        path = ("volumes", volume, "snapshots", name, "rollback")
        return lambda: self._daemon.api.post(*path, body=body), after

    def _clone(self, snapshot: str, turn: int) -> tuple[Callable[[], object], State]:
        volume, _, name = snapshot.partition("@")
        body = {"name": f"v{turn}", "processors": self._draw.randint(1, 2)}
        after = {**self.state, f"v{turn}": self.state[snapshot]}
        path = ("volumes", volume, "snapshots", name, "clones")
        return lambda: self._daemon.api.post(*path, body=body), after

    def _rename(self, old: str, turn: int) -> tuple[Callable[[], object], State]:
        volume, at, name = old.partition("@")
        path: tuple[str, ...] = ("volumes", volume)
        new = f"v{turn}"
        if at:
            new, path = f"{volume}@s{turn}", ("volumes", volume, "snapshots", name)
        body = {"name": new.rpartition("@")[2]}
        renamed = {
            export: new + export.removeprefix(old)
            for export in self.state
            if f"{export}@".startswith(f"{old}@")
        }
        after = {renamed.get(export, export): held for export, held in self.state.items()}
        return lambda: self._daemon.api.post(*path, "rename", body=body), after

    def _delete(self, snapshot: str, _turn: int) -> tuple[Callable[[], object], State]:
        volume, _, name = snapshot.partition("@")
        after = {export: held for export, held in self.state.items() if export != snapshot}
        return lambda: self._daemon.api.delete("volumes", volume, "snapshots", name), after

    def _delete_volume(self, volume: str, _turn: int) -> tuple[Callable[[], object], State]:
        after = {export: held for export, held in self.state.items() if export.split("@")[0] != volume}
        return lambda: self._daemon.api.delete("volumes", volume), after


def record(directory: Path, seed: int, turns: int, *, kill_every: int = 5) -> None:
    """Run the load; `log` and `story` are left in the directory."""
    draw = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    log, story, kills = directory / "log", Story(), 0
    with short_directory() as short:
        daemon = Daemon(short, "--processors", "2")
        (short / "root").mkdir()
        daemon.move(short / "root" / "state")
        daemon.environment = environment(short / "root", log)
        with daemon:
            asking = Asking(daemon, seed)
            body = {"name": "v0", "size": SIZE, "partition_size": 1 << 20, "when_full": "keep-snapshots"}
            daemon.api.post("volumes", body=body)
            asking.state = {"v0": (0,) * len(CELLS)}
            made = log.stat().st_size
            story.steps.append(Step({}, asking.state, made, made, torn=False))
            for turn in range(1, turns + 1):
                call, after, torn = asking.next(turn)
                step = Step(asking.state, after, log.stat().st_size, 0, torn)
                if turn % kill_every == 0:
                    kills += 1
                    _kill_within(daemon, call, draw.uniform(0, KILL_S))
                    cut_off(log)
                    daemon.environment = environment(short / "root", log, goes_on=kills)
                    daemon.start()
                    found = _served(daemon)
                    _compare(step, found, ended=False)
                    step.done = after.keys() == found.keys() and not any(
                        turns_of - {after[name][number]}
                        for name, cells in found.items()
                        for number, turns_of in enumerate(cells)
                    )
                    if torn and not step.done:
                        step.after = {
                            name: tuple(max(each) for each in cells) for name, cells in found.items()
                        }
                        step.done = True
                else:
                    call()
                step.reported = log.stat().st_size
                story.steps.append(step)
                asking.state = step.after if step.done else step.before
            daemon.kill()
    (directory / "story").write_bytes(pickle.dumps(story))


def _kill_within(daemon: Daemon, call: Callable[[], object], after_s: float) -> None:
    def body() -> None:
        with contextlib.suppress(PolyvolError, ApiError, OSError, Exception):
            call()

    asking = threading.Thread(target=body)
    asking.start()
    asking.join(after_s)
    daemon.kill()
    asking.join(60)
    assert not asking.is_alive(), "a client hangs"


Found = dict[str, list[set[int]]]
"""The turns that the sectors of each cell of each export are of."""


def _served(daemon: Daemon) -> Found:
    found: Found = {}
    for volume in daemon.api.get("volumes"):
        for export in volume["exports"]:
            with connect(daemon.uri(export["name"])) as handle:
                name = str(export["name"])
                found[name] = [_turns(name, bytes(handle.pread(BLOCK, at))) for at in CELLS]
    return found


def _turns(export: str, data: bytes) -> set[int]:
    found = set()
    for at in range(0, BLOCK, SECTOR):
        turn = int.from_bytes(data[at : at + 8], "little")
        if data[at : at + SECTOR] != block(turn)[:SECTOR]:
            raise Lost(f"a sector of {export} is of no turn")
        found.add(turn)
    return found


def _compare(step: Step, found: Found, *, ended: bool) -> None:
    """Compare what there is with what may be there, in or after a step."""
    options = [step.after if step.done else step.before] if ended else [step.before, step.after]
    if step.torn and not ended:
        possible = {
            name: [{old, step.after[name][number]} for number, old in enumerate(held)]
            for name, held in step.before.items()
        }
        options = []
    else:
        possible = {}
    for option in options:
        if found == {name: [{turn} for turn in held] for name, held in option.items()}:
            return
    if not options and found.keys() == possible.keys():
        within = (
            turns <= possible[name][number]
            for name, cells in found.items()
            for number, turns in enumerate(cells)
        )
        if all(within):
            return
    raise Lost(f"there is {found}; before was {step.before}, after is {step.after}, ended: {ended}")


def check(service: Service, story: Story, at: int) -> Found:
    """Compare what is served with what may be there at this moment; Lost."""
    views = service.volumes.list_all(kept=True)
    for view in views:
        if view.reason is not None:
            raise Lost(f"volume {view.name} is not served: {view.reason}")
    kept = {view.name.partition("#")[0] for view in views if view.state == "kept"}
    needed = {view.source.volume for view in views if view.source is not None and view.source.deleted}
    if not kept <= needed:
        raise Lost(f"{kept - needed} are kept for nobody")
    found = {
        export["name"]: [_turns(export["name"], data) for data in _cells(service, export["name"])]
        for export in service.exports()
    }
    step = next(step for step in reversed(story.steps) if step.issued <= at)
    _compare(step, found, ended=at >= step.reported)
    return found


def _cells(service: Service, export: str) -> Iterator[bytes]:
    handle = service.engine.open(export)
    try:
        for at in CELLS:
            yield handle.pread(BLOCK, at)
    finally:
        handle.close()


def go_on(service: Service, found: Found) -> None:
    """Everything is written, and nothing else changes by that."""
    turn = 1 << 40
    for name in found:
        if "@" in name:
            continue
        turn += 1
        handle = service.engine.open(name)
        try:
            handle.pwrite(block(turn), CELLS[3])
            handle.flush()
        finally:
            handle.close()
        found[name][3] = {turn}
    for name, cells in found.items():
        if [_turns(name, data) for data in _cells(service, name)] != cells:
            raise Lost(f"{name} has changed by writing to volumes")


def end(service: Service) -> None:
    """Without volumes there is nothing."""
    for view in service.volumes.list_all():
        service.delete_volume(view.name)
    left = [*service.volumes.list_all(kept=True), *service.devices.list_all()]
    if left:
        raise Lost(f"{left} are left")


def check_image(service: Service, story: Story, at: int, number: int) -> None:
    """Check what a service has after a power loss, and that it can go on. At some images all is deleted."""
    go_on(service, check(service, story, at))
    if number % 4 == 1:
        end(service)


def check_recording(directory: Path, *, seed: int, count: int) -> str:
    """Run the program on a recording; what it says is wrong, or ''."""
    return after_images.run_program(__name__, directory, seed=seed, count=count)


if __name__ == "__main__":
    after_images.main(lambda story: story.steps[0].reported, check_image, state_check_every=4)
