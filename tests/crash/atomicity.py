"""atomicity: power losses of a polyvold that takes snapshots of a group, deletes them, and grows a volume.

How it works      `record` runs the load on a recorded polyvold: two volumes in a group; each turn writes its
                  number into both, flushes, and takes a snapshot of the group; sometimes it deletes one and
                  grows the first volume. `python -m tests.crash.atomicity RECORDING --seed S --count N`,
                  a program with the recorder preloaded, makes after-crash images of drawn moments, starts a
                  service on each, and compares.
What must hold    A group's snapshot exists completely, with its volumes at one turn and of the size that they
                  had, or not at all; it exists from when it was reported until its deletion is requested. A
                  volume has the last size that was reported, or one that was requested later; flushed data in
                  the new part exists. Then both continue to work: a snapshot is taken, the volume grows
                  again, the check finds nothing.
Errors            Exit code 1 and a sentence.
"""

import pickle
import random
from dataclasses import dataclass, field
from pathlib import Path

from polyvol.daemon.service import Service
from polyvol.daemon.types.groups import GroupSnapshotCreate
from polyvol.daemon.types.volumes import VolumeGrow
from tests.crash import after_images
from tests.crash.history import NEVER, SECTOR, Lost
from tests.crash.recorder import environment
from tests.support.daemon import Daemon, short_directory
from tests.support.nbd import connect

BLOCK = 4096
SIZE, STEP = (1 << 20) + 3 * BLOCK, 77 * BLOCK
VOLUMES = ("a", "b")


@dataclass
class Whole:
    """A snapshot of the group, of a turn; moments are lengths of the log."""

    name: str
    turn: int
    size: int
    issued: int
    reported: int = NEVER
    deleting: int = NEVER
    deleted: int = NEVER


