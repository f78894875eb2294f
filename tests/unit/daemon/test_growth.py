"""Growth on the sim engine: the order of its steps, and what a failure or a kill at each leaves."""

import json
from typing import Any

import pytest

from tests.unit.conftest import Daemon

MIB = 1 << 20


@pytest.fixture
def daemon(daemon: Daemon) -> Daemon:
    daemon.ok("volume", "create", "v", "--size", "100M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    return daemon


def said(daemon: Daemon, *arguments: str) -> Any:
    return json.loads(daemon.ok(*arguments, "--json"))


def sizes(daemon: Daemon) -> dict[str, int]:
    return {each["name"]: each["size"] for each in daemon.service.exports()}


def files(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in (daemon.state_dir / "devices").iterdir())


def test_a_volume_grows_and_its_snapshots_keep_their_size(daemon: Daemon) -> None:
    text = daemon.ok("volume", "grow", "v", "--size", "300M")
    assert text.startswith("volume v: 300 MiB, 5 partitions")
    assert sizes(daemon) == {"v": 300 * MIB, "v@s": 100 * MIB}
    daemon.ok("snapshot", "create", "v", "--name", "t")
    daemon.restart()
    assert sizes(daemon) == {"v": 300 * MIB, "v@s": 100 * MIB, "v@t": 300 * MIB}
    assert [each["size"] for each in said(daemon, "snapshot", "list")] == [100 * MIB, 300 * MIB]
    shown = said(daemon, "volume", "show", "v", "--partitions")
    assert [part["processor"] for part in shown["partitions"]] == [0, 1, 0, 1, 0]
    lengths = [sum(extent["length"] for extent in part["extents"]) for part in shown["partitions"]]
    assert lengths == [64 * MIB] * 4 + [44 * MIB]
    assert [len(part["extents"]) for part in shown["partitions"]] == [1, 2, 1, 1, 1]
    daemon.ok("volume", "delete", "v", "--yes")
    assert files(daemon) == []


def test_it_grows_on_devices_that_are_named(daemon: Daemon) -> None:
    daemon.ok("device", "add", str(daemon.state_dir / "more.img"), "--name", "more", "--size", "1G")
    before = files(daemon)
    grown = said(daemon, "volume", "grow", "v", "--size", "300M", "--device", "more")
    assert "more" in grown["devices"]
    assert files(daemon) == before
    assert "1 client" not in daemon.refused("device", "remove", "more")


@pytest.mark.parametrize("step", ["open_device", "grow_volume"])
def test_a_failure_leaves_the_volume_as_it_was(daemon: Daemon, step: str) -> None:
    before, show = files(daemon), said(daemon, "volume", "show", "v", "--partitions")
    del show["relocation"]  # it goes on during the call
    daemon.world.fail[step] = 0
    assert "simulated failure" in daemon.refused("volume", "grow", "v", "--size", "300M")
    daemon.world.fail.clear()
    assert files(daemon) == before
    assert said(daemon, "volume", "show", "v", "--partitions").items() >= show.items()
    daemon.restart()
    assert sizes(daemon) == {"v": 100 * MIB, "v@s": 100 * MIB}
    daemon.ok("volume", "grow", "v", "--size", "300M")


def test_a_kill_before_it_is_recorded_leaves_no_file(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(daemon)
    monkeypatch.setattr(daemon.service._volumes.log_areas, "unmake_file", lambda _: None)
    daemon.world.fail["open_device"] = 1  # the second file is made, and then the end comes
    daemon.refused("volume", "grow", "v", "--size", "300M")
    daemon.world.fail.clear()
    assert files(daemon) != before
    daemon.restart()
    assert files(daemon) == before
    assert sizes(daemon)["v"] == 100 * MIB


def test_a_kill_after_it_is_recorded_serves_the_larger_volume(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.service._context.catalog.volumes, "undo_growth", lambda *_: None)
    monkeypatch.setattr(daemon.service._volumes.log_areas, "unmake_file", lambda _: None)
    daemon.world.fail["grow_volume"] = 0
    daemon.refused("volume", "grow", "v", "--size", "300M")
    daemon.world.fail.clear()
    daemon.restart()
    assert sizes(daemon) == {"v": 300 * MIB, "v@s": 100 * MIB}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["v", "--size", "100M"], "has 100 MiB already, and 100 MiB is not more"),
        (["v", "--size", "64M"], "64 MiB is not more"),
        (["v", "--size", "104857601"], "not a multiple of 4 KiB; use 102404K"),
        (["nix", "--size", "1G"], "no volume 'nix'"),
        (["v", "--size", "1G", "--device", "nix"], "no device 'nix'"),
    ],
)
def test_refused_growth_changes_nothing(daemon: Daemon, arguments: list[str], words: str) -> None:
    assert words in daemon.refused("volume", "grow", *arguments)
    assert sizes(daemon) == {"v": 100 * MIB, "v@s": 100 * MIB}


def test_a_volume_that_is_not_served_does_not_grow(daemon: Daemon) -> None:
    context = daemon.service._context
    context.volume_trouble[context.find_volume("v").id] = "its disk is away"
    assert "its disk is away" in daemon.refused("volume", "grow", "v", "--size", "1G")
    context.volume_trouble.clear()
