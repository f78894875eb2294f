"""Hooks. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import ClassVar

from polyvol.daemon.ranges import Number
from polyvol.daemon.types.base import STRICT
from polyvol.mapping.records.hooks import HOOK_TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class HookView:
    """Commands that are run around a cut; `timeout_s` is for both together; `shell`: /bin/sh runs
    them."""

    quiesce: str | None
    thaw: str | None
    timeout_s: int
    shell: bool


@dataclass(frozen=True, kw_only=True)
class HookSettings:
    """Commands to run around a cut; both None: none. `timeout_s`: from the beginning of `quiesce` on, and
    for `thaw` itself. `shell`: /bin/sh runs them."""

    __pydantic_config__: ClassVar = STRICT
    quiesce: str | None = None
    thaw: str | None = None
    timeout_s: Number = HOOK_TIMEOUT_S
    shell: bool = False
