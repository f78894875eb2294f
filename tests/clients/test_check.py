"""test_check: polyvol check on state directories that a real daemon has left, whole and damaged.

How it works      Each test makes a volume with a snapshot and blocks in its change log, stops or kills the
                  daemon, damages something, and compares what the check says; and what the directory holds
                  before and after.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.catalogs import change
from tests.support.daemon import Daemon, flip
from tests.support.nbd import connect
from tests.support.proc import run

MIB = 1 << 20
BLOCK = 4096


def contents(directory: Path) -> dict[str, str]:
    """Every file below a directory, sockets left out, with what it holds and when it was changed."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(directory))] = f"{digest} {path.stat().st_mtime_ns}"
        else:
            found[str(path.relative_to(directory))] = ""
    return found


def checked(daemon: Daemon, *arguments: str) -> tuple[int, list[str], list[str]]:
    """The exit status of a check, its problems and its notes; nothing was changed."""
    before = contents(daemon.directory)
    result = daemon.cli("check", "--json", *arguments)
    assert contents(daemon.directory) == before
    view = json.loads(result.out)
    assert (result.rc != 0) == bool(view["problems"])
    return result.rc, view["problems"], view["notes"]


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    """A daemon with a volume of two partitions, a snapshot, and blocks written after it."""
    daemon.add_devices("a", "b", size="8M")
    daemon.add_devices("log", size="96M")
    daemon.create_on_two_devices("2M")
    with connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * 2 * MIB, 0)
        daemon.ok("snapshot", "create", "v", "--name", "s")
        host.pwrite(b"b" * 16 * BLOCK, 0)
        host.pwrite(b"c" * 16 * BLOCK, MIB)
        host.flush()
    return daemon


def engine_files(daemon: Daemon, ending: str) -> list[Path]:
    return sorted((daemon.state_dir / "volumes").glob(f"*/p*.{ending}"))


def change_catalog(daemon: Daemon, statement: str) -> None:
    change(daemon.state_dir / "catalog.db", statement)


@pytest.mark.slow
def test_a_directory_that_is_whole_passes_after_a_stop_and_after_a_kill(used: Daemon) -> None:
    assert "runs on" in used.refused("check")
    used.stop()
    assert checked(used) == (0, [], [])
    words = used.ok("check", "--data")
    assert "volume v: 2 partitions, 1 snapshot, 32 slots in use, 128 KiB read and checked" in words
    assert "0 problems" in words
    used.start()
    with connect(used.uri("v")) as host:
        host.pwrite(b"d" * 8 * BLOCK, 4 * BLOCK)
        used.kill()
    assert checked(used, "--data") == (0, [], [])
    used.start()
    with connect(used.uri("v")) as host:
        assert host.pread(BLOCK, 4 * BLOCK) == b"d" * BLOCK


def test_a_directory_that_is_none_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    assert "is not a state directory" in daemon.refused("check", "--state-dir", tmp_path)
    assert list(tmp_path.iterdir()) == []


def damage_label(daemon: Daemon) -> None:
    flip(daemon.directory / "a.img", 100)


def remove_device(daemon: Daemon) -> None:
    (daemon.directory / "a.img").unlink()


def damage_checkpoint(daemon: Daemon) -> None:
    flip(engine_files(daemon, "checkpoint")[-1], 4200)


def put_extents_over_each_other(daemon: Daemon) -> None:
    change_catalog(daemon, "UPDATE partition_extent SET device = 1 WHERE partition = 1")


def put_extent_outside(daemon: Daemon) -> None:
    change_catalog(daemon, "UPDATE partition_extent SET offset = 8384512 WHERE partition = 1")


def lose_reference(daemon: Daemon) -> None:
    change_catalog(daemon, "UPDATE snapshot SET volume = 77")


def give_epoch_to_come(daemon: Daemon) -> None:
    change_catalog(daemon, "UPDATE snapshot SET epoch = 99")


def leave_volume(daemon: Daemon) -> None:
    (daemon.state_dir / "volumes" / "0000").mkdir()


def leave_device(daemon: Daemon) -> None:
    (daemon.state_dir / "devices" / "old.data").touch()


def leave_journal(daemon: Daemon) -> None:
    (engine_files(daemon, "journal")[0].parent / "p077-0000000001.journal").touch()


def lose_volume(daemon: Daemon) -> None:
    directory = engine_files(daemon, "journal")[0].parent
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def damage_catalog(daemon: Daemon) -> None:
    path = daemon.state_dir / "catalog.db"
    path.write_bytes(path.read_bytes()[:5000] + bytes(3000))


def lose_catalog(daemon: Daemon) -> None:
    (daemon.state_dir / "catalog.db").unlink()


def empty_catalog(daemon: Daemon) -> None:
    (daemon.state_dir / "catalog.db").write_bytes(b"")


