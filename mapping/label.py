"""The label: how a device says which one it is, whatever its path.

How it works      4096 bytes at offset 0 of a device that was not adopted; docs/formats-labels.md gives every
                  byte. All integers are little-endian. The last four bytes are the CRC-32C of the bytes
                  before them.
Invariants        L1 what `unpack` returns, `pack` writes back to the same bytes; L2 a label is valid whole or
                  not at all: a changed bit anywhere in the 4096 bytes is found.
Durability        Written once, when the device is added, and synced; never changed until it is removed.
Errors            NoLabel: nothing there that looks like one. BadLabel: one that cannot be read right.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

import crcmod.predefined

LABEL_SIZE = 4096
MAGIC = b"POLYVOL\x01"
FORMAT_VERSION = 1
ROLE_STORAGE = 1
"""The only role so far: extents of partitions and of change logs."""
DATA_OFFSET = 1 << 20
"""Where the data area of a labelled device starts, bytes."""

_FIELDS = struct.Struct("<8s I I 16s 16s Q Q Q I")
_CRC = struct.Struct("<I")
_CRC_OFFSET = LABEL_SIZE - _CRC.size
_crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


class NoLabel(Exception):
    """There is no label in these bytes."""


class BadLabel(Exception):
    """There is a label in these bytes, but it is damaged or of a newer version."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a label says. Sizes and offsets are bytes, `created_ns` is since 1970 (UTC)."""

    device: UUID
    catalog: UUID
    size: int
    created_ns: int
    data_offset: int = DATA_OFFSET
    role: int = ROLE_STORAGE


def pack(label: Label) -> bytes:
    """The label's 4096 bytes."""
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
    )
    body = fields.ljust(_CRC_OFFSET, b"\0")
    return body + _CRC.pack(_crc32c(body))


def unpack(data: bytes) -> Label:
    """The label in these bytes; NoLabel or BadLabel if there is none that can be trusted."""
    if len(data) < LABEL_SIZE or data[: len(MAGIC)] != MAGIC:
        raise NoLabel
    magic, version, length, device, catalog, size, data_offset, created_ns, role = _FIELDS.unpack_from(data)
    assert magic == MAGIC
    if _CRC.unpack_from(data, _CRC_OFFSET)[0] != _crc32c(data[:_CRC_OFFSET]):
        raise BadLabel("its checksum does not match")
    if version != FORMAT_VERSION or length != LABEL_SIZE:
        raise BadLabel(f"its format version is {version}, and this polyvold knows {FORMAT_VERSION}")
    if any(data[_FIELDS.size : _CRC_OFFSET]):
        raise BadLabel("its reserved bytes are not zero")
    if role != ROLE_STORAGE:
        raise BadLabel(f"its role is {role}, and this polyvold knows {ROLE_STORAGE}")
    return Label(UUID(bytes=device), UUID(bytes=catalog), size, created_ns, data_offset, role)
