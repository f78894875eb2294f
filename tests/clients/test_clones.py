"""test_clones: volumes made from snapshots, through real NBD clients, deletions and kills."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon

MIB = 1 << 20
SIZE = 130 * MIB


def pattern(number: int, length: int = MIB) -> bytes:
    return bytes([number]) * length


@pytest.fixture
def source(daemon: Daemon) -> Daemon:
    """A volume v with contents in place and, since its snapshot old, redirected; its snapshot s."""
    daemon.ok("volume", "create", "v", "--size", str(SIZE), "--processors", "2")
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(pattern(1), 0)
        handle.pwrite(pattern(2), 70 * MIB)
        daemon.ok("snapshot", "create", "v", "--name", "old")
        handle.pwrite(pattern(3), 70 * MIB + 4096)
        handle.pwrite(pattern(4), SIZE - MIB)
        daemon.ok("snapshot", "create", "v", "--name", "s")
        handle.pwrite(pattern(5), 0)
        handle.pwrite(pattern(5), 71 * MIB)
    return daemon


def expected() -> dict[int, bytes]:
    """What s shows, by offset."""
    return {
        0: pattern(1),
        70 * MIB: pattern(2, 4096) + pattern(3),
        71 * MIB + 4096: bytes(MIB),
        SIZE - MIB: pattern(4),
    }


def shows(daemon: Daemon, export: str, contents: dict[int, bytes]) -> None:
    with nbd.connect(daemon.uri(export)) as handle:
        for offset, data in contents.items():
            assert handle.pread(len(data), offset) == data, offset


def nothing_wrong(daemon: Daemon) -> None:
    daemon.stop()
    found = json.loads(daemon.ok("check", "--data", "--json"))
    assert (found["problems"], found["notes"]) == ([], [])
    daemon.start()


@pytest.mark.slow
def test_a_clone_shares_until_it_is_written_and_outlives_its_source(source: Daemon) -> None:
    said = source.ok("volume", "clone", "v@s", "c", "--processors", "1")
    assert said == "volume c: 130 MiB of v@s, on 1 processor\n"
    shown = source.volume("c")
    assert shown["source"] == {"volume": "v", "snapshot": "s", "deleted": False}
    assert (shown["use"]["used"], shown["devices"]) == (0, [])
    assert source.json("snapshot", "show", "v@s")["clones"] == ["c"]
    shows(source, "c", expected())
    contents = expected()
    with nbd.connect(source.uri("c")) as handle:
        handle.pwrite(b"x" * 100, 50)
        handle.trim(MIB, SIZE - MIB)
        contents[0] = contents[0][:50] + b"x" * 100 + contents[0][150:]
        contents[SIZE - MIB] = bytes(MIB)
    shows(source, "c", contents)
    shows(source, "v@s", expected())
    source.ok("snapshot", "create", "c", "--name", "mine")
    with nbd.connect(source.uri("c")) as handle:
        handle.pwrite(pattern(9), 0)
    shows(source, "c@mine", contents)
    source.ok("volume", "clone", "c@mine", "cc")

    assert source.snapshots("v")[1]["use"]["frees"] == 0
    source.ok("snapshot", "delete", "v@s")
    assert [each["name"] for each in source.snapshots("v")] == ["old"]
    source.ok("snapshot", "create", "v", "--name", "s")  # the name is free again
    source.ok("volume", "delete", "v", "--yes")
    source.ok("volume", "create", "v", "--size", "64M")
    assert [each["name"] for each in source.api.get("volumes")] == ["c", "cc", "v"]
    kept = source.json("volume", "list", "--all")[0]
    assert (kept["state"], kept["exports"], kept["snapshots"]) == ("kept", [], [])
    assert source.volume("c")["source"]["deleted"] is True
    assert "there is no volume" in source.refused("volume", "show", kept["name"])
    for _ in range(2):
        shows(source, "c@mine", contents)
        shows(source, "cc", contents)
        shows(source, "c", contents | {0: pattern(9)})
        source.kill()
        source.start()
    nothing_wrong(source)

    source.ok("volume", "delete", "c", "--yes")
    shows(source, "cc", contents)
    assert len(source.json("volume", "list", "--all")) == 4
    nothing_wrong(source)
    source.ok("volume", "delete", "cc", "--yes")
    assert [each["name"] for each in source.json("volume", "list", "--all")] == ["v"]
    assert (
        len(source.json("device", "list"))
        == len(source.json("volume", "show", "v", "--partitions")["logs"]) * 2
    )
    nothing_wrong(source)


@pytest.mark.slow
def test_a_clone_does_all_that_a_volume_does(source: Daemon, tmp_path: Path) -> None:
    source.ok("volume", "clone", "v@old", "c")
    source.ok("snapshot", "create", "c", "--name", "a")
    with nbd.connect(source.uri("c")) as handle:
        handle.pwrite(pattern(7), 100 * MIB)
        source.ok("snapshot", "create", "c", "--name", "b")
        changed = source.json("snapshot", "diff", "c@a", "c@b")
        assert sum(each["length"] for each in changed["extents"]) == MIB
        said = source.refused("volume", "grow", "c", "--size", "200M", "--device", "v.data-0")
        assert "volume c is a clone" in said
        source.ok("volume", "grow", "c", "--size", "200M")
    with nbd.connect(source.uri("c")) as handle:
        assert handle.get_size() == 200 * MIB
        assert handle.pread(30 * MIB, 135 * MIB) == bytes(30 * MIB)
        handle.pwrite(pattern(8), 199 * MIB)
    full, after = tmp_path / "full", tmp_path / "after"
    source.ok("backup", "c@a", "-o", full)
    source.ok("backup", "c@b", "--since", "a", "-o", after)
    source.ok("restore", full, "r")
    source.ok("restore", after, "r")
    old = {0: pattern(1), 70 * MIB: pattern(2), SIZE - MIB: bytes(MIB)}
    shows(source, "r", old | {100 * MIB: pattern(7)})
    source.ok("snapshot", "rollback", "c@a")
    shows(source, "c", old | {100 * MIB: bytes(MIB), 199 * MIB: bytes(MIB)})
    source.ok("snapshot", "create", "c", "v", "--name", "together")
    source.ok("group", "create", "g", "c", "v")
    source.ok("snapshot", "create", "@g", "--name", "all")
    source.ok("volume", "clone", "c@all", "d")
    source.ok("snapshot", "delete", "@g@all")
    shows(source, "d", old)
    source.kill()
    source.start()
    shows(source, "d", old)
    shows(source, "c", old | {100 * MIB: bytes(MIB), 199 * MIB: bytes(MIB)})
    nothing_wrong(source)


def test_what_cannot_be_cloned_is_refused(source: Daemon) -> None:
    for arguments, why in (
        (("v@nothing", "c"), "there is no snapshot 'nothing' of volume v"),
        (("nothing@s", "c"), "there is no volume 'nothing'"),
        (("v@s", "v"), "volume v exists already"),
        (("v@s", "v#1"), "volume name 'v#1' is not allowed"),
        (("v@s", "c", "--processors", "0"), "0"),
        (("v@s", "c", "--log-device", "nothing"), "there is no device 'nothing'"),
        (("v", "c"), "VOLUME@SNAPSHOT"),
    ):
        said = source.refused("volume", "clone", *arguments)
        assert why in said
    assert [each["name"] for each in source.json("volume", "list", "--all")] == ["v"]
    nothing_wrong(source)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_clone_or_none(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.ok("volume", "create", "v", "--size", "64M", "--processors", "2")
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(pattern(1), MIB)
        handle.flush()
    daemon.ok("snapshot", "create", "v", "--name", "s")
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(pattern(2), MIB)
    names: set[str] = set()
    for turn in range(6):
        name = f"c{turn}"
        command = (
            ("volume", "clone", "v@s", name)
            if turn % 3 != 2 or not names
            else ("volume", "delete", sorted(names)[0], "--yes")
        )
        running = threading.Thread(target=daemon.cli, args=command)
        running.start()
        running.join(0.12 + turn % 4 * 0.05)  # the command line needs most of it to begin
        daemon.kill()
        running.join()
        daemon.start()
        names = {each["name"] for each in daemon.json("volume", "list", "--all")} - {"v"}
        for each in sorted(names):
            shows(daemon, each, {MIB: pattern(1), 0: bytes(MIB)})
        shows(daemon, "v", {MIB: pattern(2)})
        nothing_wrong(daemon)
    for each in names:
        daemon.ok("volume", "delete", each, "--yes")
    files = {path.name for path in (daemon.state_dir / "devices").iterdir()}
    assert all(name.startswith("v.") for name in files), files


@pytest.mark.slow
def test_a_lost_source_device_degrades_the_clone(source: Daemon) -> None:
    source.ok("volume", "clone", "v@s", "c")
    source.stop()
    devices = source.state_dir / "devices"
    moved = source.state_dir.parent / "moved"
    shutil.move(devices / "v.data-0", moved)
    source.start()
    shown = source.volume("c")
    assert shown["state"] == "degraded"
    assert "its source v: device v.data-0 is missing" in shown["reason"]
    with nbd.connect(source.uri("c")) as handle:
        with pytest.raises(nbd.NbdError, match="Input/output error"):
            handle.pread(4096, 0)
        handle.pwrite(pattern(6), 0)  # whole blocks need nothing of it
        assert handle.pread(MIB, 0) == pattern(6)
    shutil.move(moved, devices / "v.data-0")
    source.ok("device", "retry", "v.data-0")
    assert source.volume("c")["state"] == "serving"
    shows(source, "c", expected() | {0: pattern(6)})
