"""What the daemon answers about the space that snapshots hold, and about deleting many. Sizes are bytes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

DELETED_NAMES_MAX = 10_000
"""The most names and patterns of snapshots that one request can have deleted."""


@dataclass(frozen=True, kw_only=True)
class SnapshotUseView:
    """What a snapshot holds. `used` is what it sees of the change logs; of that `shared` is seen by others
    too. `frees` is what deleting it would free: `frees_log` of it in change logs, the rest at base places,
    where devices give it back if they can."""

    used: int
    shared: int
    frees: int
    frees_log: int


@dataclass(frozen=True, kw_only=True)
class VolumeUseView:
    """What a volume holds in its change logs: `live` is what it sees itself, `snapshots_only` what only its
    snapshots see, and deleting all of them would free."""

    used: int
    live: int
    snapshots_only: int


@dataclass(frozen=True, kw_only=True)
class KeptView:
    """A snapshot that was not deleted, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DeletionView:
    """Deletions of a volume's snapshots: `total` are deleted, of which the space of `left` is still to be
    given back; `freed` was. `kept`: those that were asked for and stay."""

    volume: str
    total: int
    left: int
    freed: int
    kept: list[KeptView]


@dataclass(frozen=True, kw_only=True)
class SnapshotsDelete:
    """The snapshots of these names, or that match them as patterns (`*`, `?`, `[...]`), are to be deleted. A
    pattern may match none; `total` of the answer tells."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    names: Annotated[tuple[str, ...], Field(max_length=DELETED_NAMES_MAX)]
