"""The label: how a device says which one it is, whatever its path, and which run of polyvold used it last.

How it works      The first 512 bytes of a device that was not adopted; docs/formats-labels.md gives every
                  byte. All integers are little-endian. The last four bytes are the CRC-32C of the bytes
                  before them. Labels of version 1 are 4096 bytes and say nothing about runs; they are read,
                  and the next start replaces them.
Invariants        LB1 what `unpack` returns of a label of this version, `pack` writes back to the same bytes;
                  LB2 a label is valid or not as a whole: a changed bit anywhere in its bytes is found; LB3 a
                  label is replaced by one write to one sector of 512 bytes, so power loss leaves the old one
                  or the new one.
Where it is used  device.py writes it (`write_label`), takes it off, and compares it with the catalog
                  (`trouble_with`); daemon/devices/files.py has that done when a device is added or opened,
                  and at each start and clean stop.
Durability        Written and synced when the device is added, and at each start and each clean stop.
Errors            NoLabel: nothing there that looks like one. BadLabel: one that cannot be read right.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

import crcmod.predefined

LABEL_SIZE = 512
LABEL_SIZE_1 = 4096
"""The label's length in version 1, and what is cleared when a label is taken off."""
MAGIC = b"POLYVOL\x01"
FORMAT_VERSION = 2
ROLE_STORAGE = 1
"""The only role so far: extents of partitions and of log areas."""
DATA_OFFSET = 1 << 20
"""Where the data area of a labelled device starts, bytes."""
NO_RUN = UUID(int=0)
"""The run that a label of version 1 is said to carry."""

_FIELDS_1 = struct.Struct("<8s I I 16s 16s Q Q Q I")
_FIELDS = struct.Struct("<8s I I 16s 16s Q Q Q I I Q 16s")
_CRC = struct.Struct("<I")
_crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


class NoLabel(Exception):
    """There is no label in these bytes."""


class BadLabel(Exception):
    """There is a label in these bytes, but it is damaged or of a newer version."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a label says. Sizes and offsets are bytes, `created_ns` is since 1970 (UTC). `generation`: of the
    catalog, in the run of polyvold that wrote the label; `run` names that run."""

    device: UUID
    catalog: UUID
    size: int
    created_ns: int
    data_offset: int = DATA_OFFSET
    role: int = ROLE_STORAGE
    generation: int = 0
    run: UUID = NO_RUN


def pack(label: Label) -> bytes:
    """The label's 512 bytes."""
    fields = _FIELDS.pack(
        MAGIC,
        FORMAT_VERSION,
        LABEL_SIZE,
        label.device.bytes,
        label.catalog.bytes,
        label.size,
        label.data_offset,
        label.created_ns,
        label.role,
        0,
        label.generation,
        label.run.bytes,
    )
    body = fields.ljust(LABEL_SIZE - _CRC.size, b"\0")
    return body + _CRC.pack(_crc32c(body))


def unpack(data: bytes) -> Label:
    """The label at the start of these bytes, of which there are 4096 unless the device is shorter; NoLabel or
    BadLabel if there is none that can be trusted."""
    if len(data) < LABEL_SIZE or data[: len(MAGIC)] != MAGIC:
        raise NoLabel
    # The checksum comes first, because the version may be damaged.
    if _checksum_matches(data[:LABEL_SIZE]):
        length, used = LABEL_SIZE, _FIELDS.size
    elif len(data) >= LABEL_SIZE_1 and _checksum_matches(data[:LABEL_SIZE_1]):
        length, used = LABEL_SIZE_1, _FIELDS_1.size
    else:
        raise BadLabel("its checksum does not match")
    _, version, said, device, catalog, size, data_offset, created_ns, role = _FIELDS_1.unpack_from(data)
    if (version, said) != (FORMAT_VERSION if length == LABEL_SIZE else 1, length):
        raise BadLabel(f"its format version is {version}, and this polyvold knows 1 to {FORMAT_VERSION}")
    reserved, generation, run = 0, 0, NO_RUN.bytes
    if length == LABEL_SIZE:
        *_, reserved, generation, run = _FIELDS.unpack_from(data)
    if reserved or any(data[used : length - _CRC.size]):
        raise BadLabel("its reserved bytes are not zero")
    if role != ROLE_STORAGE:
        raise BadLabel(f"its role is {role}, and this polyvold knows {ROLE_STORAGE}")
    return Label(
        UUID(bytes=device),
        UUID(bytes=catalog),
        size,
        created_ns,
        data_offset,
        role,
        generation,
        UUID(bytes=run),
    )


def _checksum_matches(data: bytes) -> bool:
    end = len(data) - _CRC.size
    return bool(_CRC.unpack_from(data, end)[0] == _crc32c(data[:end]))
