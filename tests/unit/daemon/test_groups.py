"""Groups and holds: all or nothing, whichever volumes join and leave, and what is protected from what."""

import json
from typing import Any

import pytest

from tests.support.sim_engine import SimEngine
from tests.unit.conftest import Daemon


@pytest.fixture
def daemon(daemon: Daemon) -> Daemon:
    for volume in ("a", "b", "c"):
        daemon.ok("volume", "create", volume, "--size", "1M")
    daemon.ok("group", "create", "g", "a", "b")
    return daemon


def said(daemon: Daemon, *arguments: str) -> Any:
    return json.loads(daemon.ok(*arguments, "--json"))


def snapshots(daemon: Daemon) -> list[str]:
    return [each["export"] for each in said(daemon, "snapshot", "list")]


def members(daemon: Daemon, snapshot: str) -> list[str]:
    return [each["export"] for each in said(daemon, "snapshot", "show", snapshot)["members"]]


def kill(daemon: Daemon) -> None:
    """What the kernel does with a process that is killed."""
    for step in ("flush", "remove_volume", "drop_snapshot", "unexport"):
        daemon.world.fail[step] = 0
    daemon.service.stop()
    daemon.world.fail.clear()
    daemon.start()


def test_a_group_snapshot_is_one_cut_of_all_members(daemon: Daemon) -> None:
    text = daemon.ok("snapshot", "create", "@g", "--name", "s")
    assert text.startswith("snapshot @g@s: write stall")
    [cut] = [call for call in daemon.world.calls if call[0] == "cut"]
    assert len(cut[1]) == 2
    assert snapshots(daemon) == ["a@s", "b@s"]
    shown = said(daemon, "snapshot", "show", "@g@s")
    assert (shown["export"], shown["origin"], shown["consistency"]) == ("@g@s", "hand", "crash")
    assert len({each["cut"] for each in shown["members"]}) == 1
    assert said(daemon, "snapshot", "show", "a@s")["whole"] == "@g@s"
    assert said(daemon, "group", "show", "g")["snapshots"] == ["s"]
    assert "a@s" in daemon.ok("snapshot", "show", "@g@s")
    assert "@g@s" in daemon.ok("snapshot", "list", "@g")
    assert "@g@s" in daemon.ok("snapshot", "show", "a@s")


def test_each_group_snapshot_knows_its_own_members(daemon: Daemon) -> None:
    daemon.ok("snapshot", "create", "@g", "--name", "old")
    daemon.ok("group", "join", "g", "c")
    assert daemon.ok("group", "leave", "g", "a") == "group g: volumes b, c\n"
    daemon.ok("snapshot", "create", "@g", "--name", "new")
    daemon.restart()
    assert members(daemon, "@g@old") == ["a@old", "b@old"]
    assert members(daemon, "@g@new") == ["b@new", "c@new"]
    daemon.ok("snapshot", "delete", "@g@old")
    assert snapshots(daemon) == ["b@new", "c@new"]


def test_parts_of_a_whole_are_not_deleted_or_held_alone(daemon: Daemon) -> None:
    daemon.ok("snapshot", "create", "@g", "--name", "s")
    refusal = "snapshot a@s is part of @g@s; name @g@s, instead of its members"
    assert daemon.refused("snapshot", "delete", "a@s") == refusal
    assert daemon.refused("snapshot", "hold", "a@s", "--tag", "t") == refusal


def test_a_whole_with_clients_is_not_deleted_at_all(daemon: Daemon) -> None:
    daemon.ok("snapshot", "create", "@g", "--name", "s")
    handle = daemon.service.engine.open("b@s")
    assert "snapshot b@s is in use by 1 client" in daemon.refused("snapshot", "delete", "@g@s")
    assert [each["name"] for each in daemon.service.exports()] == ["a", "a@s", "b", "b@s", "c"]
    assert snapshots(daemon) == ["a@s", "b@s"]
    handle.close()
    daemon.ok("snapshot", "delete", "@g@s")
    assert snapshots(daemon) == []
    assert said(daemon, "snapshot", "list", "@g") == []


@pytest.mark.parametrize("step", ["cut", "settle", "flush", "export"])
@pytest.mark.slow
def test_a_group_cut_that_fails_leaves_nothing(daemon: Daemon, step: str) -> None:
    daemon.world.fail[step] = 0 if step == "cut" else 1
    assert "could not be made" in daemon.refused("snapshot", "create", "@g", "--name", "s")
    daemon.world.fail.clear()
    assert snapshots(daemon) == []
    assert said(daemon, "snapshot", "list", "@g") == []
    daemon.ok("snapshot", "create", "@g", "--name", "s")


def test_a_kill_leaves_a_group_snapshot_whole_or_absent(daemon: Daemon) -> None:
    daemon.ok("snapshot", "create", "@g", "--name", "s")
    kill(daemon)
    assert members(daemon, "@g@s") == ["a@s", "b@s"]
    daemon.world.fail["drop_snapshot"] = 0  # deleted in the catalog, and then the end comes
    daemon.run("snapshot", "delete", "@g@s")
    kill(daemon)
    assert snapshots(daemon) == []
    assert said(daemon, "snapshot", "list", "@g") == []
    engine = daemon.service.engine
    assert isinstance(engine, SimEngine)
    assert all(volume.stored.snapshots == {} for volume in engine.volumes.values())


def test_a_group_with_a_member_that_is_not_served_has_no_snapshot(daemon: Daemon) -> None:
    context = daemon.service._context
    context.volume_trouble[context.find_volume("b").id] = "its disk is away"
    assert "volume b is not served: its disk is away" in daemon.refused("snapshot", "create", "@g")
    assert snapshots(daemon) == []
    context.volume_trouble.clear()


