"""Restores. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import ClassVar

from polyvol.daemon.ranges import Names, Number, Processors
from polyvol.daemon.types.base import STRICT
from polyvol.daemon.types.places import Places
from polyvol.mapping.partition import PARTITION_SIZE_DEFAULT


@dataclass(frozen=True, kw_only=True)
class IncompleteRestoreView:
    """A restore that is not complete: of a copy of `snapshot_uuid`, to be named `snapshot`, read from
    `source`; `stream` is the stream's own number, `base` the snapshot that it follows (None: the volume was
    made for it). `connections`: clients that write it now."""

    source: str
    stream: str
    snapshot: str
    snapshot_uuid: str
    base: str | None
    begun: str
    connections: int


@dataclass(frozen=True, kw_only=True)
class RestoreView:
    """A restore that can be written: `export` is the only export of `volume`, known to nobody else (None with
    `dry_run`). `resumed`: some of it may have been written before. `base`: the volume's snapshot that it
    follows."""

    volume: str
    export: str | None
    resumed: bool
    base: str | None


@dataclass(frozen=True, kw_only=True)
class RestoreAbandoned:
    """A restore that has ended incomplete: the volume is what its snapshot `base` shows, or is deleted
    (None)."""

    volume: str
    base: str | None


@dataclass(frozen=True, kw_only=True)
class RestoreBegin:
    """A restore to `volume` of a backup stream, as its header describes it: `stream` is its own number,
    `snapshot` and `base` are names, with the UUIDs of what was backed up (base None: a full backup, for which
    a volume is made, with `devices`, `log_devices`, `processors` and `place` as for VolumeCreate). `source`:
    where the stream is read from, for people. `resume`: resume a restore of this same stream. `dry_run`: only
    refuse what cannot be."""

    __pydantic_config__: ClassVar = STRICT
    volume: str
    source: str
    stream: str
    size: Number
    partition_size: Number = PARTITION_SIZE_DEFAULT
    snapshot: str
    snapshot_uuid: str
    base: str | None = None
    base_uuid: str | None = None
    devices: Names = ()
    log_devices: Names = ()
    processors: Processors | None = None
    place: Places = ()
    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class RestoreCompletion:
    """All of the stream was written, and flushed, to `export`, which the restore was given."""

    __pydantic_config__: ClassVar = STRICT
    export: str
