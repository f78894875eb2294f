"""What takes O_DIRECT, and what is said of what does not; the kernel's refusals are put into its mouth."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polyvol.mapping.direct import check_direct
from polyvol.mapping.errors import DeviceIo, DeviceNotDirect
from polyvol.mapping.opening import OpenFile, open_file
from tests.support import direct

MIB = 1 << 20
MakeFile = Callable[[str, int], Path]


@contextmanager
def opened(path: Path) -> Iterator[OpenFile | None]:
    if not path.exists():
        yield None
        return
    with open_file(path) as file:
        yield file


def refuse(patch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """Have os.open with O_DIRECT, or os.preadv, fail with this errno."""
    real: Callable[..., Any] = getattr(os, call)

    def refusing(first: Any, second: Any, *others: Any, **options: Any) -> Any:
        if call == "preadv" or second & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return real(first, second, *others, **options)

    patch.setattr(os, call, refusing)


def test_files_that_take_it_are_left_as_they_are(tmp_path: Path, sparse_file: MakeFile) -> None:
    direct.needed(tmp_path)
    written = tmp_path / "written"
    written.write_bytes(b"x" * MIB)
    for path in (written, sparse_file("holes", MIB), sparse_file("empty", 0), tmp_path / "new"):
        with opened(path) as file:
            check_direct(path, file, 0 if file is None else path.stat().st_size)
    assert written.read_bytes() == b"x" * MIB
    assert (tmp_path / "empty").stat().st_size == 0
    assert {path.name for path in tmp_path.iterdir()} == {"written", "holes", "empty"}


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("open", errno.EINVAL, "its file system does not take O_DIRECT"),
        ("open", errno.EPERM, "operation not permitted"),
        ("preadv", errno.EINVAL, "it does not take single blocks of 4096 bytes with O_DIRECT"),
        ("preadv", errno.EIO, "input/output error"),
    ],
)
@pytest.mark.parametrize("size", [MIB, 0, None])
def test_what_does_not_take_it_is_refused_and_left_as_it_is(
    tmp_path: Path,
    sparse_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    words: str,
    size: int | None,
) -> None:
    if call == "preadv":
        direct.needed(tmp_path)
    path = tmp_path / "new" if size is None else sparse_file("file", size)
    before = list(tmp_path.iterdir())
    with opened(path) as file, monkeypatch.context() as patch:
        refuse(patch, call, number)
        with pytest.raises(DeviceNotDirect) as refused:
            check_direct(path, file, size or 0)
    assert str(refused.value) == f"{path} cannot be used past the page cache: {words}; leave out --direct"
    assert list(tmp_path.iterdir()) == before
    assert size is None or path.stat().st_size == size


def test_where_no_file_can_be_made_the_sentence_is_that_of_making_it(tmp_path: Path) -> None:
    with pytest.raises(DeviceIo, match=r"nowhere/d failed: the directory .*nowhere does not exist"):
        check_direct(tmp_path / "nowhere" / "d", None, 0)
