"""Devices as the catalog knows them."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from polyvol.mapping.extent import BLOCK_SIZE, Extent
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.label import DATA_OFFSET, NO_RUN
from polyvol.mapping.opening import Kind

DeviceState = Literal["adding", "ready", "removing"]
UNFINISHED: dict[DeviceState, str] = {
    "adding": "it is being added, or that failed and is undone at the next reload or start",
    "removing": "it is being removed, or that failed and is finished at the next reload or start",
}
DEVICE_SIZE_MAX = 1 << 60
"""Bytes: beyond every disk, and well within the catalog's and the kernel's integers."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the catalog knows it. `path` is relative to the state directory if it lies within.
    `direct`: its blocks go past the page cache. `generation`: of the last label that is known to be on it;
    `runs`: the runs that its label may carry. `identity`: what it is known by, if it is adopted. `made`: its
    file was made when it was added."""

    id: int
    uuid: UUID
    name: str
    path: str
    kind: Kind
    adopted: bool
    size: int
    sparse: bool
    made_for: VolumeId | None
    state: DeviceState
    created_ns: int
    direct: bool = False
    generation: int = 0
    runs: tuple[UUID, ...] = (NO_RUN,)
    identity: str | None = None
    made: bool = False

    @property
    def unfinished(self) -> str | None:
        """Why nothing uses it, as a clause, if it is half added or half removed; else None. What is half
        made for a volume goes with that volume."""
        if self.state == "ready" or self.made_for is not None:
            return None
        return UNFINISHED[self.state]

    @property
    def data_area(self) -> Extent:
        """Where extents may lie; all offsets in it are the device's own."""
        return data_area(self.id, self.size, adopted=self.adopted)


def data_area(device: int, size: int, *, adopted: bool) -> Extent:
    """The data area of a device of this size."""
    start = 0 if adopted else DATA_OFFSET
    return Extent(device, start, size // BLOCK_SIZE * BLOCK_SIZE - start)
