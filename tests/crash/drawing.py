"""drawing: draws the next verb, by a seed, of all verbs of polyvold.

How it works      Verbs are drawn by weight, and their objects from the ledger; if there are too many volumes
                  or snapshots, some are deleted instead.
Errors            Those of asking.py.
"""

import random
import time

from tests.crash.asking import PARTITION, Asking
from tests.crash.ledger import Live

VOLUMES_MAX, SNAPSHOTS_MAX, SIZE_MAX = 6, 8, 3 << 20
LARGE = 8 << 20
"""The size of a volume whose change log is full after a few snapshots, if all of it is written in between."""

WEIGHTS = {
    "take": 10,
    "take_scheduled": 4,
    "take_whole": 3,
    "delete": 5,
    "delete_some": 4,
    "delete_whole": 2,
    "hold": 1,
    "release": 3,
    "roll_back": 7,
    "roll_back_whole": 2,
    "clone": 3,
    "create": 1,
    "create_large": 2,
    "delete_volume": 2,
    "grow": 2,
    "group": 1,
    "delete_group": 1,
    "schedule": 2,
    "unschedule": 1,
    "add_log": 1,
    "scrub": 1,
    "device": 1,
    "when_full": 1,
    "relocate": 2,
    "look": 3,
    "read": 6,
    "rest": 6,
}


