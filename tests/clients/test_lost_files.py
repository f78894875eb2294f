"""test_lost_files: somebody else removes, moves, replaces or truncates files of the state directory.

How it works      A daemon serves a volume with a snapshot, so that writes are recorded. Then something is
                  done to its files, a client writes and flushes, and the daemon is killed. What a flush was
                  answered for is there after the next start; where that could not be, the flush has failed.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.nbd import NbdError, connect
from tests.support.proc import wait_until

pytestmark = pytest.mark.slow
OLD, NEW, LAST = (word * 1024 for word in (b"OLD!", b"NEW!", b"LAST"))


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    """A volume `v` with a snapshot `s`, a checkpoint, and a block that was written after it and flushed."""
    daemon.ok("volume", "create", "v", "--size", "2M", "--partition-size", "1M", "--processors", "1")
    daemon.ok("snapshot", "create", "v", "--name", "s0")
    daemon.restart()
    daemon.ok("snapshot", "create", "v", "--name", "s")
    with connect(daemon.uri("v")) as host:
        host.pwrite(OLD, 0)
        host.flush()
    return daemon


def newest(daemon: Daemon, pattern: str) -> Path:
    return sorted(daemon.state_dir.glob(pattern))[-1]


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def move(path: Path) -> None:
    path.rename(path.parents[3] / path.name)  # beside the state directory


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.rename(path)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


JOURNAL, MANIFEST = "volumes/*/*.journal", "manifests/*/*.manifest"
CHECKPOINT = "volumes/*/*.checkpoint"
HARM: list[tuple[Callable[[Path], None], str]] = [
    *((harm, JOURNAL) for harm in (remove, move, replace, empty, halve)),
    *((harm, MANIFEST) for harm in (remove, move, replace, empty, halve)),
    *((harm, CHECKPOINT) for harm in (remove, move, replace, empty)),
]


def harmed(daemon: Daemon) -> list[str]:
    """The events that tell of it."""
    events = daemon.json("status")["events"]
    return [event["text"] for event in events if "by somebody else" in event["text"]]


def more_than(daemon: Daemon, before: int) -> bool:
    return len(harmed(daemon)) > before


def right(daemon: Daemon, *blocks: bytes) -> None:
    """After a kill, everything is there."""
    daemon.kill()
    daemon.start()
    assert daemon.json("volume", "list")[0]["state"] == "serving", daemon.said()
    with connect(daemon.uri("v")) as host:
        for number, block in enumerate(blocks):
            assert host.pread(len(block), number * len(block)) == block
    daemon.stop()
    assert daemon.cli("check", "--data").rc == 0


@pytest.mark.parametrize(("harm", "pattern"), HARM)
def test_a_file_of_a_journal_that_is_lost_is_written_again_before_a_flush_is_answered(
    used: Daemon, harm: Callable[[Path], None], pattern: str
) -> None:
    path = newest(used, pattern)
    with connect(used.uri("v")) as host:
        harm(path)
        with contextlib.suppress(NbdError):  # to a segment that is too short
            host.pwrite(NEW, len(OLD))
        host.flush()
        host.pwrite(NEW, len(OLD))
        host.pwrite(LAST, 2 * len(OLD))
        host.flush()
    wait_until(lambda: bool(harmed(used)), "the event")
    assert str(path) in harmed(used)[0]
    right(used, OLD, NEW, LAST)


def test_a_lost_file_is_written_again_where_nobody_flushes(used: Daemon) -> None:
    for pattern in (JOURNAL, MANIFEST):
        before = len(harmed(used))
        newest(used, pattern).unlink()
        wait_until(partial(more_than, used, before), "the event")
    right(used, OLD)


@pytest.mark.parametrize("pattern", [JOURNAL, MANIFEST])
def test_a_file_that_is_lost_before_a_stop_is_written_again(used: Daemon, pattern: str) -> None:
    newest(used, pattern).unlink()
    used.stop()
    used.start()
    right(used, OLD)


@pytest.mark.parametrize("name", ["volumes", "manifests"])
def test_a_directory_that_is_removed_is_made_again(used: Daemon, name: str) -> None:
    shutil.rmtree(used.state_dir / name)
    wait_until(lambda: bool(harmed(used)), "the event")
    with connect(used.uri("v")) as host:
        host.pwrite(NEW, len(OLD))
        host.flush()
    right(used, OLD, NEW)


def test_flushes_fail_while_the_state_directory_is_somewhere_else(used: Daemon) -> None:
    state, away = used.state_dir, used.directory / "away"
    with connect(used.uri("v")) as host:
        state.rename(away)
        with contextlib.suppress(NbdError):
            host.pwrite(NEW, len(OLD))
        with pytest.raises(NbdError) as failed:
            host.flush()
        assert failed.value.errnum == errno.EIO
        used.move(away)
        wait_until(lambda: any("move it back" in note for note in used.json("status")["notes"]), "the note")
        assert not state.exists()
        refused = used.cli("snapshot", "create", "v", "--name", "t")
        assert refused.rc != 0
        assert "removed or replaced" in refused.err or "cannot" in refused.err
        away.rename(state)
        used.move(state)
        # What could not be undone of the refused snapshot is noted until a restart.
        left_over = "a restart of polyvold clears up what is left"
        wait_until(lambda: all(left_over in note for note in used.json("status")["notes"]), "no other note")
        host.pwrite(NEW, len(OLD))
        host.flush()
    right(used, OLD, NEW)


def test_flushes_fail_when_the_state_directory_is_removed(used: Daemon) -> None:
    with connect(used.uri("v")) as host:
        shutil.rmtree(used.state_dir)
        with contextlib.suppress(NbdError):
            host.pwrite(NEW, len(OLD))
        for _ in range(2):
            with pytest.raises(NbdError):
                host.flush()
        wait_until(lambda: "move it back" in used.said(), "the log")
        assert not used.state_dir.exists()
    used.kill()
