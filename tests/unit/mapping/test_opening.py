"""Opening: which links are followed, what is made, and that what is held is held once."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polyvol.mapping import opening
from polyvol.mapping.errors import DeviceUnusable, UnsafeLink
from polyvol.mapping.opening import HeldByOther, create_file, open_file, remove_name

MakeFile = Callable[[str, int], Path]


def test_links_that_nobody_else_could_have_put_there_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    target = tmp_path / "a/b/file"
    target.write_bytes(b"x")
    (tmp_path / "absolute").symlink_to(tmp_path / "a")
    (tmp_path / "a/relative").symlink_to("../a/./b")
    (tmp_path / "last").symlink_to("absolute/relative/file")
    for path in ("last", "absolute/b/file", "a/relative/../b/file", "absolute/relative/file"):
        with open_file(tmp_path / path) as file:
            assert file.identity == opening.identity_of(target)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        open_file(tmp_path / "loop")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "absolute/nothing/file")


@pytest.mark.parametrize("mode", [0o777, 0o775])
@pytest.mark.parametrize("where", ["last", "above"])
def test_a_link_in_a_directory_that_others_write_to_is_refused(tmp_path: Path, mode: int, where: str) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files/file").write_bytes(b"x")
    (others / "link").symlink_to(tmp_path / ("files/file" if where == "last" else "files"))
    path = others / "link" if where == "last" else others / "link/file"
    open_file(path).close()
    others.chmod(mode)
    with pytest.raises(UnsafeLink, match="link"):
        open_file(path)
    with pytest.raises(UnsafeLink):
        create_file(others / "link/new" if where == "above" else path)
    others.chmod(0o1777)  # there, only its owner can put a link in its place
    open_file(path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given_away", ["link", "."])
def test_a_link_of_somebody_else_is_refused(tmp_path: Path, given_away: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").write_bytes(b"x")
    link = tmp_path / "theirs/link"
    link.symlink_to("file")
    open_file(link).close()
    os.lchown(tmp_path / "theirs" / given_away, 12345, 12345)
    with pytest.raises(UnsafeLink):
        open_file(link)


def test_what_takes_the_place_of_a_file_while_it_is_opened_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    real = os.open

    def racing(replace: Callable[[], object]) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(b"x")

        def opened(name: str, flags: int, *others: int, **options: int) -> int:
            if flags & os.O_RDWR and name == "file":
                path.unlink()
                replace()
            return real(name, flags, *others, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", opened)
            with pytest.raises((OSError, DeviceUnusable)):
                open_file(path)

    racing(lambda: path.symlink_to(victim))
    racing(lambda: path.hardlink_to(victim))
    racing(lambda: path.write_bytes(b"other"))
    racing(lambda: os.mkfifo(path))


def test_a_new_file_is_new(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    for name in ("link", "victim"):
        with pytest.raises(FileExistsError):
            create_file(tmp_path / name)
    create_file(tmp_path / "dangling").close()
    assert (tmp_path / "elsewhere").stat().st_size == 0
    assert victim.read_bytes() == b"precious"


def test_a_file_is_held_once_and_read_by_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with create_file(path) as file:
        assert file.held
        with pytest.raises(HeldByOther):
            open_file(path)
        (tmp_path / "link").hardlink_to(path)
        with pytest.raises(HeldByOther):
            open_file(tmp_path / "link")
        with open_file(path, write=False, hold=False) as reading:
            assert opening.is_held(reading.fd)
        again = os.open(file.proc_path, os.O_RDWR)  # as the engine does
        os.close(again)
        with pytest.raises(HeldByOther):
            open_file(path)
    with open_file(path) as file:
        assert not opening.is_held(file.fd)


def test_other_programs_that_lock_what_qemu_locks_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    code = (
        "import fcntl, os, struct, sys\n"
        f"fd = os.open({str(path)!r}, os.O_RDWR)\n"
        "fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack('hhqqi0q', fcntl.F_RDLCK, 0, 101, 1, 0))\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(HeldByOther):
            open_file(path)
        other.stdin.close()
        assert other.wait(20) == 0
    open_file(path).close()


def test_without_locks_a_file_is_opened_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    real = fcntl.fcntl

    def no_locks(fd: int, command: int, *others: int) -> object:
        if command in (fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK):
            raise OSError(37, "No locks available")
        return real(fd, command, *others)

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with open_file(path) as file:
        assert not file.held
        assert not opening.is_held(file.fd)


def test_a_name_is_removed_only_while_it_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with create_file(path) as file:
        path.rename(tmp_path / "moved")
        assert not remove_name(path, file.identity)
        path.write_bytes(b"another")
        assert not remove_name(path, file.identity)
        assert path.read_bytes() == b"another"
        assert remove_name(tmp_path / "moved", file.identity)
        assert not (tmp_path / "moved").exists()
