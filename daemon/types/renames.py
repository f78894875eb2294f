"""Renames: what is asked for, and what has another name then."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from polyvol.daemon.types.base import STRICT


@dataclass(frozen=True, kw_only=True)
class Rename:
    """Another name: of a snapshot, what follows the '@'."""

    __pydantic_config__: ClassVar = STRICT
    name: str


@dataclass(frozen=True, kw_only=True)
class ExportRenamed:
    """An NBD export that has another name now."""

    old: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """What was renamed: from `old` to `name`; for a snapshot 'VOLUME@SNAPSHOT' or '@GROUP@SNAPSHOT'.
    `exports`: those whose names changed with it, which clients have to use from now on."""

    noun: Literal["volume", "snapshot", "device", "group", "schedule"]
    old: str
    name: str
    exports: list[ExportRenamed]
