"""test_older_catalog: what a start says of a copy of the catalog that is older than the journals.

How it works      A real polyvold. `polyvol catalog backup` copies the catalog, something is changed, and
                  the copy is put back as docs/operating.md says. What is wrong is refused with a sentence;
                  what is right is served.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.clients.test_catalog_backup import put_in_place
from tests.support.daemon import Daemon
from tests.support.nbd import connect
from tests.support.proc import wait_until

pytestmark = pytest.mark.slow

MIB = 1 << 20
BLOCK = 4096
SIZE = 4 * MIB


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    """A daemon with a volume of two processors, and devices with much room."""
    daemon.add_devices("a", "b", size="16M")
    daemon.add_devices("log", "other", size="96M")
    daemon.create_on_two_devices(str(SIZE))
    return daemon


def fill(daemon: Daemon, value: bytes, size: int = SIZE) -> None:
    """Write all of the volume with one byte."""
    with connect(daemon.uri("v")) as host:
        host.pwrite(value * size, 0)
        host.flush()


def shows(daemon: Daemon, export: str) -> bytes:
    """The bytes that occur in an export."""
    with connect(daemon.uri(export)) as host:
        return bytes(sorted(set(host.pread(host.get_size(), 0))))


def snapshot(daemon: Daemon, name: str) -> None:
    """Take a snapshot of the volume."""
    daemon.ok("snapshot", "create", "v", "--name", name)


def backup(daemon: Daemon) -> Path:
    """A copy of the catalog."""
    copy = daemon.directory / "copy.db"
    daemon.ok("catalog", "backup", copy)
    return copy


def put_back(daemon: Daemon, copy: Path, *, kill: bool = False) -> None:
    """Stop the daemon, put the copy in place, and start it."""
    if kill:
        daemon.kill()
    else:
        daemon.stop()
    put_in_place(daemon, copy)
    daemon.arguments = ("--accept-older-catalog",)
    daemon.start()
    daemon.arguments = ()
    for device in daemon.json("device", "list"):
        if device["state"] != "present":
            daemon.ok("device", "retry", device["name"], "--accept")
    daemon.ok("status")


def state_of(daemon: Daemon) -> tuple[str, str]:
    """State and reason of the volume."""
    view = daemon.json("volume", "show", "v")
    return view["state"], view["reason"] or ""


@pytest.mark.parametrize("kill", [False, True])
def test_a_snapshot_that_was_deleted_does_not_come_back(used: Daemon, kill: bool) -> None:
    for value, name in ((b"a", "s1"), (b"b", "s2"), (b"c", "s3")):
        fill(used, value)
        snapshot(used, name)
    fill(used, b"d")
    copy = backup(used)
    used.ok("snapshot", "delete", "v@s2")
    snapshot(used, "s4")
    fill(used, b"e")  # uses what the snapshot had
    put_back(used, copy, kill=kill)
    state, reason = state_of(used)
    assert state == "degraded"
    assert "snapshot v@s2 was deleted after this copy of the catalog was made" in reason
    assert "polyvol snapshot delete v@s2" in reason
    assert [shows(used, export) for export in ("v", "v@s1", "v@s3")] == [b"e", b"a", b"c"]
    assert not any(export["name"] == "v@s2" for export in used.json("volume", "show", "v")["exports"])
    for command in (
        ["volume", "clone", "v@s2", "clone"],
        ["snapshot", "rollback", "v@s2"],
        ["snapshot", "diff", "v@s2", "v@s3"],
        ["backup", "v@s2", "-o", used.directory / "stream"],
    ):
        assert "snapshot v@s2 was deleted" in used.refused(*command), command
    assert used.json("snapshot", "show", "v@s2")["deleted"]
    used.stop()
    found = used.cli("check")
    assert found.rc == 1
    assert "snapshot v@s2 was deleted" in found.out
    used.start()
    used.ok("snapshot", "delete", "v@s2")
    assert state_of(used) == ("serving", "")
    used.stop()
    used.ok("check")
    used.start()
    assert state_of(used) == ("serving", "")
    fill(used, b"f")
    assert [shows(used, export) for export in ("v", "v@s1", "v@s3")] == [b"f", b"a", b"c"]


@pytest.mark.parametrize("kill", [False, True])
def test_a_snapshot_deleted_before_a_kill_is_noticed_after_a_later_start(used: Daemon, kill: bool) -> None:
    """Its record is behind a checkpoint, or in one; the deletion of s2 is recorded by the start alone."""
    fill(used, b"a")
    snapshot(used, "s1")
    fill(used, b"b")
    snapshot(used, "s2")
    copy = backup(used)
    used.ok("snapshot", "delete", "v@s2", "v@s1")
    fill(used, b"c")
    used.restart()
    fill(used, b"d")
    put_back(used, copy, kill=kill)
    assert "(1 more of its snapshots were deleted, too)" in state_of(used)[1]
    assert shows(used, "v") == b"d"
    used.ok("snapshot", "delete", "v@s1")
    used.ok("snapshot", "delete", "v@s2")
    assert state_of(used) == ("serving", "")


@pytest.mark.parametrize("kill", [False, True])
def test_a_rollback_that_the_catalog_lacks_is_refused(used: Daemon, kill: bool) -> None:
    for value, name in ((b"a", "s1"), (b"b", "s2")):
        fill(used, value)
        snapshot(used, name)
    copy = backup(used)
    used.ok("snapshot", "rollback", "v@s1")
    fill(used, b"c", BLOCK)
    used.restart()
    put_back(used, copy, kill=kill)
    state, reason = state_of(used)
    assert state == "not-served"
    assert "was rolled back at epoch" in reason


def test_a_rollback_that_nothing_needs_is_served_without(used: Daemon) -> None:
    fill(used, b"a")
    snapshot(used, "s1")
    copy = backup(used)
    fill(used, b"b")
    used.ok("snapshot", "rollback", "v@s1")
    fill(used, b"c", BLOCK)
    used.restart()
    put_back(used, copy)
    assert state_of(used) == ("serving", "")
    used.restart()
    assert [shows(used, export) for export in ("v", "v@s1")] == [b"ac", b"a"]
    fill(used, b"d")
    assert [shows(used, export) for export in ("v", "v@s1")] == [b"d", b"a"]


def test_a_rollback_that_was_forgotten_is_forgotten_again(used: Daemon) -> None:
    for value, name in ((b"a", "s1"), (b"b", "s2")):
        fill(used, value)
        snapshot(used, name)
    used.ok("snapshot", "rollback", "v@s1", "--no-safety")
    copy = backup(used)
    used.ok("snapshot", "delete", "v@s2*")  # as a pattern: rollbacks are looked for at once
    fill(used, b"c")
    wait_for_rollbacks(used)
    used.ok("snapshot", "delete", "v@s1")
    fill(used, b"d", BLOCK)
    put_back(used, copy)
    assert "were deleted, too" in state_of(used)[1]
    assert shows(used, "v") == b"cd"
    used.restart()
    fill(used, b"e")
    snapshot(used, "s3")
    fill(used, b"f")
    used.restart()
    assert [shows(used, export) for export in ("v", "v@s3")] == [b"f", b"e"]
    used.ok("volume", "grow", "v", "--size", str(2 * SIZE))
    used.ok("snapshot", "delete", "v@s1")
    used.ok("snapshot", "delete", "v@s2")
    assert [shows(used, export) for export in ("v", "v@s3")] == [b"\0f", b"e"]


@pytest.mark.parametrize("kill", [False, True])
def test_a_growth_that_the_catalog_lacks_is_refused(used: Daemon, kill: bool) -> None:
    fill(used, b"a")
    copy = backup(used)
    used.ok("volume", "grow", "v", "--size", str(2 * SIZE))
    put_back(used, copy, kill=kill)
    state, reason = state_of(used)
    assert state == "not-served"
    assert f"the volume had grown to {2 * SIZE} bytes" in reason


def test_a_volume_whose_extents_another_one_has_is_refused(used: Daemon) -> None:
    fill(used, b"a")
    copy = backup(used)
    used.ok("volume", "delete", "v", "--yes")
    options = ["--partition-size", "1M", "--device", "a", "--device", "b", "--log-device", "log"]
    used.ok("volume", "create", "w", "--size", str(SIZE), *options)
    put_back(used, copy)
    state, reason = state_of(used)
    assert state == "not-served"
    assert "is missing" in reason
    used.ok("volume", "delete", "v", "--yes")


def test_slots_of_a_log_that_the_catalog_lacks_are_refused(used: Daemon) -> None:
    fill(used, b"a")
    snapshot(used, "s1")
    copy = backup(used)
    used.ok("snapshot", "create", "v", "--name", "s2", "--log-device", "other")
    fill(used, b"b")
    put_back(used, copy)
    state, reason = state_of(used)
    assert state == "not-served"
    assert "outside its log area" in reason


def wait_for_rollbacks(daemon: Daemon) -> None:
    """Wait until the catalog has no rollback."""
    path = daemon.state_dir / "catalog.db"

    def none() -> bool:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT count(*) = 0 FROM rollback").fetchone()[0])

    wait_until(none, "the rollback is forgotten")
