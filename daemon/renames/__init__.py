"""Renames: other names for volumes, snapshots, devices, groups and schedules."""
