"""test_log_growth: log areas grow of free room on their devices, within a limit, before writes are refused.

How it works      A volume of 128 MiB with a log area of the same size on a device with much room. A snapshot
                  is taken, all of the volume is overwritten, so that the log area is full of live data whose
                  base places the snapshot needs, and a second snapshot is taken. Relocation can give nothing
                  back, so each further write needs more room.
"""

import errno
import random
from typing import Any

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

MIB = 1 << 20
SIZE = 128 * MIB
BLOCK = 4096


def make(daemon: Daemon, *options: str, device: str = "512M") -> None:
    """The volume, with both snapshots and a full log area. It is filled before the limit is set."""
    daemon.add_devices("fast", size=device)
    daemon.ok("volume", "create", "v", "--size", str(SIZE), "--log-device", "fast", "--log-limit", "none")
    with nbd.connect(daemon.uri("v")) as host:
        fill(host, 1)
        daemon.ok("snapshot", "create", "v", "--name", "old")
        fill(host, 2)
        host.flush()
    daemon.ok("snapshot", "create", "v", "--name", "new")
    assert space(daemon)["free"] == 0
    if options:
        daemon.ok("volume", "set", "v", *options)


def fill(host: Any, value: int, size: int = SIZE) -> None:
    for offset in range(0, size, MIB):
        host.pwrite(bytes([value]) * MIB, offset)


def scattered(daemon: Daemon, count: int, value: int = 3) -> int:
    """Write single blocks here and there: how many were refused because no space is left."""
    refused = 0
    with nbd.connect(daemon.uri("v")) as host:
        for block in random.Random(value).sample(range(SIZE // BLOCK), count):
            try:
                host.pwrite(bytes([value]) * BLOCK, block * BLOCK)
            except nbd.NbdError as error:
                if error.errnum != errno.ENOSPC:
                    raise
                refused += 1
    return refused


def space(daemon: Daemon) -> dict[str, int]:
    found: dict[str, int] = daemon.json("volume", "show", "v")["space"]
    return found


def told(daemon: Daemon, words: str) -> list[str]:
    return [each["text"] for each in daemon.json("status")["events"] if words in each["text"]]


def shows(daemon: Daemon, export: str) -> set[int]:
    """The bytes that the blocks of an export are filled with."""
    with nbd.connect(daemon.uri(export)) as host:
        return {byte for offset in range(0, SIZE, MIB) for byte in host.pread(MIB, offset)[::BLOCK]}


def test_no_write_is_refused_while_the_device_of_the_log_has_room(daemon: Daemon) -> None:
    make(daemon, "--log-limit", "auto")
    assert scattered(daemon, 2000) == 0
    assert told(
        daemon, "the log areas of volume v grew by 64 MiB on device fast to 192 MiB, of at most 256 MiB"
    )
    view = daemon.json("volume", "show", "v")
    assert view["log_limit"] == {"bytes": 2 * SIZE, "auto": True}
    assert [each["devices"] for each in view["logs"]] == [["fast"], ["fast"]]
    assert (shows(daemon, "v@old"), shows(daemon, "v@new")) == ({1}, {2})
    assert shows(daemon, "v") == {2, 3}
    daemon.restart()
    assert (shows(daemon, "v@old"), shows(daemon, "v@new"), shows(daemon, "v")) == ({1}, {2}, {2, 3})
    daemon.stop()
    assert "0 problems" in daemon.ok("check", "--data")


@pytest.mark.slow
def test_with_the_limit_none_nothing_grows_and_writes_are_refused(daemon: Daemon) -> None:
    make(daemon)
    assert scattered(daemon, 100) == 100
    assert space(daemon)["size"] == SIZE
    assert told(daemon, "grew") == []
    # What is said helps: snapshots alone hold nothing, so nobody is told that these hold it.
    (said,) = told(daemon, "fail with ENOSPC")
    assert "--log-limit SIZE" in said
    assert "which alone hold" not in said
    daemon.ok("volume", "set", "v", "--log-limit", "192M")
    assert scattered(daemon, 100) == 0, "the new limit is used at once"


@pytest.mark.slow
def test_the_limit_is_never_exceeded(daemon: Daemon) -> None:
    make(daemon, "--log-limit", "200M")
    with nbd.connect(daemon.uri("v")) as host:
        with pytest.raises(nbd.NbdError) as refused:
            fill(host, 3)
        assert refused.value.errnum == errno.ENOSPC
    assert space(daemon)["size"] == 200 * MIB
    assert len(told(daemon, "grew")) >= 2, "by a step, and by what the limit leaves"
    assert (shows(daemon, "v@old"), shows(daemon, "v@new")) == ({1}, {2})
    said = told(daemon, "fail with ENOSPC")[-1]
    assert "--log-limit SIZE` with more than 200 MiB" in said


@pytest.mark.slow
def test_log_areas_grow_before_a_scheduled_snapshot_is_dropped(daemon: Daemon) -> None:
    make(daemon, "--log-limit", "auto")
    daemon.ok("snapshot", "create", "v", "--name", "s", "--scheduled")
    assert scattered(daemon, 2000) == 0
    assert daemon.json("volume", "show", "v")["snapshots"] == ["old", "new", "s"]


@pytest.mark.slow
def test_another_device_is_not_used_where_the_log_rules_forbid_it(daemon: Daemon) -> None:
    make(daemon, "--log-limit", "none", device="130M")  # no room is left on it
    daemon.add_devices("slow", size="512M")
    daemon.ok("volume", "add-log", "v", "--device", "slow", "--size", "64M")
    daemon.ok("volume", "set", "v", "--log-device", "fast", "--log-limit", "1G")
    assert scattered(daemon, 50) == 50
    assert [each["devices"] for each in daemon.json("volume", "show", "v")["logs"]] == [["fast"], ["slow"]]
    daemon.ok("volume", "set", "v", "--log-device", "fast+any")
    with nbd.connect(daemon.uri("v")) as host:
        fill(host, 4)
    assert {tuple(each["devices"]) for each in daemon.json("volume", "show", "v")["logs"][1:]} == {("slow",)}


@pytest.mark.slow
def test_log_areas_that_are_almost_full_grow_ahead(daemon: Daemon) -> None:
    make(daemon, "--log-limit", "auto")
    wait_until(lambda: space(daemon)["size"] > SIZE, "growth without a write", 20)
