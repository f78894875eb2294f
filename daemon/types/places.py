"""Places of partitions, as the API is asked for them."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from polyvol.daemon.ranges import NAMES_MAX, Names, Number
from polyvol.daemon.types.base import STRICT


@dataclass(frozen=True, kw_only=True)
class PlaceSpec:
    """Where the partitions from `first` to `last` are wanted: on this processor, on these devices in this
    order, or both. A device may be followed by ':' and how much of each partition it has."""

    __pydantic_config__: ClassVar = STRICT
    first: Number
    last: Number
    processor: Number | None = None
    devices: Names = ()


Places = Annotated[tuple[str | PlaceSpec, ...], Field(max_length=NAMES_MAX)]
"""Each as --place has it, or as an object."""
