"""test_backup_files: FILE is there when it is complete, and never before; and it is of what was asked for.

How it works      Backups are stopped at a point (support/held.py); there they are killed, or a second one is
                  started, or snapshots are made again by the same names.
"""

import os
import random
import signal
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon, flip
from tests.support.held import Held

MIB = 1 << 20
SIZE = 48 * MIB


@pytest.fixture
def source(daemon: Daemon) -> Daemon:
    """A daemon with a volume that has something everywhere, and snapshots s1 and s2."""
    daemon.make_volume("v", size="48M", partition_size="4M")
    write(daemon, 1)
    daemon.api.post("snapshots", body={"volumes": ["v"], "name": "s1"})
    write(daemon, 2, MIB)
    daemon.api.post("snapshots", body={"volumes": ["v"], "name": "s2"})
    return daemon


def write(daemon: Daemon, seed: int, length: int = SIZE) -> None:
    """Write bytes that do not compress, from the start on."""
    with nbd.connect(daemon.uri("v")) as handle:
        for offset in range(0, length, MIB):
            handle.pwrite(random.Random(seed + offset).randbytes(MIB), offset)


def held(daemon: Daemon, tmp_path: Path, point: str, *arguments: str | Path, passes: int = 0) -> Held:
    """A command that stops at a point."""
    return Held(daemon.state_dir, tmp_path / "held", point, *arguments, passes=passes)


def names(tmp_path: Path) -> list[str]:
    """What the backups have made."""
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "held")


# What a copy that is ended is tried with: each signal at each point; few of them every day.
POINTS = [("pread", 20), ("read_back", 0), ("rename", 0)]
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]
EVERYDAY = [("read_back", 0, signal.SIGINT), ("rename", 0, signal.SIGKILL)]


@pytest.mark.parametrize(
    ("point", "passes", "number"),
    [
        pytest.param(*point, number, marks=() if (*point, number) in EVERYDAY else pytest.mark.slow)
        for point in POINTS
        for number in SIGNALS
    ],
)
def test_a_raw_copy_that_is_ended_leaves_no_file(
    source: Daemon, tmp_path: Path, number: signal.Signals, point: str, passes: int
) -> None:
    file = tmp_path / "f"
    with held(source, tmp_path, point, "backup", "v@s2", "--raw", "-o", file, passes=passes) as command:
        assert names(tmp_path) == ["f.partial"]
        code = command.kill(number)
        assert code == (130 if number == signal.SIGINT else -number)
    assert names(tmp_path) == (["f.partial"] if number == signal.SIGKILL else [])
    if number == signal.SIGKILL:
        assert "f.partial exists already" in source.refused("backup", "v@s2", "--raw", "-o", file)
        (tmp_path / "f.partial").unlink()
    source.ok("backup", "v@s2", "--raw", "-o", file)
    assert names(tmp_path) == ["f"]
    nbd.qemu_compare(source.uri("v@s2"), file)


@pytest.mark.parametrize("kind", [["--raw"], pytest.param([], marks=pytest.mark.slow)])
def test_of_two_backups_to_one_file_the_second_is_refused(
    source: Daemon, tmp_path: Path, kind: list[str]
) -> None:
    file = tmp_path / "f"
    for point, passes in (("pread", 20), ("rename", 0)):
        scratch = tmp_path / "held"
        with Held(
            source.state_dir, scratch, point, "backup", "v@s2", *kind, "-o", file, passes=passes
        ) as first:
            for other in (["--raw"], [], ["--resume"]):
                assert "f is being written by another backup" in source.refused(
                    "backup", "v@s1", *other, "-o", file
                )
            assert first.go() == (0, "")
        assert names(tmp_path) == ["f"]
        if kind:
            nbd.qemu_compare(source.uri("v@s2"), file)
        else:
            source.ok("restore", file, f"w-{point}")
            nbd.qemu_compare(source.uri("v@s2"), source.uri(f"w-{point}@s2"))
        file.unlink()
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()


