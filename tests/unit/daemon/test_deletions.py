"""Deleting many snapshots at once, and what snapshots hold, against a service on the sim engine."""

import json
import threading

import pytest

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.client.cli.deletions import _wait
from polyvol.daemon.snapshots.deletions import BATCH
from polyvol.mapping.errors import UnknownVolume
from tests.support.proc import wait_until
from tests.unit.conftest import Daemon


@pytest.fixture
def many(daemon: Daemon) -> Daemon:
    """Volume `v` with snapshots auto-0 to auto-99, and by hand `a` and `b`."""
    daemon.ok("volume", "create", "v", "--size", "100M")
    handle = daemon.service.engine.open("v")
    handle.pwrite(b"x" * 8192, 0)
    handle.close()
    for name in [*(f"auto-{number}" for number in range(100)), "a", "b"]:
        daemon.ok("snapshot", "create", "v", "--name", name)
    return daemon


def names(daemon: Daemon) -> list[str]:
    return [each["name"] for each in json.loads(daemon.ok("snapshot", "list", "v", "--json"))]


def test_names_and_patterns_are_deleted_together(many: Daemon) -> None:
    many.world.calls.clear()
    said = many.ok("snapshot", "delete", "v@auto-*", "v@a")
    assert said.startswith("volume v: 101 snapshots deleted, ")
    assert names(many) == ["b"]
    assert many.world.names().count("drop_snapshots") == -(-101 // BATCH)
    assert many.refused("snapshot", "delete", "v@auto-*").startswith("no snapshot matches 'v@auto-*'; ")
    assert many.ok("snapshot", "delete", "v@b").startswith("snapshot v@b deleted, ")


def test_what_is_connected_to_stays_and_is_named(many: Daemon) -> None:
    handle = many.service.engine.open("v@auto-7")
    result = many.run("snapshot", "delete", "v@auto-*")
    handle.close()
    assert result.exit_code == 1
    assert result.stderr == "snapshot v@auto-7 stays: clients are connected to it\n"
    assert names(many) == ["auto-7", "a", "b"]


def test_an_unknown_name_is_refused_before_anything_changes(many: Daemon) -> None:
    before = names(many)
    assert "no snapshot 'x'" in many.refused("snapshot", "delete", "v@auto-*", "v@x")
    assert "no volume 'w'" in many.refused("snapshot", "delete", "w@auto-*")
    assert names(many) == before


def test_the_wait_for_space_follows_its_volume_to_another_name(
    many: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another volume has the name by then, and nothing of it is being deleted."""
    many.ok("volume", "create", "w", "--size", "1M")
    drop, may_drop, dropping = many.service.engine.drop_snapshots, threading.Event(), threading.Event()

    def slowly(volume: int, epochs: list[int]) -> int:
        dropping.set()
        assert may_drop.wait(60)
        return drop(volume, epochs)

    monkeypatch.setattr(many.service.engine, "drop_snapshots", slowly)
    said: list[str] = []
    command = threading.Thread(
        target=lambda: said.append(many.ok("snapshot", "delete", "v@auto-*", "--json"))
    )
    command.start()
    assert dropping.wait(60)
    client = Client(many.state_dir)
    client.post("volumes", "v", "rename", body={"name": "moved"})
    client.post("volumes", "w", "rename", body={"name": "v"})
    asked: list[str] = []
    get = Client.get

    def noted(client: Client, *parts: str, **query: str | bool | None) -> object:
        if parts == ("volumes", "moved", "deletions"):
            asked.append(parts[1])
        return get(client, *parts, **query)

    monkeypatch.setattr(Client, "get", noted)
    wait_until(lambda: bool(asked), "it asks for the volume by its new name")
    assert command.is_alive()
    may_drop.set()
    command.join(60)
    [view] = json.loads(said[0])
    assert (view["volume"], view["total"], view["left"]) == ("moved", 100, 0)


def test_the_wait_for_space_of_a_volume_that_is_deleted_ends(
    many: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another volume has its name."""
    many.ok("volume", "create", "w", "--size", "1M")
    client = Client(many.state_dir)
    begun = client.post("volumes", "v", "deletions", body={"names": ["auto-1"]})
    client.delete("volumes", "v")
    client.post("volumes", "w", "rename", body={"name": "v"})
    with pytest.raises(UnknownVolume):
        _wait(client, "v", {**begun, "left": 1})


def test_a_rollback_is_forgotten_under_the_lock_and_covered_without_it(many: Daemon) -> None:
    many.ok("snapshot", "rollback", "v@a", "--no-safety")
    many.ok("snapshot", "rollback", "v@a", "--no-safety")
    context = many.service.deletions._context
    volume = context.find_volume("v").id
    one, two = (rollback.at for rollback in context.catalog.rollbacks.of(volume))
    many.world.unneeded[volume] = [one]
    seen: dict[str, tuple[bool, list[int]]] = {}
    noted = many.world.called

    def called(name: str, *arguments: object) -> None:
        rollbacks = [int(rollback.at) for rollback in context.catalog.rollbacks.of(volume)]
        seen.setdefault(name, (bool(context.locks._mine.held), rollbacks))
        noted(name, *arguments)

    many.world.called = called  # type: ignore[method-assign]
    many.ok("snapshot", "delete", "v@auto-1*", "--no-wait")  # its worker looks for rollbacks too
    wait_until(lambda: many.world.unneeded[volume] == [], "the rollback is forgotten")
    assert seen["cover_rollbacks"] == (False, [one, two])
    assert seen["unneeded_rollback"] == (True, [one, two])
    assert seen["forget_rollback"] == (True, [two])  # the catalog comes first


def test_a_rollback_is_forgotten_soon_whatever_drops_the_last_snapshot(many: Daemon) -> None:
    many.ok("volume", "clone", "v@a", "c")
    many.ok("snapshot", "delete", "v@a")  # it is kept for the clone
    many.ok("snapshot", "rollback", "v@b", "--no-safety")
    context = many.service.deletions._context
    volume = context.find_volume("v").id
    wait_until(lambda: "cover_rollbacks" in many.world.names(), "a look", 10)
    many.world.unneeded[volume] = [rollback.at for rollback in context.catalog.rollbacks.of(volume)]
    many.ok("volume", "delete", "c", "--yes")
    wait_until(lambda: many.world.unneeded[volume] == [], "the rollback is forgotten", 10)


def test_a_deletion_goes_on_in_the_background_and_after_a_restart(many: Daemon) -> None:
    many.world.hold["drop_snapshots"] = slow = threading.Event()
    assert many.ok("snapshot", "delete", "v@auto-*", "--no-wait") == "volume v: 100 snapshots deleted\n"
    assert names(many) == ["a", "b"]
    view = many.service.deletions.show("v")
    assert (view.total, view.left) == (100, 100)
    many.ok("snapshot", "create", "v", "--name", "c")  # nobody is held up
    slow.set()
    wait_until(lambda: many.service.deletions.show("v").left == 0, "the space is back")
    many.world.hold.clear()
    # Where the daemon ends before, the next one's engine drops what the catalog does not know.
    many.world.fail["drop_snapshots"] = 0
    many.ok("snapshot", "delete", "v@a", "v@b", "--no-wait")
    many.world.fail.clear()
    many.restart()
    assert names(many) == ["c"]
    stored = next(iter(many.world.stored.values()))
    assert len(stored.snapshots) == 1


def test_what_snapshots_hold_is_shown(many: Daemon) -> None:
    listed = many.ok("snapshot", "list", "v").splitlines()
    assert "FREES" in listed[0]
    [shown] = [each for each in json.loads(many.ok("snapshot", "list", "v", "--json")) if each["name"] == "a"]
    assert shown["use"] == {"used": 8192, "shared": 4096, "frees": 4096, "frees_log": 4096}
    assert "deleting it frees 4 KiB, of that 4 KiB in change logs; it shares 4 KiB " in many.ok(
        "snapshot", "show", "v@a"
    )
    assert json.loads(many.ok("volume", "show", "v", "--json"))["use"]["live"] == 8192
    assert "held:" in many.ok("volume", "show", "v")
