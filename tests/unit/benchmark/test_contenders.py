"""The files that the benchmark's servers serve."""

from pathlib import Path

from scripts.benchmark.contenders import fill

SIZE = 32 << 20


def test_what_is_behind_a_label_is_filled_and_the_label_stays(tmp_path: Path) -> None:
    path = tmp_path / "log.img"
    path.write_bytes(b"label")
    fill(path, SIZE, behind=4096)
    data = path.read_bytes()
    assert data[:4096] == b"label".ljust(4096, b"\0")
    assert len(data) == 4096 + SIZE
    assert all(any(data[at : at + 4096]) for at in range(4096, len(data), 4096))


def test_a_file_that_is_filled_anew_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "base.img"
    path.write_bytes(bytes(2 * SIZE))
    fill(path, SIZE)
    assert path.stat().st_size == SIZE
