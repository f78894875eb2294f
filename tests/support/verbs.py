"""verbs: what can be done with volumes, snapshots and groups, in any order, against a model in memory.

How it works      A machine of hypothesis: each rule asks a real polyvold for something by its API, and does
                  the same to the bytes of every volume and snapshot in memory. What must be refused has to
                  be refused, with that code, and change nothing. After every rule the names are compared;
                  `compare` and the end read every byte of everything, over NBD.
Errors            AssertionError; hypothesis then shortens the list of rules.
"""

import itertools
import random
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from polyvol.daemon.client.cli.client import ApiError
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.model import BLOCK, content, same

PARTITION = 1 << 20
SIZES = (PARTITION, 2 * PARTITION + 5 * BLOCK)
VOLUMES_MAX = 4
SNAPSHOTS_MAX = 6
PICK = st.integers(0, 1 << 20)


@dataclass
class Held:
    """A snapshot's bytes; `whole` is the group's snapshot that it is part of."""

    data: bytes
    tags: set[str] = field(default_factory=set)
    whole: tuple[str, str] | None = None


@dataclass
class Live:
    """A volume's bytes and snapshots."""

    data: bytearray
    snapshots: dict[str, Held] = field(default_factory=dict)


class Verbs(RuleBasedStateMachine):
    """All verbs on one polyvold."""

    daemon: Daemon
    """The caller that runs the machine says which."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.volumes: dict[str, Live] = {}
        self.groups: dict[str, set[str]] = {}
        self.wholes: dict[tuple[str, str], set[str]] = {}
        self.free: set[str] = set()
        """Names of volumes that were renamed, and of none now."""
        if not self.daemon.running:
            self.daemon.start()

    # What the rules need

    def name(self, letter: str) -> str:
        """A name that was never used in this run."""
        return f"{letter}{next(self.numbers)}"

    def volume(self, pick: int) -> str:
        """One of the volumes."""
        return sorted(self.volumes)[pick % len(self.volumes)]

    def snapshot(self, pick: int) -> tuple[str, str] | None:
        """One of the snapshots, if there is any."""
        all_of_them = sorted(
            (volume, name) for volume, live in self.volumes.items() for name in live.snapshots
        )
        return all_of_them[pick % len(all_of_them)] if all_of_them else None

    def asked(self, refusal: str | None, method: str, *path: str, **body: object) -> bool:
        """Ask the API; whether it was done. It has to be, unless it must be refused with this code."""
        call = getattr(self.daemon.api, method)
        try:
            call(*path, **({"body": body} if body else {}))
        except ApiError as error:
            if error.code != refusal:
                raise AssertionError(f"{method} {'/'.join(path)} gave {error.code}, not {refusal}") from error
            return False
        assert refusal is None, f"{method} {'/'.join(path)} was not refused with {refusal}"
        return True

    # Volumes

    @initialize()
    def begin(self) -> None:
        """There is a volume from the beginning."""
        self.create(1)

    @precondition(lambda self: len(self.volumes) < VOLUMES_MAX)
    @rule(which=st.integers(0, len(SIZES) - 1))
    def create(self, which: int) -> None:
        """A volume of zeros."""
        name, size = self.name("v"), SIZES[which]
        self.asked(None, "post", "volumes", name=name, size=size, partition_size=PARTITION, processors=2)
        self.volumes[name] = Live(bytearray(size))

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, seed=st.integers(1, 1 << 30), count=st.integers(1, 4))
    def write(self, pick: int, seed: int, count: int) -> None:
        """A few writes, then a flush."""
        name, draw = self.volume(pick), random.Random(seed)
        live = self.volumes[name].data
        with nbd.connect(self.daemon.uri(name)) as handle:
            for each in range(count):
                length = min(draw.choice([512, BLOCK, BLOCK, 5000, 60_000]), len(live))
                offset = draw.randrange(len(live) - length + 1)
                if length == BLOCK:
                    offset -= offset % BLOCK
                data = content(seed + each, length)
                handle.pwrite(data, offset)
                live[offset : offset + length] = data
            handle.flush()

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, blocks=st.integers(1, 300))
    def grow(self, pick: int, blocks: int) -> None:
        """A volume becomes larger; what is new reads as zeros."""
        name = self.volume(pick)
        live = self.volumes[name].data
        self.asked(None, "post", "volumes", name, "growth", size=len(live) + blocks * BLOCK)
        live.extend(bytes(blocks * BLOCK))

    @precondition(lambda self: len(self.volumes) > 1)
    @rule(pick=PICK)
    def delete_volume(self, pick: int) -> None:
        """A volume goes, with its snapshots, unless a group or a tag keeps it."""
        name = self.volume(pick)
        snapshots = self.volumes[name].snapshots.values()
        refusal = None
        if any(name in members for members in self.groups.values()) or any(one.whole for one in snapshots):
            refusal = "volume-in-group"
        elif any(one.tags for one in snapshots):
            refusal = "volume-held"
        if self.asked(refusal, "delete", "volumes", name):
            del self.volumes[name]

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, to=PICK, again=st.booleans())
    def rename_volume(self, pick: int, to: int, again: bool) -> None:
        """A volume gets another name, perhaps one that another had; but not one that exists."""
        old = self.volume(pick)
        new = min(self.free) if again and self.free else self.name("v")
        taken = self.volume(to)
        self.asked("name-in-use", "post", "volumes", old, "rename", name=taken)
        self.asked(None, "post", "volumes", old, "rename", name=new)
        self.volumes[new] = self.volumes.pop(old)
        for members in (*self.groups.values(), *self.wholes.values()):
            if old in members:
                members.remove(old)
                members.add(new)
        self.free = (self.free - {new}) | {old}

    # Snapshots

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK)
    def take(self, pick: int) -> None:
        """A snapshot of one volume."""
        volume = self.volume(pick)
        live = self.volumes[volume]
        if len(live.snapshots) < SNAPSHOTS_MAX:
            name = self.name("s")
            self.asked(None, "post", "snapshots", volumes=[volume], name=name)
            live.snapshots[name] = Held(bytes(live.data))

    @rule(pick=PICK)
    def delete_snapshot(self, pick: int) -> None:
        """A snapshot goes, unless it is held or part of a group's."""
        if chosen := self.snapshot(pick):
            volume, name = chosen
            held = self.volumes[volume].snapshots[name]
            refusal = "snapshot-in-group" if held.whole else "snapshot-held" if held.tags else None
            if self.asked(refusal, "delete", "volumes", volume, "snapshots", name):
                del self.volumes[volume].snapshots[name]

    @rule(pick=PICK)
    def rename_snapshot(self, pick: int) -> None:
        """A snapshot gets another name; one of a group's only as a whole."""
        if chosen := self.snapshot(pick):
            volume, old = chosen
            held, new = self.volumes[volume].snapshots[old], self.name("s")
            path, members = ("volumes", volume, "snapshots", old), {volume}
            if held.whole:
                self.asked("snapshot-in-group", "post", *path, "rename", name=new)
                path = ("groups", held.whole[0], "snapshots", old)
                members = self.wholes.pop(held.whole)
                self.wholes[held.whole[0], new] = members
            self.asked(None, "post", *path, "rename", name=new)
            for one in members:
                snapshots = self.volumes[one].snapshots
                moved = snapshots[new] = snapshots.pop(old)
                moved.whole = moved.whole and (moved.whole[0], new)

    @rule(pick=PICK, tag=st.sampled_from(["x", "y"]), release=st.booleans())
    def hold(self, pick: int, tag: str, release: bool) -> None:
        """A snapshot is held, or released; one of a group's only as a whole."""
        if chosen := self.snapshot(pick):
            volume, name = chosen
            held = self.volumes[volume].snapshots[name]
            path = ("volumes", volume, "snapshots", name, "holds")
            members = [held]
            if held.whole:
                self.asked("snapshot-in-group", "post", *path, tag=tag, release=release)
                path = ("groups", held.whole[0], "snapshots", held.whole[1], "holds")
                members = [self.volumes[one].snapshots[held.whole[1]] for one in self.wholes[held.whole]]
            refusal = "not-held" if release and tag not in held.tags else None
            if self.asked(refusal, "post", *path, tag=tag, release=release):
                for one in members:
                    one.tags ^= {tag} if release or tag not in one.tags else set()

    @rule(pick=PICK, safety=st.booleans())
    def roll_back(self, pick: int, safety: bool) -> None:
        """A volume becomes what a snapshot shows; it stays as large as it is."""
        if chosen := self.snapshot(pick):
            volume, name = chosen
            live = self.volumes[volume]
            kept = self.name("s") if safety else None
            path = ("volumes", volume, "snapshots", name, "rollback")
            self.asked(None, "post", *path, safety=safety, safety_name=kept)
            self.go_back(volume, name, kept)
            same(f"volume {volume}, rolled back", nbd.read_all(self.daemon.uri(volume)), live.data)

    def go_back(self, volume: str, name: str, kept: str | None, whole: tuple[str, str] | None = None) -> None:
        """What a rollback does to the model."""
        live = self.volumes[volume]
        shown = live.snapshots[name].data
        if kept is not None:
            live.snapshots[kept] = Held(bytes(live.data), whole=whole)
        live.data[:] = shown + bytes(len(live.data) - len(shown))

    @precondition(lambda self: self.wholes)
    @rule(which=PICK, safety=st.booleans())
    def roll_back_whole(self, which: int, safety: bool) -> None:
        """All volumes of a group's snapshot become what it shows, whichever volumes are in the group now."""
        group, name = sorted(self.wholes)[which % len(self.wholes)]
        kept = self.name("s") if safety else None
        path = ("groups", group, "snapshots", name, "rollback")
        self.asked(None, "post", *path, safety=safety, safety_name=kept)
        members = self.wholes[group, name]
        for volume in members:
            self.go_back(volume, name, kept, None if kept is None else (group, kept))
        if kept is not None:
            self.wholes[group, kept] = set(members)

    @precondition(lambda self: len(self.volumes) < VOLUMES_MAX)
    @rule(pick=PICK, processors=st.integers(1, 3))
    def clone(self, pick: int, processors: int) -> None:
        """A volume made from a snapshot; it does not depend on that one."""
        if chosen := self.snapshot(pick):
            volume, snapshot = chosen
            name = self.name("v")
            path = ("volumes", volume, "snapshots", snapshot, "clones")
            self.asked(None, "post", *path, name=name, processors=processors)
            self.volumes[name] = Live(bytearray(self.volumes[volume].snapshots[snapshot].data))

    # Groups

    @precondition(lambda self: self.volumes and len(self.groups) < 2)
    @rule(pick=PICK, other=PICK)
    def group(self, pick: int, other: int) -> None:
        """A group of one or two volumes."""
        name, members = self.name("g"), {self.volume(pick), self.volume(other)}
        self.asked(None, "post", "groups", name=name, volumes=sorted(members))
        self.groups[name] = members

    @precondition(lambda self: self.groups)
    @rule(pick=PICK, which=PICK)
    def join_or_leave(self, pick: int, which: int) -> None:
        """A volume joins a group, or leaves it."""
        group, volume = sorted(self.groups)[which % len(self.groups)], self.volume(pick)
        leaves = volume in self.groups[group]
        self.asked(None, "patch", "groups", group, **{"leave" if leaves else "join": [volume]})
        self.groups[group] ^= {volume}

    @precondition(lambda self: self.groups)
    @rule(which=PICK)
    def rename_group(self, which: int) -> None:
        """A group gets another name, and its snapshots are its own still."""
        old, new = sorted(self.groups)[which % len(self.groups)], self.name("g")
        self.asked(None, "post", "groups", old, "rename", name=new)
        self.groups[new] = self.groups.pop(old)
        for group, name in [whole for whole in self.wholes if whole[0] == old]:
            members = self.wholes[new, name] = self.wholes.pop((group, name))
            for one in members:
                self.volumes[one].snapshots[name].whole = (new, name)

    @precondition(lambda self: self.groups)
    @rule(which=PICK)
    def take_whole(self, which: int) -> None:
        """A snapshot of a group: of all that are in it now."""
        group = sorted(self.groups)[which % len(self.groups)]
        members = self.groups[group]
        if any(len(self.volumes[one].snapshots) >= SNAPSHOTS_MAX for one in members):
            return
        name = self.name("s")
        path = ("groups", group, "snapshots")
        if self.asked(None if members else "group-empty", "post", *path, name=name):
            self.wholes[group, name] = set(members)
            for one in members:
                live = self.volumes[one]
                live.snapshots[name] = Held(bytes(live.data), whole=(group, name))

    @precondition(lambda self: self.wholes)
    @rule(which=PICK)
    def delete_whole(self, which: int) -> None:
        """A snapshot of a group goes, unless it is held."""
        group, name = sorted(self.wholes)[which % len(self.wholes)]
        members = [self.volumes[one].snapshots for one in self.wholes[group, name]]
        refusal = "snapshot-held" if any(one[name].tags for one in members) else None
        if self.asked(refusal, "delete", "groups", group, "snapshots", name):
            del self.wholes[group, name]
            for one in members:
                del one[name]

    @precondition(lambda self: self.groups)
    @rule(which=PICK)
    def delete_group(self, which: int) -> None:
        """A group goes, unless it has snapshots."""
        group = sorted(self.groups)[which % len(self.groups)]
        refusal = "group-has-snapshots" if any(one == group for one, _ in self.wholes) else None
        if self.asked(refusal, "delete", "groups", group):
            del self.groups[group]

    # The daemon

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        """Nothing changes by that."""
        if kill:
            self.daemon.kill()
        self.daemon.restart()
        self.compare()

    @rule()
    def compare(self) -> None:
        """Every byte of everything."""
        for name, live in self.volumes.items():
            same(f"volume {name}", nbd.read_all(self.daemon.uri(name)), live.data)
            for own_name, held in live.snapshots.items():
                export = f"{name}@{own_name}"
                same(f"snapshot {export}", nbd.read_all(self.daemon.uri(export)), held.data)

    @invariant()
    def names_agree(self) -> None:
        """What the API lists is what the model has."""
        api = self.daemon.api
        listed = {each["name"]: each for each in api.get("volumes")}
        assert sorted(listed) == sorted(self.volumes)
        assert {name: each["size"] for name, each in listed.items()} == {
            name: len(live.data) for name, live in self.volumes.items()
        }
        snapshots = {each["export"]: each for each in api.get("snapshots")}
        expected = {
            f"{name}@{own_name}": held
            for name, live in self.volumes.items()
            for own_name, held in live.snapshots.items()
        }
        assert sorted(snapshots) == sorted(expected)
        for export, held in expected.items():
            assert set(snapshots[export]["holds"]) == held.tags, export
            assert snapshots[export]["size"] == len(held.data), export
            whole = None if held.whole is None else "@{}@{}".format(*held.whole)
            assert snapshots[export]["whole"] == whole, export
        groups = {each["name"]: set(each["volumes"]) for each in api.get("groups")}
        assert groups == self.groups

    def teardown(self) -> None:
        """Compare again, then leave an empty daemon."""
        if not self.daemon.running:
            self.daemon.start()
        self.compare()
        api = self.daemon.api
        for group, name in self.wholes:
            for tag in self.volumes[min(self.wholes[group, name])].snapshots[name].tags:
                api.post("groups", group, "snapshots", name, "holds", body={"tag": tag, "release": True})
            api.delete("groups", group, "snapshots", name)
        for group in self.groups:
            api.delete("groups", group)
        for name, live in self.volumes.items():
            for own_name, held in live.snapshots.items():
                for tag in held.tags if held.whole is None else ():
                    path = ("volumes", name, "snapshots", own_name, "holds")
                    api.post(*path, body={"tag": tag, "release": True})
            api.delete("volumes", name)
        assert api.get("volumes", kept=True) == []
        assert api.get("devices") == []
