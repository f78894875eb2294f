"""An older or missing catalog, or one without its log, is refused with a sentence, and left as it is."""

import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import crcmod.predefined
import pytest

from polyvol.mapping.catalog.database import mark_of
from polyvol.mapping.catalog.mark import Mark, Marked
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import (
    CatalogDamaged,
    CatalogMissing,
    CatalogOlder,
    CatalogUnmarked,
    PolyvolError,
)
from tests.support.catalogs import killed, refused, used_catalog

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def used(tmp_path: Path) -> Path:
    return used_catalog(tmp_path)


def test_the_mark_has_the_bytes_of_its_page(used: Path) -> None:
    catalog = Catalog(used)
    commits = catalog._database.rows("SELECT commits FROM catalog")[0][0]
    for step in range(3):
        catalog.settings.set("step", str(step))
        data = mark_of(used).read_bytes()
        found = [data[at : at + 44] for at in (0, 512)]
        newest = found[(commits + step + 1) % 2]
        assert struct.unpack_from("<8sII16sQ", newest) == (
            b"PVMARK\0\x01",
            1,
            44,
            catalog.uuid.bytes,
            commits + step + 1,
        )
        crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")
        assert struct.unpack_from("<I", newest, 40)[0] == crc32c(newest[:40])
        assert len(data) == 1024
        assert not any(data[44:512])
        assert not any(data[556:])
    catalog.close()
    page = (ROOT / "docs" / "formats-labels.md").read_text()
    part = page[page.index("### The mark") :]
    assert re.findall(r"^\| (\d+) \| (\d+) \|", part, re.M) == [
        ("0", "8"),
        ("8", "4"),
        ("12", "4"),
        ("16", "16"),
        ("32", "8"),
        ("40", "4"),
    ]
    assert "`50 56 4d 41 52 4b 00 01`" in part


def remove_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def truncate_wal(path: Path) -> None:
    file = Path(f"{path}-wal")
    file.write_bytes(file.read_bytes()[:-2000])


def empty_wal(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"")


def damage_wal(path: Path) -> None:
    file = Path(f"{path}-wal")
    data = bytearray(file.read_bytes())
    data[len(data) - 3000] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [remove_wal, truncate_wal, empty_wal, damage_wal])
def test_a_log_that_is_not_whole_is_noticed(used: Path, damage: Callable[[Path], None]) -> None:
    path = killed(used)
    damage(path)
    refused(path, CatalogOlder, "its -wal file is missing or damaged")


def test_an_older_catalog_is_refused_and_can_be_accepted(used: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    shutil.copyfile(used, older)
    catalog = Catalog(used)
    catalog.settings.set("later", "1")
    catalog.close()
    shutil.copyfile(older, used)
    refused(used, CatalogOlder, "is an older copy")
    Catalog(used, accept_older=True).close()
    catalog = Catalog(used)
    assert catalog.settings.get("later") is None
    catalog.close()


def test_an_older_catalog_with_a_newer_log_is_refused(used: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    shutil.copyfile(used, older)
    catalog = Catalog(used)
    catalog.devices.set_path(1, "/elsewhere")
    catalog.close()
    path = killed(used)
    shutil.copyfile(older, path)
    refused(path, CatalogDamaged, "table device")


def test_a_log_of_another_time_is_refused(used: Path) -> None:
    path = killed(used)
    log = Path(f"{path}-wal").read_bytes()
    catalog = Catalog(used)
    catalog.devices.set_path(1, "/elsewhere")
    catalog.close()
    Path(f"{used}-wal").write_bytes(log)
    with pytest.raises((CatalogOlder, CatalogDamaged)):
        Catalog(used)


def lose_mark(path: Path) -> None:
    mark_of(path).unlink()


def shorten_mark(path: Path) -> None:
    mark_of(path).write_bytes(mark_of(path).read_bytes()[:20])


def damage_mark(path: Path) -> None:
    data = bytearray(mark_of(path).read_bytes())
    data[33] ^= 1
    data[512 + 33] ^= 1
    mark_of(path).write_bytes(data)


def newer_mark(path: Path) -> None:
    fields = struct.pack("<8sII16sQ", b"PVMARK\0\x01", 2, 44, bytes(16), 7)
    crc = crcmod.predefined.mkPredefinedCrcFun("crc-32c")(fields)
    mark_of(path).write_bytes((fields + struct.pack("<I", crc)).ljust(512, b"\0") * 2)


def another_mark(path: Path) -> None:
    Mark(mark_of(path)).make(Marked(uuid4(), 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_mark, "is missing"),
        (shorten_mark, "is damaged"),
        (damage_mark, "is damaged"),
        (newer_mark, "has format version 2"),
        (another_mark, "belongs to another catalog"),
    ],
)
def test_a_mark_that_says_nothing_is_told(used: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(used)
    refused(used, CatalogUnmarked, words)
    Catalog(used, accept_older=True).close()
    Catalog(used).close()


def test_one_record_of_the_mark_is_enough(used: Path) -> None:
    catalog = Catalog(used)
    catalog.settings.set("a", "1")
    catalog.settings.set("a", "2")
    catalog.close()
    for at in (0, 512):
        data = bytearray(mark_of(used).read_bytes())
        data[at + 20] ^= 4
        mark_of(used).write_bytes(data)
        catalog = Catalog(used)
        catalog.settings.set("b", "1")
        catalog.settings.set("b", "2")
        catalog.close()
        said = Mark(mark_of(used)).read()
        assert said is not None
        assert all(isinstance(each, Marked) for each in said)


def test_a_mark_of_before_the_last_commit_is_brought_up_to_date(used: Path) -> None:
    before = mark_of(used).read_bytes()
    catalog = Catalog(used)
    for number in range(5):
        catalog.settings.set("a", str(number))
    catalog.close()
    after = mark_of(used).read_bytes()
    mark_of(used).write_bytes(before)  # a power loss can leave this
    Catalog(used).close()
    newest = max(each.commits for each in Mark(mark_of(used)).read() or [] if isinstance(each, Marked))
    assert struct.pack("<Q", newest) in after


def test_a_mark_that_cannot_be_written_is_written_before_the_next_commit(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(used)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(catalog._database._mark, "write", fail)
        catalog.settings.set("a", "1")  # it is committed, and so it succeeds
        with pytest.raises(PolyvolError, match="input/output error"):
            catalog.settings.set("a", "2")
    assert catalog.settings.get("a") == "1"
    catalog.settings.set("a", "3")
    catalog.close()
    Catalog(used).close()


# No catalog


@pytest.mark.parametrize("trace", ["catalog.mark", "catalog.db-wal", "volumes/u", "devices/v.data"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_catalog_that_is_gone_is_refused(tmp_path: Path, trace: str, how: str) -> None:
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_bytes(b"x")
    path = tmp_path / "catalog.db"
    if how == "empty":
        path.touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CatalogMissing, match=f"is {how}, but {tmp_path / trace} shows"):
        Catalog(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", ["nothing", "empty", "no tables"])
def test_a_new_state_directory_gets_a_catalog(tmp_path: Path, left: str) -> None:
    path = tmp_path / "catalog.db"
    for name in ("volumes", "devices"):
        (tmp_path / name).mkdir()
    if left == "empty":
        path.touch()
    if left == "no tables":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    Catalog(path).close()
    assert sorted(each.name for each in tmp_path.glob("catalog*")) == ["catalog.db", "catalog.mark"]
    Catalog(path).close()


def test_a_catalog_without_tables_that_was_used_is_refused(used: Path) -> None:
    used.unlink()
    with closing(sqlite3.connect(used)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    refused(used, CatalogMissing, "is empty")
