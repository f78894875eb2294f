"""Devices, as the API shows them and is asked for them. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from polyvol.daemon.ranges import Number
from polyvol.daemon.types.base import STRICT


@dataclass(frozen=True, kw_only=True)
class ExtentView:
    """A run of bytes on a device (by name)."""

    device: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class DeviceView:
    """A device. `role`: 'storage' (labelled) or 'adopted'. `state`: 'ok', or with a `reason` 'missing' (what
    is at its path is not it), 'faulty' (a call on it has failed since it was opened; it is still tried each
    time), 'adding' or 'removing' (that is under way, or is still to be undone or finished; nothing uses it).
    `capacity` is what extents can have of its `size`; `direct`: its blocks go past the page cache;
    `made_for` is the volume it was made for and goes with; `errors` counts I/O errors since it was opened,
    `last_errno` is the last one's (0: none)."""

    name: str
    uuid: str
    path: str
    kind: Literal["file", "block"]
    role: Literal["storage", "adopted"]
    size: int
    capacity: int
    free: int
    sparse: bool
    direct: bool
    made_for: str | None
    volumes: list[str]
    state: Literal["ok", "missing", "faulty", "hung", "adding", "removing"]
    reason: str | None
    errors: int
    last_errno: int
    created: str


@dataclass(frozen=True, kw_only=True)
class DeviceAdd:
    """`path` is absolute; `size` for a file to be made; `name` None: made from the path; `force`: whatever
    is on it, unless it is in use; `direct`: its blocks go past the page cache."""

    __pydantic_config__: ClassVar = STRICT
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

    __pydantic_config__: ClassVar = STRICT
    path: str | None = None
    accept: bool = False
