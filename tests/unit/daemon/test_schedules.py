"""Schedules on a clock of their own: what is due, made up, kept and told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.schedules import verbs as schedules
from polyvol.daemon.service import Service
from polyvol.daemon.types.snapshots import HoldChange
from polyvol.mapping.errors import DeviceNotReady
from polyvol.mapping.records.schedules import Schedule
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.snapshot.retention import Keep, kept, may_go
from polyvol.snapshot.timing import SECOND_NS
from tests.support.proc import wait_until
from tests.support.sim_engine import SimWorld
from tests.unit.conftest import Daemon

START = int(datetime(2026, 11, 23, 0, 0, 30, tzinfo=UTC).timestamp()) * SECOND_NS
MINUTE = 60 * SECOND_NS
GFS = "last=4,hourly=24,daily=7,weekly=4,monthly=12"


class Clock:
    """A wall clock that stands still until it is moved, or set. Threads see both clocks change at once."""

    def __init__(self) -> None:
        self._both = (START, 0)

    @property
    def now(self) -> int:
        return self._both[0]

    @now.setter
    def now(self, now: int) -> None:
        self._both = (now, self._both[1])

    def set(self, nanoseconds: int) -> None:
        """Have it say so much more, or less, though no time goes by."""
        now, was_set = self._both
        self._both = (now + nanoseconds, was_set + nanoseconds)

    def __call__(self) -> int:
        return self.now

    def steady(self) -> int:
        now, was_set = self._both
        return now - was_set


class Timed(Daemon):
    """A daemon with a clock."""

    clock: Clock

    def start(self, *, processors: int = 2) -> None:
        self.service = Service(
            self.state_dir,
            processors=processors,
            engine_module=self.world,
            clock=self.clock,
            steady=self.clock.steady,
        )
        self.service.start()

    def move(self, nanoseconds: int) -> int | None:
        """The clock goes on, and what is due then is run; when something is due next."""
        self.clock.now += nanoseconds
        following = self.service.schedules.run_due()
        self.service.schedules.wait()
        return following

    def set_clock(self, nanoseconds: int) -> int | None:
        """The clock is set forward, or back; no time goes by."""
        self.clock.set(nanoseconds)
        return self.move(0)

    def names(self, volume: str = "v") -> list[str]:
        return [each["name"] for each in self.json("snapshot", "list", volume)]

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def warnings(self) -> list[str]:
        return [each["text"] for each in self.json("status")["events"] if each["level"] == "warning"]


@contextmanager
def timed(directory: Path) -> Iterator[Timed]:
    """A daemon on a clock of its own, with a volume v."""
    world = SimWorld()
    daemon = Timed(directory / "state", world, Service(directory / "state", engine_module=world))
    daemon.clock = world.clock = Clock()
    daemon.start()
    daemon.ok("volume", "create", "v", "--size", "1M")
    yield daemon
    daemon.service.stop()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Timed]:
    with timed(tmp_path) as daemon:
        yield daemon


def test_snapshots_are_taken_when_they_are_due(daemon: Timed) -> None:
    said = daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10")
    assert said == "schedule v-auto: v every 15m, first 2026-11-23 00:15:00 UTC\n"
    assert daemon.move(10 * MINUTE) == START + 14 * MINUTE + 30 * SECOND_NS
    assert daemon.names() == []
    daemon.move(5 * MINUTE)
    assert daemon.names() == ["auto-20261123T001530Z"]
    daemon.move(5 * MINUTE)
    assert len(daemon.names()) == 1
    [shown] = daemon.json("snapshot", "list", "v")
    assert (shown["origin"], shown["schedule"]) == ("schedule", "v-auto")


def test_missed_runs_are_made_up_once(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10")
    daemon.service.stop()
    daemon.clock.now += 600 * MINUTE
    daemon.start()
    daemon.service.schedules.run_due()
    assert len(daemon.names()) == 1
    daemon.move(0)
    assert len(daemon.names()) == 1


def test_a_kill_before_a_run_is_recorded_takes_no_second_snapshot(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10")
    schedules = daemon.service._context.catalog.schedules
    schedule = schedules.find("v-auto")
    assert schedule is not None
    daemon.move(15 * MINUTE)
    schedules.set_ran(schedule.id, schedule.last_ns)  # as if it had not been recorded
    daemon.restart()
    daemon.service.schedules.run_due()
    assert len(daemon.names()) == 1


@pytest.mark.slow
def test_a_thousand_snapshots_leave_what_the_dry_run_promised(daemon: Timed) -> None:
    arguments = ["schedule", "add", "v", "--every", "86s", "--keep", GFS]
    plan = daemon.json(*arguments, "--dry-run", "--ahead", "86400s")
    assert plan["runs"] > 1000
    daemon.ok(*arguments)
    until = daemon.clock.now + 86400 * SECOND_NS
    following = daemon.service.schedules.run_due()
    runs = 0
    while following is not None and following <= until:
        runs += 1
        following = daemon.move(following - daemon.clock.now)
    assert runs == plan["runs"]
    there = [each["created_ns"] for each in daemon.json("snapshot", "list", "v")]
    assert there == [each["instant_ns"] for each in plan["kept"]]
    assert 20 < len(there) < 40


def test_a_plan_changes_nothing_and_counts_what_is_there(daemon: Timed) -> None:
    arguments = ["schedule", "add", "v", "--every", "1h", "--keep", "last=2"]
    daemon.ok(*arguments)
    daemon.move(60 * MINUTE)
    daemon.ok("snapshot", "hold", f"v@{daemon.names()[0]}", "--tag", "keep")
    daemon.ok("schedule", "remove", "v-auto")
    calls = len(daemon.world.calls)
    plan = daemon.json(*arguments, "--dry-run", "--ahead", "5h")
    assert [each["snapshot"] for each in plan["kept"]] == [*daemon.names(), None, None]
    assert len(daemon.world.calls) == calls
    assert daemon.json("schedule", "list") == []
    text = daemon.ok(*arguments, "--dry-run")
    assert "2026-11-23 02:00:00 UTC" in text


@pytest.mark.parametrize(
    ("cron", "keep", "kept"),
    [
        ("0 0 1 1 *", "last=3", 3),
        ("0 0 1 1 *", "last=10", 10),
        ("0 0 29 2 *", "last=2", 2),
        ("0 0 1 */6 *", "last=12", 12),
        ("0 0 1 1 *", "monthly=12", 12),
        ("0 0 1 1 *", "last=2,hourly=4", 4),
    ],
)
def test_a_plan_of_rare_runs_looks_as_far_ahead_as_it_needs(
    daemon: Timed, cron: str, keep: str, kept: int
) -> None:
    plan = daemon.json("schedule", "add", "v", "--cron", cron, "--keep", keep, "--dry-run")
    assert (plan["runs"], len(plan["kept"]), plan["note"]) == (kept + 1, kept, None)


def test_a_plan_that_is_never_full_says_so(daemon: Timed) -> None:
    arguments = ["schedule", "add", "v", "--cron", "0 0 29 2 *", "--keep", "last=30", "--dry-run"]
    plan = daemon.json(*arguments)
    assert plan["runs"] == len(plan["kept"]) == 24
    assert "looked ahead 100 years" in plan["note"]
    assert "note:       looked ahead 100 years" in daemon.ok(*arguments)


def test_what_is_held_as_it_is_about_to_go_stays(daemon: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.ok("schedule", "add", "v", "--every", "1h", "--keep", "last=1")
    daemon.move(60 * MINUTE)
    oldest = daemon.names()[0]
    looked: list[str] = []

    def look(record: SnapshotRecord) -> bool:
        goes = may_go(record)
        if not looked:  # another thread comes in between
            looked.append(record.name)
            daemon.service.groups.hold("v", record.name, HoldChange(tag="mine"))
        return goes

    monkeypatch.setattr(schedules, "may_go", look)
    daemon.move(60 * MINUTE)
    assert looked == [oldest]
    assert daemon.names()[0] == oldest
    assert not daemon.warnings()


def test_what_is_held_or_made_by_hand_is_never_touched(daemon: Timed) -> None:
    daemon.ok("snapshot", "create", "v", "--name", "mine")
    daemon.ok("snapshot", "create", "v", "--name", "timer", "--scheduled")
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=1")
    daemon.move(15 * MINUTE)
    held = daemon.names()[-1]
    daemon.ok("snapshot", "hold", f"v@{held}", "--tag", "audit")
    for _ in range(3):
        daemon.move(15 * MINUTE)
    assert daemon.names() == ["mine", "timer", held, "auto-20261123T010030Z"]
    daemon.ok("snapshot", "release", f"v@{held}", "--tag", "audit")
    daemon.move(15 * MINUTE)
    assert daemon.names() == ["mine", "timer", "auto-20261123T011530Z"]


def test_what_clients_read_stays_until_they_are_gone(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=1")
    daemon.move(15 * MINUTE)
    [first] = daemon.names()
    handle = daemon.service.engine.open(f"v@{first}")
    daemon.move(15 * MINUTE)
    assert len(daemon.names()) == 2
    assert daemon.warnings() == []
    handle.close()
    daemon.move(15 * MINUTE)
    assert len(daemon.names()) == 1


def test_a_failure_is_said_once_and_made_up_and_stops_no_other(daemon: Timed) -> None:
    daemon.ok("volume", "create", "w", "--size", "1M")
    for volume in ("v", "w"):
        daemon.ok("schedule", "add", volume, "--every", "15m", "--keep", "last=10")
    context = daemon.service._context
    context.volume_trouble[context.find_volume("v").id] = "its disk is away"
    daemon.move(15 * MINUTE)
    daemon.move(15 * MINUTE)
    assert (len(daemon.names("v")), len(daemon.names("w"))) == (0, 2)
    [told] = daemon.warnings()
    assert "schedule v-auto could not take its snapshot" in told
    assert "its disk is away" in told
    assert "its disk is away" in daemon.ok("schedule", "list")
    context.volume_trouble.clear()
    daemon.move(MINUTE)
    assert len(daemon.names("v")) == 1
    assert daemon.json("schedule", "show", "v-auto")["error"] is None


def slow_to_fail(daemon: Timed, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """Schedule v-auto, of which each run fails once the event is set; the names of those that were begun."""
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10")
    go, begun = threading.Event(), list[str]()

    def take(schedule: Schedule) -> None:
        begun.append(schedule.name)
        go.wait(60)
        raise DeviceNotReady(name="d", reason="its disk is away")

    monkeypatch.setattr(daemon.service.schedules._taker, "take_of_schedule", take)
    return go, begun


def test_a_run_that_has_just_begun_is_not_said_to_be_late(
    daemon: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun = slow_to_fail(daemon, monkeypatch)
    go.set()
    daemon.move(30 * MINUTE)
    go.clear()
    daemon.clock.now += 2 * MINUTE
    daemon.service.schedules.begin_due()  # it tries again, for the run that was due long ago
    wait_until(lambda: len(begun) == 2, "the second run")
    daemon.service.schedules.begin_due()
    [failed] = daemon.warnings()
    assert "its disk is away" in failed
    daemon.clock.now += 2 * MINUTE
    daemon.service.schedules.begin_due()
    late, again = daemon.warnings(), daemon.json("schedule", "show", "v-auto")["error"]
    assert len(late) == 2
    assert again == "the run before, or this one, has not ended yet"
    go.set()
    daemon.service.schedules.wait()
    daemon.move(2 * MINUTE)
    assert daemon.warnings() == late  # each reason is said once
    assert "its disk is away" in daemon.json("schedule", "show", "v-auto")["error"]


def test_a_run_that_fails_during_a_look_is_not_begun_again(
    daemon: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun = slow_to_fail(daemon, monkeypatch)
    schedules = daemon.service.schedules
    daemon.clock.now += 30 * MINUTE
    schedules.begin_due()
    busy = schedules._workers.busy

    def ends_first(key: int) -> bool:
        go.set()
        schedules.wait()
        return busy(key)

    monkeypatch.setattr(schedules._workers, "busy", ends_first)
    schedules.begin_due()
    schedules.wait()
    assert begun == ["v-auto"]


def test_pause_and_resume(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--cron", "*/15 * * * *", "--keep", "last=10", "--prefix", "q")
    assert daemon.ok("schedule", "pause", "v-q") == "schedule v-q is paused\n"
    daemon.move(60 * MINUTE)
    assert daemon.names() == []
    assert "paused" in daemon.ok("schedule", "list")
    daemon.ok("schedule", "resume", "v-q")
    daemon.move(0)
    assert daemon.names() == []  # missed runs are not made up
    daemon.move(15 * MINUTE)
    assert daemon.names() == ["q-20261123T011530Z"]


def test_a_removed_schedule_leaves_its_snapshots(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10", "--name", "mine")
    daemon.move(15 * MINUTE)
    assert daemon.ok("schedule", "remove", "mine") == "schedule mine removed; 1 snapshot of it left\n"
    daemon.move(15 * MINUTE)
    assert len(daemon.names()) == 1


def test_a_deleted_volume_takes_its_schedules_along(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10")
    daemon.ok("volume", "delete", "v", "--yes")
    assert daemon.json("schedule", "list") == []
    assert daemon.move(60 * MINUTE) is None


def test_a_group_is_scheduled_and_kept_as_a_whole(daemon: Timed) -> None:
    daemon.ok("volume", "create", "w", "--size", "1M")
    daemon.ok("group", "create", "g", "v", "w")
    daemon.ok("schedule", "add", "@g", "--every", "15m", "--keep", "last=2")
    for _ in range(3):
        daemon.move(15 * MINUTE)
    wholes = daemon.json("snapshot", "list", "@g")
    assert [each["name"] for each in wholes] == ["auto-20261123T003030Z", "auto-20261123T004530Z"]
    assert daemon.names("v") == daemon.names("w") == [each["name"] for each in wholes]
    assert daemon.json("schedule", "show", "g-auto")["count"] == 2
    assert daemon.ok("group", "show", "g").count("g-auto") == 1


def test_a_schedule_shows_what_keeps_each_snapshot(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "30m", "--keep", "last=1,hourly=2")
    for _ in range(4):
        daemon.move(30 * MINUTE)
    shown = daemon.json("schedule", "show", "v-auto")["snapshots"]
    assert [each["kept_by"] for each in shown] == [["hourly"], ["last", "hourly"]]
    instants = [each["instant_ns"] for each in shown]
    assert sorted(kept(instants, Keep(last=1, hourly=2), instants[-1])) == [0, 1]
    assert "last, hourly" in daemon.ok("schedule", "show", "v-auto")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nix", "--every", "15m"], "no volume 'nix'"),
        (["@nix", "--every", "15m"], "no group 'nix'"),
        (["v", "--every", "0s"], "an interval of 0 s"),
        (["v", "--every", "400d"], "an interval of"),
        (["v", "--cron", "0 0 30 2 *"], "its field day of the month has no value"),
        (["v", "--cron", "61 0 * * *"], "is not right: its field minute has no value"),
        (["v", "--cron", "x"], "has 1 field: give five"),
        (["v", "--cron", "0 0 0 1 1 *"], "has 6 fields: give five"),
        (["v", "--every", "15m", "--prefix", "a/b"], "is not allowed"),
        (["v", "--every", "15m", "--prefix", "a" * 41], "longer than 40"),
        (["v", "--every", "15m", "--name", "-x"], "is not allowed"),
        (["v", "--every", "1s", "--dry-run", "--ahead", "100d"], "ask for less"),
        (["v", "--every", "1h", "--dry-run", "--ahead", "99999w"], "give up to 36600 days"),
    ],
)
def test_what_is_no_schedule_is_refused(daemon: Timed, arguments: list[str], words: str) -> None:
    assert words in daemon.refused("schedule", "add", *arguments, "--keep", "last=1")
    assert daemon.json("schedule", "list") == []


@pytest.mark.parametrize("arguments", [[], ["--every", "15m", "--cron", "* * * * *"]])
def test_a_schedule_needs_one_timing(daemon: Timed, arguments: list[str]) -> None:
    result = daemon.run("schedule", "add", "v", *arguments, "--keep", "last=1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("give either --every or --cron; `")
    every_s = 900 if arguments else None
    cron = "* * * * *" if arguments else None
    body = {"target": "v", "every_s": every_s, "cron": cron, "keep": {"last": 1}}
    with pytest.raises(ApiError, match="either an interval or a cron expression"):
        Client(daemon.state_dir).post("schedules", body=body)


def test_names_of_schedules(daemon: Timed) -> None:
    for _ in range(2):
        daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=1")
    assert [each["name"] for each in daemon.json("schedule", "list")] == ["v-auto", "v-auto-2"]
    arguments = ["schedule", "add", "v", "--every", "15m", "--keep", "last=1", "--name", "v-auto"]
    assert "schedule v-auto exists already" in daemon.refused(*arguments)
    assert "no schedule 'nix'" in daemon.refused("schedule", "show", "nix")
    assert "no schedule 'nix'" in daemon.refused("schedule", "pause", "nix")


def test_a_stop_does_not_wait_for_the_next_run(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "1h", "--keep", "last=1")
    ended = threading.Thread(target=daemon.service.stop)
    ended.start()
    ended.join(10)
    assert not ended.is_alive()
    daemon.start()
