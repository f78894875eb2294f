"""Deletions of many snapshots. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

DELETED_NAMES_MAX = 10_000
"""The most names and patterns of snapshots that one request can have deleted."""


@dataclass(frozen=True, kw_only=True)
class SkippedSnapshotView:
    """A snapshot that was not deleted, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DeletionView:
    """Deletions of the snapshots of a volume, `uuid`: `total` are deleted, of which the space of `left` is
    still to be given back; `freed` was. `kept`: those that were asked for and stay."""

    volume: str
    uuid: str
    total: int
    left: int
    freed: int
    kept: list[SkippedSnapshotView]


@dataclass(frozen=True, kw_only=True)
class SnapshotsDelete:
    """The snapshots of these names, or that match them as patterns (`*`, `?`, `[...]`), are to be deleted. A
    pattern may match none; `total` of the answer tells."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    names: Annotated[tuple[str, ...], Field(max_length=DELETED_NAMES_MAX)]
