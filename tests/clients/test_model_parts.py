"""test_model_parts: the views of partitions, partition snapshots, change logs and places against a reference
in memory, through writes, cuts, deletions, rollbacks, growth, clones, restarts and kills in any order.

How it works      A machine of hypothesis on a real polyvold, as tests/support/verbs.py;
                  support/parts_model.py says what the views must show. All of them are compared after each
                  rule.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.parts_model import BLOCK, Version, Volume, is_base

PARTITION = 1 << 20
SIZE = 3 * PARTITION
VOLUMES_MAX = 3
SNAPSHOTS_MAX = 5
PICK = st.integers(0, 1 << 20)


class Parts(RuleBasedStateMachine):
    """The verbs that change what the views show."""

    daemon: Daemon

    def __init__(self) -> None:
        super().__init__()
        self.names = itertools.count(1)
        self.volumes: dict[str, Volume] = {}
        if not self.daemon.running:
            self.daemon.start()

    def name(self, letter: str) -> str:
        return f"{letter}{next(self.names)}"

    def volume(self, pick: int) -> str:
        return sorted(self.volumes)[pick % len(self.volumes)]

    def snapshot(self, pick: int) -> tuple[str, str] | None:
        found = sorted(
            (volume, name)
            for volume, each in self.volumes.items()
            for name in each.snapshots.keys() - each.kept
        )
        return found[pick % len(found)] if found else None

    def post(self, *path: str, **body: object) -> Any:
        return self.daemon.api.post(*path, body=body)

    @initialize()
    def begin(self) -> None:
        name = self.name("v")
        self.post("volumes", name=name, size=SIZE, partition_size=PARTITION, processors=2)
        # It would move blocks at any time: tests/clients/test_relocation.py is about it.
        self.daemon.ok("volume", "set", name, "--relocate", "off")
        self.volumes[name] = Volume(PARTITION, Version(SIZE))

    @rule(pick=PICK, seed=st.integers(1, 1 << 30), times=st.integers(1, 4))
    def write(self, pick: int, seed: int, times: int) -> None:
        """A few writes of whole blocks, which may go over the border of two partitions."""
        name, draw = self.volume(pick), random.Random(seed)
        volume = self.volumes[name]
        with nbd.connect(self.daemon.uri(name)) as handle:
            for _ in range(times):
                count = draw.choice([1, 1, 2, 9])
                first = draw.randrange(volume.live.size // BLOCK - count + 1)
                if draw.random() < 0.5:  # so that blocks are written again
                    first = min(draw.choice([0, 3, 254, 510]), volume.live.size // BLOCK - count)
                handle.pwrite(draw.randbytes(count * BLOCK), first * BLOCK)
                volume.write(first, count)

    @rule(pick=PICK)
    def cut(self, pick: int) -> None:
        name = self.volume(pick)
        volume = self.volumes[name]
        if len(volume.snapshots) < SNAPSHOTS_MAX:
            snapshot = self.name("s")
            made = self.post("snapshots", volumes=[name], name=snapshot)
            volume.cut(snapshot, made[0]["epoch"])

    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        """A snapshot goes; one that a clone needs is kept. Targets of rollbacks stay, because when polyvold
        forgets the rollback is not known."""
        chosen = self.snapshot(pick)
        if chosen is None or chosen[1] in self.volumes[chosen[0]].pinned:
            return
        volume, name = chosen
        clones = self.daemon.api.get("volumes", volume, "snapshots", name)["clones"]
        self.daemon.api.delete("volumes", volume, "snapshots", name)
        epoch = self.volumes[volume].snapshots[name].epoch
        self.volumes[volume].delete(name, keep_as=f"epoch:{epoch}" if clones else None)

    @rule(pick=PICK, safety=st.booleans())
    def roll_back(self, pick: int, safety: bool) -> None:
        chosen = self.snapshot(pick)
        if chosen is None:
            return
        volume, name = chosen
        kept = self.name("s") if safety else None
        self.post("volumes", volume, "snapshots", name, "rollback", safety=safety, safety_name=kept)
        if kept is not None:
            view = self.daemon.api.get("volumes", volume, "snapshots", kept)
            self.volumes[volume].cut(kept, view["epoch"])
        self.volumes[volume].roll_back(name)

    @rule(pick=PICK, blocks=st.integers(1, 300))
    def grow(self, pick: int, blocks: int) -> None:
        name = self.volume(pick)
        live = self.volumes[name].live
        if live.size < 3 * SIZE and not self.volumes[name].clone:
            live.size += blocks * BLOCK
            self.post("volumes", name, "growth", size=live.size)

    @precondition(lambda self: len(self.volumes) < VOLUMES_MAX)
    @rule(pick=PICK)
    def clone(self, pick: int) -> None:
        chosen = self.snapshot(pick)
        if chosen is not None:
            volume, snapshot = chosen
            name = self.name("v")
            self.post("volumes", volume, "snapshots", snapshot, "clones", name=name, processors=2)
            size = self.volumes[volume].snapshots[snapshot].size
            self.volumes[name] = Volume(PARTITION, Version(size), clone=True)

    @rule()
    def restart(self) -> None:
        self.daemon.restart()

    @rule()
    def kill(self) -> None:
        """What was counted of partitions since the last cut may be lost; nothing else is."""
        self.daemon.kill()
        self.daemon.start()
        for name, volume in self.volumes.items():
            counts = volume.live.counts
            least = volume.snapshots[volume.live.parent].counts if volume.live.parent else {}
            for view in self.daemon.api.get("volumes", name, "partitions")["partitions"]:
                number = view["number"]
                found = view["writes"], view["written"]
                low, high = least.get(number, (0, 0)), counts.get(number, (0, 0))
                assert low <= found <= high, f"{name}#{number}: {low} <= {found} <= {high}"
                counts[number] = found

    def teardown(self) -> None:
        """Leave nothing for the next run."""
        if not self.daemon.running:
            self.daemon.start()
        for name in reversed(self.volumes):
            self.daemon.api.delete("volumes", name)

    @invariant()
    def views_are_right(self) -> None:
        for name, volume in self.volumes.items():
            self.partitions_are_right(name, volume)
            for snapshot, version in volume.snapshots.items():
                if snapshot not in volume.kept:
                    self.snapshot_is_right(name, volume, snapshot, version)
            self.logs_are_right(name, volume)
            self.places_are_right(name, volume)

    def partitions_are_right(self, name: str, volume: Volume) -> None:
        views = self.daemon.api.get("volumes", name, "partitions")["partitions"]
        assert [view["number"] for view in views] == list(volume.partitions)
        for view in views:
            number = view["number"]
            found = view["slots"], view["zeroes"], view["bases"]
            assert found == volume.places(volume.live, number), f"{name}#{number}"
            counts = volume.live.counts.get(number, (0, 0))
            assert (view["writes"], view["written"]) == counts, f"{name}#{number}"

    def snapshot_is_right(self, name: str, volume: Volume, snapshot: str, version: Version) -> None:
        page = self.daemon.api.get("volumes", name, "snapshots", snapshot, "partitions")
        before = volume.snapshots[version.parent].counts if version.parent else {}
        views = page["partition_snapshots"]
        assert len(views) == -(-version.size // PARTITION)
        for number, view in enumerate(views):
            where = view["id"]
            assert where == f"{name}@{snapshot}#{number}"
            found = view["slots"], view["zeroes"], view["bases"]
            assert found == volume.places(version, number), where
            counts, old = version.counts.get(number, (0, 0)), before.get(number, (0, 0))
            assert (view["total"]["writes"], view["total"]["written"]) == counts, where
            since = view["since"]["writes"], view["since"]["written"]
            assert since == (counts[0] - old[0], counts[1] - old[1]), where
            blocks, *others = volume.log(snapshot, number)
            log = view["log"] and [view["log"][kind] for kind in ("blocks", "zeroes", "bases")]
            assert log == ([blocks.total(), *others] if blocks or any(others) else None), where
            if volume.live.parent == snapshot and number in volume.written:
                assert view["frozen"], where

    def logs_are_right(self, name: str, volume: Volume) -> None:
        expected = {
            (begin, number): found
            for begin in (None, *volume.snapshots)
            for number in volume.partitions
            if any(found := volume.log(begin, number))
        }
        views = self.daemon.api.get("volumes", name, "change-logs")["logs"]
        assert {(view["begin"], view["partition"]) for view in views} == expected.keys(), name
        for view in views:
            blocks, *others = expected[view["begin"], view["partition"]]
            assert [view[kind] for kind in ("blocks", "zeroes", "bases")] == [blocks.total(), *others], view[
                "id"
            ]
            assert view["ended"] == volume.ended(view["begin"]), view["id"]
            assert sum(each["blocks"] for each in view["placed"]) == view["blocks"]
            shown = self.daemon.api.get("change-logs", view["id"])
            assert shown["log"] == view
            assert len(shown["runs"]) == view["runs"]
            assert Counter(_blocks(shown["runs"])) == blocks, view["id"]
        counts = Counter(view["begin"] for view in views)
        for listed in self.daemon.api.get("snapshots", volume=name, partitions=True):
            assert listed["parts"]["written"] == counts[listed["name"]]
            assert listed["parts"]["partitions"] == -(-listed["size"] // PARTITION)

    def places_are_right(self, name: str, volume: Volume) -> None:
        """Some blocks: of each version one that it has in a slot, and one at any place."""
        draw = random.Random(len(volume.live.tokens))
        for snapshot, version in volume.versions():
            if snapshot in volume.kept:
                continue
            blocks = [draw.randrange(version.size // BLOCK)]
            blocks += draw.sample(sorted(version.tokens), min(1, len(version.tokens)))
            for block in [block for block in blocks if block * BLOCK < version.size]:
                found = self.daemon.api.get(
                    "volumes", name, "place", offset=str(block * BLOCK), snapshot=snapshot
                )
                token = version.tokens.get(block)
                kind = "base" if is_base(token) else "log" if token else "zero"
                assert found["kind"] == ("source" if kind == "base" and volume.clone else kind)
                if kind == "log":
                    begin = volume.begin_of(version, block)
                    part = block * BLOCK // PARTITION
                    assert found["log"] == f"{name}{'@' + begin if begin else ''}#{part}"


def _blocks(runs: list[dict[str, Any]]) -> Iterator[int]:
    for run in runs:
        yield from range(run["block"], run["block"] + run["blocks"])


def run_machine(daemon: Daemon, **how: Any) -> None:
    machine = type("PartsOfDaemon", (Parts,), {"daemon": daemon})
    common: dict[str, Any] = {"deadline": None, "database": None, "print_blob": True}
    run_state_machine_as_test(
        machine, settings=settings(**common, suppress_health_check=list(HealthCheck), **how)
    )


@pytest.mark.slow
def test_views_are_right_after_each_verb_of_a_story(daemon: Daemon) -> None:
    """Each thing that moves blocks from one log to another happens at least once."""
    machine = type("StoryOfDaemon", (Parts,), {"daemon": daemon})()
    machine.begin()
    step = itertools.count(1)

    def write() -> None:
        machine.write(pick=0, seed=next(step), times=4)

    def delete(nth: int) -> None:
        """The snapshot of volume v1 that is the nth in the order of names."""
        machine.delete(pick=nth)

    story: list[Callable[[], None]] = [
        *[write, lambda: machine.cut(pick=0)] * 4,
        write,
        lambda: delete(1),  # in the middle
        lambda: delete(0),  # the oldest: its log begins with the volume
        write,
        lambda: machine.roll_back(pick=0, safety=True),
        write,
        lambda: machine.cut(pick=0),
        lambda: machine.kill(),
        write,
        lambda: machine.grow(pick=0, blocks=300),
        write,
        lambda: machine.cut(pick=0),
        lambda: machine.clone(pick=1),
        *[lambda: machine.write(pick=1, seed=next(step), times=4), lambda: machine.cut(pick=1)] * 2,
        lambda: machine.write(pick=1, seed=next(step), times=4),
        lambda: delete(1),  # it is kept for the clone
        lambda: machine.restart(),
        lambda: machine.roll_back(pick=2, safety=False),
        write,
    ]
    for verb in story:
        verb()
        machine.views_are_right()
    volume = machine.volumes["v1"]
    assert volume.pinned
    assert volume.kept
    assert {name for name, version in volume.snapshots.items() if version.parent is None}
    machine.teardown()


@pytest.mark.slow
def test_views_are_right_after_the_same_verbs(daemon: Daemon) -> None:
    run_machine(daemon, max_examples=6, stateful_step_count=25, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_views_are_right_after_any_verbs(daemon: Daemon) -> None:
    run_machine(daemon, max_examples=6, stateful_step_count=40)
