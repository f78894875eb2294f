"""test_catalog_backup: `polyvol catalog backup`, and the restore that docs/operating.md describes.

How it works      A real polyvold. The restore is done with the commands of the page: the copy is put in the
                  place of a damaged catalog, and the devices are accepted.
"""

import json
import os
import shlex
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from polyvol.mapping.catalog.database import LATEST_VERSION
from polyvol.mapping.catalog.examine import Examiner
from tests.support.daemon import BIN, Daemon
from tests.support.nbd import connect
from tests.support.proc import check, run

MIB = 1 << 20
BLOCK = 4096
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    """A daemon with a volume, a snapshot of it, and blocks written after that."""
    daemon.add_devices("a", "b", size="8M")
    daemon.add_devices("log", size="96M")
    daemon.create_on_two_devices("2M")
    with connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * 2 * MIB, 0)
        daemon.ok("snapshot", "create", "v", "--name", "s")
        host.pwrite(b"b" * 16 * BLOCK, 0)
        host.flush()
    return daemon


def damage(daemon: Daemon) -> None:
    """Overwrite a page of the catalog of a stopped daemon."""
    path = daemon.state_dir / "catalog.db"
    data = path.read_bytes()
    path.write_bytes(data[:BLOCK] + b"\xff" * BLOCK + data[2 * BLOCK :])


def put_in_place(daemon: Daemon, copy: Path) -> None:
    """The commands of docs/operating.md."""
    page = (ROOT / "docs" / "operating.md").read_text()
    block = page[page.index("    cd /var/lib/polyvol\n") :].split("\n\n")[0]
    script = block.replace("/var/lib/polyvol", str(daemon.state_dir)).replace("/backup/catalog.db", str(copy))
    assert "cp " in script
    check("sh", "-ec", script)


@pytest.mark.slow
def test_a_backup_is_complete_whether_polyvold_runs_or_not(used: Daemon) -> None:
    first, second = used.directory / "first.db", used.directory / "second.db"
    assert "written to" in used.ok("catalog", "backup", first)
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert used.json("catalog", "backup", second)["polyvold_runs"]
    used.stop()
    third = used.directory / "third.db"
    assert not used.json("catalog", "backup", third)["polyvold_runs"]
    names = []
    for path in (first, second, third):
        assert Examiner(path, LATEST_VERSION, None).examine(path)
        with closing(sqlite3.connect(path)) as connection:
            names.append(connection.execute("SELECT name FROM snapshot").fetchall())
    assert names == [[("s",)]] * 3
    assert not list(used.directory.glob("*.partial"))


@pytest.mark.slow
def test_a_backup_to_the_standard_output_is_the_same(used: Daemon) -> None:
    for option in ([], ["--json"]):
        given = used.directory / "given.db"
        said = used.ok_to(given, "catalog", "backup", "-", *option)
        Examiner(given, LATEST_VERSION, None).examine(given)
        told = json.loads(said)["path"] if option else said
        assert told == "-" if option else "written to the standard output and checked" in told
    assert not (used.directory / "-").exists()
    assert list(used.directory.glob("*.partial")) == []
    command = (BIN / "polyvol", "catalog", "backup", "-", "--state-dir", used.state_dir)
    terminal = run("script", "-qec", shlex.join(map(str, command)), "/dev/null")
    assert terminal.rc == 1
    assert "a catalog is not for a terminal; redirect it, or give a file's name" in terminal.out


def test_after_a_kill_a_backup_has_what_only_the_log_has(used: Daemon) -> None:
    used.kill()
    assert (used.state_dir / "catalog.db-wal").stat().st_size
    before = {path: path.read_bytes() for path in used.state_dir.glob("catalog*")}
    copy = used.directory / "copy.db"
    used.ok("catalog", "backup", copy)
    assert {path: path.read_bytes() for path in used.state_dir.glob("catalog*")} == before
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT name FROM snapshot").fetchall() == [("s",)]


def test_a_file_that_exists_is_replaced_only_when_asked(used: Daemon) -> None:
    copy = used.directory / "copy.db"
    copy.write_bytes(b"of somebody")
    refused = used.refused("catalog", "backup", copy)
    assert f"{copy} exists already; choose another name, or give --force to replace it" in refused
    assert copy.read_bytes() == b"of somebody"
    used.ok("catalog", "backup", copy, "--force")
    assert Examiner(copy, LATEST_VERSION, None).examine(copy)
    inside = used.state_dir / "catalog.db.mine"
    assert "polyvold's own files" in used.refused("catalog", "backup", inside, "--force")
    partial = used.directory / "other.db.partial"
    partial.write_bytes(b"")
    said = used.refused("catalog", "backup", used.directory / "other.db")
    assert "remove the file" in said
    assert "--resume" not in said


