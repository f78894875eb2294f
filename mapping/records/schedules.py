"""Schedules as the catalog knows them."""

from collections.abc import Mapping
from dataclasses import dataclass

from polyvol.mapping.ids import VolumeId


@dataclass(frozen=True, slots=True)
class Schedule:
    """When snapshots are taken of a volume or of a group (by id), and which are kept: `keep` has rules and
    counts. What was due until `last_ns` (ns since 1970) is done. `error`: why the last run failed, if it
    did."""

    id: int
    name: str
    volume: VolumeId | None
    group: int | None
    every_s: int | None
    cron: str | None
    keep: Mapping[str, int]
    prefix: str
    paused: bool
    last_ns: int
    error: str | None
    created_ns: int
