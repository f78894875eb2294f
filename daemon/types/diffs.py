"""What changed between two snapshots, or one and now. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ChangedExtent:
    """A run of bytes of a volume."""

    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class DiffView:
    """What changed in a volume between the snapshots `since` and `until` (None: now): a page of extents in
    order, none touching the next, and where the next page begins (None: that was all). Whatever changed is
    in it; contents may be equal all the same. Pages belong together if their UUIDs are the same: a snapshot
    may have been deleted, and made again by the same name."""

    volume: str
    since: str
    since_uuid: str
    until: str | None
    until_uuid: str | None
    extents: list[ChangedExtent]
    next: int | None


@dataclass(frozen=True, kw_only=True)
class DiffTotalView:
    """How much changed in a volume of `size` between the snapshots `since` and `until` (None: now)."""

    volume: str
    since: str
    until: str | None
    size: int
    extents: int
    bytes: int
