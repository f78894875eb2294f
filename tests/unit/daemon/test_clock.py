"""Clocks that are set: schedules, retention, scrubs, names and what is said, on clocks of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvol.daemon.schedules.due_times import DueTimes
from polyvol.daemon.volumes.scrub import WEEK_NS
from polyvol.mapping.clock import INSTANT_NS_MAX, JumpWatch, in_range, steady_ns, wall_ns
from polyvol.mapping.ids import VolumeId
from polyvol.snapshot.timing import SECOND_NS, Timing
from tests.support.proc import wait_until
from tests.unit.daemon.test_schedules import MINUTE, START, Clock, Timed, timed

DAY = 24 * 60 * MINUTE


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Timed]:
    with timed(tmp_path) as daemon:
        yield daemon


def noted(daemon: Timed) -> str:
    """What `status` notes; the volume was made by the real clock."""
    return " ".join(daemon.json("status")["notes"])


def test_what_was_taken_while_the_clock_was_ahead_does_not_displace_what_comes_after(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "10s", "--keep", "last=3", "--name", "a")
    daemon.set_clock(DAY)
    for _ in range(4):
        daemon.move(10 * SECOND_NS)
    ahead = daemon.names()
    assert len(ahead) == 3
    daemon.set_clock(-DAY)
    assert "3 snapshots" in noted(daemon)
    assert "in the future" in daemon.ok("snapshot", "list", "v")
    assert "(in the future)" in daemon.ok("snapshot", "show", f"v@{ahead[0]}")
    assert "(in the future)" in daemon.ok("schedule", "show", "a")
    for left in (ahead[1:], ahead[2:], []):
        daemon.move(10 * SECOND_NS)
        names = daemon.names()
        assert names[: len(left)] == left
        assert all(name.startswith("auto-20261123") for name in names[len(left) :])
        assert len(names) == 3
    assert "snapshot" not in noted(daemon)
    told = [each for each in daemon.warnings() if "the clock was set" in each]
    assert [" forward by 24 h" in told[0], " back by 24 h" in told[1], len(told)] == [True, True, 2]


@pytest.mark.parametrize("jump", [DAY, -DAY, 400 * DAY, -30 * DAY, 7 * MINUTE, -7 * MINUTE])
def test_an_interval_goes_on_by_the_steady_clock(daemon: Timed, jump: int) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=100")
    daemon.move(15 * MINUTE)
    daemon.move(5 * MINUTE)
    daemon.set_clock(jump)
    for _ in range(3):
        daemon.move(0)
    assert len(daemon.names()) == 1, "no burst"
    daemon.move(10 * MINUTE)
    assert len(daemon.names()) == 2, "it is not late"
    daemon.move(15 * MINUTE)
    assert len(daemon.names()) == 3


def test_a_cron_expression_follows_the_wall_clock(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--cron", "30 2 * * *", "--keep", "last=100")
    daemon.move(150 * MINUTE)
    assert len(daemon.names()) == 1
    daemon.set_clock(3 * DAY)
    for _ in range(3):
        daemon.move(MINUTE)
    assert len(daemon.names()) == 2, "what was skipped is made up once"
    daemon.set_clock(-10 * DAY)
    assert len(daemon.names()) == 2
    following = daemon.move(0)
    assert following is not None
    assert following - daemon.clock.now <= DAY, "it waits for no time that has been"
    daemon.move(following - daemon.clock.now)
    assert len(daemon.names()) == 3


def test_a_last_run_in_the_future_is_said_and_not_believed(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10")
    daemon.set_clock(30 * DAY)
    daemon.move(15 * MINUTE)
    daemon.service.stop()
    daemon.clock.now = START + 20 * MINUTE
    daemon.start()
    daemon.service.schedules.run_due()
    assert len(daemon.names()) == 1
    assert any("schedule v-auto: what it says to have done until" in each for each in daemon.warnings())
    assert "lies in the future" in daemon.ok("schedule", "list")
    assert "lies in the future" in daemon.json("schedule", "show", "v-auto")["note"]
    assert "1 schedule" in noted(daemon)
    daemon.move(10 * MINUTE)
    assert len(daemon.names()) == 2, "due at the next regular time"
    assert daemon.json("schedule", "show", "v-auto")["note"] is None


def test_a_clock_that_is_behind_at_the_start_and_set_right_later(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "1d", "--keep", "last=10")
    daemon.move(DAY)
    daemon.service.stop()
    daemon.clock.now = 5 * SECOND_NS  # 1970
    daemon.start()
    daemon.service.schedules.run_due()
    assert len(daemon.names()) == 1
    daemon.set_clock(START + 2 * DAY - daemon.clock.now)
    assert len(daemon.names()) == 2, "what was missed is made up"
    daemon.move(MINUTE)
    assert len(daemon.names()) == 2


def test_a_name_that_comes_again_gets_a_number(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10")
    daemon.move(15 * MINUTE)
    daemon.set_clock(-15 * MINUTE)
    daemon.move(15 * MINUTE)
    [first, second] = daemon.names()
    assert second == f"{first}-2"
    made = json.loads(daemon.ok("snapshot", "create", "v", "--scheduled", "--prefix", "auto", "--json"))
    assert made[0]["name"] == f"{first}-3"
    assert daemon.warnings()[-1].startswith("the clock was set back by 15 min")


def test_pausing_while_the_clock_is_ahead_does_not_stop_it_for_long(daemon: Timed) -> None:
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10")
    daemon.set_clock(300 * DAY)
    daemon.ok("schedule", "pause", "v-auto")
    daemon.set_clock(-300 * DAY)
    daemon.ok("schedule", "resume", "v-auto")
    daemon.move(15 * MINUTE)
    assert len(daemon.names()) == 1


def test_a_scrub_and_a_volume_of_the_future_are_due_and_that_is_said(daemon: Timed) -> None:
    daemon.ok("scrub", "v")
    scrubs = daemon.service._context.catalog.scrubs
    _, result = scrubs.last(VolumeId(1)) or (0, "")
    scrubs.keep(VolumeId(1), daemon.clock.now + 3650 * DAY, result)
    daemon.service.stop()
    daemon.start()
    assert "1 scrub" in noted(daemon)
    daemon.ok("scrub", "--weekly", "on")
    wait_until(lambda: "1 scrub" not in noted(daemon), "a scrub")
    [told] = [each for each in daemon.warnings() if "the last scrub of volume v at 2036-" in each]
    assert "lies in the future" in told
    assert daemon.service.scrubs.due() is None


def test_setting_the_clock_makes_no_scrub_due_and_none_late(daemon: Timed) -> None:
    daemon.ok("scrub", "v")
    daemon.ok("scrub", "--weekly", "on")
    scrubs = daemon.service.scrubs
    assert scrubs.due() is None
    for jump in (400 * DAY, -800 * DAY):
        daemon.set_clock(jump)
        assert scrubs.due() is None
    daemon.clock.now += WEEK_NS - MINUTE
    assert scrubs.due() is None
    daemon.clock.now += 2 * MINUTE
    assert scrubs.due() is not None


def test_a_clock_before_1970_or_after_2262_is_lived_with(daemon: Timed) -> None:
    assert [in_range(each) for each in (-1, 5, 1 << 70)] == [0, 5, INSTANT_NS_MAX]
    daemon.ok("schedule", "add", "v", "--every", "15m", "--keep", "last=10,daily=2")
    for absurd in (0, INSTANT_NS_MAX, START):
        daemon.clock.set(absurd - daemon.clock.now)
        daemon.ok("snapshot", "create", "v", "--scheduled")
        daemon.service.schedules.run_due()
        daemon.ok("snapshot", "list", "v")
        daemon.ok("schedule", "show", "v-auto")
        daemon.ok("status")


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_run_between_the_setting_of_the_clock_and_the_look_at_it_is_followed_by_the_next(jump: int) -> None:
    clock = Clock()
    dues = DueTimes(clock, clock.steady)
    every = Timing(every_s=10)
    dues.done(1, every)
    clock.set(jump)
    following = dues.done(1, every)  # what the schedule's thread does if it has read the clock before
    assert following == START + jump + 10 * SECOND_NS
    assert [dues.look(), dues.look()] == [jump, 0]
    assert dues.due(1) == following


def test_a_jump_is_seen_once_and_drift_never() -> None:
    clock = Clock()
    watch = JumpWatch(clock, clock.steady)
    for _ in range(20):
        clock.now += 10 * SECOND_NS - SECOND_NS // 10
        clock.set(SECOND_NS // 10)  # NTP
        assert watch.look() == (0, clock.now)
    clock.set(-MINUTE)
    assert [watch.look()[0], watch.look()[0]] == [-MINUTE, 0]
    assert wall_ns() > START
    assert steady_ns() <= steady_ns()
