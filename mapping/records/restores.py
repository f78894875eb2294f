"""Restores that are not complete, as the catalog knows them."""

from dataclasses import dataclass
from uuid import UUID

from polyvol.mapping.ids import Epoch, VolumeId


@dataclass(frozen=True, slots=True)
class RestoreRecord:
    """A restore that was begun and is not complete. `stream`: the backup stream's own number; `source`: where
    it is read from, for people; `snapshot`: what the volume's snapshot will be named, a copy of
    `snapshot_uuid`; `base`: the epoch of the volume's snapshot that it follows (None: the volume was made for
    the restore); `begun_ns` since 1970, UTC."""

    volume: VolumeId
    stream: UUID
    source: str
    snapshot: str
    snapshot_uuid: UUID
    base: Epoch | None
    begun_ns: int
