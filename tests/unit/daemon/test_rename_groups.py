"""Renames of groups, their snapshots and schedules; and of what is in use by a snapshot under way."""

import threading

import pytest

from tests.support.proc import wait_until
from tests.unit.conftest import Daemon
from tests.unit.daemon.test_renames import add_schedule, exports, said

# Groups


def test_a_snapshot_of_a_group_is_renamed_in_all_its_volumes(grouped: Daemon) -> None:
    grouped.ok("group", "leave", "g", "b")
    grouped.ok("snapshot", "hold", "@g@s", "--tag", "x")
    handle = grouped.service.engine.open("b@s")
    assert "snapshot @g@s is in use by 1 client" in grouped.refused("snapshot", "rename", "@g@s", "t")
    handle.close()
    assert exports(grouped) == {"a", "b", "a@s", "b@s"}
    assert grouped.ok("snapshot", "rename", "@g@s", "@g@t") == (
        "snapshot @g@s was renamed to @g@t, with 2 snapshots\n"
    )
    for _ in range(2):
        assert exports(grouped) == {"a", "b", "a@t", "b@t"}
        assert said(grouped, "group", "show", "g")["snapshots"] == ["t"]
        assert said(grouped, "snapshot", "show", "b@t")["whole"] == "@g@t"
        grouped.restart()
    grouped.ok("snapshot", "create", "@g", "--name", "s")
    grouped.ok("snapshot", "rollback", "@g@t", "--no-safety")


def test_a_name_of_a_group_s_other_snapshot_is_taken_even_if_no_volume_has_it(grouped: Daemon) -> None:
    grouped.ok("volume", "create", "c", "--size", "1M")
    grouped.ok("group", "leave", "g", "a", "b")
    grouped.ok("group", "join", "g", "c")
    grouped.ok("snapshot", "create", "@g", "--name", "t")
    assert "snapshot @g@t exists already" in grouped.refused("snapshot", "rename", "@g@s", "t")


def test_a_group_is_renamed_with_its_snapshots_and_schedules(grouped: Daemon) -> None:
    grouped.ok("schedule", "add", "@g", "--every", "1d", "--keep", "last=2", "--name", "daily")
    handle = grouped.service.engine.open("a@s")  # no export changes its name
    assert grouped.ok("group", "rename", "g", "h") == "group g was renamed to h\n"
    handle.close()
    grouped.ok("group", "create", "g", "a")
    for _ in range(2):
        shown = said(grouped, "group", "show", "h")
        assert (shown["volumes"], shown["snapshots"], shown["schedules"]) == (["a", "b"], ["s"], ["daily"])
        assert said(grouped, "schedule", "show", "daily")["target"] == "@h"
        assert said(grouped, "snapshot", "show", "a@s")["whole"] == "@h@s"
        assert said(grouped, "group", "show", "g")["snapshots"] == []
        grouped.restart()
    grouped.ok("snapshot", "delete", "@h@s")


# Schedules


def run_schedule(daemon: Daemon, name: str) -> None:
    service = daemon.service
    schedule = service._context.catalog.schedules.find(name)
    assert schedule is not None
    service._taker.take_of_schedule(schedule)
    service._schedules._retain(schedule)


def count(daemon: Daemon, name: str) -> int:
    found: int = said(daemon, "schedule", "show", name)["count"]
    return found


@pytest.mark.parametrize("target", ["a", "@g"])
def test_a_schedule_keeps_its_snapshots_and_its_retention(grouped: Daemon, target: str) -> None:
    add_schedule(grouped, target=target)
    run_schedule(grouped, "daily")
    grouped.ok("schedule", "rename", "daily", "nightly")
    assert count(grouped, "nightly") == 1
    grouped.restart()
    add_schedule(grouped, target=target)  # one that has the old name has nothing of it
    assert (count(grouped, "daily"), count(grouped, "nightly")) == (0, 1)
    run_schedule(grouped, "nightly")
    run_schedule(grouped, "daily")
    assert (count(grouped, "daily"), count(grouped, "nightly")) == (1, 1)  # last=1 deleted one


@pytest.mark.parametrize("target", ["a", "@g"])
def test_a_schedule_does_not_get_the_snapshots_of_an_earlier_one(grouped: Daemon, target: str) -> None:
    add_schedule(grouped, "old", target)
    run_schedule(grouped, "old")
    grouped.ok("schedule", "remove", "old")
    add_schedule(grouped, target=target)
    assert "an earlier schedule old has left snapshots" in grouped.refused(
        "schedule", "rename", "daily", "old"
    )
    grouped.ok("volume", "create", "c", "--size", "1M")
    add_schedule(grouped, "other", "c")  # which has none of them
    grouped.ok("schedule", "rename", "other", "old")
    assert count(grouped, "old") == 0


# What is under way


def test_a_rename_waits_for_what_is_under_way_with_the_old_name(
    grouped: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a cut is recorded, its volume, group and schedule keep their names."""
    add_schedule(grouped, target="@g")
    grouped.service._context.locks.wait_s = 0.05
    gate = grouped.world.hold["settle"] = threading.Event()
    thread = threading.Thread(target=run_schedule, args=(grouped, "daily"))
    thread.start()
    try:
        wait_until(lambda: "settle" in grouped.world.names()[-1:], "the cut", 10)
        for arguments in (("volume", "a", "c"), ("group", "g", "h"), ("schedule", "daily", "x")):
            text = grouped.refused(arguments[0], "rename", *arguments[1:])
            assert "has been busy with snapshot create" in text
    finally:
        gate.set()
        thread.join(20)
    grouped.world.hold.clear()
    assert count(grouped, "daily") == 1
