"""test_growth: a volume grows under real NBD clients, and through kills."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from polyvol.mapping.sizes import parse_size
from tests.support import nbd
from tests.support.daemon import Daemon

MIB = 1 << 20
OLD, NEW = 70 * MIB + 4096, 200 * MIB


def pattern(number: int) -> bytes:
    return bytes([number]) * 65536


def test_new_connections_see_the_new_size_and_old_ones_serve_it(daemon: Daemon) -> None:
    daemon.make_volume("v", size=str(OLD))
    with nbd.connect(daemon.uri("v")) as old:
        old.pwrite(pattern(1), OLD - 65536)
        daemon.ok("snapshot", "create", "v", "--name", "s")
        grown = daemon.json("volume", "grow", "v", "--size", str(NEW), "--device", "v-0", "--device", "v-1")
        assert (grown["size"], grown["partition_count"]) == (NEW, 4)
        assert old.get_size() == OLD  # nothing tells it; the kernel's client is told past its connections
        old.pwrite(pattern(2), OLD - 65536)
        old.set_strict_mode(0)
        assert old.pread(65536, NEW - 65536) == bytes(65536)
        old.pwrite(pattern(5), NEW - 131072)
        with pytest.raises(nbd.NbdError, match="Invalid argument"):
            old.pread(65536, NEW)
        with pytest.raises(nbd.NbdError, match="No space left"):
            old.pwrite(pattern(5), NEW - 4096)
        assert nbd.info(daemon.uri("v"))["export-size"] == NEW
        assert nbd.info(daemon.uri("v@s"))["export-size"] == OLD
        with nbd.connect(daemon.uri("v")) as new:
            assert new.pread(65536, OLD - 65536) == pattern(2)
            assert new.pread(65536, OLD) == bytes(65536)
            assert new.pread(65536, NEW - 131072) == pattern(5)
            new.pwrite(pattern(3), OLD)
            new.pwrite(pattern(4), NEW - 65536)
    daemon.kill()
    daemon.start()
    with nbd.connect(daemon.uri("v")) as after:
        assert after.get_size() == NEW
        assert after.pread(65536, OLD - 65536) == pattern(2)
        assert after.pread(65536, OLD) == pattern(3)
        assert after.pread(65536, NEW - 65536) == pattern(4)
    with nbd.connect(daemon.uri("v@s")) as snapshot:
        assert snapshot.get_size() == OLD
        assert snapshot.pread(65536, OLD - 65536) == pattern(1)
    daemon.ok("snapshot", "create", "v", "--name", "t")
    daemon.ok("snapshot", "delete", "v@s")
    daemon.stop()
    assert json.loads(daemon.ok("check", "--data", "--json"))["problems"] == []


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_size_or_the_new(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.ok("volume", "create", "v", "--size", str(OLD), "--processors", "2")
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(pattern(1), 0)
        handle.flush()
    reported = OLD
    for turn in range(6):
        wanted = OLD + (turn + 1) * 20 * MIB
        told: list[bool] = []

        def grow(wanted: int = wanted, told: list[bool] = told) -> None:
            told.append(daemon.cli("volume", "grow", "v", "--size", str(wanted)).rc == 0)

        growing = threading.Thread(target=grow)
        growing.start()
        growing.join(0.12 + turn * 0.05)  # the command line needs most of it to begin
        daemon.kill()
        growing.join()
        daemon.start()
        with nbd.connect(daemon.uri("v")) as handle:
            size = handle.get_size()
            assert size in (reported, wanted)
            assert size == wanted or not told[0]
            assert handle.pread(65536, 0) == pattern(1)
            handle.pwrite(pattern(turn + 2), size - 65536)
        reported = size
    daemon.stop()
    assert json.loads(daemon.ok("check", "--json"))["problems"] == []
    files = {path.name for path in Path(daemon.state_dir / "devices").iterdir()}
    daemon.start()
    assert files == {each["name"] for each in daemon.json("device", "list")}
    assert reported <= parse_size("1G")