def test_only_a_regular_file_is_replaced(used: Daemon) -> None:
    pipe, link = used.directory / "pipe", used.directory / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        before = path.lstat().st_ino
        assert "is not a regular file" in used.refused("catalog", "backup", path, "--force")
        assert path.lstat().st_ino == before
    assert not list(used.directory.glob("*.partial"))


@pytest.mark.slow
def test_a_backup_may_have_the_name_of_the_catalog(used: Daemon) -> None:
    """It does not make its directory a state directory, nor one above another's."""
    copy = used.state_dir.parent / "catalog.db"
    used.ok("catalog", "backup", copy)
    used.ok("catalog", "backup", copy, "--force")
    used.ok("catalog", "backup", copy.with_name("catalog.db.2"))
    used.restart()


def test_a_damaged_catalog_is_not_backed_up(used: Daemon) -> None:
    used.stop()
    copy = used.directory / "copy.db"
    damage(used)
    assert "its content is damaged" in used.refused("catalog", "backup", copy)
    assert not list(used.directory.glob("copy*"))
    assert "no catalog" in used.refused("catalog", "backup", copy, "--state-dir", used.directory / "none")


def test_what_is_written_is_read_back(used: Daemon) -> None:
    """A copy whose rows are not what their sums say does not get the name."""
    from polyvol.daemon.client.cli import catalog
    from polyvol.mapping.errors import CatalogDamaged

    used.stop()
    source = used.directory / "source.db"
    used.ok("catalog", "backup", source)
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("UPDATE snapshot SET name = 'wrong'")
    with pytest.raises(CatalogDamaged):
        catalog._write(used.directory / "copy.db", source.read_bytes(), replace=False)
    assert not list(used.directory.glob("copy*"))


@pytest.mark.slow
def test_a_damaged_catalog_is_restored_from_its_backup(used: Daemon) -> None:
    copy = used.directory / "copy.db"
    used.ok("catalog", "backup", copy)
    used.ok("snapshot", "create", "v", "--name", "later")
    with connect(used.uri("v")) as host:
        host.pwrite(b"c" * BLOCK, MIB)
        host.flush()
    used.stop()
    damage(used)
    assert "its content is damaged" in run(*used.command()).err
    put_in_place(used, copy)
    assert "is an older copy" in run(*used.command()).err
    used.arguments = ("--accept-older-catalog",)
    used.start()
    missing = [each["name"] for each in used.json("device", "list") if each["state"] == "missing"]
    assert missing == ["a", "b", "log"]
    for name in missing:
        used.ok("device", "retry", name, "--accept")
    assert [each["name"] for each in used.json("snapshot", "list", "v")] == ["s"]
    used.arguments = ()
    used.restart()
    with connect(used.uri("v")) as host:
        assert host.pread(MIB, 0) == b"b" * 16 * BLOCK + b"a" * (MIB - 16 * BLOCK)
        assert host.pread(MIB, MIB) == b"c" * BLOCK + b"a" * (MIB - BLOCK)
    with connect(used.uri("v@s")) as host:
        assert host.pread(2 * MIB, 0) == b"a" * 2 * MIB
    used.stop()
    assert used.cli("check").rc == 0


@pytest.mark.slow
def test_a_backup_since_which_nothing_was_committed_is_simply_started(used: Daemon) -> None:
    used.stop()
    copy = used.directory / "copy.db"
    used.ok("catalog", "backup", copy)
    damage(used)
    put_in_place(used, copy)
    used.start()
    assert {each["state"] for each in used.json("device", "list")} == {"ok"}
    with connect(used.uri("v")) as host:
        assert host.pread(BLOCK, 0) == b"b" * BLOCK


@pytest.mark.slow
def test_a_volume_that_was_deleted_after_the_backup_is_not_served(used: Daemon) -> None:
    used.ok("volume", "create", "w", "--size", "2M")
    copy = used.directory / "copy.db"
    used.ok("catalog", "backup", copy)
    used.ok("volume", "delete", "w", "--yes")
    used.stop()
    put_in_place(used, copy)
    used.arguments = ("--accept-older-catalog",)
    used.start()
    volume = used.volume("w")
    assert volume["state"] == "not-served"
    assert "is missing" in volume["reason"]
    for name in ("a", "b", "log"):
        used.ok("device", "retry", name, "--accept")
