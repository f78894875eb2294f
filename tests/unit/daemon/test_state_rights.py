"""A state directory that others can write to, or whose path they can change, is refused."""

import errno
import os
from pathlib import Path

import pytest

from polyvol.daemon.errors import StateOpen, StateUnusable
from polyvol.daemon.state import directory as state

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A state directory that polyvold has made."""
    path = tmp_path / "above" / "state"
    state.make_state_dir(path)
    (path / "catalog.db").touch(0o600)
    (path / "lock").touch(0o600)
    for name in ("volumes", "manifests"):
        (path / name / "x").mkdir(0o700)
    return path


def test_what_polyvold_makes_is_taken(made: Path) -> None:
    state.make_state_dir(made)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
@pytest.mark.parametrize(
    "name", [".", "catalog.db", "lock", "volumes", "volumes/x", "manifests", "manifests/x", "devices"]
)
def test_what_others_can_write_to_is_refused(made: Path, mode: int, name: str) -> None:
    (made / name).chmod(mode)
    before = sorted(made.rglob("*"))
    with pytest.raises(StateOpen, match=r"can be written to by other users; .*`chmod go-w"):
        state.make_state_dir(made)
    assert sorted(made.rglob("*")) == before
    (made / name).chmod(0o700)
    state.make_state_dir(made)


def test_an_empty_directory_that_everybody_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o777)
    with pytest.raises(StateOpen):
        state.make_state_dir(tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []


@needs_root
@pytest.mark.parametrize("name", [".", "catalog.db", "volumes"])
def test_what_belongs_to_another_user_is_refused(made: Path, name: str) -> None:
    os.chown(made / name, NOBODY, -1)
    with pytest.raises(StateOpen, match="belongs to user nobody"):
        state.make_state_dir(made)


def test_a_directory_above_that_everybody_can_write_to_is_refused(made: Path, tmp_path: Path) -> None:
    made.parent.chmod(0o777)
    with pytest.raises(StateOpen, match="all users"):
        state.make_state_dir(made)
    made.parent.chmod(0o1777)  # as /tmp is
    state.make_state_dir(made)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "link").symlink_to(made)
    with pytest.raises(StateOpen, match=f"{open_to_all} can be written to by all users"):
        state.make_state_dir(open_to_all / "link")
    (tmp_path / "link").symlink_to(open_to_all)
    (open_to_all / "inside").mkdir(0o700)
    with pytest.raises(StateOpen, match="link can be written to by all users"):
        state.make_state_dir(tmp_path / "link" / "inside")


@needs_root
def test_a_directory_above_of_another_user_or_group_is_told(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.chown(made.parent, NOBODY, -1)
    state.make_state_dir(made)
    assert f"user nobody can write to {made.parent}" in caplog.text
    os.chown(made.parent, 0, NOBODY)
    made.parent.chmod(0o770)
    state.make_state_dir(made)
    assert f"can write to {made.parent}, and so replace" in caplog.messages[-1]


@pytest.mark.parametrize("name", ["file", "/dev/null", "dangling"])
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(StateUnusable, match="it is not a directory"):
        state.make_state_dir(tmp_path / name)


def test_who_may_not_use_a_state_directory_is_told_to_be_another_user(tmp_path: Path) -> None:
    told = state.unusable(tmp_path, PermissionError(errno.EACCES, "Permission denied"))
    assert "permission denied" in told.message
    assert "run this as a user who has access" in told.advice
    told = state.unusable(tmp_path, OSError(errno.EROFS, "Read-only file system"))
    assert "mount it read-write" in told.advice
    told = state.unusable(tmp_path, OSError(errno.ENOTDIR, "Not a directory"))
    assert "give --state-dir a directory" in told.advice


@pytest.mark.parametrize("name", ["volumes", "manifests/new", "devices/a/b"])
@pytest.mark.parametrize("lost", [None, "catalog.db"])
def test_a_directory_inside_a_state_directory_is_refused_and_left_as_it_is(
    made: Path, tmp_path: Path, name: str, lost: str | None
) -> None:
    if lost is not None:
        (made / lost).unlink()
    (tmp_path / "link").symlink_to(made)
    before = sorted(made.rglob("*"))
    for path in (made / name, tmp_path / "link" / name):
        with pytest.raises(StateUnusable, match=f"{name} cannot be used: it lies inside .*state directory"):
            state.make_state_dir(path)
    assert sorted(made.rglob("*")) == before
    state.make_state_dir(made)


def test_a_directory_with_other_files_is_refused_and_left_as_it_is(made: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").touch()
    with pytest.raises(StateUnusable, match="it has no catalog, and other files, such as 'letter'; give"):
        state.make_state_dir(tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter"]
    with pytest.raises(StateUnusable, match="such as 'state'"):
        state.make_state_dir(made.parent)
    (made / "letter").touch()
    state.make_state_dir(made)


def test_a_directory_with_what_a_start_has_left_or_finds_there_is_taken(tmp_path: Path) -> None:
    for name in ("lost+found", "devices", "volumes", ".profile"):
        (tmp_path / "s" / name).mkdir(parents=True)
    for name in ("nbd.sock", "control.sock", "reserve.1"):
        (tmp_path / "s" / name).touch(0o600)
    state.make_state_dir(tmp_path / "s")
