"""Relocation by the daemon: log areas become empty by themselves, also on an idle volume; nothing that hosts
or snapshots see changes, also when the daemon is killed during it.
"""

import json
import random
import time
from typing import Any

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

MIB = 1 << 20
SIZE = 64 * MIB


def space(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.ok("volume", "show", "v", "--json"))
    return found


def used(daemon: Daemon) -> int:
    found: int = space(daemon)["space"]["used"]
    return found


def write(daemon: Daemon, seed: int, *offsets: int) -> None:
    with nbd.connect(daemon.uri("v")) as handle:
        for offset in offsets:
            handle.pwrite(random.Random(seed + offset).randbytes(MIB), offset)


def same(daemon: Daemon, export: str, seed: int, *offsets: int) -> None:
    with nbd.connect(daemon.uri(export)) as handle:
        for offset in offsets:
            assert handle.pread(MIB, offset) == random.Random(seed + offset).randbytes(MIB), offset


@pytest.mark.slow
def test_log_areas_become_empty_without_a_flush_of_a_host(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "64M", "--processors", "2")
    every = range(0, SIZE, MIB)
    write(daemon, 1, *every)
    daemon.ok("snapshot", "create", "v", "--name", "a")
    write(daemon, 2, *every)
    daemon.ok("snapshot", "create", "v", "--name", "b")
    daemon.ok("snapshot", "delete", "v@a")
    wait_until(lambda: used(daemon) == 0, "the end of the relocation", 60)
    assert space(daemon)["relocation"]["moved"] == SIZE
    for export in ("v", "v@b"):
        same(daemon, export, 2, *every)
    assert daemon.ok("snapshot", "diff", "v@b") == "", "moving is no change"
    daemon.restart()
    for export in ("v", "v@b"):
        same(daemon, export, 2, *every)


@pytest.mark.slow
def test_freed_slots_of_an_idle_volume_are_given_back(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "64M", "--processors", "2")
    write(daemon, 1, *range(0, SIZE, MIB))
    daemon.ok("snapshot", "create", "v", "--name", "a")
    with nbd.connect(daemon.uri("v")) as handle:
        for offset in range(0, SIZE, MIB):
            handle.pwrite(bytes([7]) * MIB, offset)
        for offset in range(0, SIZE, 4 * MIB):
            handle.trim(4 * MIB, offset)
        wait_until(lambda: used(daemon) == 0, "the slots that no flush has freed", 30)
        assert handle.pread(MIB, 5 * MIB) == bytes(MIB)


@pytest.mark.slow
def test_kills_during_a_relocation_lose_nothing(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "64M", "--processors", "2")
    every, draw = range(0, SIZE, MIB), random.Random(5)
    write(daemon, 0, *every)
    daemon.ok("snapshot", "create", "v", "--name", "s0")
    for number in range(1, 9):
        write(daemon, number, *every)
        daemon.ok("snapshot", "create", "v", "--name", f"s{number}")
        daemon.ok("snapshot", "delete", f"v@s{number - 1}")
        time.sleep(draw.uniform(0, 1.2))  # it moves blocks, from some instant on
        daemon.kill()
        daemon.start()
        for export in ("v", f"v@s{number}"):
            same(daemon, export, number, *every)
    wait_until(lambda: used(daemon) == 0, "the end of the relocation", 60)
    daemon.stop()
    assert "0 problems" in daemon.ok("check", "--data")
