"""Hooks as the catalog knows them."""

from dataclasses import dataclass

HOOK_TIMEOUT_S = 30
"""The time-out of hooks for which none is given, seconds."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Commands that are run around a cut: `quiesce` before it, `thaw` after it, in at most `timeout_s` from
    begin to end. `shell`: /bin/sh runs them."""

    quiesce: str | None
    thaw: str | None
    timeout_s: int
    shell: bool
