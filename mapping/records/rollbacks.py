"""Rollbacks as the catalog knows them."""

from dataclasses import dataclass

from polyvol.mapping.ids import Epoch


@dataclass(frozen=True, slots=True)
class Rollback:
    """A volume was rolled back to its snapshot of epoch `to`, when it had `size` bytes and the snapshot
    `to_size`: what is written in epochs above `at` goes on from there."""

    at: Epoch
    to: Epoch
    size: int
    to_size: int