class Drawing:
    """One thread's verbs."""

    def __init__(self, asking: Asking, draw: random.Random) -> None:
        self._asking = asking
        self._draw = draw
        # Each thread of each turn has its own favourites, so that few verbs meet each other often.
        self._weights = [weight * draw.choice((0, 1, 1, 5)) for weight in WEIGHTS.values()]

    def next(self) -> None:
        """Ask for one thing."""
        with self._asking.ledger.lock:
            volumes = sorted(self._asking.ledger.volumes.items())
            snapshots = sorted((name, own) for name, live in volumes for own in live.snapshots)
        kind = self._draw.choices(list(WEIGHTS), self._weights)[0]
        if len(volumes) > VOLUMES_MAX or (kind in ("clone", "create") and len(volumes) == VOLUMES_MAX):
            kind = "delete_volume"
        if len(snapshots) > SNAPSHOTS_MAX * len(volumes) and kind.startswith("take"):
            kind = self._draw.choice(("delete", "delete_some", "delete_whole", "release"))
        if not volumes:
            self._create()
        else:
            name, live = self._draw.choice(volumes)
            snapshot = self._draw.choice(snapshots) if snapshots else (name, "none")
            getattr(self, f"_{kind}")(name, live, snapshot)

    def _take(self, volume: str, _live: Live, _snapshot: tuple[str, str]) -> None:
        self._asking.take(volume)

    def _take_scheduled(self, volume: str, _live: Live, _snapshot: tuple[str, str]) -> None:
        large = self._large() if self._draw.random() < 0.6 else None
        self._asking.take(large or volume, scheduled=True)

    def _take_whole(self, *_: object) -> None:
        if group := self._group_name():
            self._asking.take_whole(group)

    def _group_name(self) -> str | None:
        groups = sorted(self._asking.ledger.groups)
        return self._draw.choice(groups) if groups else None

    def _delete(self, _volume: str, _live: Live, snapshot: tuple[str, str]) -> None:
        self._asking.delete(*snapshot)

    def _delete_some(self, volume: str, live: Live, _snapshot: tuple[str, str]) -> None:
        decades = sorted({name[:-1] for name in live.snapshots if name.startswith("s")})
        now = self._asking.name("s")[:-1]
        if chosen := [decade for decade in decades if decade < now]:
            self._asking.delete_some(volume, self._draw.choice(chosen))

    def _whole(self) -> tuple[str, str] | None:
        """A group's snapshot."""
        with self._asking.ledger.lock:
            wholes = {
                held.whole
                for live in self._asking.ledger.volumes.values()
                for held in live.snapshots.values()
                if held.whole is not None
            }
        if not wholes:
            return None
        _, group, name = self._draw.choice(sorted(wholes)).split("@")
        return group, name

    def _delete_whole(self, *_: object) -> None:
        if whole := self._whole():
            self._asking.delete_whole(*whole)

    def _hold(self, _volume: str, _live: Live, snapshot: tuple[str, str]) -> None:
        self._asking.hold(*snapshot)

    def _release(self, *_: object) -> None:
        with self._asking.ledger.lock:
            held = sorted(
                (name, own)
                for name, live in self._asking.ledger.volumes.items()
                for own, one in live.snapshots.items()
                if one.tags
            )
        if held:
            self._asking.release(*self._draw.choice(held))

    def _roll_back(self, _volume: str, _live: Live, snapshot: tuple[str, str]) -> None:
        self._asking.roll_back(*snapshot, safety=self._draw.random() < 0.3)

    def _roll_back_whole(self, *_: object) -> None:
        if whole := self._whole():
            self._asking.roll_back_whole(*whole, safety=self._draw.random() < 0.3)

    def _clone(self, _volume: str, _live: Live, snapshot: tuple[str, str]) -> None:
        self._asking.clone(*snapshot, processors=self._draw.randint(1, 2))

    def _create(self, *_: object) -> None:
        size = self._draw.choice((PARTITION, PARTITION + 5 * 4096, 2 * PARTITION))
        self._asking.create(size, processors=self._draw.randint(1, 2))

    def _create_large(self, *_: object) -> None:
        if self._large() is None:
            self._asking.create(LARGE, processors=1)

    def _large(self) -> str | None:
        with self._asking.ledger.lock:
            large = (name for name, live in self._asking.ledger.volumes.items() if live.size >= LARGE)
            return min(large, default=None)

    def _delete_volume(self, volume: str, *_: object) -> None:
        self._asking.delete_volume(volume)

    def _grow(self, volume: str, live: Live, _snapshot: tuple[str, str]) -> None:
        if live.size < SIZE_MAX:
            self._asking.grow(volume, self._draw.randint(1, 300))

    def _group(self, *_: object) -> None:
        with self._asking.ledger.lock:
            volumes, groups = sorted(self._asking.ledger.volumes), len(self._asking.ledger.groups)
        if len(volumes) > 1 and groups < 2:
            self._asking.group(self._draw.sample(volumes, 2))

    def _delete_group(self, *_: object) -> None:
        if group := self._group_name():
            self._asking.delete_group(group)

    def _schedule(self, volume: str, *_: object) -> None:
        if len(self._asking.ask("get", "schedules")) < 3:
            group = self._group_name() if self._draw.random() < 0.3 else None
            target = volume if group is None else f"@{group}"
            name = self._asking.name("k")  # its prefix too: names of snapshots are not used twice
            body = {"name": name, "prefix": name, "target": target, "every_s": self._draw.randint(1, 2)}
            self._asking.plain("post", "schedules", **body, keep={"last": self._draw.randint(1, 3)})

    def _unschedule(self, *_: object) -> None:
        if schedules := self._asking.ask("get", "schedules"):
            self._asking.plain("delete", "schedules", self._draw.choice(schedules)["name"])

    def _add_log(self, volume: str, *_: object) -> None:
        self._asking.plain("post", "volumes", volume, "logs", size=4 << 20)

    def _scrub(self, volume: str, *_: object) -> None:
        self._asking.plain("post", "volumes", volume, "scrub", rate=1 << 30)

    def _device(self, *_: object) -> None:
        """A device that nobody needs is added, asked for again, and removed."""
        name = self._asking.name("d")
        path = str(self._asking.daemon.directory / "extra" / name)
        if self._asking.plain("post", "devices", path=path, name=name, size=2 << 20):
            self._asking.plain("post", "devices", name, "retry")
            self._asking.plain("delete", "devices", name)

    def _when_full(self, volume: str, *_: object) -> None:
        policy = self._draw.choice(("keep-writing", "keep-snapshots"))
        self._asking.plain("patch", "volumes", volume, when_full=policy)

    def _relocate(self, volume: str, *_: object) -> None:
        how = self._draw.choice(("off", "auto", 1 << 30, 1 << 30))
        self._asking.plain("patch", "volumes", volume, relocate=how)

    def _look(self, *_: object) -> None:
        self._asking.look()

    def _read(self, _volume: str, _live: Live, snapshot: tuple[str, str]) -> None:
        self._asking.read(*snapshot)

    def _rest(self, *_: object) -> None:
        time.sleep(self._draw.choice((0.002, 0.01, 0.05)))
