"""Devices that fail or are missing: what is shown of them, and how they are brought back."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from polyvol.daemon.devices.health import fault_clause
from polyvol.daemon.errors import EngineFailed
from tests.unit.conftest import Daemon

if TYPE_CHECKING:
    from polyvol.engine import DeviceFaultStats

SECOND = 1_000_000_000


def fault(call: str = "reading", times: int = 1) -> "DeviceFaultStats":
    first = 1_800_000_000 * SECOND
    last = first + (times - 1) * SECOND
    return {
        "call": call,
        "errno": 5,
        "offset": 4096,
        "first_ns": first,
        "last_ns": last,
        "times": times,
        "short": None,
    }


@pytest.fixture
def degraded(daemon: Daemon, tmp_path: Path) -> Daemon:
    """A daemon with a volume on two devices, of which the second has failed."""
    for name in ("a", "b"):
        daemon.ok("device", "add", str(tmp_path / name), "--size", "8M")
    daemon.ok(
        "volume", "create", "v", "--size", "2M", "--partition-size", "1M", "--device", "a", "--device", "b"
    )
    daemon.world.faults[2] = fault(times=3)
    return daemon


def test_a_fault_is_told_in_words() -> None:
    assert fault_clause(fault()) == (
        "reading at 4096 failed: input/output error (once since 2027-01-15T08:00:00Z)"
    )
    assert fault_clause(fault("syncing", 2)) == (
        "syncing failed: input/output error (2 times since 2027-01-15T08:00:00Z, last"
        " 2027-01-15T08:00:01Z); what was written to it and not flushed may be lost"
    )


def test_a_device_that_does_not_answer_is_hung_and_nothing_is_placed_on_it(degraded: Daemon) -> None:
    degraded.world.faults.clear()
    degraded.world.silent[2] = 7.3
    shown = json.loads(degraded.ok("device", "show", "b", "--json"))
    assert (shown["state"], shown["reason"]) == (
        "hung",
        "it has not answered for 7 s; requests end with EIO after 60 s",
    )
    assert "device b is hung" in degraded.ok("volume", "show", "v")
    assert "has not answered" in degraded.refused("volume", "create", "w", "--size", "1M", "--device", "b")
    degraded.world.silent.clear()
    assert json.loads(degraded.ok("device", "show", "b", "--json"))["state"] == "ok"


def test_a_device_that_was_short_waits_for_a_retry(degraded: Daemon, tmp_path: Path) -> None:
    degraded.world.faults[2] = {**fault(), "short": (4096, 8 << 20)}
    said = "it was found with 4 KiB and must have 8 MiB: what lay beyond is lost"
    assert json.loads(degraded.ok("device", "show", "b", "--json"))["reason"].startswith(said)
    assert said in degraded.refused("volume", "create", "w", "--size", "1M", "--device", "b")
    assert degraded.service.device_found(tmp_path / "b") is None
    degraded.service.devices.shrunk.note()
    degraded.service.devices.shrunk.note()
    told = [event["text"] for event in json.loads(degraded.ok("status", "--json"))["events"]]
    assert sum(said in text for text in told) == 1
    degraded.world.faults.clear()
    degraded.restart()  # its file is as long as it ever was
    assert json.loads(degraded.ok("device", "show", "b", "--json"))["state"] == "missing"
    degraded.service.reload()
    assert degraded.service.device_found(tmp_path / "b") is None
    assert degraded.service.disk_came(tmp_path / "b") is None
    assert said in json.loads(degraded.ok("device", "show", "b", "--json"))["reason"]
    degraded.ok("device", "retry", "b")
    degraded.restart()
    assert json.loads(degraded.ok("device", "show", "b", "--json"))["state"] == "ok"
    assert degraded.service.devices.shrunk.clause(degraded.service._context.find_device("b")) is None


def test_a_faulty_device_is_shown_with_what_it_is_needed_for(degraded: Daemon) -> None:
    shown = json.loads(degraded.ok("device", "show", "b", "--json"))
    assert (shown["state"], shown["reason"][:35]) == ("faulty", "reading at 4096 failed: input/outpu")
    assert json.loads(degraded.ok("device", "show", "a", "--json"))["state"] == "ok"
    volume = json.loads(degraded.ok("volume", "show", "v", "--partitions", "--json"))
    assert volume["state"] == "degraded"
    assert volume["reason"].startswith(
        "device b is faulty: reading at 4096 failed: input/output error (3 times"
    )
    assert volume["reason"].endswith("(1 of 2 partitions faulty)")
    assert [part["state"] for part in volume["partitions"]] == ["ok", "faulty"]
    assert volume["partitions"][1]["reason"].startswith("device b is faulty: reading")
    assert "faulty" in degraded.ok("status")
    assert "faulty" in degraded.ok("volume", "show", "v", "--partitions")


def test_a_retry_brings_a_device_back_without_a_restart(degraded: Daemon, tmp_path: Path) -> None:
    assert degraded.ok("device", "retry", "b") == f"device b is back: {tmp_path / 'b'}\n"
    assert json.loads(degraded.ok("volume", "show", "v", "--json"))["state"] == "serving"
    assert degraded.world.names().count("open_device") == 4, "it was not closed"


def test_a_retry_that_fails_says_what_is_still_wrong(degraded: Daemon) -> None:
    degraded.world.stays_faulty.add(2)
    assert "reopened and is still faulty: reading at 4096" in degraded.refused("device", "retry", "b")
    degraded.world.fail["reopen_device"] = 0
    assert "opening device b again failed" in degraded.refused("device", "retry", "b")
    assert "no device" in degraded.refused("device", "retry", "nix")


def test_a_retry_at_another_path_takes_only_that_device(degraded: Daemon, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(bytes(1 << 20))
    assert "carries no label" in degraded.refused("device", "retry", "b", "--path", str(tmp_path / "c"))
    words = degraded.refused("device", "retry", "b", "--path", str(tmp_path / "a"))
    assert f"{tmp_path / 'a'} is device a already" in words
    assert "does not exist" in degraded.refused("device", "retry", "b", "--path", str(tmp_path / "nix"))
    assert "reopen_device" not in degraded.world.names()
    (tmp_path / "b").rename(tmp_path / "moved")
    assert "does not exist" in degraded.refused("device", "retry", "b")
    degraded.ok("device", "retry", "b", "--path", str(tmp_path / "moved"))
    degraded.restart()
    assert json.loads(degraded.ok("device", "show", "b", "--json"))["path"] == str(tmp_path / "moved")
    assert json.loads(degraded.ok("volume", "show", "v", "--json"))["state"] == "serving"


def test_a_copy_of_a_device_is_refused_by_its_label(degraded: Daemon, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes((tmp_path / "a").read_bytes())
    words = degraded.refused("device", "retry", "b", "--path", str(tmp_path / "c"))
    assert "label" in words


def test_what_is_in_doubt_on_a_missing_device_is_known_from_how_the_last_run_ended(
    degraded: Daemon, tmp_path: Path
) -> None:
    degraded.service.stop()
    (tmp_path / "b").rename(tmp_path / "gone")
    degraded.start()
    assert ("absent_device", 2, True) in degraded.world.calls
    degraded.world.fail["stop"] = 0  # nothing is made durable
    with pytest.raises(EngineFailed):
        degraded.service.stop()
    degraded.world.fail.clear()
    degraded.start()
    assert degraded.world.calls.count(("absent_device", 2, False)) == 1
    (tmp_path / "gone").rename(tmp_path / "b")
    degraded.ok("device", "retry", "b")
    assert json.loads(degraded.ok("volume", "show", "v", "--json"))["state"] == "serving"


def test_a_disk_that_appears_is_known_by_its_label(degraded: Daemon, tmp_path: Path) -> None:
    service = degraded.service
    assert service.device_found(tmp_path / "a") is None, "it works where it is"
    assert service.device_found(tmp_path / "nowhere") is None
    (tmp_path / "c").write_bytes(bytes(1 << 20))
    assert service.device_found(tmp_path / "c") is None
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    view = service.device_found(tmp_path / "elsewhere")
    assert view is not None
    assert (view.name, view.state, view.path) == ("b", "ok", str(tmp_path / "elsewhere"))
