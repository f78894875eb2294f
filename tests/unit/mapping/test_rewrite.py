"""The catalog is rewritten after a kill: whole at every moment, and what it was."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from polyvol.mapping.catalog import rewrite
from polyvol.mapping.catalog.database import LATEST_VERSION, Database
from polyvol.mapping.catalog.examine import Examiner
from polyvol.mapping.catalog.mark import Mark
from polyvol.mapping.errors import CatalogVersion

NAME, MARK = "c.db", "c.mark"


def killed(directory: Path) -> Path:
    """What a killed process has left: a file, and a log of which it knows nothing."""
    used = directory / "used"
    used.mkdir()
    database = Database(used / NAME)
    for number in range(20):
        with database.transaction() as connection:
            connection.execute("INSERT INTO setting VALUES (?, ?)", (f"s{number}", "x" * 3000))
    left = directory / "left"
    left.mkdir()
    for name in (NAME, f"{NAME}-wal", MARK):
        shutil.copyfile(used / name, left / name)
    database.close()
    return left / NAME


def examine(file: Path) -> bool:
    return Examiner(file.with_name(NAME), LATEST_VERSION, Mark(file.with_name(MARK))).examine(file)


def settings(path: Path) -> int:
    database = Database(path)
    try:
        return len(database.rows("SELECT * FROM setting"))
    finally:
        database.close()


def test_after_a_kill_nothing_of_the_old_files_is_used(tmp_path: Path) -> None:
    path = killed(tmp_path)
    inode, log = path.stat().st_ino, Path(f"{path}-wal")
    assert log.stat().st_size > 0
    rewrite.rewrite(path, examine)
    assert path.stat().st_ino != inode
    assert sorted(each.name for each in path.parent.iterdir()) == [NAME, MARK]
    assert settings(path) == 20
    inode = path.stat().st_ino
    rewrite.rewrite(path, examine)
    assert path.stat().st_ino == inode, "what was closed well is left alone"


def test_whenever_it_is_cut_off_it_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = killed(tmp_path).parent
    calls = 0
    for stop in range(100):
        directory = tmp_path / str(stop)
        shutil.copytree(left, directory)
        calls = 0

        def step(*_: object, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            for where, name in ((os, "rename"), (os, "unlink"), (os, "fsync")):
                _before(patch, where, name, step)
            try:
                rewrite.rewrite(directory / NAME, examine)
            except KeyboardInterrupt:
                assert stop
        assert settings(directory / NAME) == 20, stop
        assert not list(directory.glob("*renew*")), stop
        if stop > calls:
            break
    assert calls > 5


def test_a_later_version_is_left_as_it_is(tmp_path: Path) -> None:
    path = killed(tmp_path)
    scratch = tmp_path / NAME
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", f"{scratch}{suffix}")
    connection = sqlite3.connect(scratch)
    connection.execute(f"PRAGMA user_version = {LATEST_VERSION + 1}")
    connection.commit()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{scratch}{suffix}", f"{path}{suffix}")
    connection.close()
    before = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    with pytest.raises(CatalogVersion):
        rewrite.rewrite(path, examine)
    assert sorted(each.name for each in path.parent.iterdir()) == [NAME, f"{NAME}-wal", MARK]
    assert (path.read_bytes(), Path(f"{path}-wal").read_bytes()) == before


def _before(patch: pytest.MonkeyPatch, where: object, name: str, step: object) -> None:
    real = getattr(where, name)

    def called(*arguments: object, **named: object) -> object:
        step()  # type: ignore[operator]
        return real(*arguments, **named)

    patch.setattr(where, name, called)
