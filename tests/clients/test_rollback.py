"""Rollback: a volume becomes what a snapshot shows, at once, even if clients must be disconnected."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.catalogs import change
from tests.support.daemon import Daemon
from tests.support.proc import Argument, Background, wait_until

BLOCK = 4096
SIZE = 64 << 20


def fill(daemon: Daemon, volume: str, byte: int, length: int = 1 << 20) -> None:
    """Write so many bytes to the beginning of a volume."""
    with nbd.connect(daemon.uri(volume)) as handle:
        handle.pwrite(bytes([byte]) * length, 0)
        handle.flush()


def first(daemon: Daemon, export: str) -> int:
    """The first byte of an export."""
    with nbd.connect(daemon.uri(export)) as handle:
        return int(handle.pread(1, 0)[0])


@pytest.fixture
def written(daemon: Daemon) -> Daemon:
    """A volume v with snapshots one and two, full of 1 and 2, and written with 3 since."""
    daemon.ok("volume", "create", "v", "--size", str(SIZE), "--processors", "2")
    for byte, name in ((1, "one"), (2, "two")):
        fill(daemon, "v", byte)
        daemon.ok("snapshot", "create", "v", "--name", name)
    fill(daemon, "v", 3)
    return daemon


@pytest.mark.slow
def test_a_volume_is_what_the_snapshot_shows_and_what_it_was_is_kept(written: Daemon) -> None:
    said = written.ok("snapshot", "rollback", "v@one")
    assert said == "v is what snapshot v@one shows; what was there is in snapshot before-one\n"
    names = [each["name"] for each in written.snapshots("v")]
    assert names == ["one", "two", "before-one"]
    assert [first(written, name) for name in ("v", "v@one", "v@two", "v@before-one")] == [1, 1, 2, 3]
    written.kill()
    written.restart()
    assert [first(written, name) for name in ("v", "v@one", "v@two", "v@before-one")] == [1, 1, 2, 3]
    written.ok("snapshot", "rollback", "v@before-one", "--no-safety")
    assert first(written, "v") == 3
    fill(written, "v", 4)
    assert [first(written, name) for name in ("v", "v@one", "v@two", "v@before-one")] == [4, 1, 2, 3]


def test_who_has_it_open_is_left_alone_or_disconnected(written: Daemon) -> None:
    with nbd.connect(written.uri("v")) as handle:
        said = written.refused("snapshot", "rollback", "v@one")
        assert said.startswith("volume v is in use by 1 client"), said
        assert handle.pread(1, 0) == b"\3"
        assert [each["name"] for each in written.snapshots("v")] == ["one", "two"]
        written.ok("snapshot", "rollback", "v@one", "--force", "--safety-name", "kept")
        with pytest.raises(nbd.NbdError):
            handle.pread(1, 0)
    assert (first(written, "v"), first(written, "v@kept")) == (1, 3)
    assert "no snapshot" in written.refused("snapshot", "rollback", "v@none")


@pytest.mark.slow
def test_space_comes_back_when_snapshots_of_what_was_left_are_deleted(written: Daemon) -> None:
    def used() -> int:
        return int(written.volume("v")["space"]["used"])

    full = used()
    written.ok("snapshot", "rollback", "v@one", "--no-safety")
    for name in ("one", "two"):
        written.ok("snapshot", "delete", f"v@{name}")
    deadline = time.monotonic() + 20
    while used() >= full and time.monotonic() < deadline:
        time.sleep(0.1)
    assert used() < full
    assert first(written, "v") == 1
    fill(written, "v", 5)
    written.restart()
    assert first(written, "v") == 5


def test_a_rollback_takes_as_long_however_much_has_changed(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1G")
    daemon.ok("snapshot", "create", "v", "--name", "empty")
    fill(daemon, "v", 1, 32 << 20)
    began = time.monotonic()
    daemon.api.post("volumes", "v", "snapshots", "empty", "rollback", body={})
    assert time.monotonic() - began < 5
    assert first(daemon, "v") == 0


def test_a_group_goes_back_as_a_whole(daemon: Daemon) -> None:
    for volume in ("a", "b"):
        daemon.ok("volume", "create", volume, "--size", str(SIZE))
        fill(daemon, volume, 1)
    daemon.ok("group", "create", "g", "a", "b")
    daemon.ok("snapshot", "create", "@g", "--name", "both")
    for volume in ("a", "b"):
        fill(daemon, volume, 2)
    with nbd.connect(daemon.uri("b")):
        assert "volume b is in use" in daemon.refused("snapshot", "rollback", "@g@both")
        assert first(daemon, "a") == 2
    daemon.ok("snapshot", "rollback", "@g@both")
    assert [first(daemon, volume) for volume in ("a", "b")] == [1, 1]
    shown = daemon.json("snapshot", "show", "@g@before-both")
    assert [member["volume"] for member in shown["members"]] == ["a", "b"]
    assert [first(daemon, f"{volume}@before-both") for volume in ("a", "b")] == [2, 2]


def rollbacks(daemon: Daemon) -> list[tuple[int, int]]:
    """The rollbacks in the catalog: epoch, target."""
    connection = sqlite3.connect(f"file:{daemon.state_dir / 'catalog.db'}?mode=ro", uri=True)
    try:
        return list(connection.execute("SELECT at, to_epoch FROM rollback ORDER BY at"))
    finally:
        connection.close()


@contextlib.contextmanager
def slow_renames(daemon: Daemon, log: Path) -> Iterator[None]:
    """Each rename of the daemon takes most of a second."""
    calls = "rename,renameat,renameat2"
    inject = f"inject={calls}:delay_enter=700000"
    options: list[Argument] = ["-f", "-qq", "-p", daemon.pid, "-e", f"trace={calls}", "-e", inject]
    with Background("strace", *options, log=log) as tracer:
        status = Path(f"/proc/{daemon.pid}/status")
        tracer.wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), "strace has the daemon")
        yield


@pytest.mark.slow
def test_a_rollback_while_a_checkpoint_is_written_is_not_forgotten_with_those_before(
    daemon: Daemon, tmp_path: Path
) -> None:
    def roll_back() -> None:
        body = {"safety": False}
        daemon.api.post("volumes", "v", "snapshots", "s", "rollback", body=body)

    def wake() -> None:
        daemon.api.post("snapshots", body={"volumes": ["v"], "name": "nothing"})
        daemon.api.post("volumes", "v", "deletions", body={"names": ["nothing*"]})

    def shown() -> dict[str, bytes]:
        return {name: nbd.read_all(daemon.uri(name)) for name in ("v", "v@s", *later)}

    later: list[str] = []
    daemon.ok("volume", "create", "v", "--size", "2M", "--processors", "1")
    fill(daemon, "v", 1, 2 << 20)
    daemon.ok("snapshot", "create", "v", "--name", "first")
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(bytes([2]) * BLOCK, 400 * BLOCK)  # keeps its chunk from being punched
    daemon.ok("snapshot", "create", "v", "--name", "s")
    fill(daemon, "v", 3, 8 * BLOCK)
    roll_back()
    one = rollbacks(daemon)
    fill(daemon, "v", 4, 64 * BLOCK)
    with slow_renames(daemon, tmp_path / "strace.log"):
        wake()
        wait_until(lambda: any(daemon.state_dir.glob("volumes/*/*.checkpoint.new")), "a checkpoint")
        roll_back()
        wait_until(lambda: one[0] not in rollbacks(daemon), "the first rollback is forgotten")
    daemon.ok("snapshot", "create", "v", "--name", "after")
    later.append("v@after")
    expected = shown()
    assert expected["v"] == expected["v@s"] == expected["v@after"]
    daemon.kill()
    daemon.restart()
    assert shown() == expected
    # What was made since is covered by a checkpoint of its own, and then it is forgotten.
    wake()
    wait_until(lambda: rollbacks(daemon) == [], "the second rollback is forgotten")
    daemon.kill()
    daemon.restart()
    assert shown() == expected


def test_a_catalog_without_a_rollback_that_the_journal_has_is_not_served(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "2M", "--processors", "1")
    fill(daemon, "v", 1)
    daemon.ok("snapshot", "create", "v", "--name", "s")
    fill(daemon, "v", 2)
    daemon.ok("snapshot", "rollback", "v@s")
    daemon.kill()
    kept = rollbacks(daemon)
    catalog = daemon.state_dir / "catalog.db"
    with closing(sqlite3.connect(catalog)) as connection:
        row = connection.execute("SELECT * FROM rollback").fetchone()
    change(catalog, "DELETE FROM rollback")
    checked = daemon.cli("check", "--state-dir", daemon.state_dir)
    assert "does not have this rollback" in checked.out + checked.err, checked
    daemon.start()
    volume = daemon.volume("v")
    assert volume["state"] == "not-served"
    assert "does not have this rollback" in volume["reason"], volume["reason"]
    daemon.stop()
    change(catalog, f"INSERT INTO rollback VALUES {row}")
    daemon.start()
    assert [first(daemon, name) for name in ("v", "v@s", "v@before-s")] == [1, 1, 2]
    daemon.stop()  # where polyvold has the catalog for itself alone, no other process reads it
    assert rollbacks(daemon) == kept
