"""test_log_rules: where a real engine puts blocks that are written after a snapshot, by the log rules.

How it works      Partitions of 1 MiB of two processors, with devices of known sizes. What lies where is seen
                  by the use of the log areas in `volume show`, and where rules allow no more room by ENOSPC.
"""

import errno
import re

import pytest

from tests.clients.system import errors_as_os
from tests.support.daemon import Daemon
from tests.support.nbd import connect

MIB = 1 << 20


@pytest.fixture
def devices(daemon: Daemon) -> Daemon:
    """With devices a to d, and `data`."""
    daemon.add_devices("a", "b", "c", "d", size="80M")
    daemon.add_devices("data", size="300M")
    return daemon


def create(daemon: Daemon, *more: str, size: str = "8M") -> None:
    options = ("--partition-size", "1M", "--device", "data", "--processors", "0,1")
    daemon.ok("volume", "create", "v", "--size", size, *options, *more)


def write(daemon: Daemon, *partitions: int) -> None:
    """Write all of these partitions."""
    with connect(daemon.uri("v")) as host:
        for partition in partitions:
            host.pwrite(bytes([partition + 1]) * MIB, partition * MIB)
        host.flush()


def used(daemon: Daemon) -> dict[str, int]:
    """MiB in use on each device of the volume's log areas."""
    found: dict[str, int] = {}
    for log in daemon.volume("v")["logs"]:
        found[log["devices"][0]] = found.get(log["devices"][0], 0) + log["used"] // MIB
    return found


def test_blocks_lie_where_the_rule_for_their_partition_says(devices: Daemon) -> None:
    create(devices, "--log-device", "0-1=a,1=b,c", "--place", "6-7:processor=1")
    devices.ok("snapshot", "create", "v", "--name", "s")
    write(devices, 0, 1, 2, 3, 6)
    wanted = {"a": 2, "b": 2, "c": 1}
    assert used(devices) == wanted
    devices.kill()
    devices.start()
    assert used(devices) == wanted
    write(devices, 4, 7)
    assert used(devices) == {"a": 2, "b": 3, "c": 2}


def test_rules_of_a_snapshot_are_in_force_until_the_next_one(
    devices: Daemon,
) -> None:
    create(devices, "--log-device", "a")
    devices.ok("snapshot", "create", "v", "--name", "s", "--log-device", "2-3=b,c+any")
    write(devices, 1, 2)
    assert used(devices) == {"a": 0, "b": 1, "c": 1}
    devices.restart()
    write(devices, 3, 4)
    assert used(devices) == {"a": 0, "b": 2, "c": 2}
    devices.ok("volume", "set", "v", "--log-device", "0=d,a")
    write(devices, 5)
    assert used(devices) == {"a": 0, "b": 2, "c": 3, "d": 0}, "the snapshot's own are in force"
    devices.ok("snapshot", "create", "v", "--name", "t")
    write(devices, 0, 1)
    assert used(devices) == {"a": 1, "b": 2, "c": 3, "d": 1}
    devices.ok("volume", "set", "v", "--log-device", "b")
    write(devices, 2)
    assert used(devices)["b"] == 3, "at once"


def test_a_full_area_is_enospc_unless_any_other_is_allowed(devices: Daemon) -> None:
    create(devices, "--log-device", "1=a,b", "--when-full", "keep-snapshots", size="200M")
    devices.ok("snapshot", "create", "v", "--name", "s")
    room = devices.volume("v")["logs"][0]["size"] // MIB
    with connect(devices.uri("v")) as host:
        for number in range(room):
            host.pwrite(b"x" * MIB, (2 * number + 1) * MIB)
        with pytest.raises(OSError) as refused, errors_as_os():  # noqa: PT011 - by its number
            host.pwrite(b"x" * MIB, 199 * MIB)
        assert refused.value.errno == errno.ENOSPC
        host.pwrite(b"x" * MIB, 0)
        assert used(devices) == {"a": room, "b": 1}
        shown = devices.ok("volume", "show", "v")
        assert re.search(r"room: +ok, .* free.*; area 1 on a is full\n", shown)
        assert "area 1 on a is full" in devices.ok("volume", "list")
        assert "the others" not in shown
        devices.ok("volume", "set", "v", "--log-device", "1=a+any,b")
        host.pwrite(b"x" * MIB, 199 * MIB)
        assert used(devices) == {"a": room, "b": 2}
        assert re.search(r"\n1 +a .* the volume\n2 +b .* the volume\n", devices.ok("volume", "show", "v"))
        devices.ok("volume", "add-log", "v", "--device", "c")
        assert [rule["rule"] for rule in devices.volume("v")["log_rules"]] == ["1=a+any", "b", "c"]


def test_a_processor_that_comes_with_growth_follows_the_rules(devices: Daemon) -> None:
    options = ("--partition-size", "1M", "--device", "data", "--processors", "1,", "--log-device", "a,b")
    devices.ok("volume", "create", "v", "--size", "1M", *options)
    devices.ok("snapshot", "create", "v", "--name", "s")
    devices.ok("volume", "grow", "v", "--size", "4M", "--device", "data")
    assert devices.volume("v")["processors"] == [0, 1]
    devices.ok("snapshot", "create", "v", "--name", "t")
    write(devices, 0, 1, 2, 3)
    found = used(devices)
    assert sorted(found.values()) == [2, 2], "they take turns"
    assert found.keys() == {"a", "b"}