def test_making_room_drops_a_whole(daemon: Daemon) -> None:
    daemon.ok("snapshot", "create", "@g", "--name", "s", "--scheduled")
    daemon.ok("snapshot", "create", "a", "--name", "t", "--scheduled")
    daemon.ok("snapshot", "hold", "@g@s", "--tag", "x")
    context = daemon.service._context
    volume = context.find_volume("a")

    def drop() -> None:
        members = daemon.service.snapshots.members(context.find_snapshot(volume, "s"))
        with context.locks.room({each.id: each.name for each, _ in members}, "this test"):
            daemon.service.snapshots.drop(volume, members)

    with pytest.raises(Exception, match=r"snapshot @g@s is held \(x\)"):
        drop()
    daemon.ok("snapshot", "release", "@g@s", "--tag", "x")
    drop()
    assert snapshots(daemon) == ["a@t"]
    assert [each["snapshot"] for each in said(daemon, "volume", "show", "b")["dropped"]] == ["s"]
    assert said(daemon, "snapshot", "list", "@g") == []


def test_holds_protect_until_the_last_is_released(daemon: Daemon) -> None:
    daemon.ok("snapshot", "create", "c", "--name", "s")
    daemon.ok("snapshot", "hold", "c@s", "--tag", "backup")
    daemon.ok("snapshot", "hold", "c@s", "--tag", "backup")
    assert daemon.ok("snapshot", "hold", "c@s", "--tag", "audit") == "snapshot c@s is held (audit, backup)\n"
    assert "snapshot c@s is held (audit, backup)" in daemon.refused("snapshot", "delete", "c@s")
    assert "has snapshots that are held: s" in daemon.refused("volume", "delete", "c", "--yes")
    daemon.restart()
    assert "audit, backup" in daemon.ok("snapshot", "list", "c")
    assert "audit, backup" in daemon.ok("snapshot", "show", "c@s")
    daemon.ok("snapshot", "release", "c@s", "--tag", "audit")
    assert "not held by 'audit'" in daemon.refused("snapshot", "release", "c@s", "--tag", "audit")
    daemon.refused("snapshot", "delete", "c@s")
    assert "not held any more" in daemon.ok("snapshot", "release", "c@s", "--tag", "backup")
    daemon.ok("snapshot", "delete", "c@s")


def test_a_whole_is_held_as_a_whole(daemon: Daemon) -> None:
    daemon.ok("snapshot", "create", "@g", "--name", "s")
    daemon.ok("snapshot", "hold", "@g@s", "--tag", "t")
    assert [each["holds"] for each in said(daemon, "snapshot", "list")] == [["t"], ["t"]]
    assert "snapshot @g@s is held (t)" in daemon.refused("snapshot", "delete", "@g@s")
    daemon.ok("snapshot", "release", "@g@s", "--tag", "t")
    daemon.ok("snapshot", "delete", "@g@s")


def test_volumes_that_groups_need_are_not_deleted(daemon: Daemon) -> None:
    daemon.ok("snapshot", "create", "@g", "--name", "s")
    assert "volume a is in group g; `polyvol group leave g a` first" in daemon.refused(
        "volume", "delete", "a", "--yes"
    )
    daemon.ok("group", "leave", "g", "a")
    assert "volume a is in snapshot @g@s" in daemon.refused("volume", "delete", "a", "--yes")
    assert "group g has 1 snapshot; delete what" in daemon.refused("group", "delete", "g")
    daemon.ok("snapshot", "delete", "@g@s")
    daemon.ok("volume", "delete", "a", "--yes")
    daemon.ok("schedule", "add", "@g", "--every", "1h", "--keep", "last=1")
    assert daemon.ok("group", "delete", "g") == "group g deleted, with schedule g-auto\n"
    assert said(daemon, "group", "list") == []
    assert said(daemon, "schedule", "list") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["group", "create", "g"], "group g exists already"),
        (["group", "create", "@x"], "is not allowed"),
        (["group", "create", "h", "nix"], "no volume 'nix'"),
        (["group", "create", "h", "a", "a"], "named twice"),
        (["group", "join", "nix", "a"], "no group 'nix'"),
        (["group", "join", "g", "nix"], "no volume 'nix'"),
        (["group", "leave", "g", "c"], "volume c is not in group g"),
        (["group", "show", "nix"], "no group 'nix'"),
        (["snapshot", "create", "@nix"], "no group 'nix'"),
        (["snapshot", "create", "@empty"], "group empty has no volumes"),
        (["snapshot", "show", "@g@nix"], "no snapshot 'nix' of group g"),
        (["snapshot", "delete", "@g@nix"], "no snapshot 'nix' of group g"),
        (["snapshot", "show", "@g"], "does not name a snapshot"),
        (["snapshot", "hold", "a@nix", "--tag", "t"], "no snapshot 'nix'"),
        (["snapshot", "create", "@g", "--name", "taken"], "snapshot a@taken exists already"),
        (["snapshot", "hold", "a@taken", "--tag", "a b"], "hold name 'a b' is not allowed"),
    ],
)
def test_refused_verbs_change_nothing(daemon: Daemon, arguments: list[str], words: str) -> None:
    daemon.ok("group", "create", "empty")
    daemon.ok("snapshot", "create", "a", "--name", "taken")
    assert words in daemon.refused(*arguments)
    assert snapshots(daemon) == ["a@taken"]
