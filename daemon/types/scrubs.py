"""Scrubs. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from polyvol.daemon.ranges import Number
from polyvol.daemon.types.base import STRICT

ScrubState = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class BadBlockView:
    """A block in a change log that does not match its checksum, found `times` times."""

    partition: int
    block: int
    device: str
    first: str
    last: str
    times: int


@dataclass(frozen=True, kw_only=True)
class ScrubBadBlockView:
    """A block that a scrub could not read back right: why, and which exports see it."""

    partition: int
    block: int
    device: str
    reason: str
    seen_by: list[str]


@dataclass(frozen=True, kw_only=True)
class ScrubView:
    """A scrub. `rate` in bytes a second; `total` is about what there was to read as it began, `done` what was
    read, `skipped` what is on missing devices. `bad_blocks` counts what could not be read back right, `bad`
    lists it (at most 1000). `state`: 'running'; 'done'; 'stopped' (on request); 'failed', with a `reason`."""

    volume: str
    state: ScrubState
    started: str
    rate: int
    total: int
    done: int = 0
    skipped: int = 0
    bad_blocks: int = 0
    bad: list[ScrubBadBlockView] = field(default_factory=list)
    ended: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScrubSettingsView:
    """How scrubs are set: `weekly`: every volume is scrubbed once a week."""

    weekly: bool


@dataclass(frozen=True, kw_only=True)
class ScrubStart:
    """`rate`: bytes a second at most."""

    __pydantic_config__: ClassVar = STRICT
    rate: Number = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ScrubSet:
    """`weekly`: scrub every volume once a week."""

    __pydantic_config__: ClassVar = STRICT
    weekly: bool