@pytest.mark.parametrize("kind", [pytest.param(["--raw"], marks=pytest.mark.slow), []])
def test_a_file_that_came_in_the_meantime_stays(source: Daemon, tmp_path: Path, kind: list[str]) -> None:
    file = tmp_path / "f"
    with held(source, tmp_path, "rename", "backup", "v@s2", *kind, "-o", file) as command:
        file.write_bytes(b"somebody's")
        code, said = command.go()
    assert (code, "f exists already" in said) == (1, True), said
    assert file.read_bytes() == b"somebody's"
    assert names(tmp_path) == (["f"] if kind else ["f", "f.partial"])


@pytest.mark.parametrize("kind", [["--raw"], pytest.param([], marks=pytest.mark.slow)])
def test_what_is_not_what_was_written_is_not_given_its_name(
    source: Daemon, tmp_path: Path, kind: list[str]
) -> None:
    file, partial = tmp_path / "f", tmp_path / "f.partial"
    for change in ("flip", "cut"):
        with Held(
            source.state_dir, tmp_path / f"held-{change}", "read_back", "backup", "v@s2", *kind, "-o", file
        ) as command:
            if change == "flip":
                flip(partial, 20 * MIB)
            else:
                os.truncate(partial, partial.stat().st_size - 4096)
            code, said = command.go()
        assert (code, "it is not what was written" in said) == (1, True), said
        assert not file.exists()
        partial.unlink(missing_ok=True)


def again(daemon: Daemon) -> None:
    """Make both snapshots again, of something else."""
    for name in ("s2", "s1"):
        daemon.api.delete("volumes", "v", "snapshots", name)
    write(daemon, 3)
    daemon.api.post("snapshots", body={"volumes": ["v"], "name": "s1"})
    write(daemon, 4, 2 * MIB)
    daemon.api.post("snapshots", body={"volumes": ["v"], "name": "s2"})


@pytest.mark.slow
def test_snapshots_made_again_by_the_same_names_are_not_taken_for_those_asked_for(
    source: Daemon, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    source.ok("backup", "v@s1", "--raw", "-o", target)
    before = target.read_bytes()
    file = str(tmp_path / "f")
    for index, arguments in enumerate(
        (
            ["backup", "v@s2", "--since", "s1", "-o", file],
            ["backup", "v@s2", "-o", file],
            ["backup", "v@s2", "--raw", "-o", file],
            ["copy-changed", "v@s2", "--since", "s1", str(target)],
        )
    ):
        with Held(source.state_dir, tmp_path / f"held{index}", "connect", *arguments) as command:
            again(source)
            code, said = command.go()
        assert (code, "another one has its name" in said) == (1, True), said
    assert target.read_bytes() == before
    assert not list(tmp_path.glob("f*"))


@pytest.mark.parametrize("kind", [pytest.param(["--raw"], marks=pytest.mark.slow), []])
def test_a_backup_does_not_go_on_with_another_daemon(source: Daemon, tmp_path: Path, kind: list[str]) -> None:
    """Threads connect when they first need it: one that does so late might find another snapshot."""
    file = tmp_path / "f"
    with held(source, tmp_path, "pread", "backup", "v@s2", *kind, "-o", file) as command:
        source.kill()
        source.start()
        again(source)
        code, said = command.go()
    assert (code, "v@s2 failed" in said) == (1, True), said
    assert not file.exists()


@pytest.mark.slow
def test_a_copy_is_brought_up_to_date_by_one_command_at_a_time(source: Daemon, tmp_path: Path) -> None:
    target = tmp_path / "target"
    source.ok("backup", "v@s1", "--raw", "-o", target)
    arguments = ("copy-changed", "v@s2", "--since", "s1", target)
    with held(source, tmp_path, "pread", *arguments) as command:
        assert "another process has locked it" in source.refused(*arguments)
        assert command.go() == (0, "")
    nbd.qemu_compare(source.uri("v@s2"), target)


def test_pages_of_a_difference_are_of_the_same_snapshots(source: Daemon) -> None:
    path = ("volumes", "v", "snapshots", "s1", "changes")
    first = source.api.get(*path, until="s2")
    again(source)
    second = source.api.get(*path, until="s2")
    for uuid in ("since_uuid", "until_uuid"):
        assert first[uuid] != second[uuid]
    assert second["since_uuid"] == source.api.get("volumes", "v", "snapshots", "s1")["uuid"]
    assert source.api.get(*path)["until_uuid"] is None