def change_row(daemon: Daemon) -> None:
    connection = sqlite3.connect(daemon.state_dir / "catalog.db")
    connection.execute("UPDATE partition_extent SET offset = offset + 4096 WHERE partition = 1")
    connection.commit()
    connection.close()


def lose_mark(daemon: Daemon) -> None:
    (daemon.state_dir / "catalog.mark").unlink()


def damage_record_of_mark(daemon: Daemon) -> None:
    flip(daemon.state_dir / "catalog.mark", 540)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_catalog, "catalog.db is missing, but"),
        pytest.param(empty_catalog, "catalog.db is empty, but", marks=pytest.mark.slow),
        (change_row, "the rows of its table partition_extent do not match the checksum"),
        pytest.param(lose_mark, "catalog.mark is missing", marks=pytest.mark.slow),
        pytest.param(damage_record_of_mark, "catalog.mark: record 2 of 2 is damaged", marks=pytest.mark.slow),
        pytest.param(damage_label, "device a: the label on", marks=pytest.mark.slow),
        pytest.param(remove_device, "does not exist", marks=pytest.mark.slow),
        pytest.param(damage_checkpoint, "its checksum does not match", marks=pytest.mark.slow),
        pytest.param(
            put_extents_over_each_other, "is over one of partition 0 of volume v", marks=pytest.mark.slow
        ),
        pytest.param(put_extent_outside, "is outside the data area", marks=pytest.mark.slow),
        pytest.param(lose_reference, "refers to a volume that is not there", marks=pytest.mark.slow),
        pytest.param(give_epoch_to_come, "which is yet to come", marks=pytest.mark.slow),
        pytest.param(leave_volume, "belongs to no volume of the catalog", marks=pytest.mark.slow),
        pytest.param(leave_device, "belongs to no device of the catalog", marks=pytest.mark.slow),
        pytest.param(leave_journal, "belongs to no processor of volume v", marks=pytest.mark.slow),
        pytest.param(lose_volume, "is not there", marks=pytest.mark.slow),
        pytest.param(damage_catalog, "catalog.db cannot be used", marks=pytest.mark.slow),
    ],
)
def test_what_is_wrong_is_told(used: Daemon, damage: Callable[[Daemon], None], words: str) -> None:
    used.stop()
    damage(used)
    rc, problems, _ = checked(used)
    assert (rc, any(words in problem for problem in problems)) == (1, True), problems
    result = used.cli("check")
    assert (result.rc, words in result.out) == (1, True)


@pytest.mark.slow
def test_a_catalog_that_is_refused_is_left_and_can_be_accepted(used: Daemon) -> None:
    used.stop()
    catalog = used.state_dir / "catalog.db"
    older = catalog.read_bytes()
    used.start()
    used.ok("snapshot", "create", "v", "--name", "later")
    used.stop()
    catalog.write_bytes(older)
    assert "is an older copy" in checked(used)[1][0]
    refused = run(*used.command())
    assert (refused.rc, refused.out) == (1, "")
    assert len(refused.err.splitlines()) == 1
    assert "is an older copy" in refused.err
    assert catalog.read_bytes() == older
    used.arguments = (*used.arguments, "--accept-older-catalog")
    used.start()
    assert [each["name"] for each in used.json("snapshot", "list", "v")] == ["s"]


@pytest.mark.slow
def test_a_changed_block_is_found_when_data_is_read(used: Daemon) -> None:
    used.stop()
    log = used.directory / "log.img"
    flip(log, log.read_bytes().index(b"b" * BLOCK) + 9)
    assert checked(used) == (0, [], [])
    rc, problems, _ = checked(used, "--data")
    assert rc == 1
    assert len(problems) == 1
    assert "volume v: partition 0 block" in problems[0]
    assert "its checksum does not match" in problems[0]


@pytest.mark.slow
def test_what_a_crash_leaves_is_a_note_and_stays(used: Daemon) -> None:
    used.stop()
    directory = engine_files(used, "journal")[0].parent
    (directory / "p000-0000009999.journal").write_bytes(bytes(65536))
    (directory / "p001-0000009999.checkpoint.new").write_bytes(b"half")
    rc, problems, notes = checked(used)
    assert (rc, problems) == (0, [])
    assert len(notes) == 2
    used.start()
    used.stop()
    assert not (directory / "p000-0000009999.journal").exists()
    assert checked(used)[:2] == (0, [])


def test_a_volume_that_is_half_deleted_is_no_problem(daemon: Daemon) -> None:
    """A kill during it leaves the volume's devices in the catalog without their files."""
    daemon.ok("volume", "create", "half", "--size", "2M")
    daemon.kill()
    change(daemon.state_dir / "catalog.db", "UPDATE volume SET state = 'deleting'")
    for path in (daemon.state_dir / "devices").iterdir():
        path.unlink()
    code, problems, notes = checked(daemon)
    assert (code, problems) == (0, [])
    assert any("volume half was being deleted" in note for note in notes)
    daemon.start()
    assert daemon.api.get("volumes") == []
