"""Schedules: snapshots that polyvold takes by itself."""
