"""Backup streams: what was written is read back; what is damaged, missing, moved or foreign is refused."""

import io
import re
import struct
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from crc32c import crc32c
from hypothesis import given, strategies as st

from polyvol.snapshot import stream
from polyvol.snapshot.errors.streams import StreamBroken
from polyvol.snapshot.stream import BLOCK, Frame, FrameKind, FrameReader, StreamHeader, read_header

PAGE = Path(__file__).parents[3] / "docs" / "formats-backup.md"
HEADER = StreamHeader(
    stream=UUID(int=7),
    size=64 * BLOCK,
    partition_size=1 << 20,
    instant_ns=5,
    volume_uuid=UUID(int=1),
    volume="v",
    snapshot_uuid=UUID(int=2),
    snapshot="b",
    base_uuid=UUID(int=3),
    base="a",
    base_size=32 * BLOCK,
)
Frames = list[tuple[Frame, bytes]]


def plain(number: int, block: int, blocks: int) -> tuple[Frame, bytes]:
    data = bytes([number + 1]) * (blocks * BLOCK)
    crc = crc32c(data)
    frame = Frame(FrameKind.PLAIN, number, block * BLOCK, len(data), len(data), crc, crc)
    return frame, data


def zeros(number: int, block: int, blocks: int) -> tuple[Frame, bytes]:
    return Frame(FrameKind.ZEROS, number, block * BLOCK, blocks * BLOCK), b""


def written(frames: Frames, header: StreamHeader = HEADER, *, end: bool = True) -> bytes:
    parts = [header.to_bytes()]
    for frame, payload in frames:
        parts += [frame.to_bytes(header.seed), payload]
    if end:
        total = sum(frame.length for frame, _ in frames)
        parts.append(Frame(FrameKind.END, len(frames), header.size, total).to_bytes(header.seed))
    return b"".join(parts)


def read(data: bytes) -> tuple[StreamHeader, Frames]:
    file = io.BytesIO(data)
    header = read_header(file, "it")
    reader = FrameReader(file, header, "it")
    frames = []
    while (found := reader.next()) is not None:
        frames.append(found)
    return header, frames


GOOD = [plain(0, 0, 2), zeros(1, 2, 10), plain(2, 40, 1), plain(3, 63, 1)]


def test_what_was_written_is_read_back() -> None:
    assert read(written(GOOD)) == (HEADER, GOOD)
    full = replace(HEADER, base_uuid=None, base="", base_size=0)
    whole = [plain(0, 0, 4), zeros(1, 4, 60)]
    assert read(written(whole, full)) == (full, whole)


@given(st.data())
def test_a_byte_that_changed_is_noticed(data: st.DataObject) -> None:
    good = bytearray(written(GOOD))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StreamBroken):
        read(bytes(good))


@given(st.data())
def test_a_stream_that_ends_too_early_or_too_late_is_refused(data: st.DataObject) -> None:
    good = written(GOOD)
    with pytest.raises(StreamBroken):
        read(good[: data.draw(st.integers(0, len(good) - 1))])
    with pytest.raises(StreamBroken, match="follows its end"):
        read(good + data.draw(st.binary(min_size=1, max_size=100)))


def test_frames_that_are_missing_doubled_swapped_or_foreign_are_refused() -> None:
    other = replace(HEADER, stream=uuid4())
    foreign = GOOD[1][0].to_bytes(other.seed)
    good = [GOOD[0][0].to_bytes(HEADER.seed) + GOOD[0][1], foreign]
    with pytest.raises(StreamBroken, match="CRC"):
        read(HEADER.to_bytes() + b"".join(good))
    for frames in (
        [GOOD[0], GOOD[2]],
        [GOOD[0], GOOD[0]],
        [GOOD[1], GOOD[0]],
        [GOOD[0], zeros(1, 1, 2)],  # over the one before
        [zeros(0, 60, 5)],  # past the end
        [zeros(0, 0, 0)],
        [(replace(GOOD[0][0], offset=512), GOOD[0][1])],
        [(replace(GOOD[0][0], length=BLOCK), GOOD[0][1])],  # more payload than contents
        [(replace(zeros(0, 0, 1)[0], payload_bytes=4, payload_crc=crc32c(b"data")), b"data")],
    ):
        with pytest.raises(StreamBroken):
            read(written(frames))


def test_a_full_stream_that_leaves_something_out_is_refused() -> None:
    full = replace(HEADER, base_uuid=None, base="", base_size=0)
    with pytest.raises(StreamBroken, match="end frame"):
        read(written(GOOD, full))
    with pytest.raises(StreamBroken, match="before its end"):
        read(written([zeros(0, 0, 64)], full, end=False))


def test_another_version_and_other_files_are_refused() -> None:
    data = bytearray(written(GOOD))
    data[8] = 2
    with pytest.raises(StreamBroken, match="format version 2"):
        read(bytes(data[:12]) + struct.pack("<I", crc32c(bytes(data[16:512]))) + bytes(data[16:]))
    for other in (b"", b"hello", bytes(4096), b"\x28\xb5\x2f\xfd" + bytes(600)):
        with pytest.raises(StreamBroken, match="not a backup"):
            read(other)


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": 4097}, {"size": 1 << 63}, {"base_size": 65 * BLOCK}, {"chunk_bytes": 1 << 30}],
)
def test_a_header_that_makes_no_sense_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(StreamBroken, match="makes no sense"):
        read(replace(HEADER, **change).to_bytes())  # type: ignore[arg-type]


def offsets(form: str, names: tuple[str, ...]) -> list[tuple[str, int, int]]:
    """Each field of a structure with its offset and its bytes."""
    found, at = [], 0
    named = iter(names)
    for item in re.findall(r"\d*[a-zA-Z]", form):
        size = struct.calcsize("<" + item)
        if not item.endswith("x"):
            for unit in [item] if item.endswith("s") else [item[-1]] * int(item[:-1] or 1):
                found.append((next(named), at, struct.calcsize("<" + unit)))
                at += struct.calcsize("<" + unit)
        else:
            at += size
    return found


@pytest.mark.parametrize(
    ("title", "form", "names"),
    [
        ("Header", stream._HEADER.format, stream.HEADER_FIELDS),
        ("Frame", stream._FRAME.format, stream.FRAME_FIELDS),
    ],
)
def test_the_page_has_every_field_at_its_offset(title: str, form: str, names: tuple[str, ...]) -> None:
    section = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|", section, re.MULTILINE)
    assert [(name, int(at), int(size)) for name, at, size in rows] == offsets(form, names)
    assert f"{stream.HEADER_BYTES if title == 'Header' else stream.FRAME_BYTES} bytes" in section
