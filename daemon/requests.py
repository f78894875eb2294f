"""What can be asked of the daemon: the bodies of the API's requests. Sizes are bytes."""

from dataclasses import dataclass
from typing import ClassVar

from polyvol.daemon.group_requests import GroupSnapshotCreate, HookSettings
from polyvol.daemon.ranges import Names, Number
from polyvol.mapping.partition import PARTITION_SIZE_DEFAULT
from polyvol.mapping.records import WhenFull

_STRICT = {"extra": "forbid", "strict": True}
"""For pydantic, which the API reads these with: unknown keys and wrong types are refused."""


@dataclass(frozen=True, kw_only=True)
class DeviceAdd:
    """`path` is absolute; `size` for a file to be made; `name` None: made from the path; `force`: whatever
    is on it, unless it is in use; `direct`: its blocks go past the page cache."""

    __pydantic_config__: ClassVar = _STRICT
    path: str
    name: str | None = None
    size: Number | None = None
    preallocate: bool = False
    adopt: bool = False
    force: bool = False
    direct: bool = False


@dataclass(frozen=True, kw_only=True)
class DeviceRetry:
    """`path`: where the device is now, absolute; None: where it was. `accept`: take it although it, or the
    state directory, is an older copy, or although it was adopted and is a copy."""

    __pydantic_config__: ClassVar = _STRICT
    path: str | None = None
    accept: bool = False


@dataclass(frozen=True, kw_only=True)
class ScrubStart:
    """`rate`: bytes a second at most."""

    __pydantic_config__: ClassVar = _STRICT
    rate: Number = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ScrubSettings:
    """`weekly`: scrub every volume once a week."""

    __pydantic_config__: ClassVar = _STRICT
    weekly: bool


@dataclass(frozen=True, kw_only=True)
class VolumeCreate:
    """Either `size` or `base`, the name of an adopted device. No devices: sparse files are made for it.
    `processors` None: all that there are. `dry_run`: plan it only."""

    __pydantic_config__: ClassVar = _STRICT
    name: str
    size: Number | None = None
    partition_size: Number = PARTITION_SIZE_DEFAULT
    devices: Names = ()
    log_devices: Names = ()
    processors: Number | None = None
    base: str | None = None
    when_full: WhenFull = "keep-writing"
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class CloneCreate:
    """A volume `name` made from a snapshot. `log_devices`: where what is written to it goes; none: sparse
    files are made for it. `processors` None: all that there are."""

    __pydantic_config__: ClassVar = _STRICT
    name: str
    log_devices: Names = ()
    processors: Number | None = None
    when_full: WhenFull = "keep-writing"


@dataclass(frozen=True, kw_only=True)
class VolumeSet:
    """What is to be changed of a volume; None: it stays."""

    __pydantic_config__: ClassVar = _STRICT
    when_full: WhenFull | None = None
    hooks: HookSettings | None = None


@dataclass(frozen=True, kw_only=True)
class LogAdd:
    """One more change log on each of these devices, of this size each; None: what is free, at most the
    volume's size. No devices: a sparse file is made for it, of the size of all logs that the volume has
    unless one is given."""

    __pydantic_config__: ClassVar = _STRICT
    devices: Names = ()
    size: Number | None = None


@dataclass(frozen=True, kw_only=True)
class SnapshotCreate:
    """One cut over these volumes. `name` None: made from the time, after `prefix`. `log_device`: where what
    is written afterwards goes. `scheduled`: by a schedule, so that it may be dropped for space.
    `require_hooks`: no snapshot unless all hooks succeed."""

    __pydantic_config__: ClassVar = _STRICT
    volumes: Names
    name: str | None = None
    prefix: str | None = None
    log_device: str | None = None
    scheduled: bool = False
    require_hooks: bool = False


SnapshotWanted = SnapshotCreate | GroupSnapshotCreate
"""What is asked of a snapshot, apart from the volumes."""


@dataclass(frozen=True, kw_only=True)
class RestoreBegin:
    """A restore to `volume` of a backup stream, as its header describes it: `stream` is its own number,
    `snapshot` and `base` are names, with the UUIDs of what was backed up (base None: a full backup, for which
    a volume is made, with `devices`, `log_devices` and `processors` as for VolumeCreate). `source`: where the
    stream is read from, for people. `resume`: go on with a restore of this very stream. `dry_run`: only
    refuse what cannot be."""

    __pydantic_config__: ClassVar = _STRICT
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
    processors: Number | None = None
    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class RestoreCompletion:
    """All of the stream was written, and flushed, to `export`, which the restore was given."""

    __pydantic_config__: ClassVar = _STRICT
    export: str
