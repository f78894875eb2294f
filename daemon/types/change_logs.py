"""Change logs and their space. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from polyvol.daemon.ranges import Names, Number
from polyvol.daemon.types.base import STRICT


@dataclass(frozen=True, kw_only=True)
class LogView:
    """A change log of a volume: `used` is what block maps refer to, `claimed` what its chunks hold; both are
    None while the volume is not served. `default`: used where a snapshot names none."""

    number: int
    default: bool
    devices: list[str]
    size: int
    used: int | None
    claimed: int | None


@dataclass(frozen=True, kw_only=True)
class SpaceView:
    """Use of all change logs of a volume: `free` is what can still be redirected, `rate` the net growth in
    the last minutes in bytes a second, `full_after_s` when they are full at that rate (None: they do not
    grow). `level`: 'low' from 75 % on, 'critical' from 90 %, 'full'."""

    size: int
    used: int
    free: int
    level: Literal["ok", "low", "critical", "full"]
    rate: int
    full_after_s: int | None


@dataclass(frozen=True, kw_only=True)
class LogAdd:
    """One more change log on each of these devices, of this size each; None: what is free, at most the
    volume's size. No devices: a sparse file is made for it, of the size of all logs that the volume has
    unless one is given."""

    __pydantic_config__: ClassVar = STRICT
    devices: Names = ()
    size: Number | None = None