@dataclass
class Story:
    """Requests and their answers."""

    made: int = NEVER
    wholes: list[Whole] = field(default_factory=list)
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    """Size, when it was asked for, when it was reported."""
    turns: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Turn, size, when it was written, when it was flushed."""


def block(turn: int) -> bytes:
    """What a turn writes."""
    return turn.to_bytes(8, "little") * (BLOCK // 8)


def record(directory: Path, seed: int, turns: int) -> None:
    """Run the load; `log` and `story` are left in the directory."""
    draw = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    log, story = directory / "log", Story()
    with short_directory() as short:
        daemon = Daemon(short, "--processors", "2")
        (short / "root").mkdir()
        daemon.move(short / "root" / "state")
        daemon.environment = environment(short / "root", log)
        with daemon:
            for volume in VOLUMES:
                body = {"name": volume, "size": SIZE, "partition_size": 1 << 20}
                daemon.api.post("volumes", body=body)
            daemon.api.post("groups", body={"name": "g", "volumes": VOLUMES})
            story.made = log.stat().st_size
            story.sizes.append((SIZE, 0, 0))
            for turn in range(1, turns + 1):
                _turn(daemon, log, story, turn)
                there = [each for each in story.wholes if each.deleting == NEVER]
                if len(there) > 3:
                    gone = draw.choice(there)
                    gone.deleting = log.stat().st_size
                    daemon.api.delete("groups", "g", "snapshots", gone.name)
                    gone.deleted = log.stat().st_size
                if turn % 3 == 0:
                    size, issued = story.sizes[-1][0] + STEP, log.stat().st_size
                    daemon.api.post("volumes", "a", "growth", body={"size": size})
                    story.sizes.append((size, issued, log.stat().st_size))
            daemon.kill()
    (directory / "story").write_bytes(pickle.dumps(story))


def _turn(daemon: Daemon, log: Path, story: Story, turn: int) -> None:
    size, written = story.sizes[-1][0], log.stat().st_size
    for volume in VOLUMES:
        with connect(daemon.uri(volume)) as handle:
            handle.pwrite(block(turn), 0)
            handle.pwrite(block(turn), handle.get_size() - BLOCK)
            handle.flush()
    story.turns.append((turn, size, written, log.stat().st_size))
    whole = Whole(f"s{turn}", turn, size, log.stat().st_size)
    story.wholes.append(whole)
    daemon.api.post("groups", "g", "snapshots", body={"name": whole.name})
    whole.reported = log.stat().st_size


def check(service: Service, story: Story, at: int) -> None:
    """Compare what is served with what may be there at this moment; Lost."""
    for volume in service.volumes.list_all():
        if volume.reason is not None:
            raise Lost(f"volume {volume.name} is not served: {volume.reason}")
    views = {view.name: view for view in service.groups.snapshots("g")}
    for whole in story.wholes:
        view = views.pop(whole.name, None)
        if view is None:
            if whole.reported <= at < whole.deleting:
                raise Lost(f"snapshot {whole.name}, reported, is gone")
            continue
        if at < whole.issued or whole.deleted <= at:
            raise Lost(f"snapshot {whole.name} is there")
        if [member.volume for member in view.members] != list(VOLUMES):
            raise Lost(f"snapshot {whole.name} is not whole")
        for member, size in zip(view.members, (whole.size, SIZE), strict=True):
            if member.size != size:
                raise Lost(f"snapshot {member.export} has {member.size} bytes, not {size}")
            for offset in (0, size - BLOCK):
                if read(service, member.export, offset) != {whole.turn}:
                    raise Lost(f"snapshot {member.export} is not of its turn")
    if views:
        raise Lost(f"nobody asked for {', '.join(views)}")
    names = [[one.name for one in service.snapshots.list_all(name)] for name in VOLUMES]
    if names[0] != names[1]:
        raise Lost(f"the volumes have different snapshots: {names}")
    _check_live(service, story, at)


def _check_live(service: Service, story: Story, at: int) -> None:
    size = service.volumes.show("a", partitions=False).size
    if size not in [one for one, issued, _ in story.sizes if issued <= at]:
        raise Lost(f"nobody asked for {size} bytes")
    if size < max(one for one, _, reported in story.sizes if reported <= at):
        raise Lost(f"it has {size} bytes, and more were reported")
    for turn, end, _, flushed in story.turns:
        if flushed > at:
            continue
        for volume, offset in (("a", 0), ("b", 0), ("a", end - BLOCK)):
            found = read(service, volume, offset)
            if not (turn <= min(found) and max(found) <= len(story.turns)):
                raise Lost(f"turn {turn}, flushed into {volume} at {offset}, is gone: there is {found}")


def read(service: Service, export: str, offset: int) -> set[int]:
    """The turns that the sectors of a block are of: several, where a write was under way."""
    handle = service.engine.open(export)
    try:
        data = handle.pread(BLOCK, offset)
    finally:
        handle.close()
    turns = set()
    for at in range(0, BLOCK, SECTOR):
        turn = int.from_bytes(data[at : at + 8], "little")
        if data[at : at + SECTOR] != block(turn)[:SECTOR]:
            raise Lost(f"the sector at {offset + at} of {export} is of no turn")
        turns.add(turn)
    return turns


def go_on(service: Service) -> None:
    """It has to work: another snapshot, a larger volume, and what is written there."""
    service.groups.take("g", GroupSnapshotCreate(name="probe"))
    size = service.volumes.show("a", partitions=False).size
    service.volumes.grow("a", VolumeGrow(size=size + (2 << 20)))
    handle = service.engine.open("a")
    try:
        handle.pwrite(block(77), size)
        handle.flush()
        if handle.pread(BLOCK, size) != block(77):
            raise Lost("what was just written is not there")
    finally:
        handle.close()
    service.groups.delete_snapshot("g", "probe")


def check_image(service: Service, story: Story, at: int, _: int) -> None:
    """Check what a service has after a power loss, and that it can go on."""
    check(service, story, at)
    go_on(service)


def check_recording(directory: Path, *, seed: int, count: int) -> str:
    """Run the program on a recording; what it says is wrong, or ''."""
    return after_images.run_program(__name__, directory, seed=seed, count=count)


if __name__ == "__main__":
    after_images.main(lambda story: story.made, check_image, state_check_every=8)
