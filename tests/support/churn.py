"""churn: threads that make, change and delete objects of all kinds, while others read and compare.

How it works      Each writer repeats one script with its own names, so that none is refused because of
                  another. Readers make all kinds of requests, and check that each answer is consistent: it
                  contains the objects that it names and all members of a cut, and its totals are correct.
Errors            `Churn.wrong` has what was wrong, each once, with how often.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from polyvol.daemon.client.cli.client import ApiError, Client
from tests.support.daemon import Daemon

MIB = 1 << 20
GROUP_OF = 3
ABSENT = (
    "unknown-volume",
    "unknown-snapshot",
    "unknown-group",
    "unknown-group-snapshot",
    "unknown-schedule",
    "unknown-device",
    "volume-not-served",
    "volume-busy",  # it is being made
    "restoring",
    "no-scrub",
)
"""What a reader may be told of what it has just seen: it has gone, or is not complete."""


class Churn:
    """Writers and readers on one polyvold."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.wrong: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self, seconds: float, *, readers: int = 3) -> None:
        """Run for so long."""
        stories = [self._volumes, self._groups, self._clones, self._schedules, self._restores, self._growth]
        for story in [*stories, self._devices]:
            self._begin(story)
        for _ in range(readers):
            self._begin(self._read_all)
        self._over.wait(seconds)
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _begin(self, story: Callable[[Client], None]) -> None:
        thread = threading.Thread(target=self._repeat, args=(story,))
        self._threads.append(thread)
        thread.start()

    def _repeat(self, story: Callable[[Client], None]) -> None:
        client = Client(self.daemon.state_dir)
        while not self._over.is_set():
            try:
                story(client)
            except ApiError as error:
                self.wrong[f"{story.__name__}: {error.code}: {error}"] += 1
                return
            except Exception as error:
                self.wrong[f"{story.__name__}: {type(error).__name__}: {error}"] += 1
                return

            else:
                self.answers[story.__name__] += 1

    # Writers

    def _volumes(self, client: Client) -> None:
        client.post("volumes", body={"name": "x", "size": 4 * MIB, "partition_size": MIB})
        client.post("volumes", "x", "logs", body={"size": 4 * MIB})
        client.post("snapshots", body={"volumes": ["x"], "name": "s"})
        client.post("volumes", "x", "snapshots", "s", "holds", body={"tag": "t"})
        client.post("volumes", "x", "snapshots", "s", "holds", body={"tag": "t", "release": True})
        client.post("snapshots", body={"volumes": ["x"], "name": "u"})
        client.delete("volumes", "x", "snapshots", "s")
        client.post("volumes", "x", "deletions", body={"names": ["u*"]})
        client.delete("volumes", "x")

    def _groups(self, client: Client) -> None:
        names = [f"g{number}" for number in range(GROUP_OF)]
        for name in names:
            client.post("volumes", body={"name": name, "size": MIB})
        client.post("groups", body={"name": "g", "volumes": names})
        for name in ("s", "t", "u"):
            client.post("groups", "g", "snapshots", body={"name": name})
        client.post("groups", "g", "snapshots", "s", "rollback", body={"safety_name": "back"})
        client.post("groups", "g", "snapshots", "t", "holds", body={"tag": "t"})
        client.post("groups", "g", "snapshots", "t", "holds", body={"tag": "t", "release": True})
        for name in ("s", "t", "u", "back"):
            client.delete("groups", "g", "snapshots", name)
        client.delete("groups", "g")
        for name in names:
            client.delete("volumes", name)

    def _clones(self, client: Client) -> None:
        client.post("volumes", body={"name": "base", "size": MIB})
        client.post("snapshots", body={"volumes": ["base"], "name": "s"})
        client.post("volumes", "base", "snapshots", "s", "clones", body={"name": "c"})
        client.post("snapshots", body={"volumes": ["c"], "name": "s"})
        client.post("volumes", "c", "snapshots", "s", "clones", body={"name": "d"})
        client.delete("volumes", "base")
        client.delete("volumes", "c")
        client.delete("volumes", "d")

    def _schedules(self, client: Client) -> None:
        client.post("volumes", body={"name": "sv", "size": MIB})
        body = {"target": "sv", "every_s": 1, "keep": {"last": 1}, "name": "often"}
        client.post("schedules", body=body)
        time.sleep(1.1)
        client.patch("schedules", "often", body={"paused": True})
        client.patch("schedules", "often", body={"paused": False})
        client.delete("volumes", "sv")

    def _restores(self, client: Client) -> None:
        numbers = [str(uuid.uuid4()) for _ in range(2)]
        body = {"volume": "r", "source": "a pipe", "stream": numbers[0], "size": MIB, "snapshot": "s"}
        client.post("restores", body={**body, "snapshot_uuid": numbers[1]})
        client.delete("volumes", "r", "restore")

    def _growth(self, client: Client) -> None:
        client.post("volumes", body={"name": "l", "size": MIB, "partition_size": MIB})
        client.post("snapshots", body={"volumes": ["l"], "name": "s"})
        client.post("volumes", "l", "growth", body={"size": 3 * MIB})
        client.post("volumes", "l", "snapshots", "s", "rollback", body={"safety_name": "back"})
        client.patch("volumes", "l", body={"when_full": "keep-snapshots", "hooks": {"quiesce": "/bin/true"}})
        client.post("snapshots", body={"volumes": ["l"], "name": "t"})
        client.delete("volumes", "l")

    def _devices(self, client: Client) -> None:
        path = self.daemon.directory / "dev.img"
        client.post("devices", body={"path": str(path), "name": "dev", "size": 64 * MIB})
        client.post("volumes", body={"name": "dv", "size": MIB, "devices": ["dev"]})
        client.delete("volumes", "dv")
        client.delete("devices", "dev")
        path.unlink()

    # Readers

    def _read_all(self, client: Client) -> None:
        self._check("status", self._status(self._get(client, "status")))
        volumes = self._get(client, "volumes", kept=True)
        self._check("volumes", of_volumes(volumes, kept=True))
        self._check("snapshots", of_snapshots(self._get(client, "snapshots")))
        self._get(client, "devices")
        for group in self._get(client, "groups"):
            wholes = self._get(client, "groups", group["name"], "snapshots")
            self._check("group snapshots", of_wholes(wholes))
            for whole in wholes:
                self._get(client, "groups", group["name"], "snapshots", whole["name"])
            self._get(client, "groups", group["name"])
        for schedule in self._get(client, "schedules"):
            shown = self._get(client, "schedules", schedule["name"])
            if shown and shown["count"] != len(shown["snapshots"]):
                self.wrong["a schedule's count"] += 1
        for volume in volumes:
            self._read_volume(client, volume["name"])
        for device in self._get(client, "devices"):
            self._get(client, "devices", device["name"])

    def _read_volume(self, client: Client, name: str) -> None:
        shown = self._get(client, "volumes", name, partitions=True)
        if shown:
            self._check("volume", of_partitions(shown))
        self._get(client, "volumes", name, "deletions")
        self._get(client, "volumes", name, "scrub")
        for each in self._get(client, "snapshots", volume=name):
            own = each["name"]
            self._get(client, "volumes", name, "snapshots", own, partitions=True)
            self._get(client, "volumes", name, "snapshots", own, "changes")
            self._get(client, "volumes", name, "snapshots", own, "change-total")

    def _get(self, client: Client, *parts: str, **query: Any) -> Any:
        """What is answered; an empty list if it is not there."""
        what = "/".join(part for number, part in enumerate(parts) if number % 2 == 0)
        try:
            found = client.get(*parts, **query)
        except ApiError as error:
            self.answers[f"{what}: {error.code}"] += 1
            if error.code not in ABSENT:
                self.wrong[f"{what}: {error.code}: {error}"] += 1
            return []
        self.answers[what] += 1
        return found

    def _status(self, told: Any) -> Iterator[str]:
        yield from of_volumes(told["volumes"], kept=False)
        names = {volume["name"] for volume in told["volumes"]}
        devices = {device["name"] for device in told["devices"]}
        for device in told["devices"]:
            users = {user for user in device["volumes"] if "#" not in user}
            if not users <= names:
                yield "a device's volume is missing"
            if device["free"] < 0:
                yield "a device has less than nothing free"
        for volume in told["volumes"]:
            if not devices.issuperset(volume["devices"]):
                yield "a volume's device is missing"
        if told["daemon"]["connections"] != sum(volume["connections"] for volume in told["volumes"]):
            yield "connections do not add up"

    def _check(self, what: str, found: Iterator[str]) -> None:
        for each in found:
            self.wrong[f"{what}: {each}"] += 1


