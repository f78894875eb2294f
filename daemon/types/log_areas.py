"""Log areas, log rules, and the space for change logs. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from polyvol.daemon.ranges import Names, Number
from polyvol.daemon.types.base import STRICT


@dataclass(frozen=True, kw_only=True)
class LogView:
    """A log area of a volume: `used` is what block maps refer to, `claimed` what its chunks hold; both are
    None while the volume is not served. `default`: the volume's own log rules name it, or name nothing for
    the rest; others are used by snapshots whose rules name them, and where a rule ends in 'any'."""

    number: int
    default: bool
    devices: list[str]
    size: int
    used: int | None
    claimed: int | None


@dataclass(frozen=True, kw_only=True)
class LogRuleView:
    """A log rule: the change logs of these `partitions` (first and last), of those of this `processor`, or of
    the rest (both None) lie in the volume's log areas on these `devices`, in this order, and then, if `any`,
    in any other. `rule`: as --log-device has it. Several rules for the rest are one list, over which
    processors take turns."""

    rule: str
    partitions: list[int] | None
    processor: int | None
    devices: list[str]
    any: bool


@dataclass(frozen=True, kw_only=True)
class SpaceView:
    """Use of all log areas of a volume: `free` is what can still be redirected, `rate` the net growth in
    the last minutes in bytes a second, `full_after_s` when they are full at that rate (None: they do not
    grow). `level`: 'low' from 75 % on, 'critical' from 90 %, 'full'. Of the last `measured_s` seconds, an
    hour at most: `redirected_per_hour` bytes, of which as many as `freed_per_hour` became free again; at
    that rate `free` lasts for `lasts_s` seconds (None: it does not become less). All three are None until
    some minutes are measured."""

    size: int
    used: int
    free: int
    level: Literal["ok", "low", "critical", "full"]
    rate: int
    full_after_s: int | None
    measured_s: int = 0
    redirected_per_hour: int | None = None
    freed_per_hour: int | None = None
    lasts_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class LogLimitView:
    """Up to how many bytes the log areas of a volume, all together, grow by themselves: `bytes`, 0: they do
    not. `auto`: that follows from the volume's size."""

    bytes: int
    auto: bool


@dataclass(frozen=True, kw_only=True)
class LogAdd:
    """One more log area on each of these devices, of this size each; None: what is free, at most the
    volume's size. No devices: a sparse file is made for it, of the size of all areas that the volume has
    unless one is given."""

    __pydantic_config__: ClassVar = STRICT
    devices: Names = ()
    size: Number | None = None
