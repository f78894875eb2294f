"""The coordinator: the order of a cut, and what a failure at each step leaves behind."""

from pathlib import Path
from typing import Any

import pytest

from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.extent import Extent
from polyvol.mapping.partition import Partition
from polyvol.mapping.plans.inventory import NewDevice
from polyvol.mapping.plans.volumes import VolumePlan
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.specs import volume_spec
from polyvol.snapshot.coordinator import Coordinator
from polyvol.snapshot.errors.cuts import CutFailed
from tests.support.sim_checks import EngineError
from tests.support.sim_engine import SimEngine, SimWorld

MIB = 1 << 20


class Bench:
    """Two volumes in a catalog and in a sim engine."""

    def __init__(self, catalog: Catalog, folder: Path) -> None:
        self.catalog = catalog
        self.world = SimWorld()
        self.engine = SimEngine(self.world, 2)
        (folder / "volumes").mkdir()
        self.volumes = [self._volume(name, folder) for name in ("a", "b")]
        self.left_over: list[tuple[Volume | None, str, Exception]] = []
        self.coordinator = Coordinator(self.engine, catalog, lambda *failed: self.left_over.append(failed))
        self.world.calls.clear()

    def _volume(self, name: str, folder: Path) -> Volume:
        plan = VolumePlan(
            name,
            2 * MIB,
            MIB,
            (Partition(0, 0, (Extent(-1, MIB, MIB),)), Partition(1, 1, (Extent(-1, 2 * MIB, MIB),))),
            (LogArea(1, (Extent(-1, 4 * MIB, 64 * MIB),)),),
            (NewDevice(-1, f"{name}.data", name, 70 * MIB),),
        )
        volume = self.catalog.volumes.create(plan)
        path = folder / f"{name}.data"
        path.touch()
        device = next(each for each in self.catalog.devices.all() if each.made_for == volume.id)
        self.engine.open_device(device.id, str(path))
        self.engine.add_volume(volume_spec(self.catalog, volume, folder))
        return volume

    def epochs(self) -> list[int]:
        """How many epochs the engine still holds, by volume."""
        return [len(self.world.stored[str(volume.uuid)].snapshots) for volume in self.volumes]


@pytest.fixture
def bench(catalog: Catalog, tmp_path: Path) -> Bench:
    return Bench(catalog, tmp_path)


def test_a_cut_is_settled_and_flushed_before_it_is_recorded_and_exported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = bench.catalog.snapshots.commit

    def noted(records: list[SnapshotRecord], group: None) -> None:
        bench.world.calls.append(("commit",))
        commit(records, group)

    monkeypatch.setattr(bench.catalog.snapshots, "commit", noted)
    area = bench.catalog.log_areas.of(bench.volumes[0].id)[0]
    rules = (LogRule((), (0, 0), others=True), LogRule((area.device,), processor=1))
    records = bench.coordinator.take(bench.volumes, "s", {bench.volumes[0].id: rules})
    assert bench.world.names() == [
        "cut",
        "settle",
        "settle",
        "flush",
        "flush",
        "commit",
        "export",
        "export",
    ]
    first, second = bench.volumes
    specs = [
        {"partitions": (0, 0), "processors": None, "logs": [], "any": True},
        {"partitions": None, "processors": [1], "logs": [1], "any": False},
    ]
    assert bench.world.calls[0] == ("cut", (first.id, second.id), [specs, []])
    assert bench.catalog.snapshots.all() == records
    assert len({record.cut for record in records}) == 1
    assert [record.log_rules for record in records] == [rules, ()]
    assert [each["name"] for each in bench.engine.exports()] == ["a@s", "b@s"]
    assert records[0].stalls == ((0, 2000), (1, 1999))


@pytest.mark.parametrize("step", ["settle", "flush", "export"])
@pytest.mark.parametrize("successes", [0, 1])
def test_a_cut_that_fails_half_way_leaves_nothing(bench: Bench, step: str, successes: int) -> None:
    bench.world.fail[step] = successes
    with pytest.raises(CutFailed, match=f"simulated failure of {step}") as failed:
        bench.coordinator.take(bench.volumes, "s")
    assert failed.value.undo_failed_on == ()
    assert bench.catalog.snapshots.all() == []
    assert bench.engine.exports() == []
    assert bench.epochs() == [0, 0]


def test_a_cut_that_is_refused_needs_no_undoing(bench: Bench) -> None:
    bench.world.fail["cut"] = 0
    with pytest.raises(CutFailed, match="simulated failure of cut"):
        bench.coordinator.take(bench.volumes, "s")
    assert bench.world.names() == ["cut"]


def test_a_catalog_that_refuses_leaves_nothing(bench: Bench) -> None:
    bench.coordinator.take(bench.volumes[:1], "s")
    with pytest.raises(CutFailed):
        bench.coordinator.take(bench.volumes[1:] + bench.volumes[:1], "s")  # the name is taken in one
    assert [(each.volume, each.name) for each in bench.catalog.snapshots.all()] == [
        (bench.volumes[0].id, "s")
    ]
    assert bench.epochs() == [1, 0]


def test_what_cannot_be_undone_is_named(bench: Bench) -> None:
    bench.world.fail["flush"] = 0
    bench.world.fail["drop_snapshot"] = 1
    with pytest.raises(CutFailed, match="could not be undone on b") as failed:
        bench.coordinator.take(bench.volumes, "s")
    assert failed.value.undo_failed_on == ("b",)
    assert bench.catalog.snapshots.all() == []
    [(volume, what, error)] = bench.left_over
    assert (volume, what) == (bench.volumes[1], "dropping its snapshot")
    assert "simulated failure of drop_snapshot" in str(error)


def test_every_volume_that_a_rollback_fails_on_is_told(bench: Bench) -> None:
    records = bench.coordinator.take(bench.volumes, "s")
    bench.world.fail["roll_back"] = 0
    with pytest.raises(EngineError, match="simulated failure of roll_back"):
        bench.coordinator.roll_back(list(zip(bench.volumes, records, strict=True)), "before")
    assert [(volume, what) for volume, what, _ in bench.left_over] == [(bench.volumes[1], "rolling back")]


def test_a_rollback_whose_commit_was_made_and_has_failed_is_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = bench.coordinator.take(bench.volumes, "s")
    commit = bench.catalog.snapshots.commit

    def made_and_failed(*arguments: Any) -> None:
        commit(*arguments)
        raise OSError("the answer was lost")

    monkeypatch.setattr(bench.catalog.snapshots, "commit", made_and_failed)
    with pytest.raises(CutFailed) as failed:
        bench.coordinator.roll_back(list(zip(bench.volumes, records, strict=True)), "before")
    assert failed.value.undo_failed_on == ()
    assert bench.catalog.rollbacks.volumes() == []
    assert {each.name for each in bench.catalog.snapshots.all()} == {"s"}
    assert bench.epochs() == [1, 1]


def test_an_epoch_is_kept_while_the_catalog_may_know_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(bench.catalog.snapshots, "forget_cut", broken)
    bench.world.fail["export"] = 0
    with pytest.raises(CutFailed, match="the catalog"):
        bench.coordinator.take(bench.volumes, "s")
    assert len(bench.catalog.snapshots.all()) == 2
    assert bench.epochs() == [1, 1]
