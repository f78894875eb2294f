"""Partitions: the portions of a volume, each with its processor and the extents that hold its bytes."""

from collections.abc import Iterator
from dataclasses import dataclass

from polyvol.mapping.errors import BadPartitionSize, SizeTooLarge, UnalignedSize, ZeroSize
from polyvol.mapping.extent import BLOCK_SIZE, Extent
from polyvol.mapping.sizes import argument_size

PARTITION_SIZE_MIN = 1 << 20
PARTITION_SIZE_MAX = 1 << 30
PARTITION_SIZE_DEFAULT = 64 << 20
PARTITIONS_MAX = 1 << 20
"""Partitions in one volume: 64 TiB of the default size."""
Range = tuple[int, int]
"""The first and the last of some partitions."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: bytes from `number` times the volume's partition size on."""

    number: int
    processor: int
    extents: tuple[Extent, ...]


def check_partition_size(size: int) -> int:
    """The size, if partitions may have it; else BadPartitionSize."""
    if size.bit_count() != 1 or not PARTITION_SIZE_MIN <= size <= PARTITION_SIZE_MAX:
        raise BadPartitionSize(size=size)
    return size


def check_volume_size(what: str, size: int, partition_size: int) -> int:
    """The size, if a volume may have it; else ZeroSize, UnalignedSize or SizeTooLarge."""
    if size <= 0:
        raise ZeroSize(what=what, size=size, smallest=BLOCK_SIZE)
    if size % BLOCK_SIZE:
        raise UnalignedSize(what=what, size=size, above=argument_size(round_up(size, BLOCK_SIZE)))
    if size > PARTITIONS_MAX * partition_size:
        raise SizeTooLarge(what=what, size=size, largest=PARTITIONS_MAX * partition_size)
    return size


def partition_lengths(size: int, partition_size: int) -> Iterator[int]:
    """The length of each partition in order: all the partition size, but the last, which has what is left."""
    for start in range(0, size, partition_size):
        yield min(partition_size, size - start)


def partition_count(size: int, partition_size: int) -> int:
    """How many partitions a volume or snapshot of this size has."""
    return round_up(size, partition_size) // partition_size


def round_up(size: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `size`."""
    return -(-size // unit) * unit


def common_range(one: Range | None, other: Range | None) -> Range | None:
    """The partitions that two ranges have in common, if they do."""
    if one is None or other is None:
        return None
    first, last = max(one[0], other[0]), min(one[1], other[1])
    return (first, last) if first <= last else None


def shown_range(partitions: Range) -> str:
    """'partition 3', 'partitions 3 to 5'."""
    first, last = partitions
    return f"partition {first}" if first == last else f"partitions {first} to {last}"