def of_volumes(volumes: list[Any], *, kept: bool) -> Iterator[str]:
    """What does not fit in a list of volumes."""
    names = [volume["name"] for volume in volumes]
    if len(set(names)) != len(names):
        yield "a name comes twice"
    for volume in volumes:
        if len(set(volume["snapshots"])) != len(volume["snapshots"]):
            yield "a snapshot comes twice"
        if volume["connections"] != sum(export["connections"] for export in volume["exports"]):
            yield "connections do not add up"
        space = volume["space"]
        if space is not None and space["used"] + space["free"] != space["size"]:
            yield "space does not add up"
        source = volume["source"]
        if kept and source is not None and not any(n.partition("#")[0] == source["volume"] for n in names):
            yield "a clone's source is missing"


def of_snapshots(snapshots: list[Any]) -> Iterator[str]:
    """What does not fit in a list of snapshots."""
    wholes = Counter((each["whole"], each["cut"]) for each in snapshots if each["whole"] is not None)
    for (whole, _), count in wholes.items():
        if count != GROUP_OF:
            yield f"{whole} has {count} members"
    exports = [each["export"] for each in snapshots]
    if len(set(exports)) != len(exports):
        yield "an export comes twice"


def of_wholes(wholes: list[Any]) -> Iterator[str]:
    """What does not fit in a list of a group's snapshots."""
    for whole in wholes:
        if len(whole["members"]) != GROUP_OF:
            yield f"{whole['name']} has {len(whole['members'])} members"
        if any(member["cut"] != whole["cut"] for member in whole["members"]):
            yield "a member is of another cut"


def of_partitions(volume: Any) -> Iterator[str]:
    """What does not fit in a volume that is shown with its partitions."""
    if len(volume["partitions"]) != volume["partition_count"]:
        yield "partitions are not counted right"
    if volume["source"] is None and volume["base"] is None:
        length = sum(extent["length"] for part in volume["partitions"] for extent in part["extents"])
        if length < volume["size"]:
            yield "extents do not add up"
