"""test_backup: what was backed up comes back bit for bit, and what is broken changes nothing.

How it works      Two daemons: volume `v` of one is written, snapshotted and backed up; the other restores.
                  Contents are compared by qemu-img over NBD. Broken streams are made of good ones.
"""

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvol.snapshot.stream import FRAME_BYTES, HEADER_BYTES, MAGIC, FrameReader, read_header
from tests.support import nbd
from tests.support.daemon import BIN, Daemon, short_directory
from tests.support.proc import wait_until

MIB = 1 << 20
SIZE = 96 * MIB


@pytest.fixture
def volume(daemon: Daemon) -> str:
    """A volume with something in it, and a snapshot `s0` of that."""
    daemon.make_volume("v", size="96M", partition_size="4M")
    fill(daemon, 0, pieces=40)
    daemon.ok("snapshot", "create", "v", "--name", "s0")
    return "v"


@pytest.fixture
def other() -> Iterator[Daemon]:
    """Another daemon, to restore on."""
    with short_directory() as directory, Daemon(directory) as daemon:
        yield daemon


def fill(daemon: Daemon, seed: int, *, pieces: int = 12) -> None:
    """Write, zero and trim here and there: bytes that compress and bytes that do not."""
    draw = random.Random(seed)
    with nbd.connect(daemon.uri("v")) as handle:
        for _ in range(pieces):
            offset, length = draw.randrange(SIZE - MIB), draw.randrange(1, MIB)
            kind = draw.randrange(5)
            if kind < 2:
                handle.pwrite(draw.randbytes(length), offset)
            elif kind < 3:
                handle.pwrite(b"text " * (length // 5 + 1), offset)
            else:
                offset, length = offset // 4096 * 4096, length // 4096 * 4096 + 4096
                (handle.zero if kind == 3 else handle.trim)(length, offset)


def chain(daemon: Daemon, directory: Path, steps: int) -> list[Path]:
    """A full backup of `s0`, then incremental ones of `s1`, `s2`..., each after some changes."""
    files = [directory / "s0.pv"]
    daemon.ok("backup", "v@s0", "-o", files[0])
    for number in range(1, steps + 1):
        fill(daemon, number)
        daemon.ok("snapshot", "create", "v", "--name", f"s{number}")
        files.append(directory / f"s{number}.pv")
        daemon.ok("backup", f"v@s{number}", "--since", f"s{number - 1}", "-o", files[-1])
    return files


@pytest.mark.slow
def test_a_chain_comes_back_bit_for_bit_and_goes_on(
    daemon: Daemon, volume: str, other: Daemon, tmp_path: Path
) -> None:
    files = chain(daemon, tmp_path, 3)
    assert all(file.stat().st_size < files[0].stat().st_size for file in files[1:])
    for file in files:
        other.ok("restore", file, "w")
    for number in range(4):
        nbd.qemu_compare(daemon.uri(f"v@s{number}"), other.uri(f"w@s{number}"))
    nbd.qemu_compare(daemon.uri("v@s3"), other.uri("w"))
    originals = {each["name"]: each["uuid"] for each in daemon.snapshots("v")}
    assert {each["name"]: each["copy_of"] for each in other.snapshots("w")} == originals
    # The copy can be backed up in its turn, and what was restored from it follows the original's chain.
    other.ok("backup", "w@s2", "-o", tmp_path / "again.pv")
    other.ok("restore", tmp_path / "again.pv", "x")
    other.ok("restore", files[3], "x")
    nbd.qemu_compare(daemon.uri("v@s3"), other.uri("x@s3"))


@pytest.mark.slow
def test_pipes_do_as_well_as_files(daemon: Daemon, volume: str, other: Daemon, tmp_path: Path) -> None:
    chain(daemon, tmp_path, 1)
    for arguments in (["v@s0"], ["v@s1", "--since", "s0"]):
        piped(daemon, other, arguments)
    nbd.qemu_compare(daemon.uri("v@s1"), other.uri("w@s1"))


def piped(daemon: Daemon, other: Daemon, arguments: list[str]) -> None:
    """`polyvol backup ARGUMENTS -o - | polyvol restore - w`."""
    env = dict(os.environ, POLYVOL_STATE=str(daemon.state_dir))
    command = [str(BIN / "polyvol"), "backup", *arguments, "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as source:
        env = dict(os.environ, POLYVOL_STATE=str(other.state_dir))
        restore = [str(BIN / "polyvol"), "restore", "-", "w"]
        subprocess.run(restore, stdin=source.stdout, env=env, check=True, timeout=60, capture_output=True)
        assert source.wait(60) == 0


def broken(file: Path) -> Iterator[tuple[str, bytes]]:
    """Broken streams made of a good one, with what is wrong with each."""
    good = file.read_bytes()
    with file.open("rb") as opened:
        reader = FrameReader(opened, read_header(opened, "it"), "it")
        starts = [HEADER_BYTES]
        while reader.next() is not None:
            starts.append(opened.tell())
    parts = [good[start:end] for start, end in zip(starts, [*starts[1:], len(good)], strict=True)]
    assert len(parts) > 4
    head = good[:HEADER_BYTES]
    yield "ends before its end", good[: starts[-1]]
    filled = next(number for number, part in enumerate(parts) if len(part) > FRAME_BYTES)
    yield "ends within", good[: starts[filled + 1] - 1]
    flipped = bytearray(good)
    flipped[starts[filled + 1] - 1] ^= 1
    yield "does not match", bytes(flipped)
    yield "should be", head + b"".join([parts[1], parts[0], *parts[2:]])
    yield "should be", head + b"".join([*parts[:2], *parts[3:]])
    yield "format version", good[:8] + b"\x02" + good[9:]
    yield "not a backup", b"something else"


@pytest.mark.slow
def test_what_is_broken_changes_nothing(daemon: Daemon, volume: str, other: Daemon, tmp_path: Path) -> None:
    files = chain(daemon, tmp_path, 2)
    other.ok("restore", files[0], "w")
    before, contents = other.everything(), nbd.read_all(other.uri("w"))
    for file, target in ((files[0], "x"), (files[1], "w")):
        for words, data in broken(file):
            bad = tmp_path / "bad.pv"
            if words == "format version":
                data = with_header_crc(data)
            bad.write_bytes(data)
            assert words in other.refused("restore", bad, target)
            with bad.open("rb") as opened:
                told = subprocess.run(
                    [BIN / "polyvol", "restore", "-", target],
                    stdin=opened,
                    env=dict(os.environ, POLYVOL_STATE=str(other.state_dir)),
                    capture_output=True,
                    timeout=60,
                    check=False,
                )
            assert told.returncode == 1
            assert words in told.stderr.decode()
            assert other.everything() == before, words
    assert nbd.read_all(other.uri("w")) == contents
    # Out of order, and twice.
    uuid = daemon.json("snapshot", "show", "v@s1")["uuid"]
    said = other.refused("restore", files[2], "w")
    assert f"follows snapshot s1 ({uuid}), which volume w does not have" in said
    assert "exists already" in other.refused("restore", files[0], "w")
    assert other.everything() == before
    other.ok("restore", files[1], "w")
    assert "already has what" in other.refused("restore", files[1], "w")


def with_header_crc(data: bytes) -> bytes:
    """A header whose CRC is right."""
    from crc32c import crc32c

    return data[:12] + crc32c(data[16:HEADER_BYTES]).to_bytes(4, "little") + data[16:]


@pytest.mark.slow
def test_an_incremental_restore_never_mixes_with_other_changes(
    daemon: Daemon, volume: str, other: Daemon, tmp_path: Path
) -> None:
    files = chain(daemon, tmp_path, 1)
    other.ok("restore", files[0], "w")
    with nbd.connect(other.uri("w")):
        assert "in use by 1 client" in other.refused("restore", files[1], "w")
    extents = daemon.json("snapshot", "diff", "v@s0", "v@s1")["extents"]
    inside = extents[0]["offset"]
    outside = next(at for at in range(0, SIZE, 4096) if all(not covers(extent, at) for extent in extents))
    # Neither where the backup has nothing, nor where it would overwrite what somebody wrote.
    other.ok("restore", files[0], "x")
    for volume, offset in (("w", outside), ("x", inside)):
        write_alone(other, offset, volume)
        before, contents = other.everything(), nbd.read_all(other.uri(volume))
        assert "has changed since its snapshot s0" in other.refused("restore", files[1], volume)
        assert "cannot be resumed" in other.refused("restore", files[1], volume, "--resume")
        assert other.everything() == before
        assert nbd.read_all(other.uri(volume)) == contents
        other.ok("snapshot", "rollback", f"{volume}@s0")
        other.restart()
        other.ok("restore", files[1], volume)
        nbd.qemu_compare(daemon.uri("v@s1"), other.uri(f"{volume}@s1"))


def covers(extent: dict[str, int], at: int) -> bool:
    """Whether a byte is in an extent."""
    return extent["offset"] <= at < extent["offset"] + extent["length"]


def write_alone(daemon: Daemon, offset: int, volume: str = "w") -> None:
    """Write a block, and be gone."""
    with nbd.connect(daemon.uri(volume)) as handle:
        handle.pwrite(b"?" * 4096, offset)
    wait_until(lambda: daemon.volume(volume)["connections"] == 0, "the client has left")


@pytest.mark.slow
def test_an_interrupted_backup_goes_on_where_it_was(
    daemon: Daemon, volume: str, other: Daemon, tmp_path: Path
) -> None:
    chain(daemon, tmp_path, 1)
    whole, file, partial = (tmp_path / name for name in ("whole.pv", "file.pv", "file.pv.partial"))
    data = b""
    for arguments in (["v@s0"], ["v@s1", "--since", "s0"]):
        daemon.ok("backup", *arguments, "-o", whole)
        assert "exists already" in daemon.refused("backup", *arguments, "-o", whole)
        data = whole.read_bytes()
        for length in (HEADER_BYTES, len(data) // 3, len(data) - FRAME_BYTES, len(data)):
            partial.write_bytes(data[:length])
            assert "was interrupted" in daemon.refused("backup", *arguments, "-o", file)
            said = daemon.ok("backup", *arguments, "-o", file, "--resume")
            assert ("resumed at" in said) == (length > HEADER_BYTES)
            assert file.read_bytes() == data
            assert not partial.exists()
            file.unlink()
        whole.unlink()
    partial.write_bytes(data)
    daemon.ok("snapshot", "create", "v", "--name", "s9")
    assert "is of snapshot s1 since s0" in daemon.refused("backup", "v@s9", "-o", file, "--resume")
    assert partial.read_bytes() == data


@pytest.mark.slow
def test_a_backup_that_was_interrupted_within_its_header_is_resumed(
    daemon: Daemon, volume: str, tmp_path: Path
) -> None:
    whole, file, partial = (tmp_path / name for name in ("whole.pv", "file.pv", "file.pv.partial"))
    daemon.ok("backup", "v@s0", "-o", whole)
    data = whole.read_bytes()
    for length in (0, 1, len(MAGIC), HEADER_BYTES - 1):
        partial.write_bytes(data[:length])
        daemon.ok("backup", "v@s0", "-o", file, "--resume")
        assert file.read_bytes()[HEADER_BYTES:] != b""
        assert not partial.exists()
        daemon.ok("restore", file, f"r{length}")
        file.unlink()
    for other in (b"x", b"PVx" * 100):
        partial.write_bytes(other)
        assert "is not the beginning of this backup" in daemon.refused(
            "backup", "v@s0", "-o", file, "--resume"
        )
        assert partial.read_bytes() == other


@pytest.mark.parametrize(
    "kib",
    [
        pytest.param(1, marks=pytest.mark.slow),
        1024,  # leaves something for close() to write
    ],
)
def test_where_no_temporary_file_can_be_made_tmpdir_is_named(
    daemon: Daemon, volume: str, other: Daemon, tmp_path: Path, kib: int
) -> None:
    full, stream = chain(daemon, tmp_path, 1)
    other.ok("restore", full, "w")
    assert stream.stat().st_size > 1 << 20
    command = f"ulimit -f {kib}; {BIN}/polyvol restore - w --state-dir {other.state_dir} < {stream}"
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"in a temporary file in {tmp_path} failed: it would become larger" in done.stderr
    assert "set $TMPDIR to another directory" in done.stderr


@pytest.mark.slow
def test_a_backup_that_is_killed_goes_on(daemon: Daemon, volume: str, other: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "s0.pv"
    command = [str(BIN / "polyvol"), "backup", "v@s0", "-o", str(file)]
    env = dict(os.environ, POLYVOL_STATE=str(daemon.state_dir))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env) as running:
        partial = tmp_path / "s0.pv.partial"
        wait_until(lambda: file.exists() or (partial.exists() and partial.stat().st_size > MIB), "some of it")
        running.send_signal(signal.SIGKILL)
    if partial.exists():
        daemon.restart()
        daemon.ok("backup", "v@s0", "-o", file, "--resume")
    other.ok("restore", file, "w")
    nbd.qemu_compare(daemon.uri("v@s0"), other.uri("w@s0"))


@pytest.mark.slow
def test_an_older_copy_is_brought_up_to_date(
    daemon: Daemon, volume: str, other: Daemon, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    daemon.ok("backup", "v@s0", "--raw", "-o", raw)
    nbd.qemu_compare(daemon.uri("v@s0"), raw)
    assert raw.stat().st_blocks * 512 < SIZE
    assert "exists" in daemon.refused("backup", "v@s0", "--raw", "-o", raw).lower()
    other.make_volume("w", size="96M")
    nbd.copy(daemon.uri("v@s0"), other.uri("w"))
    fill(daemon, 5)
    daemon.ok("snapshot", "create", "v", "--name", "s1")
    for target in (str(raw), other.uri("w")):
        before = daemon.volume("v")
        assert "copied" in daemon.ok("copy-changed", "v@s1", "--since", "v@s0", target)
        assert before["snapshots"] == ["s0", "s1"]
        nbd.qemu_compare(daemon.uri("v@s1"), target)


@pytest.mark.slow
def test_a_copy_is_refused_before_anything_is_written(daemon: Daemon, volume: str, tmp_path: Path) -> None:
    fill(daemon, 5)
    daemon.ok("snapshot", "create", "v", "--name", "s1")
    short = tmp_path / "short"
    short.write_bytes(b"!" * 4096)
    for words, command in [
        ("has 4 KiB, and v@s1 has 96 MiB", ["copy-changed", "v@s1", "--since", "s0", str(short)]),
        ("it does not exist", ["copy-changed", "v@s1", "--since", "s0", str(tmp_path / "none")]),
        ("read-only", ["copy-changed", "v@s1", "--since", "s0", daemon.uri("v@s0")]),
        ("no snapshot 's9'", ["copy-changed", "v@s1", "--since", "s9", str(short)]),
        ("w is another volume than v", ["copy-changed", "v@s1", "--since", "w@s0", str(short)]),
        ("v@s1 is not older than v@s0", ["copy-changed", "v@s0", "--since", "s1", str(short)]),
        ("v@s1 is not older than v@s0", ["backup", "v@s0", "--since", "s1", "-o", str(tmp_path / "b")]),
        ("no snapshot", ["backup", "v@s9", "-o", str(tmp_path / "b")]),
        ("--raw", ["backup", "v@s1", "--since", "s0", "--raw", "-o", str(tmp_path / "b")]),
        ("--resume", ["backup", "v@s1", "--resume", "-o", "-"]),
        ("it does not exist", ["restore", str(tmp_path / "none"), "x"]),
    ]:
        assert words in daemon.refused(*command), command
    assert short.read_bytes() == b"!" * 4096
    assert not (tmp_path / "b").exists()
