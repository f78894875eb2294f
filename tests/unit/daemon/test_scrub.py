"""Scrubs: started, watched, stopped, kept, and done once a week; and what is shown of bad blocks."""

import json
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from polyvol.daemon.volumes.scrub import WEEK_NS, Scrubs
from polyvol.mapping.clock import steady_ns
from polyvol.mapping.ids import VolumeId
from tests.unit.conftest import Daemon

if TYPE_CHECKING:
    from polyvol.engine import ScrubReport

BAD: "ScrubReport" = {
    "next": None,
    "bytes": 4096,
    "skipped_bytes": 8192,
    "bad": [
        {"block": 3, "device": 2, "errno": 0, "live": True, "epochs": [1]},
        {"block": 4, "device": 2, "errno": 5, "live": False, "epochs": [1]},
    ],
}


@pytest.fixture
def volume(daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with a volume of two partitions and a snapshot."""
    daemon.ok("volume", "create", "v", "--size", "2M", "--partition-size", "1M", "--processors", "1")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    yield daemon
    for held in daemon.world.hold.values():
        held.set()


def scrubs(daemon: Daemon) -> Scrubs:
    return daemon.service.scrubs


def ended(daemon: Daemon) -> dict[str, object]:
    end = time.monotonic() + 10
    while True:
        view = daemon.service.scrubs.show("v")
        if view.state != "running":
            return {"state": view.state, "reason": view.reason, "bad": view.bad_blocks}
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_clean_scrub_says_so_and_is_shown_with_the_volume(volume: Daemon) -> None:
    assert "has not been scrubbed yet" in volume.refused("scrub", "v", "--stop")
    assert volume.ok("scrub", "v") == "scrub of volume v done: 8 KiB read, 0 bad blocks\n"
    asked = [call[1:] for call in volume.world.calls if call[0] == "scrub"]
    assert asked == [(1, 0, (0, 0)), (1, 1, (0, 0))]
    volume.restart()
    shown = json.loads(volume.ok("volume", "show", "v", "--json"))
    assert (shown["last_scrub"]["state"], shown["last_scrub"]["done"]) == ("done", 8192)
    assert "last scrub:" in volume.ok("volume", "show", "v")


def test_a_scrub_that_finds_something_says_what_and_who_sees_it(volume: Daemon) -> None:
    volume.world.scrubs[1, 1] = BAD
    result = volume.run("scrub", "v")
    assert result.exit_code == 1
    assert "8 KiB read, 8 KiB on missing devices left out, 2 bad blocks" in result.stdout
    assert "v, v@s" in result.stdout
    assert "its checksum does not match" in result.stdout
    assert "input/output error" in result.stdout
    view = json.loads(volume.run("scrub", "v", "--json").stdout)
    assert [(bad["partition"], bad["block"], bad["seen_by"]) for bad in view["bad"]] == [
        (1, 3, ["v", "v@s"]),
        (1, 4, ["v@s"]),
    ]
    assert "2 bad blocks" in volume.ok("volume", "show", "v")


def test_a_scrub_is_one_at_a_time_and_can_be_stopped(volume: Daemon) -> None:
    volume.world.hold["scrub"] = threading.Event()
    scrubs(volume).begin("v", 64 << 20)
    assert "is being scrubbed already" in volume.refused("scrub", "v")
    stopping = threading.Timer(0.1, volume.world.hold["scrub"].set)
    volume.world.scrubs[1, 0] = {"next": (1, 0), "bytes": 4096, "skipped_bytes": 0, "bad": []}
    stopping.start()
    assert "scrub of volume v stopped" in volume.ok("scrub", "v", "--stop")
    assert json.loads(volume.ok("volume", "show", "v", "--json"))["last_scrub"] is None
    volume.world.scrubs.clear()
    volume.ok("scrub", "v")


def test_a_scrub_keeps_to_its_rate(volume: Daemon) -> None:
    volume.world.scrubs[1, 0] = {"next": None, "bytes": 32 << 10, "skipped_bytes": 0, "bad": []}
    start = time.monotonic()
    volume.ok("scrub", "v", "--rate", "64K")
    assert time.monotonic() - start > 0.45
    refused = volume.run("scrub", "v", "--rate", "1K")
    assert refused.exit_code == 2
    assert "not from 64 KiB" in refused.stderr


def test_a_scrub_that_cannot_go_on_says_why(volume: Daemon) -> None:
    volume.world.fail["scrub"] = 0
    result = volume.run("scrub", "v")
    assert (result.exit_code, "failed" in result.stdout) == (1, True)
    assert "reason: simulated failure of scrub" in result.stdout


def test_a_stop_of_the_daemon_ends_a_scrub(volume: Daemon) -> None:
    volume.world.scrubs[1, 0] = {"next": (1, 0), "bytes": 4096, "skipped_bytes": 0, "bad": []}
    scrubs(volume).begin("v", 64 << 10)
    start = time.monotonic()
    volume.service.stop()
    assert time.monotonic() - start < 5


def test_a_stop_while_a_scrub_begins_waits_until_it_has_begun(
    volume: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.world.scrubs[1, 0] = {"next": (1, 0), "bytes": 4096, "skipped_bytes": 0, "bad": []}
    start = threading.Thread.start
    failed: list[BaseException] = []

    def stop() -> None:
        try:
            scrubs(volume).stop()
        except RuntimeError as error:
            failed.append(error)

    stopping = threading.Thread(target=stop)

    def started(thread: threading.Thread) -> None:
        if thread.name == "polyvol-scrub":
            start(stopping)
            stopping.join(0.3)  # as far as it comes before the thread is started
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    scrubs(volume).begin("v", 64 << 10)
    stopping.join(10)
    assert not stopping.is_alive()
    assert failed == []


def test_weekly_scrubs_are_due_a_week_after_the_last(volume: Daemon) -> None:
    def due(later_ns: int) -> str | None:
        volume.service._context.steady = lambda: steady_ns() + later_ns
        found = scrubs(volume).due()
        return None if found is None else found.name

    assert due(2 * WEEK_NS) is None, "off"
    assert volume.ok("scrub", "--weekly", "on") == "weekly scrubs are on\n"
    volume.restart()
    assert due(0) is None
    assert due(WEEK_NS) == "v"
    volume.ok("scrub", "v")
    assert due(WEEK_NS - 60_000_000_000) is None
    assert due(2 * WEEK_NS) == "v"
    assert json.loads(volume.ok("scrub", "--weekly", "off", "--json")) == {"weekly": False}
    assert due(9 * WEEK_NS) is None


def test_a_missed_scrub_is_made_up_for_after_a_start(volume: Daemon) -> None:
    volume.ok("scrub", "v")
    volume.ok("scrub", "--weekly", "on")
    scrubs = volume.service._context.catalog.scrubs
    _, result = scrubs.last(VolumeId(1)) or (0, "")
    scrubs.keep(VolumeId(1), time.time_ns() - WEEK_NS - 1, result)
    before = volume.world.names().count("scrub")
    volume.restart()
    assert ended(volume) == {"state": "done", "reason": None, "bad": 0}
    end = time.monotonic() + 10
    while volume.world.names().count("scrub") < before + 2:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_bad_blocks_degrade_a_volume(volume: Daemon) -> None:
    when = 1_800_000_000_000_000_000
    volume.world.bad_blocks[1] = [
        {"partition": 1, "block": 7, "device": 2, "first_ns": when, "last_ns": when, "times": 2}
    ]
    shown = json.loads(volume.ok("volume", "show", "v", "--json"))
    assert (shown["state"], shown["bad_blocks"][0]["block"]) == ("degraded", 7)
    assert shown["reason"] == (
        "1 block does not match its checksum (partition 1 block 7 on device v.log,"
        " found 2027-01-15T08:00:00Z)"
    )
    assert "degraded" in volume.ok("status")
    assert "BAD BLOCK" in volume.ok("volume", "show", "v")


def test_what_makes_no_sense_is_refused(volume: Daemon) -> None:
    for arguments in (["scrub"], ["scrub", "v", "--weekly", "on"], ["scrub", "v", "--weekly", "maybe"]):
        assert volume.run(*arguments).exit_code == 2
    assert "no volume" in volume.refused("scrub", "nix")
