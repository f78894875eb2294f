"""Ids: numbers of different kinds that meet in one call, and must not be exchanged."""

from typing import NewType

VolumeId = NewType("VolumeId", int)
"""A volume in the catalog and in the engine; never used again."""
Epoch = NewType("Epoch", int)
"""The time between two cuts of one volume: with its volume, it is a snapshot."""
