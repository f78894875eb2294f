"""sim_changes: what the sim engine says about what changed, from the blocks that it keeps."""

from tests.support.sim_checks import BLOCK


def changed_runs(before: dict[int, bytes], after: dict[int, bytes]) -> list[tuple[int, int]]:
    """The extents whose blocks differ, in order, none touching the next."""
    runs: list[tuple[int, int]] = []
    for block in sorted(before.keys() | after.keys()):
        if before.get(block) == after.get(block):
            continue
        offset = block * BLOCK
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + BLOCK)
        else:
            runs.append((offset, BLOCK))
    return runs


def page(
    runs: list[tuple[int, int]], start: int, extents_max: int
) -> tuple[list[tuple[int, int]], int | None]:
    """The runs from `start` on, at most so many, and where the next one begins."""
    left = [(max(offset, start), offset + length) for offset, length in runs if offset + length > start]
    shown = [(offset, end - offset) for offset, end in left]
    return shown[:extents_max], shown[extents_max][0] if len(shown) > extents_max else None
