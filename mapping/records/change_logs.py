"""Change logs as the catalog knows them."""

from dataclasses import dataclass

from polyvol.mapping.extent import Extent


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """A change log of a volume: `number` is never used again; `default`: used where none is named."""

    number: int
    default: bool
    extents: tuple[Extent, ...]
