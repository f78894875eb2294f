"""Devices, extents, partitions, their placement on processors, and the catalog that records them all."""
