"""The label: what is written is read back, and nothing that was changed is believed."""

import struct
from contextlib import suppress
from uuid import UUID

import crcmod.predefined
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyvol.mapping.label import DATA_OFFSET, LABEL_SIZE, BadLabel, Label, NoLabel, pack, unpack

numbers = st.integers(0, (1 << 64) - 1)
labels = st.builds(Label, st.uuids(), st.uuids(), numbers, numbers)
EXAMPLE = Label(UUID(int=1), UUID(int=2), 10 << 30, 1_700_000_000_000_000_000)


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


@given(st.binary(max_size=68), st.sampled_from([8, 16, 48, 72, 76]))
def test_whatever_stands_under_a_checksum_that_matches_is_a_label_or_refused(said: bytes, at: int) -> None:
    """A disk can say anything; what stands before `at` is right, so that it gets far."""
    data = bytearray(pack(EXAMPLE)[:-4])
    data[at : at + len(said)] = said
    crc = crcmod.predefined.mkPredefinedCrcFun("crc-32c")(bytes(data))
    whole = bytes(data) + struct.pack("<I", crc)
    with suppress(BadLabel):
        assert pack(unpack(whole)) == whole


@pytest.mark.parametrize(("offset", "value"), [(8, 2), (12, 512), (72, 9), (100, 1)])
def test_a_label_of_another_version_or_role_is_refused(offset: int, value: int) -> None:
    data = bytearray(pack(EXAMPLE))
    struct.pack_into("<I", data, offset, value)
    crc = crcmod.predefined.mkPredefinedCrcFun("crc-32c")(bytes(data[:-4]))
    struct.pack_into("<I", data, LABEL_SIZE - 4, crc)
    with pytest.raises(BadLabel):
        unpack(bytes(data))


def test_the_bytes_are_those_that_the_formats_page_gives() -> None:
    data = pack(EXAMPLE)
    assert data[:8] == b"POLYVOL\x01"
    assert struct.unpack_from("<II", data, 8) == (1, 4096)
    assert data[16:32] == EXAMPLE.device.bytes
    assert data[32:48] == EXAMPLE.catalog.bytes
    assert struct.unpack_from("<QQQI", data, 48) == (EXAMPLE.size, DATA_OFFSET, EXAMPLE.created_ns, 1)
    assert not any(data[76:4092])
