"""The label: what is written is read back, and nothing that was changed is believed."""

import struct
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import crcmod.predefined
import pytest
from hypothesis import given, strategies as st

from polyvol.mapping.label import DATA_OFFSET, LABEL_SIZE, NO_RUN, BadLabel, Label, NoLabel, pack, unpack

numbers = st.integers(0, (1 << 64) - 1)
labels = st.builds(Label, st.uuids(), st.uuids(), numbers, numbers, generation=numbers, run=st.uuids())
EXAMPLE = Label(UUID(int=1), UUID(int=2), 10 << 30, 1_700_000_000_000_000_000, generation=5, run=UUID(int=3))
_crc = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


def version_1(label: Label) -> bytes:
    """A label as polyvold wrote it before there were runs: 4096 bytes."""
    body = struct.pack(
        "<8s I I 16s 16s Q Q Q I",
        b"POLYVOL\x01",
        1,
        4096,
        label.device.bytes,
        label.catalog.bytes,
        label.size,
        label.data_offset,
        label.created_ns,
        1,
    ).ljust(4092, b"\0")
    return body + struct.pack("<I", _crc(body))


@given(labels)
def test_a_label_is_read_back_as_it_was_written(label: Label) -> None:
    assert len(pack(label)) == LABEL_SIZE
    assert unpack(pack(label)) == label


@given(st.integers(0, LABEL_SIZE * 8 - 1))
def test_a_single_changed_bit_is_found(bit: int) -> None:
    data = bytearray(pack(EXAMPLE))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises((BadLabel, NoLabel)):
        unpack(bytes(data))


@pytest.mark.parametrize("data", [b"", bytes(LABEL_SIZE), pack(EXAMPLE)[:-1], b"x" * LABEL_SIZE])
def test_what_is_no_label_is_not_taken_for_one(data: bytes) -> None:
    with pytest.raises(NoLabel):
        unpack(data)


@given(st.binary(max_size=68), st.sampled_from([8, 16, 48, 72, 76, 80, 88, 104]))
def test_whatever_stands_under_a_checksum_that_matches_is_a_label_or_refused(said: bytes, at: int) -> None:
    """A disk can say anything; what stands before `at` is right, so that it gets far."""
    data = bytearray(pack(EXAMPLE)[:-4])
    data[at : at + len(said)] = said
    crc = _crc(bytes(data))
    whole = bytes(data) + struct.pack("<I", crc)
    with suppress(BadLabel):
        assert pack(unpack(whole)) == whole


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (8, 3), (12, 4096), (72, 9), (76, 1), (104, 1)])
def test_a_label_of_another_version_or_role_is_refused(offset: int, value: int) -> None:
    data = bytearray(pack(EXAMPLE))
    struct.pack_into("<I", data, offset, value)
    crc = _crc(bytes(data[:-4]))
    struct.pack_into("<I", data, LABEL_SIZE - 4, crc)
    with pytest.raises(BadLabel):
        unpack(bytes(data))


def test_the_bytes_are_those_that_the_formats_page_gives() -> None:
    data = pack(EXAMPLE)
    assert data[:8] == b"POLYVOL\x01"
    assert struct.unpack_from("<II", data, 8) == (2, 512)
    assert data[16:32] == EXAMPLE.device.bytes
    assert data[32:48] == EXAMPLE.catalog.bytes
    assert struct.unpack_from("<QQQI", data, 48) == (EXAMPLE.size, DATA_OFFSET, EXAMPLE.created_ns, 1)
    assert struct.unpack_from("<IQ", data, 76) == (0, EXAMPLE.generation)
    assert data[88:104] == EXAMPLE.run.bytes
    assert not any(data[104:508])


def test_a_label_of_version_1_is_read_and_any_changed_bit_of_it_is_found() -> None:
    data = version_1(EXAMPLE)
    assert unpack(data) == replace(EXAMPLE, generation=0, run=NO_RUN)
    for bit in range(0, len(data) * 8, 5):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((BadLabel, NoLabel)):
            unpack(bytes(changed))


def test_power_loss_while_a_label_is_replaced_leaves_the_old_or_the_new_one() -> None:
    """A sector of 512 bytes is old or new."""
    new = replace(EXAMPLE, generation=6, run=UUID(int=4))
    for old in (version_1(EXAMPLE), pack(EXAMPLE).ljust(4096, b"\0")):
        written = pack(new)
        assert len(written) == 512
        after = written + old[len(written) :]
        assert unpack(after) == new
