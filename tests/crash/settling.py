"""settling: after a restart, compares everything that a polyvold serves with the ledger.

How it works      The lists of the API say which of the verbs that were in flight have happened; nothing else
                  may have appeared or disappeared. Then every byte of every volume and snapshot is read over
                  NBD. A group's snapshot has all members or none, and a group's rollback applied to all or to
                  none.
Errors            Lost, with the first difference.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from tests.crash.asking import Asking
from tests.crash.history import Lost
from tests.crash.ledger import Held, Live
from tests.support import nbd


@dataclass
class Compared:
    """How many volumes and snapshots were compared, every byte of them."""

    volumes: int = 0
    snapshots: int = 0

    def __iadd__(self, other: "Compared") -> "Compared":
        self.volumes += other.volumes
        self.snapshots += other.snapshots
        return self


def settle(asking: Asking) -> Compared:
    """Compare everything; what was found is certain from now on."""
    ledger = asking.ledger
    views = {view["name"]: view for view in asking.ask("get", "volumes")}
    _check_states(asking, views)
    _settle_volumes(asking, views)
    _settle_snapshots(asking)
    ledger.groups = {view["name"]: set(view["volumes"]) for view in asking.ask("get", "groups")}
    compared, sides = Compared(), defaultdict[int, list[set[bool]]](list)
    for name, live in ledger.volumes.items():
        found = ledger.compare(f"volume {name}", live, nbd.read_all(asking.daemon.uri(name)))
        if live.changing and found:
            verb = next(iter(found))[0]
            sides[verb].append({after for _, after in found})
        compared.volumes += 1
        compared.snapshots += _compare_snapshots(asking, live)
    for members in sides.values():
        if not set.intersection(*members):
            raise Lost("a rollback of a group has happened to some of its volumes and not to others")
    ledger.settled()
    return compared


def _check_states(asking: Asking, views: dict[str, Any]) -> None:
    for name, view in views.items():
        if view["state"] != "serving":
            raise Lost(f"volume {name} is {view['state']}: {view['reason']}")
    for device in asking.ask("get", "devices"):
        if device["state"] != "ok":
            raise Lost(f"device {device['name']} is {device['state']}")


def _settle_volumes(asking: Asking, views: dict[str, Any]) -> None:
    ledger = asking.ledger
    for name in list(ledger.making):
        made = ledger.making.pop(name)
        if name in views:
            ledger.volumes[name] = made
    for name, live in list(ledger.volumes.items()):
        if name in views:
            continue
        if not live.leaving:
            raise Lost(f"volume {name} is gone")
        del ledger.volumes[name]
    if unknown := views.keys() - ledger.volumes.keys():
        raise Lost(f"nobody asked for volume {min(unknown)}, or it was deleted")


def _settle_snapshots(asking: Asking) -> None:
    """Which snapshots there are; the ledger has those and no others from now on."""
    ledger = asking.ledger
    views = {(view["volume"], view["name"]): view for view in asking.ask("get", "snapshots")}
    wholes = defaultdict[str, set[bool]](set)
    for volume, live in ledger.volumes.items():
        for name, held in (*live.taking.items(), *live.snapshots.items()):
            if held.whole is not None:
                wholes[held.whole].add((volume, name) in views)
        for name, held in live.taking.items():
            if (volume, name) in views:
                live.snapshots[name] = held
        for name, held in list(live.snapshots.items()):
            if (volume, name) not in views:
                _may_be_gone(live, name, held)
                del live.snapshots[name]
        live.taking.clear()
    for whole, there in wholes.items():
        if len(there) > 1:
            raise Lost(f"some members of the group's snapshot {whole} are there and others are not")
    for (volume, name), view in views.items():
        asking.adopt(view)
        known = ledger.volumes[volume].snapshots.get(name)
        if known is None:
            raise Lost(f"nobody asked for snapshot {name} of volume {volume}, or it was deleted")
        if not known.tags <= set(view["holds"]):
            raise Lost(f"snapshot {name} of volume {volume} is held by {view['holds']}, wanted {known.tags}")
        known.tags = set(view["holds"])
        known.leaving = 0


def _may_be_gone(live: Live, name: str, held: Held) -> None:
    if held.leaving or (held.dropped and not held.tags):
        return
    raise Lost(f"snapshot {name} of volume {live.name} is gone")


def _compare_snapshots(asking: Asking, live: Live) -> int:
    """Compare all snapshots of a volume; how many there are. Snapshots that are dropped for space or by a
    schedule may disappear during this."""
    compared = 0
    for name, held in list(live.snapshots.items()):
        what = f"snapshot {name} of volume {live.name}"
        try:
            data = nbd.read_all(asking.daemon.uri(f"{live.name}@{name}"))
        except nbd.NbdError as error:
            if held.dropped and not held.tags:
                del live.snapshots[name]
                continue
            raise Lost(f"{what} cannot be read: {error}") from error
        asking.ledger.compare(what, held, data)
        compared += 1
    return compared
