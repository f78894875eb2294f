"""Groups, and their snapshots, as the catalog knows them."""

from dataclasses import dataclass
from uuid import UUID

from polyvol.mapping.ids import VolumeId


@dataclass(frozen=True, slots=True)
class Group:
    """A named set of volumes, by id."""

    id: int
    uuid: UUID
    name: str
    volumes: tuple[VolumeId, ...]
    created_ns: int


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """A snapshot of a group: all snapshots of one cut, whichever volumes are in the group now."""

    cut: UUID
    group: int
    name: str
